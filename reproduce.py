"""The papers' tables, and our study of the method, as commands: prints the plan, then runs what is not done yet.

    python reproduce.py table1 --dataset cifar10 --scale full       # the published schedules: wants a GPU
    python reproduce.py table1 --dataset cifar10 --wild ~/photos    # the same rows, small enough for a CPU
    python reproduce.py study --dataset MNIST --dry_run             # the plan alone

Stop it at any time: the same command goes on. What stands behind a lone -- is handed to every script: `-- --device cuda`.
"""

import argparse
import json
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TEACHER, DFND, DAFL = 'teacher-train.py', 'DFND-train.py', 'DAFL-train.py'

# ---------------------------------------------------------------- the rows

# dataset: its kind, which has the networks and the schedules
KIND = {'cifar10': 'cifar', 'cifar100': 'cifar', 'MNIST': 'MNIST', 'mnist5k': 'mnist5k'}
WORDS = {'cifar': {'student': 'resnet18', 'base': '--recipe corrected'},
         'MNIST': {'student': 'lenet5half', 'base': '--select balanced'},
         'mnist5k': {'student': 'lenet5half', 'base': '--select balanced'}}

ROWS = {  # id: (name, script, flags at every scale); {words} are those above
    'teacher': ('Teacher', TEACHER, ''),
    'student': ('Student', TEACHER, '--arch {student}'),
    'kd': ('Knowledge distillation', DFND, '--transfer_set original'),
    'noise': ('Normal distribution', DFND, '--wild noise --select all'),
    'alternative': ('Alternative data', DFND, '--wild demo --select all'),
    'dafl': ('DAFL', DAFL, ''),
    'random': ('Randomly selected', DFND, '--select random'),
    'dfnd': ('DFND', DFND, '{base}'),
    'dfnd-released': ("DFND, today's published file", DFND, '--recipe released'),
    'dfnd-first-upload': ('DFND, the first upload', DFND, '--recipe first-upload'),
    'dfnd-corrected': ('DFND, corrected', DFND, '{base}'),
    # the study's: each departs in one thing from dfnd (for CIFAR dfnd-corrected)
    'confidence': ('DFND, the surest over all classes', DFND, '--select confidence'),
    'all': ('All wild images', DFND, '--select all'),
    'loss-kd': ('DFND, KD only', DFND, '{base} --loss kd'),
    'loss-nll': ('DFND, NLL only', DFND, '{base} --loss nll'),
    'loss-kd+ce': ('DFND, KD + CE without Q', DFND, '{base} --loss kd+ce'),
    'acc-published': ("DFND, the published constant for CIFAR-10 as Q's diagonal", DFND, '{base} --teacher_acc 0.9523'),
    'norm-imagenet': ("DFND, ImageNet's normalisation", DFND, '{base} --wild_norm imagenet'),
    'class-weights': ('DFND, class weights', DFND, '{base} --class_weights'),
    'T2': ('DFND, T = 2', DFND, '{base} --T 2'),
    'T8': ('DFND, T = 8', DFND, '{base} --T 8'),
    'no-augment': ('DFND, no augmentation', DFND, '{base} --no-augment'),
    **{f'n{n}': (f'DFND, {n:,} images', DFND, f'{{base}} --num_select {n}') for n in (1000, 2500, 5000, 25000)},
    'seen-half': ('DFND, half the images seen', DFND, '{base}'),
    'seen-double': ('DFND, twice the images seen', DFND, '{base}'),
}

TABLE1 = {
    'cifar': ['teacher', 'student', 'kd', 'dafl', 'random', 'dfnd-released', 'dfnd-first-upload', 'dfnd-corrected'],
    'MNIST': ['teacher', 'student', 'kd', 'noise', 'alternative', 'dafl', 'random', 'dfnd'],  # DAFL's table, and DFND
    'mnist5k': ['teacher', 'dfnd', 'random', 'dafl'],
}
CIFAR_STUDY = {
    'selection': ['confidence', 'dfnd-corrected', 'random', 'all'],
    'loss': ['dfnd-corrected', 'loss-kd', 'loss-nll', 'loss-kd+ce', 'acc-published'],
    'normalisation': ['dfnd-corrected', 'norm-imagenet'],
    'class weights': ['dfnd-corrected', 'class-weights'],
    'temperature': ['T2', 'dfnd-corrected', 'T8'],
    'augmentation': ['dfnd-corrected', 'no-augment'],
    'num_select': ['n2500', 'n5000', 'dfnd-corrected'],
    'images seen': ['seen-half', 'dfnd-corrected', 'seen-double'],
}
MNIST_STUDY = {question: ['dfnd' if row == 'dfnd-corrected' else row for row in rows]
               for question, rows in CIFAR_STUDY.items() if question != 'normalisation'}  # ImageNet's is for photos
