"""The scripts' arguments: one definition for each that they share, with one line for a mistake."""

import argparse
import difflib
import math
import os
import sys

from utils import SCHEDULES, fail, say


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a help text, where there is one to name."""

    def _get_help_string(self, action):
        unnamed = action.default is None or action.default is False  # and not `in`: 0 == False
        return action.help if unnamed else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error and the nearest flag for an unknown one."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message):
        unknown = message.removeprefix('unrecognized arguments: ')
        if unknown != message:
            flags = [s for a in self._actions for s in a.option_strings]
            hints = []
            for word in unknown.split():
                near = difflib.get_close_matches(word.split('=')[0], flags, n=1)
                if near:
                    hints.append(f'did you mean {near[0]}?')
            message = f'unknown argument {unknown}: {" ".join(hints) or "see --help"}'
        sys.exit(fail(self.prog, message))


def at_least(kind, low, strict=False):
    """An argparse type: a number of `kind`, not below `low` (above it, where `strict`)."""

    def parse(text):
        value = kind(text)
        if not (value > low or (value == low and not strict)) or math.isinf(value):
            raise argparse.ArgumentTypeError(f'{text} is not {"above" if strict else "at least"} {low}')
        return value

    parse.__name__ = kind.__name__
    return parse


def name_in(names):
    """An argparse type: one of `names`, in the user's case or another."""

    def parse(text):
        for name in names:
            if text.lower() == name.lower():
                return name
        near = difflib.get_close_matches(text, names, n=1)
        raise argparse.ArgumentTypeError(f'{text!r} is none of {", ".join(names)}' + (f': did you mean {near[0]}?' if near else ''))

    return parse


def add_common_arguments(parser, datasets):
    """The arguments that mean the same in every script."""
    g = parser.add_argument_group('data and output')
    g.add_argument('--dataset', type=name_in(datasets), default='MNIST', metavar='NAME', help=f'one of {", ".join(datasets)}; '
                   'mnist5k ships with a package and needs no download')
    g.add_argument('--data', '--data_cifar', default='data', metavar='DIR', help="holds torchvision's files, or "
                   '<dataset>/{train,test}/<class>/*; else torchvision downloads to it')
    g.add_argument('--output_dir', default='runs', metavar='DIR', help='holds a folder for each run')
    g.add_argument('--run', metavar='NAME', help="the run's folder, in place of <dataset>-<method>-<arch>-w<width>-s<seed>")
    g.add_argument('--resume', action='store_true', help='go on after the last epoch of that run; print its result if it is done')
    g.add_argument('--cache_dir', default='cache', metavar='DIR', help='keeps decoded images; delete it to free the space')
    g.add_argument('--workers', type=at_least(int, 0), default=min(os.cpu_count() or 1, 8), metavar='N',
                   help='processes that decode images; 0 decodes in this one')
    g = parser.add_argument_group('training')
    g.add_argument('--seed', type=int, default=0, help='the same command and seed give the same result on one machine')
    g.add_argument('--device', default='auto', help='auto takes cuda, then mps, then cpu')
    g.add_argument('--amp', choices=('auto', 'bf16', 'off'), default='auto', help='auto: bfloat16 where the hardware is faster in it; '
                   'turn it off to compare with float32')
    g.add_argument('--compile', action='store_true', help='torch.compile the networks: half a minute at the start, a few percent faster '
                   'on a CPU; needs a C++ compiler')
    return g


def add_optimizer_arguments(g):
    """What the scripts that train on given images share."""
    g.add_argument('--batch_size', type=at_least(int, 2), help='change --lr with it')
    g.add_argument('--lr', type=at_least(float, 0, strict=True),
                   help="the initial learning rate, or the peak of one cycle (default: the recipe's); lower it if the loss turns to NaN")
    g.add_argument('--schedule', choices=SCHEDULES, help='onecycle gets furthest where epochs are few')


def override(recipe, args):
    """The recipe, a dict, with the explicit flags put over it."""
    return {k: v if getattr(args, k, None) is None else getattr(args, k) for k, v in recipe.items()}


def say_settings(settings):
    say('settings: ' + ', '.join(f'{k} {v:g}' if isinstance(v, float) else f'{k} {v}' for k, v in settings.items()))


def add_student_arguments(g, archs):
    """What the scripts that distil a student from a teacher share."""
    g.add_argument('--teacher_dir', metavar='PATH', help="the teacher: an output folder, a run's folder or a file (default: --output_dir)")
    g.add_argument('--arch', type=name_in(archs), metavar='NAME', help='the student: LeNet-5-Half or ResNet-18 unless given')
    g.add_argument('--width', type=at_least(int, 1), help="a ResNet student's width (default: the teacher's)")
