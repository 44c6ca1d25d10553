"""What a network takes and gives, found by running it: sizes, channels, classes, logits or probabilities; and what flags and files say."""

import types
from pathlib import Path

import torch
from torch import nn

from data import DATASETS
from networks import wrong_values
from own.weights import plain_line
from training import rng
from utils import UserError, read_lines

OUTPUTS = ('logits', 'probabilities', 'log_probabilities')
SIZES = (32, 28, 64, 96, 128, 224, 299, 384)  # tried, where nobody says
REPEATS = 0.1  # of the largest number: weights that are quantised as they run differ by less, batch norm in training mode by more


class Outputs(nn.Module):
    """Any network as one that takes our images and gives logits: BGR order, fixed batches, tuples and probabilities are its matter.

    log p serves as logits: the softmax of it is p, and distillation and noise read nothing else. (The energy, logsumexp, is lost: 0.)"""

    def __init__(self, call, output='logits', bgr=False, batch=None):
        super().__init__()
        self.call, self.output, self.bgr, self.batch = call, output, bgr, batch

    def forward(self, x):
        # a copy, as the network may work in place; and contiguous: many can't read channels_last
        x = (x.flip(1) if self.bgr else x).clone(memory_format=torch.contiguous_format)
        if self.batch:  # as many as it takes at a time, the last ones filled up
            pad = -len(x) % self.batch
            parts = torch.cat([x, x[-1:].expand(pad, *x.shape[1:])]).split(self.batch)
            y = torch.cat([scores(self.call(part)) for part in parts])[: len(x)]
        else:
            y = scores(self.call(x))
        y = y.to(x.device)  # of what runs on the CPU alone
        return y.float().clamp_min(torch.finfo(torch.float32).tiny).log() if self.output == 'probabilities' else y


def scores(outputs):
    """The tensor (B, classes) among a network's outputs: a tensor, an array, a tuple (its first: others are auxiliary), or a dictionary or
    object with logits. Raises UserError where it can't be told."""
    if hasattr(outputs, 'keys'):
        if 'logits' not in outputs and len(outputs) != 1:
            raise UserError(f'it gives {", ".join(map(str, outputs))}, and none is named logits')
        outputs = outputs['logits'] if 'logits' in outputs else next(iter(outputs.values()))
    outputs = getattr(outputs, 'logits', outputs)
    if isinstance(outputs, (tuple, list)) and len(outputs):
        widths = [len(y[0]) for y in outputs if getattr(y, 'ndim', 0) == 2 and len(y)]
        if len({*widths}) > 1:
            raise UserError(f'it gives outputs of {" and ".join(map(str, widths))} numbers an image, and none is named logits')
        outputs = outputs[0]
    y = torch.as_tensor(outputs)
    if y.ndim == 4 and y.shape[2:] == (1, 1):
        y = y.flatten(1)
    if y.ndim != 2:
        raise UserError(f'its output has the shape {tuple(y.shape)}, where (images, classes) is expected')
    return y


def images_to_try(count, channels, size):
    """Random images, (count, channels, size, size), always the same ones."""
    return torch.randn(count, channels, size, size, generator=rng(0, 'probe'))


@torch.no_grad()
def probe(name, net, channels, sizes, device):
    """Runs `net` on random images of every count of `channels` and every one of `sizes`. Returns (channels, size, outputs (4, classes)).
    Raises UserError where it runs on none of them, or on several."""
    found, reason = {}, ''
    for count in channels:
        for size in sizes:
            x = images_to_try(4, count, size).to(device)
            try:
                y = net(x)
                if not isinstance(y, torch.Tensor):
                    raise UserError(f'it gives a {type(y).__name__} and no tensor')
                y = y.float()
                if len(y) != len(x):
                    raise UserError(f'{len(x)} images gave {len(y)} rows')
                found[count, size] = y
            except Exception as e:  # whatever the network of a stranger raises
                reason = reason or (f'{e}; a function of yours can give the logits alone' if isinstance(e, UserError) else plain_line(e))
    if not found:
        tried = ' or '.join(f'{count} x {size} x {size}' for count in channels for size in sizes[:3])
        hint = 'give its input with --channels and --size' if len(channels) * len(sizes) > 1 else 'give another --size or --channels'
        if isinstance(getattr(net, 'call', None), types.FunctionType):
            hint += ', or, if it builds a network and takes no images, give its parameters defaults'
        elif (first := first_convolution(net)) not in (None, 1, 3):
            hint += f', or another network: its first convolution takes {first} channels, and images have 1 or 3'
        raise UserError(f'{name} can not take images of {tried} ({reason}): {hint}')
    if len({count for count, _ in found}) > 1 or len(found) > 1:
        flag = '--channels' if len({count for count, _ in found}) > 1 else '--size'
        raise UserError(f'{name} takes images of {" and ".join(f"{c} x {s} x {s}" for c, s in found)}: say with {flag} which it was '
                        'trained on')
    (count, size), y = found.popitem()
    if y.shape[1] < 2:
        raise UserError(f'{name} gives {y.shape[1]} number an image, where one for each class is expected: of two classes, 0 and the '
                        'number before the sigmoid, as a function of yours may join them')
    if not takes_one(net, torch.zeros(1, count, size, size, device=device), y):
        raise UserError(f'{name} takes four images at a time and not one alone, as the last of a pool may be: keep the first dimension in '
                        'it, as flatten(1) does and squeeze() does not')
    if not torch.isfinite(y).all():
        raise UserError(f'{name} gives numbers that are not finite: check its weights')
    return count, size, y


