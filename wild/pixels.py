"""A PIL image of any kind to pixels: (channels, size, size) uint8."""

import contextlib

import numpy as np
from PIL import Image

Image.init()
# What is read, by content. Others by --formats alone, as much of Pillow is seldom tried with hostile files, and EPS starts a program.
FORMATS = [name for name in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF') if name in Image.OPEN]
with contextlib.suppress(ImportError):  # an optional package: PIL itself reads no HEIC
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append('HEIF')

REDUCE = 2.5  # a JPEG is decoded at the smallest DCT scale that keeps this many times the target, then resized
SQUARE = 64  # up to this size an image is squeezed to a square, as published; above it its aspect is kept
CROP = 256 / 224  # the short side before the centre is cut out, as torchvision's references have it: 256 for 224
TURNS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE, 6: Image.ROTATE_270,
         7: Image.TRANSVERSE, 8: Image.ROTATE_90}  # what undoes an EXIF orientation


def to_array(image, size, channels):
    """A PIL image -> (channels, size, size) uint8, upright, without transparency.

    Up to SQUARE as torchvision's pil_loader and Resize((size, size)) give it. Above, as its Resize and CenterCrop: the short side becomes
    CROP * size, and the centre is cut out; an image that is smaller keeps its own short side, down to `size`. One difference: a JPEG
    much larger than the target is scaled down by 2, 4 or 8 by the decoder itself (its DCT scaling)."""
    short = size if size <= SQUARE else max(size, min(round(CROP * size), *image.size))
    drafted = image.format == 'JPEG' and image.draft(None, (round(REDUCE * short),) * 2)
    image.load()  # a TIFF turns itself upright here, and forgets its orientation
    turn = TURNS.get(orientation(image)) if image.format else None
    # of 375 rows at a quarter's scale, 94 are decoded and 93.75 hold the picture: all 94 would move it
    box = drafted[1] if drafted else (0, 0, *image.size)
    if size > SQUARE:
        box = sum(zip(*(centre(side, min(box[2:]), short, size) for side in box[2:])), ())
    if image.mode[0] in 'IF':
        image = eight_bits(image)
    elif image.has_transparency_data:
        image = on_ground(image)
    elif image.mode == 'LAB':
        image = image.convert('RGB')  # Pillow has no way from it to grey
    image = image.convert('RGB' if channels == 3 else 'L')
    if image.size != (size, size) or box != (0, 0, size, size):
        image = image.resize((size, size), Image.BILINEAR, box=box)
    array = np.asarray(image if turn is None else image.transpose(turn))
    return array.transpose(2, 0, 1) if channels == 3 else array[None]


def orientation(image):
    try:
        return image.getexif().get(0x0112)
    except Exception:  # damaged EXIF data raise many kinds, and the picture is whole
        return None


def centre(side, shorter, short, size):
    """(first, last) of what is cut out along a side, in the image's own pixels. shorter: the image's short side, which becomes `short`."""
    scaled = int(short * side / shorter)  # torchvision's rounding, and below too
    first = round((scaled - size) / 2)
    return first * side / scaled, min((first + size) * side / scaled, side)


def eight_bits(image):
    """Grey values of a wide type as bytes. Integers are taken to fill 16 bits, or 8 or 12 where they stay below; floats may also
    be in 0..1, or a little above it, as a resize leaves them."""
    values = np.asarray(image)
    rows = np.array_split(values, min(len(values), -(-values.size // 2**20)))  # as float64 all would take eight times the image's memory
    top = max(np.nan_to_num(some.astype(np.float64)).max() for some in rows)
    full = 1 if image.mode == 'F' and top < 2 else next((2**bits - 1 for bits in (8, 12, 16) if top < 2**bits), top)

    def scaled(some):
        some = np.nan_to_num(some.astype(np.float64))
        return (some * 255 if full == 1 else some // ((full + 1) / 256)).clip(0, 255).astype(np.uint8)

    return Image.fromarray(np.concatenate([scaled(some) for some in rows]))


def on_ground(image):
    """A drawing on a transparent ground, laid on white where it is dark and on black where it is light: so it is visible."""
    image = image.convert('RGBA')
    alpha = np.asarray(image.getchannel('A'))
    if alpha.min() == 255:
        return image
    light = np.einsum('ij,ij->', np.asarray(image.convert('L')), alpha, dtype=np.int64) > 127.5 * alpha.sum(dtype=np.int64)
    return Image.alpha_composite(Image.new('RGBA', image.size, (0, 0, 0, 255) if light else (255, 255, 255, 255)), image)
