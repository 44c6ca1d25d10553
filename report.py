"""The table and the figures, from the files that finished runs leave behind.

    python report.py                        # runs/ -> report/table.md, report/*.png
    python report.py --readme README.md     # rewrites README's tables from the committed logs
    python report.py --check                # exits 1, naming the first marker, where README and logs differ

The markers of README.md and docs/*.md are lines <!-- table:FOLDER:begin --> and <!-- table:FOLDER:end -->; FOLDER holds runs and is
relative to this file. Names of rows, which are run folders' names without -s<seed>, may follow: table:FOLDER NAME ... is
the slim table of these rows, in this order; table1:FOLDER NAME ... is the papers' table of these rows alone. speed:FOLDER,
scale:FOLDER and plan:FOLDER are the benchmarks', from speed.json and scale.json there.
The tables need the standard library only, the figures matplotlib.
"""
import argparse
import itertools
import math
import re
import statistics
import sys
import zipfile
from pathlib import Path

from report_bench import plan_table, scale_table, speed_table
from report_rows import ROWS, SETTINGS, fail, load_runs, name_rows, note, read_json

ROOT = Path(__file__).resolve().parent

NOT_IMPLEMENTED = ('DFAD', 'DeepInversion', 'PU-compression')
BASES = {'teacher': 'Teacher', 'student': 'Student', 'kd': 'Knowledge distillation', 'noise': 'Normal distribution',  # reproduce.py's
         'alternative': 'Alternative data', 'dafl': 'DAFL', 'random': 'Randomly selected', 'all': 'All wild images', 'dfnd': 'DFND'}
SOURCE = {'cifar10': 'DFND, Table 1', 'cifar100': 'DFND, Table 1', 'MNIST': 'the tables of DAFL (ICCV 2019)'}
PAPER = {  # ResNet-34 -> ResNet-18; MNIST: LeNet-5 -> LeNet-5-Half
    'cifar10': {'Teacher': 94.85, 'Student': 93.92, 'Knowledge distillation': 94.34, 'DAFL': 92.22,
                'DFAD': 93.30, 'DeepInversion': 93.26, 'PU-compression': 93.75,
                'Randomly selected': 91.25, 'DFND': 94.02},
    'cifar100': {'Teacher': 77.34, 'Student': 76.53, 'Knowledge distillation': 76.87, 'DAFL': 74.47,
                 'DFAD': 67.70, 'Randomly selected': 73.25, 'DFND': 76.35},
    'MNIST': {'Teacher': 98.91, 'Student': 98.65, 'Knowledge distillation': 98.91, 'Normal distribution': 88.01,
              'Alternative data': 94.56, 'DAFL': 98.20}}


def short(number):
    """Counts as the paper prints them: 1.16G, 21.3M, 416.5K."""
    for size, digits, unit in ((1e9, 2, 'G'), (1e6, 1, 'M'), (1e3, 1, 'K')):
        if number is not None and number >= size:
            return f'{number / size:.{digits}f}{unit}'
    return '-' if number is None else str(number)


def top1s(row):
    """The row's last and best top-1 as lists over its seeds, and as cells: mean ± std (n - 1), mean."""
    last, best = ([run[key] for run in row['runs'] if run.get(key) is not None] for key in ('top1', 'top1_best'))
    text = f'{statistics.mean(last):.2f}' if last else 'no test data'
    text += f' ± {statistics.stdev(last):.2f}' if len(last) > 1 else ''
    return last, text, f'{statistics.mean(best):.2f}' if best else '-'


def is_ablation(row):
    """Whether the papers have no number for it: DAFL's alternative data are USPS."""
    if row['base'] == 'Alternative data' and row['told']['wild'] != 'usps':
        return True
    return row['told']['loss'] or any(key not in SETTINGS for key, _ in row['label'])


def markdown(head, numbers_from, cells):
    lines = ['| ' + ' | '.join(str(c).replace('|', '\\|') for c in line) + ' |' for line in [head, *cells]]
    return [lines[0], '|' + '---|' * numbers_from + '---:|' * (len(head) - numbers_from), *lines[1:], '']