STUDY = {'cifar': CIFAR_STUDY, 'MNIST': MNIST_STUDY | {'num_select': ['n1000', 'n2500', 'n5000', 'dfnd', 'n25000']}}

# ---------------------------------------------------------------- the scales

# (kind, scale): id: the flags of its budget. 'wild': of every row that selects wild images and stands not here itself.
MNIST = {'wild': '--num_select 10000', **{f'n{n}': '' for n in (1000, 2500, 5000, 25000)},  # the recipe's 3,000 steps hold for all
         'seen-half': '--num_select 10000 --steps 1500', 'seen-double': '--num_select 10000 --steps 6000'}
BUDGETS = {
    ('cifar', 'full'): {'seen-half': '--steps 40000', 'seen-double': '--steps 160000'},
    ('cifar', 'cpu'): {  # a student sees 150,000 images, but DAFL's
        'teacher': '--width 16 --epochs 20 --schedule onecycle', 'student': '--width 16 --epochs 3',
        'kd': '--epochs 3 --batch_size 128', 'dafl': '--epochs 3 --batch_size 256',
        'wild': '--num_select 10000 --epochs 15 --batch_size 128',
        'all': '--epochs 6 --batch_size 128',  # 150,000 of a pool of 25,000: another pool, another number here
        'n2500': '--epochs 60 --batch_size 128', 'n5000': '--epochs 30 --batch_size 128',
        'seen-half': '--num_select 10000 --epochs 7 --batch_size 128', 'seen-double': '--num_select 10000 --epochs 30 --batch_size 128'},
    ('MNIST', 'full'): MNIST,
    ('MNIST', 'cpu'): MNIST | {'dafl': '--epochs 20'},
    ('mnist5k', 'demo'): {'dafl': '--epochs 2 --batch_size 128'},
}
SEEDS = {  # how many, 0 first; 'other': of every row that stands not here
    'cifar': {'other': 1, **dict.fromkeys(
        ['random', 'dfnd-released', 'dfnd-first-upload', *CIFAR_STUDY['selection'], *CIFAR_STUDY['loss']], 3)},
    'MNIST': {'other': 5, 'dafl': 1},
    'mnist5k': {'other': 1},
}

# ---------------------------------------------------------------- the arithmetic of --scale full

MULTIPLY_ADDS = {'cifar': {'teacher': 1.159e9, 'student': 0.555e9, 'generator': 0.123e9},  # for one image
                 'MNIST': {'teacher': 4.165e5, 'student': 1.337e5, 'generator': 1.147e8}}
IMAGES_SEEN = {
    'cifar': {'teacher': 200 * 50_000, 'student': 200 * 50_000, 'kd': 409 * 50_000, 'dafl': 2000 * 120 * 1024,
              'dfnd-first-upload': 2 * 50_000 * 800, 'seen-half': 40_000 * 256, 'seen-double': 160_000 * 256, 'other': 40_000 * 512},
    'MNIST': {'teacher': 10 * 60_000, 'student': 10 * 60_000, 'dafl': 200 * 120 * 512,
              'seen-half': 1500 * 256, 'seen-double': 6000 * 256, 'other': 3000 * 256}}
NOT_IMPLEMENTED = {'cifar10': {'DFAD': 93.30, 'DeepInversion': 93.26, 'PU-compression': 93.75}, 'cifar100': {'DFAD': 67.70}}


def gpu_hours(kind, row, tflops):
    """Two operations a multiply-add; a training pass costs three forward ones, the teacher's is one."""
    cost = MULTIPLY_ADDS[kind]
    if row in ('teacher', 'student'):
        each = 3 * cost[row]
    elif row == 'dafl':  # the gradient goes through the teacher down to the images: two
        each = 3 * cost['student'] + 2 * cost['teacher'] + 3 * cost['generator']
    else:
        each = 3 * cost['student'] + cost['teacher']
    images = IMAGES_SEEN[kind].get(row, IMAGES_SEEN[kind]['other'])
    return 2 * each * images / (tflops * 1e12) / 3600


# ---------------------------------------------------------------- the plan


class Job(NamedTuple):
    row: str
    name: str  # of its folder
    folder: Path
    script: str
    arguments: list

    def command(self):
        return shlex.join(['python', self.script, *self.arguments])

    def done(self):
        return (self.folder / 'result.json').is_file()

    def state(self):
        if not self.done():
            return 'to go on' if (self.folder / 'config.json').is_file() else 'to do'
        told = json.loads((self.folder / 'config.json').read_text(encoding='utf-8')).get('command', '')
        return 'done' if asked(shlex.split(told)[2:]) == asked(self.arguments) else f'done, but by another command: {told}'


