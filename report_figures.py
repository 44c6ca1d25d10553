"""The report's figures. Each function draws rows, as report.name_rows gives them, and returns False where no run has its file."""

import csv
import json

import numpy as np
from matplotlib.figure import Figure

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999')
STYLES = ('-', '--', ':', '-.', (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def find_run(rows, file):
    """Of the runs that have the file, the one to show: balanced DFND's lowest seed, or the first."""
    runs = [run for row in rows for run in row['runs'] if (run['folder'] / file).exists()]
    balanced = [run for run in runs if run['method'] == 'dfnd' and run.get('select') == 'balanced']
    return min(balanced, key=lambda run: run.get('seed') or 0) if balanced else next(iter(runs), None)


def draw_curves(fig, rows):
    """Top-1 (percent) of every run, and the losses of each row's lowest seed, over the steps."""
    if find_run(rows, 'metrics.jsonl') is None:
        return False
    fig.set_size_inches(11, 4.6 + 0.08 * len(rows))
    accuracy, loss = fig.subplots(1, 2)
    styles = {}
    for i, row in enumerate(rows):
        colour, dash = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        accuracy.plot([], [], ls=dash, color=colour, label=row['name'])
        for run in row['runs']:
            path = run['folder'] / 'metrics.jsonl'
            epochs = [json.loads(line) for line in path.open(encoding='utf-8')] if path.exists() else []
            points = [(e['step'], e['top1']) for e in epochs if e.get('top1') is not None]
            accuracy.plot(*np.reshape(points, (-1, 2)).T, ls=dash, color=colour, lw=0.9, marker='.', ms=3)
            keys = dict.fromkeys(key for e in epochs for key in e if key.startswith('loss'))
            for key in keys if run is row['runs'][0] else ():
                points = [(e['step'], e[key]) for e in epochs if e.get(key) is not None and e[key] > 0]
                if points:
                    style = styles.setdefault(key, STYLES[len(styles) % len(STYLES)])
                    loss.plot(*np.transpose(points), ls=style, color=colour, lw=1.2, marker='.', ms=3)
    accuracy.set(title='Accuracy on the test set, a line a seed', xlabel='step', ylabel='top-1 (%)')
    loss.set(title="Training losses where positive, each row's lowest seed", xlabel='step',
             ylabel='loss (log scale)', yscale='log')
    for key, style in styles.items():
        loss.plot([], [], ls=style, color='0.3', label=key)
    if styles:
        loss.legend(fontsize=8)
    accuracy.grid(alpha=0.3)
    loss.grid(alpha=0.3)
    fig.legend(*accuracy.get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize=9)
    return True


def draw_selection(fig, rows):
    """The cleanest and the noisiest wild images, at most 40 of each, with pseudo-label and noise (nats)."""
    run = find_run(rows, 'thumbnails.npz')
    if run is None:
        return False
    fig.set_size_inches(10, 10)
    fig.suptitle(f'Wild images of {run["folder"].name}\npseudo-label, noise = -log(teacher\'s confidence)')
    with np.load(run['folder'] / 'thumbnails.npz', allow_pickle=False) as arrays:
        for part, kind in zip(fig.subfigures(2, 1), ('clean', 'noisy')):
            images, labels, noise = (arrays[f'{kind}_{name}'][:40] for name in ('images', 'labels', 'noise'))
            part.suptitle('cleanest' if kind == 'clean' else 'noisiest', fontweight='bold')
            names = arrays['class_names'][labels]
            for i, axis in enumerate(part.subplots(4, 10).flat):
                axis.axis('off')
                if i < len(images):
                    axis.imshow(images[i].squeeze(), cmap='gray', vmin=0, vmax=255)
                    axis.set_title(f'{names[i]:.12}\n{noise[i]:.2g}', fontsize=8)
    return True


def draw_histogram(fig, rows):
    """Chosen wild images by predicted class: a panel for each of the table's rows, of its lowest seed."""
    panels = []
    for row in rows:
        run = find_run([row], 'selection.csv')
        if run:
            counts = {}
            with (run['folder'] / 'selection.csv').open(newline='', encoding='utf-8', errors='surrogateescape') as file:
                for line in csv.DictReader(file):  # a stream, since a pool may hold millions
                    label = int(line['pseudo_label'])
                    counts[label] = counts.get(label, 0) + int(line['chosen'])
            panels.append((row['name'], counts))
    if not panels:
        return False
    classes = 1 + max(max(counts, default=0) for _, counts in panels)
    columns, lines = min(3, len(panels)), -(-len(panels) // 3)
    fig.set_size_inches(max(6, 3.7 * columns), 0.6 + 2.7 * lines)
    fig.suptitle('Chosen wild images by the class that the teacher predicts')
    axes = fig.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for (name, counts), axis in zip(panels, axes):
        axis.bar(range(classes), [counts.get(label, 0) for label in range(classes)], color=COLOURS[0])
        axis.set(xlabel='predicted class', ylabel='images', xticks=range(0, classes, -(-classes // 10)))
        axis.set_title(name, fontsize=10)
        axis.grid(axis='y', alpha=0.3)
    for axis in axes[len(panels):]:
        axis.axis('off')
    return True


def draw_adaptation(fig, rows):
    """The learned Q; the colours span what lies off the diagonal, which would drown it."""
    run = find_run(rows, 'adaptation.npy')
    if run is None:
        return False
    q = np.load(run['folder'] / 'adaptation.npy', allow_pickle=False)  # (C, C)
    diagonal = np.eye(len(q), dtype=bool)
    fig.set_size_inches(7.5, 6.8)
    axis = fig.subplots()
    axis.set_facecolor('0.85')
    image = axis.imshow(np.ma.masked_array(q, diagonal), cmap='cividis')
    fig.colorbar(image, label='probability, off the diagonal')
    axis.set(xlabel="label that the teacher gives", ylabel='true class')
    axis.set_title(f'Learned adaptation matrix Q of {run["folder"].name}\n'
                   f'diagonal (grey) fixed at {q[diagonal].mean():.4f}', fontsize=10)
    if len(q) <= 10:
        axis.set(xticks=range(len(q)), yticks=range(len(q)))
        for (i, j), value in np.ndenumerate(q):
            dark = i != j and value < (image.norm.vmin + image.norm.vmax) / 2
            axis.text(j, i, f'{value:.3f}', ha='center', va='center', fontsize=8, color='w' if dark else 'k')
    return True


def draw_figures(groups, out, note):
    """Draws into the folder `out` what the runs have the files for. groups: {data set: rows}. note: prints what is left out."""
    figures = {'curves': (draw_curves, 'metrics.jsonl'), 'selection': (draw_selection, 'thumbnails.npz'),
               'histogram': (draw_histogram, 'selection.csv'),
               'adaptation': (draw_adaptation, 'adaptation.npy')}
    for dataset, rows in groups.items():
        for name, (draw, file) in figures.items():
            path = out / (f'{dataset}-{name}.png' if len(groups) > 1 else f'{name}.png')
            fig = Figure(layout='constrained')
            if draw(fig, rows):
                fig.savefig(path, dpi=120)
            else:
                note(f'{path.name} not drawn: no finished run on {dataset} holds {file}')
