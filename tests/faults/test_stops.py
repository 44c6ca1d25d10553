"""Stops: kills at random instants, signals and --max_minutes in every stage; each run goes on to the numbers of one that was left alone."""

import contextlib
import mmap
import os
import runpy
import shutil
import signal
import struct
import sys
import time
import traceback

import pytest
import scripts
import torch
from images import write_small_world
from PIL import Image

import runs
from keep.stops import SIGNALS
from utils import read_json, read_json_lines

# a stage: its script and arguments, the files that must be the same, bit by bit or but for times; each takes a second
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
}


class Forked:
    """A script in a process of its own, forked from this one, which has torch already: a start would take four seconds. steps: those that
    it did; it leads a process group."""

    def __init__(self, script, *args, cwd):
        self.memory = mmap.mmap(-1, 8)
        self.log = cwd / 'log'
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._child(script, args, cwd))

    def _child(self, script, args, cwd):
        try:
            os.setsid()
            os.chdir(cwd)
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(out), 'w', buffering=1) for _ in range(2))
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            step_done = runs.Run.step_done

            def counted(run, *a, **kw):
                self.memory[:] = struct.pack('q', run.step + 1)
                step_done(run, *a, **kw)

            runs.Run.step_done = counted
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
        return struct.unpack('q', self.memory[:])[0]

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
    """A small MNIST, a teacher of it, and 2,100 wild images in the cache, in three parts, without their scores."""
    folder = tmp_path_factory.mktemp('stops')
    write_small_world(folder, wild=2100)
    scripts.run('teacher-train.py', *COMMON, '--epochs', 1, '--run', 'teacher', cwd=folder)
    shutil.copytree(folder / 'runs/teacher', folder / 'teacher')
    scripts.run('DFND-train.py', *COMMON, *STUDENT, '--score_only', '--run', 'decoded', cwd=folder)
    forget_scores(folder)
    return folder


def forget_scores(folder):
    for file in folder.glob('cache/*/*.scores-*'):
        file.unlink()


def launch(stage, run, folder, *more):
    script, args, _ = STAGES[stage]
    return Forked(script, *COMMON, *args, '--run', run, *more, cwd=folder)


def outcome(stage, run, folder):
    """What a finished run leaves, but for times."""
    at = folder / 'runs' / run
    weights = {name: scripts.weights(at / name) for name in STAGES[stage][2]}
    found = {f'{name} {key}': value for name, state in weights.items() for key, value in state.items()}
    for name in ('adaptation.npy', 'selection.csv'):
        if (at / name).exists():
            found[name] = torch.frombuffer(bytearray((at / name).read_bytes()), dtype=torch.uint8)
    rows = [{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s')} for row in read_json_lines(at / 'metrics.jsonl')]
    result = scripts.untimed(read_json(at / 'result.json')) if stage != 'score' else {}
    return found, rows, result


def same(one, other):
    return one[1:] == other[1:] and one[0].keys() == other[0].keys() and all(torch.equal(v, other[0][k]) for k, v in one[0].items())


WHOLE = {}


def whole(stage, folder):
    """What the stage leaves where nothing stops it, and its seconds."""
    if stage not in WHOLE:
        forget_scores(folder)
        start = time.monotonic()
        assert launch(stage, f'whole-{stage}', folder).wait() == 0, (folder / 'log').read_text()
        WHOLE[stage] = outcome(stage, f'whole-{stage}', folder), time.monotonic() - start
        assert len(WHOLE[stage][0][1]) == {'teacher': 8, 'score': 0, 'DFND': 8, 'DAFL': 4, 'PU': 8, 'DFAD': 4}[stage]
    return WHOLE[stage]


def left_over(run, folder):
    """Names of files that were to be renamed, or taken away."""
    return [path.name for path in (folder / 'runs' / run).rglob('*.partial')]


def to_the_end(stage, run, folder):
    """Goes on to the end; returns what it left."""
    assert launch(stage, run, folder, '--resume').wait() == 0, (folder / 'log').read_text()
    found = outcome(stage, run, folder)
    shutil.rmtree(folder / 'runs' / run)
    return found


@pytest.mark.parametrize('stage', STAGES)
def test_a_run_that_is_killed_at_any_instant_goes_on_to_the_same_end(stage, folder, tally, tries, dice):
    expected, seconds = whole(stage, folder)
    with tally('kill -9 at a random instant', stage) as t:
        kills, number = tries(2, 30), 0
        while t.tries < kills:
            run, some = f'killed-{stage}-{number}', []
            number += 1
            forget_scores(folder)
            for _ in range(dice.randrange(1, 4)):  # one resumption may be killed, too
                process = launch(stage, run, folder, '--resume')
                at = dice.random() * seconds
                time.sleep(at)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                    some.append(f'{run} after {at:.2f} s')
                process.wait()
            good = same(to_the_end(stage, run, folder), expected)
            for what in some:
                t.tried(good, what)


@pytest.mark.parametrize('number, stage', [
    pytest.param(number, stage, marks=[] if stage == quick else pytest.mark.slow)
    for number, quick in ((signal.SIGTERM, 'DFND'), (signal.SIGINT, 'score'), (signal.SIGUSR1, 'teacher')) for stage in STAGES])
def test_a_signal_saves_and_says_how_to_go_on(number, stage, folder, tally, tries, dice):
    expected, seconds = whole(stage, folder)
    with tally(f'{number.name} at a random instant', stage) as t:
        stops = tries(1, 6)
        for i in range(3 * stops):
            run = f'signalled-{stage}-{number}-{i}'
            forget_scores(folder)
            process = launch(stage, run, folder)
            at = dice.random() * seconds
            time.sleep(at)
            os.kill(process.pid, number)
            code, log = process.wait(), (folder / 'log').read_text()
            if code == -number or code == 0:  # before the script began, or after its end
                shutil.rmtree(folder / 'runs' / run, ignore_errors=True)
                continue
            file = folder / 'runs' / run / 'last.pt'
            saved = torch.load(file, weights_only=True)['step'] if file.is_file() else 0
            told = log.splitlines()[-1]
            good = code == 128 + number and number.name in told and told.count('--resume') == 1 and 'Traceback' not in log
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
