"""PU-compression: a little original data, and a classifier that finds more of its kind in the wild pool (Xu et al., NeurIPS 2019).

The plain form: the published classifier is the whole teacher, retrained, with attention over the features of its four stages. Ours has the
same attention and the same risk, over the frozen teacher's last features alone.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import distributed
import recipes
from arguments import at_least
from data import DATASETS, load
from losses import nn_pu_risk
from own.teacher import own_info
from training import autocast, learning_rate, rng, seed_init, set_lr
from utils import UserError, say
from wild.reading import Decoder

BATCH = 128  # images that the teacher sees at a time


def add_arguments(g):
    share = at_least(float, 0, strict=True, high=1)
    g.add_argument('--labelled', type=share, metavar='FRACTION', help='of --select pu: the share of the original training images that is '
                   'at hand (default: 0.02, as published)')
    g.add_argument('--prior', type=share, help='of --select pu: the share of the pool that is of the original kind (default: 0.21, '
                   'published for ImageNet beside CIFAR-10)')


def settings(args, select, loss, teacher):
    """What --select pu adds to a run's settings; nothing for another. Raises UserError for flags that don't go together, and for a teacher
    that has no features."""
    given = {flag: getattr(args, flag) for flag in ('labelled', 'prior') if getattr(args, flag)}
    pu = select == 'pu'
    for wrong, why in (
            (given and not pu, f'--{" and --".join(given)} without --select pu: add it'),
            (loss == 'rkd' and args.class_weights, '--loss rkd has class weights of its own: leave --class_weights out'),
            (pu and args.stream, '--select pu trains its classifier on the whole pool, and --stream does not keep it: leave --stream out'),
            (pu and args.wild_norm == 'imagenet', '--select pu normalises wild images as original ones: leave --wild_norm imagenet out'),
            (pu and teacher.dataset not in DATASETS, '--select pu needs a part of the training data: name it with --dataset'),
            (pu and not teacher.has_features(), f"--select pu needs the input of the teacher's last linear layer, and {teacher.arch} does "
             'not show it: give it as a builder with --teacher_weights, or take another --select')):
        if wrong:
            raise UserError(why)
    return ({'class_weights': False} if loss == 'rkd' else {}) | ({'wild_norm': 'teacher', **recipes.PU_CLASSIFIER, **given} if pu else {})


class Found(NamedTuple):
    """What the classifier makes of a pool of N images."""

    images: torch.Tensor  # (n, C, H, W) uint8: the labelled original ones, without their labels
    scores: np.ndarray  # (N,) float32: above 0, of the original kind
    source: str | None  # of the original ones, as of data.Split

    @property
    def worth(self):
        """How many images there are to learn from: the labelled ones, and the wild ones that are of their kind."""
        return len(self.images) + int((self.scores > 0).sum())

    def settle(self, s):
        """The settings s with where the labelled images are from. Raises UserError where num_select, of labelled and wild images together,
        leaves no wild one."""
        if s.num_select <= len(self.images):
            raise UserError(f'num_select={s.num_select}, of which {len(self.images)} are labelled, so no wild image is learned from: raise '
                            '--num_select or --prior, or lower --labelled')
        return s.replace(labelled_data=self.source)

    def beside(self, wild):
        """The selected wild images, a tensor, and the labelled ones behind them. Raises UserError where they don't fit into memory."""
        if not isinstance(wild, torch.Tensor):
            raise UserError('--select pu keeps its images in memory, and they take more than half of it: lower --num_select')
        return torch.cat([wild, self.images.to(wild.device)])


def find_positive(teacher, pool, s):
    """Trains the classifier, and scores the pool with it: a Found, by s.seed alone. Of several processes the first does it for all."""
    train = load(s.dataset, s.data, True, s.cache_dir, Decoder.of(s), own_info(teacher))
    rows = labelled_rows(train.labels, teacher.classes, s.labelled, s.seed)
    scores = distributed.on_first(score_pool, teacher, pool, images := train.images[rows], s)
    say(f'pu: {len(rows)} labelled images; of {len(pool)} wild ones {np.count_nonzero(scores > 0)} are taken for their kind '
        f'(--prior {s.prior:g})')
    return Found(images, scores, train.source)


