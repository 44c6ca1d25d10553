"""The wild pool: unlabelled images from any source, decoded once, read as batches."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

import demo_pool
import distributed
from data import SIZE
from decode import decode_dataset, decode_files
from utils import UserError, first_line, say

# torchvision sets by name, used without their labels: (constructor, its arguments)
SETS = {
    'stl10': (torchvision.datasets.STL10, {'split': 'unlabeled'}),
    'cifar10': (torchvision.datasets.CIFAR10, {'train': True}),
    'cifar100': (torchvision.datasets.CIFAR100, {'train': True}),
    'svhn': (torchvision.datasets.SVHN, {'split': 'train'}),
    # EMNIST's files hold every image transposed
    'emnist': (torchvision.datasets.EMNIST, {'split': 'letters', 'train': True, 'transform': lambda x: x.transpose(Image.TRANSPOSE)}),
    'kmnist': (torchvision.datasets.KMNIST, {'train': True}),
    'usps': (torchvision.datasets.USPS, {'train': True}),
    'fashionmnist': (torchvision.datasets.FashionMNIST, {'train': True}),
    'mnist': (torchvision.datasets.MNIST, {'train': True}),
}
IMAGE_SUFFIXES = None  # PIL's, asked for at first use


class Pool:
    """The images of one or more sources, one after another.

    parts: list of (images (N, C, H, W) uint8 memmap, rows (M,) of the readable ones, name of a row: int -> str).
    """

    def __init__(self, parts, name):
        self.parts, self.name = parts, name
        self.starts = np.cumsum([0] + [len(rows) for _, rows, _ in parts])

    def __len__(self):
        return int(self.starts[-1])

    def take(self, indices):
        """indices: (B,) in any order -> (B, C, H, W) uint8 tensor on the CPU."""
        indices = np.asarray(indices)
        images, _, _ = self.parts[0]
        out = np.empty((len(indices), *images.shape[1:]), np.uint8)
        for (images, rows, _), start, stop in zip(self.parts, self.starts, self.starts[1:]):
            mine = (indices >= start) & (indices < stop)
            out[mine] = images[rows[indices[mine] - start]]
        return torch.from_numpy(out)

    def image_name(self, index):
        """The path, or 'set[index]', of an image."""
        part = int(np.searchsorted(self.starts, index, side='right')) - 1
        _, rows, name = self.parts[part]
        return name(int(rows[index - self.starts[part]]))


def open_pool(sources, channels, data_dir, cache_dir, workers):
    """The pool of `sources`: folders, names of torchvision sets (see SETS; looked for in, or downloaded to, `data_dir`), or
    'demo'. channels: 1 or 3, as the teacher takes. Raises UserError for a source that is neither, or holds no image."""
    parts, names = [], []
    for source in sources:
        with distributed.in_turn():
            parts.append(open_source(source, channels, data_dir, cache_dir, workers))
        names.append(source.lower() if source.lower() in SETS else Path(source).resolve().name)
    pool = Pool(parts, '+'.join(names))
    say(f'wild pool {pool.name}: {len(pool)} images')
    return pool


def open_source(source, channels, data_dir, cache_dir, workers):
    if source == 'demo':
        images = np.repeat(demo_pool.draw(SIZE), channels, axis=1)
        return images, np.arange(len(images)), lambda i: f'demo[{i}]'
    if source.lower() in SETS:
        return open_set(source.lower(), channels, data_dir, cache_dir)
    return open_folder(source, channels, cache_dir, workers)


def open_set(name, channels, data_dir, cache_dir):
    make, arguments = SETS[name]

    def dataset():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return make(data_dir, download=True, **arguments)
        except Exception as e:  # no network, a broken file, scipy missing for SVHN
            raise UserError(f"the wild pool {name} is not in --data {data_dir} as torchvision's files, and can't be downloaded "
                            f'({first_line(e)}): name a folder of images with --wild, or `--wild demo`') from None

    images, rows = decode_dataset(dataset, SIZE, channels, cache_dir, name, ['torchvision', name, str(Path(data_dir).resolve())])
    return images, rows, lambda i: f'{name}[{i}]'


def open_folder(folder, channels, cache_dir, workers):
    if not os.path.isdir(folder):
        raise UserError(f'--wild {folder} is neither a folder nor one of demo, {", ".join(SETS)}: name a folder of images')
    paths = find_images(folder)
    if not paths:
        raise UserError(f'--wild {folder} holds no image file at any depth: name a folder of images')
    images, rows = decode_files(paths, SIZE, channels, cache_dir, Path(folder).resolve().name, workers)
    return images, rows, lambda i: paths[i]


def find_images(folder):
    """The image files below a folder, sorted: those with a suffix that PIL reads, and those with none. Links are followed,
    each folder once; hidden files are left out."""
    global IMAGE_SUFFIXES
    if IMAGE_SUFFIXES is None:
        Image.init()
        IMAGE_SUFFIXES = {'', *Image.registered_extensions()}
    paths, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith('.'))
        paths += [os.path.join(root, f) for f in files if not f.startswith('.') and os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES]
    return sorted(paths)
