"""Worker processes, and the locks that keep two runs out of the same files."""

import collections
import contextlib
import errno
import itertools
import multiprocessing.connection
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import filelock

from utils import UserError, say


@contextlib.contextmanager
def locked(path):
    """Holds an exclusive lock on the file, for which it waits; a process that dies lets go of it."""
    held = lock(path)
    if not held:
        say(f'waiting for another process, which decodes the same images ({path})')
        held = lock(path, wait=True)
    try:
        yield
    finally:
        held.release()


def lock(path, wait=False):
    """A filelock.FileLock that this process holds until it ends; None where another one has it and `wait` is off. On a file system
    that has no locks, nothing is locked."""
    held = filelock.FileLock(path)
    try:
        held.acquire(blocking=wait, poll_interval=0.5)
    except filelock.Timeout:
        return None
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return held


def run_jobs(function, jobs, workers):
    """Yields function(job) for every job in order, in this process (workers=0) or in worker processes, by any start method. Few jobs
    are under way at a time, so that memory does not grow with their number."""
    jobs = iter(jobs)
    first = list(itertools.islice(jobs, 2))
    if workers == 0 or len(first) < 2:
        yield from map(function, itertools.chain(first, jobs))
        return
    pool, under_way = ProcessPoolExecutor(workers, initializer=end_with_parent), collections.deque()
    try:
        for job in itertools.chain(first, jobs):
            under_way.append(pool.submit(function, job))
            if len(under_way) >= 3 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise UserError('a decoding process died (out of memory?): run the same command again, and lower --workers if it dies '
                        'again') from None
    finally:
        pool.shutdown(cancel_futures=True)  # of what is left, nothing is begun any more


def end_with_parent():
    """Has this worker process end when the one that asked for it does; else it would wait for work for ever."""

    def watch():  # and not by getppid(): a fork server may stand between the two
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
