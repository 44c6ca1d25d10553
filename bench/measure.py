"""How the benchmarks measure: rates in turn, checks that two ways compute the same, what the machine itself reaches (a matrix
product, a copy, the convolutions alone), and how they end."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

from training import has_bf16
from utils import UserError, read_json, read_json_lines, write_json

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device('cpu')
WORKERS = os.cpu_count() or 1
DTYPE = torch.bfloat16 if has_bf16(CPU) else torch.float32  # what ResNets run in here, by --amp auto
CHECKS = []  # what was found equal, in words


def per_second(function, count):
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def in_turn(plain, ours, repeats, machine):
    """Runs them in turn, the first two once to warm up. Each returns a rate. Returns a list of rates for each."""
    plain(), ours()
    return [list(rates) for rates in zip(*[(plain(), ours(), machine()) for _ in range(repeats)])]


def require(name, what, value, limit, at_least=False):
    """Stops the benchmark where plain and ours don't compute the same: the speed of something else is no figure."""
    words = f'{name}: {what} {value:.4g} ({"at least" if at_least else "at most"} {limit:g})'
    print(words, flush=True)
    CHECKS.append(words)
    if not (value >= limit if at_least else value <= limit):
        raise UserError(f'{words}: that is not the same result, so nothing was timed')


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


def run(script, *args, cwd):
    """(its folder, seconds, peak memory in MiB) of a run of one of our scripts; its workers' memory is not in it."""
    folder, start = cwd / 'runs' / f'{script}-{time.time_ns()}', time.perf_counter()
    command = [sys.executable, ROOT / script, *args, '--output_dir', folder.parent, '--run', folder.name]
    with open(cwd / 'log', 'w') as log:
        process = subprocess.Popen([str(word) for word in command], cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise UserError(f'{script} failed: {(cwd / "log").read_text().strip()[-300:]}')
    return folder, seconds, usage.ru_maxrss / 1024


def epoch_rate(script, *args, cwd, epoch):
    """Images a second in one epoch of a script, as its own metrics.jsonl has it: without the start-up."""
    return read_json_lines(run(script, *args, cwd=cwd)[0] / 'metrics.jsonl')[epoch - 1]['images_per_s']


def peak_growth(function):
    """The most bytes that this process gains while function() runs: numpy's memory and torch's alike."""
    def resident():
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    before = peak = resident()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(function)
        while not running.done():
            peak = max(peak, resident())
            time.sleep(0.002)
    return peak - before


def convolution_seconds(net, images, backward):
    """Seconds of all convolutions of `net` for a batch of 32 x 32 colour images, with their backward passes where `backward`: in
    DTYPE and channels_last, one by one on tensors that lie ready. On the same library, no network is faster."""
    calls, total = [], 0.0
    for module in net.modules():  # of a copy in a process of its own: its hooks may stay
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda conv, inputs, output: calls.append((conv, inputs[0].shape)))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    for number, (conv, shape) in enumerate(calls):
        x = torch.randn(images, *shape[1:]).to(DTYPE).contiguous(memory_format=torch.channels_last)
        weight = conv.weight.detach().to(DTYPE).contiguous(memory_format=torch.channels_last)
        wanted = [weight] if number == 0 else [x, weight]  # of the images themselves, no gradient is asked for
        gradient = torch.ones_like(F.conv2d(x, weight, None, conv.stride, conv.padding))
        for tensor in wanted:
            tensor.requires_grad_(backward)
        times = []
        for _ in range(4):  # the first to warm up
            start = time.perf_counter()
            y = F.conv2d(x, weight, None, conv.stride, conv.padding)
            if backward:
                torch.autograd.grad(y, wanted, gradient)
            times.append(time.perf_counter() - start)
        total += statistics.median(times[1:])
    return total


def convolution_rate(teacher, student):
    """Images a second through the teacher's convolutions and, where there is a student, through its, forward and back."""
    return 256 / (convolution_seconds(teacher, 256, False) + (convolution_seconds(student, 256, True) if student else 0))


def add_arguments(parser, quick):
    parser.add_argument('--quick', action='store_true', help=quick)
    parser.add_argument('--check', action='store_true', help='exit 1 when a figure falls short of what is needed')
    parser.add_argument('--out', type=result_file, default='bench.json', metavar='FILE',
                        help='keeps the figures, as results/bench-*.json do')


def result_file(text):
    """An argparse type: a path that `finish` can write, told before the minutes that are measured."""
    if not Path(text).parent.is_dir() or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f'{text} is in no folder, or is one: name a file')
    if Path(text).is_file():
        read_json(text)
    return text


def finish(args, kind, content, table, short):
    """Keeps `content` as `kind` in the JSON file --out, prints its table, and returns 1 if --check and something falls short."""
    write_json(args.out, (read_json(args.out) if Path(args.out).is_file() else {}) | {kind: content})  # beside the other kind
    print(table(read_json(args.out)))
    if args.check and short:
        print('falls short: ' + '; '.join(short))
        return 1
    return 0
