"""The teacher's score of a wild image, and which images to keep (DFND section 3.2)."""

import csv
import os

import numpy as np
import torch
import torch.nn.functional as F

import distributed
from utils import UserError, autocast, progress, rng

SELECT = ('balanced', 'confidence', 'random', 'all')


@torch.no_grad()
def score(teacher, pool, normalise, device, amp, batch_size=512):
    """Scores every image of the pool, without augmentation: noise(x) = CE(t(x), argmax t(x)) = -log max softmax t(x).

    pool: has len() and take(indices) -> uint8 (B, C, H, W). Returns (noise (N,) float32 in nats, low is clean,
    pseudo_label (N,) int64), as numpy arrays. Raises UserError when the teacher's output is not finite.
    """
    noise = np.zeros(len(pool), np.float32)
    labels = np.zeros(len(pool), np.int64)
    with progress(total=len(pool), desc='score') as bar:
        # Of several processes each scores whole batches of the same fixed cut: the numbers are those of one process, bit by bit.
        for i in range(distributed.rank() * batch_size, len(pool), distributed.world() * batch_size):
            rows = np.arange(i, min(i + batch_size, len(pool)))
            with autocast(device, amp):
                logits = teacher(normalise(pool.take(rows).to(device))).float()  # (B, num_classes)
            confidence, label = F.log_softmax(logits, dim=1).max(dim=1)
            noise[rows], labels[rows] = confidence.abs().cpu().numpy(), label.cpu().numpy()  # abs, and not minus: no -0
            bar.update(len(rows) * distributed.world())
    for part in (noise, labels):
        part[:] = distributed.total(torch.from_numpy(part).to(device)).cpu().numpy()  # every other process holds 0 there
    if not np.isfinite(noise).all():
        raise UserError(f'the teacher gives {np.count_nonzero(~np.isfinite(noise))} of {len(noise)} wild images a noise that is not '
                        'finite: try --amp off, or check the teacher')
    return noise, labels


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
    order = np.argsort(noise, kind='stable')  # cleanest first
    if how == 'confidence':
        return np.sort(order[:num_select])
    # An image's rank among those of its class: sort the sorted once more, by class, and number each class from 0.
    small = np.int16 if num_classes <= 2**15 else np.int64  # numpy sorts int16 by radix, much faster
    by_class = np.argsort(labels[order].astype(small), kind='stable')
    counts = np.bincount(labels, minlength=num_classes)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    in_quota = np.empty(count, bool)
    in_quota[by_class] = np.arange(count) - starts < num_select // num_classes
    kept, left = order[in_quota], order[~in_quota]
    return np.sort(np.concatenate([kept, left[: num_select - len(kept)]]))


def class_weights(labels, num_classes):
    """w_c proportional to 1 / (n_c + 1), scaled to sum to C, as in the first upload. labels: of the kept images. (C,) float32."""
    w = 1 / (np.bincount(labels, minlength=num_classes) + 1)
    return torch.tensor(w / w.sum() * num_classes, dtype=torch.float32)


def describe(noise, labels, chosen, names):
    """The selection in lines: its size, its threshold, and how many images of each class it holds."""
    counts, pool = np.bincount(labels[chosen], minlength=len(names)), np.bincount(labels, minlength=len(names))
    yield (f'selected {len(chosen)} of {len(noise)} images: noise up to {noise[chosen].max():.4f} (threshold), '
           f'mean {noise[chosen].mean():.4f}; the pool\'s mean is {noise.mean():.4f}')
    width = max(map(len, names))
    for i in range(0, len(names), 5):
        yield 'class  ' + '  '.join(f'{names[c]:>{width}} {counts[c]:>6}/{pool[c]:<6}' for c in range(i, min(i + 5, len(names))))


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


def write_thumbnails(path, pool, noise, labels, names, per_class=4, classes=10):
    """The cleanest and the noisiest images of the most predicted classes, as an npz, so that the report needs no data."""
    order = np.argsort(noise, kind='stable')
    common = np.sort(np.argsort(-np.bincount(labels, minlength=len(names)), kind='stable')[:classes])
    content = {'class_names': np.array(names)}
    for kind, ranked in (('clean', order), ('noisy', order[::-1])):
        rows = np.concatenate([ranked[labels[ranked] == c][:per_class] for c in common])
        images = pool.take(rows).permute(0, 2, 3, 1).numpy()  # (k, H, W, C)
        content |= {f'{kind}_images': images, f'{kind}_labels': labels[rows], f'{kind}_noise': noise[rows]}
    np.savez_compressed(path, **content)
