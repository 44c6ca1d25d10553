"""Speed, beside a plain implementation of the published pipeline that stands in this file.

    python bench.py                     # a table, and bench.json
    python bench.py --check             # exits 1 when a ratio falls short, and names it in the last line
    python bench.py --quick             # small networks, few images: does it run

The published pipeline: torchvision ImageFolder, DataLoader, transforms image by image, float32, decoded in every epoch, the
adaptation matrix row by row. Plain and ours run in turn, warmed up; each figure is the median over the repeats. Before
anything is timed, the two are checked to compute the same.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision import transforms

import arguments
import utils
from data import CIFAR, MNIST, EpochPlan, Normalise, mnist5k
from decode import to_array
from generator import Generator
from losses import activation_loss, information_entropy_loss, kd_loss, one_hot_loss
from networks import build, fold_batch_norms, save_network
from selection import score, select
from wild import open_pool

ROOT = Path(__file__).resolve().parent
WORKERS = os.cpu_count() or 1
NEED = {'decode': 1.5, 'load': 20, 'score': 3.5, 'distil': 3.8, 'teacher': 3, 'dafl': 4.5}  # ours over plain, at least


# ---------------------------------------------------------------- measuring


def in_turn(plain, ours, repeats):
    """Runs the two in turn, once to warm up. Each returns images a second. Returns the two lists."""
    plain(), ours()
    rates = [(plain(), ours()) for _ in range(repeats)]
    return [r[0] for r in rates], [r[1] for r in rates]


def per_second(function, count):
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def require(name, what, value, limit):
    """Stops the benchmark where plain and ours don't compute the same: the speed of something else is no figure."""
    print(f'{name}: {what} {value:.4g} (at most {limit:g})', flush=True)
    if not value <= limit:
        raise utils.UserError(f'{name}: {what} is {value:.4g}, and at most {limit:g} is the same result: nothing was timed')


def matmul_rate(size):
    """Multiply-adds a second, times two, of the machine's own bfloat16 matrix product (float32 where bfloat16 is not native)."""
    dtype = torch.bfloat16 if utils.has_bf16(torch.device('cpu')) else torch.float32
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    return statistics.median(per_second(lambda: torch.mm(a, b), 2 * size**3) for _ in range(5))


def copy_rate(mebibytes):
    """Bytes a second of a copy in memory."""
    a = torch.zeros(mebibytes * 2**20, dtype=torch.uint8)
    b = a.clone()
    return statistics.median(per_second(lambda: b.copy_(a), 2 * len(a)) for _ in range(5))


def run_script(script, *args, cwd, epoch):
    """Images a second in one epoch of a script, as its own metrics.jsonl has it: without the start-up."""
    name = f'{script}-{time.time_ns()}'
    command = [sys.executable, ROOT / script, *map(str, args), '--output_dir', cwd / 'runs', '--run', name]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise utils.UserError(f'{script} failed: {done.stderr.strip()}')
    rows = [json.loads(line) for line in (cwd / 'runs' / name / 'metrics.jsonl').read_text().splitlines()]
    return rows[epoch - 1]['images_per_s']


# ---------------------------------------------------------------- the photos


def draw_photos(folder, count):
    """JPEGs of realistic sizes and qualities: smooth shapes, edges and noise, so that the files are as long as a camera's."""
    random = np.random.default_rng(0)
    for i in range(count):
        width, height = (500, 375) if i % 4 else (375, 500)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
        fine = Image.fromarray(random.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)).resize(coarse.size, Image.BILINEAR)
        image = Image.blend(coarse, fine, 0.15)
        path = folder / f'{i // 100:03d}' / f'{i:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=int(random.integers(75, 96)))


# ---------------------------------------------------------------- rows: each returns (plain's rates, our rates, flops an image)


