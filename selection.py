"""The teacher's score of a wild image, and which images to keep (DFND section 3.2)."""

import contextlib
import hashlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import distributed
from keep.chosen import UNREADABLE, is_whole, read_selection, sketch, write_selection
from training import ahead, rng
from utils import LocalError, UserError, checked, progress, written_aside

BY_CLASS = ('weighted', 'gumbel', 'balanced', 'class-random')  # the same number of every predicted class
SELECT = (*BY_CLASS, 'confidence', 'random', 'pu', 'all')
BATCH = 128  # images scored at a time
POWER = 10  # of the confidence, by which `weighted` draws


class Rule(NamedTuple):
    """Which images to keep; see `select`."""

    how: str  # of SELECT
    num_select: int
    seed: int

    def keys(self, noise, energy, number=0):
        """What the images of a pool's part `number` are ordered by, (n,), lowest first. noise, energy: see `scores_of`.

        balanced, confidence: the noise. random, class-random: random numbers. weighted, gumbel: -(log w + Gumbel noise), which draws a
        class's images without replacement in proportion to w ("Gumbel-top-k", Kool et al., 2019): the confidence to the power of
        POWER, which is the chance that as many labels drawn from the softmax are all the pseudo-label; or exp(energy).
        """
        if self.how in ('balanced', 'confidence', 'all'):
            return noise
        uniform = torch.rand(len(noise), generator=rng(self.seed, 'random selection', number), dtype=torch.float64).numpy()
        if self.how in ('random', 'class-random'):
            return uniform
        log_weight = {'gumbel': energy, 'weighted': -POWER * noise}[self.how]
        return np.log(-np.log(uniform.clip(1e-300))) - log_weight


class Selection(NamedTuple):
    """The n chosen images of a pool of N, by whatever way the pool was read."""

    pool: object  # a wild.pool.Pool, in which
    chosen: np.ndarray  # (n,) are the positions of the chosen images
    noise: np.ndarray  # (n,) float32, in nats
    labels: np.ndarray  # (n,) int64: the teacher's, pseudo-labels
    pool_counts: np.ndarray  # (C,): images of the whole pool by pseudo-label
    pool_noise: float  # mean of the whole pool

    @property
    def counts(self):
        """(C,): chosen images by pseudo-label."""
        return np.bincount(self.labels, minlength=len(self.pool_counts))

    def class_weights(self):
        """w_c proportional to 1 / (n_c + 1), scaled to sum to C, as in the first upload: (C,) float32."""
        w = 1 / (self.counts + 1)
        return torch.tensor(w / w.sum() * len(w), dtype=torch.float32)

    def digests(self):
        """Those of the chosen images, by their pixels: see `image_digest`."""
        return {image_digest(image) for start in range(0, len(self.chosen), BATCH)
                for image in self.pool.take(self.chosen[start : start + BATCH]).numpy()}

    def copies(self):
        """How many of the chosen images are copies of another one, pixel by pixel."""
        return len(self.chosen) - len(self.digests())

    def facts(self):
        """What a run's result says of it."""
        nats = {'pool_noise': self.pool_noise, 'noise': self.noise.mean(), 'noise_max': self.noise.max()}
        return {'wild': self.pool.name, 'wild_images': int(self.pool_counts.sum()), 'selected_per_class': self.counts.tolist(),
                **{name: round(float(value), 5) for name, value in nats.items()}}

    def describe(self, class_names):
        """Lines: its size, its threshold, and how many images of each class it holds."""
        yield (f'selected {len(self.noise)} of {self.pool_counts.sum()} images: noise up to {self.noise.max():.4f} (threshold), '
               f"mean {self.noise.mean():.4f}; the pool's mean is {self.pool_noise:.4f}")
        if copies := self.copies():
            yield f'{copies} of the selected images are copies of others, pixel by pixel: do sources overlap, or hold files twice?'
        width = max(map(len, class_names))
        for i in range(0, len(class_names), 5):
            yield 'class  ' + '  '.join(f'{name:>{width}} {self.counts[c]:>6}/{self.pool_counts[c]:<6}'
                                       for c, name in enumerate(class_names[i : i + 5], i))


