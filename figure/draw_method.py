"""Draws figure/method.png, the README's picture of DFND and, below it, DAFL: python figure/draw_method.py"""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

OUT = Path(__file__).with_name('method.png')
BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#555555'  # colour-blind-safe (Okabe, Ito)
PICTURES = ('#56B4E9', '#E69F00', '#009E73', '#F0E442', '#CC79A7', '#BBBBBB')


def box(axis, x, y, width, height, title, lines='', colour=GREY):
    """A rounded box with its centre at (x, y): the title at its top, the lines at its bottom."""
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, lw=1.6, ec=colour,
                                  fc=colour + '14', boxstyle='round,pad=0,rounding_size=1'))
    alone = not lines and height < 8
    axis.text(x, y if alone else y + height / 2 - 1.1, title, ha='center', va='center' if alone else 'top',
              fontsize=13, fontweight='bold', color=colour)
    axis.text(x, y - height / 2 + 1, lines, ha='center', va='bottom', fontsize=11.5, linespacing=1.35)


def arrow(axis, *points, colour=GREY, dashed=False):
    """A line through the points with a head at its last."""
    (x0, y0), (x1, y1) = points[-2:]
    axis.plot(*np.transpose(points[:-1]), color=colour, lw=1.8, ls='--' if dashed else '-')
    axis.annotate('', (x1, y1), (x0, y0), arrowprops={
        'arrowstyle': '-|>,head_width=0.3,head_length=0.6', 'lw': 1.8, 'color': colour, 'shrinkA': 0,
        'shrinkB': 0, 'ls': '--' if dashed else '-'})


def pictures(axis, x, y, columns, rows, size=2.6, blurred=False):
    """Little images around (x, y): a shape on a colour or, blurred, blots such as a generator makes."""
    rng = np.random.default_rng(7)
    for k in range(rows * columns):
        left = x + (k % columns - columns / 2) * size * 1.15 + size * 0.075
        low = y + (k // columns - rows / 2) * size * 1.15 + size * 0.075
        back, front = rng.choice(PICTURES, 2, replace=False)
        axis.add_patch(Rectangle((left, low), size, size, fc=back, ec='none'))
        middle = np.array([left, low]) + size / 2
        if blurred:
            for radius in (0.42, 0.3, 0.18):
                axis.add_patch(Circle(middle, size * radius, fc=front, alpha=0.4, ec='none'))
        else:
            axis.add_patch([
                Circle(middle, size * 0.3, fc=front),
                Polygon(middle + size * np.array([[-0.32, -0.28], [0.32, -0.28], [0, 0.34]]), fc=front),
                Rectangle(middle - size * 0.27, size * 0.54, size * 0.54, fc=front)][k % 3])


def bars(axis, x, y, heights, width, kept=lambda k: True):
    """Bars that stand on y around x; those not kept are grey."""
    for k, height in enumerate(heights):
        left = x + (k - len(heights) / 2) * width * 1.25
        axis.add_patch(Rectangle((left, y), width, height, fc=BLUE if kept(k) else '#C4C4C4'))


def matrix(axis, x, y, size, classes=5):
    """A little Q: the fixed diagonal dark, the learned rest light."""
    shade = np.random.default_rng(3).uniform(0.05, 0.45, (classes, classes))
    np.fill_diagonal(shade, 0.95)
    cell = size / classes
    for (i, j), strength in np.ndenumerate(shade):
        corner = (x - size / 2 + j * cell, y + size / 2 - (i + 1) * cell)
        axis.add_patch(Rectangle(corner, cell, cell, fc=BLUE, alpha=strength, ec='white', lw=0.6))


def draw_dfnd(axis):
    """The upper row: what stands above y = 33."""
    axis.text(2, 84, 'DFND: distil from wild images', fontsize=16, fontweight='bold', va='top')
    box(axis, 13, 71.5, 22, 11, 'original data', 'labelled, out of\nreach afterwards')
    box(axis, 43, 71.5, 28, 11, 'teacher', 'trained once,\nthen frozen', ORANGE)
    arrow(axis, (24, 71.5), (29, 71.5), dashed=True)

    y, height = 47.5, 25
    box(axis, 13, y, 22, height, 'wild images', 'no labels,\nof any kind')
    pictures(axis, 13, y + 2.2, 5, 3, size=3.2)
    scoring = 'pseudo-label = argmax\nnoise = $-$log max softmax'
    box(axis, 43, y, 28, height, '1  score', scoring, BLUE)
    bars(axis, 43, y - 3.5, np.geomspace(0.7, 9.5, 11), 1.5)
    box(axis, 74.5, y, 25, height, '2  select', 'the cleanest images,\nbalanced by class', BLUE)
    for k, x in enumerate((66.5, 72, 77.5, 83)):  # four classes: the same number of the cleanest is kept
        bars(axis, x, y - 3.5, np.geomspace(1.4, 5 + 1.5 * (k * 7 % 4), 4), 0.85, kept=lambda k: k < 2)
    losses = '$L_{KD}$, and $L_{NLL}$ through\nadaptation matrix $Q$'
    box(axis, 104.5, y, 25, height, '3  distil', losses, BLUE)
    matrix(axis, 104.5, y + 2.2, 10)
    box(axis, 128.5, y, 15, 7, 'student', '', GREEN)
    for start, end in ((24, 29), (57, 62), (87, 92), (117, 121)):
        arrow(axis, (start, y), (end, y))
    arrow(axis, (43, 66), (43, y + height / 2), colour=ORANGE)
    arrow(axis, (57, 71.5), (104.5, 71.5), (104.5, y + height / 2), colour=ORANGE)
    handed = 'logits; its accuracy is the diagonal of $Q$'
    axis.text(80.5, 72.3, handed, ha='center', va='bottom', fontsize=11.5)


def draw_dafl(axis):
    """The lower, thin row: what stands below y = 33."""
    axis.plot((2, 136), (31, 31), color='#CCCCCC', lw=1)
    axis.text(2, 28.5, 'DAFL: distil from no data at all', fontsize=16, fontweight='bold', va='top')
    y = 13
    box(axis, 13, y, 22, 9, 'noise', '$z$ ~ $N(0, I)$')
    box(axis, 43, y, 22, 7, 'generator', '', BLUE)
    pictures(axis, 71, y, 3, 2, size=3.6, blurred=True)
    box(axis, 99, y, 18, 7, 'teacher', '', ORANGE)
    box(axis, 128.5, y, 15, 7, 'student', '', GREEN)
    arrow(axis, (24, y), (32, y))
    arrow(axis, (54, y), (64, y))
    arrow(axis, (78, y), (90, y))
    arrow(axis, (108, y), (121, y), colour=ORANGE)
    axis.text(114, y + 0.8, 'KL', ha='center', va='bottom', fontsize=11.5)
    arrow(axis, (84, y), (84, 20.5), (128.5, 20.5), (128.5, y + 3.5))
    axis.text(106, 21.3, 'the same images', ha='center', va='bottom', fontsize=11.5)
    arrow(axis, (99, y - 3.5), (99, 4.5), (43, 4.5), (43, y - 3.5), colour=BLUE)
    axis.text(71, 3.8, 'losses: one-hot, class balance, activation', ha='center', va='top', fontsize=11.5)


def main():
    fig = Figure(figsize=(11.5, 7.15))
    axis = fig.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 138), ylim=(0, 85.8), aspect='equal')
    axis.axis('off')
    draw_dfnd(axis)
    draw_dafl(axis)
    fig.savefig(OUT, dpi=140)


if __name__ == '__main__':
    main()
