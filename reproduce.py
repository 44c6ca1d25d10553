"""The papers' tables, and our study of the method, as commands: prints the plan, then runs what is not done yet.

    python reproduce.py table1 --dataset cifar10 --scale full       # the published schedules: wants a GPU
    python reproduce.py table1 --dataset cifar10 --wild ~/photos    # the same rows, small enough for a CPU
    python reproduce.py study --dataset MNIST --dry_run             # the plan alone

Stop it at any time: the same command goes on. What stands behind a lone -- is handed to every script: `-- --device cuda`.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from reproduce_rows import BUDGETS, DFND, KIND, NOT_IMPLEMENTED, PUBLISHED_ACC, ROWS, SEEDS, STUDY, TABLE1, TEACHER, WORDS, gpu_hours

HERE = Path(__file__).resolve().parent

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

    def other_command(self):
        """The command that the finished run was made by, where it asked for something else, or None."""
        config = json.loads((self.folder / 'config.json').read_text(encoding='utf-8'))
        recorded = config.get('command', '')
        then, now = compared_flags(shlex.split(recorded)[2:]), compared_flags(self.arguments)
        for one, other in ((then, now), (now, then)):  # where --amp is said once, what it came to counts
            one.setdefault('--amp', other.get('--amp') and [config.get('args', {}).get('amp')])
        return None if then == now else recorded

    def state(self):
        if not self.done():
            return 'to go on' if (self.folder / 'config.json').is_file() else 'to do'
        other = self.other_command()
        return 'done' if other is None else f'done, but by another command: {other}'


def compared_flags(arguments):
    """{flag: values} of what a command asks for, and not where or how it is computed."""
    flags, values = {}, []
    for word in arguments:
        if word.startswith('--'):
            flag, equals, value = word.partition('=')
            values = flags[flag] = [value] if equals else []
        else:
            values.append(word)
    where = ('--data', '--cache_dir', '--workers', '--output_dir', '--run', '--teacher_dir', '--resume', '--device', '--compile')
    return {flag: values for flag, values in flags.items() if flag not in where}


def plan(args, extra):
    """All jobs in their order: the teachers that are needed, then row by row."""
    kind, folder = KIND[args.dataset], Path(args.output_dir) / f'{args.dataset}-{args.scale}'

    def seeds(row):
        return args.seeds or range(SEEDS[kind].get(row, SEEDS[kind]['other']))

    def job(row, seed):
        name, (_, script, flags) = f'{row}-s{seed}', ROWS[row]
        budget = BUDGETS[kind, args.scale]
        flags = flags.format(**WORDS[kind], acc=PUBLISHED_ACC.get(args.dataset, PUBLISHED_ACC['cifar10'])).split()
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
    for job in jobs:
        if job.done() and job.other_command() is not None:
            fail(f'{job.folder} is {job.state()}: move it away, or give another --output_dir')
    publish_folder = args.publish and Path(args.publish) / args.dataset.lower() / args.scale
    for job in jobs:
        if publish_folder and job.done():
            publish(job, publish_folder)
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
        if publish_folder:
            publish(job, publish_folder)
        rest = [other for other in jobs if not other.done()]
        eta = f'; {len(rest)} to go, roughly {duration(expected_seconds(rest, jobs))}' if rest else ''
        print(f'[{i}/{len(jobs)}] {job.name} took {duration(time.time() - start)}{eta}')
    print()
    folder = jobs[0].folder.parent
    kind = KIND[args.dataset]
    tables = [['--rows', *TABLE1[kind]]] if args.table == 'table1' else [
        ['--study', *rows] for rows in STUDY[kind].values() if set(rows) & set(args.rows)]
    return run([sys.executable, str(HERE / 'report.py'), '--runs', str(folder), '--no_figures', '--out', str(folder / 'report'),
                *(word for table in tables for word in table)])


# ---------------------------------------------------------------- arguments


def fail(text):
    """One line on stderr, exit code 2."""
    print('reproduce.py: error:', text, file=sys.stderr)
    sys.exit(2)


def in_our_case(name):
    return next((dataset for dataset in KIND if dataset.lower() == name.lower()), name)


def may_be_set(source):
    try:
        from wild import is_set  # and with it torch, without which a plan can be printed all the same
    except ModuleNotFoundError:
        return True
    return is_set(source)


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
    for source in args.wild or ():  # the teacher is trained before a script looks for it
        if '{' not in source and not Path(source).exists() and ('/' in source or not may_be_set(source)):
            fail(f'--wild {source} does not exist: name a folder of images, or a set that torchvision has')
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
    args, extra = parse(words[:cut]), words[cut + 1:]
    own = [word for word in extra if word.split('=')[0] in ('--dataset', '--seed', '--run', '--output_dir', '--teacher_dir')]
    if own:
        fail(f'{" ".join(own)} behind the --, but each run is given its own: leave it out, or give --seeds or --output_dir before the --')
    jobs = plan(args, extra)
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
    except BrokenPipeError:  # such as by `| head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (OSError, ValueError, LookupError) as error:
        fail(f'{type(error).__name__} {error}: a file of a run is damaged, or a folder is not writable')
