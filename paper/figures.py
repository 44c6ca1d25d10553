"""The report's figures. Each function draws rows (paper.results.Entry) or `run`, which find_run chose among them."""

import itertools
import warnings
import zipfile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from paper.fits import LAST, curve, fit_of_ends, fit_of_last
from utils import Damaged, checked, harmless, warn, written_aside

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999')
STYLES = ('-', '--', ':', '-.', (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def literal(name):
    """A name as matplotlib shows it, without a formula in it."""
    return harmless(name).replace('$', r'\$')


def find_run(rows, file):
    """Of the runs that have the file, the one to show: the lowest seed of DFND, or the first; None where none has it."""
    runs = [run for entry in rows for run in entry.runs if (run.curve if file == 'metrics.jsonl' else run.file(file))]
    dfnd = [run for run in runs if run.result['method'] == 'dfnd' and run.result.get('select') not in ('random', 'all')]
    return min(dfnd, key=lambda run: run.seed or 0) if dfnd else next(iter(runs), None)


def arrays_of(run, name):
    """Of one of the run's .npz or .npy files. Raises Damaged where it is not as it was written."""
    try:
        return np.load(checked(run.file(name)), allow_pickle=False)
    except (EOFError, ValueError, zipfile.BadZipFile, Damaged):
        raise damaged(run.file(name)) from None


def damaged(file):
    return Damaged(f'{file} is damaged: delete it, and what it shows is left out, or train that run again')


def points(run, key):
    """(2, n): the steps, and the values of `key` in their epochs."""
    return np.array([(epoch['step'], epoch[key]) for epoch in run.curve if epoch.get(key) is not None]).reshape(-1, 2).T


def draw_curves(fig, rows, _):
    """The accuracy and the losses, side by side."""
    rows = [entry for entry in rows if entry.runs]
    fig.set_size_inches(11, 4.6 + 0.08 * len(rows))
    accuracy, loss = fig.subplots(1, 2)
    draw_accuracy(accuracy, rows)
    draw_losses(loss, rows)
    fig.legend(*accuracy.get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize=9)


def draw_accuracy(axis, rows):
    """Top-1 (percent) of every run over the steps; where no run has one, the agreement with the teacher."""
    top1 = any(len(points(run, 'top1')[0]) for entry in rows for run in entry.runs)
    for entry, (dash, colour) in zip(rows, itertools.cycle(itertools.product(STYLES, COLOURS))):
        axis.plot([], [], ls=dash, color=colour, label=literal(entry.row.name))
        for run in entry.runs:
            axis.plot(*points(run, 'top1' if top1 else 'agreement'), ls=dash, color=colour, lw=0.9, marker='.', ms=3)
    axis.set(title=f'{"Accuracy on the test set" if top1 else "Agreement with the teacher"}, a line a seed', xlabel='step',
             ylabel='top-1 (%)' if top1 else 'agreement (%)')
    axis.grid(alpha=0.3)


def draw_losses(axis, rows):
    """The losses of each row's lowest seed over the steps."""
    losses = dict.fromkeys(key for entry in rows for epoch in entry.runs[0].curve for key in epoch
                           if key.startswith('loss') and (epoch[key] or 0) > 0)
    for key, style in zip(losses, itertools.cycle(STYLES)):
        axis.plot([], [], ls=style, color='0.3', label=key)
        for entry, colour in zip(rows, itertools.cycle(COLOURS)):
            axis.plot(*points(entry.runs[0], key), ls=style, color=colour, lw=1.2, marker='.', ms=3)
    axis.set(title="Training losses where positive, each row's lowest seed", xlabel='step', ylabel='loss (log scale)')
    axis.set_yscale('log', nonpositive='mask')
    if losses:
        axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


KINDS = {'original': 'original images', 'unlabeled': 'wild images', 'positive-unlabeled': 'wild images and a part of the original ones',
         'none': 'images by a generator', 'inverted': 'images out of batch norms'}  # by what a row needs


def draw_cost(fig, rows, _):
    """The accuracy of every row against what its student cost, means over the seeds; of the teacher's rows none."""
    fig.set_size_inches(9, 6)
    axis, seen = fig.subplots(), {}
    first = min(entry.core_hours() for entry in rows if entry.runs)
    for entry in rows:
        data = 'inverted' if entry.first else entry.row.data
        if entry.values('top1') and entry.runs[0].result['method'] != 'teacher' and data in KINDS:
            at = entry.core_hours(), entry.mean('top1')
            seen[data], = axis.plot(*at, 'o', color=COLOURS[list(KINDS).index(data)], label=None if data in seen else KINDS[data])
            place = dict(xytext=(-6, 0), ha='right') if at[0] == first else dict(xytext=(6, 0), ha='left')
            axis.annotate(literal(entry.row.name), at, **place, textcoords='offset points', fontsize=8, va='center')
    axis.set(title="Accuracy against core-hours, the teacher's left out", xlabel='core-hours of one seed', ylabel='top-1 (%)', xscale='log')
    axis.set_yscale('function', functions=(lambda y: -np.log(np.maximum(101 - y, 0.1)), lambda z: 101 - np.exp(-z)))  # good rows are apart
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.25, y=0.1)
    axis.grid(alpha=0.3)
    if seen:
        fig.legend(fontsize=8, loc='outside lower center', ncols=3)


def draw_budget(fig, rows, _):
    """Top-1, and the agreement with the teacher where it was measured, over the images seen, with two extrapolations of top-1 and the
    paper's numbers."""
    rows = [entry for entry in rows if any(curve(run) or curve(run, 'agreement') for run in entry.runs)]
    keys = [key for key in ('top1', 'agreement') if any(curve(run, key) for entry in rows for run in entry.runs)]
    fig.set_size_inches(5.5 + 4 * len(keys), 5 + 0.12 * len(rows))
    for axis, key in zip(fig.subplots(1, max(1, len(keys)), squeeze=False)[0], keys):
        for entry, colour in zip(rows, itertools.cycle(COLOURS)):
            axis.plot([], [], color=colour, label=literal(entry.row.name))
            for run in entry.runs:
                axis.plot(*zip(*curve(run, key) or [(np.nan, np.nan)]), color=colour, lw=0.9, marker='.', ms=4)
            paper = (entry.row.paper or {}).get(entry.runs[0].result['dataset'])
            if key == 'top1':
                draw_fit(axis, fit_of_last(entry.runs), entry.runs, (colour, '--'))
                axis.axhline(paper or np.nan, color=colour, lw=0.8, ls=':')
        if key == 'top1':
            dfnd = [run for entry in rows for run in entry.runs if run.result['method'] == 'dfnd' and run.result.get('select') != 'random']
            draw_fit(axis, fit_of_ends(dfnd), dfnd, ('k', '-.'))
        axis.set(xscale='log', xlabel='images seen', ylabel='top-1 (%)' if key == 'top1' else 'agreement with the teacher (%)')
        axis.grid(alpha=0.3, which='both')
    fig.suptitle('A line a seed. Extrapolations, each with a standard error: dashed, of the last '
                 f'{LAST} points of a row, which are steep since its rate ends;\ndash-dotted, of the ends of runs of other budgets. '
                 'Dotted: the paper', fontsize=9)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize=9)


