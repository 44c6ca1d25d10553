"""What every training does: device and precision, seeds, optimisers and learning rates, means of losses, evaluation."""

import contextlib
import ctypes
import hashlib
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

import distributed
from keep import stops
from utils import UserError, first_line

# ---------------------------------------------------------------- device, precision, seeds


def pick_device(name, rank_timeout=30):
    """The torch.device for --device, where this process has joined those that torchrun started; rank_timeout: see distributed.start.
    Raises UserError for a device that is not there."""
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
    if device.type == 'cpu':
        keep_freed_memory()
    processes = distributed.launched()
    if processes > 1 and device.type == 'mps':
        raise UserError(f'{processes} processes, and mps takes one: leave torchrun out, or give --device cpu')
    if processes > 1 and device.type == 'cuda' and int(os.environ['LOCAL_RANK']) >= torch.cuda.device_count():
        raise UserError(f'torchrun started process {os.environ["LOCAL_RANK"]} here, and there are {torch.cuda.device_count()} GPUs: '
                        'lower --nproc_per_node')
    return distributed.start(device, rank_timeout)


def keep_freed_memory():
    """Has the C library keep what is freed for the next tensor. Else every tensor of 32 MB or more is mapped anew, page fault by
    page fault, which is a quarter of a DAFL step's time on a CPU and an eighth of a full-width ResNet's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(-4, 0)  # M_MMAP_MAX
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def free_memory(device):
    """Bytes that are free for tensors on the device."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration):
        return 4 * 2**30  # unknown: the least that such a machine has


def has_bf16(device):
    """Whether bfloat16 is faster than float32 there. A CPU without it emulates it, many times slower. Intel's before AMX, or with
    AMX hidden by a virtual machine, have its instruction at half float32's rate (measured: a ResNet-34 runs at 0.6 times its speed)."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == 'cpu':
        with contextlib.suppress(OSError):
            facts = Path('/proc/cpuinfo').read_text().lower()
            return 'amx_bf16' in facts or ('avx512_bf16' in facts and 'genuineintel' not in facts) or ' bf16' in facts  # the last: Arm's
    return False


def pick_amp(amp, device, arch):
    """Resolves --amp: 'bf16' or 'off'. A LeNet on a CPU stays in float32: its layers are too small to gain (measured: 8 %)."""
    if amp != 'auto':
        return amp
    return 'bf16' if has_bf16(device) and not (device.type == 'cpu' and arch.startswith('lenet')) else 'off'


def autocast(device, amp):
    if amp == 'off':  # and not enabled=False: torch 2.4 refuses MPS even so
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def to_device(net, device):
    """The network on the device, in the memory format that its convolutions are fastest in."""
    return net.to(device=device, memory_format=torch.channels_last)


def rng(seed, *purpose):
    """A CPU generator that depends on the seed and the purpose alone, such as ('batches', epoch). All randomness comes from here, so a
    resumed run, another device or another number of workers sees the same images."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, 'little'))


def seed_init(seed, *purpose):
    """Seeds torch's global generator, which the layers' initial weights are drawn from."""
    torch.manual_seed(rng(seed, 'init', *purpose).initial_seed())


def seed_step(seed, step, device):
    """Seeds what a network itself draws in a step, as dropout does, for each process its own."""
    seed = rng(seed, 'step', step, distributed.rank()).initial_seed()
    (torch.default_generator.manual_seed if device.type == 'cpu' else torch.manual_seed)(seed)  # that of every device takes 0.1 ms


# ---------------------------------------------------------------- training


SCHEDULES = ('steps', 'onecycle', 'linear', 'constant')
OPTIMIZERS = ('sgd', 'adam', 'muon')
BF16_ROWS = 128  # Muon's smaller matrices gain nothing by bfloat16


