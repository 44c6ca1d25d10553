"""Networks by name, their cost, and the files they are kept in: plain tensors and facts, nothing pickled."""

import hashlib
import itertools
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lenet import LeNet5, LeNet5Half
from resnet import ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from utils import UserError, evaluate, first_line, pick_amp, say, to_device

RESNETS = {'resnet18': ResNet18, 'resnet34': ResNet34, 'resnet50': ResNet50, 'resnet101': ResNet101, 'resnet152': ResNet152}
LENETS = {'lenet5': LeNet5, 'lenet5half': LeNet5Half}
ARCHS = [*LENETS, *RESNETS]
LENET_WIDTH = {'lenet5': 6, 'lenet5half': 3}  # channels of the first convolution, as a ResNet's width is


def resolve_width(arch, width, teacher=None):
    """The width that `arch` is built with, `width` being the user's or None: for a ResNet that of the ResNet whose facts
    `teacher` are, else 64 as published.

    Raises UserError for a LeNet of another width than its own.
    """
    if arch in RESNETS:
        return width or (teacher['width'] if teacher and teacher['arch'] in RESNETS else 64)
    if width not in (None, LENET_WIDTH[arch]):
        raise UserError(f'--width {width}, but {arch} has one width: leave --width out, or take a resnet with --arch')
    return LENET_WIDTH[arch]


def build(arch, width, classes, channels):
    """A fresh network of that architecture; see `ARCHS` and `resolve_width`."""
    if arch in RESNETS:
        return RESNETS[arch](num_classes=classes, in_channels=channels, width=width)
    return LENETS[arch](num_classes=classes, in_channels=channels)


def count_parameters(net):
    return sum(p.numel() for p in net.parameters())


def count_multiply_adds(net, channels, size=32):
    """Multiply-adds of all convolutions and linear layers for one image of `size` x `size`: the tables' FLOPs."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        total += module.weight.numel() * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    hooks = [m.register_forward_hook(add) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    was_training = net.training
    net.eval()  # a batch of one image must not reach the batch norms' statistics
    parameter = next(net.parameters())
    with torch.no_grad():
        net(torch.zeros(1, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


# ---------------------------------------------------------------- files

FACTS = ('arch', 'width', 'classes', 'channels', 'mean', 'std', 'dataset', 'accuracy')


def save_tensors(path, content):
    """torch.save, atomically: a reader, or a run killed in the middle, never meets half a file."""
    path = Path(path)
    partial = path.with_name(path.name + '.partial')
    torch.save(content, partial)
    os.replace(partial, path)


def save_network(path, net, facts):
    """Writes a network as plain tensors beside the facts that rebuild it.

    facts: a dict with the keys of `FACTS`: architecture, width, classes, channels, the mean and std (one float a channel,
    of pixels in 0..1) that its input is normalised with, its data set, and its measured top-1 accuracy in 0..1 or None.
    To make a teacher of your own network, call this with its facts: see the README.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    save_tensors(path, {'facts': {k: facts[k] for k in FACTS}, 'state_dict': state})


def load_network(path):
    """Returns (network in evaluation mode on the CPU, its facts).

    Raises UserError when the file is missing, is not such a file, or does not fit the architecture that it names.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no network file {path}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        facts, state = content['facts'], content['state_dict']
        net = build(facts['arch'], facts['width'], facts['classes'], facts['channels'])
        net.load_state_dict(state)
    except Exception as e:  # torch.load raises a dozen kinds for a damaged file
        raise UserError(f'{path} is not a network that this project saved ({first_line(e)}): train one with teacher-train.py, '
                        'or write yours with networks.save_network (see the README)') from None
    return net.eval(), facts


def find_teacher(where, dataset):
    """The file of the teacher: `where` is the file itself, its run's folder, or an output folder with one such run.

    Raises UserError when there is none, or more than one finished teacher of `dataset` in the output folder.
    """
    where = Path(where)
    train = f'python teacher-train.py --dataset {dataset}' + ('' if str(where) == 'runs' or where.is_file() else f' --output_dir {where}')
    if where.is_file():
        return where
    if not where.is_dir():
        raise UserError(f'no teacher at {where}: train one first with `{train}`, or name its file with --teacher_dir')
    for name in ('teacher.pt', 'student.pt'):
        if (where / name).is_file():
            return where / name
    found = []
    for path in sorted(where.glob('*/teacher.pt')):
        if (path.parent / 'result.json').is_file() and load_network(path)[1]['dataset'] == dataset:
            found.append(path)
    if not found:
        raise UserError(f'no finished {dataset} teacher in {where}: train one first with `{train}`, or name its folder or '
                        'file with --teacher_dir')
    if len(found) > 1:
        names = ', '.join(str(p.parent) for p in found)
        raise UserError(f'{len(found)} {dataset} teachers in {where}, and one is needed: pass --teacher_dir with one of {names}')
    return found[0]


def fold_batch_norms(net):
    """Folds every batch norm into the convolution before it, in place, for a network that only infers: the same function
    with fewer passes over memory. Where the modules of a block stand in the order conv, bn, as in our ResNets."""
    for module in net.modules():
        for (conv_name, conv), (bn_name, bn) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return net


def load_teacher(where, dataset, info, device, amp):
    """The teacher at `where` (see `find_teacher`), frozen and for inference alone, on the device: (network, facts, file).

    facts has two keys more: `digest`, of the weights, to tell teachers apart, and `amp`, the precision to run it in: the user's
    --amp, resolved. info: the data set's, see data.DATASETS. Raises UserError also for the teacher of another data set, and for
    facts that don't fit the data set.
    """
    path = find_teacher(where, dataset)
    net, facts = load_network(path)
    if facts['dataset'] != dataset:
        raise UserError(f'{path} is a teacher of {facts["dataset"]}, and --dataset is {dataset}: change one of the two')
    mean, std, accuracy = facts['mean'], facts['std'], facts['accuracy']
    for wrong, what in ((facts['classes'] != info.classes, f'classes={facts["classes"]}, and {dataset} has {info.classes}'),
                        (facts['channels'] != info.channels, f'channels={facts["channels"]}, and {dataset} has {info.channels}'),
                        (not all(isinstance(x, (list, tuple)) and len(x) == info.channels for x in (mean, std)),
                         f'mean={mean} and std={std}, not a list of one number a channel'),
                        (accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1),
                         f'accuracy={accuracy!r}, not a number in 0..1')):
        if wrong:
            raise UserError(f'the facts in {path} have {what}: write it anew with networks.save_network (see the README)')
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    facts = {**facts, 'digest': digest.hexdigest()[:16], 'amp': pick_amp(amp, device, facts['arch'])}
    net = to_device(fold_batch_norms(net), device).requires_grad_(False)
    if facts['amp'] == 'bf16':
        net.bfloat16()  # as autocast would, but once: it keeps no cast weights where none needs a gradient
    return net, facts, path


def teacher_accuracy(teacher, facts, path, test, normalise, device):
    """The teacher's top-1 in percent, measured on `test` before anything else is done with it, or, where `test` is None, as its
    file has it (None where it has none)."""
    if test is None:
        return None if facts['accuracy'] is None else 100 * facts['accuracy']
    _, top1 = evaluate(teacher, test, normalise, device, facts['amp'])
    say(f'teacher {facts["arch"]}, width {facts["width"]}, from {path}: top-1 {top1:.2f}')
    return top1
