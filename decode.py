"""Image files to uint8 arrays: decoded once by worker processes into a memmap, then kept and read as memory."""

import contextlib
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from utils import UserError, progress, say

DECODER = 'pil-1'  # part of a cache's key: raise it when the pixels that come out change
CHUNK = 256  # images a worker takes at a time
PENDING, DONE, FAILED = 0, 1, 2


def to_array(image, size, channels):
    """A PIL image -> (channels, size, size) uint8: colour or grey as asked, then resized, bilinear with antialiasing.

    The same pixels as torchvision's pil_loader and Resize((size, size)). Sixteen-bit grey, which PIL would clip, is scaled.
    """
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert('RGB' if channels == 3 else 'L')
    if image.size != (size, size):
        image = image.resize((size, size), Image.BILINEAR)
    array = np.asarray(image)
    return array.transpose(2, 0, 1) if channels == 3 else array[None]


def decode_chunk(job):
    """Decodes one chunk of files into the memmap's rows. Returns the (path, reason) of those that can't be read."""
    folder, start, paths, size, channels = job
    images = np.load(folder / 'images.npy', mmap_mode='r+')
    status = np.load(folder / 'status.npy', mmap_mode='r+')
    for row, path in enumerate(paths, start):
        try:
            with Image.open(path) as image:
                images[row] = to_array(image, size, channels)
            status[row] = DONE
        except Exception:  # a decoder fed with garbage raises whatever it likes
            status[row] = FAILED
    return len(paths)


def decode_files(paths, size, channels, cache_dir, name, workers):
    """Decodes files into a memmap under `cache_dir`, or finds it there from an earlier run.

    paths: list of str. Returns (images (N, channels, size, size) uint8 memmap, rows (M,) int64 of the readable ones).
    A file that can't be decoded is skipped, counted and listed. Raises UserError when nothing can be read.
    """
    stats = [os.stat(p) for p in paths]
    key = [name, size, channels, DECODER, [(str(p), s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats)]]

    def write(folder, status):
        jobs = [(folder, i, paths[i : i + CHUNK], size, channels) for i in range(0, len(paths), CHUNK)
                if (status[i : i + CHUNK] == PENDING).any()]
        with progress(total=len(paths), initial=int((status != PENDING).sum()), desc=f'decode {name}') as bar:
            for n in run_jobs(decode_chunk, jobs, workers):
                bar.update(n)

    images, status, folder = cached(cache_dir, name, key, len(paths), size, channels, write)
    failed = np.flatnonzero(status == FAILED)
    if len(failed):
        (folder / 'skipped.txt').write_text(''.join(f'{paths[i]}\n' for i in failed))
        say(f'skipped {len(failed)} of {len(paths)} files of {name} that are no readable images, listed in {folder / "skipped.txt"}')
    if len(failed) == len(paths):
        raise UserError(f'none of the {len(paths)} files of {name} is a readable image: name a folder of images')
    return images, np.flatnonzero(status == DONE)


def decode_dataset(dataset, size, channels, cache_dir, name, key):
    """The same for a torchvision data set, `dataset()`, which is built only if the cache lacks its images."""
    path = Path(cache_dir) / cache_name(name, [*key, size, channels, DECODER])
    count = len(np.load(path / 'status.npy', mmap_mode='r')) if path.is_dir() else None
    images_of = None
    if count is None:
        images_of = dataset()
        count = len(images_of)

    def write(folder, status):
        images = np.load(folder / 'images.npy', mmap_mode='r+')
        for row in progress(range(count), desc=f'resize {name}'):
            images[row] = to_array(images_of[row][0], size, channels)
            status[row] = DONE

    images, _, _ = cached(cache_dir, name, [*key, size, channels, DECODER], count, size, channels, write)
    return images, np.arange(count)


# ---------------------------------------------------------------- the cache


def cache_name(name, key):
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return f'{"".join(c if c.isalnum() else "_" for c in name)}-{digest}'


def cached(cache_dir, name, key, count, size, channels, write):
    """Returns (images, status, folder) of the cache for `key`, built by `write(folder, status)` where it is missing.

    It is built under another name, chunk by chunk, and gets its own when it is whole: a build that was stopped goes on
    where it was, and of two runs that want the same cache the second waits for the first.
    """
    folder = Path(cache_dir) / cache_name(name, key)
    partial = folder.with_name(folder.name + '.partial')
    if not folder.is_dir():
        try:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f'--cache_dir {cache_dir} is not writable ({e.strerror}): name another folder') from None
        with locked(folder.with_name(folder.name + '.lock')):
            if not folder.is_dir():
                partial.mkdir(exist_ok=True)
                if not (partial / 'status.npy').is_file():
                    np.lib.format.open_memmap(partial / 'images.npy', 'w+', np.uint8, (count, channels, size, size))
                    np.save(partial / 'status', np.zeros(count, np.uint8))
                status = np.load(partial / 'status.npy', mmap_mode='r+')
                write(partial, status)
                status.flush()
                os.rename(partial, folder)
    return np.load(folder / 'images.npy', mmap_mode='r'), np.load(folder / 'status.npy', mmap_mode='r'), folder


@contextlib.contextmanager
def locked(path):
    """Holds an exclusive lock on the file; a process that dies lets go of it. Without fcntl (Windows) there is none."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def run_jobs(function, jobs, workers):
    """Yields function(job) for every job, in this process (workers=0) or in worker processes, by fork or spawn alike."""
    if workers == 0 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    try:
        with ProcessPoolExecutor(min(workers, len(jobs))) as pool:
            yield from pool.map(function, jobs)
    except BrokenProcessPool:
        raise UserError('a decoding process died (out of memory?): run the same command again, it goes on where it was; '
                        'lower --workers if it dies again') from None
