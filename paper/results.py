"""The runs: read from their folders or from a published file, which holds a line a run, and grouped into rows of a table."""

import json
import math
import re
import statistics
from typing import NamedTuple

from paper.fits import LAST
from paper.rows import FIRST, ROWS, Row
from utils import UserError, first_line, read_json, read_json_lines, read_rows, warn, written_aside

METHODS = ('teacher', 'student', 'kd', 'dafl', 'dfad', 'pu-compression', 'inverted', 'dfnd')
NUMBERS = ('top1', 'top1_best', 'teacher_top1', 'seconds', 'seed', 'params', 'flops')  # of a result; each may be null
# What a run was told that can matter to its number: these keys of its result, and its settings except those that say where or how
# it was computed.
TOLD = ('recipe', 'select', 'num_select', 'loss', 'wild', 'wild_images', 'arch', 'width', 'teacher_arch', 'teacher_width', 'epochs',
        'steps', 'images_seen')
HOW = ('seed', 'run', 'resume', 'device', 'workers', 'data', 'score_only', 'teacher', 'output_dir', 'cache_dir', 'teacher_dir',
       'teacher_weights', 'formats', 'decode_pixels', 'decode_seconds', 'decode_memory', 'export', 'export_normalise', 'tensorboard',
       'save_minutes', 'max_minutes', 'rank_timeout')
MOST_POINTS = 50  # of a published curve


class Run:
    """A run, finished or not. line: all that a published file says of it; place: where it was read, for messages; folder: its own, or
    None where it comes from a published file. Raises UserError where it lacks what every run has."""

    def __init__(self, line, place, folder=None):
        self.line, self.place, self.folder = line, place, folder
        self.row, self.seed, self.curve = line.get('row'), line.get('seed'), line.get('curve', [])
        self.result = line['result'] if isinstance(line.get('result'), dict) else {}
        words = {'row': self.row, 'method': self.result.get('method'), 'dataset': self.result.get('dataset')}
        wrong = {key: value for key, value in [*self.result.items(), ('seed', self.seed)] if key in NUMBERS and not is_number(value)}
        wrong |= {key: line[key] for key in ('settings', 'hardware') if not isinstance(line.get(key) or {}, dict)}
        if wrong or words['method'] not in METHODS or not all(isinstance(word, str) for word in words.values()):
            raise UserError(f'{place}: {", ".join(f"{key}={value!r}" for key, value in (words | wrong).items())}, expected a method of '
                            f'{", ".join(METHODS)}, a number or null for each of {", ".join(NUMBERS)}, objects as settings and '
                            'hardware: train that run again, or add a method of yours (docs/extending.md)')

    @property
    def finished(self):
        return self.folder is None or self.file('result.json') is not None

    def file(self, name):
        """The path of a file in the run's folder, or None where there is none."""
        return self.folder / name if self.folder and (self.folder / name).exists() else None


def is_number(value):
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))


def read_run(folder):
    """The run of a folder, finished or not. Its row is the folder's name without -s<seed>."""
    config, result = (read_json(file) if file.exists() else {} for file in (folder / 'config.json', folder / 'result.json'))
    curve = read_rows(folder / 'metrics.jsonl')
    result = result or result_so_far(folder, config, curve)
    origin = {key: value for key, value in config.items() if key not in ('settings', 'args')}  # command, commit, versions, hardware
    return Run({'row': re.sub(r'-s-?\d+$', '', folder.name), 'seed': result.get('seed'), 'settings': settings_of(config), **origin,
                'result': result, 'curve': curve}, f'{folder}/result.json', folder)


def read_folders(folders):
    """The runs of those folders that hold one; of another it warns, or raises its UserError where none does."""
    runs, wrong = [], {}
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as e:
            wrong[folder] = e
    for folder, error in wrong.items():
        if not runs:
            raise error
        warn(f'{folder} left out: {error}')
    return runs


def result_so_far(folder, config, curve):
    """What stands for the result of an unfinished run: its settings, and what was measured last."""
    settings, command = settings_of(config), config.get('command', '')
    method = settings.get('method') or (
        'dafl' if 'DAFL-train.py' in command else 'kd' if settings.get('transfer_set') == 'original' else
        'pu-compression' if settings.get('select') == 'pu' else 'dfnd' if 'transfer_set' in settings else
        'student' if any(folder.glob('student*')) else 'teacher')
    measured = {key: row[key] for row in curve for key in ('top1', 'agreement', 'seconds') if row.get(key) is not None}
    return {**settings, 'wild': None, 'method': method, **measured}


def settings_of(config):
    """The settings in a config.json; they were called 'args' until November 2026. Raises UserError where they are no object."""
    settings = config.get('settings') or config.get('args') or {}
    if not isinstance(settings, dict):
        raise UserError(f'config.json holds settings={settings!r:.40}, expected an object: train that run again')
    return settings


def read_published(file):
    return [Run(line, f'{file}, row {line.get("row")}, seed {line.get("seed")}') for line in read_json_lines(file)]


def published_name(dataset, scale):
    """The file that a table's runs are published in."""
    return f'{dataset.lower()}-{scale}.jsonl'


def publish(folder, file):
    """Writes the finished run of `folder` into `file`, a line a run, in the place of an earlier one of its row and seed."""
    runs = {(run.row, run.seed): run for run in [*check_publishing(file), read_run(folder)]}
    try:
        with written_aside(file, 'w', encoding='utf-8') as out:
            for key in sorted(runs):
                out.write(json.dumps(runs[key].line | {'curve': thinned(runs[key].curve)}) + '\n')
    except OSError as e:
        raise unwritable(file, e) from None


