"""Image files and shards to uint8 arrays: decoded once by worker processes, then kept in parts and read as memory."""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import os
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils import UserError, first_line, progress, read_json, say, write_json, written_aside
from wild.pixels import SQUARE, to_array
from wild.workers import locked, run_jobs

DECODER = 'pil-5'  # part of a cache's key: raise it when the pixels that come out, or CHUNK, change
CHUNK = 1024  # files of a part up to SQUARE; a shard is a part of its own
PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)  # the machine's faults, not the file's
# members of a shard that come with an image, as img2dataset and others write them: left out without a word
COMPANIONS = {'json', 'txt', 'cls', 'caption', 'url'}
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error)  # what a damaged shard raises


def read_job(job):
    """Yields (name, file or its bytes) of a job: a list of paths, or a piece of a shard (its path, the byte where the piece begins, how
    many members it has, None for all that follow). Of a damaged shard, what comes before the damage; then the damage as a name."""
    if isinstance(job, list):
        yield from zip(job, job)
        return
    path, first, count = job
    place = first
    try:
        with open(path, 'rb') as stream:
            stream.seek(first)
            with tarfile.open(fileobj=stream) as tar:
                for member in itertools.islice(filter(is_sample, tar), count):
                    place = member.offset
                    key, _, suffix = member.name.rpartition('.')
                    name = key if f'.{suffix.lower()}' in Image.registered_extensions() else member.name
                    yield f'{path}#{name}', io.BytesIO(tar.extractfile(member).read())
                if count is None:  # tarfile takes the end of the file for the end, and a header that it can't read; it is a block of 0
                    place = tar.offset
                    tar.fileobj.seek(place)
                    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise tarfile.ReadError('no end')
    except BROKEN as e:
        raise_if_passing(path, e)
        yield f'{path} (breaks off at byte {place})', io.BytesIO()  # no image: so it is listed with what is skipped


def is_sample(member):
    """Whether a shard's member may be an image: content decides later. One whose name begins with a dot is a file manager's."""
    name = member.name.rpartition('/')[2]
    return member.isfile() and not name.startswith('.') and name.rpartition('.')[2].lower() not in COMPANIONS


def cut_shard(path, count):
    """Yields the pieces of a shard, of `count` members each; see `read_job`. Only the headers are read."""
    start, seen = 0, 0
    with contextlib.suppress(*BROKEN), open(path, 'rb') as stream, tarfile.open(fileobj=stream, mode='r:') as tar:
        for member in filter(is_sample, tar):  # what is damaged comes to light when the last piece is read
            if seen == count:
                yield path, start, count
                start, seen = member.offset, 0
            seen += 1
    yield path, start, None


