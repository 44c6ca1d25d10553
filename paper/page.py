"""The page: runs as one HTML file that needs nothing else, neither network nor JavaScript. What a name holds is escaped when the tree of
elements is written, so that no call can forget it."""

import base64
import io
import statistics
import xml.etree.ElementTree as ET

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from paper.figures import arrays_of, draw_accuracy, draw_adaptation, draw_losses, find_run
from paper.results import METHODS, entries
from paper.tables import order_seen, table1
from utils import harmless, written_aside

# the policy keeps a browser from loading or running anything, whatever the page holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = '''
body { font: 16px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 0 auto; padding: 0 16px 32px;
  overflow-wrap: anywhere }
h1 { font-size: 1.4em } h2 { font-size: 1.2em; margin: 2em 0 .5em; border-bottom: 1px solid #ccc }
h3 { font-size: 1em; margin: 1.2em 0 .3em }
.big { font-size: 1.6em; font-weight: bold; margin: .3em 0 } .note { color: #555; font-size: .9em }
.wide { overflow-x: auto } .wide img { min-width: 600px }
table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums }
td, th { padding: 3px 8px; border-bottom: 1px solid #ddd; text-align: left; overflow-wrap: normal }
td { white-space: nowrap }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 12px } img { max-width: 100% }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(68px, 1fr)); gap: 8px }
figure { margin: 0; font-size: .75em; line-height: 1.2; text-align: center } figure img { width: 64px; image-rendering: pixelated }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16em), 1fr)); gap: 2px 16px; font-size: .85em;
  max-height: 40em; overflow-y: auto }
