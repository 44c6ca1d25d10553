"""Where image files are: folders at any depth, text files of paths, ranges of WebDataset shards."""

import collections
import os
import re

from utils import UserError, encoding_of, first_line, say, warn

# what is needed to read some of the kinds of files that PIL leaves
READERS = {'.heic': 'pip install pillow-heif', '.heif': 'pip install pillow-heif', '.zip': 'unpack it', '.gz': 'unpack it',
           '.parquet': 'write its images to files first'}


def images_below(folder, left_out, decoder):
    """Yields the image files below a folder, a folder's own, sorted, before its folders'. The suffix of a format that is read, or none,
    is believed; otherwise content decides. Links are followed, each folder once; hidden files are left out. left_out: a Counter, to
    which the other files are added by their suffix."""
    seen, suffixes = set(), decoder.suffixes()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=lambda e: warn(f'{first_line(e)}: its images are left out')):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith('.'))
        for file in sorted(files):
            if file.startswith('.'):
                continue
            path, suffix = os.path.join(root, file), os.path.splitext(file)[1].lower()
            if (suffix or '.png') in suffixes or is_image(path, decoder):
                yield path
            else:
                left_out[suffix] += 1


def is_image(path, decoder):
    """Whether a file begins as an image does. One that can't be read may be an image."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        with open(path, 'rb') as file:
            return decoder.accepts(file.read(32))
    except OSError:
        return True


def find_images(folder, decoder):
    """Yields the image files below a folder of wild images; at the end says what was left out. Raises UserError there if there was no
    image."""
    left_out, empty = collections.Counter(), True
    for path in images_below(folder, left_out, decoder):
        empty = False
        yield path
    if empty:
        raise UserError(f'--wild {folder} holds no image file at any depth: name a folder of images{described(folder, left_out)}')
    if left_out:
        say(f'{folder}: what is no image by its content is left out{described(folder, left_out)}')


def described(folder, left_out):
    """' (12 .heic: pip install pillow-heif; 3 .txt)', or nothing where nothing was left out."""
    readers = READERS | ({'.tar': f'name the shards, --wild "{shards_below(folder)}"'} if left_out['.tar'] else {})
    kinds = [f'{count} {suffix}' + (f': {readers[suffix]}' if suffix in readers else '') for suffix, count in left_out.most_common(9)
             if count]
    return f' ({"; ".join(kinds)})' if kinds else ''


def shards_below(folder):
    """The .tar files of the first folder that has some, as a brace range where they are numbered, else the first one."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if shards := sorted(os.path.join(root, file)[:-4] for file in files if file.lower().endswith('.tar')):
            start = shards[0].rstrip('0123456789')
            first, last = shards[0][len(start) :], shards[-1][len(start) :]
            return f'{start}{{{first}..{last}}}.tar' if first and last.isdecimal() else f'{shards[0]}.tar'


def find_shards(pattern):
    """The files of a name such as shards/{00000..00099}.tar, as img2dataset numbers them."""
    head, first, last, tail = (*re.split(r'\{(\d+)\.\.(\d+)\}', pattern, maxsplit=1), *[None] * 3)[:4]
    shards = [pattern] if first is None else [f'{head}{i:0{len(first)}d}{tail}' for i in range(int(first), int(last) + 1)]
    missing = [path for path in shards if not os.path.isfile(path)]
    if not shards or (missing and first is None and '{' in pattern):
        raise UserError(f'--wild {pattern} is no brace range of shards: write it as {{00000..00099}}.tar')
    if missing:
        raise UserError(f'--wild {pattern}: {len(missing)} of its {len(shards)} shards are missing, the first is {missing[0]}')
    return shards


def read_list(file):
    """Yields the paths of a text file, a line each; relative ones are relative to the file's folder. Raises UserError for one that holds
    URLs or nothing, and at the end for one none of whose paths exists."""
    encoding = encoding_of(file)
    if wide := encoding == 'utf-16':
        say(f'{file} is UTF-16, and is read so')
    found, first = 0, None
    with open(file, encoding=encoding, errors='replace' if wide else 'surrogateescape') as f:
        for line in filter(str.strip, f):
            path = os.path.join(os.path.dirname(file), line.rstrip('\r\n'))
            if first is None and re.match(r'\w+://', line.strip()):
                raise UserError(f'--wild {file} lists URLs, the first is {line.strip()}: download the images, such as with img2dataset, '
                                'and list their paths')
            first = first or path
            found += os.path.exists(path)
            yield path
    if first is None:
        raise UserError(f'--wild {file} lists no path: write a path a line')
    if not found:
        raise UserError(f'--wild {file}: none of its paths exists, the first is {first}: write paths relative to {file}, or full ones')
