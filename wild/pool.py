"""The wild pool: unlabelled images from any source, decoded once, read as batches."""

import contextlib
import functools
import hashlib
import io
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

import distributed
from training import free_memory
from utils import UserError, first_line, say
from wild import demo
from wild.decode import decode_dataset, decode_files, fingerprints, jobs_of
from wild.parts import Part
from wild.reading import Decoder, decode_job
from wild.sources import find_images, find_shards, read_list
from wild.workers import run_jobs

# pools that are drawn here, without a file: (size, channels) -> (N, size, size) or (N, size, size, 3) uint8
MADE = {'demo': lambda size, channels: demo.draw(size), 'characters': lambda size, channels: demo.draw_characters(size),
        'noise': demo.draw_noise}

# torchvision sets by name, used without their labels: (constructor, its files in --data, its arguments); the training splits, which are
# the default
SETS = {
    'stl10': (datasets.STL10, 'stl10_binary/*', {'split': 'unlabeled'}),
    # EMNIST's files hold every image transposed
    'emnist': (datasets.EMNIST, 'EMNIST/raw/*', {'split': 'letters', 'transform': lambda x: x.transpose(Image.TRANSPOSE)}),
    **{make.__name__.lower(): (make, files, {}) for make, files in (
        (datasets.CIFAR10, 'cifar-10-batches-py/*'), (datasets.CIFAR100, 'cifar-100-python/*'), (datasets.SVHN, 'train_32x32.mat'),
        (datasets.KMNIST, 'KMNIST/raw/*'), (datasets.USPS, 'usps.bz2'), (datasets.FashionMNIST, 'FashionMNIST/raw/*'),
        (datasets.MNIST, 'MNIST/raw/*'))},
}


class Pool:
    """The images of one or more sources, one after another, in the parts that they were decoded to (see parts.Part). numbers: of those
    parts that hold an image, among all; a stream counts them so, too."""

    def __init__(self, parts, name):
        self.numbers = tuple(i for i, part in enumerate(parts) if part.count)
        self.parts, self.name = [parts[i] for i in self.numbers], name
        self.starts = np.cumsum([0] + [part.count for part in self.parts])

    def __len__(self):
        return int(self.starts[-1])

    def spans(self):
        """The positions of each part, as slices."""
        return [slice(*span) for span in itertools.pairwise(map(int, self.starts))]

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
        say(f'the {len(chosen)} images of {self.name} are more than half of the free memory, so they are read from the cache')
        return Reader(self, chosen)

    def digest(self):
        """Of what the pool holds, and in which order, whatever its name and those of its images: by the checksums of its parts."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.seal())
        return digest.hexdigest()

    def names(self):
        """An iterator of the path, 'shard#key' or 'set[index]' of every image, in order."""
        return itertools.chain.from_iterable(part.names() for part in self.parts)


class Reader:
    """Chosen images of a pool that stay on disk: indexing reads them."""

    def __init__(self, pool, chosen):
        self.pool, self.chosen = pool, chosen

    def __getitem__(self, positions):
        return self.pool.take(self.chosen[positions if isinstance(positions, slice) else positions.numpy()])


class Wild(NamedTuple):
    """Where wild images come from, and what they become: (channels, size, size) uint8."""

    sources: list  # folders, text files of paths, .tar shards (also brace ranges of them), names of MADE and SETS
    size: int
    channels: int
    data_dir: str  # --data: torchvision's sets are looked for in it, or downloaded to it
    cache_dir: str
    decoder: Decoder

    @property
    def name(self):
        return '+'.join(s.lower() if is_set(s) else Path(s).resolve().name for s in self.sources)


def open_pool(wild):
    """The Pool of a Wild's sources, joined. Raises UserError for a source that is none of the known kinds, or holds no image."""
    parts = []
    for source in wild.sources:
        if is_set(source):
            parts += open_set(source, wild)
        else:
            with distributed.in_turn():
                files, name = list(find_files(source, wild.decoder)), Path(source).resolve().name
                parts += decode_files(files, (wild.size, wild.channels), wild.cache_dir, name, wild.decoder)
    pool = Pool(parts, wild.name)
    say(f'wild pool {pool.name}: {len(pool)} images')
    return pool