def draw_fit(axis, fit, runs, style):
    """A Fit, from its first point on to four times the runs' images. style: (colour, dashes). Nothing where it is None."""
    if fit:
        most = max(curve(run)[-1][0] for run in runs if curve(run))
        n = np.geomspace(fit.first, 4 * most, 50)
        top1, low, high = np.transpose([fit.at(x) for x in n])
        axis.plot(n, top1, color=style[0], lw=1, ls=style[1])
        axis.fill_between(n, low, high, color=style[0], alpha=0.12, lw=0)


def draw_selection(fig, rows, run):
    """The cleanest and the noisiest wild images."""
    draw_images(fig, run, {'clean': 'cleanest', 'noisy': 'noisiest'})


def draw_chosen(fig, rows, run):
    """Some of the wild images that were chosen, and some that were left."""
    draw_images(fig, run, {'chosen': 'chosen', 'left': 'left'})


def draw_images(fig, run, kinds):
    """At most 40 wild images of each of two kinds, with pseudo-label and noise (nats). kinds: the arrays' names -> titles."""
    fig.set_size_inches(10, 10)
    fig.suptitle(f'Wild images of {literal(run.folder.name)}\npseudo-label, noise = -log(teacher\'s confidence)')
    with arrays_of(run, 'thumbnails.npz') as arrays:
        for part, (kind, title) in zip(fig.subfigures(2, 1), kinds.items()):
            part.suptitle(title, fontweight='bold')
            if f'{kind}_labels' not in arrays:  # of a run before November 2026
                continue
            names = arrays['class_names'][arrays[f'{kind}_labels']]
            axes = part.subplots(4, 10).flatten()
            for axis in axes:
                axis.axis('off')
            for axis, image, name, noise in zip(axes, arrays[f'{kind}_images'], names, arrays[f'{kind}_noise']):
                axis.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=255)
                axis.set_title(f'{literal(name[:12])}\n{noise:.2g}', fontsize=8)


