"""--tensorboard: what TensorBoard's own reader finds in a run's folder."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scripts import error, result, run

from paper import board
from utils import read_json_lines


def read(folder):
    """(the epochs' values by tag, as [(step, value)], the tags of pictures, of histograms)."""
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0}).Reload()
    tags = events.Tags()
    return ({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags['scalars']}, set(tags['images']),
            set(tags['histograms']))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two classes of grey images, as train and test, and wild ones."""
    folder, random = tmp_path_factory.mktemp('board'), np.random.default_rng(0)
    for place in ('data/train/a', 'data/train/b', 'data/test/a', 'data/test/b', 'wild'):
        (folder / place).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / place / f'{i}.png')
    return folder


def test_the_three_scripts_write_curves_and_pictures(data):
    pytest.importorskip('tensorboard')
    pytest.importorskip('matplotlib')
    common = ('--tensorboard', '--data', 'data', '--workers', 0)
    for name, words, pictures, histograms in (
            ('teacher', ('teacher-train.py', '--dataset', 'folder', '--arch', 'lenet5', '--epochs', 2), set(), set()),
            ('dfnd', ('DFND-train.py', '--teacher', 'runs/teacher', '--student', 'lenet5half', '--wild', 'wild', '--num_select', 4,
                      '--epochs', 2, '--loss', 'kd+nll', '--recipe', 'lenet'),
             {'selection', 'chosen', 'adaptation'}, {'noise/pool', 'noise/chosen'}),
            ('dafl', ('DAFL-train.py', '--teacher', 'runs/teacher', '--student', 'lenet5half', '--epochs', 2, '--epoch_steps', 1,
                      '--batch_size', 4), set(), set())):
        result(run(words[0], *words[1:], *common, '--run', name, cwd=data))
        scalars, *others = read(data / 'runs' / name)
        rows = read_json_lines(data / 'runs' / name / 'metrics.jsonl')
        assert others == [pictures, histograms]
        assert {'loss', 'lr', 'images_per_s'} <= scalars.keys()
        for tag, values in scalars.items():
            assert values == [(row['step'], pytest.approx(row[tag], rel=1e-6)) for row in rows if row[tag] is not None], tag


def test_a_finished_run_gets_its_curves_later(data):
    pytest.importorskip('tensorboard')
    pytest.importorskip('matplotlib')
    words = ('teacher-train.py', '--dataset', 'folder', '--data', 'data', '--workers', 0, '--epochs', 1, '--arch', 'lenet5', '--run', 'b')
    done = result(run(*words, cwd=data))
    assert result(run(*words, '--resume', '--tensorboard', cwd=data)) == done and len(read(data / 'runs/b')[0]['loss']) == 1


def test_a_run_that_was_stopped_anywhere_has_each_row_once(tmp_path):
    pytest.importorskip('tensorboard')
    pytest.importorskip('matplotlib')
    log = tmp_path / 'metrics.jsonl'

    def sitting(*epochs, killed):
        one = SimpleNamespace(folder=tmp_path, settings=SimpleNamespace(tensorboard=True), board=None)
        for epoch in epochs:
            row = {'epoch': epoch, 'step': 10 * epoch, 'loss': 1 / epoch, 'top1': None if epoch % 2 else 50.0}
            board.write_row(one, row)
            if not killed or epoch != epochs[-1]:
                with log.open('a') as file:
                    file.write(json.dumps(row) + '\n')
        return one

    sitting(1, 2, 3, killed=True)
    sitting(3, 4, killed=True)
    board.write_end(sitting(4, 5, killed=False))
    scalars, *_ = read(tmp_path)
    assert scalars['loss'] == [(10 * e, pytest.approx(1 / e)) for e in (1, 2, 3, 4, 5)] and scalars['top1'] == [(20, 50.0), (40, 50.0)]
    assert len(list(tmp_path.glob('events.*'))) == 1


@pytest.mark.parametrize('missing', ['torch.utils.tensorboard', 'matplotlib.figure'])
def test_a_missing_package_is_one_line_before_any_work(data, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    line = error(run('teacher-train.py', '--dataset', 'folder', '--data', 'data', '--run', 'none', '--tensorboard', cwd=data, code=2))
    assert 'pip install tensorboard matplotlib' in line and not (data / 'runs' / 'none').exists()