def make_table(dataset, rows, missing=()):
    """One data set's table in Markdown: top-1 in percent, std over seeds (n - 1), FLOPs in multiply-adds.

    missing: folder names that were asked for and have no finished run.
    """
    head = ['Algorithm', 'Required data', 'FLOPs', '#params', 'top-1, last (mean ± std)', 'top-1, best', 'n',
            'paper (width 64)' if dataset.startswith('cifar') else 'paper']
    paper, cells = PAPER.get(dataset, {}), []
    for base, data in ROWS.items():
        mine = [row for row in rows if row['base'] == base]
        gone = [name for name in missing if BASES.get(name, 'DFND') == base]
        if not mine and base in paper:
            why = 'not run: not implemented here' if base in NOT_IMPLEMENTED else 'not run'
            cells.append([base, data, '-', '-', why, '-', 0, f'{paper[base]:.2f}'])
        for row in mine:
            first = row['runs'][0]
            last, text, best = top1s(row)
            # the paper's number was not measured on an ablation
            cells.append([row['name'], data, short(first.get('flops')), short(first.get('params')), text, best, len(last),
                          f'{paper[base]:.2f}' if base in paper and not is_ablation(row) else '-'])
        if mine or base not in paper:
            cells += [[base if name in BASES else f'{base} ({name})', data, '-', '-', 'not run', '-', 0, '-'] for name in gone]
    runs = [run for row in rows for run in row['runs']]
    machines = dict.fromkeys(', '.join(v if isinstance(v, str) else f'{k} {v}' for k, v in box.items() if v)
                             for box in (run['config'].get('hardware') for run in runs) if box)
    seconds = sum(run.get('seconds') or 0 for run in runs)
    facts = f'Wild pool: {pools(runs)}. Time of all runs: {seconds / 60:.1f} min'
    facts += f' on {"; ".join(machines)}.' if machines else '.'
    facts += teachers(runs)
    facts += f' Paper: {SOURCE[dataset]}.' if paper else ''
    return '\n'.join([f'**{dataset}**', '', *markdown(head, 2, cells), facts, '', *differences(rows)])


def make_study(dataset, rows, names):
    """The slim table of one question: the rows of these folder names in their order."""
    from_ = next((name for name in names if name in ('dfnd', 'dfnd-corrected')), names[0])  # what the others depart from
    base = next((row for row in rows if row['runs'][0]['row'] == from_), None)
    difference = f'difference to {base["name"] if base else from_}, paired by seed (mean ± standard error)'
    head, cells = ['row', 'top-1, last (mean ± std)', difference, 'top-1, best', 'n', 'images seen'], []
    for name in names:
        mine = [row for row in rows if row['runs'][0]['row'] == name]
        cells += [] if mine else [[name, 'not run', '-', '-', 0, '-']]
        for row in mine:
            last, text, best = top1s(row)
            seen = row['told']['images_seen']
            cells.append([row['name'], text, paired_difference(row, base), best, len(last), '-' if seen is None else f'{seen:,}'])
    runs = [run for row in rows for run in row['runs']]
    title = f'**{dataset}**, wild pool: {pools(runs)}.{teachers(runs)}'
    return '\n'.join([title, '', *markdown(head, 1, cells), *selections(rows)])


def paired_difference(row, base):
    """Mean over the seeds that both rows have of the difference in last top-1, and its standard error, as a cell."""
    if base is None or row is base:
        return '-'
    of = {run.get('seed'): run['top1'] for run in base['runs'] if run.get('top1') is not None}
    both = [run['top1'] - of[run.get('seed')] for run in row['runs'] if run.get('top1') is not None and run.get('seed') in of]
    error = f' ± {statistics.stdev(both) / math.sqrt(len(both)):.2f}' if len(both) > 1 else ''
    return f'{round(statistics.mean(both), 2) + 0.0:+.2f}{error}' if both else '-'  # + 0.0: no -0.00


def selections(rows):
    """What the rows of different selections hold: the teacher's noise, and images a pseudo-label, each a mean over the seeds."""
    rows = [row for row in rows if all(run.get('selected_per_class') for run in row['runs'])]
    if len({row['told']['select'] for row in rows}) < 2:
        return []
    cells = []
    for row in rows:
        noises = [f'{statistics.mean(run[key] for run in row["runs"]):.3g}' for key in ('noise', 'noise_max', 'pool_noise')]
        counts = [round(statistics.mean(of_class)) for of_class in zip(*(run['selected_per_class'] for run in row['runs']))]
        cells.append([row['name'], *noises, ' '.join(map(str, counts))])
    head = ['selection (mean over the seeds)', 'mean noise (nats)', 'largest noise', "the pool's mean noise",
            'images of each pseudo-label (class 0, 1, ...)']
    return markdown(head, 1, cells)


def teachers(runs):
    """A word on how many teachers the students had: rows compare best where all runs of a seed had the same one."""
    seeds = {}
    for run in runs:
        if run.get('teacher'):
            seeds.setdefault(run.get('seed'), set()).add(run['teacher'])
    count = len(set().union(*seeds.values()))
    if any(len(digests) > 1 for digests in seeds.values()):
        return f' The students had {count} teachers; within a seed, not all rows used the same one.'
    if count < 2:
        return ' All students had one teacher.' if count else ''
    return f' The students had {count} teachers; within a seed, all rows used the same one.'


def pools(runs):
    sizes = sorted({(run['wild'], run.get('wild_images') or 0) for run in runs if run.get('wild')})
    return ', '.join(f'{name} ({size:,} images)' if size else name for name, size in sizes) or 'none'


