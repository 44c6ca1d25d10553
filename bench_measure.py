"""How the benchmarks measure: rates in turn, checks that two ways compute the same, what the machine itself reaches (a matrix
product, a copy, the convolutions alone), and how they end."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import utils

ROOT = Path(__file__).resolve().parent
CPU = torch.device('cpu')
WORKERS = os.cpu_count() or 1
DTYPE = torch.bfloat16 if utils.has_bf16(CPU) else torch.float32  # what ResNets run in here, by --amp auto
CHECKS = []  # what was found equal, in words


def per_second(function, count):
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def in_turn(plain, ours, repeats, machine=lambda: None):
    """Runs them in turn, the first two once to warm up. Each returns a rate. Returns a list of rates for each."""
    plain(), ours()
    return [list(rates) for rates in zip(*[(plain(), ours(), machine()) for _ in range(repeats)])]


def require(name, what, value, limit, at_least=False):
    """Stops the benchmark where plain and ours don't compute the same: the speed of something else is no figure."""
    words = f'{name}: {what} {value:.4g} ({"at least" if at_least else "at most"} {limit:g})'
    print(words, flush=True)
    CHECKS.append(words)
    if not (value >= limit if at_least else value <= limit):
        raise utils.UserError(f'{words}: that is not the same result, so nothing was timed')


def matmul_rate(size):
    """Operations a second of the machine's own matrix product, in DTYPE."""
    a, b = torch.randn(size, size).to(DTYPE), torch.randn(size, size).to(DTYPE)
    torch.mm(a, b)
    return statistics.median(per_second(lambda: torch.mm(a, b), 2 * size**3) for _ in range(5))


def copy_rate(mebibytes):
    """Bytes a second of a copy in memory, read and written."""
    a = torch.zeros(mebibytes * 2**20, dtype=torch.uint8)
    b = a.clone()
    return statistics.median(per_second(lambda: b.copy_(a), 2 * len(a)) for _ in range(5))


def epoch_rate(script, *args, cwd, epoch):
    """Images a second in one epoch of a script, as its own metrics.jsonl has it: without the start-up."""
    name = f'{script}-{time.time_ns()}'
    command = [sys.executable, ROOT / script, *map(str, args), '--output_dir', cwd / 'runs', '--run', name]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise utils.UserError(f'{script} failed: {done.stderr.strip()}')
    rows = [json.loads(line) for line in (cwd / 'runs' / name / 'metrics.jsonl').read_text().splitlines()]
    return rows[epoch - 1]['images_per_s']


def resident():
    """Bytes of this process that are in memory."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def peak_growth(function):
    """The most bytes that this process gains while function() runs: numpy's memory and torch's alike."""
    before = peak = resident()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return peak - before


def convolution_seconds(net, images, backward, repeats=3):
    """Seconds of all convolutions of `net` for a batch of 32 x 32 colour images, with their backward passes where `backward`: in
    DTYPE and channels_last, one by one on tensors that lie ready. On the same library, no network is faster."""
    calls = []
    hooks = [m.register_forward_hook(lambda m, inputs, output: calls.append((m, inputs[0].shape)))
             for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for number, (conv, shape) in enumerate(calls):
        x = torch.randn(images, *shape[1:]).to(DTYPE).contiguous(memory_format=torch.channels_last)
        weight = conv.weight.detach().to(DTYPE).contiguous(memory_format=torch.channels_last)
        wanted = [weight] if number == 0 else [x, weight]  # of the images themselves, no gradient is asked for
        for tensor in wanted if backward else ():
            tensor.requires_grad_()
        gradient, times = None, []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            y = F.conv2d(x, weight, None, conv.stride, conv.padding)
            if backward:
                gradient = torch.ones_like(y) if gradient is None else gradient
                torch.autograd.grad(y, wanted, gradient)
            times.append(time.perf_counter() - start)
        total += statistics.median(times[1:])
    return total


def convolution_rate(teacher, student, images=256):
    """Images a second through the teacher's convolutions and, where there is a student, through its, forward and back."""
    seconds = convolution_seconds(teacher, images, False)
    return images / (seconds + (convolution_seconds(student, images, True) if student else 0))


def add_arguments(parser, quick, out):
    parser.add_argument('--quick', action='store_true', help=quick)
    parser.add_argument('--check', action='store_true', help='exit 1 when a figure falls short of what is needed')
    parser.add_argument('--out', default=out, metavar='FILE')


def finish(args, content, table, short):
    """Prints the table of `content`, writes it as JSON, and with --check names what falls short."""
    text = json.dumps(content)
    print(table(json.loads(text)))
    Path(args.out).write_text(text + '\n')
    if args.check and short:
        print('falls short: ' + '; '.join(short))
        sys.exit(1)
