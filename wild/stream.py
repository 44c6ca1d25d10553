"""A selection from a pool that is not kept: one pass, in which only what can still be chosen stays in memory."""

import shutil
import time

import numpy as np
import torch

import distributed
from selection import BATCH, BY_CLASS, Selection, check_finite, is_whole, lowest_first, rank_in_class, scores_of, select, write_selection
from training import free_memory
from utils import LocalError, UserError, checked, progress, say, written_aside
from wild.decode import Part, check_away, read_skipped, save_part, tell_skipped, write_skipped
from wild.pool import Pool


class Candidates:
    """The images of a stream that can still be chosen: the `num_select` lowest keys (see selection.Rule) of all and, for the rules by
    class, the num_select / C lowest of every class: at most twice num_select, and half as many again before the next clearing. They are
    in one table, in the stream's order, which a clearing closes up in place."""

    def __init__(self, rule, num_classes):
        self.rule, self.num_classes = rule, num_classes
        # keys, noise, labels, places in the stream, images, names: each becomes as long as `capacity` when the first image comes
        self.columns = [np.empty(0, kind) for kind in ('f4', 'f4', 'i8', 'i8', 'u1', 'O')]
        self.count, self.capacity = 0, 2 * rule.num_select + max(rule.num_select // 2, 4096)
        self.bar, self.class_bars = np.inf, np.full(num_classes, -np.inf)  # above both, an image can't be chosen any more
        self.counts, self.noise_sum, self.skipped = np.zeros(num_classes, np.int64), 0.0, []  # of all that passed

    def add(self, number, images, names, scores):
        """A part. scores: its (noise, energy, labels). Parts must come in the order of their numbers, so that of equal images the earlier
        stays."""
        noise, energy, labels = scores
        self.counts += np.bincount(labels, minlength=self.num_classes)
        self.noise_sum += float(noise.sum(dtype=np.float64))
        keys = self.rule.keys(noise, energy, number)
        keep = np.flatnonzero((keys < self.bar) | (keys < self.class_bars[labels]))
        while len(keep):
            if self.count == self.capacity:
                self.clear()
            some, keep = np.split(keep, [self.capacity - self.count])
            rows = (keys[some], noise[some], labels[some], (number << 32) + some, images[some], np.array(names, object)[some])
            if not len(self.columns[0]):  # empty ones take memory only as they are filled
                need = self.capacity * images[0].nbytes
                if need > free_memory(torch.device('cpu')):
                    raise UserError(f'--stream keeps up to {self.capacity} images for --num_select {self.rule.num_select}: '
                                    f'{need / 1e9:.1f} GB, and less memory is free: lower --num_select')
                self.columns = [np.empty((self.capacity, *x.shape[1:]), x.dtype) for x in rows]
            for column, new in zip(self.columns, rows):
                column[self.count : self.count + len(some)] = new
            self.count += len(some)

    def clear(self):
        """Drops what can't be chosen any more, and sets the bars for what comes."""
        keys, _, labels, *_ = self.table()
        order, num_select = lowest_first(keys), self.rule.num_select
        chosen = np.arange(len(order)) < num_select
        if len(order) >= num_select:
            self.bar = keys[order[num_select - 1]]
        quota = num_select // self.num_classes
        if self.rule.how in BY_CLASS and quota:
            rank = rank_in_class(labels[order], self.num_classes)
            chosen |= rank < quota
            last = order[rank == quota - 1]
            self.class_bars = np.full(self.num_classes, np.inf)
            self.class_bars[labels[last]] = keys[last]
        kept = np.sort(order[chosen])
        self.count = len(kept)
        for i in range(0, self.count, 4096):  # a row never moves behind one that is still to move
            some = kept[i : i + 4096]
            for column in self.columns:
                column[i : i + len(some)] = column[some]

    def table(self):
        """The columns as far as they are filled."""
        return [column[: self.count] for column in self.columns]


def stream_and_select(folder, parts, teacher, rule):
    """`selection.score_and_select` for a stream (see wild.pool.open_stream): scores the parts as they come and chooses as
    `selection.select` would from the whole pool, except that 'random' is another draw. Returns a Selection, kept in the run's
    folder, images and all. Raises UserError where the stream ends with fewer than num_select."""
    kept, images = folder / 'selection.npz', folder / 'selected'
    if distributed.on_first(is_whole, kept, *(images / f'000000.{kind}' for kind in ('npy', 'txt'))):
        with np.load(kept) as f:
            if 'counts' not in f:
                raise UserError(f'{folder} holds a selection without its images, so --stream can not go on from it: select again with '
                                '--run NAME')
            return opened(images, f['noise'], f['labels'], f['counts'], float(f['mean']))
    candidates = Candidates(rule, teacher.classes)
    try:
        score_parts(parts, candidates, teacher)
    except UserError as e:
        raise LocalError(str(e)) from None
    candidates.clear()
    selection = opened(images, *merge(candidates, folder))
    pool, chosen, noise, labels, counts, mean = selection
    if distributed.rank() == 0:
        write_selection(folder, pool, (noise, labels, chosen), teacher.class_names, {'counts': counts, 'mean': mean})
    return selection


def opened(folder, noise, labels, counts, mean):
    """The Selection of all images in `folder`."""
    return Selection(Pool([Part(folder / '000000.npy', len(noise))], 'selected'), np.arange(len(noise)), noise, labels, counts, mean)


def score_parts(parts, candidates, teacher):
    count, start, told = 0, time.perf_counter(), time.perf_counter()
    with progress(desc='stream') as bar:
        for number, images, names, skipped in parts:
            candidates.skipped += skipped
            check_away([skip for skip in candidates.skipped if skip.again], candidates.counts.sum() + len(candidates.skipped))
            if not names:
                continue
            batches = [scores_of(teacher, torch.from_numpy(images[i : i + BATCH].copy())) for i in range(0, len(images), BATCH)]
            scores = [torch.cat(x).cpu().numpy() for x in zip(*batches)]
            check_finite(scores[0])
            candidates.add(number, images, names, scores)
            count += len(images) * distributed.world()
            bar.update(len(images) * distributed.world())
            if bar.disable and time.perf_counter() - told > 30:  # a line in a log
                told = time.perf_counter()
                say(f'stream: {count} images, {count / (told - start):.0f} img/s')


def merge(candidates, folder):
    """Selects from the candidates of all processes, which they write to files for the first one: see `select_from_candidates`."""
    shares = folder / 'candidates'
    distributed.on_first(shares.mkdir, 0o777, True, True)
    write_candidates(candidates, shares, distributed.rank())
    distributed.wait()
    try:
        return distributed.on_first(select_from_candidates, candidates, shares, folder / 'selected')
    finally:
        shutil.rmtree(shares, ignore_errors=True)


def write_candidates(candidates, folder, rank):
    """Writes a process's candidates, and forgets them."""
    keys, noise, labels, places, images, names = candidates.table()
    save_part(folder, rank, images, names, candidates.skipped)
    with written_aside(folder / f'{rank}.npz') as file:
        np.savez(file, keys=keys, noise=noise, labels=labels, places=places, counts=candidates.counts, noise_sum=candidates.noise_sum)
    candidates.columns = None


def select_from_candidates(candidates, shares, folder):
    """On rank 0: selects from the candidates of all processes and writes the chosen images to `folder`. Returns (noise, labels, the
    pool's counts by class, its mean noise)."""
    tables = [dict(np.load(checked(shares / f'{rank}.npz'))) for rank in range(distributed.world())]
    keys, noise, labels, places = (np.concatenate([t[k] for t in tables]) for k in ('keys', 'noise', 'labels', 'places'))
    counts, rule = sum(t['counts'] for t in tables), candidates.rule
    if len(noise) < rule.num_select:
        raise UserError(f'num_select={rule.num_select}, but the stream held {counts.sum()} images: lower --num_select or add images')
    order = np.argsort(places)  # the stream's
    if rule.how == 'random':
        chosen = np.sort(lowest_first(keys[order])[: rule.num_select])
    else:
        chosen = select(keys[order], labels[order], rule, candidates.num_classes)
    sizes = [len(t['noise']) for t in tables]
    pool = Pool([Part(shares / f'{rank:06d}.npy', size) for rank, size in enumerate(sizes) if size], 'candidates')
    rows, names = order[chosen], list(pool.names())
    if skipped := [skip for some in read_skipped(shares).values() for skip in some]:
        write_skipped(folder.with_name('skipped.jsonl'), skipped)
        tell_skipped(skipped, counts.sum(), 'the stream', folder.with_name('skipped.jsonl'))
    folder.mkdir(exist_ok=True)
    save_part(folder, 0, pool.take(rows).numpy(), [names[row] for row in rows])
    return noise[rows], labels[rows], counts, float(sum(t['noise_sum'] for t in tables)) / counts.sum()
