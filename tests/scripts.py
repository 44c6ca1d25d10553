"""Runs a script as a user does, and reads what it printed."""
import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(script, *args, cwd, code=0):
    """Runs a script as __main__ in this process (torch is loaded once, not fifty times) and returns what it printed."""
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
    assert status == code, out.getvalue() + err.getvalue()
    return Done(status, out.getvalue(), err.getvalue())


def result(done):
    last = done.stdout.splitlines()[-1]
    assert last.startswith('RESULT {')
    return json.loads(last.removeprefix('RESULT '))


def error(done):
    """The one line of a user's mistake."""
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('warning:')]
    assert len(lines) == 1, done.stderr
    return lines[0]
