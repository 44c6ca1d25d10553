"""How the way to a selection grows with the pool: a folder of 30,000 images beside one of 300,000, a narrow teacher.

    python -m bench.scale --check       # exits 1 when time grows faster than the pool, or the memory of --stream grows

The large pool repeats the small one's images under other names. Each command is one of ours, run as a user runs it; its
seconds are those of the whole process, less those of the same command on 100 images.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import arguments
from bench.measure import WORKERS, add_arguments, finish, run
from data import CIFAR
from networks import build, save_network
from paper.bench_tables import scale_table
from utils import run_script

NEED_TIME, NEED_MEMORY = (0.9, 1.1), 1.1  # the large pool's time for an image over the small one's; its memory over the small one's
STEPS = {'cache and score': [], 'score': [], 'stream': ['--stream']}  # the second finds the cache


def draw(folder, count):
    """JPEGs of 64 x 64 under `count` names, 2,000 of them different."""
    random, paths = np.random.default_rng(0), [folder / f'{i // 1000:04d}' / f'{i:07d}.jpg' for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 2000:
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((64, 64), Image.BICUBIC).save(path, quality=85)
        else:
            os.link(paths[i % 2000], path)


def main():
    parser = arguments.Parser(__doc__.split('\n')[0])
    add_arguments(parser, quick='a hundredth of it: does it run')
    args = parser.parse_args()
    small, large = (300, 3000) if args.quick else (30_000, 300_000)
    seconds, memory, rows, short = {}, {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.manual_seed(0)
        save_network(work / 'teacher.pt', build('resnet18', 8, 10, 3), CIFAR.facts('cifar10', 'resnet18', 8) | {'accuracy': 0.9})
        for count in (100, small, large):
            draw(work / f'{count}', count)
        for count, num_select in ((100, 50), (small, small // 3), (large, small // 3)):
            for step, flags in STEPS.items():
                _, seconds[step, count], memory[step, count] = run(
                    'DFND-train.py', '--dataset', 'cifar10', '--teacher_dir', 'teacher.pt', '--data', 'no data', '--num_select', num_select,
                    '--score_only', '--workers', WORKERS, '--wild', count, *flags, cwd=work)
                print(f'{count:>7,} images, {step}: {seconds[step, count]:.1f} s, {memory[step, count]:.0f} MiB', flush=True)
    for step in STEPS:
        small_time, large_time = ((seconds[step, count] - seconds[step, 100]) / (count - 100) for count in (small, large))
        ratio, memory_ratio = large_time / small_time, memory[step, large] / memory[step, small]
        rows[step] = {'images_per_s': {small: 1 / small_time, large: 1 / large_time}, 'time_ratio': ratio,
                      'memory_MiB': {count: memory[step, count] for count in (small, large)}, 'memory_ratio': memory_ratio}
        if not NEED_TIME[0] <= ratio <= NEED_TIME[1]:
            short.append(f'{step}: an image of the large pool takes {ratio:.2f} x as long, needed 0.9 to 1.1')
        if step == 'stream' and memory_ratio > NEED_MEMORY:
            short.append(f'stream: peak memory {memory_ratio:.3f} x, needed at most {NEED_MEMORY} x')
    return finish(args, 'scale', {'workers': WORKERS, 'images': [small, large], 'rows': rows}, scale_table, short)


if __name__ == '__main__':
    run_script(main)
