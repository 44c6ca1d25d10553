"""The scripts' arguments: one definition for each that they share, with one line for a mistake; and the settings that come of them."""

import argparse
import difflib
import os
import sys
from types import SimpleNamespace

from paper.board import check_packages
from training import OPTIMIZERS, SCHEDULES
from utils import UserError, expand_home, fail, say

# flags of the published files that have no like here, and what to give instead
PUBLISHED_FLAGS = {'--use_ori': '--transfer_set original distils on the original images'}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a help text, where there is one to name."""

    def _get_help_string(self, action):
        unnamed = action.default in (None, ()) or action.default is False  # and not `in`: 0 == False
        return action.help if unnamed else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error and the nearest flag for an unknown one."""

    unless = None  # see add_common_arguments

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def parse_args(self, *words):
        """Raises UserError where --tensorboard lacks its packages, and where a value is empty, has no effect or can't be used."""
        args = expand_home(super().parse_args(*words))
        if self.unless and not args.teacher_dir:
            args.dataset = args.dataset or self.unless
        if not (getattr(args, 'export_normalise', True) or args.export):
            raise UserError('--no-export_normalise is about the exported file, and --export is not given: give both or neither')
        if any('\udc80' <= letter <= '\udcff' for letter in getattr(args, 'cache_dir', None) or ''):  # torch maps no such file
            raise UserError(f'--cache_dir {args.cache_dir} is no text in UTF-8: name another folder')
        if getattr(args, 'tensorboard', False):
            check_packages()
        return args

    def error(self, message):
        unknown = message.removeprefix('unrecognized arguments: ')
        if unknown != message:
            words = [word.split('=')[0] for word in unknown.split()]
            hints = filter(None, (PUBLISHED_FLAGS.get(word) or nearest(word, self._option_string_actions) for word in words))
            message = f'unknown argument {unknown}: {" ".join(hints) or "see --help"}'
        sys.exit(fail(self.prog, message))


def nearest(word, names):
    return ''.join(f'did you mean {name}?' for name in difflib.get_close_matches(word, names, n=1))


def at_least(kind, low, strict=False, high=10**9):
    """An argparse type: a number of `kind`, not below `low` (above it, where `strict`), and not above `high`."""

    def parse(text):
        value = kind(text)
        if not (low < value <= high or (value == low and not strict)):
            raise argparse.ArgumentTypeError(f'{text:.40} is not {"above" if strict else "at least"} {low} and at most {high:,}')
        return value

    parse.__name__ = kind.__name__
    return parse


def count_of(text):
    """An argparse type: how many images of a pool, as a number, an int, or as its share, a text such as '47%'."""
    if text.endswith('%'):
        return f'{at_least(float, 0, strict=True, high=100)(text[:-1]):g}%'
    return at_least(int, 1)(text)


count_of.__name__ = 'number or share'  # for argparse's message


def name_in(names):
    """An argparse type: one of `names`, in the user's case or another."""

    def parse(text):
        for name in names:
            if text.lower() == name.lower():
                return name
        raise argparse.ArgumentTypeError(f'{text!r} is none of {", ".join(names)}: {nearest(text, names)}'.rstrip(': '))

    return parse


