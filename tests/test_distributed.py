"""Two processes by torchrun on the CPU: the same selection bit by bit, the same training as one process, and resumed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distributed
import utils
from losses import weighted_mean
from processes import lock

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '--']


def run(*args, cwd, processes=1):
    start = TORCHRUN if processes == 2 else []
    done = subprocess.run([sys.executable, *start, *map(str, args)], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith('RESULT ')]
    assert len(results) == 1 and done.stdout.splitlines()[-1] == results[0]
    return json.loads(results[0].removeprefix('RESULT '))


def weights(folder):
    return torch.load(folder, weights_only=True)['state_dict']


def near(one, two):
    return all(torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4) for k in one)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('mlxtend')
    folder = tmp_path_factory.mktemp('two')
    images = np.random.default_rng(0).integers(0, 256, (1030, 28, 28), dtype=np.uint8)  # the last batch of 512 holds 6
    (folder / 'wild').mkdir()
    for i, x in enumerate(images):
        Image.fromarray(x).save(folder / 'wild' / f'{i}.png')
    return folder


TEACHER = [ROOT / 'teacher-train.py', '--dataset', 'mnist5k', '--epochs', 2, '--lr', 1e-3]


@pytest.fixture(scope='module')
def teacher(folder):
    """The result of the teacher in one/."""
    return run(*TEACHER, '--output_dir', 'one', cwd=folder)


def test_two_processes_train_select_and_distil_as_one_does(folder, teacher):
    one, two = teacher, run(*TEACHER, '--output_dir', 'two', cwd=folder, processes=2)
    assert abs(one['top1'] - two['top1']) < 1.5
    assert (one['steps'], one['images_seen']) == (two['steps'], two['images_seen'])

    # a batch of 33 is 16 and 17 images, and the last one of an epoch of 100 is a single image
    student = [ROOT / 'DFND-train.py', '--dataset', 'mnist5k', '--teacher_dir', 'one', '--wild', 'wild', '--num_select', 100,
               '--batch_size', 33, '--schedule', 'constant', '--lr', 1e-4]
    one = run(*student, '--epochs', 2, '--output_dir', 'one', cwd=folder)
    two = run(*student, '--epochs', 2, '--output_dir', 'two', cwd=folder, processes=2)
    name = one['run']
    assert (folder / 'one' / name / 'selection.csv').read_bytes() == (folder / 'two' / name / 'selection.csv').read_bytes()
    assert near(weights(folder / 'one' / name / 'student.pt'), weights(folder / 'two' / name / 'student.pt'))
    rows = [[json.loads(x) for x in (folder / n / name / 'metrics.jsonl').read_text().splitlines()] for n in ('one', 'two')]
    for a, b in zip(*rows):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)
        assert a['test_loss'] == pytest.approx(b['test_loss'], rel=1e-3)


def test_two_processes_choose_from_a_stream_as_one_does(folder, teacher):
    args = [ROOT / 'DFND-train.py', '--dataset', 'mnist5k', '--teacher_dir', 'one', '--wild', 'wild', '--num_select', 100,
            '--workers', 0, '--score_only']
    for run_name, more, processes in (('kept', [], 1), ('one-pass', ['--stream'], 1), ('two-passes', ['--stream'], 2)):
        run(*args, *more, '--run', run_name, cwd=folder, processes=processes)
    lists = [(folder / 'runs' / name / 'selection.csv').read_text().splitlines() for name in ('kept', 'one-pass', 'two-passes')]
    assert [line for line in lists[0] if line.endswith((',1', 'chosen'))] == lists[1] == lists[2]
    images = [np.load(folder / 'runs' / name / 'selected' / '000000.npy') for name in ('one-pass', 'two-passes')]
    assert len(images[0]) == 100 and np.array_equal(*images)


def test_weighted_means_of_shares_average_to_the_whole_batchs(monkeypatch):
    values, w = torch.rand(3, 9), torch.rand(3, 9)
    monkeypatch.setattr(distributed, 'world', lambda: 3)
    for batch in (9, 2):  # of two images, one of the three processes has none of its own
        shares = []
        for rank in range(3):
            monkeypatch.setattr(distributed, 'rank', lambda rank=rank: rank)
            shares.append(distributed.own(0, batch))
        own = [(values[0, first:last], w[0, first:last], weight) for first, last, weight in shares]
        monkeypatch.setattr(distributed, 'total', lambda _, own=own: sum(x.mean() * weight for _, x, weight in own))
        means = [weighted_mean(v, x, distributed.sum_for_share(x, weight)) * weight for v, x, weight in own]
        whole = weighted_mean(values[0, :batch], w[0, :batch])
        assert sum(means) / 3 == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize('error, code', [(None, None), (utils.UserError('no'), 2)])
def test_a_script_leaves_its_group(tmp_path, error, code):
    """A process that ends in its group may abort, which torchrun takes for a failure."""
    def main():
        torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
        if error:
            raise error

    with pytest.raises(SystemExit) if code else contextlib.nullcontext() as ended:
        utils.run_script(main)
    assert not torch.distributed.is_initialized()
    assert not code or ended.value.code == code


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='no /proc')
@pytest.mark.parametrize('script, args', [
    ('teacher-train.py', ['--epochs', 8]),
    ('DFND-train.py', ['--wild', 'wild', '--epochs', 4, '--batch_size', 32]),
    ('DAFL-train.py', ['--epochs', 2, '--batch_size', 6]),
])
def test_two_processes_resume_to_the_same_numbers(folder, teacher, script, args):
    args = [ROOT / script, '--dataset', 'mnist5k', *args]
    if script != 'teacher-train.py':
        args += ['--teacher_dir', 'one']
    whole = run(*args, '--run', f'whole-{script}', cwd=folder, processes=2)
    cut = folder / 'runs' / f'cut-{script}'
    process = subprocess.Popen([sys.executable, *TORCHRUN, *map(str, args), '--run', cut.name], cwd=folder, env=ENV,
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (cut / 'last.pt').exists():  # written after the first epoch
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    for pid in (process.pid, *map(int, workers)):  # torchrun gives each worker a session of its own, so that they would go on
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while not lock(cut / 'lock'):  # its processes are ended a moment later
        time.sleep(0.01)
    assert len(workers) == 2 and not (cut / 'result.json').exists()
    resumed = run(*args, '--run', cut.name, '--resume', cwd=folder, processes=2)
    timing = ('seconds', 'run')
    assert {k: v for k, v in whole.items() if k not in timing} == {k: v for k, v in resumed.items() if k not in timing}
