"""Networks by name, the files they are kept in (plain tensors and facts, nothing pickled), and the Teacher."""

import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from lenet import LeNet5, LeNet5Half
from resnet import ResNet18, ResNet34
from training import autocast, evaluate, pick_amp, to_device
from utils import UserError, first_line, say, written_aside

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std
SIZE = 32  # of a network's input, unless its file says otherwise; MNIST's 28 are resized, as published
ARCHS = {'lenet5': LeNet5, 'lenet5half': LeNet5Half, 'resnet18': ResNet18, 'resnet34': ResNet34}
LENET_WIDTH = {'lenet5': 6, 'lenet5half': 3}  # channels of the first convolution, as a ResNet's width is
FACTS = ('arch', 'width', 'classes', 'channels', 'mean', 'std', 'dataset', 'accuracy', 'size', 'class_names')  # beside the weights
LATER = {'size': SIZE, 'class_names': None}  # of FACTS, those that older files lack
RESNET_WIDTH = 8  # at least: the backward pass of a 1 x 1 strided convolution of fewer channels crashes oneDNN on CPUs without AVX-512


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
    width = width or (teacher.width if teacher and teacher.arch not in LENET_WIDTH else 64)
    if width < RESNET_WIDTH:
        raise UserError(f'the width {width} is too small for a {arch}: give --width {RESNET_WIDTH} or more')
    return width


def build(arch, width, classes, channels):
    """A fresh network; width: see `resolve_width`."""
    return ARCHS[arch](classes, channels, **({} if arch in LENET_WIDTH else {'width': width}))


def count_parameters(net):
    return sum(p.numel() for p in net.parameters())


def count_multiply_adds(net, channels, size=SIZE):
    """Multiply-adds of all convolutions and linear layers for one image of `size` x `size`: the tables' FLOPs."""
    was_training, parameter = net.training, next(net.parameters())
    net.eval()  # a batch of one image must not reach the batch norms' statistics
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    net.train(was_training)
    return counter.get_total_flops() // 2  # a multiply-add is two of torch's


def save_network(path, net, facts):
    """Writes a network as plain tensors beside the facts that rebuild it, a dict with the keys of `FACTS`: architecture, width,
    classes, channels, the mean and std (one float a channel, of pixels in 0..1) that its input is normalised with, its data set, its
    measured top-1 accuracy in 0..1 or None, the size of its input (32 unless given), and the names of its classes or None. To make a
    teacher of your own network, call this with its facts: see docs/using.md."""
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    with written_aside(path) as file:
        torch.save({'facts': {k: {**LATER, **facts}[k] for k in FACTS}, 'state_dict': state}, file)


def load_network(path):
    """Returns (network in evaluation mode on the CPU, its facts). Raises UserError for what is no such file."""
    if not Path(path).is_file():
        raise UserError(f'no network file {path}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        facts, state = {**LATER, **content['facts']}, content['state_dict']
        net = build(facts['arch'], facts['width'], facts['classes'], facts['channels'])
        net.load_state_dict(state)
    except Exception as e:  # torch.load raises a dozen kinds for a damaged file
        raise UserError(f'{path} is not a network that this project saved ({first_line(e)}): train one with teacher-train.py, '
                        'or write yours with networks.save_network (see docs/using.md)') from None
    return net.eval(), facts


def find_teacher(where, dataset):
    """The file of the teacher: `where` is the file itself, its run's folder, or an output folder with one finished teacher of `dataset`.
    Raises UserError when there is none, or more than one."""
    where = Path(where)
    for path in (where, where / 'teacher.pt', where / 'student.pt'):
        if path.is_file():
            return path
    finished = [path for path in sorted(where.glob('*/teacher.pt')) if path.with_name('result.json').is_file()]
    found = [path for path in finished if load_network(path)[1]['dataset'] == dataset]
    if not found:
        output = '' if where == Path('runs') else f' --output_dir {where}'
        raise UserError(f'no finished {dataset} teacher in {where}: train one first with `python teacher-train.py --dataset {dataset}'
                        f'{output}`, or name its folder or file with --teacher_dir')
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


class Normalise:
    """uint8 (B, C, H, W) -> float32, (x / 255 - mean) / std per channel: torchvision's ToTensor and Normalize."""

    def __init__(self, mean, std, device):
        self.mean, self.std = (torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (mean, std))

    def __call__(self, images):
        return (images.float() / 255).sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network for inference alone, and all that is known of it."""

    net: nn.Module  # frozen, on `device`, in the precision `amp`: its logits by logits()
    arch: str  # this and what follows: see save_network
    width: int
    classes: int
    channels: int  # of its input, (B, channels, size, size)
    mean: tuple
    std: tuple
    dataset: str
    accuracy: float | None
    digest: str  # of its weights: tells teachers apart
    device: torch.device
    amp: str  # 'bf16' or 'off'
    file: Path
    class_names: tuple
    size: int = SIZE

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

    def facts(self, **changes):
        """What save_network takes beside a student of this teacher."""
        return {**{k: getattr(self, k) for k in FACTS}, **changes}

    def measure(self, test):
        """Top-1 in percent on the labelled split `test`, or, where that is None, as the teacher's file has it (None where it has none)."""
        if test is None:
            return None if self.accuracy is None else 100 * self.accuracy
        _, top1 = evaluate(self.net, test, self.normalise, self.device, self.amp)
        say(f'teacher {self.arch}, width {self.width}, from {self.file}: top-1 {top1:.2f}')
        return top1


def load_teacher(where, dataset, info, device, amp):
    """The Teacher at `where` (see `find_teacher`), on the device. info: of data.DATASETS. amp: the user's --amp. Raises UserError also
    for the teacher of another data set, and for facts that don't fit the data set."""
    path = find_teacher(where, dataset)
    net, facts = load_network(path)
    if facts['dataset'] != dataset:
        raise UserError(f'{path} is a teacher of {facts["dataset"]}, and --dataset is {dataset}: change one of the two')
    wrong = [f'{key}={facts[key]}, and {dataset} has {getattr(info, key)}' for key in ('classes', 'channels')
             if getattr(info, key) not in (None, facts[key])]
    wrong += [f'{key}={facts[key]}, not a list of one number a channel' for key in ('mean', 'std')
              if not isinstance(facts[key], (list, tuple)) or len(facts[key]) != facts['channels']]
    accuracy = facts['accuracy']
    if accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1):
        wrong.append(f'accuracy={accuracy!r}, not a number in 0..1')
    if wrong:
        raise UserError(f'the facts in {path} have {wrong[0]}: write it again with networks.save_network (see docs/using.md)')
    digest = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in net.state_dict().values()))
    amp = pick_amp(amp, device, facts['arch'])
    net = to_device(fold_batch_norms(net), device).requires_grad_(False)
    if amp == 'bf16':
        net.bfloat16()  # as autocast would, but once: it keeps no cast weights where none needs a gradient
    facts['class_names'] = tuple(info.names or facts['class_names'] or map(str, range(facts['classes'])))
    return Teacher(net, **{k: facts[k] for k in FACTS}, digest=digest.hexdigest()[:16], device=device, amp=amp, file=path)