def image_digest(image):
    """Of an image's pixels, an array."""
    return hashlib.blake2b(image.tobytes(), digest_size=8).digest()


# ---------------------------------------------------------------- score


def scores_of(teacher, images):
    """(noise (B,) float32 in nats, energy (B,) float32, pseudo_label (B,) int64) of a uint8 batch (B, C, H, W), on the teacher's device.

    noise: -log max softmax, low where the teacher is sure. energy: logsumexp of the logits, high where the image excites it.
    """
    logits = teacher.logits(images)
    confidence, label = F.log_softmax(logits, dim=1).max(dim=1)
    return confidence.abs(), torch.logsumexp(logits, dim=1), label  # abs, and not minus: no -0


def form_of_scores():
    """Changes when `scores_of` does: what is kept of another form of it must not be taken for its own."""
    code = scores_of.__code__
    return code.co_code, code.co_names, code.co_consts


def score(teacher, pool, batch_size=BATCH):
    """Scores every image of the pool, without augmentation: noise(x) = CE(t(x), argmax t(x)) = -log max softmax t(x).

    Returns (noise (N,) float32 in nats, low is clean, energy (N,) float32, pseudo_label (N,) int64), as numpy arrays. Each part's scores
    are kept beside its images in the cache, by teacher and by what `scores_of` does, so that another rule, or a run that was stopped,
    need not score it again. Raises UserError when the teacher's output is not finite.
    """
    scores = tuple(np.zeros(len(pool), dtype) for dtype in (np.float32, np.float32, np.int64))
    spans = pool.spans()
    facts = teacher.digest, teacher.mean, teacher.std, teacher.amp, teacher.device.type, batch_size, form_of_scores()
    key = hashlib.sha256(repr(facts).encode())
    files = [part.file.with_suffix(f'.scores-{key.hexdigest()[:16]}.npz') for part in pool.parts]

    def read():
        # No batch crosses a part's end, and of several processes each scores whole parts: so the numbers are those of one
        # process, and of --stream, bit by bit.
        for number in range(distributed.rank(), len(spans), distributed.world()):
            span, images = spans[number], pool.parts[number].images
            if read_scores(files[number], [all_of[span] for all_of in scores]):
                bar.update(len(images) * distributed.world())
                continue
            for first in range(span.start, span.stop, batch_size):
                last = min(first + batch_size, span.stop)
                yield number, slice(first, last), torch.from_numpy(images[first - span.start : last - span.start].copy())

    with progress(total=len(pool), desc='score') as bar:
        for number, rows, images in ahead(read()):
            for all_of, some in zip(scores, scores_of(teacher, images)):
                all_of[rows] = some.cpu().numpy()
            bar.update(len(images) * distributed.world())
            if rows.stop == spans[number].stop:
                check_teacher(*(all_of[spans[number]] for all_of in scores))
                with contextlib.suppress(OSError), written_aside(files[number]) as file:  # a cache that can only be read serves too
                    np.savez(file, *(all_of[spans[number]] for all_of in scores))
    for all_of in scores:
        all_of[:] = distributed.total(torch.from_numpy(all_of).to(teacher.device)).cpu().numpy()  # every other process holds 0 there
    return scores


def read_scores(file, scores):
    """Fills the arrays `scores` from a part's file; returns whether there is one that fits."""
    try:
        with np.load(checked(file)) as kept:
            for all_of, name in zip(scores, kept.files, strict=True):
                all_of[:] = kept[name]
        return bool(np.isfinite(scores[0]).all())
    except UNREADABLE:  # none, or a damaged one
        return False


def check_teacher(noise, energy, labels):
    """Raises LocalError for a part's scores, (n,) each, that no working teacher gives: before the rest of the pool is scored."""
    if bad := np.count_nonzero(~np.isfinite(noise)):
        raise LocalError(f'the teacher gives {bad} of {len(noise)} wild images a noise that is not finite: try --amp off, or check the '
                         'teacher')
    if len(noise) >= BATCH and all(np.ptp(values) == 0 for values in (noise, energy, labels)):
        raise LocalError(f'the teacher gives {len(noise)} wild images one and the same output: check its weights, and that the images are '
                         'not all the same')


