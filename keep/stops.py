"""How a script is stopped: by a signal, or by --max_minutes, which is a signal too. Every script imports this file before torch, so that
a signal in the seconds of its imports has an answer as well."""

import contextlib
import ctypes
import os
import shlex
import signal
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
ALARM = getattr(signal, 'SIGALRM', None)  # of --max_minutes
# SIGUSR1 is Slurm's warning. None is taken that its parent has had ignored, as nohup and a shell's background jobs do
SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGALRM') if hasattr(signal, name)]
TWICE = 1.0  # seconds in which further signals are the first one again: sent to a whole group, and passed on by torchrun too


class Stopped(KeyboardInterrupt):
    """A stop was asked for, and what is to be kept is kept. where: words for the last line."""

    def __init__(self, number, where=''):
        self.number, self.where = number, where


class state:
    """Of this process, whose handlers have no other place for it."""

    number, since, pid = 0, 0.0, os.getpid()  # the signal that came, and when
    begun = False  # main has: an exception is cleaned up after, and told
    pause = None  # see hold


def on_signal(number, frame):
    if os.getpid() != state.pid:  # a forked worker: it ends with the process that has the work
        return os._exit(1) if number == signal.SIGTERM else None
    if state.number:
        return os._exit(128 + number) if time.monotonic() > state.since + TWICE else None
    state.number, state.since = number, time.monotonic()
    if not state.begun:
        os._exit(farewell(number))
    if not state.pause:
        raise Stopped(number)


def listen():
    """Takes the signals; returns the handlers that they had."""
    return {number: signal.signal(number, on_signal) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}


@contextlib.contextmanager
def listening():
    """While a script's main runs, a signal raises Stopped there, at once or, where a run must save first, after the step."""
    state.number, state.begun, state.pause, state.pid = 0, True, None, os.getpid()
    before = listen()
    try:
        yield
    finally:
        state.begun, state.pause = False, None
        if ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def limit(minutes):
    """Has this process stop so many minutes after it began; None for no limit."""
    if minutes:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, 60 * minutes + STARTED - time.monotonic()))


def hold(pause=lambda: None):
    """From now on a signal waits for `pause`, which saves and stops where that is due."""
    state.pause = pause


def release():
    """From now on a signal raises Stopped at once; so does one that came meanwhile."""
    state.pause = None
    if state.number:
        raise Stopped(state.number)


def asked():
    """The number of the signal that came; 0 for none."""
    return state.number


def pause():
    """To be called between two batches of what only reads: saves and stops where that is due."""
    if state.pause:
        state.pause()


def script():
    """What stands after `python` where this script is started: its file's name, or -m and a module's."""
    spec = sys.modules['__main__'].__spec__
    return f'-m {spec.name}' if spec and spec.name.startswith('rivals.') else Path(sys.argv[0]).name


def farewell(number, where=''):
    """One line on stderr that says how to go on; returns the exit code."""
    name, alone = script(), os.environ.get('WORLD_SIZE', '1') == '1'
    resume = ['--resume'] if name.endswith(('-train.py', 'inversion')) and '--resume' not in sys.argv else []
    words = name.split() if name.startswith('-m ') else sys.argv[:1]
    again = shlex.join(['python', *words, *sys.argv[1:], *resume]) if alone else 'the same torchrun command, with --resume'
    why = '--max_minutes are over' if number == ALARM else f'stopped by {signal.Signals(number).name}'
    if alone or os.environ.get('RANK', '0') == '0':
        with contextlib.suppress(OSError):  # a terminal that was closed
            print(f'{name}: {why}{where}; to go on: {again}', file=sys.stderr, flush=True)
    return 0 if number == ALARM else 128 + number


def end_with_parent(parent=None):
    """Has Linux send this process SIGTERM when the one that started it is gone, in whatever way it ended. parent: its number, of a
    process that may be gone already."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
        if parent not in (None, os.getppid()):
            os._exit(1)


if Path(getattr(sys.modules['__main__'], '__file__', None) or '').resolve().parent == Path(__file__).resolve().parents[1]:
    listen()  # one of our scripts has just begun
