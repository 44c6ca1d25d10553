"""The table and the figures, from the files that finished runs leave behind.

    python report.py                        # runs/ -> report/table.md, report/*.png
    python report.py --readme README.md     # rewrites README's tables from the committed logs
    python report.py --check                # exits 1, naming the first marker, where README and logs differ

README's markers are lines <!-- table:FOLDER:begin --> and <!-- table:FOLDER:end -->; FOLDER holds runs and is
relative to this file. The tables need the standard library only, the figures matplotlib.
"""
import argparse
import json
import re
import statistics
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# DFND's Table 1: its rows in its order, each with the data it needs. 'All wild images' is our addition.
ROWS = {'Teacher': 'original', 'Student': 'original', 'Knowledge distillation': 'original', 'DAFL': 'none',
        'DFAD': 'none', 'DeepInversion': 'none', 'PU-compression': 'positive-unlabeled',
        'Randomly selected': 'unlabeled', 'All wild images': 'unlabeled', 'DFND': 'unlabeled'}
METHODS = {'teacher': 'Teacher', 'student': 'Student', 'kd': 'Knowledge distillation', 'dafl': 'DAFL',
           'dfnd': 'DFND'}
SELECTIONS = {'random': 'Randomly selected', 'all': 'All wild images'}
NOT_IMPLEMENTED = ('DFAD', 'DeepInversion', 'PU-compression')
SOURCE = {'cifar10': 'DFND, Table 1', 'cifar100': 'DFND, Table 1', 'MNIST': 'the tables of DAFL (ICCV 2019)'}
PAPER = {  # ResNet-34 -> ResNet-18; MNIST: LeNet-5 -> LeNet-5-Half
    'cifar10': {'Teacher': 94.85, 'Student': 93.92, 'Knowledge distillation': 94.34, 'DAFL': 92.22,
                'DFAD': 93.30, 'DeepInversion': 93.26, 'PU-compression': 93.75,
                'Randomly selected': 91.25, 'DFND': 94.02},
    'cifar100': {'Teacher': 77.34, 'Student': 76.53, 'Knowledge distillation': 76.87, 'DAFL': 74.47,
                 'DFAD': 67.70, 'Randomly selected': 73.25, 'DFND': 76.35},
    'MNIST': {'Teacher': 98.91, 'Student': 98.65, 'Knowledge distillation': 98.91, 'DAFL': 98.20}}

# What makes two runs two rows: these keys of result.json, then the arguments in config.json, but those that
# say where or how a run ran. A row's name takes the first ones that tell it from its siblings.
SETTINGS = ('recipe', 'select', 'num_select', 'loss', 'wild', 'wild_images', 'arch', 'width', 'teacher_arch', 'teacher_width', 'epochs',
            'steps', 'images_seen')
NOT_SETTINGS = ('teacher', 'script', 'method', 'dataset', 'seed', 'run', 'resume', 'device', 'workers', 'compile',
                'data', 'data_cifar', 'data_imagenet', 'cache', 'score_only')
PUBLISHED_LOSS = {'teacher': 'ce', 'student': 'ce', 'kd': 'kd+ce', 'dafl': 'oh+ie+a+kd', 'dfnd': 'kd+nll'}
PUBLISHED_DAFL_EPOCHS = (200, 2000)
ABLATIONS = {'kd': 'KD only', 'nll': 'NLL only', 'ce': 'CE only', 'kd+ce': 'KD + CE without Q'}


def fail(text):
    """One line on stderr, exit code 2."""
    print('report.py: error:', ' '.join(str(text).split()), file=sys.stderr)
    sys.exit(2)


def note(text):
    print('report.py:', text, file=sys.stderr)


def read_json(path):
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (ValueError, TypeError) as error:
        fail(f'{path} is not a JSON object ({error}): delete that run, or train it again')


def load_runs(folder):
    """The finished runs anywhere below a folder: result.json's keys, and 'folder' (Path), 'config' (dict).

    Exits with code 2 if the folder is missing or holds no finished run, or if a result can't be used.
    """
    if not folder.is_dir():
        fail(f'{folder} is not a folder, expected one that holds runs: train first, or give another --runs')
    runs = []
    for path in sorted(folder.rglob('result.json')):
        run = read_json(path)
        if run.get('method') not in METHODS or not isinstance(run.get('dataset'), str):
            fail(f'{path}: method={run.get("method")!r}, dataset={run.get("dataset")!r}, expected a data set '
                 f'and a method of {", ".join(METHODS)}: delete that run, or train it again')
        for key in ('top1', 'top1_best', 'teacher_top1', 'seconds', 'seed', 'params', 'flops'):
            if not isinstance(run.get(key), (int, float, type(None))) or run.get(key) != run.get(key):  # NaN is not itself
                fail(f'{path}: {key}={run[key]!r}, expected a number or null: train that run again')
        config = path.with_name('config.json')
        runs.append({**run, 'folder': path.parent, 'config': read_json(config) if config.exists() else {}})
    unfinished = sum(not path.with_name('result.json').exists() for path in folder.rglob('config.json'))
    if unfinished:
        note(f'{unfinished} unfinished run(s) in {folder} left out (no result.json): --resume finishes one')
    if not runs:
        fail(f'{folder} holds no finished run (no result.json): train first, or give another --runs')
    return runs


