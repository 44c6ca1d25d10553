"""The papers' table and the study's slim tables, as Markdown, from runs. Standard library only."""

import itertools
import math
import re
import statistics

from paper.fits import curve, fit_of_ends, fit_of_last
from paper.results import differences, entries, method_row
from paper.rows import POOLS, RULES, SHARES, SOURCE
from utils import UserError, harmless


def make_tables(runs, ids=(), kind='table1'):
    """The tables of all data sets. ids: of the rows to show, in this order (default: all that ran). kind: table1; study, a slim table;
    pools, trials and budget, which have columns of their own."""
    make = {'table1': make_table, 'study': make_study, 'pools': make_pools, 'trials': make_trials, 'budget': make_budget}[kind]
    ids = POOLS if kind == 'pools' else ids
    return '\n'.join(make(dataset, rows) for dataset, rows in entries(runs, ids).items())


def markdown(head, texts, lines):
    """A table's lines of Markdown. texts: how many of its columns, from the left, are words and not numbers."""
    rows = ['| ' + ' | '.join(map(plain, line)) + ' |' for line in [head, *lines]]
    return [rows[0], '|' + '---|' * texts + '---:|' * (len(head) - texts), *rows[1:], '']


def plain(cell):
    """A cell in which a run's or a folder's name is neither Markdown nor HTML, nor moves a terminal's cursor."""
    return re.sub(r'[|`\[\\<]', lambda found: '&lt;' if found[0] == '<' else '\\' + found[0], harmless(' '.join(str(cell).split())))


def short(number):
    """Counts as the paper prints them: 1.16G, 21.3M, 416.5K."""
    for size, digits, unit in ((1e9, 2, 'G'), (1e6, 1, 'M'), (1e3, 1, 'K')):
        if number is not None and number >= size:
            return f'{number / size:.{digits}f}{unit}'
    return '-' if number is None else str(number)


def top1_cells(entry):
    """Last top-1 as mean ± std (n - 1) over the seeds, best top-1 as mean, and the number of seeds."""
    last, best = entry.values('top1'), entry.values('top1_best')
    spread = f' ± {statistics.stdev(last):.2f}' if len(last) > 1 else ''
    text = f'{entry.mean("top1"):.2f}{spread}' if last else 'no test data' if entry.runs else 'not run'
    return [text, f'{entry.mean("top1_best"):.2f}' if best else '-', len(last)]


# ---------------------------------------------------------------- the papers' table


def make_table(dataset, rows):
    head, lines, facts = table1(dataset, rows)
    return '\n'.join([f'**{plain(dataset)}**', '', *markdown(head, 2, lines), plain(facts), '', *order_seen(rows)])


def table1(dataset, rows):
    """One data set's table: (head, lines of cells, what is said below). Top-1 in percent, FLOPs in multiply-adds."""
    lines = []
    for entry in rows:
        row, size = entry.row, [short(entry.runs[0].result.get(key)) if entry.runs else '-' for key in ('flops', 'params')]
        last, *others = top1_cells(entry)
        paper = (row.paper or {}).get(dataset)
        lines.append([row.name, row.data, *size, last, *others, f'{paper:.2f}' if paper else '-'])
    runs = [run for entry in rows for run in entry.runs]
    machines = dict.fromkeys(', '.join(value if isinstance(value, str) else f'{key} {value}' for key, value in hardware.items() if value)
                             for hardware in (run.line.get('hardware') for run in runs) if hardware)
    facts = f'Wild pool: {pools(runs)}. Time of all runs: {sum(run.result.get("seconds") or 0 for run in runs) / 60:.1f} min'
    facts += (f' on {"; ".join(machines)}.' if machines else '.') + teachers(runs)
    facts = facts if runs else 'Nothing of it is run yet.'
    facts += f' Paper: {SOURCE[dataset]}.' if dataset in SOURCE else ''
    head = ['Algorithm', 'Required data', 'FLOPs', '#params', 'top-1, last (mean ± std)', 'top-1, best', 'n',
            'paper (width 64)' if dataset.startswith('cifar') else 'paper']
    return head, lines, facts