def asked(arguments):
    """{flag: values} of what a command asks for, and not where or how it is computed."""
    flags, values = {}, []
    for word in arguments:
        if word.startswith('--'):
            values = flags[word] = []
        else:
            values.append(word)
    where = ('--data', '--cache_dir', '--workers', '--output_dir', '--run', '--teacher_dir', '--resume', '--device')
    return {flag: values for flag, values in flags.items() if flag not in where}


def plan(args, extra):
    """All jobs in their order: the teachers that are needed, then row by row."""
    kind, folder = KIND[args.dataset], Path(args.output_dir) / f'{args.dataset}-{args.scale}'

    def seeds(row):
        return args.seeds or range(SEEDS[kind].get(row, SEEDS[kind]['other']))

    def job(row, seed):
        name, (_, script, flags) = f'{row}-s{seed}', ROWS[row]
        budget = BUDGETS[kind, args.scale]
        flags = flags.format(**WORDS[kind]).split()
        selects = script == DFND and '--transfer_set' not in flags and 'all' not in flags
        flags += budget.get(row, budget.get('wild', '') if selects else '').split()
        if script == DFND and args.wild and '--transfer_set' not in flags and '--wild' not in flags:
            flags += ['--wild', *args.wild]
        if script != TEACHER:
            flags += ['--teacher_dir', str(folder / f'teacher-s{teacher_seed(seed)}')]
        for flag in ('data', 'cache_dir', 'workers'):
            if getattr(args, flag) is not None:
                flags += [f'--{flag}', str(getattr(args, flag))]
        arguments = ['--dataset', args.dataset, *flags, '--seed', str(seed), '--output_dir', str(folder), '--run', name, '--resume', *extra]
        return Job(row, name, folder / name, script, arguments)

    def teacher_seed(seed):  # a LeNet is quick: its teacher is drawn anew for each seed, as its student is
        return 0 if kind == 'cifar' else seed

    students = [(row, seed) for row in args.rows if row != 'teacher' for seed in dict.fromkeys(seeds(row))]
    teachers = {teacher_seed(seed) for row, seed in students if ROWS[row][1] != TEACHER}
    if args.teacher_asked or not students:
        teachers |= set(seeds('teacher'))
    return [job('teacher', seed) for seed in sorted(teachers)] + [job(*student) for student in students]


def print_plan(args, jobs):
    done = sum(job.done() for job in jobs)
    print(f'{args.table}, {args.dataset}, scale {args.scale}: {len(jobs)} runs in {jobs[0].folder.parent}, {done} done')
    rest = 0
    for i, job in enumerate(jobs, 1):
        facts = job.state()
        if args.scale == 'full':
            hours = gpu_hours(KIND[args.dataset], job.row, args.tflops)
            rest += 0 if job.done() else hours
            facts += f', {hours:.2f} GPU hours by arithmetic'
        print(f'[{i}/{len(jobs)}] {job.name}: {ROWS[job.row][0]} ({facts})\n    {job.command()}')
    if args.table == 'table1':
        for name, number in NOT_IMPLEMENTED.get(args.dataset, {}).items():
            print(f'[-] {name}: not implemented here; the paper has {number:.2f}')
    if args.scale == 'full':
        print(f'not done: {rest:.1f} GPU hours at {args.tflops:g} TFLOP/s (--tflops). This is arithmetic, multiply-adds x 2 x images '
              'seen, and not measured.')


# ---------------------------------------------------------------- running


def run(command):
    """The exit code of a command that speaks for itself. An interrupt is let through once the command has ended, too."""
    sys.stdout.flush()
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:  # Ctrl-C reaches the whole group, a lone signal only this process
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise


def publish(job, folder):
    """Copies what a finished run's row is built from."""
    (folder / job.name).mkdir(parents=True, exist_ok=True)
    for name in ('config.json', 'metrics.jsonl', 'result.json'):
        shutil.copyfile(job.folder / name, folder / job.name / name)


def duration(seconds):
    return f'{seconds / 60:.1f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def expected_seconds(rest, jobs):
    """Rough: a run takes as long as the finished ones of its script, or as all of them."""
    took = {}
    for job in jobs:
        if job.done():
            seconds = json.loads((job.folder / 'result.json').read_text(encoding='utf-8'))['seconds']
            took.setdefault(job.script, []).append(seconds)
    every = statistics.mean(seconds for script in took.values() for seconds in script)
    return sum(statistics.mean(took[job.script]) if job.script in took else every for job in rest)


