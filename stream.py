"""A selection from a pool that is not kept: one pass, in which only what can still be chosen stays in memory."""

import shutil
import time

import numpy as np
import torch

import distributed
from decode import Part, save_part
from selection import BATCH, check_finite, cleanest_first, noise_of, rank_in_class, select, write_selection
from utils import LocalError, UserError, progress, rng, say
from wild import Pool


class Candidates:
    """The images of a stream that can still be chosen: the best `num_select` of all and, for balanced selection, the best
    num_select / C of every class: at most twice num_select, and half as many again before the next clearing. They lie in one
    table, in the stream's order, which a clearing closes up in place.

    Best is: lowest noise, or, for random selection, the lowest of numbers drawn for each part by (seed, its number).
    """

    def __init__(self, num_select, how, num_classes, seed):
        self.num_select, self.how, self.num_classes, self.seed = num_select, how, num_classes, seed
        self.columns = None  # keys, noise, labels, positions (part's number, row), images, names: an array each
        self.count, self.capacity = 0, 2 * num_select + max(num_select // 2, 4096)
        self.bar, self.class_bars = np.inf, np.full(num_classes, -np.inf)  # above both, an image can't be chosen any more
        self.counts, self.noise_sum = np.zeros(num_classes, np.int64), 0.0  # of all that passed

    def add(self, number, images, names, noise, labels):
        """A scored part. Parts must come in the order of their numbers, so that of equal images the earlier stays."""
        self.counts += np.bincount(labels, minlength=self.num_classes)
        self.noise_sum += float(noise.sum(dtype=np.float64))
        keys = self.draw(number, len(noise)) if self.how == 'random' else noise
        keep = np.flatnonzero((keys < self.bar) | (keys < self.class_bars[labels]))
        while len(keep):
            if self.count == self.capacity:
                self.clear()
            some, keep = np.split(keep, [self.capacity - self.count])
            positions = np.stack([np.full(len(some), number), some], axis=1)
            rows = (keys[some], noise[some], labels[some], positions, images[some], np.array([names[i] for i in some], object))
            if self.columns is None:  # empty ones take memory only as they are filled
                self.columns = [np.empty((self.capacity, *x.shape[1:]), x.dtype) for x in rows]
            for column, new in zip(self.columns, rows):
                column[self.count : self.count + len(some)] = new
            self.count += len(some)

    def draw(self, number, count):
        return torch.rand(count, generator=rng(self.seed, 'random selection', number), dtype=torch.float64).numpy()

    def clear(self):
        """Drops what can't be chosen any more, and sets the bars for what comes."""
        if not self.count:
            return
        keys, _, labels, *_ = self.table()
        order = cleanest_first(keys)
        chosen = np.zeros(len(keys), bool)
        chosen[order[: self.num_select]] = True
        if len(keys) >= self.num_select:
            self.bar = keys[order[self.num_select - 1]]
        quota = self.num_select // self.num_classes
        if self.how == 'balanced' and quota:
            rank = rank_in_class(labels[order], self.num_classes)
            chosen[order[rank < quota]] = True
            self.class_bars = np.full(self.num_classes, np.inf)
            last = order[rank == quota - 1]
            self.class_bars[labels[last]] = keys[last]
        kept, self.count = np.flatnonzero(chosen), int(chosen.sum())
        for i in range(0, self.count, 4096):  # a row never moves behind one that is still to move
            some = kept[i : i + 4096]
            for column in self.columns:
                column[i : i + len(some)] = column[some]

    def table(self):
        """The columns as far as they are filled."""
        return [column[: self.count] for column in self.columns or [np.empty(0)] * 6]


def select_from_stream(parts, folder, teacher, normalise, device, amp, num_select, how, num_classes, seed):
    """Scores the parts (see wild.open_stream) as they come and chooses from them as `selection.select` would from the whole pool, but
    for 'random', which is another draw. Returns (Pool of the chosen images, kept in `folder`, their noise, their pseudo-labels,
    the pool's counts by class (C,), its mean noise). Raises UserError where the stream ends with fewer than num_select.
    """
    candidates = Candidates(num_select, how, num_classes, seed)

    try:
        score_parts(parts, candidates, teacher, normalise, device, amp)
    except UserError as e:
        raise LocalError(str(e)) from None
    candidates.clear()
    return merge(candidates, folder)


def score_parts(parts, candidates, teacher, normalise, device, amp):
    count, start, told = 0, time.perf_counter(), time.perf_counter()
    with progress(desc='stream') as bar:
        for number, images, names in parts:
            batches = [noise_of(teacher, torch.from_numpy(images[i : i + BATCH].copy()), normalise, device, amp)
                       for i in range(0, len(images), BATCH)]
            noise, labels = (torch.cat(x).cpu().numpy() for x in zip(*batches))
            check_finite(noise)
            candidates.add(number, images, names, noise, labels)
            count += len(images) * distributed.world()
            bar.update(len(images) * distributed.world())
            if bar.disable and time.perf_counter() - told > 30:  # a line in a log
                told = time.perf_counter()
                say(f'stream: {count} images, {count / (told - start):.0f} img/s')


def merge(candidates, folder):
    """Selects from the candidates of all processes, which they write to files for the first one."""
    shares, chosen = folder / 'candidates', folder / 'selected'
    distributed.on_first(shares.mkdir, 0o777, True, True)
    write_candidates(candidates, shares, distributed.rank())
    distributed.wait()
    try:
        noise, labels, counts, mean = distributed.on_first(select_from_candidates, candidates, shares, chosen)
    finally:
        shutil.rmtree(shares, ignore_errors=True)
    return open_selected(chosen, len(noise)), noise, labels, counts, mean


def write_candidates(candidates, folder, rank):
    """Writes a process's candidates."""
    keys, noise, labels, positions, images, names = candidates.table()
    save_part(folder, rank, images, names)
    np.savez(folder / f'{rank}.npz', keys=keys, noise=noise, labels=labels, positions=positions, counts=candidates.counts,
             noise_sum=candidates.noise_sum)
    candidates.columns = None


def select_from_candidates(candidates, shares, folder):
    """On rank 0: selects from the candidates of all processes and writes the chosen images to `folder`.

    Returns (noise, labels, the pool's counts by class, its mean noise).
    """
    tables = [dict(np.load(shares / f'{rank}.npz')) for rank in range(distributed.world())]
    counts, noise_sum = sum(t['counts'] for t in tables), sum(float(t['noise_sum']) for t in tables)
    sizes = [len(t['noise']) for t in tables]
    if sum(sizes) < candidates.num_select:
        raise UserError(f'num_select={candidates.num_select}, but the stream held {counts.sum()} images: lower --num_select or add images')
    pool = Pool([Part(shares / f'{rank:06d}.npy', size) for rank, size in enumerate(sizes) if size], 'candidates')
    keys, noise, labels, positions = (np.concatenate([t[k] for t in tables if len(t['noise'])])
                                      for k in ('keys', 'noise', 'labels', 'positions'))
    order = np.lexsort(positions.T[::-1])  # the stream's
    if candidates.how == 'random':
        chosen = np.sort(cleanest_first(keys[order])[: candidates.num_select])
    else:
        chosen = select(noise[order], labels[order], candidates.num_select, candidates.how, candidates.num_classes, candidates.seed)
    rows, names = order[chosen], list(pool.names())
    folder.mkdir(exist_ok=True)
    save_part(folder, 0, pool.take(rows).numpy(), [names[row] for row in rows])
    return noise[rows], labels[rows], counts, noise_sum / counts.sum()


def open_selected(folder, count):
    """The images that an earlier `select_from_stream` chose, as a pool."""
    return Pool([Part(folder / '000000.npy', count)], 'selected')


def stream_and_select(folder, parts, teacher, normalise, device, amp, num_select, how, class_names, seed):
    """`selection.score_and_select` for a stream (see wild.open_stream).

    Returns (the chosen images as a pool, their noise, their pseudo-labels, the whole pool's counts by class (C,), its mean
    noise), kept in the run's folder, images and all.
    """
    selection_file = folder / 'selection.npz'
    if distributed.on_first(selection_file.is_file):
        with np.load(selection_file) as f:
            if 'counts' not in f or not (folder / 'selected' / '000000.npy').is_file():
                raise UserError(f'{folder} holds a selection without its images, so --stream can not go on from it: select anew with '
                                '--run NAME')
            return open_selected(folder / 'selected', len(f['noise'])), f['noise'], f['labels'], f['counts'], float(f['mean'])
    pool, noise, labels, counts, mean = select_from_stream(parts, folder, teacher, normalise, device, amp, num_select, how,
                                                           len(class_names), seed)
    if distributed.rank() == 0:
        write_selection(folder, pool, noise, labels, np.arange(len(noise)), class_names, {'counts': counts, 'mean': mean})
    return pool, noise, labels, counts, mean