def order_seen(rows):
    """How far DFND's best row is from the best random one, and the order seen, as lines; none where one of the two did not run."""
    names = {'random': 'Randomly selected', 'dfnd': 'DFND', 'kd': 'Knowledge distillation'}
    ran = [entry for entry in rows if entry.values('top1') and entry.row.paper is not None]  # the study's rows are not the papers' method
    groups = {method: [entry for entry in ran if method_row(entry.runs[0]) == method] for method in names}
    if not groups['dfnd'] or not groups['random']:
        return []
    best = {method: max(group, key=lambda entry: entry.mean('top1')) for method, group in groups.items() if group}
    dfnd, random = best['dfnd'], best['random']
    a, b = dfnd.values('top1'), random.values('top1')
    number, what = f'{dfnd.mean("top1") - random.mean("top1"):+.2f}', 'difference of means'
    if len(a) > 1 and len(b) > 1:
        number += f' ± {math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b)):.2f}'
        what += ' ± its standard error'
    what += f', n = {len(a)} and {len(b)}'
    what += ''.join(f'; the best of {len(groups[key])} {names[key]} rows' for key in ('dfnd', 'random') if len(groups[key]) > 1)
    unequal = [text for text in differences(dfnd.runs[0], random.runs[0]) if not text.startswith(('select ', 'recipe '))]
    unequal = ', '.join(unequal + ['the teacher'] * (not same_teachers(dfnd, random)))
    caution = f' Besides the selection, the two differ in {unequal}.' if unequal else ''
    if 'kd' in best and not same_teachers(dfnd, best['kd']):
        del best['kd']
    means = sorted((round(entry.mean('top1'), 2), names[method]) for method, entry in best.items())
    order = ''.join(f' {"<" if low < high else "="} {name} {high:.2f}' for (low, _), (high, name) in itertools.pairwise(means))
    return [f'{dfnd.row.name} - {random.row.name}: {number} ({what}).{caution} Order seen: {means[0][1]} {means[0][0]:.2f}{order}.', '']


def pools(runs):
    sizes = sorted({(run.result['wild'], run.result.get('wild_images') or 0) for run in runs if run.result.get('wild')})
    return ', '.join(f'{name} ({size:,} images)' if size else name for name, size in sizes) or 'none'


def same_teachers(one, other):
    """Whether the students of two rows had the same teacher, seed by seed; where one row lacks a seed, whether they had one at all."""
    first, second = ({run.seed: run.result.get('teacher') for run in entry.runs} for entry in (one, other))
    shared = first.keys() & second.keys()
    return all(first[seed] == second[seed] for seed in shared) if shared else {*first.values()} & {*second.values()} != set()


def teachers(runs):
    """How many teachers the students had, and whether the Teacher row is theirs: rows compare best where all of a seed had the same one."""
    shown = {run.result.get('digest') for run in runs if run.result['method'] == 'teacher'}
    had = {run.result['teacher'] for run in runs if run.result.get('teacher')}
    other = ' **The Teacher row is another network.**' if shown and had and None not in shown and not shown & had else ''
    return students_teachers(runs) + other


def students_teachers(runs):
    """A sentence on how many teachers they had."""
    pairs = {(run.seed, run.result['teacher']) for run in runs if run.result.get('teacher')}
    count = len({teacher for _, teacher in pairs})
    if count < 2:
        return ' All students had one teacher.' if count else ''
    same = 'all' if len(pairs) == len({seed for seed, _ in pairs}) else 'not all'
    return f' The students had {count} teachers; within a seed, {same} rows used the same one.'


# ---------------------------------------------------------------- the study's


def make_study(dataset, rows):
    """The slim table of one question: each row beside the one that the others depart from."""
    base = next((entry for entry in rows if entry.row.id in ('dfnd', 'dfnd-corrected')), rows[0])
    runs, lines = [run for entry in rows for run in entry.runs], []
    for entry in rows:
        last, *others = top1_cells(entry)
        seen = entry.values('images_seen')
        lines.append([entry.row.name, last, paired_difference(entry, base), *others, f'{seen[0]:,}' if seen else '-'])
    head = ['row', 'top-1, last (mean ± std)', f'difference to {base.row.name}, paired by seed (mean ± standard error)', 'top-1, best', 'n',
            'images seen']
    facts = f'**{plain(dataset)}**, wild pool: {plain(pools(runs))}.{teachers(runs)}'
    return '\n'.join([facts, '', *markdown(head, 1, lines), *selections(rows)])


def paired_difference(entry, base):
    """Mean over the seeds that both rows have of the difference in last top-1, and its standard error, as a cell."""
    ours, theirs = ({run.seed: run.result['top1'] for run in e.runs if run.result.get('top1') is not None} for e in (entry, base))
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if entry is base or not both:
        return '-'
    error = f' ± {statistics.stdev(both) / math.sqrt(len(both)):.2f}' if len(both) > 1 else ''
    return f'{round(statistics.mean(both), 2) + 0.0:+.2f}{error}'  # + 0.0: no -0.00