def run_jobs(args, jobs):
    shelf = args.publish and Path(args.publish) / args.dataset.lower() / args.scale
    for job in jobs:
        if shelf and job.done():
            publish(job, shelf)
    for i, job in enumerate(jobs, 1):
        if job.done():
            continue
        print(f'\n[{i}/{len(jobs)}] {job.name}: {job.command()}')
        start = time.time()
        code = run([sys.executable, str(HERE / job.script), *job.arguments])
        if code == 130:
            raise KeyboardInterrupt
        if code or not job.done():
            print(f'reproduce.py: error: {job.name} stopped with exit code {code}: mend it, and the same command goes on', file=sys.stderr)
            return 2 if code == 2 else 1
        if shelf:
            publish(job, shelf)
        rest = [other for other in jobs if not other.done()]
        eta = f'; {len(rest)} to go, roughly {duration(expected_seconds(rest, jobs))}' if rest else ''
        print(f'[{i}/{len(jobs)}] {job.name} took {duration(time.time() - start)}{eta}')
    print()
    folder = jobs[0].folder.parent
    tables = [['--rows', *args.rows]] if args.table == 'table1' else [
        ['--study', *rows] for rows in STUDY[KIND[args.dataset]].values() if set(rows) <= set(args.rows)]
    return run([sys.executable, str(HERE / 'report.py'), '--runs', str(folder), '--no_figures', '--out', str(folder / 'report'),
                *(word for table in tables for word in table)])


# ---------------------------------------------------------------- arguments


def fail(text):
    """One line on stderr, exit code 2."""
    print('reproduce.py: error:', text, file=sys.stderr)
    sys.exit(2)


def in_our_case(name):
    return next((dataset for dataset in KIND if dataset.lower() == name.lower()), name)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f'{message}: see --help')
    parser.add_argument('table', choices=('table1', 'study'), help="table1: the papers' rows; study: what each part of the method is worth")
    parser.add_argument('--dataset', default='cifar10', choices=KIND, type=in_our_case)
    parser.add_argument('--scale', default='cpu', choices=('full', 'cpu', 'demo'),
                        help='full: the published schedules; cpu (the default): small networks and budgets; demo: mnist5k in minutes')
    parser.add_argument('--rows', nargs='+', metavar='ID', help='these alone, and the teachers that they need')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='N', help="for every row (default: as many as the row's spread needs)")
    parser.add_argument('--dry_run', action='store_true', help='print the plan and stop')
    parser.add_argument('--data', metavar='DIR', help='this, --cache_dir and --workers go to every script')
    parser.add_argument('--wild', nargs='+', metavar='SOURCE', help="the wild images (default: the data set's own pool)")
    parser.add_argument('--cache_dir', metavar='DIR')
    parser.add_argument('--workers', type=int, metavar='N')
    parser.add_argument('--output_dir', default='runs', metavar='DIR', help='a run is DIR/<dataset>-<scale>/<row>-s<seed>')
    parser.add_argument('--publish', metavar='DIR', help='copy the logs of each finished run to DIR/<dataset>/<scale>/<run>')
    parser.add_argument('--tflops', type=float, default=50, help="what the arithmetic of --scale full takes a GPU's speed to be")
    args = parser.parse_args(argv)
    kind, scales = KIND[args.dataset], [scale for kind, scale in BUDGETS if kind == KIND[args.dataset]]
    if args.table == 'study' and kind not in STUDY:
        fail(f'no study of {args.dataset}: --dataset is one of {", ".join(d for d in KIND if KIND[d] in STUDY)}')
    if args.scale not in scales:
        fail(f'--scale {args.scale}, but {args.dataset} has {" and ".join(scales)}: give --scale {scales[-1]}')
    if not args.tflops > 0:
        fail(f'--tflops {args.tflops}, expected a number above 0')
    known = TABLE1[kind] if args.table == 'table1' else ['teacher', *dict.fromkeys(row for rows in STUDY[kind].values() for row in rows)]
    unknown = [row for row in args.rows or () if row not in known]
    if unknown:
        fail(f'no row {", ".join(unknown)} in {args.table} of {args.dataset}: the rows are {", ".join(known)}')
    args.teacher_asked = 'teacher' in (args.rows or ())
    args.rows = [row for row in known if row in (args.rows or known)]
    return args


def main():
    words = sys.argv[1:]
    cut = words.index('--') if '--' in words else len(words)
    args = parse(words[:cut])
    jobs = plan(args, words[cut + 1:])
    print_plan(args, jobs)
    return 0 if args.dry_run else run_jobs(args, jobs)


if __name__ == '__main__':
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print('\nreproduce.py: interrupted; the same command goes on', file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, LookupError) as error:
        fail(f'{type(error).__name__} {error}: a file of a run is damaged, or a folder is not writable')
