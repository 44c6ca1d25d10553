"""Stops: kills at random instants, signals and --max_minutes in every stage; each run goes on to the numbers of one that was left alone."""

import contextlib
import json
import mmap
import os
import runpy
import shutil
import signal
import struct
import sys
import threading
import time
import traceback

import numpy as np
import pytest
import scripts
import torch
from images import write_small_world
from PIL import Image
from tqdm import tqdm

import runs
from keep.stops import SIGNALS, end_with_parent
from utils import read_json, read_json_lines
from wild import decode, pool

# a stage: its script and arguments, the networks that must be the same; each takes a second, and reproduce.py fifteen
COMMON = ('--dataset', 'MNIST', '--workers', 0, '--batch_size', 16, '--save_minutes', 0.001, '--seed', 1)
STUDENT = ('--teacher', 'teacher', '--wild', 'wild', '--num_select', 90, '--augment')
STAGES = {
    'teacher': ('teacher-train.py', ('--epochs', 8), ('teacher.pt', 'teacher-best.pt')),
    'score': ('DFND-train.py', (*STUDENT, '--score_only'), ()),
    'DFND': ('DFND-train.py', (*STUDENT, '--epochs', 8, '--loss', 'kd+nll'), ('student.pt', 'student-best.pt')),
    'DAFL': ('DAFL-train.py', ('--teacher', 'teacher', '--epochs', 4, '--epoch_steps', 4, '--batch_size', 4),
             ('student.pt', 'student-best.pt')),
    'PU': ('DFND-train.py', (*STUDENT, '--epochs', 8, '--select', 'pu', '--labelled', 0.1), ('student.pt', 'student-best.pt')),
    'DFAD': ('DAFL-train.py', ('--teacher', 'teacher', '--epochs', 4, '--epoch_steps', 2, '--batch_size', 4, '--method', 'dfad'),
             ('student.pt', 'student-best.pt')),
    'cache': ('DFND-train.py', (*STUDENT, '--score_only', '--workers', 2), ()),
    'stream': ('DFND-train.py', (*STUDENT, '--score_only', '--stream'), ()),
    'reproduce': ('reproduce.py', ('table1', '--dataset', 'MNIST', '--rows', 'dfnd', '--seeds', 0, '--data', 'data', '--wild', 'wild',
                                   '--cache_dir', 'cache-of-table', '--workers', 0), ('teacher-s0/teacher.pt', 'dfnd-s0/student.pt')),
}
TABLE = ('--', '--epochs', 3, '--batch_size', 16, '--save_minutes', 0.001)
TRAININGS = ('teacher', 'DFND', 'DAFL')