class Passing(NamedTuple):
    """A part of a stream."""

    number: int
    images: np.ndarray  # (n, channels, size, size) uint8
    names: list
    skipped: list  # of Skips
    source: str  # changes with the part's files, and not with where they are


def open_stream(wild, seen=None, shared=True):
    """Yields the same images in the same order without keeping them: a Passing a part, of several processes each its own parts, or, not
    `shared`, each all of them. seen: {number: source} of parts that are left out. Raises UserError where they are others now."""
    for source in wild.sources:  # a mistake in the last one must not come to light after days
        if not is_set(source):
            next(iter(find_files(source, wild.decoder)))

    def jobs():
        every = itertools.chain.from_iterable(open_set(s, wild) if is_set(s) else jobs_of(find_files(s, wild.decoder), wild.size)
                                              for s in wild.sources)
        gone = set(seen or ())
        for number, job in enumerate(every):
            known, own = number in gone, not shared or number % distributed.world() == distributed.rank()
            gone.discard(number)
            if own and known and seen[number] != source_of(job):
                raise changed(number)
            if own and not known:
                if isinstance(job, Part):
                    job.mend()  # which a worker can't do
                yield number, job
        if gone:
            raise changed(min(gone))

    def changed(number):
        return UserError(f'{wild.name} has changed since the stream was stopped, in part {number}: put its images back, or select again '
                         'with --run NAME')

    yield from run_jobs(functools.partial(stream_part, wild), jobs(), wild.decoder.workers, ahead=0)


def stream_part(wild, task, apart=False):
    number, job = task
    if isinstance(job, Part):  # of a set, which is decoded already
        return Passing(number, job.images, job.names(), [], source_of(job))
    return Passing(number, *decode_job(job, wild.size, wild.channels, wild.decoder, apart), source_of(job))


def source_of(job):
    if isinstance(job, Part):
        return job.seal().hex()
    paths, piece = (job, '') if isinstance(job, list) else (job[:1], job[1:])
    lines = [os.path.basename(line) for line in fingerprints(paths, changed=False)]
    return hashlib.sha256(repr((lines, piece)).encode('utf-8', 'surrogateescape')).hexdigest()


def is_set(source):
    return source.lower() in (*MADE, *SETS)


def find_files(source, decoder):
    """An iterable of the files of a source that is no set."""
    if source.endswith('.tar'):
        return find_shards(source)
    if source.endswith('.txt') and os.path.isfile(source):
        return read_list(source)
    if os.path.isdir(source):
        return find_images(source, decoder)
    raise UserError(f'--wild {source} is neither a folder, a .txt list of paths, a .tar shard, nor one of {", ".join([*MADE, *SETS])}: '
                    'name a folder of images')


@distributed.in_turn()
def open_set(source, wild):
    """The parts of a set of MADE or SETS."""
    name = source.lower()
    if os.path.isdir(source):
        say(f"--wild {source} is the set of that name; for the folder write ./{source}")

    def dataset():
        if name in MADE:
            return [(Image.fromarray(x), 0) for x in MADE[name](wild.size, wild.channels)]
        make, _, arguments = SETS[name]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return make(wild.data_dir, download=True, **arguments)
        except Exception as e:  # no network, a broken file, scipy missing for SVHN
            raise UserError(f"the wild pool {name} is not in --data {wild.data_dir} as torchvision's files, and can't be downloaded "
                            f'({first_line(e)}): name a folder of images with --wild, or `--wild demo`') from None

    key = f'{name} {demo.VERSION}' if name in MADE else f'torchvision {name} {Path(wild.data_dir).resolve()}'
    def files():
        return [] if name in MADE else sorted(Path(wild.data_dir).resolve().glob(SETS[name][1]))

    return decode_dataset(dataset, (wild.size, wild.channels), wild.cache_dir, name, (key, files))
