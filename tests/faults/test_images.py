"""Images and shards off the web: what is broken, and what is meant to do harm."""
import contextlib
import gzip
import io
import os
import pickle
import resource
import stat
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path

import pytest
from images import pixels
from PIL import Image

from utils import UserError, read_json_lines
from wild.decode import decode_files
from wild.pool import Pool
from wild.reading import Decoder


def encoded(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def good(number, kind='JPEG', size=40):
    return encoded(Image.fromarray(pixels(number, size, size, 3)), kind)


@pytest.fixture
def decode(tmp_path):
    """decode(paths, **limits): (the names of the images, the lines of skipped.jsonl), by a worker process."""
    def decode(paths, **limits):
        cache = Path(tempfile.mkdtemp(dir=tmp_path))
        try:
            names = list(Pool(decode_files([str(path) for path in paths], (32, 3), cache, 'x', Decoder(1, **limits)), 'x').names())
        except UserError as e:
            assert 'none of the files' in str(e)
            names = []
        return names, read_json_lines(next(cache.glob('*/skipped.jsonl')))

    return decode


# ---------------------------------------------------------------- shards


def write_shard(path, contents):
    with tarfile.open(path, 'w') as tar:
        for number, content in enumerate(contents):
            for suffix, data in (('json', b'{}'), ('jpg', content), ('txt', b'words')):
                info = tarfile.TarInfo(f'{number:05d}.{suffix}')
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [(m.offset, m.offset_data + m.size) for m in tar if m.name.endswith('.jpg')], tar.offset


def test_a_shard_that_is_cut_off_is_noticed_at_any_byte(tally, tries, dice, decode, tmp_path):
    images, end = write_shard(tmp_path / 'whole.tar', [good(i) for i in range(12)])
    data, paths = (tmp_path / 'whole.tar').read_bytes(), []
    cuts = sorted({*(dice.randrange(end) for _ in range(tries(12, 300))), *range(0, end, tries(8192, 1024)), end, end + 511})
    for cut in cuts:
        paths.append(tmp_path / f'{cut:08d}.tar')
        paths[-1].write_bytes(data[:cut])
    names, skipped = decode(paths)
    with tally('shard cut off', f'a shard of {len(images)} images') as t:
        for cut, path in zip(cuts, paths):
            used = sum(name.startswith(f'{path}#') for name in names)
            left = [skip for skip in skipped if skip['image'].startswith(str(path))]
            whole = sum(last <= cut for _, last in images)
            found = sum(first + 512 <= cut for first, _ in images)  # by its headers
            outside = found == whole  # it breaks off in none of its images
            t.tried(used == whole and len(left) == 1 and used + len(left) == found + outside and
                    ('breaks off at byte' in left[0]['reason'] or cut == 0), f'byte {cut}: {used} used, {left}')


# ---------------------------------------------------------------- broken images


def png(*chunks):
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data)) for name, data in chunks)


def header(width, height, depth=8, kind=2):
    return b'IHDR', struct.pack('>IIBBBBB', width, height, depth, kind, 0, 0, 0)


