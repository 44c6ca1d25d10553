"""Several processes, as torchrun starts them: every call here does the plain thing when there is only one.

Each process works on its slice of the same global batch, and gradients are averaged over the global batch, so a recipe
means the same on any number of processes. (Batch norms see their own slice, as is usual.)"""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

import utils


def launched():
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get('WORLD_SIZE', '1'))


def start(device):
    """Joins the processes that torchrun started, if it did: gloo on a CPU, nccl on CUDA. Returns this process's device."""
    if launched() == 1:
        return device
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # the others wait while the first decodes a pool, which can take days
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=datetime.timedelta(days=7))
    return device


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
        main()
        wait()

    def leave():
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