def check_publishing(file):
    """The runs that are in a published file, which is written beside the run that comes. Raises UserError where it can't be."""
    runs = read_published(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise unwritable(file, e) from None
    return runs


def unwritable(file, error):
    return UserError(f'{file} can not be written ({first_line(error)}): give another --publish')


def thinned(curve):
    """At most MOST_POINTS rows of a curve: first those with a measurement, the last LAST of them among them, as a fit takes these; then
    others, evenly spaced."""
    if len(curve) <= MOST_POINTS:
        return curve
    measured = [i for i, row in enumerate(curve) if row.get('top1') is not None or row.get('agreement') is not None]
    kept = {0, len(curve) - 1, *measured[-LAST:]}
    for rows in (measured, range(len(curve))):
        kept |= set(evenly([i for i in rows if i not in kept], MOST_POINTS - len(kept)))
    return [curve[i] for i in sorted(kept)]


def evenly(items, count):
    """At most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def load_runs(path, unfinished=False):
    """{data set: {row's id: its runs, by seed}}, of all runs of a published file, or anywhere below a folder. unfinished: take those
    without a result.json, too, after the others of their row.

    A run is left out, with a warning, where another of its row has its seed or was told something else: their mean would mean
    nothing; so is a folder that is damaged or of another program, beside others. Raises UserError where there is no finished run, or one
    of a published file can't be used.
    """
    if not path.exists():
        raise UserError(f'{path} does not exist, expected a folder of runs or a published file: train first, or give another --runs')
    folders = sorted({file.parent for name in ('config.json', 'result.json') for file in path.rglob(name)})
    done = [folder for folder in folders if unfinished or (folder / 'result.json').exists()]
    found = read_folders(done) if path.is_dir() else read_published(path)
    if len(done) < len(folders):
        warn(f'{len(folders) - len(done)} unfinished run(s) in {path} left out (no result.json): --resume finishes one')
    if not found:
        raise UserError(f'{path} holds no finished run (no result.json): train first, or give another --runs')
    tables = {}
    for run in sorted(found, key=lambda run: (not run.finished, run.seed or 0)):
        kept = tables.setdefault(run.result['dataset'], {}).setdefault(run.row, [])
        unlike = kept and run.finished and differences(run, kept[0])
        if run.seed in [other.seed for other in kept]:
            warn(f'{run.place} left out: row {run.row} has a run of seed {run.seed} already')
        elif unlike:
            warn(f'{run.place} left out: the runs of a row must differ in the seed alone, but this one and {kept[0].place} differ in '
                 f'{", ".join(unlike)}: give it another --run')
        else:
            kept.append(run)
    return tables


def differences(one, other):
    """What two runs were told differently, as 'name (value, other value)'; not what one alone knows: an older run lacks a newer flag."""
    first, second = told(one), told(other)
    return [f'{key} ({first[key]}, {second[key]})' for key in sorted(first.keys() & second.keys()) if first[key] != second[key]]


def told(run):
    facts = {key: value for key, value in (run.line.get('settings') or {}).items() if key not in HOW}
    facts |= {key: run.result[key] for key in TOLD if key in run.result}
    given = run.line.get('command') or ''
    if facts.get('fit_pool') and '--num_select' not in given:  # then each seed's teacher decides how many
        own = {'num_select', 'images_seen', *(key for key in ('epochs', 'steps') if f'--{key}' not in given)}
        facts = {key: value for key, value in facts.items() if key not in own}
    acc, top1 = facts.get('teacher_acc'), run.result.get('teacher_top1')
    if acc is not None and top1 is not None and abs(100 * acc - top1) < 0.006:
        facts['teacher_acc'] = 'measured'  # which is one setting, though teachers differ
    return facts


class Entry(NamedTuple):
    """A row of a table and its runs, by seed; none where it was not run."""
    row: Row
    runs: list
    first: list = []  # the runs that it needs besides its teacher's, such as of the images that it learns from

    def values(self, key):
        return [run.result[key] for run in self.runs if run.result.get(key) is not None]

    def mean(self, key):
        return statistics.mean(self.values(key))

    def core_hours(self):
        """Of one seed, after the teacher: the mean over the seeds. A thread of a process is a core. Decoding is never in it, and
        scoring the pool only in the run that did it, since both are kept for all that come after."""
        def hours(run):
            hardware = run.line.get('hardware') or {}
            return (run.result.get('seconds') or 0) * hardware.get('threads', 1) * hardware.get('processes', 1) / 3600

        return sum(statistics.mean(map(hours, runs)) for runs in (self.runs, self.first) if runs)


def entries(tables, ids=()):
    """{data set: its Entries}, of load_runs' runs: of these ids in this order, or of all that ran, in ROWS' order and then by id."""
    return {dataset: [Entry(row_of(id, ran.get(id, [])), ran.get(id, []), ran.get(FIRST.get(id), []))
                      for id in ids or [*(id for id in ROWS if id in ran), *sorted(ran.keys() - ROWS)]]
            for dataset, ran in sorted(tables.items())}


def method_row(run):
    """The id of the papers' row that a run's method is: DFND's script with another selection makes 'random' and 'all'."""
    method, select = run.result['method'], run.result.get('select')
    return select if method == 'dfnd' and select in ('random', 'all') else method


def row_of(id, runs):
    """The row of an id; where ROWS lacks it, as for a user's own run, one named by its method, without a paper's number."""
    row = ROWS.get(id, Row(id, id, '-', {}, None, ''))
    if id not in ROWS and runs:
        like = ROWS.get(method_row(runs[0]), row)
        row = row._replace(name=f'{like.name} ({id})', data=like.data)
    if runs and runs[0].result['method'] in ('dafl', 'dfad'):  # its budget is its own: a short run must not pass for the paper's
        row = row._replace(name=f'{row.name} ({runs[0].result.get("epochs")} epochs)')
    return row
