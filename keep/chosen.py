"""A run's selection in its folder, for a reader and for --resume."""

import contextlib
import csv
import zipfile

import numpy as np
import torch
import torch.nn.functional as F

from utils import Damaged, UserError, checked, first_line, warn, written_aside

UNREADABLE = (OSError, Damaged, ValueError, LookupError, EOFError, zipfile.BadZipFile)  # of an npz
BATCH = 128  # images read at a time


def is_whole(file, *others):
    """Whether a kept selection can be used, an npz and other files with a checksum. Warns where it is damaged: then it is made again."""
    try:
        if file.is_file():
            with np.load(checked(file)):
                return all(checked(other, must=True) for other in others)
    except UNREADABLE as e:
        warn(f'{file} can not be used ({first_line(e)}): the selection is made again')
    return False


def write_csv(path, pool, noise, labels, chosen):
    """One row an image of the pool: its path or index, its noise, its pseudo-label, and whether it is chosen (0 or 1)."""
    flag = np.zeros(len(noise), np.int8)
    flag[chosen] = 1
    with written_aside(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:  # a path can hold any bytes
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['image', 'noise', 'pseudo_label', 'chosen'])
        for name, x, label, chosen_too in zip(pool.names(), noise, labels, flag):
            writer.writerow([name, f'{x:.6g}', label, chosen_too])


def write_thumbnails(path, pool, noise, labels, class_names, chosen):
    """The cleanest and the noisiest images of the most predicted classes, and the first chosen and the first left, as an npz, so that the
    report needs no data."""
    order, kept, per_class, classes = np.argsort(noise, kind='stable'), np.zeros(len(noise), bool), 4, 10
    kept[chosen] = True
    common = np.sort(np.argsort(-np.bincount(labels, minlength=len(class_names)), kind='stable')[:classes])
    content = {'class_names': np.array(class_names)}
    for kind, ranked in (('clean', order), ('noisy', order[::-1]), ('chosen', np.flatnonzero(kept)), ('left', np.flatnonzero(~kept))):
        rows = np.concatenate([ranked[labels[ranked] == c][:per_class] for c in common])
        images = pool.take(rows).permute(0, 2, 3, 1).numpy()  # (k, H, W, C)
        content |= {f'{kind}_images': images, f'{kind}_labels': labels[rows], f'{kind}_noise': noise[rows]}
    with written_aside(path) as file:
        np.savez_compressed(file, **content)


def write_selection(folder, pool, scores, class_names, facts):
    """The list and the pictures for a reader, and last what a resumed run reads. scores: (noise, labels, chosen)."""
    noise, labels, chosen = scores
    write_csv(folder / 'selection.csv', pool, noise, labels, chosen)
    write_thumbnails(folder / 'thumbnails.npz', pool, noise, labels, class_names, chosen)
    with written_aside(folder / 'selection.npz') as file:
        np.savez(file, noise=noise, labels=labels, chosen=chosen, **facts)


def read_selection(file, pool):
    """(noise (N,), labels (N,), chosen (n,)) of a kept selection, in the pool that it was made from, and where the chosen images are in
    `pool`, (n,). Raises UserError where that is another pool."""
    with np.load(file) as f:
        noise, labels, chosen = (f[name] for name in ('noise', 'labels', 'chosen'))
        if str(f['pool']) == pool.digest():
            return noise, labels, chosen, chosen
        where = found_again(file.with_suffix('.csv'), pool, len(noise))[chosen]
        if (where < 0).any() or 'sketch' not in f or not alike(f['sketch'], sketch(pool, where)):
            raise UserError(f'the wild pool is not the one that {file.with_suffix(".csv")} was made from: its images are others, or '
                            'in another order. Put them back, or select again with --run NAME')
    return noise, labels, chosen, where


def found_again(file, pool, count):
    """Where the `count` images of write_csv's file are in the pool now, (count,) int64; -1 for what is not there. A pool of as many is
    taken to be moved; one of more, to hold what could not be read at first, between the images of these names."""
    if len(pool) <= count:
        return np.where(len(pool) == count, np.arange(count), -1)
    found, places = [], enumerate(pool.names())
    with contextlib.suppress(OSError, KeyError), open(file, newline='', encoding='utf-8', errors='surrogateescape') as rows:
        for row in csv.DictReader(rows):  # in the pool's order, so that one walk along it finds all
            found.append(next((place for place, name in places if name == row['image']), -1))
    return np.array(found) if len(found) == count else np.full(count, -1)


def sketch(pool, chosen):
    """(n, 1, 4, 4) uint8: the chosen images' mean grey levels by sixteenths, which tell whether they are still the same, however they are
    decoded."""
    batches = [pool.take(chosen[i : i + BATCH]).float().mean(dim=1, keepdim=True) for i in range(0, len(chosen), BATCH)]
    return torch.cat([F.adaptive_avg_pool2d(x, 4).round().byte() for x in batches]).numpy()


def alike(one, other):
    """Whether two sketches differ by no more than decoders do."""
    return np.abs(one.astype(np.int16) - other).max() <= 3