def cut(kind):
    return lambda dice: (data := good(dice.randrange(99), kind))[: len(data) // dice.choice((2, 3, 4))]


def prefix(kind, count=12):
    return lambda dice: good(0, kind)[: dice.randrange(2, count)]


def zeros_inside(kind, share=0.02):
    """The header of an image, then zeros."""
    return lambda dice: (data := good(dice.randrange(99), kind))[: max(24, int(share * len(data)))] + bytes(200)


def text(words):
    return lambda dice: words.encode() * dice.randrange(1, 20)


BAD = {  # kind -> what draws one
    'empty': lambda dice: b'',
    **{f'{kind} cut off': cut(kind) for kind in ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'AVIF')},
    **{f'first bytes of {kind}': prefix(kind) for kind in ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM')},
    **{f'{kind} with zeros': zeros_inside(kind) for kind in ('JPEG', 'PNG', 'WEBP', 'AVIF')},
    'random bytes': lambda dice: dice.randbytes(500),
    'zeros': lambda dice: bytes(dice.randrange(1, 3000)),
    'HTML': text('<html>404 not found</html>\n'), 'JSON': text('{"error": 403}\n'), 'SVG': text('<svg xmlns="http://www.w3.org/2000/svg"/>\n'),
    'plain text': text('no image\n'), 'a Python script': text('import os\n'), 'XML': text('<?xml version="1.0"?>\n'),
    'gzip': lambda dice: gzip.compress(good(0)), 'zip': lambda dice: b'PK\x03\x04' + dice.randbytes(200),
    'PDF': text('%PDF-1.4\n'), 'ELF': lambda dice: b'\x7fELF' + dice.randbytes(200),
    'MP4': lambda dice: b'\0\0\0\x18ftypisom' + dice.randbytes(200),
    'HEIC': lambda dice: b'\0\0\0\x18ftypheic\0\0\0\0' + dice.randbytes(200), 'JPEG 2000': lambda dice: good(0, 'JPEG2000'),
    'ICO': lambda dice: good(0, 'ICO'), 'TGA': lambda dice: good(0, 'TGA'),
    'PNG without data': lambda dice: png(header(9, 9), (b'IEND', b'')),
    'PNG of no size': lambda dice: png(header(0, dice.randrange(5)), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')),
    'PNG with a wrong checksum': lambda dice: good(0, 'PNG')[:29] + b'????' + good(0, 'PNG')[33:],
    'PNG whose data are no zlib': lambda dice: png(header(9, 9), (b'IDAT', dice.randbytes(99)), (b'IEND', b'')),
}


def test_of_five_thousand_images_the_good_ones_are_used_and_the_bad_ones_listed(tally, tries, dice, decode, tmp_path):
    count, each = tries(300, 5000), tries(1, 5)
    contents = [good(i % 50, ('JPEG', 'PNG', 'WEBP')[i % 3]) for i in range(min(count, 150))]
    paths, bad = [], {}
    for number in range(count):
        paths.append(tmp_path / f'{number:05d} good.jpg')
        paths[-1].write_bytes(contents[number % len(contents)])
    for kind, draw in BAD.items():
        for number in range(each):
            path = tmp_path / f'{dice.randrange(count):05d} {kind} {number}.jpg'
            path.write_bytes(draw(dice))
            bad[str(path)] = kind
    paths = sorted([*map(str, paths), *bad])
    names, skipped = decode(paths)
    listed = {skip['image']: skip['reason'] for skip in skipped}
    with tally('bad image', f'{len(BAD)} kinds among {count:,} good ones') as t:
        for path, kind in bad.items():
            t.tried(bool(listed.get(path)) and path not in names, (kind, listed.get(path)))
    assert names == [path for path in paths if path not in bad] and len(listed) == len(bad) == len(skipped)


# ---------------------------------------------------------------- hostile files


def bomb(width, height, depth=8, kind=0):
    """A PNG of zeros."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * depth // 8 * (3 if kind == 2 else 1))
    return png(header(width, height, depth, kind), (b'IDAT', b''.join([*(packer.compress(row) for _ in range(height)), packer.flush()])),
               (b'IEND', b''))


def eps(marker):
    return (f'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touch {marker}) system\n'
            f'(%pipe%touch {marker}) (w) file\n').encode()


def tiff(width, height):
    """The header of one that says that it is so large, of zeros in one strip."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, height),
            (279, 4, width * height % 2**32)]
    return (b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', tag, kind, 1, x) for tag, kind, x in tags)
            + bytes(4))


def scans(count):
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(pixels(0, 3000, 3000, 3)), 'JPEG', progressive=True)
    last = data.rfind(b'\xff\xda')
    return data[:-2] + data[last:-2] * count + data[-2:]


def sparse(path):
    """A tar of some KB, of one member that is 4 GB of nothing."""
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo('0.jpg')
        sparse = {'major': '0', 'minor': '1', 'size': str(2**32), 'map': f'{2**32 - 9},9'}
        info.pax_headers = {f'GNU.sparse.{key}': value for key, value in sparse.items()}
        info.size = 9
        tar.addfile(info, io.BytesIO(bytes(9)))


def compressed(path):
    with gzip.open(path, 'wb', 9) as file, tarfile.open(fileobj=file, mode='w|') as tar:
        info = tarfile.TarInfo('0.png')
        info.size = 2**28
        tar.addfile(info, open('/dev/zero', 'rb'))  # noqa: SIM115


def escaping(path):
    with tarfile.open(path, 'w') as tar:
        for name, kind, target in (('../../escaped.jpg', tarfile.REGTYPE, ''), ('/tmp/../escaped.png', tarfile.REGTYPE, ''),
                                   ('link.jpg', tarfile.SYMTYPE, '/etc/passwd'), ('hard.jpg', tarfile.LNKTYPE, '/etc/passwd'),
                                   ('fifo.jpg', tarfile.FIFOTYPE, '')):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)


def huge_member(path):
    """A header that says that 8 GB follow."""
    info = tarfile.TarInfo('0.jpg')
    info.size = 2**33
    path.write_bytes(info.tobuf() + bytes(4096))


