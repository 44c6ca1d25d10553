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
from decode import NEEDS_WEBDATASET, decode, decode_dataset, decode_files, fingerprints, image_suffixes
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


class Pool:
    """The images of one or more sources, one after another, in the parts that they were decoded to (see decode.Part)."""

    def __init__(self, parts, name):
        self.parts, self.name = parts, name
        self.starts = np.cumsum([0] + [part.count for part in parts])

    def __len__(self):
        return int(self.starts[-1])

    def take(self, indices):
        """indices: (B,) in any order -> (B, C, H, W) uint8 tensor on the CPU."""
        indices = np.asarray(indices)
        part_of = np.searchsorted(self.starts, indices, side='right') - 1
        out = np.empty((len(indices), *self.parts[0].images.shape[1:]), np.uint8)
        for number in np.unique(part_of):
            mine = part_of == number
            out[mine] = self.parts[number].images[indices[mine] - self.starts[number]]
        return torch.from_numpy(out)

    def names(self):
        """Yields the path, 'shard#key' or 'set[index]' of every image, in order."""
        for part in self.parts:
            yield from part.names()


def open_pool(sources, channels, data_dir, cache_dir, workers):
    """The pool of `sources`, joined: folders, text files of paths, WebDataset shards (a path that ends in .tar, with brace
    ranges), names of torchvision sets (see SETS; looked for in, or downloaded to, `data_dir`), or 'demo'.

    channels: 1 or 3, as the teacher takes. Raises UserError for a source that is none of these, or holds no image.
    """
    parts, names = [], []
    for source in sources:
        with distributed.in_turn():
            parts += open_source(source, channels, data_dir, cache_dir, workers)
        names.append(source.lower() if source.lower() in ('demo', *SETS) else Path(source).resolve().name)
    pool = Pool(parts, '+'.join(names))
    say(f'wild pool {pool.name}: {len(pool)} images')
    return pool


def open_source(source, channels, data_dir, cache_dir, workers):
    if source.lower() == 'demo':
        return open_demo(channels, cache_dir)
    if source.lower() in SETS:
        if os.path.isdir(source):
            say(f"--wild {source} is torchvision's set of that name; for the folder write ./{source}")
        return open_set(source.lower(), channels, data_dir, cache_dir)
    name = Path(source).resolve().name
    if source.endswith('.tar'):
        shards = find_shards(source)
        return decode(shards, SIZE, channels, cache_dir, name, fingerprints(shards), workers)
    paths = read_list(source) if source.endswith('.txt') and os.path.isfile(source) else find_images(source)
    return decode_files(paths, SIZE, channels, cache_dir, name, workers)


def open_demo(channels, cache_dir):
    def dataset():
        return [(Image.fromarray(x), 0) for x in demo_pool.draw(SIZE)[:, 0]]

    return decode_dataset(dataset, SIZE, channels, cache_dir, 'demo', [f'demo {demo_pool.VERSION}'])


def open_set(name, channels, data_dir, cache_dir):
    make, arguments = SETS[name]

    def dataset():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return make(data_dir, download=True, **arguments)
        except Exception as e:  # no network, a broken file, scipy missing for SVHN
            raise UserError(f"the wild pool {name} is not in --data {data_dir} as torchvision's files, and can't be downloaded "
                            f'({first_line(e)}): name a folder of images with --wild, or `--wild demo`') from None

    return decode_dataset(dataset, SIZE, channels, cache_dir, name, [f'torchvision {name} {Path(data_dir).resolve()}'])


def find_shards(pattern):
    """The files of a brace range such as shards/{00000..00099}.tar, as img2dataset numbers them."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise UserError(f'--wild {pattern} names WebDataset shards: {NEEDS_WEBDATASET}') from None
    try:
        shards = expand_urls(pattern)
    except ValueError as e:
        raise UserError(f'--wild {pattern} is no brace range ({first_line(e)}): write it as {{00000..00099}}.tar') from None
    missing = [path for path in shards if not os.path.isfile(path)]
    if missing:
        raise UserError(f'--wild {pattern}: {len(missing)} of its {len(shards)} shards are missing, the first is {missing[0]}')
    return shards


def read_list(file):
    """The paths of a text file, a line each; relative ones are relative to the file's folder."""
    base = os.path.dirname(file)
    with open(file, encoding='utf-8-sig', errors='surrogateescape') as f:
        paths = [os.path.join(base, line.rstrip('\r\n')) for line in f if line.strip()]
    if not paths:
        raise UserError(f'--wild {file} lists no path: write a path a line')
    return paths


def find_images(folder):
    """The image files below a folder, sorted: those with a suffix that PIL reads, and those with none. Links are followed,
    each folder once; hidden files are left out. Raises UserError where there is no such folder, or no image."""
    if not os.path.isdir(folder):
        raise UserError(f'--wild {folder} is neither a folder, a .txt list of paths, a .tar shard, nor one of demo, {", ".join(SETS)}: '
                        'name a folder of images')
    paths, shards, seen = [], [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith('.'))
        shards += [os.path.join(root, f[:-4]) for f in files if f.endswith('.tar')]
        paths += [os.path.join(root, f) for f in files
                  if not f.startswith('.') and (os.path.splitext(f)[1].lower() or '.png') in image_suffixes()]
    if not paths:
        hint = ''
        if shards:
            first, last = min(shards), max(shards)
            start = first.rstrip('0123456789')
            hint = f', or its {len(shards)} .tar shards as "{start}{{{first[len(start):]}..{last[len(start):]}}}.tar"'
        raise UserError(f'--wild {folder} holds no image file at any depth: name a folder of images{hint}')
    return sorted(paths)
