"""The papers' tables, and our study of the method, as commands: prints the plan, then runs what is not done yet.

    python reproduce.py table1 --dataset cifar10 --scale full       # the published schedules: needs a GPU
    python reproduce.py table1 --dataset cifar10 --scale paper      # the same networks, few images: hours a row on a CPU
    python reproduce.py table1 --dataset cifar10 --wild ~/photos    # small networks, few images: for a CPU
    python reproduce.py study --dataset MNIST --dry_run             # the plan alone

Stop it at any time: the same command goes on. What follows a lone -- goes to every script: `-- --device cuda`.
"""

import keep.stops  # isort: skip  # before the rest, see there

import argparse
import contextlib
import filecmp
import functools
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from paper.results import HOW, check_publishing, publish, published_name, settings_of
from paper.rows import BUDGETS, BY_NAME, DFND, FIRST, KIND, POOLS, ROWS, SEEDS, SHARES, STUDY, TABLE1, TEACHER, TFLOPS, WORDS, Row, hours
from recipes import PUBLISHED_ACC
from utils import Damaged, UserError, bad_usage, expand_home, read_json, run_script

HERE = Path(__file__).resolve().parent
OWN = ('--dataset', '--seed', '--run', '--output_dir', '--teacher', '--teacher_dir', '--max_minutes')  # each run is given its own
PASSED = ('data', 'cache_dir', 'workers')
SCALES = {  # of each table, the default first
    'table1': ('cpu', 'demo', 'study', 'paper32', 'paper', 'full'), 'study': ('study', 'full'), 'pools': ('pools',)}

# ---------------------------------------------------------------- the plan


class Job(NamedTuple):
    row: Row
    folder: Path
    arguments: list

    def command(self):
        return shlex.join(['python', *self.row.script.split(), *self.arguments])

    def result(self):
        """None where there is none, or a damaged one, which the script makes again."""
        file = self.folder / 'result.json'
        with contextlib.suppress(Damaged):
            return read_json(file) if file.is_file() else None

    def done(self):
        return self.result() is not None

    def state(self):
        file = self.folder / 'config.json'
        if not self.done():
            return 'to go on' if file.is_file() else 'to do'
        config = read_json(file)
        command, amp = config.get('command', ''), {'--amp': [str(settings_of(config).get('amp'))]}  # where a command does not say it
        old, new = flags_of(shlex.split(command)), flags_of(self.arguments)
        if amp | asked_for(old) != amp | asked_for(new) or other_pool(old.get('--wild', []), new.get('--wild', [])):
            return f'done, but by another command: {command}'
        teachers = [teacher_file(flags) for flags in (old, new)]
        if all(teachers) and not filecmp.cmp(*teachers, shallow=False):
            return f'done, but with another teacher, {teachers[0]}'
        return 'done'


def flags_of(words):
    """{flag: its values, a list} of a command."""
    flags = {}
    for word in words:
        if word.startswith('--'):
            flag, equals, value = word.partition('=')
            flags[flag] = (flags.get(flag, []) if flag == '--wild' else []) + [value] * bool(equals)  # of the others the last counts
        elif flags:
            flags[flag].append(word)
    return flags


def asked_for(flags):
    """Of flags_of's, those that don't say where or how a command runs. Of a pool, see `other_pool`, only that there is one."""
    return {flag: [] if flag == '--wild' else values for flag, values in flags.items() if flag[2:] not in HOW}


def other_pool(old, new):
    """Whether two lists of --wild's sources can't be one pool. A folder that is gone may be where the new one is: the script knows a pool
    by its images."""
    one, two = ([str(Path(word).resolve()) if Path(word).exists() else word for word in words] for words in (old, new))
    return one != two and all(Path(word).exists() or '{' in word or may_be_set(word) for word in old)


def teacher_file(flags):
    files = [file for where in flags.get('--teacher_dir', ()) for file in (Path(where), Path(where, 'teacher.pt'))]
    return next((file for file in files if file.is_file()), None)


