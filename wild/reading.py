"""Image files and shards to uint8 arrays: what is taken for an image, what a decode may take, and why an image is skipped."""

import contextlib
import errno
import io
import itertools
import os
import pickle
import re
import signal
import stat
import struct
import tarfile
import time
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils import UserError, first_line
from wild.pixels import FORMATS, to_array

try:
    import resource
except ImportError:  # Windows
    resource = None

# members of a shard that come with an image, as img2dataset and others write them: left out without a word
COMPANIONS = {'json', 'txt', 'cls', 'caption', 'url'}
PAUSES = 0.2, 0.8, 2.0  # seconds that a job waits, in all, for a file system that is away
HEIC = re.compile(rb'.{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)', re.DOTALL)
STARTS_A_PROGRAM = ('EPS',)  # Ghostscript
warnings.filterwarnings('ignore', module='PIL')  # of damaged files; those that can't be read are listed


class Decoder(NamedTuple):
    """How images are decoded. Time and memory are limited in worker processes alone."""

    workers: int = 0  # processes; 0: this one
    pixels: int = 50_000_000  # the most that an image may have
    seconds: float = 10  # of processor time for an image
    memory: float = 1024  # MB more than a worker has anyhow
    formats: tuple = ()  # of Pillow, besides FORMATS

    @classmethod
    def of(cls, args):
        """Of the flags. Raises UserError for a format that Pillow lacks, or that starts a program."""
        Image.init()
        formats = tuple(sorted({name.upper() for name in args.formats} - set(FORMATS)))
        if wrong := [name for name in formats if name not in Image.OPEN or name in STARTS_A_PROGRAM]:
            known = ', '.join(sorted(set(Image.OPEN) - set(FORMATS) - set(STARTS_A_PROGRAM)))
            raise UserError(f'--formats {wrong[0]} is no format that can be read here: give some of {known}')
        return cls(args.workers, args.decode_pixels, args.decode_seconds, args.decode_memory, formats)

    def known(self):
        return [*FORMATS, *self.formats]

    def suffixes(self):
        """Of files that are believed to be images."""
        known = self.known()
        return {suffix for suffix, name in Image.registered_extensions().items() if name in known}

    def accepts(self, start):
        """Whether a file that begins with the 32 bytes may be an image. Nothing is decoded."""
        return any(accepts(Image.OPEN[name][1], start) for name in self.known())

    def key(self):
        """A line that changes with what may be read."""
        return f'{self.pixels} {self.seconds:g} {self.memory:g} {" ".join(self.known())}'


def accepts(accept, start):
    """Whether the accept function of one of Pillow's formats, or None, takes a file for its own. Pillow's open passes over the same
    errors."""
    try:
        return accept is None or accept(start) is True
    except (SyntaxError, IndexError, TypeError, struct.error):
        return False


HERE = Decoder()  # in this process


class Skip(NamedTuple):
    """An image that can't be used."""

    image: str  # its name
    reason: str
    again: bool = False  # a fault of the file system, and not the image's: another run tries it again


class TooLarge(ValueError):
    """A file of more bytes than a decode may take."""


class Died(Exception):
    """A decoder that ended its process."""


# ---------------------------------------------------------------- files


def opened(path, pauses=()):
    """A regular file, opened to read bytes. pauses: an iterator of seconds after which a file system that fails is tried again. Raises
    ValueError for what is no file, and OSError, with its errno, for what can't be read now."""
    while True:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError('no file')  # a pipe would be waited for
            return open(path, 'rb')
        except OSError:
            if (pause := next(iter(pauses), None)) is None:
                raise
            time.sleep(pause)


def read_file(path, pauses=(), decoder=HERE):
    """All of a file. Raises TooLarge, and as `opened`."""
    with opened(path, pauses) as file:
        if is_too_large(os.fstat(file.fileno()).st_size, decoder):
            raise TooLarge
        return file.read()


def is_too_large(size, decoder):
    """Whether so many bytes are not read, all at once as they would be; also where no worker's memory is limited."""
    return size > decoder.memory * 2**20


def is_passing(error):
    """Whether it is the file system's fault. Pillow's own OSErrors have no number."""
    return isinstance(error, OSError) and error.errno is not None


def read_paths(paths, decoder):
    """Yields (name, bytes or the exception) of files."""
    pauses = iter(PAUSES)
    for path in paths:
        try:
            content = read_file(path, pauses, decoder)
        except (OSError, ValueError, MemoryError) as e:  # a ValueError too for a name with a 0 in it
            content = e
        yield path, content


# ---------------------------------------------------------------- shards


def read_shard(path, first, count, decoder):
    """Yields (name, bytes or the exception) of a piece of a shard, which begins at byte `first` and has `count` members, None for all
    that follow. What comes before a damage is read; then the damage is yielded, as that of the member that it is in, or of the shard."""
    suffixes, name, place = decoder.suffixes(), path, first
    try:
        with opened(path, iter(PAUSES)) as stream:
            stream.seek(first)
            with tarfile.open(fileobj=stream, mode='r:') as tar:
                for member in itertools.islice(filter(is_sample, tar), count):
                    place, (key, _, suffix) = member.offset, member.name.rpartition('.')
                    name = f'{path}#{key if f".{suffix.lower()}" in suffixes else member.name}'
                    yield name, read_member(tar, member, decoder)
                name, place = path, tar.offset
                if count is None:  # tarfile takes the end of the file for the end, and a header that it can't read; it is a block of 0
                    stream.seek(place)
                    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise tarfile.ReadError('no end')
                    if any(any(some) for some in iter(lambda: stream.read(2**20), b'')):
                        yield path, ValueError('holds more behind its end, as joined shards do: give each as a file of its own')
    except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError) as e:
        if is_passing(e):
            raise_unreadable(path, e)
        compressed = place == 0 and name == path and is_compressed(path)
        yield name, ValueError('the shard is compressed: unpack it' if compressed else f'the shard breaks off at byte {place}')