def raise_if_passing(name, error):
    """Raises UserError where it is the machine's fault, so that no good file is given up for it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in PASSING):
        raise UserError(f'{name} can not be read now ({first_line(error)}): run the same command again') from None


def decode_job(job, size, channels):
    """Decodes a job. Returns (images (n, channels, size, size) uint8, their names, the names of those that can't be read)."""
    images, names, skipped = [], [], []
    for name, file in read_job(job):
        try:
            if isinstance(file, str) and not os.path.isfile(file):
                raise ValueError('no file')  # a pipe would be waited for
            with Image.open(file) as image:
                images.append(to_array(image, size, channels))
            names.append(name)
        except Exception as e:  # a decoder fed with garbage raises whatever it likes
            raise_if_passing(name, e)
            skipped.append(name)
    return np.stack(images) if images else np.empty((0, channels, size, size), np.uint8), names, skipped


def write_part(task):
    """Decodes a job into the files of a part. The array gets its name last: a part that has it is whole."""
    folder, number, job, size, channels = task
    images, names, skipped = decode_job(job, size, channels)
    save_part(folder, number, images, names, skipped)
    return len(names) + len(skipped)


def save_part(folder, number, images, names, skipped=()):
    write_names(folder / f'{number:06d}.txt', names)
    (folder / f'{number:06d}.skipped').unlink(missing_ok=True)  # of a part that was stopped
    if skipped:
        write_names(folder / f'{number:06d}.skipped', skipped)
    with written_aside(folder / f'{number:06d}.npy') as file:
        np.save(file, images)


def write_names(file, names):
    """One a line, as bytes of any kind. A line's end inside a name would move all that follow to the wrong images."""
    file.write_bytes(''.join(name.replace('\n', '\\n') + '\n' for name in names).encode('utf-8', 'surrogateescape'))


def read_names(file):
    return file.read_bytes().decode('utf-8', 'surrogateescape').split('\n')[:-1]


def jobs_of(paths, size):
    """Cuts an iterable of paths into jobs: each shard is one, and of other files up to CHUNK are. Above SQUARE a job takes fewer
    images, as many bytes, and shards are cut too: some jobs of every worker are in memory at a time."""
    count = CHUNK if size <= SQUARE else max(1, CHUNK * SQUARE**2 // size**2)
    for shards, some in itertools.groupby(paths, lambda path: path.endswith('.tar')):
        for path in some if shards else ():
            yield from [(path, 0, None)] if size <= SQUARE else cut_shard(path, count)
        while job := list(itertools.islice(some, count)):
            yield job


def decode_files(paths, size, channels, cache_dir, name, workers):
    """The Parts of image files and WebDataset shards, decoded or found in the cache; a file that changes is noticed by its size and
    time. What can't be decoded is skipped, counted and listed. Raises UserError when nothing can be read. name: of the source."""

    def write(folder):
        jobs = list(enumerate(jobs_of(paths, size)))
        todo = [(folder, i, job, size, channels) for i, job in jobs if not (folder / f'{i:06d}.npy').is_file()]
        before, count, start, told = len(jobs) - len(todo), 0, time.perf_counter(), 0
        with progress(total=len(jobs), initial=before, desc=f'decode {name}', unit='part') as bar:
            for done, read in enumerate(run_jobs(write_part, todo, workers), 1):
                count, seconds = count + read, time.perf_counter() - start
                rate = f'{count / seconds:.0f} img/s'
                bar.set_postfix_str(rate)
                bar.update()
                if bar.disable and seconds > told + 30:  # a line in a log
                    told, left = seconds, seconds / done * (len(todo) - done)
                    say(f'decode {name}: {count} images, part {before + done}/{len(jobs)}, {rate}, ETA {left:.0f} s')

    folder = cache_folder(cache_dir, name, [f'{size} {channels}', *fingerprints(paths)])
    parts = cached(folder, write)
    good = sum(part.count for part in parts)
    if bad := [name for file in sorted(folder.glob('*.skipped')) for name in read_names(file)]:
        say(f'skipped {len(bad)} of {good + len(bad)} files of {name} that are no readable images, the first is {bad[0]}, listed in '
            f'{folder}/*.skipped')
    if not good:
        raise UserError(f'none of the files of {name} is a readable image{f", the first is {bad[0]}" if bad else ""}: name a folder of '
                        'images')
    return parts


def decode_dataset(dataset, size, channels, cache_dir, name, key):
    """The same for a torchvision data set, `dataset()`, which is built only if the cache lacks its images."""
    folder = cache_folder(cache_dir, name, [f'{size} {channels}', key])
    images = None if folder.is_dir() else dataset()

    def write(folder):
        for number, start in enumerate(progress(range(0, len(images), CHUNK), desc=f'resize {name}', unit='part')):
            rows = range(start, min(start + CHUNK, len(images)))
            save_part(folder, number, np.stack([to_array(images[i][0], size, channels) for i in rows]), [f'{name}[{i}]' for i in rows])

    return cached(folder, write)


# ---------------------------------------------------------------- the cache


class Part:
    """One file of decoded images, opened when it is first read. count: how many it holds."""

    def __init__(self, file, count):
        self.file, self.count = file, count

    @functools.cached_property
    def images(self):
        """(count, channels, size, size) uint8. Mapped by torch: numpy's memmap keeps a file open for each part, and a large
        pool has more parts than a process may have open files (often 1,024)."""
        array = np.load(self.file, mmap_mode='r')
        mapped = torch.from_file(str(self.file), size=array.offset + array.size, dtype=torch.uint8)
        return mapped[array.offset :].view(array.shape).numpy()

    def names(self):
        return read_names(self.file.with_suffix('.txt'))


def fingerprints(files):
    """A string for each file that changes when its content does."""
    for path in files:
        try:
            stat = os.stat(path)
            yield f'{path} {stat.st_size} {stat.st_mtime_ns}'
        except (OSError, ValueError):  # it leads nowhere, and will be skipped and listed
            yield path


def cache_folder(cache_dir, name, key):
    """Where decoded images are kept. key: strings that change when the images or their decoding do."""
    digest = hashlib.sha256()
    for line in (DECODER, *key):
        digest.update(line.encode('utf-8', 'surrogateescape') + b'\0')
    return Path(cache_dir) / f'{"".join(c if c.isalnum() else "_" for c in name)}-{digest.hexdigest()[:16]}'


def cached(folder, write):
    """The Parts of a folder of the cache that hold an image, built by `write(folder)` where it is missing: under another name, part by
    part, until it is whole. So a build that was stopped goes on where it was; of two runs that want the same, the second waits."""
    if not folder.is_dir():
        partial = folder.with_name(folder.name + '.partial')
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(folder.name + '.lock')):
                if not folder.is_dir():
                    partial.mkdir(exist_ok=True)
                    write(partial)
                    parts = sorted(partial.glob('*.npy'))
                    write_json(partial / 'parts.json', {p.name: len(np.load(p, mmap_mode='r')) for p in parts})
                    os.rename(partial, folder)
        except OSError as e:
            raise UserError(f'--cache_dir {folder.parent} can not be written ({first_line(e)}): free space there, or name '
                            'another') from None
    return [Part(folder / file, count) for file, count in read_json(folder / 'parts.json').items() if count]
