"""Without labelled data: what to take for the teacher's accuracy, and what to measure of the student."""

import numpy as np
import torch

import distributed
from data import Split
from selection import BATCH, Rule, image_digest, scores_of, select
from training import rng
from utils import Damaged, read_json, say, warn, write_json
from wild.pool import open_stream

SAMPLE = 2000  # wild images that the accuracy is estimated from
HELD = 1000  # wild images, at most, that agreement is measured on


def held_out(selection, pool, wild, teacher, seed):
    """A Split of wild images that were not selected, with the teacher's arg-max as labels: top-1 on it is the student's agreement with the
    teacher. None where every image was selected. They are what the rule left, so mostly harder than the selected ones, and the
    agreement is lower than on images as they come. pool: None for a stream, whose first parts are read again."""
    chosen = selection.digests()  # and not positions or names: of a pool that holds an image twice, a copy is no unseen image
    if pool is not None:
        left = np.setdiff1d(np.arange(len(pool)), selection.chosen)
        rows = left[torch.randperm(len(left), generator=rng(seed, 'held out'))[:HELD].numpy()]
        images = unseen(pool.take(np.sort(rows)), chosen) if len(rows) else []
    else:
        images = unseen_of_stream(chosen, wild)
    if not len(images):
        say('no wild image is left to measure agreement on')
        return None
    images = images.to(teacher.device)
    return Split(images, torch.cat([teacher.logits(some).argmax(dim=1) for some in images.split(250)]))


def unseen(images, chosen):
    """Those of the images (B, C, H, W) whose digests are not among the chosen ones'."""
    return images[[image_digest(image) not in chosen for image in images.numpy()]]


def unseen_of_stream(chosen, wild):
    """The first HELD of them, or all."""
    found, count = [], 0
    for part in open_stream(wild, shared=False):
        found.append(unseen(torch.from_numpy(part.images.copy()), chosen))
        count += len(found[-1])
        if count >= HELD:
            break
    return torch.cat(found)[:HELD]


def estimated_accuracy(folder, pool, wild, teacher):
    """That of `estimate`, which is kept in the run's folder: the pool may have more images when the run goes on."""
    file = folder / 'estimate.json'
    kept = distributed.on_first(read_estimate, file)
    value = kept.get('teacher_acc') or estimate(pool, wild, teacher)
    if distributed.rank() == 0 and not kept:
        write_json(file, {'teacher_acc': value})
    return value


def read_estimate(file):
    """What an earlier sitting kept; {} for nothing."""
    try:
        return read_json(file) if file.is_file() else {}
    except Damaged:
        warn(f"{file} is damaged: the teacher's accuracy is estimated again")
        return {}


def estimate(pool, wild, teacher):
    """The teacher's accuracy in 0..1, from unlabelled images alone: the mean of two confidences (a confidence is the mean of the greatest
    softmax probability), that on SAMPLE wild images and that on their surest quarter, balanced over the predicted classes. On images
    of other things a teacher is less sure than on its own, and on the surest of them surer than it is right: the truth lay mostly
    between. docs/your-own.md has the error on teachers whose accuracy is known. pool: None for a stream, whose first images are read."""
    if pool is not None:
        images = pool.take(np.linspace(0, len(pool) - 1, min(SAMPLE, len(pool))).round().astype(np.int64))
    else:
        parts, count = [], 0
        for part in open_stream(wild, shared=False):
            parts.append(part.images)
            count += len(part.names)
            if count >= SAMPLE:
                break
        images = torch.from_numpy(np.concatenate(parts)[:SAMPLE])
    noise, _, labels = (torch.cat(x).cpu().numpy() for x in zip(*(scores_of(teacher, some) for some in images.split(BATCH))))
    surest = select(noise, labels, Rule('balanced', max(1, len(noise) // 4), 0), teacher.classes)
    value = (np.exp(-noise).mean() + np.exp(-noise[surest]).mean()) / 2
    value = distributed.total(torch.tensor([float(value)], device=teacher.device)).item() / distributed.world()
    say(f"the teacher's accuracy is not known: estimated as {value:.3f} by its confidence on {len(noise)} wild images, for the adaptation "
        "matrix's diagonal; --teacher_acc gives a better one")
    return value