def settings(run, shared):
    """What the run was told that can matter to its number, the seed apart: {name: value}, in naming order.

    shared: the arguments that all runs of its method have, so that a flag that came later doesn't part old runs from new.
    """
    told = {key: run.get(key) for key in SETTINGS}
    told['loss'] = None if told['loss'] == PUBLISHED_LOSS[run['method']] else told['loss']
    for key, value in sorted(run['config'].get('args', {}).items()):
        if key in shared and key not in (*told, *NOT_SETTINGS) and not key.endswith('_dir') and '/' not in str(value):
            told[key] = value
    acc, top1 = told.get('teacher_acc'), run.get('teacher_top1')
    if isinstance(acc, float) and top1 is not None and abs(100 * acc - top1) < 0.006:
        told['teacher_acc'] = None  # the measured one, which is one setting though teachers differ
    return told


def wording(key, value):
    """How a row's name says one setting; '' for what goes without saying."""
    if value is None and key in SETTINGS:
        return '' if key == 'loss' else f'no {key}'
    if key in ('num_select', 'epochs', 'steps', 'images_seen'):
        return f'{value:,}' + {'num_select': '', 'images_seen': ' images seen'}.get(key, f' {key}')
    if key in ('recipe', 'select', 'arch', 'loss'):
        return ABLATIONS.get(value, str(value))
    return f'{key} {value}' if key in ('wild', 'width') else f'{key}={value}'


def name_rows(runs):
    """Group one data set's runs by all but the seed, and name the groups as Table 1 does.

    Returns a list of dicts in the table's order: base (a key of ROWS), name (base and what tells it from its
    siblings), runs (by seed), told (settings), label (the settings in the name).
    """
    groups, shared = {}, {}
    for run in runs:
        keys = run['config'].get('args', {}).keys()
        shared[run['method']] = shared.get(run['method'], keys) & keys
    for run in runs:
        base = SELECTIONS.get(run.get('select') if run['method'] == 'dfnd' else None, METHODS[run['method']])
        told = settings(run, shared[run['method']])
        row = groups.setdefault((base, json.dumps(told)), dict(base=base, told=told, label=[], runs=[]))
        twins = [other for other in row['runs'] if other.get('seed') == run.get('seed')]
        if twins:  # counted twice, it would shrink the std
            note(f'{run["folder"]} left out: same settings and seed as {twins[0]["folder"]}')
        else:
            row['runs'].append(run)
    rows = list(groups.values())
    picking = ('Randomly selected', 'DFND')
    unequal = len({row['told']['num_select'] for row in rows if row['base'] in picking}) > 1
    for key in dict.fromkeys(key for row in rows for key in row['told']):
        alike = {}  # rows that their names do not tell apart yet
        for row in rows:
            alike.setdefault((row['base'], json.dumps(row['label'])), []).append(row)
        for siblings in alike.values():
            differ = len({json.dumps(row['told'].get(key)) for row in siblings}) > 1
            for row in siblings:
                value = row['told'].get(key)
                # said of a lone row too: what departs from the paper, and num_select where random has another
                short_run = key == 'epochs' and row['base'] == 'DAFL' and value not in PUBLISHED_DAFL_EPOCHS
                always = (value == 'confidence' or (key == 'loss' and value) or short_run
                          or (key == 'num_select' and unequal and row['base'] in picking))
                if differ or always:
                    row['label'].append((key, value))
    for row in rows:
        words = ', '.join(filter(None, (wording(*pair) for pair in row['label'])))
        row['name'] = f'{row["base"]} ({words})' if words else row['base']
        row['runs'].sort(key=lambda run: run.get('seed') or 0)
    return sorted(rows, key=lambda row: (list(ROWS).index(row['base']), [
        (pair[1] if isinstance(pair[1], (int, float)) else 0, wording(*pair)) for pair in row['label']]))


def short(number):
    """Counts as the paper prints them: 1.16G, 21.3M, 416.5K."""
    for size, digits, unit in ((1e9, 2, 'G'), (1e6, 1, 'M'), (1e3, 1, 'K')):
        if number is not None and number >= size:
            return f'{number / size:.{digits}f}{unit}'
    return '-' if number is None else str(number)


