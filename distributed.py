"""Several processes, as torchrun starts them: every call here does the plain thing when there is only one.

Each process works on its slice of the same global batch, and gradients are averaged over the global batch, so a recipe
means the same on any number of processes. (Batch norms see their own slice, as is usual.)"""

import contextlib
import datetime
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

import utils
from keep import stops


def torchrun():
    """Which torchrun started this process; None without it. All its processes have one parent, and have it again when it starts them
    again."""
    return f'{os.environ["TORCHELASTIC_RUN_ID"]} {os.getppid()}' if 'TORCHELASTIC_RUN_ID' in os.environ else None


def launched():
    """How many processes torchrun started; 1 without it. Raises UserError for an environment that was not set by torchrun."""
    number = os.environ.get('WORLD_SIZE') or '1'
    missing = [name for name in ('RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') if not os.environ.get(name)] if number != '1' else []
    if missing or not number.isdecimal():
        what = f'no {", ".join(missing)}' if missing else 'it is no number'
        raise utils.LocalError(f'WORLD_SIZE={number} is in the environment, but {what}: start with torchrun, or unset WORLD_SIZE')
    return int(number)


def start(device, rank_timeout):
    """Joins the processes that torchrun started, if it did: gloo on a CPU, nccl on CUDA. Returns this process's device. rank_timeout:
    seconds without a sign of life of another process after which this one ends."""
    if launched() == 1:
        return device
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        stops.end_with_parent()  # torchrun gives each process a session of its own, so that they would outlive it
        Lives.of_all = Lives(rank_timeout)
        # the others wait while the first decodes a pool, which can take days
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=datetime.timedelta(days=7))
        Lives.of_all.start()
    return device


class Lives(threading.Thread):
    """Tells the other processes every second that this one lives, and ends it where another gives no sign. A process that works on its
    own for days gives signs all the same; one that was killed, or is held still, gives none."""

    of_all = None

    def __init__(self, timeout):
        super().__init__(daemon=True)
        self.timeout, self.begun, self.ended = timeout, f'alive {os.environ.get("TORCHELASTIC_RESTART_COUNT")}', threading.Event()
        self.silent = dict.fromkeys(range(launched()), 0)  # rank -> how many of this thread's rounds: its clock stands still with it

    def run(self):
        last, keys = {}, [f'{self.begun} {rank}' for rank in self.silent]
        mine = keys[int(os.environ['RANK'])]
        try:
            # torchrun's store, by a line of its own: the group's is taken while it waits
            store = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
                                  timeout=datetime.timedelta(days=7))
            store.set(mine, '0')
            store.wait(keys)
            for number in range(1, sys.maxsize):
                store.set(mine, str(number))
                for other, sign in enumerate(store.multi_get(keys)):
                    self.silent[other] = 0 if last.get(other) != sign else self.silent[other] + 1
                    last[other] = sign
                if dead := self.dead(self.timeout):
                    break
                if self.ended.wait(1):
                    return
        except RuntimeError:  # the store is gone, and with it torchrun, which ends this process
            return
        code = utils.fail(Path(sys.argv[0]).name, f'{dead} gave no sign of life for {self.timeout:g} seconds: look for what holds it, then '
                          'give the same command with --resume', local=True)
        os._exit(code)

    def dead(self, rounds):
        """Those that gave no sign in so many rounds, in words; '' for none."""
        dead = [str(other) for other, silent in self.silent.items() if silent >= rounds]
        return f'rank {", ".join(dead)} of {len(self.silent)}' if dead else ''

    def lost(self):
        """Which other process is gone, where a connection broke."""
        until = time.monotonic() + 8
        while not self.dead(3) and time.monotonic() < until:
            time.sleep(0.1)
        return self.dead(3) or 'another process'


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def in_turn():
    """The first process goes first, such as to download or decode; the others find what it left."""
    if rank() > 0:
        wait()
    try:
        yield
    finally:
        if rank() == 0:
            wait()


def run_script(main):
    """utils.run_script for a script that torchrun may have started several times: all end together."""

    def together():
        try:
            main()
            wait()
        except RuntimeError as e:
            if world() == 1 or not any(word in str(e) for word in ('gloo', 'NCCL', 'onnection')):
                raise
            stops.hold()  # torchrun asks this process to stop, too: not before it has said why
            raise utils.LocalError(f'{Lives.of_all.lost()} ended or is out of reach ({utils.first_line(e)}): if torchrun does not start '
                                   'all again (--max-restarts), give the same command with --resume') from None

    def leave():
        if Lives.of_all:
            Lives.of_all.ended.set()
        # gloo's threads abort a process that ends with its group open (pytorch/pytorch#179291; 11 of 40 pairs of short processes did,
        # none of 60 that left)
        if dist.is_initialized():
            dist.destroy_process_group()

    utils.run_script(together, leave)


def wait():
    if world() > 1:
        dist.barrier()


def on_first(function, *args):
    """Calls function(*args) in the first process alone. All get its result, or raise its exception."""
    if world() == 1:
        return function(*args)
    outcome = [None]
    if rank() == 0:
        try:
            outcome = [(function(*args), None)]
        except Exception as e:
            outcome = [(None, e)]
    dist.broadcast_object_list(outcome, 0)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


class Agreement:
    """Lets all processes decide something at the same step, without a wait for each other at every step."""

    def __init__(self):
        self.every, self.left, self.since = 1, 1, time.monotonic()

    def ask(self, *values):
        """The greatest of each value over all processes, as floats; None at the steps where they are not compared, which is about four
        times a second."""
        if world() == 1:
            return values
        self.left -= 1
        if self.left:
            return None
        seconds = time.monotonic() - self.since
        values = torch.tensor([*map(float, values), seconds], device='cuda' if dist.get_backend() == 'nccl' else 'cpu')
        dist.all_reduce(values, dist.ReduceOp.MAX)
        *values, seconds = values.tolist()
        self.every = self.left = max(1, min(10 * self.every, int(self.every * 0.25 / max(seconds, 1e-6))))
        self.since = time.monotonic()
        return values


def total(tensor):
    """The sum of a tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean_with_gradient(tensor):
    """The mean of a tensor over all processes; the gradient flows back to each."""
    if world() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor) / world()


def own(start, stop):
    """This process's share of the positions start .. stop of a global batch: (first, last, weight). weight scales a mean over the
    share so that the average over processes is the mean over the batch. A process for which nothing is left takes the batch's first
    image, at weight 0: it must still join the others' reductions."""
    count = stop - start
    first, last = start + count * rank() // world(), start + count * (rank() + 1) // world()
    if first == last:
        return start, start + 1, 0.0
    return first, last, (last - first) * world() / count


def sum_for_share(weights, weight):
    """What a share's weighted mean divides by, so that the average over processes is the weighted mean over the batch: the global
    batch's mean weight, for as many images as the share has. weights: (b,), the share's. weight: see `own`."""
    return weights.sum() if world() == 1 else total(weights.mean() * weight) / world() * len(weights)


def average_gradients(*modules):
    """Averages the gradients of modules or tensors over all processes, in one reduction."""
    if world() == 1:
        return
    parameters = [p for m in modules for p in (m.parameters() if hasattr(m, 'parameters') else [m])]
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = total(torch.cat([g.reshape(-1) for g in grads])) / world()
    for g, averaged in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(averaged.view_as(g))


def same_buffers(*modules):
    """Gives every process the first one's running statistics, so that all evaluate, save and resume the same network."""
    if world() > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
