"""The tables and the figures, from the files that finished runs leave behind.

    python report.py                                  # runs/ -> report/table.md, report/*.png
    python report.py --runs results/mnist-study.jsonl   # the same from a file that reproduce.py --publish wrote
    python report.py --runs runs/NAME --html          # one run, or a folder of them, as a page of one file: report/report.html
    python report.py --readme README.md               # rewrites the tables between README's markers
    python report.py --check                          # exits 1 where README.md or docs/*.md differs from its files

A table stands between two lines, <!-- KIND:FILE:begin --> and <!-- KIND:FILE:end -->; FILE is relative to this file.
    table1:FILE ID ...   the papers' table of these rows, in this order (without IDs: of all rows that ran)
    study:FILE ID ...    the slim table of these rows
    pools:FILE           the rules on pools with other kinds of images
    trials:FILE          trials of settings, by agreement with the teacher
    budget:FILE ID ...   what more images would bring these rows, an extrapolation
    speed:FILE, scale:FILE, plan:FILE   the benchmarks' tables
    ratios:FILE FILE ...   the speed of several machines, in one small table
    faults:FILE          what was tried against the project (tests/faults)
FILE holds a line a run (a folder of runs can take its place) or a kind of fault, for the benchmarks one JSON object of "speed" and "scale".
The tables need the standard library only, the figures matplotlib.
"""

import argparse
import itertools
import re
import zipfile
from pathlib import Path

from paper.bench_tables import faults_table, plan_table, ratio_table, scale_table, speed_table
from paper.results import entries, load_runs, published_name
from paper.rows import BUDGETS, KIND
from paper.tables import make_tables
from utils import UserError, bad_usage, first_line, read_json, read_json_lines, read_text, run_script, say, warn, written_aside

ROOT = Path(__file__).resolve().parent
NAME = r'(\w+:[^\s:]+(?: [^\s:]+)*)'
MARKER = re.compile(rf'^<!-- {NAME}:(begin|end) -->[ \t]*$', re.MULTILINE)
TABLE = re.compile(rf'^(<!-- {NAME}:begin -->[ \t]*\n)(.*?)(?=^<!-- \2:end -->)', re.MULTILINE | re.DOTALL)
BENCHES = {'speed': speed_table, 'scale': scale_table, 'plan': plan_table, 'ratios': ratio_table}


def marked(name):
    """The table of the marker KIND:FILE ID ..."""
    kind, _, words = name.partition(':')
    file, *ids = words.split()
    if kind == 'table1' and ids and not (ROOT / file).exists() and (dataset := planned(Path(file))):
        return make_tables({dataset: {}}, ids)
    for path in [ROOT / file, *(ROOT / word for word in ids if kind in BENCHES)]:
        if not path.exists():
            raise UserError(f'{name}: {path} does not exist: publish the runs, or correct the marker')
    if kind not in ('table1', 'study', 'pools', 'trials', 'budget', 'faults', *BENCHES):
        raise UserError(f'{name}: expected table1, study, pools, trials, budget, faults, {", ".join(BENCHES)} before the first colon: '
                        'correct the marker')
    try:
        if kind in BENCHES:
            return BENCHES[kind](*(read_json(ROOT / word) for word in words.split()))
        if kind == 'faults':
            return faults_table(read_json_lines(ROOT / file))
        return make_tables(load_runs(ROOT / file), ids, kind)
    except (LookupError, TypeError, ValueError) as e:
        raise UserError(f'{name}: {file} holds no table of the kind {kind} ({first_line(e)}): correct the marker') from None


def planned(file):
    """The data set of a file that reproduce.py --publish will write, by its name, or None: its rows are not run yet."""
    names = {published_name(dataset, scale): dataset for dataset, kind in KIND.items() for of, scale in BUDGETS if of == kind}
    return names.get(file.name)


