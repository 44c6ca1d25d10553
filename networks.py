"""Networks by name, and the files that they are kept in (plain tensors and facts, nothing pickled)."""

import itertools
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from lenet import LeNet5, LeNet5Half
from resnet import ResNet18, ResNet34
from utils import Damaged, UserError, checked, first_line, written_aside

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std
SIZE = 32  # of a network's input, unless its file says otherwise; MNIST's 28 are resized, as published
ARCHS = {'lenet5': LeNet5, 'lenet5half': LeNet5Half, 'resnet18': ResNet18, 'resnet34': ResNet34}
LENET_WIDTH = {'lenet5': 6, 'lenet5half': 3}  # channels of the first convolution, as a ResNet's width is
FACTS = ('arch', 'width', 'classes', 'channels', 'mean', 'std', 'dataset', 'accuracy', 'size', 'class_names')  # beside the weights
LATER = {'size': SIZE, 'class_names': None}  # of FACTS, those that older files lack
WRAPPERS = 'DataParallel', 'DistributedDataParallel', 'OptimizedModule'  # that hold a network, and are none
RESNET_WIDTH = 8  # at least: the backward pass of a 1 x 1 strided convolution of fewer channels crashes oneDNN on CPUs without AVX-512


def unwrapped(net):
    """The network within DataParallel or a compiled one, or itself."""
    while type(net).__name__ in WRAPPERS:
        net = next(net.children())
    return net


def resolve_width(arch, width, teacher=None, size=SIZE):
    """The width that `arch` is built with, `width` being the user's or None: for a ResNet that of `teacher`, where it is a ResNet
    too, else 64 as published. size: of its input, where there is no teacher to tell. Raises UserError for a width, or a size, that the
    architecture can't have."""
    size = teacher.size if teacher else size
    if arch in LENET_WIDTH:
        if size != SIZE:
            raise UserError(f'{arch} takes {SIZE} x {SIZE} pixels alone, and the size is {size}: give --size {SIZE}, or take a resnet '
                            'with --arch')
        if width not in (None, LENET_WIDTH[arch]):
            raise UserError(f'--width {width}, but {arch} has one width: leave --width out, or take a resnet with --arch')
        return LENET_WIDTH[arch]
    width = width or (teacher.width if teacher and teacher.arch not in LENET_WIDTH else None) or 64
    if width < RESNET_WIDTH:
        raise UserError(f'the width {width} is too small for a {arch}: give --width {RESNET_WIDTH} or more')
    return width


def build(arch, width, classes, channels):
    """A fresh network; width: see `resolve_width`."""
    return ARCHS[arch](classes, channels, **({} if arch in LENET_WIDTH else {'width': width}))


def count_parameters(net):
    return sum(p.numel() for p in net.parameters())