def bench_decode(args, work):
    paths = sorted(str(p) for p in work.photos.rglob('*') if p.is_file())[: args.images]
    resize = transforms.Resize((32, 32))

    def plain(path):
        with Image.open(path) as image:
            return np.asarray(resize(image.convert('RGB'))).transpose(2, 0, 1)

    def ours(path):
        with Image.open(path) as image:
            return to_array(image, 32, 3)

    difference = statistics.mean(float(np.abs(plain(p).astype(int) - ours(p)).mean()) for p in paths)
    require('decode', 'mean absolute difference in grey levels', difference, 1.2)
    count = len(paths)
    return *in_turn(lambda: per_second(lambda: [plain(p) for p in paths], count),
                    lambda: per_second(lambda: [ours(p) for p in paths], count), args.repeats), None


def published_loader(folder, train, batch_size):
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
    normalise = transforms.Normalize(CIFAR.mean, CIFAR.std)
    transform = transforms.Compose([transforms.Resize((32, 32)), *steps, transforms.ToTensor(), normalise])
    dataset = torchvision.datasets.ImageFolder(folder, transform)
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=train, num_workers=WORKERS)


def bench_load(args, work):
    loader, count = published_loader(work.photos, True, 256), len(work.pool)
    normalise = Normalise(CIFAR.mean, CIFAR.std, torch.device('cpu'))
    images = work.pool.take(np.arange(count))
    reference = torch.cat([x for x, _ in published_loader(work.photos, False, 256)])
    require('load', 'mean absolute difference of normalised pixels', float((reference - normalise(images)).abs().mean()), 0.02)

    def ours():
        for indices, augment, *_ in EpochPlan(count, 256, 0, 1, True, True):
            normalise(augment(images[indices]))

    return *in_turn(lambda: per_second(lambda: [None for _ in loader], count), lambda: per_second(ours, count), args.repeats), None


def bench_score(args, work):
    teacher = work.teacher
    folded = utils.to_device(fold_batch_norms(work.fresh_teacher()), torch.device('cpu'))
    normalise = Normalise(CIFAR.mean, CIFAR.std, torch.device('cpu'))
    amp, count = utils.pick_amp('auto', torch.device('cpu'), 'resnet34'), len(work.pool)

    @torch.no_grad()
    def plain():
        noise = []
        for x, _ in published_loader(work.photos, False, 256):
            logits = teacher(x)
            noise.append(F.cross_entropy(logits, logits.argmax(dim=1), reduction='none'))
        return torch.cat(noise).numpy()

    def ours():
        return score(folded, work.pool, normalise, torch.device('cpu'), amp)[0]

    require('score', 'mean absolute difference of the noise in nats', float(np.abs(plain() - ours()).mean()), 0.05)
    return *in_turn(lambda: per_second(plain, count), lambda: per_second(ours, count), args.repeats), work.flops


def row_by_row_q(theta, accuracy):
    """The adaptation matrix as the published code builds it."""
    rows = []
    for i in range(len(theta)):
        off = (1 - accuracy) * F.softmax(theta[i], dim=0)
        rows.append(torch.cat([off[:i], torch.tensor([accuracy]), off[i:]]))
    return torch.stack(rows)


def bench_distil(args, work):
    teacher, student = work.teacher, build('resnet18', args.width, 10, 3).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    theta = torch.zeros(10, 9, requires_grad=True)
    optimizer_theta = torch.optim.Adam([theta], 1e-3)
    batch = min(256, len(work.pool))

    def plain():
        loader = iter(published_loader(work.photos, True, batch))
        start = time.perf_counter()
        x, _ = next(loader)
        with torch.no_grad():
            t = teacher(x)
        s, y = student(x), t.argmax(dim=1)
        loss = kd_loss(s, t, 4) - torch.log((F.softmax(s, dim=1) @ row_by_row_q(theta, 0.95)).gather(1, y[:, None])).mean()
        optimizer.zero_grad()
        optimizer_theta.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer_theta.step()
        return len(x) / (time.perf_counter() - start)

    def ours():
        return run_script('DFND-train.py', '--dataset', 'cifar10', '--data', work.folder, '--teacher_dir', work.folder / 'teacher.pt',
                          '--teacher_acc', 0.95, '--wild', work.photos, '--cache_dir', work.folder / 'cache', '--select', 'all',
                          '--epochs', 2, '--batch_size', batch, cwd=work.folder, epoch=2)

    student_flops = 2 * 555_422_720 * (args.width / 64) ** 2
    return *in_turn(plain, ours, args.repeats), work.flops + 3 * student_flops


