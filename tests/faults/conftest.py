"""What every fault's test needs. In `make test` most kinds have a few tries; `make faults` sets FAULTS, the file that the counts go to, and
runs all. A test counts its tries with `tally`, and the table in docs/reliability.md is drawn from the file."""
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

import filelock
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for scripts.py and images.py
LOG = os.environ.get('FAULTS')


class Tally:
    """The tries of a kind of fault in one thing, as a context: at its end the counts are a line of the log, and the test fails if a try
    was lost. A try is survived where the fault was named in one line, or the work went on to the right end, and nothing was lost."""

    def __init__(self, kind, of):
        self.key, self.tries, self.lost = {'kind': kind, 'of': of}, 0, []

    def tried(self, survived, what):
        """what: says which try it was, should it be lost."""
        self.tries += 1
        if not survived:
            self.lost.append(what)

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if LOG and error is None:
            with filelock.FileLock(Path(tempfile.gettempdir()) / 'faults.lock'):  # of several workers
                file = Path(LOG)
                rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
                rows = [row for row in rows if not row.items() >= self.key.items()]
                rows.append({**self.key, 'tries': self.tries, 'survived': self.tries - len(self.lost), 'lost': len(self.lost)})
                rows.sort(key=lambda row: (row['kind'], row['of']))
                file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        assert error or (self.tries and not self.lost), f'{len(self.lost)} of {self.tries} lost, such as {self.lost[:5]}'


@pytest.fixture
def tally():
    return Tally


@pytest.fixture
def tries():
    """tries(quick, whole): how many, in make test and in make faults."""
    return lambda quick, whole: whole if LOG else quick


@pytest.fixture
def dice(request):
    """Random numbers that depend on the test's name alone."""
    return random.Random(request.node.name)


def pytest_terminal_summary(terminalreporter):
    if LOG and Path(LOG).is_file():
        from paper.bench_tables import faults_table
        from utils import read_json_lines

        terminalreporter.write_line(faults_table(read_json_lines(LOG)))


@pytest.fixture
def full_disk():
    """full_disk(free): within it no file grows past `free` bytes, which fails as on a full disk."""

    @contextlib.contextmanager
    def full(free):
        before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return full