def differences(rows):
    """How far DFND's best row is from the best random one, and the order seen, as lines; none where one of the two did not run."""
    bases = ('Randomly selected', 'DFND', 'Knowledge distillation')
    of = {base: [row for row in rows if row['base'] == base and top1s(row)[0] and not is_ablation(row)] for base in bases}
    if not (of['DFND'] and of['Randomly selected']):
        return []
    top = {base: max(group, key=lambda row: statistics.mean(top1s(row)[0])) for base, group in of.items() if group}
    lasts = {base: top1s(row)[0] for base, row in top.items()}
    a, b = lasts['DFND'], lasts['Randomly selected']
    difference = f'{statistics.mean(a) - statistics.mean(b):+.2f}'
    what = 'difference of means'
    if len(a) > 1 and len(b) > 1:
        difference += f' ± {math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b)):.2f}'
        what += ' ± its standard error'
    many = [f'the best of {len(of[base])} {base} rows' for base in ('DFND', 'Randomly selected') if len(of[base]) > 1]
    line = (f'{top["DFND"]["name"]} - {top["Randomly selected"]["name"]}: {difference} '
            f'({"; ".join([f"{what}, n = {len(a)} and {len(b)}", *many])}).')
    means = sorted((round(statistics.mean(last), 2), base) for base, last in lasts.items())
    order = f'Order seen: {means[0][1]} {means[0][0]:.2f}'
    for (before, _), (mean, base) in itertools.pairwise(means):
        order += f' {"<" if before < mean else "="} {base} {mean:.2f}'
    one, other = top['DFND']['told'], top['Randomly selected']['told']
    unequal = [f'{key} ({one[key]}, {other[key]})' for key in one.keys() & other.keys()
               if key not in ('select', 'recipe') and one[key] != other[key]]
    caution = f' But for the selection, the two differ in {", ".join(sorted(unequal))}.' if unequal else ''
    return [f'{line}{caution} {order}.', '']


def make_tables(runs, names=(), study=False):
    """Runs as ({data set: rows as name_rows gives them}, the Markdown of all tables).

    names: of folders, without -s<seed>, to take alone; study: as slim tables.
    """
    groups, texts = {}, []
    for dataset in sorted({run['dataset'] for run in runs}):
        mine = [run for run in runs if run['dataset'] == dataset and (not names or run['row'] in names)]
        rows = groups[dataset] = name_rows(mine, study)
        texts.append(make_study(dataset, rows, names) if study
                     else make_table(dataset, rows, [name for name in names if name not in {run['row'] for run in mine}]))
    return groups, '\n'.join(texts)


def marked(kind, folder, words):
    """The table of a marker `kind`:`folder` `words`."""
    if kind == 'speed':
        return speed_table(read_json(folder / 'speed.json'))
    if kind == 'scale':
        return scale_table(read_json(folder / 'scale.json'))
    if kind == 'plan':
        return plan_table(read_json(folder / 'speed.json'))
    return make_tables(load_runs(folder), words, bool(words) and kind == 'table')[1]


def update_readme(path, check):
    """Write the tables between a README's markers; with `check` write nothing, return 1 at a difference."""
    if not path.is_file():
        fail(f'{path} is not a file, expected a README with table markers: give another --readme')
    old = path.read_text(encoding='utf-8')
    markers = list(re.finditer(r'^<!-- ((table1?|speed|scale|plan):([^\s:]+)((?: +[^\s:]+)*)):(begin|end) -->[ \t]*$', old, re.MULTILINE))
    if not markers:
        fail(f'{path} holds no line <!-- table:FOLDER:begin -->: add the markers, or give another --readme')
    new, done, names = '', 0, []
    for begin, end in zip(markers[::2], [*markers[1::2], None]):
        name, folder, words = begin[1], begin[3], begin[4].split()
        if begin[5] != 'begin' or end is None or end[5] != 'end' or end[1] != name:
            fail(f'{path}: {begin[0].strip()} has no partner, expected begin, then end, of the same name')
        if name in names:
            fail(f'{path}: {name} stands there more than once, expected once: delete one')
        if not (ROOT / folder).is_dir():
            fail(f'{path}: {name}, but {ROOT / folder} is no folder: commit the logs or mend the marker')
        table = f'\n{marked(begin[2], ROOT / folder, words)}'
        if check and old[begin.end():end.start()] != table:
            note(f'{path}: {name} differs from its logs: write it with report.py --readme {path}')
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
    parser.add_argument('--rows', nargs='+', metavar='NAME', help="runs in folders NAME-s<seed> alone, as the papers' table")
    parser.add_argument('--study', nargs='+', metavar='NAME', action='append', help='the same, as a slim table; may be repeated')
    parser.add_argument('--no_figures', action='store_true', help='the table only, which needs no package')
    parser.add_argument('--readme', type=Path, help='rewrite the tables between the markers of this file')
    parser.add_argument('--check', action='store_true',
                        help='write nothing; exit 1 if --readme (default: README.md and docs/*.md, here) is out of date')
    args = parser.parse_args()
    if args.readme or args.check:
        if args.runs or args.out or args.rows or args.study or args.no_figures:
            fail('--runs, --out, --rows, --study, --no_figures do not go with --readme, --check: its markers name the folders')
        files = [args.readme] if args.readme else [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
        return max(update_readme(path, args.check) or 0 for path in files)
    runs = load_runs(args.runs or Path('runs'))
    if args.rows or not args.study:
        groups, text = make_tables(runs, args.rows or ())
    else:
        groups = make_tables(runs, [name for names in args.study for name in names], study=True)[0]
        text = '\n'.join(make_tables(runs, names, study=True)[1] for names in args.study)
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
