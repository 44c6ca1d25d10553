"""Images that the tests draw, and what PIL and torchvision make of them."""
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from utils import UserError


def pixels(seed, *shape):
    """Smooth noise, so that a resized image is no grey mush and a wrong filter or orientation shows."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, *shape[2:]), dtype=np.uint8))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.BICUBIC))


def write_images(folder, count, size=(40, 50)):
    """RGB images, named so that their order is by number. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f'{i:03}.png') for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(pixels(i, *size, 3)).save(path)
    return paths


def reference(path, channels):
    """The image by torchvision's pil_loader and Resize, sixteen-bit grey scaled to eight."""
    with Image.open(path) as image:
        if image.mode.startswith('I;16'):
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        image = transforms.Resize((32, 32))(image.convert('RGB' if channels == 3 else 'L'))
    return np.asarray(image).reshape(32, 32, channels).transpose(2, 0, 1)


def assert_pool_is(pool, paths, channels=3):
    assert list(pool.names()) == list(paths)
    taken = pool.take(torch.arange(len(pool)))
    assert taken.dtype == torch.uint8 and taken.shape == (len(paths), channels, 32, 32)
    for image, path in zip(taken.numpy(), paths):
        assert np.array_equal(image, reference(path, channels)), path


def break_files(folder):
    good = write_images(folder, 3)
    (folder / 'garbage.png').write_bytes(b'\x89PNG no image' * 20)
    (folder / 'empty.jpg').write_bytes(b'')
    Image.fromarray(pixels(1, 90, 90, 3)).save(folder / 'truncated.jpg')
    (folder / 'truncated.jpg').write_bytes((folder / 'truncated.jpg').read_bytes()[:900])
    return good, sorted(str(folder / name) for name in ('garbage.png', 'empty.jpg', 'truncated.jpg'))


def error_of(function, *args, **kw):
    """The line of the UserError that the call must end in."""
    with pytest.raises(UserError) as error:
        function(*args, **kw)
    text = str(error.value)
    assert '\n' not in text
    return text


def whole(cache):
    """The names of the caches that are complete."""
    return {p.name for p in cache.iterdir() if p.is_dir() and not p.name.endswith('.partial')}