def make_table(dataset, rows):
    """One data set's table in Markdown: top-1 in percent, std over seeds (n - 1), FLOPs in multiply-adds."""
    head = ['Algorithm', 'Required data', 'FLOPs', '#params', 'top-1, last (mean ± std)', 'top-1, best', 'n',
            'paper (width 64)' if dataset.startswith('cifar') else 'paper']
    paper, cells = PAPER.get(dataset, {}), []
    for base, data in ROWS.items():
        mine = [row for row in rows if row['base'] == base]
        if not mine and base in paper:
            why = 'not run: not implemented here' if base in NOT_IMPLEMENTED else 'not run'
            cells.append([base, data, '-', '-', why, '-', 0, f'{paper[base]:.2f}'])
        for row in mine:
            first = row['runs'][0]
            last = [run['top1'] for run in row['runs'] if run.get('top1') is not None]
            best = [run['top1_best'] for run in row['runs'] if run.get('top1_best') is not None]
            top1 = f'{statistics.mean(last):.2f}' if last else 'no test data'
            top1 += f' ± {statistics.stdev(last):.2f}' if len(last) > 1 else ''
            # the paper's number was not measured on an ablation
            ablated = row['told']['loss'] or any(key not in SETTINGS for key, _ in row['label'])
            cells.append([row['name'], data, short(first.get('flops')), short(first.get('params')), top1,
                          f'{statistics.mean(best):.2f}' if best else '-', len(last),
                          f'{paper[base]:.2f}' if base in paper and not ablated else '-'])
    runs = [run for row in rows for run in row['runs']]
    pools = sorted({str(run['wild']) for run in runs if run.get('wild')})
    machines = dict.fromkeys(', '.join(v if isinstance(v, str) else f'{k} {v}' for k, v in box.items() if v)
                             for box in (run['config'].get('hardware') for run in runs) if box)
    seconds = sum(run.get('seconds') or 0 for run in runs)
    facts = f'Wild pool: {", ".join(pools) or "none"}. Time of all runs: {seconds / 60:.1f} min'
    facts += f' on {"; ".join(machines)}.' if machines else '.'
    facts += f' Paper: {SOURCE[dataset]}.' if paper else ''
    lines = ['| ' + ' | '.join(str(c).replace('|', '\\|') for c in line) + ' |' for line in [head, *cells]]
    return '\n'.join([f'**{dataset}**', '', lines[0], '|---|---|' + '---:|' * 6, *lines[1:], '', facts, ''])


def make_tables(folder):
    """A folder of runs as ({data set: rows as name_rows gives them}, the Markdown of all tables)."""
    runs = load_runs(folder)
    groups = {dataset: name_rows([run for run in runs if run['dataset'] == dataset])
              for dataset in sorted({run['dataset'] for run in runs})}
    return groups, '\n'.join(make_table(*group) for group in groups.items())


def update_readme(path, check):
    """Write the tables between a README's markers; with `check` write nothing, return 1 at a difference."""
    if not path.is_file():
        fail(f'{path} is not a file, expected a README with table markers: give another --readme')
    old = path.read_text(encoding='utf-8')
    markers = list(re.finditer(r'^<!-- table:(\S+):(begin|end) -->[ \t]*$', old, re.MULTILINE))
    if not markers:
        fail(f'{path} holds no line <!-- table:FOLDER:begin -->: add the markers, or give another --readme')
    new, done, names = '', 0, []
    for begin, end in zip(markers[::2], [*markers[1::2], None]):
        name = begin[1]
        if begin[2] != 'begin' or end is None or end[2] != 'end' or end[1] != name:
            fail(f'{path}: {begin[0].strip()} has no partner, expected begin, then end, of the same name')
        if name in names:
            fail(f'{path}: table:{name} stands there more than once, expected once: delete one')
        if not (ROOT / name).is_dir():
            fail(f'{path}: table:{name}, but {ROOT / name} is no folder: commit the logs or mend the marker')
        table = f'\n{make_tables(ROOT / name)[1]}'
        if check and old[begin.end():end.start()] != table:
            note(f'{path}: table:{name} differs from its logs: write it with report.py --readme {path}')
            return 1
        names.append(name)
        new, done = new + old[done:begin.end()] + table, end.start()
    if not check:
        path.write_text(new + old[done:], encoding='utf-8')
    print(f'{path}: {len(names)} table(s) {"equal to the logs" if check else "written"}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f'{message}: python report.py --help lists the flags')
    parser.add_argument('--runs', type=Path, help='folder that holds the runs, at any depth (default: runs)')
    parser.add_argument('--out', type=Path, help='folder for table.md and the figures (default: report)')
    parser.add_argument('--no_figures', action='store_true', help='the table only, which needs no package')
    parser.add_argument('--readme', type=Path, help='rewrite the tables between the markers of this file')
    parser.add_argument('--check', action='store_true',
                        help='write nothing; exit 1 if --readme (default: README.md, here) is out of date')
    args = parser.parse_args()
    if args.readme or args.check:
        if args.runs or args.out or args.no_figures:
            fail('--runs, --out, --no_figures do not go with --readme, --check: its markers name the folders')
        return update_readme(args.readme or ROOT / 'README.md', args.check)
    groups, text = make_tables(args.runs or Path('runs'))
    print(text)
    out = args.out or Path('report')
    out.mkdir(parents=True, exist_ok=True)
    (out / 'table.md').write_text(text, encoding='utf-8')
    if not args.no_figures:
        try:
            from report_figures import draw_figures
        except ImportError as error:
            fail(f'the table is written, but figures need numpy and matplotlib ({error}): '
                 'pip install -r requirements-report.txt, or give --no_figures')
        draw_figures(groups, out, note)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        fail(f'{type(error).__name__} {error}: a file of a run is damaged, or a folder is not writable')