meter { width: 100%; height: 12px }
pre { white-space: pre-wrap; background: #f4f4f4; padding: 10px; font-size: .85em }
'''
SIDE = 64  # of a thumbnail, in pixels


def write_page(path, title, tables):
    """Writes the page of `tables`, load_runs' runs, the unfinished too."""
    html = ET.Element('html', lang='en')
    head, body = tag(html, 'head'), tag(html, 'body')
    tag(head, 'meta', charset='utf-8')
    tag(head, 'meta', **{'http-equiv': 'Content-Security-Policy', 'content': POLICY})
    tag(head, 'meta', name='viewport', content='width=device-width, initial-scale=1')
    tag(head, 'link', rel='icon', href='data:,')  # else a browser asks the server for one
    tag(head, 'title', title)
    tag(head, 'style').text = STYLE
    tag(body, 'h1', title)
    for dataset, rows in entries(tables).items():
        add_data_set(body, dataset, rows)
    with written_aside(path, 'w', encoding='utf-8') as file:
        file.write('<!DOCTYPE html>\n' + ET.tostring(html, encoding='unicode', method='html') + '\n')


def tag(parent, name, text=None, /, **attributes):
    """A new element of `parent`; returns it. text, attributes: any value, shown as it is. `class_` is the attribute class."""
    element = ET.SubElement(parent, name, {key.rstrip('_'): harmless(value) for key, value in attributes.items()})
    element.text = None if text is None else harmless(text)
    return element


def add_table(parent, head, lines):
    table = tag(tag(parent, 'div', class_='wide'), 'table')
    for kind, cells in [('th', head), *(('td', line) for line in lines)]:
        line = tag(table, 'tr')
        for cell in cells:
            tag(line, kind, cell)


def add_image(parent, alt, image):
    """image: a function that writes a PNG into a file."""
    image(file := io.BytesIO())
    tag(parent, 'img', alt=alt, src='data:image/png;base64,' + base64.b64encode(file.getvalue()).decode())


# ---------------------------------------------------------------- the sections


def add_data_set(body, dataset, rows):
    """All sections of one data set: the verdict on the run that is shown, then what all its runs have, then that run's pictures."""
    runs = sorted((run for entry in rows for run in entry.runs), key=lambda run: METHODS.index(run.result['method']))
    shown = find_run(rows, 'metrics.jsonl') or find_run(rows, 'selection.npz') or runs[0]
    tag(body, 'h2', f'{dataset}: {shown.result.get("run") or shown.row}')
    done = [entry._replace(runs=[run for run in entry.runs if run.finished]) for entry in rows]
    done = [entry for entry in done if entry.runs]
    add_verdict(body, shown, order_seen(done))
    if len(runs) > 1 and done:
        head, lines, facts = table1(dataset, done)
        tag(body, 'h2', 'Rows')
        add_table(body, head, lines)
        tag(body, 'p', facts, class_='note')
    add_curves(body, rows)
    add_thumbnails(body, shown)
    add_classes(body, shown)
    if shown.file('adaptation.npy'):
        tag(body, 'h2', 'Adaptation matrix')
        fig = Figure(layout='constrained')
        draw_adaptation(fig, rows, shown)
        add_image(tag(body, 'div', class_='wide'), 'The learned adaptation matrix', lambda file: fig.savefig(file, dpi=120))
    add_runs(body, runs)


def add_verdict(body, run, order):
    """The number, and what it has to be read beside."""
    result, last = run.result, run.curve[-1]['epoch'] if run.curve else 0
    top1, agreement, teacher = (result.get(key) for key in ('top1', 'agreement', 'teacher_top1'))
    who = 'teacher' if result['method'] == 'teacher' else 'student'
    if not run.finished:
        tag(body, 'p', f'Unfinished: {last} of {result.get("epochs")} epochs. --resume goes on with it.')
    if top1 is not None:
        tag(body, 'p', f'{top1:.2f} % top-1', class_='big')
        beside = f' Its teacher has {teacher:.2f} %: a difference of {round(top1 - teacher, 2) + 0.0:+.2f} points.' if teacher else ''
        tag(body, 'p', f'The {who} on the test data.{beside}')
    elif agreement is not None:
        tag(body, 'p', f'{agreement:.2f} % agreement', class_='big')
        tag(body, 'p', 'The student with its teacher, on wild images held out of the selection: there is no test data.')
    else:
        tag(body, 'p', 'Nothing is measured yet' if not run.finished else 'There is no test data', class_='big')
    select = f', selected by {result["select"]}' if result.get('select') else ''
    pool = f' of {result["wild_images"]:,} wild images ({result["wild"]})' if result.get('wild_images') else ' wild images'
    count = f'{result["num_select"]:,}' if result.get('num_select') else ''
    tag(body, 'p', {'dfnd': f'It learned from {count}{pool}{select}, and from no original image.',
                    'kd': 'It learned from the original images and its teacher.',
                    'inverted': 'Images were drawn out of the batch norms of its teacher.',
                    'pu-compression': f'It learned from {count} images, {result.get("labelled_images", 0):,} of them original, the others'
                                      f'{pool} that a classifier takes for the same kind.',
                    **dict.fromkeys(('dafl', 'dfad'), 'It learned from images that a generator drew, and from no original image.'),
                    **dict.fromkeys(('teacher', 'student'), 'It learned from the original images and their labels.')}.get(
                        result['method'], ''))
    if result.get('noise') is not None:
        tag(body, 'p', f"The selected images' noise is {result['noise']:.3g} nats in the mean and {result['noise_max']:.3g} at most; the "
            f"pool's is {result['pool_noise']:.3g}.", class_='note')
    for line in filter(None, order):
        tag(body, 'p', line, class_='note')


def add_curves(body, rows):
    if not any(run.curve for entry in rows for run in entry.runs):
        return
    tag(body, 'h2', 'Curves')
    place = tag(body, 'div', class_='curves')
    for name, draw in {'Accuracy over the steps': draw_accuracy, 'Losses over the steps': draw_losses}.items():
        fig = Figure(figsize=(5.2, 3.8), layout='constrained')
        draw(axis := fig.subplots(), rows)
        axis.title.set_fontsize(9)
        if draw is draw_accuracy:
            fig.set_figheight(3.8 + 0.1 * len(rows))
            fig.legend(*axis.get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=8)
        add_image(place, name, lambda file, fig=fig: fig.savefig(file, dpi=150))


def add_thumbnails(body, run):
    """Wild images with their pseudo-labels and their noise."""
    if not run.file('thumbnails.npz'):
        return
    tag(body, 'h2', 'Selection')
    tag(body, 'p', "Under an image: the label that the teacher gives, and its noise = -log(teacher's confidence), in nats.", class_='note')
    with arrays_of(run, 'thumbnails.npz') as arrays:
        for kind, title in {'chosen': 'Chosen', 'left': 'Left', 'clean': 'Cleanest', 'noisy': 'Noisiest'}.items():
            if f'{kind}_labels' not in arrays:  # of a run before November 2026
                continue
            tag(body, 'h3', title)
            grid, names = tag(body, 'div', class_='grid'), arrays['class_names'][arrays[f'{kind}_labels']]
            for pixels, name, noise in zip(arrays[f'{kind}_images'], names, arrays[f'{kind}_noise']):
                image = Image.fromarray(pixels.squeeze())
                image.thumbnail((SIDE, SIDE))
                figure = tag(grid, 'figure')
                add_image(figure, f'wild image, {name}', lambda file, image=image: image.save(file, 'PNG'))
                tag(tag(figure, 'figcaption', name), 'div', f'{noise:.2g}')


def add_classes(body, run):
    """How many images of each predicted class are in the pool, and how many of them are chosen."""
    if not (run.file('selection.npz') and run.file('thumbnails.npz')):
        return
    with arrays_of(run, 'selection.npz') as kept, arrays_of(run, 'thumbnails.npz') as arrays:
        names, labels = arrays['class_names'], kept['labels']
        chosen = np.bincount(labels[kept['chosen']], minlength=len(names))
        pool = kept['counts'] if 'counts' in kept else np.bincount(labels, minlength=len(names))
    tag(body, 'h2', 'Class balance')
    tag(body, 'p', f'Chosen images of each predicted class, of those in the pool: {chosen.sum():,} of {pool.sum():,}.', class_='note')
    bars = tag(body, 'div', class_='bars')
    for name, some, all_of in zip(names, chosen, pool):
        bar = tag(bars, 'div', f'{name}: {some:,} of {all_of:,}')
        tag(bar, 'meter', max=max(1, chosen.max()), value=some)


def add_runs(body, runs):
    """The runs one by one, with their speed, and the commands that make them again."""
    tag(body, 'h2', 'Runs and speed')
    lines = []
    for run in runs:
        r, hardware = run.result, run.line.get('hardware') or {}
        speeds = [row['images_per_s'] for row in run.curve if row.get('images_per_s')]
        lines.append([r.get('run') or run.row, 'finished' if run.finished else 'unfinished',
                      *('-' if r.get(key) is None else f'{r[key]:.2f}' for key in ('top1', 'agreement')),
                      f'{statistics.median(speeds):,.0f}' if speeds else '-', '-' if r.get('seconds') is None else f'{r["seconds"]:,.0f}',
                      ', '.join(str(value) if key in ('device', 'name') else f'{key} {value}' for key, value in hardware.items())])
    add_table(body, ['run', 'state', 'top-1 (%)', 'agreement (%)', 'images/s (median of epochs)', 'seconds', 'machine'], lines)
    tag(body, 'h2', 'To do it again')
    for run in runs:
        versions = ', '.join(f'{name} {version}' for name, version in (run.line.get('versions') or {}).items())
        tag(body, 'p', f'{run.result.get("run") or run.row}: commit {run.line.get("commit") or "unknown"}, {versions}', class_='note')
        tag(body, 'pre', run.line.get('command') or 'no command is kept')
