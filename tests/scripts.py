"""Runs a script as a user does, and reads what it printed."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1', 'PYTHONPATH': str(ROOT)}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(script, *args, cwd, code=0):
    """Runs a script as __main__ in this process (torch is loaded once, not fifty times) and returns what it printed. code: the
    exit code that is expected; None for any."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    before, argv = os.getcwd(), sys.argv
    os.chdir(cwd)
    sys.argv = [script, *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name='__main__')
    except SystemExit as e:
        status = e.code or 0
    finally:
        os.chdir(before)
        sys.argv = argv
    assert code in (None, status), out.getvalue() + err.getvalue()
    return Done(status, out.getvalue(), err.getvalue())


def start(*words, cwd, **kw):
    """The silent Popen of a Python command, such as [script, *args] or ['-m', module]."""
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, env=ENV, **(silent | kw))


def command(*words, cwd, code=0):
    """Runs a Python command in a process of its own, and returns what it printed."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def result(done):
    """Of the one line RESULT, the last on stdout."""
    lines = done.stdout.splitlines()
    assert [line.startswith('RESULT {') for line in lines] == [False] * (len(lines) - 1) + [True], done.stdout
    return json.loads(lines[-1].removeprefix('RESULT '))


def untimed(result):
    return {k: v for k, v in result.items() if k not in ('seconds', 'run')}


def error(done):
    """The one line of a user's mistake."""
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('warning:')]
    assert len(lines) == 1, done.stderr
    return lines[0]


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']