def read_member(tar, member, decoder):
    """The bytes of a shard's member, or an exception."""
    if member.issparse() or not member.isfile():
        return ValueError('is a link, or sparse')
    return TooLarge() if is_too_large(member.size, decoder) else tar.extractfile(member).read()


def raise_unreadable(path, error):
    raise UserError(f'{path} can not be read now ({first_line(error)}): run the same command again') from None


def is_compressed(path):
    with open(path, 'rb') as file:
        return file.read(6).startswith((b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd'))


def is_sample(member):
    """Whether a shard's member may be an image: content decides later. One whose name begins with a dot is a file manager's."""
    name = member.name.rpartition('/')[2]
    return not (member.isdir() or member.isdev()) and not name.startswith('.') and name.rpartition('.')[2].lower() not in COMPANIONS


def cut_shard(path, count):
    """Yields the pieces of a shard, of `count` members each; see `read_shard`. Only the headers are read."""
    start, seen = 0, 0
    with contextlib.suppress(tarfile.TarError, OSError, EOFError, ValueError), tarfile.open(path, mode='r:') as tar:
        for member in filter(is_sample, tar):  # what is damaged comes to light when the last piece is read
            if seen == count:
                yield path, start, count
                start, seen = member.offset, 0
            seen += 1
    yield path, start, None


# ---------------------------------------------------------------- a job


def decode_job(job, size, channels, decoder, apart=False):
    """Decodes a list of paths, or a piece of a shard as of `cut_shard`. Returns (images (n, channels, size, size) uint8, their names, the
    Skips). apart: each image in a process of its own, since this job has killed one."""
    images, names, skipped = [], [], []
    Image.MAX_IMAGE_PIXELS = decoder.pixels / 2  # Pillow refuses twice as many, also those of an inner canvas
    for number, (name, content) in enumerate(read_paths(job, decoder) if isinstance(job, list) else read_shard(*job, decoder)):
        if number % 256 == 0:
            limit_memory(decoder)  # beside what is decoded already
        try:
            if isinstance(content, Exception):
                raise content
            images.append((in_child if apart else decode)(content, size, channels, decoder))
            names.append(name)
        except Exception as e:  # a decoder fed with garbage raises whatever it likes
            if isinstance(e, MemoryError) and not decoder.workers:
                raise_unreadable(name, e)
            skipped.append(Skip(name, reason(e, content, decoder), is_passing(e)))
    limit_time(decoder, 0)
    limit_memory(decoder, False)
    return np.stack(images) if images else np.empty((0, channels, size, size), np.uint8), names, skipped


def decode(content, size, channels, decoder):
    limit_time(decoder, decoder.seconds)
    with Image.open(io.BytesIO(content), formats=decoder.known()) as image:
        return to_array(image, size, channels)


def limit_time(decoder, seconds):
    """Has the kernel end this worker when it has worked so long: what a decoder does in C can't be interrupted. Processor time, and not
    the clock, so that a busy machine skips no image."""
    if decoder.workers and hasattr(signal, 'setitimer'):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(decoder, on=True):
    """Bounds what this worker may take more than it has now; a decoder that wants more gets a MemoryError."""
    if decoder.workers and resource and os.path.exists('/proc/self/statm'):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        with open('/proc/self/statm') as file:
            now = int(file.read().split()[5]) * resource.getpagesize()
        limit = now + int(decoder.memory * 2**20) if on else hard
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def in_child(*args):
    """`decode` in a process of its own. Raises Died where that ends by a signal."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException), open(writing, 'wb') as file:
            try:
                outcome = decode(*args)
            except Exception as e:
                outcome = e
            file.write(pickle.dumps(outcome))
        os._exit(0)
    os.close(writing)
    with open(reading, 'rb') as file:
        data = file.read()
    if os.WIFSIGNALED(status := os.waitpid(child, 0)[1]):
        raise Died(signal.Signals(os.WTERMSIG(status)))
    if isinstance(outcome := pickle.loads(data), Exception):
        raise outcome
    return outcome


def reason(error, content, decoder):
    """Why an image is skipped, in words that are the same for all of a kind."""
    if isinstance(error, Died):
        took_long = error.args[0] is getattr(signal, 'SIGPROF', None)
        return f'takes more than --decode_seconds {decoder.seconds:g}' if took_long else f'its decoder died by {error.args[0].name}'
    if isinstance(error, MemoryError | TooLarge):
        return f'takes more than --decode_memory {decoder.memory:g} MB'
    if isinstance(error, Image.DecompressionBombError):
        return f'has more than --decode_pixels {decoder.pixels}'
    if is_passing(error):
        return f'can not be read now: {errno.errorcode.get(error.errno, "")} {os.strerror(error.errno)}'
    if content == b'':
        return 'is empty'
    if isinstance(error, Image.UnidentifiedImageError):
        heic = HEIC.match(content) and 'HEIF' not in decoder.known()
        return 'is HEIC: pip install pillow-heif' if heic else f'is none of {", ".join(decoder.known())}'
    return first_line(error)
