"""What every script does: common arguments, device and precision, seeds, learning rates, evaluation, and how it fails."""

import argparse
import difflib
import hashlib
import math
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import distributed


class UserError(Exception):
    """Something the user can mend. The message is one line: what was given, what was expected, what to do."""


def first_line(error):
    """What went wrong, short enough for one line."""
    return f'{type(error).__name__}: {(str(error).strip() or "no message").splitlines()[0][:120]}'


def run_script(main):
    """Calls `main`; a UserError becomes one line on stderr and exit code 2, an interrupt exit code 130."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a file's name can hold what the terminal's encoding lacks
            stream.reconfigure(errors='backslashreplace')
    try:
        main()
    except UserError as e:
        sys.exit(fail(script, str(e)))
    except KeyboardInterrupt:
        print(f'\n{script}: interrupted; the same command with --resume goes on after the last finished epoch', file=sys.stderr)
        sys.exit(130)


def fail(script, message):
    if distributed.rank() == 0:
        print(f'{script}: error: {" ".join(message.split())}', file=sys.stderr, flush=True)
    return 2


# ---------------------------------------------------------------- arguments


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a help text, where there is one to name."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


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
    g.add_argument('--amp', choices=('auto', 'bf16', 'off'), default='auto', help='auto: bfloat16 where the hardware has it; '
                   'turn it off to compare with float32')
    return g


def add_optimizer_arguments(g):
    """What the scripts that train on given images share."""
    g.add_argument('--batch_size', type=at_least(int, 2), help='change --lr with it')
    g.add_argument('--lr', type=at_least(float, 0, strict=True),
                   help="at the start, or the peak of one cycle (default: the recipe's); lower it if the loss turns to NaN")
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


# ---------------------------------------------------------------- device, precision, seeds


def pick_device(name):
    """The torch.device for --device. Raises UserError for one that is not there."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        device = torch.device(name)
        if device.type not in ('cuda', 'mps', 'cpu'):
            raise RuntimeError('it is none of cuda, mps, cpu')
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UserError(f'--device {name} is not usable here ({first_line(e)}): try --device auto') from None
    if device.type == 'cuda':  # the same command and seed, the same result
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True, warn_only=True)
    return distributed.start(device)


def has_bf16(device):
    """Whether bfloat16 is native there. A CPU without it emulates it, many times slower than float32."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == 'cpu':
        try:
            flags = Path('/proc/cpuinfo').read_text().lower()
        except OSError:
            return False
        return 'avx512_bf16' in flags or 'amx_bf16' in flags or ' bf16' in flags
    return False


def pick_amp(amp, device, arch):
    """Resolves --amp: 'bf16' or 'off'. A LeNet on a CPU stays in float32: its layers are too small to gain (measured: 8 %)."""
    if amp != 'auto':
        return amp
    if device.type == 'cpu' and arch.startswith('lenet'):
        return 'off'
    return 'bf16' if has_bf16(device) else 'off'


def autocast(device, amp):
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == 'bf16')


def to_device(net, device):
    """The network on the device, in the memory format that its convolutions are fastest in."""
    return net.to(device=device, memory_format=torch.channels_last)


def rng(seed, *purpose):
    """A CPU generator that depends on the seed and the purpose alone, such as ('batches', epoch).

    All randomness comes from here, so a resumed run, another device or another number of workers sees the same images.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, 'little'))


def seed_init(seed, *purpose):
    """Seeds torch's global generator, which the layers' initial weights are drawn from."""
    torch.manual_seed(rng(seed, 'init', *purpose).initial_seed())


# ---------------------------------------------------------------- training


SCHEDULES = ('steps', 'onecycle', 'constant')


def learning_rate(lr, schedule, milestones, step, steps):
    """The learning rate of `step` (0-based) of `steps`.

    steps: lr / 10 at each of `milestones`, fractions of the whole run, so that a shorter run keeps its shape.
    onecycle: up from lr / 25 in the first 30 %, then a cosine down to nothing. constant: lr.
    """
    if schedule == 'constant':
        return lr
    if schedule == 'steps':
        return lr * 0.1 ** sum(step >= round(m * steps) for m in milestones)
    warm = max(1, round(0.3 * steps))
    if step < warm:
        return lr * (1 + 24 * step / warm) / 25
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group['lr'] = lr


def make_optimizer(name, parameters, lr):
    """'sgd': momentum 0.9 and weight decay 5e-4, as both papers train ResNets; 'adam': torch's defaults, for LeNets."""
    if name == 'sgd':
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
    return torch.optim.Adam(parameters, lr=lr)


def exact(tensor):
    """In double precision, for sums; but for Apple's GPUs, which have none."""
    return tensor if tensor.device.type == 'mps' else tensor.double()


class Means:
    """Means of named values over an epoch, summed on the device: reading them is the only wait for it."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, count, weight=1.0, **values):
        """values: means over this process's share of a batch of `count` images; weight: see distributed.own."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + exact(value.detach()) * (count * weight)
        self.count += count

    def read(self):
        """name -> mean over all processes, as floats. Raises UserError when one is not finite."""
        sums = distributed.total(torch.stack(list(self.sums.values()))) / distributed.world()
        means = dict(zip(self.sums, (sums / self.count).tolist()))
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(f'{name} became {value}: lower --lr, or turn --amp off, under another name with --run')
        return means


@torch.no_grad()
def evaluate(net, split, normalise, device, amp, batch_size=500):
    """(mean cross entropy, top-1 in percent) of `net` on a labelled split, at any batch size the same; (None, None) without one.

    split: has `images` (N, C, H, W) uint8 and `labels` (N,), or is None. normalise: uint8 batch -> float batch.
    """
    if split is None:
        return None, None
    net.eval()
    sums = exact(torch.zeros(2, device=device))  # of the loss, and of the correct answers
    for i in range(distributed.rank() * batch_size, len(split.labels), distributed.world() * batch_size):
        labels = split.labels[i : i + batch_size].to(device)
        with autocast(device, amp):
            logits = net(normalise(split.images[i : i + batch_size].to(device))).float()
        sums[0] += F.cross_entropy(logits, labels, reduction='none').to(sums.dtype).sum()
        sums[1] += (logits.argmax(dim=1) == labels).sum()
    loss, correct = distributed.total(sums).tolist()
    return loss / len(split.labels), 100 * round(correct) / len(split.labels)


def progress(iterable=None, total=None, unit='img', **kw):
    """A tqdm bar on a terminal, nothing in a log. It clears itself, so that the plain lines stand alone."""
    quiet = distributed.rank() > 0 or not sys.stderr.isatty()
    return tqdm(iterable, total=total, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True, disable=quiet, **kw)


def say(line):
    """A plain line on stdout, above any bar; from one process of several."""
    if distributed.rank() == 0:
        tqdm.write(line)
        sys.stdout.flush()


def warn(line):
    if distributed.rank() == 0:
        tqdm.write(f'warning: {line}', file=sys.stderr)