def labelled_rows(labels, classes, fraction, seed):
    """As many training images of every class, by chance: (n,) int64, ascending; at least one of each. labels: (N,)."""
    order = torch.randperm(len(labels), generator=rng(seed, 'labelled'))
    each = max(1, round(fraction * len(labels) / classes))
    return torch.cat([order[labels[order] == c][:each] for c in range(classes)]).sort()[0]


def score_pool(teacher, pool, images, s):
    positive = features_of(teacher, (images[i : i + BATCH] for i in range(0, len(images), BATCH)))
    unlabelled = features_of(teacher, (pool.take(np.arange(len(pool))[i : i + BATCH]) for i in range(0, len(pool), BATCH)))
    mean, std = unlabelled.mean(dim=0), unlabelled.std(dim=0) + 1e-6
    head = train_head((positive - mean) / std, (unlabelled - mean) / std, s.prior, s.seed)
    with torch.no_grad():
        return torch.cat([head((some - mean) / std) for some in unlabelled.split(4096)]).float().numpy()


@torch.no_grad()
def features_of(teacher, batches):
    """The teacher's last features, (n, F) float64 on the CPU, of batches of uint8 images."""
    with autocast(teacher.device, teacher.amp):
        return torch.cat([teacher.logits_and_features(teacher.normalise(x.to(teacher.device)))[1].cpu().double() for x in batches])


class Head(nn.Module):
    """features (B, F) -> scores (B,): the published attention, which weighs every feature by a number in 0..1, and a linear layer."""

    def __init__(self, features, reduction=16):
        super().__init__()
        self.squeeze = nn.Linear(features, max(1, features // reduction), bias=False)
        self.excite = nn.Linear(max(1, features // reduction), features, bias=False)
        self.linear = nn.Linear(features, 1)

    def forward(self, x):
        return self.linear(x * torch.sigmoid(self.excite(F.relu(self.squeeze(x))))).squeeze(1)


def train_head(positive, unlabelled, prior, seed):
    """A Head by the non-negative risk. positive: (P, F), unlabelled: (U, F), of zero mean and unit variance, float64: so the order of a
    sum's terms, which depends on the number of threads, does not change the selection."""
    seed_init(seed, 'pu')
    c, head = recipes.PU_TRAINING, Head(positive.shape[1]).double()
    optimizer = torch.optim.Adam(head.parameters(), lr=c['lr'], weight_decay=c['weight_decay'])
    generator = rng(seed, 'pu')
    for step in range(c['steps']):
        set_lr(optimizer, learning_rate(c['lr'], 'steps', c['milestones'], step, c['steps']))
        rows = torch.randint(len(unlabelled), (min(len(unlabelled), c['batch_size']),), generator=generator)
        _, objective = nn_pu_risk(head(positive), head(unlabelled[rows]), prior)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    return head


def robust_weights(teacher, images, seed):
    """Class weights of the robust distillation, (C, 2), section 3.2: w_c proportional to 1 / (sum of the teacher's probabilities of c),
    scaled to sum to C, and the same with a random number in 0 .. epsilon added to each. images: uint8, a tensor or a wild.pool.Reader."""
    count = len(images) if isinstance(images, torch.Tensor) else len(images.chosen)
    sums = sum(F.softmax(teacher.logits(images[i : i + BATCH]).cpu().double(), dim=1).sum(dim=0) for i in range(0, count, BATCH))
    w = len(sums) * F.normalize(1 / sums.clamp_min(1e-6), p=1, dim=0)
    noise = recipes.PU_EPSILON * torch.rand(len(w), generator=rng(seed, 'class weights'))
    return torch.stack([w, w + noise], dim=1).float()