def make_pools(dataset, rows):
    """The rules on pools of which a growing share is of other kinds: top-1, and the difference to a random selection."""
    found = {entry.row.id: entry for entry in rows}
    lines = {'top-1': [], 'difference to random': []}
    for rule in RULES:
        cells = [found[f'{rule}-{share}'] for share in SHARES]
        lines['top-1'].append([rule, *(top1_cells(cell)[0] for cell in cells)])
        lines['difference to random'].append(
            [rule, *(paired_difference(cell, found[f'random-{share}']) for cell, share in zip(cells, SHARES))])
    runs = [run for entry in rows for run in entry.runs]
    if not runs:
        raise UserError(f'{dataset}: none of the runs is of the table of pools: give it the runs of reproduce.py pools')
    seen, kept = (sorted({run.result[key] for run in runs}) for key in ('images_seen', 'num_select'))
    counts = sorted({len(entry.runs) for entry in rows if entry.runs})
    seeds = ' to '.join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    facts = (f'{kept[0]:,} of {runs[0].result["wild_images"]:,} images selected, {seen[-1]:,} seen by a student ({runs[0].result["arch"]}, '
             f'width {runs[0].result["width"]}), {seeds} seeds a cell.{teachers(runs)}')
    tables = [markdown([f'{what}; other kinds:', *(f'{share} %' for share in SHARES)], 1, body) for what, body in lines.items()]
    return '\n'.join([f'**{plain(dataset)}**: {plain(facts)}', '', *itertools.chain.from_iterable(tables)])


def make_trials(dataset, rows):
    """Trials of settings, chosen by agreement with the teacher: a table for each width and budget."""
    head, tables = ['change', 'agreement on held-out wild images', 'on original training images', 'top-1', 'n'], []

    def budget(entry):
        return entry.runs[0].result['width'], float(f'{seen_by(entry):.0e}')  # to one digit: last batches differ

    for (width, _), some in itertools.groupby(sorted(rows, key=budget), budget):
        some = list(some)
        lines = [[entry.row.id, *(f'{entry.mean(key):.2f}' for key in ('agreement', 'agreement_original', 'top1')), len(entry.runs)]
                 for entry in some]
        seen = ' to '.join(f'{count:,}' for count in sorted({min(map(seen_by, some)), max(map(seen_by, some))}))
        tables.append('\n'.join([f'**{plain(dataset)}**, width {width}, {seen} images seen', '', *markdown(head, 1, lines)]))
    return '\n'.join(tables)


def seen_by(entry):
    return entry.runs[0].result['images_seen']


def make_budget(dataset, rows):
    """What more images would bring: the fit of each row's last points (see paper/fits.py), read at twice and four times the images that it
    saw; and the fit of the ends of DFND's runs, where their budgets differ."""
    lines = [budget_line(entry.row.name, entry.runs, fit_of_last(entry.runs), (entry.row.paper or {}).get(dataset)) for entry in rows]
    dfnds = [entry for entry in rows if entry.runs and method_row(entry.runs[0]) == 'dfnd']
    runs = [run for entry in dfnds for run in entry.runs]
    if ends := fit_of_ends(runs):
        lines.append(budget_line(f'the ends of: {"; ".join(entry.row.name for entry in dfnds)}', runs, ends,
                                 (dfnds[0].row.paper or {}).get(dataset)))
    head = ['row', 'images seen', 'top-1, last', 'points', 'c (± standard error)', 'extrapolated: twice the images', 'four times',
            'paper (width 64)' if dataset.startswith('cifar') else 'paper']
    facts = f"**{plain(dataset)}**, top-1 = T - b n^-c; T: the teacher's top-1, of a teacher 100"
    return '\n'.join([facts, '', *markdown(head, 1, lines)])


def budget_line(name, runs, fit, paper):
    """fit: see paper.fits.Fit, or None. Behind an extrapolated top-1 is what lies one standard error of a new run below and above it."""
    ends = [curve(run)[-1] for run in runs if curve(run)]
    most = max((n for n, _ in ends), default=None)
    last = [top1 for n, top1 in ends if n > 0.9 * most]  # a recipe that fits its number to the pool is a little apart from seed to seed
    cells = ['-'] * 4
    if fit:
        cells = [fit.count, f'{fit.c:.2f} ± {fit.c_error:.2f}', *('{:.1f} ({:.1f} to {:.1f})'.format(*fit.at(k * most)) for k in (2, 4))]
    return [name, f'{most:,.0f}' if most else '-', f'{statistics.mean(last):.2f}' if last else 'not run', *cells,
            f'{paper:.2f}' if paper else '-']


def selections(rows):
    """What the rows of different selections hold: the teacher's noise, and images a pseudo-label, each a mean over the seeds."""
    rows = [entry for entry in rows if entry.runs and len(entry.values('selected_per_class')) == len(entry.runs)]
    if len({entry.runs[0].result.get('select') for entry in rows}) < 2:
        return []
    lines = []
    for entry in rows:
        counts = (round(statistics.mean(counts)) for counts in zip(*entry.values('selected_per_class')))
        noises = [f'{entry.mean(key):.3g}' for key in ('noise', 'noise_max', 'pool_noise')]
        lines.append([entry.row.name, *noises, ' '.join(map(str, counts))])
    return markdown(['selection (mean over the seeds)', 'mean noise (nats)', 'largest noise', "the pool's mean noise",
                     'images of each pseudo-label (class 0, 1, ...)'], 1, lines)