def learning_rate(lr, schedule, milestones, step, steps):
    """The learning rate of `step` (0-based) of `steps`.

    steps: lr / 10 at each of `milestones`, fractions of the whole run, so that a shorter run keeps its shape.
    onecycle: up from lr / 25 in the first 30 %, then a cosine down to nothing. linear: up in the first 10 %, then straight down to
    nothing. constant: lr."""
    if schedule == 'constant':
        return lr
    if schedule == 'linear':
        warm = max(1, round(0.1 * steps))
        return lr * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    if schedule == 'steps':
        return lr * 0.1 ** sum(step >= round(m * steps) for m in milestones)
    warm = max(1, round(0.3 * steps))
    if step < warm:
        return lr * (1 + 24 * step / warm) / 25
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group['lr'] = lr


def orthogonalise(matrix, steps=3):
    """(m, n) -> (m, n): the same singular vectors, and singular values near 1 (about 0.5 to 1.5), by the iteration of Newton and Schulz.
    Its coefficients are those of KellerJordan/cifar10-airbench: steep at 0, so that three steps are enough.

    Each step multiplies x from the left by a polynomial in its gram matrix, and all of these commute. So the steps are taken by the gram
    matrix, which is small, and x is multiplied once: half the operations of a 3 x 3 filter bank."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix  # the smaller product
    x = x / (x.norm() + 1e-7)  # no singular value above 1
    gram, whole = x @ x.T, None
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        whole = factor if whole is None else factor @ whole
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = whole @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for convolutional networks: steps of orthogonalised momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    Every filter bank (a parameter of four dimensions) is a matrix, a row for each filter: it takes orthogonalised steps of Nesterov's
    momentum, and its norm is set back after each to sqrt(filters); with `keep_norms`, for a trained network, whose output depends on the
    norm where no batch norm follows, to what it was at first. All other parameters take SGD's, with weight decay.

    torch.optim.Muon (torch 2.9 on) refuses parameters that are not of two dimensions, so every convolution, works in bfloat16, which is
    slow on many CPUs, and does not keep a filter bank's norm.

    lr: of the filter banks; that of the rest is 0.8 times it, so that one schedule drives both. amp: 'bf16' orthogonalises large
    filter banks in bfloat16, as Jordan does. Follows airbench94_muon.py."""

    def __init__(self, parameters, lr, amp='off', keep_norms=False):
        parameters, self.amp, self.keep_norms = list(parameters), amp, keep_norms
        filters, others = [p for p in parameters if p.ndim == 4], [p for p in parameters if p.ndim != 4]
        super().__init__([{'params': filters, 'momentum': 0.6, 'share': 1.0, 'decay': 0.0},
                          {'params': others, 'momentum': 0.85, 'share': 0.8, 'decay': 5e-4}], {'lr': lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group['params'] if p.grad is not None):
                gradient = p.grad.add(p, alpha=group['decay'])
                buffer = self.state[p].setdefault('momentum_buffer', torch.zeros_like(p))
                buffer.mul_(group['momentum']).add_(gradient)
                update, alpha = gradient.add(buffer, alpha=group['momentum']), group['lr'] * group['share']  # Nesterov's
                if p.ndim == 4:
                    matrix, usual = update.flatten(1), len(p) ** 0.5
                    if self.keep_norms and 'norm' not in self.state[p]:
                        self.state[p]['norm'] = p.norm().item() or usual
                    norm = self.state[p].get('norm', usual)
                    alpha *= norm / usual
                    low = self.amp == 'bf16' and min(matrix.shape) >= BF16_ROWS
                    update = orthogonalise(matrix.bfloat16() if low else matrix).view_as(p)
                p.sub_(update, alpha=alpha)
                if p.ndim == 4:
                    p.mul_(norm / p.norm().clamp(min=1e-12))


def make_optimizer(name, parameters, lr, amp='off', decay=5e-4, trained=False):
    """sgd: momentum 0.9 and the weight decay `decay`, 5e-4 as both papers train ResNets; adam: torch's defaults, for LeNets; muon: for
    ResNets in few steps. amp: the training's, 'bf16' or 'off'. trained: whether the parameters are."""
    if name == 'muon':
        return Muon(parameters, lr, amp, trained)
    if name == 'sgd':
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)
    return torch.optim.Adam(parameters, lr=lr)