def bench_teacher(args, work):
    pixels, labels = mnist5k()
    order = np.random.default_rng(0).permutation(len(pixels))[:4000]
    transform = transforms.Compose([transforms.Resize((32, 32)), transforms.RandomCrop(32, padding=4), transforms.ToTensor(),
                                    transforms.Normalize(MNIST.mean, MNIST.std)])
    images = [Image.fromarray(x) for x in pixels[order].astype(np.uint8).reshape(-1, 28, 28)]
    dataset = [(image, int(label)) for image, label in zip(images, labels[order])]
    loader = torch.utils.data.DataLoader(Transformed(dataset, transform), batch_size=128, shuffle=True, num_workers=WORKERS)
    net = build('lenet5', 6, 10, 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def plain():
        for x, y in loader:
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return *in_turn(lambda: per_second(plain, 4000), lambda: run_script('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 3,
                                                                        cwd=work.folder, epoch=3), args.repeats), None


class Transformed(torch.utils.data.Dataset):
    def __init__(self, pairs, transform):
        self.pairs, self.transform = pairs, transform

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        image, label = self.pairs[i]
        return self.transform(image), label


def bench_dafl(args, work):
    batch = 32 if args.quick else 512
    teacher, student, generator = build('lenet5', 6, 10, 1).eval(), build('lenet5half', 3, 10, 1), Generator(32, 100, 1)
    optimizers = torch.optim.Adam(student.parameters(), 2e-3), torch.optim.Adam(generator.parameters(), 0.2)

    def plain():
        start = time.perf_counter()
        x = generator(torch.randn(batch, 100))
        t, feature = teacher(x, out_feature=True)
        loss = one_hot_loss(t) + 5 * information_entropy_loss(F.softmax(t, dim=1).mean(dim=0)) + 0.1 * activation_loss(feature)
        loss = loss + kd_loss(student(x.detach()), t.detach(), 1)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return batch / (time.perf_counter() - start)

    save_network(work.folder / 'lenet.pt', teacher, MNIST.facts('mnist5k', 'lenet5', 6) | {'accuracy': 0.98})
    command = ['DAFL-train.py', '--dataset', 'mnist5k', '--teacher_dir', work.folder / 'lenet.pt', '--epochs', 2, '--epoch_steps', 3,
               '--batch_size', batch]
    return *in_turn(plain, lambda: run_script(*command, cwd=work.folder, epoch=2), args.repeats), None


def bench_selection(count, classes):
    """Seconds of balanced selection of a tenth of `count` scores over `classes` classes."""
    random = np.random.default_rng(0)
    noise, labels = random.exponential(size=count).astype(np.float32), random.integers(0, classes, count)
    start = time.perf_counter()
    chosen = select(noise, labels, count // 10, 'balanced', classes, 0)
    seconds = time.perf_counter() - start
    require('selection', 'number of images short of num_select', count // 10 - len(np.unique(chosen)), 0)
    return seconds


# ---------------------------------------------------------------- the table


class Work:
    """What the rows share: the photos, the pool made of them, a teacher of ResNet-34's shape, and a folder for the runs."""

    def __init__(self, folder, args):
        self.folder, self.width = folder, args.width
        self.photos = Path(args.photos).resolve() if args.photos else folder / 'photos'
        if not args.photos:
            draw_photos(self.photos, args.images)
        self.pool = open_pool([str(self.photos)], 3, str(folder), str(folder / 'cache'), WORKERS)
        self.teacher = self.fresh_teacher()
        save_network(folder / 'teacher.pt', self.teacher, CIFAR.facts('cifar10', 'resnet34', self.width) | {'accuracy': 0.95})
        for i in range(10):  # a test set of ten images, so that nothing is downloaded
            for part in ('train', 'test'):
                (folder / 'cifar10' / part / f'{i}').mkdir(parents=True)
                Image.new('RGB', (32, 32), (20 * i,) * 3).save(folder / 'cifar10' / part / f'{i}' / '0.png')
        self.flops = 2 * 1_159_400_448 * (self.width / 64) ** 2

    def fresh_teacher(self):
        torch.manual_seed(0)
        return build('resnet34', self.width, 10, 3).eval()


def main():
    parser = arguments.Parser(__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='width 8 and few images, once: does it run')
    parser.add_argument('--check', action='store_true', help='exit 1 when a ratio falls short of what is needed')
    parser.add_argument('--photos', metavar='DIR', help='a folder of class folders of real photos, in place of drawn ones')
    parser.add_argument('--images', type=arguments.at_least(int, 100), default=512, help='photos to draw')
    parser.add_argument('--repeats', type=arguments.at_least(int, 1), default=3)
    parser.add_argument('--rows', nargs='+', choices=[*NEED, 'selection'], default=[*NEED, 'selection'], help='leave rows out')
    parser.add_argument('--out', default='bench.json', metavar='FILE')
    args = parser.parse_args()
    args.width = 8 if args.quick else 64
    if args.quick:
        args.images, args.repeats = 100, 1
    rows, short = {}, []
    machine = {'bf16_matmul_flops': matmul_rate(512 if args.quick else 4096), 'copy_bytes': copy_rate(16 if args.quick else 256),
               'threads': torch.get_num_threads()}
    print(f'machine: {machine["bf16_matmul_flops"] / 1e9:.0f} GFLOP/s matrix product, {machine["copy_bytes"] / 1e9:.1f} GB/s copy, '
          f'{machine["threads"]} threads')
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), args)
        functions = {'decode': bench_decode, 'load': bench_load, 'score': bench_score, 'distil': bench_distil, 'teacher': bench_teacher,
                     'dafl': bench_dafl}
        for name in (n for n in args.rows if n != 'selection'):
            plain, ours, flops = functions[name](args, work)
            ratio = statistics.median(o / p for p, o in zip(plain, ours))
            rows[name] = {'plain': plain, 'ours': ours, 'ratio': ratio, 'need': NEED[name]}
            if flops:
                rows[name]['share_of_matmul'] = statistics.median(ours) * flops / machine['bf16_matmul_flops']
            if ratio < NEED[name]:
                short.append(f'{name}: {ratio:.2f} x, needed {NEED[name]} x')
    if 'selection' in args.rows:
        count, classes = (100_000, 100) if args.quick else (10_000_000, 1000)
        rows['selection'] = {'seconds': bench_selection(count, classes), 'scores': count, 'classes': classes, 'need': 3.0}
        if rows['selection']['seconds'] > 3:
            short.append(f'selection: {rows["selection"]["seconds"]:.2f} s, needed 3 s')
    print(table(rows))
    Path(args.out).write_text(json.dumps({'machine': machine, 'rows': rows}) + '\n')
    if args.check and short:
        print('falls short: ' + '; '.join(short))
        sys.exit(1)


def table(rows):
    lines = ['| row | plain, img/s (min-max) | ours, img/s (min-max) | ratio | needed | share of bf16 matrix product |',
             '|---|---:|---:|---:|---:|---:|']
    for name, r in rows.items():
        if 'seconds' in r:
            lines.append(f'| {name} of {r["scores"]:,} scores | - | {r["seconds"]:.2f} s | - | {r["need"]:g} s | - |')
            continue
        plain, ours = (f'{statistics.median(x):.0f} ({min(x):.0f}-{max(x):.0f})' for x in (r['plain'], r['ours']))
        share = f'{100 * r["share_of_matmul"]:.0f} %' if 'share_of_matmul' in r else '-'
        lines.append(f'| {name} | {plain} | {ours} | {r["ratio"]:.2f} x | {r["need"]:g} x | {share} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    utils.run_script(main)
