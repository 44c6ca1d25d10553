"""How the way to a selection grows with the pool: a folder of 30,000 images beside one of 300,000, a narrow teacher.

    python bench_scale.py --check       # exits 1 when time grows faster than the pool, or the memory of --stream grows

The large pool repeats the small one's images under other names. Each command is one of ours, run as a user runs it; its
seconds are those of the whole process, less those of the same command on 100 images.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import arguments
import utils
from bench_measure import ROOT, WORKERS, add_arguments, finish
from data import CIFAR
from networks import build, save_network
from report_bench import scale_table

NEED_LINEAR, NEED_MEMORY = 0.1, 1.1  # the time ratio's distance from the pools', at most; the memory ratio, at most


def draw(folder, count, different):
    """`different` JPEGs of 64 x 64, under `count` names."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / f'{i // 1000:04d}' / f'{i:07d}.jpg'
        if i % 1000 == 0:
            path.parent.mkdir(parents=True)
        if i < different:
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((64, 64), Image.BICUBIC).save(path, quality=85)
        else:
            os.link(folder / f'{i % different // 1000:04d}' / f'{i % different:07d}.jpg', path)


def run(work, num_select, *args):
    """(seconds, peak memory in bytes) of a run of DFND-train.py up to the selection; its workers' memory is not in it."""
    command = [sys.executable, ROOT / 'DFND-train.py', '--dataset', 'cifar10', '--teacher_dir', 'teacher.pt', '--data', 'no data',
               '--num_select', num_select, '--score_only', '--run', f'{time.time_ns()}', '--workers', WORKERS, *args]
    start = time.perf_counter()
    with open(work / 'log', 'w') as log:
        process = subprocess.Popen([str(word) for word in command], cwd=work, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise utils.UserError(f'DFND-train.py failed: {(work / "log").read_text().strip()[-300:]}')
    return seconds, usage.ru_maxrss * 1024


def measure(work, small, large):
    pools = {100: 'tiny', small: 'small', large: 'large'}
    seconds, memory = {}, {}
    num_select = {100: 50, small: small // 3, large: small // 3}
    for count, name in pools.items():
        draw(work / name, count, min(count, 2000))
    for count, name in pools.items():
        steps = {'cache and score': [], 'score': [], 'stream': ['--stream']}  # the second finds the cache
        for step, flags in steps.items():
            seconds[step, count], memory[step, count] = run(work, num_select[count], '--wild', name, *flags)
            print(f'{count:>7,} images, {step}: {seconds[step, count]:.1f} s, {memory[step, count] / 2**20:.0f} MiB', flush=True)
    return seconds, memory


def main():
    parser = arguments.Parser(__doc__.split('\n')[0])
    add_arguments(parser, quick='a hundredth of it: does it run', out='bench-scale.json')
    args = parser.parse_args()
    small, large = (300, 3000) if args.quick else (30_000, 300_000)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.manual_seed(0)
        save_network(work / 'teacher.pt', build('resnet18', 8, 10, 3), CIFAR.facts('cifar10', 'resnet18', 8) | {'accuracy': 0.9})
        seconds, memory = measure(work, small, large)
    rows, short = {}, []
    for step in ('cache and score', 'score', 'stream'):
        start = seconds[step, 100]
        slopes = {count: (seconds[step, count] - start) / (count - 100) for count in (small, large)}
        rows[step] = {'images_per_s': {count: 1 / slope for count, slope in slopes.items()}, 'time_ratio': slopes[large] / slopes[small],
                      'memory_MiB': {count: memory[step, count] / 2**20 for count in (small, large)},
                      'memory_ratio': memory[step, large] / memory[step, small]}
        if not 1 - NEED_LINEAR <= rows[step]['time_ratio'] <= 1 + NEED_LINEAR:
            short.append(f'{step}: an image of the large pool takes {rows[step]["time_ratio"]:.2f} x as long, needed 0.9 to 1.1')
    if rows['stream']['memory_ratio'] > NEED_MEMORY:
        short.append(f'stream: peak memory {rows["stream"]["memory_ratio"]:.3f} x, needed at most {NEED_MEMORY} x')
    finish(args, {'workers': WORKERS, 'images': [small, large], 'rows': rows}, scale_table, short)


if __name__ == '__main__':
    utils.run_script(main)