def add_common_arguments(parser, datasets, unless=None):
    """The arguments that mean the same in every script. unless: the data set where neither --dataset nor --teacher is given, of a script
    that has a teacher; with --teacher alone, args.dataset is None: the one that the teacher's file names, or none."""
    parser.unless = unless
    g = parser.add_argument_group('data and output')
    g.add_argument('--dataset', type=name_in(datasets), default=None if unless else 'MNIST', metavar='NAME',
                   help=f'one of {", ".join(datasets)}; mnist5k ships with a package and needs no download; folder is your own class '
                   'folders in --data' + (f" (default: what the teacher's file names, or {unless} without --teacher)" if unless else ''))
    g.add_argument('--data', '--data_cifar', default='data', metavar='DIR', help="holds torchvision's files, or "
                   '<dataset>/{train,test}/<class>/*; else torchvision downloads to it; with --dataset folder, '
                   '{train,test or val}/<class>/* and, if the order of the classes is not the sorted one, classes.txt')
    g.add_argument('--output_dir', default='runs', metavar='DIR', help='holds a folder for each run')
    g.add_argument('--run', metavar='NAME', help="the run's folder, in place of <dataset>-<method>-<arch>-w<width>-s<seed>")
    g.add_argument('--resume', action='store_true', help='go on where that run was stopped; print its result if it is done')
    minutes = at_least(float, 0, strict=True)
    g.add_argument('--save_minutes', type=minutes, default=10, metavar='M', help='save again after M minutes at most; saving never '
                   'takes more than 2 %% of the time')
    g.add_argument('--max_minutes', type=minutes, metavar='M', help='stop after so long, as after a signal, with exit code 0')
    g.add_argument('--rank_timeout', type=at_least(float, 5), default=30, metavar='S', help='under torchrun: end when another process '
                   'gives no sign of life for S seconds')
    g.add_argument('--cache_dir', default='cache', metavar='DIR', help='keeps decoded images; delete it to free the space')
    g.add_argument('--workers', type=at_least(int, 0, high=1024), default=min(os.cpu_count() or 1, 8), metavar='N',
                   help='processes that decode images; 0 decodes in this one, without the limits on time and memory')
    g.add_argument('--decode_pixels', type=at_least(int, 1), default=50_000_000, metavar='N', help='images of more pixels are skipped')
    g.add_argument('--decode_seconds', type=at_least(float, 0, strict=True), default=10, metavar='S',
                   help='an image that takes more processor time is skipped')
    g.add_argument('--decode_memory', type=at_least(float, 16), default=1024, metavar='MB',
                   help='an image that takes more memory is skipped')
    g.add_argument('--formats', nargs='+', default=(), metavar='NAME', help="formats of Pillow to read besides JPEG, PNG, WebP, GIF, BMP, "
                   'TIFF, PPM, AVIF and, with pillow-heif, HEIC: such as jpeg2000')
    g.add_argument('--tensorboard', action='store_true', help="also write curves and pictures into the run's folder, for tensorboard "
                   '--logdir; needs pip install tensorboard matplotlib')
    g = parser.add_argument_group('training')
    g.add_argument('--seed', type=int, default=0, help='the same command and seed give the same result on one machine')
    g.add_argument('--device', default='auto', help='auto takes cuda, then mps, then cpu')
    g.add_argument('--amp', choices=('auto', 'bf16', 'off'), default='auto', help='auto: bfloat16 where the hardware is faster in it; '
                   'turn it off to compare with float32')
    return g


def add_optimizer_arguments(g):
    """What the scripts that train on given images share."""
    g.add_argument('--batch_size', type=at_least(int, 2), help='change --lr with it')
    g.add_argument('--lr', type=at_least(float, 0, strict=True),
                   help="the initial learning rate, or the peak of one cycle (default: the recipe's); lower it if the loss turns to NaN")
    g.add_argument('--optimizer', choices=OPTIMIZERS, help='change --lr with it: about 0.1 for sgd, 0.004 for adam, 0.12 for muon')
    g.add_argument('--schedule', choices=SCHEDULES, help='onecycle and linear get furthest where epochs are few')
    g.add_argument('--flip', action=argparse.BooleanOptionalAction, help='mirror images at random, if augmented: not for letters, '
                   'digits, or classes such as left and right (default: photos yes; with --dataset folder, colour yes and grey no)')
    g.add_argument('--test_every', type=at_least(int, 1), metavar='N', help='epochs between two measurements on the test data; the last '
                   'epoch always has one')