# ---------------------------------------------------------------- select


def select(keys, labels, rule, num_classes):
    """The indices of the images to keep, ascending, (num_select,) int64.

    rule.how: confidence, pu: the lowest keys over all classes, as the published files do. random: Table 1's control row. BY_CLASS: the
    num_select / C lowest keys of each predicted class (`Rule.keys`), at least one; where a class has too few, its share goes to the
    lowest keys that are left. all: everything, whatever num_select. Of equal keys, the earlier image goes first.
    keys: (N,), labels: (N,) in 0 .. num_classes - 1. Raises UserError when the pool is smaller than num_select.
    """
    (how, num_select, seed), count = rule, len(keys)
    if how == 'all':
        return np.arange(count)
    if num_select > count:
        raise UserError(f'num_select={num_select}, but the pool holds {count} images: lower --num_select or add images')
    if how == 'random':
        return np.sort(torch.randperm(count, generator=rng(seed, 'random selection'))[:num_select].numpy())
    order = lowest_first(keys)
    if how not in BY_CLASS:
        return np.sort(order[:num_select])
    in_quota = rank_in_class(labels[order], num_classes) < quota_of(num_select, num_classes)
    kept, left = order[in_quota][:num_select], order[~in_quota]
    return np.sort(np.concatenate([kept, left[: num_select - len(kept)]]))


def quota_of(num_select, num_classes):
    """How many images every class may have before any is taken for its key alone."""
    return max(1, num_select // num_classes)


def worth_keeping(noise, labels):
    """How many images of a pool are of use to a student, seen by the teacher alone: over the classes, the sum of the perplexity
    exp(entropy) of what `weighted` draws from. It is the whole pool where the teacher is as sure of all. noise, labels: (N,)."""
    total = 0.0
    for c in np.unique(labels):
        p = torch.softmax(-POWER * torch.from_numpy(noise[labels == c]).double(), 0)
        total += torch.special.entr(p).sum().exp().item()
    return max(1, round(total))


def lowest_first(keys):
    """A stable argsort of (N,). As integers, the bits of float32 above zero are in the same order, and torch sorts integers by radix:
    nine times as fast for ten million."""
    if keys.dtype == np.float32 and not np.signbit(keys).any():
        keys = keys.view(np.int32)
    return torch.sort(torch.from_numpy(np.ascontiguousarray(keys)), stable=True)[1].numpy()


def rank_in_class(labels, num_classes):
    """How many before each entry have its label. labels: (N,) -> (N,) int64."""
    # sort by class, and number each class from 0
    small = np.int16 if num_classes <= 2**15 else np.int64  # numpy sorts int16 by radix, much faster
    by_class = np.argsort(labels.astype(small), kind='stable')
    counts = np.bincount(labels, minlength=num_classes)
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def score_and_select(folder, pool, teacher, rule, keys=None):
    """`score`, then `select`: a Selection, kept in the run's folder, so that a resumed run neither scores again nor chooses anew.
    keys: (N,), in place of the rule's, as of --select pu.

    Raises UserError where the pool is not the one that the kept selection was made from: it is known by what it holds, wherever it is.
    """
    kept = folder / 'selection.npz'
    if distributed.on_first(is_whole, kept):
        noise, labels, chosen, where = read_selection(kept, pool)
    else:
        noise, energy, labels = score(teacher, pool)
        if keys is None:
            keys = np.concatenate([rule.keys(noise[span], energy[span], number) for number, span in zip(pool.numbers, pool.spans())])
        where = chosen = select(keys, labels, rule, teacher.classes)
        if distributed.rank() == 0:
            facts = {'pool': pool.digest(), 'sketch': sketch(pool, chosen)}
            write_selection(folder, pool, (noise, labels, chosen), teacher.class_names, facts)
    return Selection(pool, where, noise[chosen], labels[chosen], np.bincount(labels, minlength=teacher.classes), float(noise.mean()))