HOSTILE = {
    'an EPS named .jpg': lambda path, marker: path.write_bytes(eps(marker)),
    'an EPS with a binary header': lambda path, marker: path.write_bytes(
        b'\xc5\xd0\xd3\xc6' + struct.pack('<6I', 32, len(eps(marker)), 0, 0, 0, 0) + bytes(4) + eps(marker)),
    'PNG, 169 million 16-bit pixels': lambda path, marker: path.write_bytes(bomb(13000, 13000, 16)),
    'PNG, 49 million 16-bit pixels': lambda path, marker: path.write_bytes(bomb(7000, 7000, 16)),
    'PNG, 49 million pixels in colour': lambda path, marker: path.write_bytes(bomb(7000, 7000, 8, 2)),
    'PNG of 2 billion pixels a side': lambda path, marker: path.write_bytes(
        png(header(2**31 - 1, 2**31 - 1), (b'IDAT', b'x'), (b'IEND', b''))),
    'PNG with a text of 256 MB': lambda path, marker: path.write_bytes(
        png(header(9, 9), (b'zTXt', b'x\0\0' + zlib.compress(bytes(2**28), 9)), (b'IDAT', zlib.compress(bytes(252))), (b'IEND', b''))),
    'PNG with a profile of 256 MB': lambda path, marker: path.write_bytes(
        png(header(9, 9), (b'iCCP', b'x\0\0' + zlib.compress(bytes(2**28), 9)), (b'IDAT', zlib.compress(bytes(252))), (b'IEND', b''))),
    'TIFF that says 4 billion pixels': lambda path, marker: path.write_bytes(tiff(65535, 65535)),
    'BMP that says 4 billion pixels': lambda path, marker: path.write_bytes((data := good(0, 'BMP'))[:18] + struct.pack('<ii', 65535, 65535)
                                                                           + data[26:]),
    'GIF of 65,535 pixels a side': lambda path, marker: path.write_bytes((data := good(0, 'GIF'))[:6] + b'\xff' * 4 + data[10:]),
    'WebP of 16,383 pixels a side': lambda path, marker: path.write_bytes(
        b'RIFF' + struct.pack('<I', 30) + b'WEBPVP8X' + struct.pack('<I', 10) + bytes(4) + b'\xfe\x3f\0\xfe\x3f\0' + bytes(8)),
    'JPEG of 1,000 scans': lambda path, marker: path.write_bytes(scans(1000)),
    'PPM of a number of 1,000 digits': lambda path, marker: path.write_bytes(b'P6 ' + b'9' * 1000 + b' 9 255 ' + bytes(99)),
    'a file of 8 GB of nothing': lambda path, marker: (path.touch(), os.truncate(path, 2**33)),
    'a pipe': lambda path, marker: os.mkfifo(path),
    'tar, compressed': lambda path, marker: compressed(path.with_suffix('.tar')),
    'tar with a sparse member of 4 GB': lambda path, marker: sparse(path.with_suffix('.tar')),
    'tar with a member that says 8 GB': lambda path, marker: huge_member(path.with_suffix('.tar')),
    'tar with paths and links that lead out': lambda path, marker: escaping(path.with_suffix('.tar')),
}
SLOW = ('PNG, 169 million 16-bit pixels', 'PNG, 49 million 16-bit pixels', 'PNG, 49 million pixels in colour', 'JPEG of 1,000 scans',
        'PNG with a text of 256 MB', 'PNG with a profile of 256 MB', 'tar, compressed')  # to make, or to run into the limit


def measured(function):
    """(what the function returns, the greatest MB that a process which it started has taken beyond what it began with), of a fork: the
    counts of a process are of all its children until then."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException), open(writing, 'wb') as file:
            pages = int(Path('/proc/self/statm').read_text().split()[1])  # a forked worker has them from its start
            result = function()
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            file.write(pickle.dumps((result, peak / 1024 - pages * resource.getpagesize() / 2**20)))
        os._exit(0)
    os.close(writing)
    with open(reading, 'rb') as file:
        data = file.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='no /proc')
def test_hostile_files_start_nothing_and_take_no_more_than_the_limits(tally, tries, decode, tmp_path):
    programs, marker, megabytes = tmp_path / 'bin', tmp_path / 'executed', 250  # the PNGs of 49 million pixels want more
    programs.mkdir()
    for name in ('gs', 'sh', 'djpeg', 'cjpeg'):
        (programs / name).write_text(f'#!/bin/bash\n/usr/bin/touch {marker}\n')
        (programs / name).chmod(stat.S_IRWXU)
    before, path = os.environ['PATH'], tmp_path / 'files'
    os.environ['PATH'] = f'{programs}{os.pathsep}{before}'
    path.mkdir()
    (path / 'good.jpg').write_bytes(good(0))
    try:
        with tally('hostile file', 'a pool') as t:
            for kind in sorted(HOSTILE.keys() - set(tries(SLOW, ()))):
                HOSTILE[kind](file := path / 'x.jpg', marker)
                file = next(found for found in path.iterdir() if found.stem == 'x')
                limits = dict(memory=megabytes, seconds=tries(10, 5))
                (names, skipped), took = measured(lambda file=file, limits=limits: decode([path / 'good.jpg', file], **limits))
                fine = names[:1] == [str(path / 'good.jpg')] and len(names) + len(skipped) >= 2 - ('links' in kind)
                t.tried(fine and not marker.exists() and took <= megabytes, (kind, skipped, took))
                file.unlink()
    finally:
        os.environ['PATH'] = before
    assert not Path('/tmp/escaped.png').exists() and not (tmp_path / 'escaped.jpg').exists()
