"""A selection from a pool that is not kept: one pass, in which only what can still be chosen stays in memory."""

import contextlib
import json
import shutil
import time

import numpy as np
import torch

import distributed
from keep.chosen import UNREADABLE, is_whole, write_selection
from selection import BATCH, BY_CLASS, Selection, check_teacher, form_of_scores, lowest_first, quota_of, rank_in_class, scores_of, select
from training import free_memory
from utils import LocalError, UserError, checked, progress, say, written_aside
from wild.decode import DECODER, check_away, tell_skipped
from wild.parts import Part, mapped, read_skipped, remove, save_part, write_skipped
from wild.pool import Pool, open_stream
from wild.reading import Skip

FEW = 10_000  # files before the share that can't be read says something of the whole stream
COLUMNS = 'keys', 'noise', 'labels', 'places', 'images'  # of a table of candidates, before the names


class Candidates:
    """The images of a stream that can still be chosen: the `num_select` lowest keys (see selection.Rule) of all and, for the rules by
    class, the num_select / C lowest of every class, at least one: at most twice num_select, or num_select + C, and half as many again
    before the next clearing. They are in one table, in the stream's order, which a clearing closes up in place."""

    def __init__(self, rule, num_classes):
        self.rule, self.num_classes = rule, num_classes
        # keys, noise, labels, places in the stream, images, names: each becomes as long as `capacity` when the first image comes
        self.columns = [np.empty(0, kind) for kind in ('f4', 'f4', 'i8', 'i8', 'u1', 'O')]
        most = rule.num_select + max(rule.num_select, num_classes)
        self.count, self.capacity = 0, most + max(rule.num_select // 2, 4096)
        # (key, place in the stream): above both, an image can't be chosen any more; the second for each class
        self.bar, self.class_bars = (np.inf, 0), (np.full(num_classes, -np.inf), np.zeros(num_classes, np.int64))
        self.counts, self.noise_sum, self.skipped = np.zeros(num_classes, np.int64), 0.0, []  # of all that passed
        self.clearings = 0

    def add(self, number, images, names, scores):
        """A part. scores: its (noise, energy, labels). Parts may come in any order: of equal images the earlier in the stream stays.
        Returns what a Journal keeps of it."""
        noise, energy, labels = scores
        keys, places = self.rule.keys(noise, energy, number), (number << 32) + np.arange(len(noise))

        def below(bars, where):
            return (keys < bars) | ((keys == bars) & (places < where))

        some = np.flatnonzero(below(*self.bar) | below(*(x[labels] for x in self.class_bars)))
        rows = (keys[some], noise[some], labels[some], places[some], images[some], np.array(names, object)[some])
        seen = np.bincount(labels, minlength=self.num_classes), float(noise.sum(dtype=np.float64))
        self.push(rows, seen)
        return rows, seen

    def push(self, rows, seen):
        """rows: as of `columns`. seen: the counts of all that passed with them, and their noise."""
        self.counts, self.noise_sum = self.counts + seen[0], self.noise_sum + seen[1]
        while len(rows[0]):
            if self.count == self.capacity:
                self.clear()
            now, rows = zip(*(np.split(x, [self.capacity - self.count]) for x in rows))
            if not len(self.columns[0]):  # empty ones take memory only as they are filled
                need = self.capacity * now[4][0].nbytes
                if need > free_memory(torch.device('cpu')):
                    raise UserError(f'--stream keeps up to {self.capacity} images for --num_select {self.rule.num_select}: '
                                    f'{need / 1e9:.1f} GB, and less memory is free: lower --num_select')
                self.columns = [np.empty((self.capacity, *x.shape[1:]), x.dtype) for x in now]
            for column, new in zip(self.columns, now):
                column[self.count : self.count + len(now[0])] = new
            self.count += len(now[0])

    def clear(self):
        """Drops what can't be chosen any more, and sets the bars for what comes."""
        self.clearings += 1
        keys, _, labels, places, *_ = self.table()
        order, num_select = np.lexsort((places, keys)), self.rule.num_select
        chosen = np.arange(len(order)) < num_select
        if len(order) >= num_select:
            last = order[num_select - 1]
            self.bar = keys[last], places[last]
        quota = quota_of(num_select, self.num_classes)
        if self.rule.how in BY_CLASS:
            rank = rank_in_class(labels[order], self.num_classes)
            chosen |= rank < quota
            last = order[rank == quota - 1]
            self.class_bars = np.full(self.num_classes, np.inf), np.zeros(self.num_classes, np.int64)
            for bars, values in zip(self.class_bars, (keys, places)):
                bars[labels[last]] = values[last]
        kept = np.sort(order[chosen])
        self.count = len(kept)
        for i in range(0, self.count, 4096):  # a row never moves behind one that is still to move
            some = kept[i : i + 4096]
            for column in self.columns:
                column[i : i + len(some)] = column[some]

    def table(self):
        """The columns as far as they are filled."""
        return [column[: self.count] for column in self.columns]


def stream_and_select(folder, wild, teacher, rule):
    """`selection.score_and_select` for a stream (see wild.pool.open_stream) of a Wild: scores the parts as they come and chooses as
    `selection.select` would from the whole pool, except that 'random' is another draw. Returns a Selection, kept in the run's
    folder, images and all. Raises UserError where the stream ends with fewer than num_select."""
    kept, images = folder / 'selection.npz', folder / 'selected'
    if distributed.on_first(is_whole, kept, *(images / f'000000.{kind}' for kind in ('npy', 'txt'))):
        with np.load(kept) as f:
            if 'counts' not in f:
                raise UserError(f'{folder} holds a selection without its images, so --stream can not go on from it: select again with '
                                '--run NAME')
            name = str(f['wild']) if 'wild' in f else wild.name
            if name != wild.name:
                say(f'the selection in {folder} is of {name}: --wild {wild.name} is not read')
            return opened(images, f['noise'], f['labels'], f['counts'], float(f['mean']), name)
    candidates = Candidates(rule, teacher.classes)
    journal = Journal(folder / 'stream', candidates, teacher, wild)
    try:
        score_parts(open_stream(wild, journal.seen), candidates, teacher, journal)
    except UserError as e:
        raise LocalError(str(e)) from None
    candidates.clear()
    selection = opened(images, *merge(candidates, folder), wild.name)
    pool, chosen, noise, labels, counts, mean = selection
    if distributed.rank() == 0:
        write_selection(folder, pool, (noise, labels, chosen), teacher.class_names, {'counts': counts, 'mean': mean, 'wild': wild.name})
        shutil.rmtree(journal.folder, ignore_errors=True)
    return selection


def opened(folder, noise, labels, counts, mean, name='selected'):
    """The Selection of all images in `folder`, from a pool of this name."""
    return Selection(Pool([Part(folder / '000000.npy', len(noise))], name), np.arange(len(noise)), noise, labels, counts, mean)


class Journal:
    """What this process has seen of a stream, in a folder: a file a part, and where there was a clearing, one in place of all before. So a
    stream that was stopped goes on after its last part, by any number of processes."""

    def __init__(self, folder, candidates, teacher, wild):
        """Adds what was kept to the candidates. seen: {number of a part: its source}, those of all processes."""
        self.folder, self.candidates, self.clearings = folder, candidates, 0
        self.key = repr((DECODER, form_of_scores(), candidates.rule, teacher.digest, teacher.mean, teacher.std, teacher.amp, wild.size,
                         wild.channels))
        kept = distributed.on_first(self.find)
        self.seen = {number: source for _, parts in kept for number, source in parts.items()}
        self.files, self.parts = [], {}
        for file, parts in kept[distributed.rank() :: distributed.world()]:
            with np.load(file) as f:
                candidates.push([*(f[name] for name in COLUMNS), np.array(json.loads(str(f['names'])), object)],
                                (f['counts'], float(f['noise_sum'])))
                candidates.skipped += [Skip(**skip) for skip in json.loads(str(f['skipped']))]
            self.files.append(file)
            self.parts |= parts
        if self.seen:
            candidates.clear()
            say(f'stream: goes on after {len(self.seen)} parts')

    def find(self):
        """[(file, {number of a part: its source})] of what can be gone on with; the rest is deleted. A kill between two deletions leaves
        files whose parts are in another one too."""
        self.folder.mkdir(exist_ok=True)
        found, seen = [], set()
        for file in self.folder.iterdir():
            with contextlib.suppress(*UNREADABLE), np.load(checked(file)) as f:
                if str(f['key']) == self.key:
                    found.append((file, {int(number): source for number, source in json.loads(str(f['parts'])).items()}))
        found.sort(key=lambda one: -len(one[1]))
        found = [one for one in found if seen.isdisjoint(one[1]) and not seen.update(one[1])]
        remove(set(self.folder.iterdir()) - {file for file, _ in found})
        return found

    def keep(self, part, rows, seen):
        """A part that was added. rows, seen: of Candidates.push."""
        self.parts[part.number] = part.source
        file, old, parts, skipped = self.folder / f'{part.number:08d}.npz', [], {part.number: part.source}, part.skipped
        if self.clearings < self.candidates.clearings:
            self.clearings, old = self.candidates.clearings, self.files
            kept = self.candidates
            rows, seen, parts, skipped = kept.table(), (kept.counts, kept.noise_sum), self.parts, kept.skipped
        *columns, names = rows
        with written_aside(file) as out:
            np.savez(out, **dict(zip(COLUMNS, columns)), names=json.dumps(list(names)), counts=seen[0], noise_sum=seen[1], key=self.key,
                     parts=json.dumps(parts), skipped=json.dumps([skip._asdict() for skip in skipped]))
        remove(old)
        self.files = [file] if old else [*self.files, file]


def score_parts(parts, candidates, teacher, journal):
    count, start, told, away = 0, time.perf_counter(), time.perf_counter(), []
    with progress(desc='stream') as bar:
        for part in parts:
            candidates.skipped += part.skipped
            away += [skip for skip in part.skipped if skip.again]
            seen = candidates.counts.sum() + len(part.names) + len(candidates.skipped)
            check_away(away, max(seen, FEW))
            batches = [scores_of(teacher, torch.from_numpy(part.images[i : i + BATCH].copy())) for i in range(0, len(part.names), BATCH)]
            scores = [torch.cat(x).cpu().numpy() for x in zip(*batches)] or [np.empty(0, kind) for kind in ('f4', 'f4', 'i8')]
            check_teacher(*scores)
            journal.keep(part, *candidates.add(part.number, part.images, part.names, scores))
            count += len(part.names) * distributed.world()
            bar.update(len(part.names) * distributed.world())
            if bar.disable and time.perf_counter() - told > 30:  # a line in a log
                told = time.perf_counter()
                say(f'stream: {count} images, {count / (told - start):.0f} img/s')
    try:
        check_away(away, candidates.counts.sum() + len(candidates.skipped))
    except UserError:
        remove(journal.files)  # or the same command would go on without what it could not read
        raise


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
        raise UserError(f'num_select={rule.num_select}, but the stream held {counts.sum()} images: lower --num_select, with a --run NAME, '
                        'or add images')
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
    mapped.cache_clear()  # or the candidates' files, which are deleted now, would keep their space
    return noise[rows], labels[rows], counts, float(sum(t['noise_sum'] for t in tables)) / counts.sum()
