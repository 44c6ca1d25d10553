"""The student: of our networks, or from any builder, fresh or with weights to start from."""

import copy
import os

import torch

import distributed
from networks import ARCHS, LENET_WIDTH, build, count_parameters, resolve_width
from own.made import files_of
from own.probe import images_to_try, output_kind, probe
from own.spec import make
from own.weights import plain_line
from training import autocast, pick_amp, seed_init, to_device
from utils import UserError, say, warn

WIDTHS = (64, 32, 16, 8)  # of a ResNet


def is_trained(args):
    """Whether the student starts from weights that were trained."""
    return bool(args.student_weights) or (args.arch not in ARCHS and os.path.exists(args.arch or ''))


def make_student(args, default, teacher, purpose):
    """(network on the teacher's device, arch, width or None). args: the flags; default: our architecture that --student auto stands for.
    purpose: of its random weights, with the seed. Raises UserError where it is no trainable network of the teacher's classes and size."""
    auto = args.arch in (None, 'auto')
    spec, width = default if auto else args.arch, args.width
    if auto and not width and teacher.arch not in ARCHS and spec not in LENET_WIDTH:
        width = smaller_width(spec, teacher)
    if spec in ARCHS and not args.student_weights:
        width = resolve_width(spec, width, teacher)
    seed_init(args.seed, purpose)
    made = make(spec, args.student_weights, width, teacher.classes, teacher.channels, 'student')
    if made.undone:
        say(f'weights {args.student_weights}: {"; ".join(made.undone)}')
    if made.kind == 'function':
        raise UserError(f'--student {spec} has a parameter that must be given, so it is taken for a function of images, and can not be '
                        'trained: if it builds the network, give its parameters defaults, or the names num_classes and in_chans')
    if made.black_box:
        raise UserError(f'--student {spec} gives outputs alone and can not be trained: give a builder, such as resnet18 or '
                        'torchvision:mobilenet_v3_small, or a network file of ours')
    _, _, y = probe(f'--student {spec}', made.call, [teacher.channels], [teacher.size], 'cpu')
    if y.shape[1] != teacher.classes:
        raise UserError(f'--student {spec} gives {y.shape[1]} numbers an image, and the teacher has {teacher.classes} classes: build it '
                        'with as many (a function may have a parameter num_classes)')
    if output_kind(spec, y) == 'probabilities':
        raise UserError(f'--student {spec} ends with a softmax, and a student gives logits: leave its last layer out')
    if reason := why_untrained(made.call, teacher, 2):
        raise UserError(f'--student {spec} can not be trained ({reason}): give a network that has parameters, and in training gives one '
                        'number a class, as in use')
    amp = pick_amp(args.amp, teacher.device, made.facts.get('arch', ''))
    if teacher.device.type == 'cpu' and (reason := why_untrained(made.call, teacher, 2, amp)):  # a GPU may do more
        raise UserError(f'--student {spec} can not be trained in bfloat16 ({reason}): give --amp off')
    arch = made.facts.get('arch', spec)
    if made.kind == 'ours':
        return to_device(made.call, teacher.device), arch, made.facts['width']
    made.call.register_forward_pre_hook(contiguous)
    return made.call.to(teacher.device), arch, None


def why_untrained(net, facts, batch, amp='off'):
    """What goes wrong in a step of a network on so many images, in words; None where nothing does. In training a network may do what it
    does not do in use: ask for two images, or give further outputs. facts: with their channels and size. amp: 'bf16' or 'off'."""
    net = copy.deepcopy(net).cpu().train()
    x = images_to_try(batch, facts.channels, facts.size)
    try:
        with torch.random.fork_rng(devices=[]), autocast(torch.device('cpu'), amp):
            net(x).float().sum().backward()
    except Exception as e:  # whatever the network of a stranger raises
        return plain_line(e)


def check_last_batch(net, facts, count, batch_size, flags):
    """Raises UserError where a process's share of the last batch is one image, of which the network can't learn: a batch norm asks for two
    numbers a channel. facts: see why_untrained. count: of the images that an epoch reaches. flags: words for what may be changed."""
    last = count % batch_size or batch_size
    if last < 2 * distributed.world() and (reason := why_untrained(net, facts, 1)):
        raise UserError(f'the last batch of {count} images, {batch_size} a batch, leaves a process one image, and the network can not '
                        f'learn from one ({reason}): change {flags}')


def contiguous(_, inputs):
    """A hook: many networks of others can't read the memory format channels_last."""
    return (inputs[0].contiguous(), *inputs[1:])


def smaller_width(arch, teacher):
    """The greatest width at which our ResNet has at most half of the parameters of another's teacher, which, where nobody knows them, are
    taken to be a number of four bytes each in its file. Raises UserError for a function, which has neither."""
    if not teacher.parameters and not teacher.file.is_file():
        raise UserError(f'how large {teacher.arch} is, nobody knows, so the student has no width yet: give --width, such as 16 (the '
                        "paper's is 64), or another --student")
    whole = teacher.parameters or sum(file.stat().st_size for file in files_of(teacher.file)) / 4
    for width in WIDTHS:
        count = count_parameters(build(arch, width, teacher.classes, teacher.channels))
        if count <= whole / 2:
            return width
    warn(f'{arch} of width {width}, the smallest, has {count:,} parameters, and the teacher about {whole:,.0f}: '
         '--student gives a smaller one')
    return width


def run_name(dataset, method, arch, width, seed):
    """Of a run's folder, where --run gives none."""
    arch = ''.join(c if c.isalnum() or c in '._' else '-' for c in arch).strip('-.')[-60:]
    return '-'.join(filter(None, (dataset, method, arch, width and f'w{width}', f's{seed}')))
