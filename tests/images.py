"""Images that the tests draw and write, what PIL and torchvision make of them, and a teacher for them."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from own.teacher import Teacher
from utils import UserError

CPU = torch.device('cpu')


def pixels(seed, *shape):
    """Smooth noise, so that a resized image is no grey mush and a wrong filter or orientation shows."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, *shape[2:]), dtype=np.uint8))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.BICUBIC))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_images(folder, count, size=(40, 50), grey=False):
    """RGB images (of grey levels alone where `grey`), named so that their order is by number. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f'{i:03}.png') for i in range(count)]
    for i, path in enumerate(paths):
        image = Image.fromarray(pixels(i, *size, 3))
        (image.convert('L').convert('RGB') if grey else image).save(path)
    return paths


def break_files(folder):
    """Returns the paths of three good and of three broken files."""
    good = write_images(folder, 3)
    (folder / 'garbage.png').write_bytes(b'\x89PNG no image' * 20)
    (folder / 'empty.jpg').write_bytes(b'')
    Image.fromarray(pixels(1, 90, 90, 3)).save(folder / 'truncated.jpg')
    (folder / 'truncated.jpg').write_bytes((folder / 'truncated.jpg').read_bytes()[:900])
    return good, sorted(str(folder / name) for name in ('garbage.png', 'empty.jpg', 'truncated.jpg'))


def write_idx(path, array):
    """A file as MNIST's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + b''.join(n.to_bytes(4, 'big') for n in array.shape) + array.tobytes())


def write_mnist(raw):
    """torchvision's files of seven and three random digits. Returns {train: (images, labels)}."""
    content = {}
    for part, count in (('train', 7), ('t10k', 3)):
        images, labels = random_images(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8)[::-1] % 10
        write_idx(raw / f'{part}-images-idx3-ubyte', images)
        write_idx(raw / f'{part}-labels-idx1-ubyte', labels)
        content[part == 'train'] = images, labels
    return content


def write_small_world(folder, wild):
    """For whole runs of the scripts: MNIST's files of 96 and 40 random digits in data/, and `wild` images of 8 x 8 in wild/."""
    for part, count in (('train', 96), ('t10k', 40)):
        write_idx(folder / f'data/MNIST/raw/{part}-images-idx3-ubyte', random_images(count, 28, 28, seed=count))
        write_idx(folder / f'data/MNIST/raw/{part}-labels-idx1-ubyte', (np.arange(count) % 10).astype(np.uint8))
    (folder / 'wild').mkdir()
    for i, image in enumerate(random_images(wild, 8, 8, seed=2)):
        Image.fromarray(image).save(folder / 'wild' / f'{i:04}.bmp')


def reference(image, channels):
    """The image, or the file, by torchvision's pil_loader and Resize, sixteen-bit grey scaled to eight, and without transparency."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as file:
            file.load()
            return reference(file, channels)
    if image.mode in ('RGBA', 'LA'):  # on black or white, whichever is further from what it shows
        image = image.convert('RGBA')
        light = np.average(image.convert('L'), weights=np.asarray(image)[..., 3]) > 127.5
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'black' if light else 'white'), image)
    if image.mode.startswith('I;16'):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    image = transforms.Resize((32, 32))(image.convert('RGB' if channels == 3 else 'L'))
    return np.asarray(image).reshape(32, 32, channels).transpose(2, 0, 1)


def resized(images):
    """(N, H, W) or (N, H, W, 3) uint8 -> (N, C, 32, 32), by torchvision."""
    return np.stack([reference(Image.fromarray(x), 3 if x.ndim == 3 else 1) for x in images])


def assert_pool_is(pool, paths, channels=3, expected=None):
    """expected: the files of the images, where their names are others."""
    assert list(pool.names()) == list(paths)
    taken = pool.take(torch.arange(len(pool)))
    assert taken.dtype == torch.uint8 and taken.shape == (len(paths), channels, 32, 32)
    assert np.array_equal(taken, [reference(path, channels) for path in expected or paths])


def whole(cache):
    """The names of the caches that are complete."""
    return {p.name for p in cache.iterdir() if p.is_dir() and not p.name.endswith('.partial')}


def error_of(function, *args, **kw):
    """The line of the UserError that the call must end in."""
    with pytest.raises(UserError) as error:
        function(*args, **kw)
    text = str(error.value)
    assert '\n' not in text
    return text


def teacher_of(net, mean=(0.0,), std=(1 / 255,), classes=10):
    """A Teacher; with this mean and std the network sees the pixels as they are."""
    return Teacher(net, 'lenet5', 6, classes, len(mean), mean, std, 'MNIST', 0.9, 'digest', CPU, 'off', Path('teacher.pt'),
                   tuple(map(str, range(classes))))
