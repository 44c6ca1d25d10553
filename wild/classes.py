"""Labelled images in class folders: <part>/<class>/**, read as torchvision's ImageFolder reads them."""

import collections
import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from utils import Damaged, UserError, read_json, read_lines, say, write_json
from wild.decode import decode_files
from wild.sources import described, images_below

PARTS = {True: ('train',), False: ('test', 'val')}  # the folders of the training images, and of the test images


def find_part(root, train):
    """The folder of the training or of the test images in `root`, or None."""
    return next((path for name in PARTS[train] if (path := Path(root) / name).is_dir()), None)


def class_folders(part):
    names = sorted(path.name for path in part.iterdir() if path.is_dir() and not path.name.startswith('.'))
    if broken := [name for name in names if '\n' in name]:
        raise UserError(f'the class folder {broken[0]!r} in {part} has a line\'s end in its name: rename it')
    return names


def class_order(root, part):
    """The classes of a part in the order of their labels: that of root/classes.txt, a line each, or else sorted. Raises UserError where
    the file and the folders differ."""
    names, file = class_folders(part), Path(root) / 'classes.txt'
    if not names:
        raise UserError(f'{part} holds no class folder: the layout is {part}/<class>/*')
    if not file.is_file():
        return names
    listed = read_lines(file)
    check_same(listed, names, file, part)
    if len(listed) > len(names):
        raise UserError(f'{file} names a class twice: write each once, a line each')
    return listed


def plain(name):
    """A class's name as a folder may spell it: 'Ankle_boot' is 'Ankle boot'."""
    return ''.join(c for c in name.casefold() if c.isalnum())


def in_order(folders, names):
    """The class folders in the order of `names`, however they are spelt; None where they are others."""
    spelt = {plain(name): name for name in folders}
    same = len(spelt) == len(folders) and spelt.keys() == set(map(plain, names))
    return [spelt[plain(name)] for name in names] if same else None


def check_same(names, others, where, other):
    """Raises UserError where two lists of classes do not hold the same names."""
    for some, place, rest, lacking in ((names, where, others, other), (others, other, names, where)):
        if lost := sorted(set(some) - set(rest)):
            raise UserError(f'{place} has {len(lost)} classes that {lacking} lacks, such as {", ".join(lost[:3])}: give both the same '
                            'classes')


def own_order(root, part, info):
    """The class folders of a part of `folder` in the order of info's classes, which are the training's. Where nobody names these, or by
    numbers that the folders don't have, the order is the folder's own."""
    classes, numbers = class_order(root, part), tuple(map(str, range(info.classes)))
    if set(classes) == set(info.names):
        return list(info.names)
    if ordered := info.names and in_order(classes, info.names):
        return ordered
    if info.names not in ((), numbers):
        check_same(info.names, classes, 'the training data (or --class_names)', part)
    if len(classes) != info.classes:
        raise UserError(f'{part} holds {len(classes)} class folders, and the teacher has {info.classes} classes: give one for each')
    if set(classes) == set(numbers) and tuple(classes) != numbers:
        say(f'labels 0 to {len(classes) - 1} of {part} are {", ".join(classes)}; --class_names or {root}/classes.txt would give another '
            'order')
    return classes


def read_classes(part, names, info, cache_dir, decoder):
    """The images of a part, at any depth below a class's folder. names: its class folders, in the order of the labels. info: of
    data.DATASETS, for size and channels. Returns (parts as of decode_files, labels (N,) int64, the source as of data.Split). Raises
    UserError for a class without an image."""
    left_out, paths = collections.Counter(), []
    for name in names:
        before = len(paths)
        paths += images_below(str(part / name), left_out, decoder)
        if len(paths) == before:
            raise UserError(f'the class folder {part / name} holds no image: add some, or take the folder away'
                            f'{described(part / name, left_out)}')
    if left_out:
        say(f'{part}: what is no image by its content is left out{described(part, left_out)}')
    parts = decode_files(paths, (info.size, info.channels), cache_dir, f'{part.parent.name}-{part.name}', decoder)
    parts = [some for some in parts if some.count]
    label_of, start = {name: label for label, name in enumerate(names)}, len(os.path.join(part, ''))
    images = [name[start:] for p in parts for name in p.names()]
    labels = np.array([label_of[name.split(os.sep)[0]] for name in images])
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        raise UserError(f'no image of the class folder {part / names[counts.argmin()]} can be read: mend them, or take the folder away')
    digest = hashlib.sha256()
    for name in (*names, '', *images):
        digest.update(os.fsencode(name) + b'\0')
    return parts, labels, f'{len(images)} images of {len(names)} classes, {digest.hexdigest()[:8]}'


def statistics(parts):
    """{'mean', 'std': a number a channel, of pixels in 0..1, 'grey': whether all images are so}, measured once and kept beside the
    images in the cache."""
    file = parts[0].file.with_name('statistics.json')
    with contextlib.suppress(Damaged):  # or none
        return read_json(file)
    total, squares, count, grey = 0.0, 0.0, 0, True
    for part in parts:
        for images in np.array_split(part.images, -(-part.images.nbytes // 2**24)):  # 16 MB, times 8 as float64
            grey = grey and bool((images == images[:, :1]).all())
            pixels = images / 255
            total, squares = total + pixels.sum(axis=(0, 2, 3)), squares + (pixels**2).sum(axis=(0, 2, 3))
            count += pixels[:, 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if std.min() < 1e-3:
        raise UserError(f'the training images are blank (their standard deviation is {std.min():.4f}): look at {parts[0].names()[0]}')
    measured = {'mean': mean.round(4).tolist(), 'std': std.round(4).tolist(), 'grey': grey}
    with contextlib.suppress(OSError):  # a cache that can only be read serves too
        write_json(file, measured)
    return measured
