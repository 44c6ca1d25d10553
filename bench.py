"""Speed, beside a plain implementation of the published pipeline (bench_plain.py).

    python bench.py                     # a table, and bench.json
    python bench.py --check             # exits 1 when a figure falls short, and names it in the last line
    python bench.py --quick             # small networks, few images: does it run

Plain and ours run in turn, warmed up, and beside them the machine's own matrix product; each figure is the median over the
repeats. Before a row is timed, the two are checked to compute the same, but for the teacher's. Ours runs in processes of its
own: the scripts have the C library keep freed memory (utils.keep_freed_memory), which would speed the plain pipeline up too.
"""

import functools
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import arguments
import bench_plain
import utils
from bench_measure import (
    CHECKS,
    CPU,
    DTYPE,
    WORKERS,
    add_arguments,
    convolution_rate,
    copy_rate,
    epoch_rate,
    finish,
    in_turn,
    matmul_rate,
    peak_growth,
    per_second,
    require,
)
from data import CIFAR, MNIST, EpochPlan, Normalise, batches
from decode import to_array
from generator import Generator
from losses import noisy_nll
from networks import build, load_network, load_teacher, save_network
from report_bench import STUDENT_FLOPS, TEACHER_FLOPS, machine_words, speed_table
from runs import cpu_name
from selection import score, select
from wild import open_pool

PHOTOS = ('.jpg', '.jpeg', '.png')
NEED = {'decode': 1.5, 'load': 20, 'score': 3.5, 'distil': 3.8, 'teacher': 3, 'dafl': 4.5}  # ours over plain, at least
NEED_SHARE = {'score': 1.0, 'distil': 1.0}  # of the machine's own matrix product, at least

# ---------------------------------------------------------------- what the rows share


def draw_photos(folder, count):
    """JPEGs of realistic sizes and qualities: smooth shapes, edges and noise, so that the files are as long as a camera's."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        width, height = (500, 375) if i % 4 else (375, 500)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
        fine = Image.fromarray(random.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)).resize(coarse.size, Image.BILINEAR)
        image = Image.blend(coarse, fine, 0.15)
        image.save(folder / f'{i:06d}.jpg', quality=int(random.integers(75, 96)))


class Work:
    """The photos as class folders, which ImageFolder wants, a teacher of ResNet-34's shape, a test set, and a folder for runs."""

    def __init__(self, folder, args):
        self.folder, self.width, self.photos = folder, args.width, folder / 'photos'
        if not args.photos:
            draw_photos(folder / 'drawn', args.images)
        found = sorted(p for p in Path(args.photos or folder / 'drawn').resolve().rglob('*') if p.suffix.lower() in PHOTOS)
        if len(found) < 100:
            raise utils.UserError(f'--photos {args.photos} holds {len(found)} photos ({", ".join(PHOTOS)}): at least 100 are needed')
        for i, path in enumerate(found[: args.images]):
            (self.photos / f'{i // 100:03d}').mkdir(parents=True, exist_ok=True)
            (self.photos / f'{i // 100:03d}' / f'{i:06d}{path.suffix}').symlink_to(path)
        self.cache, self.teacher_file, self.real_teacher = folder / 'cache', folder / 'teacher.pt', args.teacher
        self.count, self.limits = len(self.pool()), {}
        torch.manual_seed(0)
        self.teacher = build('resnet34', self.width, 10, 3).eval()
        save_network(self.teacher_file, self.teacher, CIFAR.facts('cifar10', 'resnet34', self.width) | {'accuracy': 0.95})
        for i in range(10):  # a test set of ten images, so that nothing is downloaded
            for part in ('train', 'test'):
                (folder / 'cifar10' / part / f'{i}').mkdir(parents=True)
                Image.new('RGB', (32, 32), (20 * i,) * 3).save(folder / 'cifar10' / part / f'{i}' / '0.png')

    def pool(self):
        return open_pool([str(self.photos)], 3, str(self.folder), str(self.cache), WORKERS)


# ---------------------------------------------------------------- rows: each returns lists of rates (plain, ours, machine), and
# what an image costs, in operations or in bytes


def bench_decode(args, work, machine):
    paths = sorted(str(p) for p in work.photos.rglob('*.*'))

    def ours(path):
        with Image.open(path) as image:
            return to_array(image, 32, 3)

    plain, reduced = (np.stack([decode(p) for p in paths]) for decode in (lambda p: bench_plain.decode(p, 32), ours))
    require('decode', 'mean absolute difference in grey levels', float(np.abs(plain.astype(int) - reduced).mean()), 1.2)
    if work.real_teacher:
        require('decode', f'overlap of the cleanest 10 % of {len(paths)} by a real teacher',
                overlap(work.real_teacher, plain, reduced), 0.9, at_least=True)
    return *in_turn(lambda: per_second(lambda: [bench_plain.decode(p, 32) for p in paths], len(paths)),
                    lambda: per_second(lambda: [ours(p) for p in paths], len(paths)), args.repeats), None