def count_multiply_adds(net, channels, size=SIZE):
    """Multiply-adds of all convolutions and linear layers for one image of `size` x `size`: the tables' FLOPs. None where torch's counter
    can't follow the network."""
    was_training, parameter = net.training, next(net.parameters(), torch.zeros(()))
    net.eval()  # a batch of one image must not reach the batch norms' statistics
    counter = FlopCounterMode(display=False)
    try:
        with torch.enable_grad(), counter:  # without, it fails at a view of a parameter, such as a class token's
            net(torch.zeros(1, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    except Exception:  # whatever a stranger's network does: a training is not to be lost for it
        return None
    finally:
        net.train(was_training)
    return counter.get_total_flops() // 2  # a multiply-add is two of torch's


def save_network(path, net, facts):
    """Writes a network as plain tensors beside the facts that rebuild it, a dict with the keys of `FACTS`: architecture, width,
    classes, channels, the mean and std (one float a channel, of pixels in 0..1) that its input is normalised with, its data set,
    its measured top-1 accuracy in 0..1 or None, and, where they are not `LATER`'s, its input's size and its classes' names. arch: one of
    ARCHS, or the SPEC of another builder (see own/spec.py). Numbers may be NumPy's or torch's, and the network may be within DataParallel
    or compiled. Raises UserError for what could not be read again."""
    net = unwrapped(net)
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    facts = {k: as_plain(v) for k, v in {**LATER, **facts}.items() if k in FACTS}
    if wrong := wrong_facts(facts, state):
        raise UserError(f'{path} is not written, {wrong}: see the docstring of networks.save_network')
    with written_aside(path) as file:
        torch.save({'facts': facts, 'state_dict': state}, file)


def as_plain(value):
    """A number, a list or a tuple of Python's, of one of NumPy's or torch's."""
    value = value.tolist() if hasattr(value, 'tolist') else value
    return type(value)(map(as_plain, value)) if type(value) in (list, tuple) else value


def wrong_facts(facts, state):
    """What a network's file can't have, in words; None for nothing."""
    if missing := [key for key in FACTS if key not in facts]:
        return f'the facts lack {", ".join(missing)}'
    if wrong := wrong_values(facts):
        return wrong
    if facts['arch'] in ARCHS:
        with torch.device('meta'):
            expected = build(*(facts[key] for key in ('arch', 'width', 'classes', 'channels'))).state_dict()
        if other := [key for key in sorted(expected.keys() | state.keys())
                     if key not in expected or key not in state or expected[key].shape != state[key].shape]:
            return f'the network is no {facts["arch"]} of width {facts["width"]}: {other[0]} is another'
    return None


def wrong_values(facts):
    """What is wrong with the mean, std and accuracy among a network's facts, in words; None for nothing, or where they are not there."""
    for key in ('mean', 'std'):
        some = facts.get(key) if isinstance(facts.get(key), (list, tuple)) else ()
        if key in facts and (len(some) != facts['channels'] or not all(isinstance(x, (int, float)) for x in some)):
            return f'{key}={facts[key]!r} is not a list of one float a channel'
    accuracy = facts.get('accuracy')
    if accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1):
        return f'accuracy={accuracy!r} is not a number in 0..1'
    return None


def load_network(path):
    """Returns (network in evaluation mode on the CPU, its facts). Raises UserError for what is no such file, Damaged for one whose
    checksum is wrong."""
    if not Path(path).is_file():
        raise UserError(f'no network file {path}')
    try:
        content = torch.load(checked(path), map_location='cpu', weights_only=True)
        facts, state = {**LATER, **content['facts']}, content['state_dict']
        net = build(facts['arch'], facts['width'], facts['classes'], facts['channels'])
        net.load_state_dict(state)
    except Damaged as e:
        raise Damaged(f'{e}: copy it again, or train it again') from None
    except Exception as e:  # torch.load raises a dozen kinds for a damaged file
        raise UserError(f'{path} is not a network of this project ({first_line(e)}): train one with teacher-train.py, or write yours with '
                        'networks.save_network, or see docs/your-own.md; own.spec.make(FILE) reads a student of another builder') from None
    return net.eval(), facts


def find_teacher(where, dataset):
    """The file of the teacher: `where` is the file itself, its run's folder, or an output folder with one finished teacher of `dataset`
    (of any, where that is None or 'none'). Raises UserError when there is none, or more than one."""
    where = Path(where)
    for path in (where, where / 'teacher.pt', where / 'student.pt'):
        if path.is_file():
            return path
    finished = [path for path in sorted(where.glob('*/teacher.pt')) if path.with_name('result.json').is_file()]
    found = [path for path in finished if dataset in (None, 'none', load_network(path)[1]['dataset'])]
    if not found:
        if dataset in (None, 'none'):
            raise UserError(f'no finished teacher in {where}: name its file, its folder or its builder with --teacher')
        output = '' if where == Path('runs') else f' --output_dir {where}'
        raise UserError(f'no finished {dataset} teacher in {where}: train one first with `python teacher-train.py --dataset {dataset}'
                        f'{output}`, or name its folder or file with --teacher')
    if len(found) > 1:
        names = ', '.join(str(p.parent) for p in found)
        raise UserError(f'{len(found)} {dataset} teachers in {where}, and one is needed: pass --teacher with one of {names}')
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


class Normalise:
    """uint8 (B, C, H, W) -> float32, (x / 255 - mean) / std per channel: torchvision's ToTensor and Normalize."""

    def __init__(self, mean, std, device):
        self.mean, self.std = (torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (mean, std))

    def __call__(self, images):
        return (images.float() / 255).sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)
