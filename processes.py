"""Worker processes, and the locks by which processes keep out of each other's files."""

import collections
import contextlib
import itertools
import multiprocessing.connection
import os
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from utils import UserError, say

try:
    import fcntl
except ImportError:
    fcntl = None

LOCKED = weakref.WeakSet()


def lock(path):
    """The opened file, locked for as long as it is open and this process lives; None where another process holds it. Without
    fcntl (Windows), or on a file system that has no locks, nothing is locked."""
    file = open(path, 'w')  # noqa: SIM115
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            return file
        LOCKED.add(file)
    return file


def let_go():
    for file in list(LOCKED):
        file.close()


if hasattr(os, 'register_at_fork'):  # else a worker process that outlives its parent would hold the parent's locks
    os.register_at_fork(after_in_child=let_go)


@contextlib.contextmanager
def locked(path):
    """Holds an exclusive lock on the file, for which it waits; a process that dies lets go of it."""
    if not (file := lock(path)):
        say(f'waiting for another process, which decodes the same images ({path})')
        while not (file := lock(path)):
            time.sleep(0.5)
    with file:
        yield


def run_jobs(function, jobs, workers):
    """Yields function(job) for every job in order, in this process (workers=0) or in worker processes, by any start method.

    Few jobs are under way at a time, so that memory does not grow with their number.
    """
    jobs = iter(jobs)
    first = list(itertools.islice(jobs, 2))
    if workers == 0 or len(first) < 2:
        yield from map(function, itertools.chain(first, jobs))
        return
    try:
        with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
            under_way = collections.deque()
            try:
                for job in itertools.chain(first, jobs):
                    under_way.append(pool.submit(function, job))
                    if len(under_way) >= 3 * workers:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:  # of what is left, nothing is begun any more
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool:
        raise UserError('a decoding process died (out of memory?): run the same command again, and lower --workers if it dies '
                        'again') from None


def end_with_parent():
    """Has this worker process end when the one that asked for it does; else it would wait for work for ever."""

    def watch():  # and not by getppid(): a fork server may stand between the two
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
