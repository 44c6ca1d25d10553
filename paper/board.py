"""--tensorboard: what TensorBoard shows of a run, in the run's folder. What it needs is imported only where it is asked for."""

import importlib
from types import SimpleNamespace

import numpy as np

from utils import UserError, read_rows


def check_packages():
    """Raises UserError where one is missing."""
    try:
        for name in ('matplotlib.figure', 'torch.utils.tensorboard'):
            importlib.import_module(name)
    except ImportError as e:
        raise UserError(f'--tensorboard needs tensorboard and matplotlib ({e}): pip install tensorboard matplotlib, or leave the flag '
                        'out') from None


def write_row(run, row):
    """Adds an epoch's row, a dict as in metrics.jsonl, where the runs.Run was asked for it. Call it before the row is in that file."""
    if run.settings.tensorboard:
        run.board = run.board or begin(run.folder)
        add_scalars(run.board, row)
        run.board.flush()


def write_end(run):
    """Adds what a finished run has."""
    if run.settings.tensorboard:
        run.board = run.board or begin(run.folder)
        add_pictures(run.board, run.folder, ('adaptation',))
        run.board.close()


def begin(folder):
    """A SummaryWriter. Its file is made anew from metrics.jsonl by every process that goes on with a run, so that no row is in it
    twice, wherever the one before was killed."""
    from torch.utils.tensorboard import SummaryWriter

    for file in folder.glob('events.out.tfevents.*'):
        file.unlink()
    writer = SummaryWriter(folder, purge_step=0)  # a TensorBoard that is open forgets what it read before
    for row in read_rows(folder / 'metrics.jsonl'):
        add_scalars(writer, row)
    if (folder / 'selection.npz').exists():
        with np.load(folder / 'selection.npz', allow_pickle=False) as kept:
            writer.add_histogram('noise/pool', kept['noise'], 0)
            writer.add_histogram('noise/chosen', kept['noise'][kept['chosen']], 0)
    add_pictures(writer, folder, ('selection', 'chosen'))
    return writer


def add_scalars(writer, row):
    for key in row.keys() - {'epoch', 'step'}:
        if row[key] is not None:
            writer.add_scalar(key, row[key], row['step'])


def add_pictures(writer, folder, names):
    """Of paper.figures, those that the folder has the files for."""
    from matplotlib.figure import Figure

    from paper.figures import FIGURES

    for name in names:
        draw, file = FIGURES[name]
        if (folder / file).exists():
            fig = Figure(layout='constrained')
            draw(fig, None, SimpleNamespace(folder=folder, file=lambda file: folder / file))
            writer.add_figure(name, fig, 0)