def plan(args, extra):
    """All jobs in their order: the teachers that are needed, then row by row."""
    kind, folder = KIND[args.dataset], Path(args.output_dir) / f'{args.dataset}-{args.scale}'
    budget = BUDGETS[kind, args.scale]
    words = WORDS[kind, args.scale] | {'acc': PUBLISHED_ACC.get(args.dataset, PUBLISHED_ACC['cifar10'])}

    def seeds(id):
        count = SEEDS.get((kind, args.scale), SEEDS[kind])
        return dict.fromkeys(args.seeds or range(count.get(id, count['other'])))

    def teacher_seed(seed):  # a LeNet is quick: each seed has a teacher of its own, as it has a student
        return 0 if kind == 'cifar' else seed

    def job(id, seed):
        row, run = ROWS[id], f'{id}-s{seed}'
        paths = {'pools': (args.wild or [''])[0], 'inverted': folder / f'inverted-s{seed}' / 'images'}  # which can hold spaces
        flags = row.flags.format(**words, **{name: f'{{{name}}}' for name in paths}).split()
        flags = [flag.format(**paths) for flag in flags]
        wild = row.script == DFND and '--transfer_set' not in flags
        flags += budget.get(id, budget.get('wild', '') if wild and 'all' not in flags else '').split()
        if wild and args.wild and '--wild' not in flags:
            flags += ['--wild', *args.wild]
        if row.script != TEACHER:
            flags += ['--teacher_dir', args.teacher or str(folder / f'teacher-s{teacher_seed(seed)}')]
        for name in PASSED:
            if getattr(args, name) is not None:
                flags += [f'--{name}', getattr(args, name)]
        return Job(row, folder / run, ['--dataset', args.dataset, *flags, '--seed', str(seed), '--output_dir', str(folder), '--run', run,
                                       '--resume', *extra])

    students = [(each, seed) for id in args.rows if id != 'teacher' for seed in seeds(id) for each in (FIRST.get(id), id) if each]
    teachers = {teacher_seed(seed) for id, seed in students if ROWS[id].script != TEACHER and not args.teacher}
    teachers.update(seeds('teacher') if 'teacher' in args.rows else ())
    return [job('teacher', seed) for seed in sorted(teachers)] + [job(*student) for student in students]


def print_plan(args, jobs):
    rest, done, kind = 0.0, sum(job.done() for job in jobs), KIND[args.dataset]
    unit = 'GPU hours' if args.scale == 'full' else 'hours'
    print(f'{args.table}, {args.dataset}, scale {args.scale}: {len(jobs)} runs in {jobs[0].folder.parent}, {done} done')
    for i, job in enumerate(jobs, 1):
        facts = job.state()
        if args.tflops:
            each = hours(kind, args.scale, job.row.id, args.tflops)
            rest += 0 if job.done() else each
            facts += f', {each:.2f} {unit} by arithmetic'
        print(f'[{i}/{len(jobs)}] {job.folder.name}: {job.row.name} ({facts})\n    {job.command()}')
    if args.tflops:
        print(f'not done: {rest:.1f} {unit} at {args.tflops:g} TFLOP/s (--tflops). This is arithmetic, multiply-adds x 2 x images '
              'seen, and not measured; decoding, scoring and measuring come on top.')


# ---------------------------------------------------------------- running


def run(script, *words):
    """The exit code of a script that prints its own errors. After a signal, too, which it is passed, it has ended when this returns; and
    it ends when this process is killed."""
    sys.stdout.flush()
    start = script.split() if script.startswith('-m ') else [HERE / script]
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get('PYTHONPATH'))))  # where -m finds our modules
    ends = functools.partial(keep.stops.end_with_parent, os.getpid())
    process = subprocess.Popen([sys.executable, *start, *words], preexec_fn=ends if os.name == 'posix' else None,
                               env=os.environ | {'PYTHONPATH': paths})
    try:
        code = process.wait()
    except keep.stops.Stopped as e:
        process.send_signal(signal.SIGTERM if e.number == keep.stops.ALARM else e.number)
        process.wait()
        raise
    if code > 128:  # a signal came to it alone
        raise keep.stops.Stopped(code - 128)
    return code


