"""Images of other kinds than a data set's, drawn or cut: what wild pools are full of. Each is (size, size, channels) uint8."""

import numpy as np
from PIL import Image

SIZE = 32


def coloured(value, random, channels):
    """(h, w) in 0..1, painted from one random colour to another."""
    first, second = random.integers(0, 256, (2, channels))
    return (first + value[:, :, None] * (second - first.astype(float))).round().astype(np.uint8)


def texture(random, channels, size=SIZE):
    """Waves, stripes, checks, a gradient or blots, of random scale and direction, in two random colours."""
    y, x = np.mgrid[:size, :size] / size
    angle, scale, phase = random.uniform(0, np.pi), 2 ** random.uniform(0, 4), random.uniform(0, 2 * np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    waves = np.sin(2 * np.pi * scale * u + phase)
    blots = random.random((int(2 + scale), int(2 + scale))).astype(np.float32)
    value = [0.5 + 0.5 * waves, waves > 0, waves * np.sin(2 * np.pi * scale * v) > 0, (u - u.min()) / np.ptp(u),
             np.asarray(Image.fromarray(blots).resize((size, size), Image.BICUBIC)).clip(0, 1)][random.integers(5)]
    return coloured(np.asarray(value, float), random, channels)


def noise(random, channels, size=SIZE):
    """Normal noise of random contrast around a random level."""
    level, contrast = random.uniform(64, 192, channels), random.uniform(16, 96)
    return (level + contrast * random.standard_normal((size, size, channels))).clip(0, 255).astype(np.uint8)


def page(random, channels, character):
    """A document: lines of small dark characters on light ground. character: side -> (side, side) in 0..1, another at every call."""
    cells = [[character(8) for _ in range(4)] for _ in range(4)]
    value = np.block([[cell * (column < 3 or row % 2) for column, cell in enumerate(line)] for row, line in enumerate(cells)])
    return np.repeat((255 - 215 * value).astype(np.uint8)[:, :, None], channels, axis=2)


def patch(random, photos, size=SIZE):
    """A square of random side and place, cut from one of the photos, PIL images of the wanted number of channels."""
    photo = photos[random.integers(len(photos))]
    side = int(size * 2 ** random.uniform(0, 2.5))
    side = min(side, *photo.size)
    left, top = (int(random.integers(max(1, length - side))) for length in photo.size)
    return np.asarray(photo.resize((size, size), Image.BILINEAR, box=(left, top, left + side, top + side))).reshape(size, size, -1)
