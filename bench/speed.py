"""Speed, beside a plain implementation of the published pipeline (bench/plain.py).

    python -m bench.speed               # a table, and bench.json: about ten minutes on two cores
    python -m bench.speed --check       # exits 1 when a figure falls short, and names it in the last line
    python -m bench.speed --quick       # small networks, few images: does it run

Plain and ours run in turn, warmed up, and beside them the machine's own matrix product; each figure is the median over the
repeats. Before a row is timed, the two are checked to compute the same, except the teacher's. Ours runs in processes of its
own: the scripts have the C library keep freed memory (training.keep_freed_memory), which would speed the plain pipeline up too.
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
from bench import measure
from bench import plain as published
from bench.measure import CPU, WORKERS, epoch_rate, per_second, require
from data import CIFAR, MNIST, EpochPlan, batches
from generator import Generator
from keep.origin import cpu_name
from losses import noisy_nll
from networks import SIZE, Normalise, build, load_network, save_network
from own.teacher import load_teacher
from paper.bench_tables import STUDENT_FLOPS, TEACHER_FLOPS, machine_words, speed_table
from selection import Rule, score, select
from training import pick_device
from utils import UserError, run_script
from wild.pixels import to_array
from wild.pool import Wild, open_pool
from wild.reading import Decoder

PHOTOS = ('.jpg', '.jpeg', '.png')
NEED = {'decode': 1.5, 'load': 20, 'score': 3.5, 'distil': 3.8, 'teacher': 3, 'dafl': 4.5, 'muon': 0.9}  # ours over plain, at least
NEED_SHARE = {'score': 1.0, 'distil': 1.0}  # of the machine's own matrix product, at least

# ---------------------------------------------------------------- what the rows share


def draw_photos(folder, count):
    """JPEGs of realistic sizes and qualities: smooth shapes, edges and noise, so that the files are as long as a camera's."""
    random = np.random.default_rng(0)
    folder.mkdir()

    def shapes(rows, columns):
        return Image.fromarray(random.integers(0, 256, (rows, columns, 3), dtype=np.uint8))

    for i in range(count):
        size = width, height = (500, 375) if i % 4 else (375, 500)
        coarse = shapes(6, 8).resize(size, Image.BICUBIC)
        fine = shapes(height // 4, width // 4).resize(size, Image.BILINEAR)
        Image.blend(coarse, fine, 0.15).save(folder / f'{i:06d}.jpg', quality=int(random.integers(75, 96)))


def find_photos(folder):
    return sorted(p for p in Path(folder).resolve().rglob('*') if p.suffix.lower() in PHOTOS)


class Work:
    """The photos as class folders, which ImageFolder wants, a teacher of ResNet-34's shape, a test set, and a folder for runs."""

    def __init__(self, folder, args, ours):
        self.folder, self.ours, self.width, self.photos = folder, ours, args.width, folder / 'photos'
        if not args.photos:
            draw_photos(folder / 'drawn', args.images)
        found = find_photos(args.photos or folder / 'drawn')
        if len(found) < 100:
            raise UserError(f'--photos {args.photos} holds {len(found)} photos ({", ".join(PHOTOS)}): at least 100 are needed')
        for i, path in enumerate(found[: args.images]):
            link = self.photos / f'{i // 100:03d}' / f'{i:06d}{path.suffix}'
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        torch.manual_seed(0)
        self.teacher = build('resnet34', self.width, 10, 3).eval()
        save_network(folder / 'teacher.pt', self.teacher, CIFAR.facts('cifar10', 'resnet34', self.width) | {'accuracy': 0.95})
        self.where = str(folder / 'teacher.pt'), str(self.photos), str(folder / 'cache')
        self.count = len(opened(*self.where)[1])
        for name in [f'{part}/{i}' for part in ('train', 'test') for i in range(10)]:  # a data set, so that nothing is downloaded
            (folder / 'cifar10' / name).mkdir(parents=True)
            Image.new('RGB', (32, 32), (20 * int(name[-1]),) * 3).save(folder / 'cifar10' / name / '0.png')


@functools.cache
def opened(teacher_file, photos, cache):
    """(Teacher, Pool), once a process."""
    return load_teacher(teacher_file, 'cifar10', CIFAR, CPU, 'auto'), open_pool(Wild([photos], SIZE, 3, 'data', cache, Decoder(WORKERS)))


# ---------------------------------------------------------------- rows
# Each returns functions that return a rate: plain's and ours; where there is one to compare with, also the machine's own, with an
# image's cost in operations or bytes, and the teacher and the student (or None) whose convolutions bound the rate.


def bench_decode(args, work):
    paths = sorted(str(p) for p in work.photos.rglob('*.*'))

    def reduced(path):
        with Image.open(path) as image:
            return to_array(image, 32, 3)

    one, other = (np.stack([decode(p) for p in paths]) for decode in (published.decode, reduced))
    require('decode', 'mean absolute difference in grey levels', float(np.abs(one.astype(int) - other).mean()), 1.2)
    if args.teacher:
        require('decode', f'overlap of the cleanest 10 % of {len(paths)} by a real teacher', overlap(args.teacher, one, other), 0.9, True)

    def rate(decode):
        return per_second(lambda: [decode(p) for p in paths], len(paths))

    return lambda: rate(published.decode), lambda: rate(reduced)


def overlap(teacher_file, *both):
    """The share of the cleanest tenth of one decoding that is in the other's."""
    teacher, facts = load_network(teacher_file)
    normalise, clean = Normalise(facts['mean'], facts['std'], CPU), []
    for images in both:
        noise = published.score(teacher, ((normalise(x), None) for x in torch.from_numpy(images).split(100)))
        clean.append(set(noise.argsort(kind='stable')[: len(images) // 10].tolist()))
    return len(clean[0] & clean[1]) / len(clean[0])


def bench_load(args, work):
    normalise = Normalise(CIFAR.mean, CIFAR.std, CPU)
    images = opened(*work.where)[1].take(np.arange(work.count))
    reference = torch.cat([x for x, _ in published.loader(work.photos, False, 256, WORKERS)])
    require('load', 'mean absolute difference of normalised pixels', float((reference - normalise(images)).abs().mean()), 0.03)
    loader = published.loader(work.photos, True, 256, WORKERS)
    return (lambda: per_second(lambda: [None for _ in loader], work.count),
            lambda: work.ours.submit(load_rate, images.numpy()).result(), args.copy_rate, 3072 * (1 + 4))


def load_rate(images):
    images, normalise = torch.from_numpy(images), Normalise(CIFAR.mean, CIFAR.std, CPU)

    def epochs():
        for epoch in range(1, 11):
            for _, x, *_ in batches(EpochPlan(len(images), 256, 0, epoch, 4, True), images, CPU):
                normalise(x)

    return per_second(epochs, 10 * len(images))


def bench_score(args, work):
    def plain():
        return published.score(work.teacher, published.loader(work.photos, False, 256, WORKERS))

    def ours():
        return work.ours.submit(score_pool, work.where).result()

    require('score', 'mean absolute difference of the noise in nats', float(np.abs(plain() - ours()[0]).mean()), 0.05)
    return (lambda: per_second(plain, work.count), lambda: ours()[1],
            args.matmul_rate, TEACHER_FLOPS * (work.width / 64) ** 2, work.teacher, None)


def score_pool(where):
    """(noise, images a second)."""
    ready, noise = opened(*where), []
    rate = per_second(lambda: noise.append(score(*ready)[0]), len(ready[1]))
    return noise[0], rate


def bench_distil(args, work):
    batch = min(256, work.count)
    logits, theta, labels = torch.randn(batch, 10), torch.randn(10, 9), torch.randint(10, (batch,))
    one, other = (nll(logits, labels, theta, 0.95) for nll in (published.noisy_nll, noisy_nll))
    require('distil', 'difference of the noise-adapted likelihood', float((one - other).abs()), 1e-4)
    step = published.distillation_step(work.teacher, work.width)

    def plain():  # each worker decodes its part of this one batch, and nothing of the next
        parts = published.loader(work.photos, True, -(-batch // WORKERS), WORKERS, batch)
        return per_second(lambda: step(torch.cat([x for x, _ in parts])), batch)

    def ours():
        return distil_rate(work, '--recipe', 'corrected', '--batch_size', batch, '--teacher_acc', 0.95)

    return (plain, ours, args.matmul_rate, (TEACHER_FLOPS + 3 * STUDENT_FLOPS) * (work.width / 64) ** 2,
            work.teacher, build('resnet18', work.width, 10, 3))


def distil_rate(work, *flags):
    teacher_file, photos, cache = work.where
    return epoch_rate('DFND-train.py', '--dataset', 'cifar10', '--data', work.folder, '--teacher_dir', teacher_file, '--wild', photos,
                      '--cache_dir', cache, '--select', 'all', '--epochs', 2, *flags, cwd=work.folder, epoch=2)


def bench_muon(args, work):
    """What the optimiser of the recipe short costs: both are ours, and 'plain' is the same training by SGD."""
    return (lambda: distil_rate(work, '--recipe', 'short', '--optimizer', 'sgd'), lambda: distil_rate(work, '--recipe', 'short'))


def bench_teacher(args, work):
    epoch, count = published.mnist_epoch(WORKERS)
    return (lambda: per_second(epoch, count),
            lambda: epoch_rate('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 3, cwd=work.folder, epoch=3))


def bench_dafl(args, work):
    batch = 32 if args.quick else 512
    teacher = build('lenet5', 6, 10, 1).eval()
    one, other = Generator(32, 100, 1), published.PlainGenerator(32, 100, 1)
    other.load_state_dict(one.state_dict())
    z = torch.randn(16, 100)
    require('dafl', "largest difference of a generated image's pixel", float((one(z) - other(z)).detach().abs().max()), 1e-4)
    step = published.dafl_step(teacher, batch)
    save_network(work.folder / 'lenet.pt', teacher, MNIST.facts('mnist5k', 'lenet5', 6) | {'accuracy': 0.98})
    flags = ['--dataset', 'mnist5k', '--teacher_dir', work.folder / 'lenet.pt', '--epochs', 2, '--epoch_steps', 3, '--batch_size', batch]
    return lambda: per_second(step, batch), lambda: epoch_rate('DAFL-train.py', *flags, cwd=work.folder, epoch=2)


def bench_selection(count, classes):
    """Seconds and peak memory in GiB of balanced selection of a tenth of `count` scores over `classes` classes."""
    random = np.random.default_rng(0)
    noise, labels = random.standard_exponential(count, np.float32), random.integers(0, classes, count)
    choose = functools.partial(select, noise, labels, Rule('balanced', count // 10, 0), classes)
    start = time.perf_counter()
    chosen = choose()
    seconds = time.perf_counter() - start
    return seconds, measure.peak_growth(choose) / 2**30, len(np.unique(chosen))


# ---------------------------------------------------------------- all rows

ROWS = {'decode': bench_decode, 'load': bench_load, 'score': bench_score, 'distil': bench_distil, 'teacher': bench_teacher,
        'dafl': bench_dafl, 'muon': bench_muon}


def figures(args, work):
    """{row: its figures}, and a list of those that fall short."""
    rows, short = {}, []
    for name in (n for n in args.rows if n in ROWS):
        plain, ours, *more = ROWS[name](args, work)
        own, cost, *nets = more or (lambda: None, None)
        plain, ours, own = measure.in_turn(plain, ours, args.repeats, own)
        ratio = statistics.median(o / p for p, o in zip(plain, ours))
        row = rows[name] = {'plain': plain, 'ours': ours, 'ratio': ratio, 'need': NEED[name]}
        if cost:
            row |= {'machine': own, 'share': statistics.median(o * cost / m for o, m in zip(ours, own))}
        if nets:
            row['limit'] = work.ours.submit(measure.convolution_rate, *nets).result() / statistics.median(plain)
        if ratio < NEED[name]:
            short.append(f'{name}: {ratio:.2f} x, needed {NEED[name]} x')
        if row.get('share', 9) < NEED_SHARE.get(name, 0):
            short.append(f'{name}: {100 * row["share"]:.0f} % of the matrix product, needed {100 * NEED_SHARE[name]:.0f} %')
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
    measure.add_arguments(parser, quick='width 8 and few images, once: does it run')
    parser.add_argument('--photos', metavar='DIR', help='a folder of real photos, in place of drawn ones')
    parser.add_argument('--teacher', metavar='FILE', help="a trained teacher's file: checks that the decoding keeps its selection")
    parser.add_argument('--images', type=arguments.at_least(int, 100), default=512, help='photos to draw, or to take of --photos')
    parser.add_argument('--repeats', type=arguments.at_least(int, 1), default=3, help='measurements of a row, of which the median counts')
    parser.add_argument('--rows', nargs='+', choices=[*NEED, 'selection'], default=[*NEED, 'selection'], help='measure these alone')
    args = parser.parse_args()
    args.width = 8 if args.quick else 64
    if args.quick:
        args.images, args.repeats = 100, 1
    args.matmul_rate = functools.partial(measure.matmul_rate, 512 if args.quick else 4096)
    args.copy_rate = functools.partial(measure.copy_rate, 16 if args.quick else 256)
    machine = {'name': cpu_name(), 'threads': torch.get_num_threads(), 'precision': str(measure.DTYPE).removeprefix('torch.'),
               'matmul_flops': args.matmul_rate(), 'copy_bytes': args.copy_rate()}
    print(machine_words(machine))
    with tempfile.TemporaryDirectory() as folder, \
            ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), pick_device, ('cpu',)) as ours:
        rows, short = figures(args, Work(Path(folder), args, ours))
    sizes = [p.stat().st_size for p in find_photos(args.photos)] if args.photos else []
    content = {'machine': machine, 'photos': args.photos and Path(args.photos).name, 'photo_bytes': sizes and round(statistics.mean(sizes)),
               'checks': measure.CHECKS, 'rows': rows}
    return measure.finish(args, 'speed', content, speed_table, short)


if __name__ == '__main__':
    run_script(main)