@torch.no_grad()
def overlap(teacher_file, *both):
    """The share of the cleanest tenth of one decoding that is in the other's."""
    teacher, facts = load_network(teacher_file)
    normalise, clean = Normalise(facts['mean'], facts['std'], CPU), []
    for images in both:
        noise = torch.cat([-teacher(normalise(x)).log_softmax(1).max(1).values for x in torch.from_numpy(images).split(100)])
        clean.append(set(noise.argsort(stable=True)[: len(images) // 10].tolist()))
    return len(clean[0] & clean[1]) / len(clean[0])


def bench_load(args, work, machine):
    normalise = Normalise(CIFAR.mean, CIFAR.std, CPU)
    images = work.pool().take(np.arange(work.count))
    reference = torch.cat([x for x, _ in bench_plain.loader(work.photos, False, 256, WORKERS)])
    require('load', 'mean absolute difference of normalised pixels', float((reference - normalise(images)).abs().mean()), 0.03)
    published = bench_plain.loader(work.photos, True, 256, WORKERS)
    return *in_turn(lambda: per_second(lambda: [None for _ in published], work.count),
                    lambda: work.ours.submit(load_rate, images.numpy()).result(), args.repeats, args.copy_rate), 3072 * (1 + 4)


def load_rate(images):
    images, normalise = torch.from_numpy(images), Normalise(CIFAR.mean, CIFAR.std, CPU)

    def epochs():
        for epoch in range(1, 11):
            for _, x, *_ in batches(EpochPlan(len(images), 256, 0, epoch, True, True), images, CPU):
                normalise(x)

    return per_second(epochs, 10 * len(images))


def bench_score(args, work, machine):
    def plain():
        return bench_plain.score(work.teacher, bench_plain.loader(work.photos, False, 256, WORKERS))

    def ours():
        return work.ours.submit(score_pool, str(work.teacher_file), str(work.photos), str(work.cache)).result()

    require('score', 'mean absolute difference of the noise in nats', float(np.abs(plain() - ours()[0]).mean()), 0.05)
    rates = in_turn(lambda: per_second(plain, work.count), lambda: work.count / ours()[1], args.repeats, machine)
    work.limits['score'] = work.ours.submit(convolution_rate, work.teacher, None).result()
    return *rates, TEACHER_FLOPS * (work.width / 64) ** 2


@functools.cache
def opened(teacher_file, photos, cache, workers=WORKERS):
    teacher, facts, _ = load_teacher(teacher_file, 'cifar10', CIFAR, CPU, 'auto')
    return teacher, open_pool([photos], 3, 'data', cache, workers), Normalise(facts['mean'], facts['std'], CPU), CPU, facts['amp']


def score_pool(teacher_file, photos, cache):
    """(noise, seconds)."""
    ready = opened(teacher_file, photos, cache)
    start = time.perf_counter()
    noise, _ = score(*ready)
    return noise, time.perf_counter() - start


def bench_distil(args, work, machine):
    batch = min(256, work.count)
    logits, theta, labels = torch.randn(batch, 10), torch.randn(10, 9), torch.randint(10, (batch,))
    both = [nll(logits, labels, theta, 0.95) for nll in (bench_plain.noisy_nll, noisy_nll)]
    require('distil', 'difference of the noise-adapted likelihood', float((both[0] - both[1]).abs()), 1e-4)
    step = bench_plain.distillation_step(work.teacher, work.width)

    def plain():  # each worker decodes its part of this one batch, and nothing of the next
        parts = bench_plain.loader(work.photos, True, -(-batch // WORKERS), WORKERS, batch)
        return per_second(lambda: step(torch.cat([x for x, _ in parts])), batch)

    def ours():
        return epoch_rate('DFND-train.py', '--dataset', 'cifar10', '--data', work.folder, '--teacher_dir', work.teacher_file,
                          '--teacher_acc', 0.95, '--wild', work.photos, '--cache_dir', work.cache, '--select', 'all',
                          '--epochs', 2, '--batch_size', batch, cwd=work.folder, epoch=2)

    rates = in_turn(plain, ours, args.repeats, machine)
    work.limits['distil'] = work.ours.submit(convolution_rate, work.teacher, build('resnet18', work.width, 10, 3)).result()
    return *rates, (TEACHER_FLOPS + 3 * STUDENT_FLOPS) * (work.width / 64) ** 2


def bench_teacher(args, work, machine):
    epoch, count = bench_plain.mnist_epoch(WORKERS)
    return *in_turn(lambda: per_second(epoch, count), lambda: epoch_rate('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 3,
                                                                         cwd=work.folder, epoch=3), args.repeats), None


def bench_dafl(args, work, machine):
    batch = 32 if args.quick else 512
    teacher = build('lenet5', 6, 10, 1).eval()
    ours, plain = Generator(32, 100, 1), bench_plain.PlainGenerator(32, 100, 1)
    plain.load_state_dict(ours.state_dict())
    z = torch.randn(16, 100)
    require('dafl', "largest difference of a generated image's pixel", float((ours(z) - plain(z)).detach().abs().max()), 1e-4)
    step = bench_plain.dafl_step(teacher, batch)
    save_network(work.folder / 'lenet.pt', teacher, MNIST.facts('mnist5k', 'lenet5', 6) | {'accuracy': 0.98})
    command = ['DAFL-train.py', '--dataset', 'mnist5k', '--teacher_dir', work.folder / 'lenet.pt', '--epochs', 2, '--epoch_steps', 3,
               '--batch_size', batch]
    return *in_turn(lambda: per_second(step, batch), lambda: epoch_rate(*command, cwd=work.folder, epoch=2), args.repeats), None


def bench_selection(count, classes):
    """Seconds and peak memory in GiB of balanced selection of a tenth of `count` scores over `classes` classes."""
    random = np.random.default_rng(0)
    noise, labels = random.standard_exponential(count, np.float32), random.integers(0, classes, count)
    start = time.perf_counter()
    chosen = select(noise, labels, count // 10, 'balanced', classes, 0)
    seconds = time.perf_counter() - start
    gib = peak_growth(lambda: select(noise, labels, count // 10, 'balanced', classes, 0)) / 2**30
    return seconds, gib, len(np.unique(chosen))


# ---------------------------------------------------------------- all rows

ROWS = {'decode': bench_decode, 'load': bench_load, 'score': bench_score, 'distil': bench_distil, 'teacher': bench_teacher,
        'dafl': bench_dafl}


def measure(args, work, machine):
    """{row: its figures}, and a list of those that fall short."""
    rows, short = {}, []
    for name in (n for n in args.rows if n in ROWS):
        plain, ours, own, cost = ROWS[name](args, work, machine)
        ratio = statistics.median(o / p for p, o in zip(plain, ours))
        rows[name] = {'plain': plain, 'ours': ours, 'ratio': ratio, 'need': NEED[name]}
        if cost:
            rows[name] |= {'machine': own, 'share': statistics.median(o * cost / m for o, m in zip(ours, own))}
        if name in work.limits:
            rows[name]['limit'] = work.limits[name] / statistics.median(plain)
        if ratio < NEED[name]:
            short.append(f'{name}: {ratio:.2f} x, needed {NEED[name]} x')
        if rows[name].get('share', 9) < NEED_SHARE.get(name, 0):
            short.append(f'{name}: {100 * rows[name]["share"]:.0f} % of the matrix product, needed {100 * NEED_SHARE[name]:.0f} %')
        print(f'{name}: {ratio:.2f} x', flush=True)
    if 'selection' in args.rows:
        count, classes = (100_000, 100) if args.quick else (10_000_000, 1000)
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as fresh:
            seconds, gib, kept = fresh.submit(bench_selection, count, classes).result()
        require('selection', 'images chosen twice or missing', count // 10 - kept, 0)
        rows['selection'] = {'seconds': seconds, 'GiB': gib, 'scores': count, 'classes': classes}
        if seconds > 3 or gib > 1:
            short.append(f'selection: {seconds:.2f} s and {gib:.2f} GiB, needed 3 s and 1 GiB')
    return rows, short


def main():
    parser = arguments.Parser(__doc__.split('\n')[0])
    add_arguments(parser, quick='width 8 and few images, once: does it run', out='bench.json')
    parser.add_argument('--photos', metavar='DIR', help='a folder of real photos, in place of drawn ones')
    parser.add_argument('--teacher', metavar='FILE', help="a trained teacher's file: checks that the decoding keeps its selection")
    parser.add_argument('--images', type=arguments.at_least(int, 100), default=512, help='photos to draw, or to take of --photos')
    parser.add_argument('--repeats', type=arguments.at_least(int, 1), default=3)
    parser.add_argument('--rows', nargs='+', choices=[*NEED, 'selection'], default=[*NEED, 'selection'], help='leave rows out')
    args = parser.parse_args()
    args.width = 8 if args.quick else 64
    if args.quick:
        args.images, args.repeats = 100, 1
    product = functools.partial(matmul_rate, 512 if args.quick else 4096)
    args.copy_rate = functools.partial(copy_rate, 16 if args.quick else 256)
    machine = {'name': cpu_name(), 'threads': torch.get_num_threads(), 'precision': str(DTYPE).removeprefix('torch.'),
               'matmul_flops': product(), 'copy_bytes': args.copy_rate()}
    print(machine_words(machine))
    with tempfile.TemporaryDirectory() as folder, \
            ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), utils.pick_device, ('cpu',)) as ours:
        work = Work(Path(folder), args)
        work.ours = ours
        rows, short = measure(args, work, product)
    sizes = [p.stat().st_size for p in Path(args.photos).rglob('*') if p.suffix.lower() in PHOTOS] if args.photos else []
    content = {'machine': machine, 'photos': args.photos and Path(args.photos).name, 'photo_bytes': sizes and round(statistics.mean(sizes)),
               'checks': CHECKS, 'rows': rows}
    finish(args, content, speed_table, short)


if __name__ == '__main__':
    utils.run_script(main)
