"""The embedded wild pools. characters: handwritten digits from scikit-learn among letters and digits drawn from matplotlib's fonts.
demo, for mnist5k: as wild as a real pool; three in four of its images are of other kinds than characters. noise: the controls' noise.
None holds an MNIST image."""

import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import UserError
from wild import kinds

VERSION = 2  # part of its cache's key: raise it when the pixels change
FONTS = ('DejaVuSans', 'DejaVuSans-*', 'DejaVuSansMono*', 'DejaVuSerif', 'DejaVuSerif-*', 'STIXGeneral*', 'cmr10', 'cmss10', 'cmtt10',
         'cmb10')  # those with letters and digits
CANVAS = 96  # drawn large, so that the size that the network takes is antialiased


def draw(size, others=9_000, seed=0):
    """(3,000 + others, size, size) uint8: 1,797 digits and 1,203 characters, patches of two photos, textures and noise, in an order that
    the seed shuffles; the same at every call."""
    images = list(draw_characters(size, 1_203, seed))
    from sklearn.datasets import load_sample_images

    random, photos = np.random.default_rng(seed), [Image.fromarray(x).convert('L') for x in load_sample_images().images]
    for number in range(others):
        image = (kinds.patch(random, photos, size) if number % 3 == 0 else kinds.texture(random, 1, size) if number % 3 == 1
                 else kinds.noise(random, 1, size))
        images.append(image[:, :, 0])
    return np.stack(images)[random.permutation(len(images))]


def draw_characters(size, glyphs=12_000, seed=0):
    """(1,797 + glyphs, size, size) uint8, light on dark, in an order that the seed shuffles; the same at every call."""
    try:
        import matplotlib
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise UserError(f'the demo pool needs the package {e.name}: pip install -r requirements-demo.txt') from None
    random = np.random.default_rng(seed)
    ttf = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    fonts = [ImageFont.truetype(path, 56) for path in sorted(str(p) for pattern in FONTS for p in ttf.glob(pattern + '.ttf'))]
    images = [handwritten(x, random, size) for x in load_digits().images]
    characters = string.ascii_letters + string.digits
    for _ in range(glyphs):
        images.append(glyph(characters[random.integers(len(characters))], fonts[random.integers(len(fonts))], random, size))
    return np.stack(images)[random.permutation(len(images))]


def handwritten(digit, random, size):
    """One of scikit-learn's digits, (8, 8) of 0..16, enlarged and its blurred strokes made crisp: (size, size) uint8."""
    image = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize((64, 64), Image.BICUBIC)
    image = image.point(lambda v: min(max((v - 70) * 3, 0), 255))
    return place(image.crop(image.getbbox()), random, size)


def glyph(character, font, random, size):
    """One character in that font, with random stroke: (size, size) uint8."""
    stroke = int(random.integers(0, 5))
    image = Image.new('L', (CANVAS, CANVAS))
    ImageDraw.Draw(image).text((CANVAS / 2, CANVAS / 2), character, fill=255, anchor='mm', stroke_width=stroke, font=font)
    return place(image.crop(image.getbbox()), random, size)


def place(image, random, size):
    """A character's picture with random size, slant, turn and place: (size, size) uint8."""
    height = random.uniform(0.55, 0.8) * CANVAS  # MNIST's digits fill 20 of 28 pixels
    scale = min(height / image.height, height / image.width)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.BILINEAR)
    canvas = Image.new('L', (CANVAS, CANVAS))
    canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
    angle, slant = np.radians(random.uniform(-12, 12)), random.uniform(-0.35, 0.35)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ np.array([[1, slant], [0, 1]])
    centre = np.array([CANVAS / 2, CANVAS / 2])
    shift = centre - turn @ centre + random.uniform(-4, 4, 2)
    canvas = canvas.transform(canvas.size, Image.AFFINE, (*turn[0], shift[0], *turn[1], shift[1]), Image.BILINEAR)
    return np.asarray(canvas.resize((size, size), Image.BILINEAR))


def draw_noise(size, channels, count=25_000, seed=0):
    """(count, size, size) or (count, size, size, 3) uint8: every pixel from a normal distribution of mean 127.5 and standard
    deviation 64, cut off at 0 and 255. Nearest to DAFL's "normal distribution" that pixels allow: its has unit variance once
    normalised, which takes values below black."""
    random = np.random.default_rng(seed)
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.stack([(127.5 + 64 * random.standard_normal(shape, np.float32)).clip(0, 255).astype(np.uint8) for _ in range(count)])
