"""The wild pool: unlabelled images from any source, decoded once, read as batches."""

import contextlib
import functools
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
from decode import (
    NEEDS_WEBDATASET,
    Part,
    decode,
    decode_dataset,
    decode_files,
    decode_job,
    file_jobs,
    fingerprints,
    image_suffixes,
)
from processes import run_jobs
from utils import UserError, first_line, free_memory, say, warn

# pools that are drawn here, without a file: (size, channels) -> (N, size, size) or (N, size, size, 3) uint8
MADE = {'demo': lambda size, channels: demo_pool.draw(size)[:, 0], 'noise': demo_pool.draw_noise}

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

    def reader(self, chosen, device):
        """The chosen images, to be indexed by positions in `chosen`: a tensor on the device where they take less than half of
        its free memory, else read from the pool batch by batch."""
        if len(chosen) * self.parts[0].images[0].nbytes < free_memory(device) / 2:
            return self.take(chosen).to(device)
        say(f'the {len(chosen)} images are more than half of the free memory, so they are read from the cache')
        return Reader(self, chosen)

    def names(self):
        """Yields the path, 'shard#key' or 'set[index]' of every image, in order."""
        for part in self.parts:
            yield from part.names()


class Reader:
    """Chosen images of a pool that stay on disk: indexing reads them."""

    def __init__(self, pool, chosen):
        self.pool, self.chosen = pool, chosen

    def __getitem__(self, positions):
        return self.pool.take(self.chosen[positions.numpy()])


def open_pool(sources, channels, data_dir, cache_dir, workers):
    """The pool of `sources`, joined: folders, text files of paths, WebDataset shards (a path that ends in .tar, with brace
    ranges), names of torchvision sets (see SETS; looked for in, or downloaded to, `data_dir`), 'demo' or 'noise'.

    channels: 1 or 3, as the teacher takes. Raises UserError for a source that is none of these, or holds no image.
    """
    parts = []
    for source in sources:
        with distributed.in_turn():
            if is_set(source):
                parts += open_set(source, channels, data_dir, cache_dir)
            elif source.endswith('.tar'):
                shards = find_shards(source)
                parts += decode(shards, SIZE, channels, cache_dir, Path(source).resolve().name, fingerprints(shards), workers)
            else:
                parts += decode_files(list(find_files(source)), SIZE, channels, cache_dir, Path(source).resolve().name, workers)
    pool = Pool(parts, pool_name(sources))
    say(f'wild pool {pool.name}: {len(pool)} images')
    return pool


def open_stream(sources, channels, data_dir, cache_dir, workers):
    """Yields the same images in the same order without keeping them: (number of the part, images (n, channels, 32, 32) uint8,
    their names), a part at a time, of several processes each its own parts."""

    for source in sources:  # a mistake in the last one must not come to light after days
        if not is_set(source):
            next(iter(find_jobs(source)))

    def jobs():
        for source in sources:
            if is_set(source):
                with distributed.in_turn():
                    parts = open_set(source, channels, data_dir, cache_dir)
                yield from parts
            else:
                yield from find_jobs(source)

    mine = ((number, job) for number, job in enumerate(jobs()) if number % distributed.world() == distributed.rank())
    first, skipped = None, 0
    for number, images, names, bad in run_jobs(functools.partial(stream_part, channels), mine, workers):
        first, skipped = first or (bad[0] if bad else None), skipped + len(bad)
        if len(images):
            yield number, images, names
    if skipped:
        say(f'skipped {skipped} files that are no readable images, the first is {first}')


def stream_part(channels, task):
    number, job = task
    if isinstance(job, Part):  # of a set, which is decoded already
        return number, job.images, job.names(), []
    return number, *decode_job(job, SIZE, channels)


def is_set(source):
    return source.lower() in (*MADE, *SETS)


def pool_name(sources):
    return '+'.join(s.lower() if is_set(s) else Path(s).resolve().name for s in sources)


def find_jobs(source):
    """What decode.decode_job takes, of any source but a set."""
    return find_shards(source) if source.endswith('.tar') else file_jobs(find_files(source))


def find_files(source):
    return read_list(source) if source.endswith('.txt') and os.path.isfile(source) else find_images(source)


def open_set(source, channels, data_dir, cache_dir):
    """The parts of a set of MADE or SETS."""
    name = source.lower()
    if os.path.isdir(source):
        say(f"--wild {source} is the set of that name; for the folder write ./{source}")

    def dataset():
        if name in MADE:
            return [(Image.fromarray(x), 0) for x in MADE[name](SIZE, channels)]
        make, arguments = SETS[name]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return make(data_dir, download=True, **arguments)
        except Exception as e:  # no network, a broken file, scipy missing for SVHN
            raise UserError(f"the wild pool {name} is not in --data {data_dir} as torchvision's files, and can't be downloaded "
                            f'({first_line(e)}): name a folder of images with --wild, or `--wild demo`') from None

    key = f'{name} {demo_pool.VERSION}' if name in MADE else f'torchvision {name} {Path(data_dir).resolve()}'
    return decode_dataset(dataset, SIZE, channels, cache_dir, name, [key])


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
    """Yields the paths of a text file, a line each; relative ones are relative to the file's folder."""
    base, count = os.path.dirname(file), 0
    with open(file, encoding='utf-8-sig', errors='surrogateescape') as f:
        for line in f:
            if line.strip():
                count += 1
                yield os.path.join(base, line.rstrip('\r\n'))
    if not count:
        raise UserError(f'--wild {file} lists no path: write a path a line')


def find_images(folder):
    """Yields the image files below a folder: those with a suffix that PIL reads, and those with none; a folder's own files, sorted,
    before its folders'. Links are followed, each folder once; hidden files are left out. Raises UserError where there is no such
    folder, or at the end, if there was no image."""
    if not os.path.isdir(folder):
        raise UserError(f'--wild {folder} is neither a folder, a .txt list of paths, a .tar shard, nor one of {", ".join([*MADE, *SETS])}: '
                        'name a folder of images')
    count, shards, seen = 0, [], set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=lambda e: warn(f'{first_line(e)}: its images are left out')):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith('.'))
        shards += [os.path.join(root, f[:-4]) for f in files if f.endswith('.tar')]
        for file in sorted(files):
            if not file.startswith('.') and (os.path.splitext(file)[1].lower() or '.png') in image_suffixes():
                count += 1
                yield os.path.join(root, file)
    if not count:
        hint = ''
        if shards:
            first, last = min(shards), max(shards)
            start = first.rstrip('0123456789')
            hint = f', or its {len(shards)} .tar shards as "{start}{{{first[len(start):]}..{last[len(start):]}}}.tar"'
        raise UserError(f'--wild {folder} holds no image file at any depth: name a folder of images{hint}')
