"""Muon for convolutional networks: steps of orthogonalised momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

torch.optim.Muon (torch 2.9 on) is not used: it refuses parameters that are not of two dimensions, so every convolution, works in
bfloat16, which is slow on many CPUs, and does not keep a filter bank's norm.
"""

import torch


def orthogonalise(matrix, steps=3):
    """(m, n) -> (m, n): the same singular vectors, and singular values near 1 (about 0.5 to 1.5), by the iteration of Newton and Schulz.
    Its coefficients are those of KellerJordan/cifar10-airbench: steep at 0, so that three steps are enough."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix  # the smaller product
    x = x / (x.norm() + 1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Every filter bank (a parameter of four dimensions) is a matrix, a row for each filter: it takes orthogonalised steps of Nesterov's
    momentum, and its norm is set back to sqrt(filters) after each. All other parameters take SGD's, with weight decay.

    lr: of the filter banks; that of the rest is `rest` times it, so that one schedule drives both. Follows airbench94_muon.py."""

    def __init__(self, parameters, lr, momentum=0.6, rest=0.8, rest_momentum=0.85, rest_decay=5e-4):
        parameters = list(parameters)
        filters, others = [p for p in parameters if p.ndim == 4], [p for p in parameters if p.ndim != 4]
        super().__init__([{'params': filters, 'momentum': momentum, 'share': 1.0, 'decay': 0.0},
                          {'params': others, 'momentum': rest_momentum, 'share': rest, 'decay': rest_decay}], {'lr': lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group['params'] if p.grad is not None):
                gradient = p.grad.add(p, alpha=group['decay'])
                buffer = self.state[p].setdefault('momentum_buffer', torch.zeros_like(p))
                buffer.mul_(group['momentum']).add_(gradient)
                update = gradient.add(buffer, alpha=group['momentum'])  # Nesterov's
                if p.ndim == 4:
                    update = orthogonalise(update.flatten(1)).view_as(p)
                p.sub_(update, alpha=group['lr'] * group['share'])
                if p.ndim == 4:
                    p.mul_(len(p) ** 0.5 / p.norm())
