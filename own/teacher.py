"""The Teacher: any trained network, and all that must be known of it, stated, told by flags or found by a probe."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data import DATASETS, DatasetInfo
from networks import (
    ARCHS,
    FACTS,
    IMAGENET,
    SIZE,
    Normalise,
    count_multiply_adds,
    count_parameters,
    find_teacher,
    fold_batch_norms,
)
from own.made import digest_of
from own.probe import (
    SIZES,
    Outputs,
    check_facts,
    check_repeats,
    check_trained,
    doubts,
    image_channels,
    normalisation,
    output_kind,
    probe,
    read_names,
)
from own.spec import FORMS, make
from training import autocast, evaluate, pick_amp, rng, to_device
from utils import UserError, say, warn

TRIED = 1000  # test images, at most, to find the cause of a wrong accuracy on


class Wanted(NamedTuple):
    """What the flags say of the teacher; None where they say nothing."""

    spec: str
    weights: str | None = None
    width: int | None = None
    output: str | None = None  # of probe.OUTPUTS
    mean: list | None = None
    std: list | None = None
    size: int | None = None
    channels: str | None = None  # '1', '3' or 'bgr'
    class_names: list | None = None

    @classmethod
    def of(cls, args):
        """By the flags. The spec is the output folder where none is given: it holds the teacher's run."""
        return cls(args.teacher_dir or args.output_dir, args.teacher_weights, args.teacher_width, args.teacher_output, args.mean,
                   args.std, args.size, args.channels, args.class_names)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network for inference alone, and all that is known of it."""

    net: nn.Module  # frozen, on `device`, in the precision `amp`: its logits by logits()
    arch: str  # one of ours, or the SPEC; this and what follows: see networks.save_network
    width: int | None
    classes: int
    channels: int  # of its input, (B, channels, size, size)
    mean: tuple
    std: tuple
    dataset: str  # 'none' where there is no labelled data
    accuracy: float | None  # in 0..1, as its file states it
    digest: str  # of its weights: tells teachers apart
    device: torch.device
    amp: str  # 'bf16' or 'off'
    file: Path
    class_names: tuple
    size: int = SIZE
    output: str = 'logits'  # what the network itself gives
    black_box: bool = False  # gives outputs alone: no gradients, no features
    parameters: int | None = None
    named: bool = True  # whether somebody states class_names; else they are numbers
    notes: tuple = ()  # what is said of it after the first line

    @functools.cached_property
    def normalise(self):
        return Normalise(self.mean, self.std, self.device)

    def normalised_by_imagenet(self):
        """The same network behind ImageNet's normalisation; for grey images, by the mean of its three channels."""
        mean, std = (s if self.channels == 3 else (sum(s) / 3,) for s in IMAGENET)
        return dataclasses.replace(self, mean=mean, std=std)

    @torch.no_grad()
    def logits(self, images):
        """images: (B, channels, size, size), uint8 pixels on any device, or float, normalised already. Returns float32 (B, classes)."""
        x = images if images.is_floating_point() else self.normalise(images.to(self.device))
        with autocast(self.device, self.amp):
            return self.net(x).float()

    def has_features(self):
        """Whether it shows the input of a last linear layer, and passes gradients on."""
        return not self.black_box and (not isinstance(self.net, Outputs) or self.last_linear is not None)

    def check_gradients(self):
        """Raises UserError for a network whose gradients and features DAFL can't have."""
        if not self.has_features():
            why = 'gives outputs alone' if self.black_box else 'has no linear layer'
            raise UserError(f"a generator needs the teacher's gradients and the input of its last linear layer, and {self.arch} {why}: use "
                            'DFND-train.py with wild images, or give the network as a builder with --teacher_weights')
        if self.size % 4:
            raise UserError(f"the generator draws images whose side is a multiple of 4, and the teacher takes {self.size}: use "
                            'DFND-train.py with wild images')

    @functools.cached_property
    def last_linear(self):
        """The linear layer that runs last, or None."""
        ran = []
        hooks = [m.register_forward_hook(lambda module, *_: ran.append(module)) for m in self.net.modules() if isinstance(m, nn.Linear)]
        self.logits(torch.zeros(1, self.channels, self.size, self.size, device=self.device))
        for hook in hooks:
            hook.remove()
        return ran[-1] if ran else None

    def logits_and_features(self, images):
        """With gradients, for DAFL. images: (B, channels, size, size), normalised. Returns (B, classes) and the features (B, F): the input
        of the last linear layer, or, of our own networks, what DAFL's paper takes."""
        if not isinstance(self.net, Outputs):
            return self.net(images, out_feature=True)
        seen = []
        hook = self.last_linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits = self.net(images)
        hook.remove()
        return logits, seen[-1].flatten(1)

    def facts(self, **changes):
        """What save_network takes beside a student of this teacher."""
        values = {k: getattr(self, k) for k in FACTS} | ({} if self.named else {'class_names': None})
        return {**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}, **changes}

    def multiply_adds(self):
        """For one image; None for a black box."""
        return None if self.black_box else count_multiply_adds(self.net, self.channels, self.size)

    def measure(self, test):
        """Top-1 in percent on the labelled split `test`, or, where that is None, as the teacher's file has it (None where it has none).
        Says what the teacher is, and warns where its accuracy is not what its file states, or that of guessing."""
        top1 = stated = None if self.accuracy is None else 100 * self.accuracy
        accuracy = 'accuracy unknown' if top1 is None else f'accuracy {top1:.2f} as its file states'
        if test is not None:
            _, top1 = evaluate(self.net, test, self.normalise, self.device, self.amp)
            accuracy = f'top-1 {top1:.2f}'
        numbers = ', '.join(f'{name} {" ".join(f"{x:.4g}" for x in values)}' for name, values in (('mean', self.mean), ('std', self.std)))
        width = f', width {self.width}' if self.width else ''
        say(f'teacher {self.arch}{width}, from {self.file}: {accuracy}; {self.classes} classes, '
            f'{self.channels} x {self.size} x {self.size}, {numbers}, gives {self.output}')
        for note in self.notes:
            say(f'teacher: {note}')
        if test is None:
            return top1
        wrong = [f'its file states {stated:.2f} %'] if stated is not None and abs(stated - top1) > 1 else []
        guessing = 100 / self.classes
        wrong += [f'guessing gives {guessing:.2f} %'] if top1 < guessing + min(guessing / 2, 10) else []
        if wrong:
            warn(f'the teacher is right on {top1:.2f} % of the test images, and {" and ".join(wrong)}: check --mean and --std (of '
                 'pixels in 0..1, not swapped), the size of its images, the order of the classes, and RGB against BGR (--channels bgr). '
                 + self.likely_cause(test, top1))
        return top1

    def likely_cause(self, test, top1):
        """A sentence: which of the usual mistakes, undone, raises the accuracy on some test images most."""
        rows = torch.randperm(len(test.labels), generator=rng(0, 'cause'))[:TRIED]
        images, labels = test.images[rows], test.labels[rows.to(test.labels.device)].to(self.device)
        mean, std = self.mean, self.std
        tried = {'mean and std swapped': (std, mean), 'pixels on the scale 0..255': ((0.0,) * len(mean), (1 / 255,) * len(mean)),
                 'pixels as they are in 0..1': ((0.0,) * len(mean), (1.0,) * len(mean)),
                 "ImageNet's mean and std": IMAGENET if self.channels == 3 else (mean, std),
                 'mean and std 0.5': ((0.5,) * len(mean), (0.5,) * len(mean))}
        if self.dataset in DATASETS and DATASETS[self.dataset].mean:
            tried[f"the mean and std of {self.dataset}"] = (DATASETS[self.dataset].mean, DATASETS[self.dataset].std)

        def guesses(images, mean, std):
            teacher = dataclasses.replace(self, mean=mean, std=std)
            return torch.cat([teacher.logits(some).argmax(dim=1) for some in images.split(250)])

        found = {name: guesses(images, *values) for name, values in tried.items() if all(values[1])}
        if self.channels == 3:
            found['BGR (--channels bgr, with --mean and --std in that order)'] = guesses(images.flip(1), mean[::-1], std[::-1])
        shares = {name: 100 * (guess == labels).float().mean().item() for name, guess in found.items()}
        counts = torch.bincount(guesses(images, mean, std) * self.classes + labels, minlength=self.classes**2)
        most, classes = counts.view(self.classes, -1).max(dim=1)  # for every output the true class that it is given most often to
        if len(classes.unique()) == self.classes:
            shares['another order of the classes'] = 100 * most.sum().item() / len(labels)
        best = max(shares, key=shares.get)
        if shares[best] < top1 + 5:
            return f'None of these, tried on {len(labels)} images, is much better.'
        return f'Likely cause: with {best} it is right on {shares[best]:.1f} % of {len(labels)} images.'