def exact(tensor):
    """In double precision, for sums; but for Apple's GPUs, which have none."""
    return tensor if tensor.device.type == 'mps' else tensor.double()


class Means:
    """Means of named values over an epoch, summed on the device, and its seconds. Reading them is the only wait for the device."""

    def __init__(self, kept=None, device=None):
        """kept: what `state` gave before a run was stopped, to go on from there; device: that it was on."""
        kept = kept or {'sums': {}, 'count': 0, 'seconds': 0.0}
        kind = torch.float32 if device and device.type == 'mps' else torch.float64
        share = distributed.world() if distributed.rank() == 0 else 0  # the first process takes all
        self.sums = {name: torch.tensor(value, dtype=kind, device=device) * share for name, value in kept['sums'].items()}
        self.count, self.start, self.seconds = kept['count'], time.time() - kept['seconds'], None

    def add(self, count, weight=1.0, **values):
        """values: means over this process's share of a batch of `count` images; weight: see distributed.own."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + exact(value.detach()) * (count * weight)
        self.count += count

    def state(self):
        """For a checkpoint: the sums over all processes, the count, the seconds."""
        sums = distributed.total(torch.stack(list(self.sums.values()))) / distributed.world()
        return {'sums': dict(zip(self.sums, sums.tolist())), 'count': self.count, 'seconds': self.seconds or time.time() - self.start}

    def read(self):
        """name -> mean over all processes, as floats."""
        state = self.state()
        self.seconds = state['seconds']  # until it is first read
        return {name: value / self.count for name, value in state['sums'].items()}


CHECKED = 50  # steps between two looks at whether the losses are finite
# what to change where a loss is not finite: the first of these that is so is the cause, since DAFL's generator spoils all others
CONCERN = {'loss_oh': '--lr_G or --oh', 'loss_ie': '--lr_G or --ie', 'loss_a': '--lr_G or --a', 'loss_nll': '--lr or --teacher_acc',
           'loss_generator': '--lr_G', 'loss_kd': '--lr or --T'}


def check_finite(losses, parameters, where):
    """Raises UserError where a loss, of a dict by name, or a weight is not finite. where: words for the step and what was saved."""
    bad = [f'{name} became {value}' for name, value in losses.items() if not math.isfinite(value)]
    flags = next((flags for name, flags in CONCERN.items() if not math.isfinite(losses.get(name, 0))), '--lr')
    if not bad and not all(torch.isfinite(p).all() for p in parameters):
        bad = ['a weight became NaN or infinite']
    if bad:
        raise UserError(f'{", ".join(bad)} {where}: lower {flags}, or turn --amp off, under another name with --run')


@torch.no_grad()
def evaluate(net, split, normalise, device, amp, batch_size=None):
    """(mean cross entropy, top-1 in percent) of `net` on a labelled split, at any batch size the same; (None, None) without one. split: has
    `images` (N, C, H, W) uint8 and `labels` (N,), or is None or False. normalise: uint8 batch -> float batch. batch_size: 500 for 32 x 32
    unless given, and fewer larger ones."""
    if not split:
        return None, None
    batch_size = batch_size or max(16, 500 * 32**2 // split.images[:1][0, 0].numel())
    net.eval()
    sums = exact(torch.zeros(2, device=device))  # of the loss, and of the correct answers
    for i in range(distributed.rank() * batch_size, len(split.labels), distributed.world() * batch_size):
        if distributed.world() == 1:  # several need not have the same number of batches
            stops.pause()
        labels = split.labels[i : i + batch_size].to(device)
        with autocast(device, amp):
            logits = net(normalise(split.images[i : i + batch_size].to(device))).float()
        sums[0] += F.cross_entropy(logits, labels, reduction='none').to(sums.dtype).sum()
        sums[1] += (logits.argmax(dim=1) == labels).sum()
    loss, correct = distributed.total(sums).tolist()
    return loss / len(split.labels), 100 * round(correct) / len(split.labels)


def ahead(items):
    """Yields the items of an iterable (None is none of them); the next one is made in a thread meanwhile."""
    items = iter(items)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