def draw_histogram(fig, rows, _):
    """Chosen wild images by predicted class: a panel for each of the table's rows, of its lowest seed."""
    panels = {}
    for entry in rows:
        run = find_run([entry], 'selection.csv')
        if run:
            panels[entry.row.name] = np.bincount(*labels_of(run.file('selection.csv')))
    classes, lines = max(map(len, panels.values())), -(-len(panels) // 3)
    axes = fig.subplots(lines, min(3, len(panels)), sharey=True, squeeze=False).flatten()
    fig.set_size_inches(max(6, 3.7 * min(3, len(panels))), 0.6 + 2.7 * lines)
    fig.suptitle('Chosen wild images by the class that the teacher predicts')
    for axis, (name, counts) in zip(axes, panels.items()):
        axis.bar(range(len(counts)), counts, color=COLOURS[0])
        axis.set(xlabel='predicted class', ylabel='images', xlim=(-0.7, classes - 0.3), xticks=range(0, classes, -(-classes // 10)))
        axis.set_title(literal(name), fontsize=10, wrap=True)
        axis.grid(axis='y', alpha=0.3)
    for axis in axes[len(panels):]:
        axis.axis('off')


def labels_of(path):
    """Of a selection.csv: every image's pseudo-label, and 1 where it is chosen, else 0."""
    try:
        with path.open(encoding='utf-8', errors='surrogateescape') as file, warnings.catch_warnings():  # image, noise, pseudo_label, chosen
            warnings.simplefilter('error')  # of an empty file
            labels, chosen = np.loadtxt(file, int, comments=None, delimiter=',', quotechar='"', skiprows=1, usecols=(2, 3)).T
            return labels, chosen
    except (UserWarning, ValueError):
        raise damaged(path) from None


def draw_adaptation(fig, rows, run):
    """The learned Q; the colours span what lies off the diagonal, which the diagonal would drown."""
    q = arrays_of(run, 'adaptation.npy')  # (C, C)
    diagonal = np.eye(len(q), dtype=bool)
    fig.set_size_inches(7.5, 6.8)
    axis = fig.subplots()
    axis.set_facecolor('0.85')
    image = axis.imshow(np.ma.masked_array(q, diagonal), cmap='cividis')
    fig.colorbar(image, label='probability, off the diagonal')
    axis.set(xlabel='label that the teacher gives', ylabel='true class')
    axis.set_title(f'Learned adaptation matrix Q of {literal(run.folder.name)}\ndiagonal (grey) fixed at {q[diagonal].mean():.4f}',
                   fontsize=10)
    if len(q) <= 10:
        axis.set(xticks=range(len(q)), yticks=range(len(q)))
        for (i, j), value in np.ndenumerate(q):
            dark = i != j and value < (image.norm.vmin + image.norm.vmax) / 2
            axis.text(j, i, f'{value:.3f}', ha='center', va='center', fontsize=8, color='w' if dark else 'k')


FIGURES = {'curves': (draw_curves, 'metrics.jsonl'), 'budget': (draw_budget, 'metrics.jsonl'), 'cost': (draw_cost, 'metrics.jsonl'),
           'selection': (draw_selection, 'thumbnails.npz'),
           'chosen': (draw_chosen, 'thumbnails.npz'),
           'histogram': (draw_histogram, 'selection.csv'), 'adaptation': (draw_adaptation, 'adaptation.npy')}


def draw_figures(groups, out):
    """Draws into the folder `out` what the runs have the files for, and warns of what is left out. groups: {data set: rows}."""
    for dataset, rows in groups.items():
        for name, (draw, file) in FIGURES.items():
            path = out / (f'{dataset}-{name}.png' if len(groups) > 1 else f'{name}.png')
            fig, run = Figure(layout='constrained'), find_run(rows, file)
            if run is None:
                warn(f'{path.name} not drawn: no finished run on {dataset} holds {file}')
            else:
                draw(fig, rows, run)
                with written_aside(path, 'w+b') as image:
                    fig.savefig(image, dpi=120)
