"""The teacher's score of a wild image, and which images to keep (DFND section 3.2)."""

import csv
import hashlib
import os

import numpy as np
import torch
import torch.nn.functional as F

import distributed
from utils import UserError, ahead, autocast, progress, rng

SELECT = ('balanced', 'confidence', 'random', 'all')
BATCH = 128  # images scored at a time


@torch.no_grad()
def noise_of(teacher, images, normalise, device, amp):
    """(noise (B,) float32 in nats, pseudo_label (B,) int64) of a uint8 batch (B, C, H, W), as tensors on the device."""
    with autocast(device, amp):
        logits = teacher(normalise(images.to(device))).float()  # (B, num_classes)
    confidence, label = F.log_softmax(logits, dim=1).max(dim=1)
    return confidence.abs(), label  # abs, and not minus: no -0


def score(teacher, pool, normalise, device, amp, batch_size=BATCH):
    """Scores every image of the pool, without augmentation: noise(x) = CE(t(x), argmax t(x)) = -log max softmax t(x).

    Returns (noise (N,) float32 in nats, low is clean, pseudo_label (N,) int64), as numpy arrays. Raises UserError when the
    teacher's output is not finite.
    """
    noise, labels = np.zeros(len(pool), np.float32), np.zeros(len(pool), np.int64)

    def read():
        # No batch crosses a part's end, and of several processes each scores whole batches: so the numbers are those of one
        # process, and of --stream, bit by bit.
        number = 0
        for start, part in zip(pool.starts, pool.parts):
            for first in range(0, part.count, batch_size):
                if number % distributed.world() == distributed.rank():
                    rows = slice(int(start) + first, int(start) + min(first + batch_size, part.count))
                    yield rows, torch.from_numpy(part.images[first : first + batch_size].copy())
                number += 1

    with progress(total=len(pool), desc='score') as bar:
        for rows, images in ahead(read()):
            some_noise, some_labels = noise_of(teacher, images, normalise, device, amp)
            noise[rows], labels[rows] = some_noise.cpu().numpy(), some_labels.cpu().numpy()
            bar.update(len(images) * distributed.world())
    for part in (noise, labels):
        part[:] = distributed.total(torch.from_numpy(part).to(device)).cpu().numpy()  # every other process holds 0 there
    check_finite(noise)
    return noise, labels


def check_finite(noise):
    bad = np.count_nonzero(~np.isfinite(noise))
    if bad:
        raise UserError(f'the teacher gives {bad} of {len(noise)} wild images a noise that is not finite: try --amp off, or check the '
                        'teacher')


def select(noise, labels, num_select, how, num_classes, seed):
    """The indices of the images to keep, ascending, (num_select,) int64.

    confidence: the lowest noise over all classes, as both published files do. balanced: the cleanest num_select / C of each
    predicted class; where a class has too few, its share goes to the cleanest that are left. random: Table 1's control row.
    all: everything, whatever num_select. Of equal noise, the earlier image goes first.
    noise: (N,), labels: (N,) in 0 .. num_classes - 1. Raises UserError when the pool is smaller than num_select.
    """
    count = len(noise)
    if how == 'all':
        return np.arange(count)
    if num_select > count:
        raise UserError(f'num_select={num_select}, but the pool holds {count} images: lower --num_select or add images')
    if how == 'random':
        return np.sort(torch.randperm(count, generator=rng(seed, 'random selection'))[:num_select].numpy())
    order = cleanest_first(noise)
    if how == 'confidence':
        return np.sort(order[:num_select])
    in_quota = rank_in_class(labels[order], num_classes) < num_select // num_classes
    kept, left = order[in_quota], order[~in_quota]
    return np.sort(np.concatenate([kept, left[: num_select - len(kept)]]))


def cleanest_first(noise):
    """A stable argsort of (N,). As integers, the bits of float32 above zero are in the same order, and torch sorts integers by radix:
    nine times as fast for ten million."""
    if noise.dtype == np.float32 and not np.signbit(noise).any():
        noise = noise.view(np.int32)
    return torch.sort(torch.from_numpy(np.ascontiguousarray(noise)), stable=True)[1].numpy()


def rank_in_class(labels, num_classes):
    """How many before each entry have its label. labels: (N,) -> (N,) int64."""
    # sort by class, and number each class from 0
    small = np.int16 if num_classes <= 2**15 else np.int64  # numpy sorts int16 by radix, much faster
    by_class = np.argsort(labels.astype(small), kind='stable')
    counts = np.bincount(labels, minlength=num_classes)
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def class_weights(labels, num_classes):
    """w_c proportional to 1 / (n_c + 1), scaled to sum to C, as in the first upload. labels: of the kept images. (C,) float32."""
    w = 1 / (np.bincount(labels, minlength=num_classes) + 1)
    return torch.tensor(w / w.sum() * num_classes, dtype=torch.float32)