def add_teacher_arguments(parser):
    """What the scripts that have a teacher share. A SPEC: see own/spec.py."""
    g = parser.add_argument_group('teacher')
    g.add_argument('--teacher', '--teacher_dir', dest='teacher_dir', metavar='SPEC', help="an output folder, a run's folder, a file (ours, "
                   'TorchScript, .pt2, .onnx), or a builder with --teacher_weights: resnet34, torchvision:NAME, timm:NAME, hub:DIR:ENTRY, '
                   'file.py:FUNCTION (default: --output_dir); see docs/your-own.md')
    g.add_argument('--teacher_weights', metavar='FILE', help="a builder's state dict, in any of the forms that people save")
    g.add_argument('--teacher_width', type=at_least(int, 1, high=2**16), help="of our ResNets (default: the weights')")
    g.add_argument('--teacher_output', choices=('logits', 'probabilities', 'log_probabilities'),
                   help='checks what the teacher gives; found by a probe unless given')
    g.add_argument('--mean', nargs='+', type=at_least(float, -(10**9)), metavar='X', help="of the pixels that the teacher was trained on, "
                   "in 0..1, one a channel; needed where neither the teacher's file nor its builder nor --dataset says it")
    g.add_argument('--std', nargs='+', type=at_least(float, 0, strict=True), metavar='X', help='as --mean')
    g.add_argument('--size', '--img_size', type=at_least(int, 1, high=2**14),
                   help="of the teacher's images (default: its file's, its builder's or found by a probe)")
    g.add_argument('--channels', choices=('1', '3', 'bgr'), help='bgr: three, blue first, with --mean and --std in that order')
    g.add_argument('--class_names', nargs='+', metavar='NAME', help='in the order of the outputs, or a text file with one a line')


def add_student_arguments(g):
    """What the scripts that distil a student from a teacher share."""
    g.add_argument('--student', '--arch', dest='arch', metavar='SPEC', help='resnet18, lenet5half, a network file of ours, or a builder '
                   "as of --teacher; auto, the default: LeNet-5-Half or ResNet-18, smaller than the teacher")
    g.add_argument('--student_weights', metavar='FILE', help='a state dict to start from, such as of a pruned network')
    g.add_argument('--width', type=at_least(int, 1, high=2**16), help="a ResNet student's width (default: "
                   "a ResNet teacher's; beside others auto takes one that halves the parameters, and a named ResNet has 64)")
    g.add_argument('--export', metavar='FORMATS', help='also write the student as onnx, pt2 or onnx,pt2, for use without this code')
    g.add_argument('--export_normalise', action=argparse.BooleanOptionalAction, default=True,
                   help='put mean and std into the exported file, so that it takes images in 0..1')


# where and how a run is computed, and not what: these settings may differ between a run and its resumption
WHERE = {'resume', 'save_minutes', 'max_minutes', 'rank_timeout', 'workers', 'decode_pixels', 'decode_seconds', 'decode_memory', 'formats',
         'cache_dir', 'device', 'data', 'output_dir', 'run', 'teacher_dir', 'teacher_weights', 'score_only', 'export', 'export_normalise',
         'tensorboard'}
# wild: a selection knows its pool by what it holds; test_every: which rows have a measurement
MAY_CHANGE = WHERE | {'wild', 'test_every'}


def pick_recipe(given, own, published, device):
    """The name of the recipe: the user's, or the architecture's own, or, for a ResNet, short on a CPU and the published one on a GPU."""
    if given or own:
        return given or own
    if device.type != 'cpu':
        return published
    say(f'recipe short, since no GPU is used: few images, a student that converges; --recipe {published} has the published schedule')
    return 'short'


class Settings(SimpleNamespace):
    """All settings of a run, by the names of their flags, frozen: defaults < recipe < flags < what a resumed run kept. config.json is
    it, so the values are what JSON can hold."""

    def __setattr__(self, name, value):
        raise AttributeError(f'{name}: settings are frozen; replace() makes new ones')

    def replace(self, **changes):
        return Settings(**{**vars(self), **changes})


def settle(args, recipe, /, **more):
    """The Settings of the parsed `args`, with `recipe`'s, a dict, where a flag is not given. more: what follows from both. Raises UserError
    for --flip where nothing is augmented."""
    s = Settings(**{**recipe, **{k: v for k, v in vars(args).items() if v is not None or k not in recipe}, **more})
    if getattr(args, 'flip', None) and not s.augment:
        raise UserError('--flip is a part of the augmentation, which is off here: leave it out, or turn the augmentation on')
    return s


def count_by_recipe(s):
    """num_select of the settings s; where the recipe has a formula, by the images that --steps has the student see."""
    return s.num_select((s.steps or 0) * s.batch_size) if callable(s.num_select) else s.num_select


def say_settings(settings):
    """A line of what decides the result: not where and how it is computed."""
    shown = {k: v for k, v in vars(settings).items() if v is not None and k not in WHERE - {'device'} | {'dataset'}}
    say('settings: ' + ', '.join(f'{k} {v:g}' if isinstance(v, float) else f'{k} {v}' for k, v in sorted(shown.items())))