def run_jobs(args, jobs):
    """Runs what is not done, publishes what is, prints the table; returns the exit code."""
    for job in jobs:
        if job.done() and (state := job.state()) != 'done':
            raise UserError(f'{job.folder} is {state}: give the same flags again, or move it away, or give another --output_dir')
    published = args.publish and Path(args.publish) / published_name(args.dataset, args.scale)
    if published:
        check_publishing(published)
    minutes = {}  # of each script's latest run
    for i, job in enumerate(jobs, 1):
        if not job.done():
            (job.folder.parent / 'report' / 'table.md').unlink(missing_ok=True)  # of other rows: it says that a table is whole
            name, start = f'[{i}/{len(jobs)}] {job.folder.name}', time.time()
            print(f'\n{name}: {job.command()}')
            code = run(job.row.script, *job.arguments)
            if code or not job.done():
                raise UserError(f'{job.folder.name} stopped with exit code {code}: correct what it says, then give the same command')
            took = max(time.time() - start, job.result().get('seconds') or 0) / 60  # of all its sittings
            minutes[job.row.script] = took
            rest = sum(minutes.get(other.row.script, took) for other in jobs[i:] if not other.done())
            print(f'{name} took {took:.1f} min; left: roughly {rest:.0f} min')
        if published:
            publish(job.folder, published)
    print()
    kind, folder = KIND[args.dataset], jobs[0].folder.parent
    tables = ['--rows', *dict.fromkeys([*rows_of('table1', kind, args.scale), *args.rows])] if args.table == 'table1' else ['--pools']
    if args.table == 'study':
        tables = [word for ids in STUDY[kind].values() if set(ids) & set(args.rows) for word in ('--study', *ids)]
    return run('report.py', '--runs', folder, '--no_figures', '--out', folder / 'report', *tables)


