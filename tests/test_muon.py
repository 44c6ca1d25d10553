"""Muon: its steps beside a singular value decomposition and torch's SGD."""

import copy

import pytest
import torch
from torch import nn

from training import Muon, learning_rate, make_optimizer, orthogonalise


@pytest.mark.parametrize('shape', [(20, 90), (90, 20), (16, 16)])
def test_orthogonalise_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalise(matrix) @ v.T  # diagonal in the same vectors
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-6
    large = found.diagonal()[s > 0.2 * s[0]]
    assert len(large) > 10 and large.min() > 0.3 and large.max() < 1.3
    torch.testing.assert_close(orthogonalise(1000 * matrix), orthogonalise(matrix))  # blind to the gradient's size


def test_orthogonalise_is_the_iteration_of_newton_and_schulz():
    torch.manual_seed(0)
    matrix = torch.randn(30, 200)
    x = matrix / matrix.norm()
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalise(matrix), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orthogonalise(matrix.bfloat16()).float(), x, rtol=0, atol=0.05 * x.abs().max().item())


def test_large_filter_banks_turn_in_bfloat16_where_the_training_does():
    torch.manual_seed(0)
    bank = torch.randn(128, 16, 3, 3)
    moved = []
    for amp in ('off', 'bf16'):
        p = bank.clone().requires_grad_()
        p.grad = torch.randn(bank.shape, generator=torch.Generator().manual_seed(1))
        make_optimizer('muon', [p], 0.1, amp).step()
        moved.append(p.detach())
    assert not torch.equal(*moved)
    torch.testing.assert_close(*moved, rtol=0, atol=1e-3)


def test_a_step_turns_filter_banks_at_a_fixed_norm_and_moves_the_rest_as_sgd_does():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5)).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(net)
    optimizer = make_optimizer('muon', net.parameters(), 0.05)
    others = torch.optim.SGD([p for p in twin.parameters() if p.ndim != 4], lr=0.04, momentum=0.85, nesterov=True, weight_decay=5e-4)
    buffer = torch.zeros(8, 27)
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8)
        for one in (net, twin):
            one.zero_grad()
            one(x).square().mean().backward()
        optimizer.step()
        others.step()
        bank = twin[0].weight
        with torch.no_grad():
            gradient = bank.grad.flatten(1)
            buffer = 0.6 * buffer + gradient
            moved = bank.flatten(1) - 0.05 * orthogonalise(gradient + 0.6 * buffer)
            bank.copy_((moved * 8**0.5 / moved.norm()).view_as(bank))
        for a, b in zip(net.parameters(), twin.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_of_a_trained_network_a_step_keeps_the_norm_of_each_filter_bank():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    with torch.no_grad():
        net[2].weight.zero_()
    before, x = copy.deepcopy(net), torch.randn(4, 3, 8, 8)
    optimizer = make_optimizer('muon', net.parameters(), 0.0, trained=True)
    net(x).square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(net(x), before(x))  # at a rate of nothing, nothing changes
    optimizer.param_groups[0]['lr'] = 0.1
    for _ in range(3):
        net.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(net[0].weight.norm(), before[0].weight.norm())
    torch.testing.assert_close(net[2].weight.norm().item(), 2.0)  # one of zeros takes the usual norm, or it would stay
    bank = before[0].weight.detach().clone().requires_grad_()
    bank.grad = torch.randn_like(bank)
    norm = bank.norm().item()
    moved = bank.detach().flatten(1) - 0.1 * norm / 8**0.5 * orthogonalise(1.6 * bank.grad.flatten(1))
    make_optimizer('muon', [bank], 0.1, trained=True).step()
    torch.testing.assert_close(bank.detach().flatten(1), moved * norm / moved.norm())


def test_muon_goes_on_from_its_state():
    def trained(steps, optimizer_state=None, weights=None):
        torch.manual_seed(0)
        net = nn.Conv2d(2, 8, 3)
        if weights:
            net.load_state_dict(weights)
        optimizer = Muon(net.parameters(), 0.1)
        if optimizer_state:
            optimizer.load_state_dict(optimizer_state)
        for step in steps:
            optimizer.zero_grad()
            net(torch.full((1, 2, 5, 5), float(step))).square().sum().backward()
            optimizer.step()
        return net.state_dict(), optimizer.state_dict()

    whole, _ = trained(range(6))
    weights, state = trained(range(3))
    resumed, _ = trained(range(3, 6), state, weights)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_linear_rises_for_a_tenth_and_falls_to_nothing():
    rates = [learning_rate(2.0, 'linear', None, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:] == pytest.approx([2 * (100 - i) / 90 for i in range(10, 100)])
    assert learning_rate(2.0, 'linear', None, 0, 1) == 2.0