def own_info(teacher):
    """What data.DATASETS says of the teacher's data set, or would say of one that nobody has: colour images may be mirrored, grey ones may
    be characters."""
    if teacher.dataset in DATASETS:
        return DATASETS[teacher.dataset].of_teacher(teacher)
    small = teacher.size == SIZE and teacher.channels == 1
    return DatasetInfo(teacher.classes, teacher.channels, teacher.mean, teacher.std, teacher.channels == 3, 'none',
                       'lenet5half' if small else 'resnet18', ('stl10',) if teacher.channels == 3 else ('emnist', 'usps'),
                       teacher.class_names if teacher.named else ())


def find_spec(wanted, dataset):
    """The SPEC of the teacher, in which a folder has become the file of the teacher in it."""
    spec = str(wanted.spec)
    where = Path(spec).expanduser()
    if where.is_dir():
        return str(find_teacher(where, dataset))
    if where.is_file():
        return str(where)
    if ':' not in spec and spec not in ARCHS:
        raise UserError(f'no teacher {spec}: it is no file, no folder and no builder. Train one with `python teacher-train.py '
                        f'--dataset {dataset or "MNIST"}`, or give {FORMS}')
    return spec


def load_teacher(wanted, dataset, info, device, amp, fold=True):
    """The Teacher that `wanted`, a Wanted or a path, stands for, on the device. dataset: its name, or None: then the one that the teacher's
    file names, or 'none'. info: of data.DATASETS, or None. amp: the user's --amp. fold: whether our own networks' batch norms are folded.
    Raises UserError for what can't be used, and for what contradicts the data set, the flags or itself."""
    wanted = wanted if isinstance(wanted, Wanted) else Wanted(str(wanted))
    spec = find_spec(wanted, dataset)
    bgr = wanted.channels == 'bgr'
    channels = 3 if bgr else wanted.channels and int(wanted.channels)
    if not wanted.weights and (spec in ARCHS or spec.startswith(('torchvision:', 'timm:'))):
        raise UserError(f'{spec} alone has random weights: give its trained ones with --teacher_weights FILE')
    build = functools.partial(make, spec, wanted.weights, wanted.width, info and info.classes, channels or (info and info.channels))
    made = build()
    facts = {k: v for k, v in made.facts.items() if v is not None}
    dataset = dataset or facts.get('dataset', 'none')
    info = info or DATASETS.get(dataset)
    check_facts(spec, facts, dataset, info)

    # what goes in
    for key, given in (('channels', channels), ('size', wanted.size)):
        if given and facts.get(key, given) != given:
            raise UserError(f'--{key} {wanted[Wanted._fields.index(key)]}, but {spec} takes {key} {facts[key]}: leave --{key} out')
    counts = channels or facts.get('channels') or image_channels(made.call) or (info and info.channels)
    size = wanted.size or facts.get('size') or (info and SIZE) or made.advice.get('size')
    net = made.call
    if isinstance(net, nn.Module):
        net = net.to(device)
    plain = Outputs(net, bgr=bgr, batch=facts.get('batch')).eval()
    if counts not in (None, 1, 3):
        raise UserError(f'{spec} takes images of {counts} channels, and images have 1 or 3: give a network of these')
    counts, size, y = probe(spec, plain, [counts] if counts else [3, 1], [size] if size else SIZES, device)
    check_repeats(spec, plain, y, counts, size)
    if made.kind in ('builder', 'function') and not wanted.weights and not Path(spec).is_file():
        check_trained(spec, made, build, plain, y, (counts, size))
    for key, own in (('channels', counts), ('classes', y.shape[1])):
        if info and getattr(info, key) not in (None, own):
            raise UserError(f'{spec} has {key}={own}, and {dataset} has {getattr(info, key)}: change --dataset or the teacher')
    mean, std, notes = normalisation(wanted, made, info, counts, bgr)
    output = output_kind(spec, y, wanted.output)
    notes += [] if wanted.output or output != 'logits' else doubts(spec, y)

    # the network, ready to infer
    parameters = count_parameters(net) if isinstance(net, nn.Module) else None
    asked, amp = amp, 'off' if made.black_box else pick_amp(amp, device, made.facts.get('arch', ''))
    if made.kind == 'builder' and amp == 'bf16' and asked == 'auto':
        try:
            with autocast(device, amp):
                probe(spec, plain, [counts], [size], device)
        except UserError:
            amp = 'off'
            notes.append('in float32, since it can not run in bfloat16')
    if made.kind == 'ours' and not bgr:
        net = to_device(fold_batch_norms(net) if fold else net, device)
        if amp == 'bf16':
            net.bfloat16()  # as autocast would, but once: it keeps no cast weights where none needs a gradient
    else:
        net = Outputs(net, output, bgr, facts.get('batch'))
    if 'size' in made.advice and not (wanted.size or facts.get('size')):
        notes.append(f'images of {size} x {size}, as {"the data set" if info else spec} has them: --size gives another')
    if made.undone:
        notes.insert(0, f'weights {wanted.weights}: {"; ".join(made.undone)}')
    names, stated = wanted.class_names, facts.get('class_names')
    names = read_names(names, y.shape[1], stated) if names else stated or (info and info.names)
    digest = made.digest
    if made.kind == 'function':  # which may read its weights from any file: so what it gives tells it, too
        few = y.cpu() @ torch.randn(y.shape[1], 4, generator=rng(0, 'digest'))  # and coarse, since processors differ
        digest = digest_of(' '.join([digest, *(f'{value:.2g}' for value in few.flatten().tolist())]).encode())
    if output != 'logits' or bgr:
        digest = digest_of(f'{digest} {output} {bgr}'.encode())
    return Teacher(
        net.eval().requires_grad_(False), made.facts.get('arch', spec), made.facts.get('width'), y.shape[1], counts, mean, std, dataset,
        facts.get('accuracy'), digest, device, amp, Path(wanted.weights or spec), tuple(names or map(str, range(y.shape[1]))), size, output,
        made.black_box, parameters, bool(names), tuple(notes))