def takes_one(net, x, y):
    """Whether the network gives an image alone, x, a row like those of several, y."""
    try:
        return net(x).shape == y[:1].shape
    except Exception:  # see probe
        return False


@torch.no_grad()
def check_repeats(name, net, y, channels, size):
    """Raises UserError for a network that does not give an image the same numbers again, or not when it is alone: one that was traced, or
    is used, in training mode. y: what it gave to `probe`."""
    x = images_to_try(len(y), channels, size).to(y.device)
    others = torch.cat([x[:1], 0.2 * x[1:] + 1])  # of another mean and variance, as random images alone are like random images among others
    for z, why in ((net(x), 'the second time, as dropout does'), (net(x[:1]), 'alone than among others, as batch norm does'),
                   (net(others)[:1], 'among other images, as batch norm does')):
        if (z - y[: len(z)]).abs().max() > REPEATS * y.abs().max():
            raise UserError(f'{name} gives the same image other numbers {why} in training mode: call eval() before it is saved or used')


def output_kind(name, y, told=None):
    """Which of OUTPUTS the rows of y (B, classes) are. told: what the user says; a contradiction raises UserError."""
    kind = 'logits'
    if (y >= 0).all() and torch.allclose(y.sum(dim=1), torch.ones(len(y), device=y.device), atol=1e-3):
        kind = 'probabilities'
    elif (y <= 0).all() and torch.allclose(torch.logsumexp(y, dim=1), torch.zeros(len(y), device=y.device), atol=1e-3):
        kind = 'log_probabilities'
    if told not in (None, kind):
        row = ' '.join(f'{value:.3g}' for value in y[0, :4].tolist())
        raise UserError(f'--teacher_output {told}, but {name} gives {kind}: its first row begins {row}. Leave the flag out')
    return kind


def doubts(name, y):
    """What is said of y (B, classes) that are hardly logits, though no probabilities either: a list of lines. Raises UserError for
    percentages."""
    total = y.sum(dim=1)
    if (y >= 0).all() and torch.allclose(total, torch.full_like(total, 100), atol=0.1):
        raise UserError(f'{name} gives percentages: give logits, or probabilities that add up to 1')
    unit = (y >= 0).all() and (y <= 1).all() and y.any()
    return ['all its numbers are in 0..1 and do not add up to 1: if it ends with a sigmoid, give what comes before'] * bool(unit)


def first_convolution(net):
    """The channels that it takes, or None. The image may be folded before it, and another convolution come first among the modules."""
    return next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), None) if isinstance(net, nn.Module) else None


def image_channels(net):
    """Of the first convolution, where they can be an image's; else None."""
    return found if (found := first_convolution(net)) in (1, 3) else None