def update_readme(path, check):
    """Writes the tables between a file's markers. With `check` writes nothing, and returns 1 where a table differs, else 0."""
    if not path.is_file():
        raise UserError(f'{path} is not a file, expected a README with table markers: give another --readme')
    old = read_text(path, 'utf-8')
    marks = MARKER.findall(old)
    names = [name for name, _ in marks[::2]]
    for found, expected in itertools.zip_longest(marks, [(name, end) for name in names for end in ('begin', 'end')]):
        if found != expected or names.count(expected[0]) > 1:
            raise UserError(f'{path}: expected <!-- {":".join(expected)} --> once, and no other marker before its end: correct the markers')
    if not names and not check:
        raise UserError(f'{path} holds no line <!-- table1:FILE:begin -->: add the markers, or give another --readme')
    tables = {name: marked(name) for name in names}
    differ = [name for _, name, text in TABLE.findall(old) if text != tables[name]]
    if check:
        for name in differ:
            warn(f'{path}: {name} differs from its file: write it with report.py --readme {path}')
    else:
        with written_aside(path, 'w', encoding='utf-8') as out:
            out.write(TABLE.sub(lambda found: found[1] + tables[found[2]], old))
    say(f'{path}: {len(tables)} table(s), {len(differ)} {"differ" if check else "changed"}')
    return int(check and bool(differ))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = bad_usage
    parser.add_argument('--runs', type=Path, nargs='+', action='extend', metavar='PATH',
                        help='folder of runs, at any depth, or a published file (default: runs)')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder for table.md and the figures (default: report)')
    parser.add_argument('--rows', nargs='+', action='extend', metavar='ID', help="the papers' table of these rows alone, each of the "
                        'runs in ID-s<seed>')
    parser.add_argument('--study', nargs='+', metavar='ID', action='append', help='the same, as a slim table; may be repeated')
    parser.add_argument('--pools', action='store_true', help='the table of the rules on pools with other kinds of images')
    parser.add_argument('--no_figures', action='store_true', help='the table only, which needs no package')
    parser.add_argument('--html', action='store_true', help='instead of the table and the figures, a page, report.html: verdict, curves, '
                        'rows, selection, classes, speed and commands; of unfinished runs, too')
    parser.add_argument('--readme', type=Path, metavar='FILE', help='rewrite the tables between the markers of this file')
    parser.add_argument('--check', action='store_true',
                        help='write nothing; exit 1 if --readme (default: README.md and docs/*.md) is out of date')
    args = parser.parse_args()
    if args.runs and len(args.runs) > 1:
        raise UserError(f'--runs {" ".join(map(str, args.runs))}, and a table is of one folder: give the one above them, with --rows to '
                        'take a part of it')
    tables = args.rows or args.study or args.pools or args.no_figures
    if (args.readme or args.check) and (args.runs or args.out or args.html or tables):
        raise UserError('--runs, --out, --rows, --study, --pools, --no_figures, --html do not go with --readme, --check, whose markers '
                        'name the files: leave them out')
    if args.pools and (args.rows or args.study):
        raise UserError('--rows, --study do not go with --pools, which has rows of its own: leave them out')
    if args.html and tables:
        raise UserError('--rows, --study, --pools, --no_figures do not go with --html, which shows all runs: leave them out')
    return args


def write_tables(args, runs, out):
    studies = args.study or []
    tables = [make_tables(runs, args.rows or (), 'pools' if args.pools else 'table1')] if args.rows or not studies else []
    tables += [make_tables(runs, ids, 'study') for ids in studies]
    print('\n'.join(tables))
    out.mkdir(parents=True, exist_ok=True)
    with written_aside(out / 'table.md', 'w', encoding='utf-8') as file:
        file.write('\n'.join(tables))
    if not args.no_figures:
        from paper.figures import draw_figures

        draw_figures(entries(runs, args.rows or dict.fromkeys(id for ids in studies for id in ids)), out)


def main():
    args = parse()
    if args.readme or args.check:
        files = [args.readme] if args.readme else [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
        return max([update_readme(path, args.check) for path in files])
    path, out = args.runs[0] if args.runs else Path('runs'), args.out or Path('report')
    runs = load_runs(path, unfinished=args.html)
    try:
        if args.html:
            from paper.page import write_page

            out.mkdir(parents=True, exist_ok=True)
            write_page(out / 'report.html', path.resolve().name, runs)
            say(f'{out / "report.html"} is the page: open it in a browser')
        else:
            write_tables(args, runs, out)
    except ImportError as e:
        raise UserError(f'figures and the page need numpy and matplotlib ({e}): pip install -r requirements-report.txt, or give '
                        '--no_figures: the table needs neither') from None
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as e:
        if isinstance(e, OSError) and e.filename is None:  # of stdout, or told already: see utils.run_script
            raise
        raise UserError(f'{first_line(e)}: {out} can not be written, then give another --out; or a file of a run is damaged, then train '
                        'that run again') from None
    return 0


if __name__ == '__main__':
    run_script(main)