class Forked:
    """A script in a process of its own, forked from this one, which has torch already: a start would take four seconds. It leads a process
    group."""

    def __init__(self, script, *args, cwd):
        self.memory = mmap.mmap(-1, 24)
        self.log = cwd / 'log'
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one that comes before the child has left our handlers waits
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._child(script, args, cwd))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _child(self, script, args, cwd):
        try:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.setsid()
            tqdm.set_lock(threading.RLock())  # tqdm's own is shared by all forks, and a kill may leave it held
            end_with_parent()
            os.chdir(cwd)
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(out), 'w', buffering=1) for _ in range(2))
            step_done = runs.Run.step_done

            decode_job = pool.decode_job

            def counted(run, *a, **kw):
                self.memory[:8] = struct.pack('q', run.step + 1)
                step_done(run, *a, **kw)
                self.memory[16:] = struct.pack('d', run.saving)

            def part(*a):
                self.memory[8:16] = struct.pack('q', self.parts + 1)
                return decode_job(*a)

            runs.Run.step_done, pool.decode_job = counted, part
            os.environ['OMP_NUM_THREADS'] = '1'  # of the scripts that it starts
            sys.argv = [script, *map(str, args)]
            runpy.run_path(str(scripts.ROOT / script), run_name='__main__')
        except SystemExit as e:
            return e.code or 0
        except BaseException:
            traceback.print_exc()
        return 1

    @property
    def step(self):
        """The last one that was done."""
        return struct.unpack('q', self.memory[:8])[0]

    @property
    def parts(self):
        """How many parts of a stream it has begun."""
        return struct.unpack('q', self.memory[8:16])[0]

    @property
    def saving(self):
        """The seconds that its last save took."""
        return struct.unpack('d', self.memory[16:])[0]

    def wait(self):
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        until = time.monotonic() + 20
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < until:  # a git that was just asked for the commit ends by itself
                os.killpg(self.pid, 0)
                time.sleep(0.01)
            pytest.fail('a process is left')
        return code


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A small MNIST, a teacher of it, and 2,100 wild images in the cache, in nine parts, without their scores."""
    folder = tmp_path_factory.mktemp('stops')
    write_small_world(folder, wild=2100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, 'CHUNK', 256)
        scripts.run('teacher-train.py', *COMMON, '--epochs', 1, '--run', 'teacher', cwd=folder)
        shutil.copytree(folder / 'runs/teacher', folder / 'teacher')
        scripts.run('DFND-train.py', *COMMON, *STUDENT, '--score_only', '--run', 'decoded', cwd=folder)
        yield folder


def forget(stage, folder):
    """Takes away what the stage, or a run of it before, has left in the caches."""
    for file in folder.glob('cache/*/*.scores-*'):
        file.unlink()
    for kept in folder.glob('cache/wild-*') if stage == 'cache' else folder.glob('cache-of-table'):
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()


def launch(stage, run, folder, *more):
    script, args, _ = STAGES[stage]
    if stage == 'reproduce':  # the same command goes on
        return Forked(script, *args, '--output_dir', f'runs/{run}', *TABLE, cwd=folder)
    return Forked(script, *COMMON, *args, '--run', run, *more, cwd=folder)


def outcome(stage, run, folder):
    """What a finished run leaves, but for times."""
    at = folder / 'runs' / run / ('MNIST-cpu' if stage == 'reproduce' else '')
    weights = {name: scripts.weights(at / name) for name in STAGES[stage][2]}
    found = {f'{name} {key}': value for name, state in weights.items() for key, value in state.items()}
    for file in [file for name in ('adaptation.npy', 'selection.csv', 'selected/000000.npy') for file in at.glob(f'**/{name}')]:
        found[str(file.relative_to(at))] = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    rows = [{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s')}
            for file in sorted(at.glob('**/metrics.jsonl')) for row in read_json_lines(file)]
    return found, rows, [scripts.untimed(read_json(file)) for file in sorted(at.glob('**/result.json'))]


def same(one, other):
    return one[1:] == other[1:] and one[0].keys() == other[0].keys() and all(torch.equal(v, other[0][k]) for k, v in one[0].items())


WHOLE = {}


def whole(stage, folder):
    """What the stage leaves where nothing stops it, and its seconds."""
    if stage not in WHOLE:
        forget(stage, folder)
        start = time.monotonic()
        assert launch(stage, f'whole-{stage}', folder).wait() == 0, (folder / 'log').read_text()
        WHOLE[stage] = outcome(stage, f'whole-{stage}', folder), time.monotonic() - start
        rows, results = map(len, WHOLE[stage][0][1:])
        assert (rows, results) == {'teacher': (8, 1), 'DFND': (8, 1), 'DAFL': (4, 1), 'PU': (8, 1), 'DFAD': (4, 1),
                                   'reproduce': (6, 2)}.get(stage, (0, 0))
        assert results or 'selection.csv' in WHOLE[stage][0][0]
    return WHOLE[stage]


def left_over(run, folder):
    """Names of files that were to be renamed, or taken away."""
    return [path.name for at in (folder / 'runs' / run, *folder.glob('cache*')) for path in at.rglob('*.partial') if path.is_file()]


def to_the_end(stage, run, folder):
    """Goes on to the end; returns what it left."""
    assert launch(stage, run, folder, '--resume').wait() == 0, (folder / 'log').read_text()
    found = outcome(stage, run, folder)
    shutil.rmtree(folder / 'runs' / run)
    return found


def kept_parts(run, folder):
    """The numbers of the parts of a stream that a run would not read again; all where it has selected."""
    if (folder / 'runs' / run / 'selection.npz').is_file():
        return {*range(9)}
    kept = set()
    for file in (folder / 'runs' / run / 'stream').glob('*.npz'):
        with np.load(file) as f:
            kept |= {*json.loads(str(f['parts']))}
    return kept


# of reproduce.py, tests/test_reproduce.py has a quick one
@pytest.mark.parametrize('stage', [pytest.param(stage, marks=pytest.mark.slow if stage == 'reproduce' else []) for stage in STAGES])
def test_a_run_that_is_killed_at_any_instant_goes_on_to_the_same_end(stage, folder, tally, tries, dice):
    expected, seconds = whole(stage, folder)
    with contextlib.ExitStack() as stack:
        # reproduce.py is killed with its script, and alone, where the script must end by itself: Forked.wait waits for that
        ways = {'reproduce and its script': os.killpg, 'reproduce alone': os.kill} if stage == 'reproduce' else {stage: os.kill}
        tallies = [(stack.enter_context(tally('kill -9 at a random instant', of)), kill) for of, kill in ways.items()]
        lost = stage == 'stream' and stack.enter_context(tally('work lost at a kill is at most', 'stream: a part'))
        kills, number, done = tries(2, 12 if stage == 'reproduce' else 30), 0, 0
        while done < kills:
            run, some = f'killed-{stage}-{number}', []
            number += 1
            forget(stage, folder)
            for _ in range(dice.randrange(1, 4)):  # one resumption may be killed, too
                t, kill = tallies[(done + len(some)) % len(tallies)]
                before = kept_parts(run, folder)
                process = launch(stage, run, folder, '--resume')
                at = dice.random() * seconds
                time.sleep(at)
                with contextlib.suppress(ProcessLookupError):
                    kill(process.pid, signal.SIGKILL)
                    some.append((t, f'{run} after {at:.2f} s'))
                process.wait()
                if lost:
                    lost.tried(len(before) + process.parts - len(kept_parts(run, folder)) <= 1, f'{run} after {at:.2f} s')
            good, done = same(to_the_end(stage, run, folder), expected), done + len(some)
            for t, what in some:
                t.tried(good, what)


@pytest.mark.parametrize('stage', TRAININGS)
def test_a_kill_loses_no_more_than_the_minutes_between_two_saves(stage, folder, tally, tries, dice):
    minutes, slack = 0.03, 0.5  # slack: seconds of a step and a test. A save waits for 50 times what the last one took, too: of a tenth
    # of a second here, five; of the default, 10 minutes, never
    with tally('work lost at a kill is at most', f'{stage}: --save_minutes') as t:
        for i in range(tries(1, 8)):
            process = launch(stage, f'lost-{stage}-{i}', folder, '--epochs', 4000, '--save_minutes', minutes)
            while not process.step:
                time.sleep(0.01)
            start = time.time()
            time.sleep(60 * minutes * (1 + 2 * dice.random()))
            os.kill(process.pid, signal.SIGKILL)
            now = time.time()
            process.wait()
            saved = folder / 'runs' / f'lost-{stage}-{i}' / 'last.pt'
            since = now - (saved.stat().st_mtime if saved.is_file() else start)
            steps = process.step - (torch.load(saved, weights_only=True)['step'] if saved.is_file() else 0)
            t.tried(since <= max(60 * minutes, 50 * process.saving) + slack, f'{since:.2f} s, {process.saving} {steps} of {process.step}')


@pytest.mark.parametrize('number, stage', [
    pytest.param(number, stage, marks=[] if stage == quick else pytest.mark.slow)
    for number, quick in ((signal.SIGTERM, 'DFND'), (signal.SIGINT, 'score'), (signal.SIGUSR1, 'teacher')) for stage in STAGES])
def test_a_signal_saves_and_says_how_to_go_on(number, stage, folder, tally, tries, dice):
    expected, seconds = whole(stage, folder)
    with tally(f'{number.name} at a random instant', stage) as t:
        stops = tries(1, 3 if stage == 'reproduce' else 6)
        for i in range(30 * stops):
            run = f'signalled-{stage}-{number}-{i}'
            forget(stage, folder)
            process = launch(stage, run, folder)
            at = dice.random() * seconds
            time.sleep(at)
            os.kill(process.pid, number)
            code, log = process.wait(), (folder / 'log').read_text()
            if code == -number or code == 0:  # before the script began, or after its end: the machine is slower or faster than it was
                seconds = at if code == 0 else 1.5 * seconds
                shutil.rmtree(folder / 'runs' / run, ignore_errors=True)
                continue
            file = folder / 'runs' / run / 'last.pt'
            saved = torch.load(file, weights_only=True)['step'] if file.is_file() else 0
            told = log.splitlines()[-1]
            good = code == 128 + number and number.name in told and 'Traceback' not in log
            good &= told.startswith(STAGES[stage][0]) and told.count('--resume') == (stage != 'reproduce')
            good &= process.step - saved <= 1 and not left_over(run, folder)
            good &= same(to_the_end(stage, run, folder), expected)
            t.tried(good, f'{run} after {at:.2f} s: {code} {process.step} {saved} {told}')
            if t.tries == stops:
                break


def test_a_pool_is_known_by_what_it_holds(folder, monkeypatch):
    """Moved, it is the same; with the names of the same and other pixels it is not."""
    args = (*COMMON, '--teacher', 'teacher', '--num_select', 20, '--epochs', 1, '--run', 'moved')
    for name in ('there', 'elsewhere', 'other'):
        (folder / name).mkdir()
        for path in sorted((folder / 'wild').iterdir())[:60]:
            with Image.open(path) as image:
                (image.transpose(Image.FLIP_LEFT_RIGHT) if name == 'other' else image).save(folder / name / path.name)
    scripts.run('DFND-train.py', *args, '--wild', 'there', '--score_only', cwd=folder)
    line = scripts.error(scripts.run('DFND-train.py', *args, '--wild', 'other', '--resume', cwd=folder, code=2))
    assert 'wild pool is not the one' in line and '--run NAME' in line
    monkeypatch.setenv('HOME', str(folder))
    done = scripts.run('DFND-train.py', *args, '--output_dir=~/runs', '--wild', '~/elsewhere', '--resume', cwd=folder)
    assert scripts.result(done)['num_select'] == 20 and not (folder / '~').exists()