@torch.no_grad()
def check_trained(name, made, build, plain, y, shape):
    """Raises UserError for what makes other weights each time. build: a call that gives a Made once more. plain: the Outputs of this one, y
    what it gave to `probe`, shape: (channels, size). Of a function, whose weights nobody sees, what it gives is compared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        again = build()
    differs = again.digest != made.digest
    if made.kind == 'function' and not differs:
        z = Outputs(again.call, bgr=plain.bgr)(images_to_try(len(y), *shape).to(y.device))
        differs = (z - y).abs().max() > REPEATS * y.abs().max()
    if differs:
        raise UserError(f'{name} makes other weights each time, so they are random, at least some: give the trained ones with '
                        '--teacher_weights FILE, or load them there')


def as_tuple(flag, values, channels):
    """One number a channel. Raises UserError for another count; a single number serves every channel."""
    values = tuple(float(value) for value in (values if isinstance(values, (list, tuple)) else [values]))
    if len(values) not in (1, channels):
        raise UserError(f'{flag} has {len(values)} numbers, and the images have {channels} channels: give one a channel')
    return values if len(values) == channels else values * channels


def on_unit_scale(mean, std):
    """(mean, std) of pixels in 0..1, what was undone in words or None. Neither can be above 1 on that scale, so what is above is of pixels
    in 0..255. Raises UserError for a std that is not above 0."""
    if min(std) <= 0:
        raise UserError(f'--std {" ".join(f"{x:g}" for x in std)}, but each must be above 0')
    wide = max(mean) > 1, max(std) > 1
    if not any(wide):
        return mean, std, None
    both = wide[1] or max(std) == 1  # (x - mean) / 1 of pixels in 0..255, as Caffe has it
    mean, std = tuple(x / 255 for x in mean), tuple(x / 255 for x in std) if both else std
    return mean, std, f'{"mean and std are" if both else "mean is"} on the scale 0..255: divided by 255'


def read_names(names, classes, stated=()):
    """The names of the classes, of a flag's words or of a text file with one a line. stated: those in the teacher's file, or none. Raises
    UserError for another count than `classes`, for a name twice, and for others than those stated."""
    if len(names) == 1 and Path(names[0]).is_file():
        names = read_lines(names[0])
    if len(names) != classes:
        none = f', and there is no file {names[0]}' if len(names) == 1 else ''
        raise UserError(f'--class_names has {len(names)} names, and the teacher has {classes} classes{none}: give one for each, in the '
                        'order of its outputs')
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'--class_names has {", ".join(twice)} more than once: give each class a name of its own')
    if stated and [*map(str, stated)] not in ([*names], [*map(str, range(classes))]):  # numbers stand for classes without names
        raise UserError(f"--class_names differ from those in the teacher's file, {', '.join(map(str, stated))}: leave them out")
    return tuple(map(str, names))


def check_facts(spec, facts, dataset, info):
    """Raises UserError for the facts of a file that don't fit the data set, or are none."""
    if dataset != 'none' and facts.get('dataset') in DATASETS and facts['dataset'] != dataset:
        raise UserError(f'{spec} is a teacher of {facts["dataset"]}, and --dataset is {dataset}: change one of the two')
    wrong = [f'{key}={facts[key]}, and {dataset} has {getattr(info, key)}' for key in ('classes', 'channels')
             if info and None not in (facts.get(key), getattr(info, key)) and facts[key] != getattr(info, key)]
    if first := [*wrong, wrong_values(facts)][0]:
        raise UserError(f'in the facts of {spec}, {first}: write it again with networks.save_network (see its docstring)')


def normalisation(wanted, made, info, channels, bgr):
    """(mean, std, a list of notes), red first: the flags', else the file's, else the builder's, else the data set's. Of a bgr network the
    flags' are blue first. Raises UserError where nobody knows them, or flags and file differ."""
    values, notes = {}, []
    for key in ('mean', 'std'):
        given, stated = getattr(wanted, key), made.facts.get(key)
        sources = ((given, None), (stated, None), (made.advice.get(key), f'as {wanted.spec} has them for its own weights'),
                   (info and getattr(info, key), 'as the data set has them'))
        value, source = next(((v, n) for v, n in sources if v not in (None, ())), (None, None))
        if value is None:
            raise UserError(f"nobody says what mean and std {wanted.spec}'s input is normalised with: give --mean and --std, of pixels in "
                            "0..1, one number a channel; ImageNet's are --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225, and an input of "
                            '0..1 as it is has --mean 0 --std 1')
        values[key] = as_tuple(f'--{key}', value, channels)[:: -1 if bgr and given is not None else 1]
        notes = [f'mean and std {source}'] if source else notes
    mean, std, undone = on_unit_scale(values['mean'], values['std'])
    notes += [undone] if undone else []
    stated = [made.facts.get(key) for key in ('mean', 'std')]
    if all(stated) and any(abs(a - b) > 1e-3 for a, b in zip(mean + std, sum(map(tuple, on_unit_scale(*map(tuple, stated))[:2]), ()))):
        raise UserError(f'--mean or --std differ from those in {wanted.spec}, {stated[0]} and {stated[1]}: leave them out')
    return mean, std, notes + ['BGR; --mean and --std are taken in that order'] * bgr