# ---------------------------------------------------------------- arguments


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = bad_usage
    parser.add_argument('table', choices=SCALES, help="table1: the papers' rows; study: what each part of the "
                        'method is worth; pools: selections from pools of which a growing share is of other kinds')
    parser.add_argument('--dataset', default='cifar10', choices=KIND, help='default: cifar10',
                        type=lambda name: {dataset.lower(): dataset for dataset in KIND}.get(name.lower(), name))
    parser.add_argument('--scale', choices=dict.fromkeys(scale for scales in SCALES.values() for scale in scales),
                        help="full: the published schedules; paper: the paper's networks, 500,000 images seen, the recipe short; paper32: "
                        'the same at half their width; cpu: small networks and budgets, the recipe short; study: the same by the '
                        "published schedules; demo: mnist5k in minutes; pools: that table's (default: cpu for table1, demo for mnist5k's)")
    several = dict(nargs='+', action='extend')
    parser.add_argument('--rows', **several, metavar='ID', help='these alone, and the teachers that they need')
    parser.add_argument('--seeds', **several, type=int, metavar='N', help="for every row (default: as many as the row's spread needs)")
    parser.add_argument('--dry_run', action='store_true', help='print the plan and stop')
    parser.add_argument('--wild', **several, metavar='SOURCE', help="the wild images (default: the data set's own pool)")
    parser.add_argument('--teacher', metavar='FILE', help='all students learn from this network; no other teacher is trained for them')
    for name in PASSED:
        parser.add_argument(f'--{name}', help='given to every script, see its --help')
    parser.add_argument('--output_dir', default='runs', metavar='DIR', help='a run is DIR/<dataset>-<scale>/<row>-s<seed>')
    parser.add_argument('--max_minutes', type=float, metavar='M', help='stop after so long, as after a signal, with exit code 0; the same '
                        'command goes on, so that a loop of a shell makes the table in slices')
    parser.add_argument('--publish', metavar='DIR', help='write each finished run as a line of DIR/<dataset>-<scale>.jsonl')
    parser.add_argument('--tflops', type=float, help="the machine's speed in the arithmetic of the scales full (default: 50), paper "
                        '(0.37, two cores with fast bfloat16) and paper32 (0.34)')
    args = expand_home(parser.parse_args(words))
    kind = KIND[args.dataset]
    scales = [scale for scale in SCALES[args.table] if (kind, scale) in BUDGETS]
    if args.table != 'table1' and kind not in STUDY:
        raise UserError(f'no {args.table} of {args.dataset}: --dataset is one of {", ".join(d for d in KIND if KIND[d] in STUDY)}')
    args.scale = args.scale or scales[0]
    if args.scale not in scales:
        raise UserError(f'--scale {args.scale}, but {args.table} of {args.dataset} has {", ".join(scales)}: give --scale {scales[0]}')
    if args.max_minutes is not None and not 0 < args.max_minutes <= 10**9:
        raise UserError(f'--max_minutes {args.max_minutes}, expected a number above 0 and at most 1,000,000,000')
    if args.tflops is not None and not args.tflops > 0:
        raise UserError(f'--tflops {args.tflops}, expected a number above 0')
    if args.tflops and (kind, args.scale) not in TFLOPS:
        raise UserError(f'--tflops {args.tflops:g}, but no time is computed for the scale {args.scale}: leave it out')
    args.tflops = args.tflops or TFLOPS.get((kind, args.scale))
    if args.teacher and not Path(args.teacher).exists():
        raise UserError(f'--teacher {args.teacher} does not exist: give the file or folder that teacher-train.py wrote')
    for source in args.wild or ():  # or the script that needs it would say so only after the teacher's training
        if '{' not in source and not Path(source).exists() and ('/' in source or not may_be_set(source)):
            raise UserError(f'--wild {source} does not exist: name a folder of images, or a set that torchvision has')
    if args.table == 'pools' and not (args.wild and all((Path(args.wild[0]) / f'share-{share:02}.txt').is_file() for share in SHARES)):
        raise UserError('pools needs --wild DIR, the folder that `python -m wild.make_pools` wrote')
    usual = rows_of(args.table, kind, args.scale)
    known = [*usual, *BY_NAME.get((args.table, kind, args.scale), ())]
    if unknown := [id for id in args.rows or () if id not in known]:
        raise UserError(f'no row {", ".join(unknown)} in {args.table} of {args.dataset}: the rows are {", ".join(known)}')
    args.rows = [id for id in known if id in (args.rows or usual[1:])]  # teachers as the others need them, unless asked for
    return args


def rows_of(table, kind, scale):
    """The ids of a table's rows, in order."""
    if table == 'table1':
        return TABLE1.get((kind, scale)) or TABLE1[kind]
    return ['teacher', *(POOLS if table == 'pools' else dict.fromkeys(id for ids in STUDY[kind].values() for id in ids))]


def may_be_set(source):
    try:
        from wild.pool import is_set  # and with it torch, without which a plan can be printed all the same
    except ModuleNotFoundError:
        return True
    return is_set(source)


def main():
    words = sys.argv[1:]
    cut = words.index('--') if '--' in words else len(words)
    args, extra = parse(words[:cut]), words[cut + 1:]
    if own := [word for word in extra if word.split('=')[0] in OWN]:
        raise UserError(f'{" ".join(own)} after the --, but each run has its own: leave it out, or give --seeds, --teacher or '
                        '--output_dir before it')
    jobs = plan(args, extra)
    fixed = {flag for job in jobs for flag in [*flags_of(job.row.flags.split()), *(['--select'] if job.row.script == DFND else [])]}
    if own := fixed & flags_of(extra).keys():
        raise UserError(f'{" ".join(sorted(own))} after the --, but it is what makes a row that row: leave it out, or make a row of your '
                        'own by the script, with --run NAME-s0')
    print_plan(args, jobs)
    keep.stops.limit(args.max_minutes)
    return 0 if args.dry_run else run_jobs(args, jobs)


if __name__ == '__main__':
    run_script(main)
