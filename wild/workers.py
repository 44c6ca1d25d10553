"""Worker processes, and the locks that keep two runs out of the same files."""

import contextlib
import errno
import itertools
import multiprocessing.connection
import os
import signal
import threading
import traceback

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
    except NotImplementedError:  # some versions' word for ENOSYS
        pass
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return held


class Worker:
    """A process that does one job after another. It ends when this one does, and leaves the keyboard's and Slurm's signals to it."""

    def __init__(self, function):
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(function, theirs), daemon=True)
        with blocked_signals():  # and so they are in the process
            self.process.start()
        theirs.close()

    def give(self, *task):
        self.task = task
        with contextlib.suppress(OSError):  # it has died, which `result` tells
            self.connection.send(task[1:])

    def result(self):
        """Of the job. Raises what the job did, and EOFError where the process died."""
        try:
            result, error, trace = self.connection.recv()
        except OSError:
            raise EOFError from None
        if error:
            raise error from (None if isinstance(error, UserError) else RuntimeError(trace))
        return result


@contextlib.contextmanager
def blocked_signals():
    if os.name != 'posix':
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(function, connection):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has its parent's
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # of a parent that has ended
        while True:
            job, more = connection.recv()
            try:
                outcome = function(job, **more), None, None
            except Exception as e:
                outcome = None, e, traceback.format_exc()
            connection.send(outcome)


def end_with_parent():  # and not by getppid(): a fork server may stand between the two
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def run_jobs(function, jobs, workers, ahead=2):
    """Yields function(job) for every job in order, in this process (workers=0) or in worker processes, by any start method. Few jobs
    are under way at a time, so that memory does not grow with their number: one a worker, and `ahead` a worker that are done. A job
    whose process dies is done again in another one, as function(job, apart=True). Raises UserError where that dies too."""
    if workers == 0:
        yield from map(function, jobs)
        return
    jobs, crew, idle, done, given = enumerate(jobs), {}, [], {}, 0  # crew: all workers, by their connections

    def hire():
        worker = Worker(function)
        crew[worker.connection] = worker
        return worker

    try:
        for turn in itertools.count():
            while turn not in done:
                while given <= turn + (1 + ahead) * workers and (idle or len(crew) < workers) and (job := next(jobs, None)):
                    (idle.pop() if idle else hire()).give(*job, {})
                    given += 1
                if given == turn:
                    return
                for connection in multiprocessing.connection.wait([c for c, worker in crew.items() if worker not in idle]):
                    number, job, more = crew[connection].task
                    try:
                        done[number] = crew[connection].result()
                        idle.append(crew[connection])
                    except EOFError:
                        if more or not hasattr(os, 'fork'):
                            raise UserError('a decoding process died (out of memory?): run the same command again, and lower '
                                            '--workers if it dies again') from None
                        del crew[connection]
                        hire().give(number, job, {'apart': True})
            yield done.pop(turn)
    finally:
        for worker in crew.values():
            worker.process.kill()
            worker.process.join()
