"""Two processes under torchrun: one is killed or held still, all are killed; they go on, also as another number of processes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import scripts
import torch
from images import write_small_world
from scripts import ROOT

from utils import read_json, read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='no /proc')]
COMMON = ('--dataset', 'MNIST', '--workers', 0, '--batch_size', 16, '--save_minutes', 0.001, '--seed', 1)
DFND = (ROOT / 'DFND-train.py', *COMMON, '--teacher', 'teacher', '--wild', 'wild', '--num_select', 200, '--loss', 'kd+nll', '--epochs', 60,
        '--schedule', 'constant', '--test_every', 20, '--rank_timeout', 10)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    write_small_world(folder, wild=1100)  # two parts
    scripts.run('teacher-train.py', *COMMON, '--epochs', 1, '--run', 'teacher', cwd=folder)
    (folder / 'runs/teacher').rename(folder / 'teacher')
    return folder


def torchrun(folder, name, *more, processes=2):
    command = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', processes, *more, '--', *DFND, '--run', name, '--resume')
    return scripts.start(*command, cwd=folder, stdout=open(folder / f'{name}.log', 'w'), stderr=subprocess.STDOUT, start_new_session=True)


def begun(folder, name, process):
    """The processes of its ranks, once it has saved something."""
    while not (folder / 'runs' / name / 'last.pt').exists():
        assert process.poll() is None, (folder / f'{name}.log').read_text()
        time.sleep(0.02)
    return [*map(int, Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split())]


def ended(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except OSError:
        return True


def outcome(folder, name):
    at = folder / 'runs' / name
    rows = [{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s')} for row in read_json_lines(at / 'metrics.jsonl')]
    return scripts.weights(at / 'student.pt'), (at / 'selection.csv').read_bytes(), rows, scripts.untimed(read_json(at / 'result.json'))


@pytest.fixture(scope='module')
def whole(folder):
    assert torchrun(folder, 'whole').wait() == 0, (folder / 'whole.log').read_text()
    return outcome(folder, 'whole')


def same(one, other):
    """Sums over an epoch are put together from those of two sittings, so they may differ in the last bit."""
    rows = len(one[2]) == len(other[2]) == 60 and all(
        a.keys() == b.keys() and all(a[k] == (b[k] if b[k] is None else pytest.approx(b[k], rel=1e-9)) for k in a)
        for a, b in zip(one[2], other[2]))
    return rows and one[1] == other[1] and one[3] == other[3] and all(torch.equal(v, other[0][k]) for k, v in one[0].items())


@pytest.mark.parametrize('kind', ['a rank is killed', 'a rank stands still', 'all are killed', 'torchrun is killed'])
def test_the_rest_ends_and_names_the_rank_and_all_goes_on(kind, folder, whole, tally, tries, dice):
    with tally(kind, 'DFND, 2 processes') as t:
        for i in range(tries(1, 2)):
            name = f'{kind.split()[-1]}-{kind.split()[0]}-{i}'
            process = torchrun(folder, name)
            ranks = begun(folder, name, process)
            time.sleep(dice.random() * 2)
            start, one = time.monotonic(), dice.choice(ranks)
            if kind.startswith('a rank'):
                os.kill(one, signal.SIGKILL if 'killed' in kind else signal.SIGSTOP)
            for pid in ([process.pid] if 'torchrun' in kind else [process.pid, *ranks] if 'all' in kind else []):
                os.kill(pid, signal.SIGKILL)
            while not all(ended(pid) for pid in ranks if pid != one) and time.monotonic() < start + 60:
                time.sleep(0.1)
            seconds = time.monotonic() - start
            process.wait()
            log = (folder / f'{name}.log').read_text()
            named = f'error: rank {ranks.index(one)} of 2' in log or not kind.startswith('a rank')
            code = torchrun(folder, name).wait()
            t.tried(seconds < 60 and named and code == 0 and same(outcome(folder, name), whole), (name, seconds, named, code, log[-1500:]))


def test_torchrun_starts_a_killed_rank_again_by_itself(folder, whole, tally, tries, dice):
    with tally('a rank is killed, with --max-restarts 3', 'DFND, 2 processes') as t:
        for i in range(tries(1, 2)):
            process = torchrun(folder, f'again-{i}', '--max-restarts', 3)
            ranks = begun(folder, f'again-{i}', process)
            os.kill(dice.choice(ranks), signal.SIGKILL)
            code = process.wait()
            t.tried(code == 0 and same(outcome(folder, f'again-{i}'), whole), (i, code, (folder / f'again-{i}.log').read_text()[-1500:]))


@pytest.mark.parametrize('before, after', [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_selection(before, after, folder, whole, tally):
    with tally('another number of processes', f'DFND, from {before} to {after}') as t:
        name = f'from-{before}-to-{after}'
        process = torchrun(folder, name, processes=before)
        begun(folder, name, process)
        process.terminate()
        process.wait()
        log = (folder / f'{name}.log').read_text()
        saved = torch.load(folder / 'runs' / name / 'last.pt', weights_only=True)['step']
        code = torchrun(folder, name, processes=after).wait()
        found = outcome(folder, name)
        close = max((v.float() - whole[0][k].float()).abs().max().item() for k, v in found[0].items())
        good = f'after step {saved}, which is saved' in log and code == 0 and found[1] == whole[1] and len(found[2]) == 60
        t.tried(good, (name, code, saved, close, log[-1500:]))
