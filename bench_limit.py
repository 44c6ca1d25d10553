"""What stands between us and a higher ratio: the time that the convolutions alone take, in bfloat16 and channels_last, one by one
on tensors that lie ready. A network can't be faster than that on the same library, whatever else is done around them."""

import statistics
import time

import torch
import torch.nn.functional as F


def convolution_seconds(net, images, backward, repeats=3):
    """Seconds of all convolutions of `net` for a batch of 32 x 32 colour images; with their backward passes where `backward`."""
    calls = []
    hooks = [m.register_forward_hook(lambda m, inputs, output: calls.append((m, inputs[0].shape)))
             for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for number, (conv, shape) in enumerate(calls):
        x = torch.randn(images, *shape[1:]).bfloat16().contiguous(memory_format=torch.channels_last)
        weight = conv.weight.detach().bfloat16().contiguous(memory_format=torch.channels_last)
        wanted = [weight] if number == 0 else [x, weight]  # of the images themselves, no gradient is asked for
        for tensor in wanted if backward else ():
            tensor.requires_grad_()
        gradient, times = None, []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            y = F.conv2d(x, weight, None, conv.stride, conv.padding)
            if backward:
                gradient = torch.ones_like(y) if gradient is None else gradient
                torch.autograd.grad(y, wanted, gradient)
            times.append(time.perf_counter() - start)
        total += statistics.median(times[1:])
    return total


def convolution_rate(teacher, student, images=256):
    """Images a second through the teacher's convolutions and, where there is a student, through its, forward and back."""
    seconds = convolution_seconds(teacher, images, False)
    return images / (seconds + (convolution_seconds(student, images, True) if student else 0))