def describe(noise, labels, pool_counts, pool_mean, class_names):
    """The selection in lines: its size, its threshold, and how many images of each class it holds.

    noise, labels: of the chosen images. pool_counts: (C,), and pool_mean: of all images.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    yield (f'selected {len(noise)} of {pool_counts.sum()} images: noise up to {noise.max():.4f} (threshold), mean {noise.mean():.4f}; '
           f"the pool's mean is {pool_mean:.4f}")
    width = max(map(len, class_names))
    for i in range(0, len(class_names), 5):
        yield 'class  ' + '  '.join(f'{name:>{width}} {counts[c]:>6}/{pool_counts[c]:<6}'
                                   for c, name in enumerate(class_names[i : i + 5], i))


def write_csv(path, pool, noise, labels, chosen):
    """One row an image of the pool: its path or index, its noise, its pseudo-label, and whether it is chosen (0 or 1)."""
    flag = np.zeros(len(noise), np.int8)
    flag[chosen] = 1
    partial = path.with_name(path.name + '.partial')
    with open(partial, 'w', newline='', encoding='utf-8', errors='surrogateescape') as f:  # a path can hold any bytes
        writer = csv.writer(f, lineterminator='\n')
        writer.writerow(['image', 'noise', 'pseudo_label', 'chosen'])
        for name, x, label, chosen_too in zip(pool.names(), noise, labels, flag):
            writer.writerow([name, f'{x:.6g}', label, chosen_too])
    os.replace(partial, path)


def write_thumbnails(path, pool, noise, labels, class_names, per_class=4, classes=10):
    """The cleanest and the noisiest images of the most predicted classes, as an npz, so that the report needs no data."""
    order = cleanest_first(noise)
    common = np.sort(np.argsort(-np.bincount(labels, minlength=len(class_names)), kind='stable')[:classes])
    content = {'class_names': np.array(class_names)}
    for kind, ranked in (('clean', order), ('noisy', order[::-1])):
        rows = np.concatenate([ranked[labels[ranked] == c][:per_class] for c in common])
        images = pool.take(rows).permute(0, 2, 3, 1).numpy()  # (k, H, W, C)
        content |= {f'{kind}_images': images, f'{kind}_labels': labels[rows], f'{kind}_noise': noise[rows]}
    np.savez_compressed(path, **content)


def score_and_select(folder, pool, teacher, normalise, device, amp, num_select, how, class_names, seed):
    """`score`, then `select`: (noise (N,), pseudo-labels (N,), chosen indices), kept in the run's folder, so that a resumed run neither
    scores again nor chooses anew. Raises UserError where the pool is not the one that they were made from."""
    kept = folder / 'selection.npz'
    digest = hashlib.sha256()
    for name in pool.names():
        digest.update(name.encode('utf-8', 'surrogateescape') + b'\n')
    digest = digest.hexdigest()
    if distributed.on_first(kept.is_file):
        with np.load(kept) as f:
            if str(f['pool']) != digest:
                raise UserError(f'the wild pool is not the one that {kept.with_suffix(".csv")} was made from: put its images back, '
                                'or select anew with --run NAME')
            chosen = f['chosen']
            if 'brightness' in f and np.abs(f['brightness'] - brightness(pool, chosen)).max() > 2:  # decoders differ by less
                raise UserError(f'the wild images have the names of those that {kept.with_suffix(".csv")} was made from, and not their '
                                'pixels: select anew with --run NAME')
            return f['noise'], f['labels'], chosen
    noise, labels = score(teacher, pool, normalise, device, amp)
    chosen = select(noise, labels, num_select, how, len(class_names), seed)
    if distributed.rank() == 0:
        write_selection(folder, pool, noise, labels, chosen, class_names, {'pool': digest, 'brightness': brightness(pool, chosen)})
    return noise, labels, chosen


def brightness(pool, chosen):
    """The mean grey levels of the first thousand chosen images: whether they are still the same, however they are decoded."""
    return pool.take(chosen[:1000]).float().mean(dim=(1, 2, 3)).numpy()


def write_selection(folder, pool, noise, labels, chosen, class_names, facts):
    """The list and the pictures for a reader, and last what a resumed run reads."""
    write_csv(folder / 'selection.csv', pool, noise, labels, chosen)
    write_thumbnails(folder / 'thumbnails.npz', pool, noise, labels, class_names)
    partial = folder / 'selection.partial.npz'
    np.savez(partial, noise=noise, labels=labels, chosen=chosen, **facts)
    partial.rename(folder / 'selection.npz')
