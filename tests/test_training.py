"""Learning rates, optimisers, seeds, device and precision, means and evaluation: what every training does."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import error_of
from torch import nn

import training
from data import Split
from lenet import LeNet5Half
from networks import Normalise
from resnet import ResNet18
from training import Means, ahead, check_finite, evaluate, learning_rate, pick_amp, pick_device, rng, seed_init

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


@pytest.mark.parametrize('per_epoch', [1, 7, 391, 196])
@pytest.mark.parametrize('milestones, drops, epochs', [
    ((0.4, 0.6), (80, 120), 200), ((0.4, 0.8), (800, 1600), 2000), ((0.4, 0.8), (4, 8), 10)])
def test_the_published_rates_drop_at_their_epochs(per_epoch, milestones, drops, epochs):
    edges = (0, *drops, epochs)
    for expected, start, stop in zip((0.1, 0.01, 0.001), edges[:-1], edges[1:]):
        for step in (start * per_epoch, stop * per_epoch - 1):  # the first and the last of each rate
            assert learning_rate(0.1, 'steps', milestones, step, epochs * per_epoch) == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize('steps', [100, 3000])
def test_one_cycle_rises_for_three_tenths_and_falls_to_nothing(steps):
    rates = [learning_rate(2e-3, 'onecycle', (), step, steps) for step in range(steps)]
    top = round(0.3 * steps)
    assert rates[0] == pytest.approx(2e-3 / 25) and rates[top] == pytest.approx(2e-3) == max(rates)
    rise = np.diff(rates[: top + 1])
    assert rise.min() > 0 and rise.min() == pytest.approx(rise.max())  # a straight line
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :])) and 0 < rates[-1] < 1e-2 * 2e-3
    middle = top + (steps - top) // 2
    assert rates[middle] == pytest.approx(1e-3, rel=1e-9) and rates[top + (steps - top) // 4] > 1.5e-3  # a cosine: flat at first


def test_a_constant_rate_and_runs_of_one_step():
    assert {learning_rate(0.1, 'constant', (0.5,), step, 9) for step in range(9)} == {0.1}
    for schedule in training.SCHEDULES:
        for steps in (1, 2, 3):
            assert all(0 < learning_rate(0.1, schedule, (0.4, 0.8), step, steps) <= 0.1 for step in range(steps)), (schedule, steps)


def test_optimisers_are_the_papers():
    net = nn.Linear(2, 2)
    sgd, adam = training.make_optimizer('sgd', net.parameters(), 0.1), training.make_optimizer('adam', net.parameters(), 1e-3)
    assert type(sgd) is torch.optim.SGD and type(adam) is torch.optim.Adam and adam.defaults['weight_decay'] == 0
    assert sgd.defaults.items() >= dict(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False).items()
    training.set_lr(adam, 0.5)
    assert [g['lr'] for g in adam.param_groups] == [0.5]


def draw(*key):
    return tuple(torch.randn(4, generator=rng(*key)).tolist())


def weights(*key):
    seed_init(*key)
    return tuple(LeNet5Half().conv1.weight.flatten().tolist())


@pytest.mark.parametrize('drawn', [draw, weights])
def test_the_same_seed_and_purpose_give_the_same_numbers_and_others_do_not(drawn):
    torch.manual_seed(1)
    first = drawn(0, 'epoch', 1)
    torch.manual_seed(2)
    assert drawn(0, 'epoch', 1) == first
    keys = [(0, 'epoch', 1), (1, 'epoch', 1), (-1, 'epoch', 1), (10, 'epoch', 1), (0, 'epoch', 2), (0, 'epoch', 11), (0, 'latent', 1),
            (0, 'epoch')]
    assert len({drawn(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize('name', ['cuda:99', 'gpu', 'mps:7', 'meta', ''])
def test_a_device_that_is_not_there_is_told(name):
    text = error_of(pick_device, name)
    assert f'--device {name}' in text and '--device auto' in text


@pytest.mark.parametrize('name, rank, part', [('mps', 0, 'mps'), ('cuda', 2, '--nproc_per_node')])
def test_more_processes_than_the_device_takes_are_told(monkeypatch, name, rank, part):
    monkeypatch.setenv('WORLD_SIZE', '3')
    for other, value in {'RANK': '0', 'LOCAL_RANK': str(rank), 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'}.items():
        monkeypatch.setenv(other, value)
    monkeypatch.setattr(torch, 'zeros', lambda *a, **k: None)  # as if it were there
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert part in error_of(pick_device, name)


@pytest.mark.parametrize('number, rank, part', [('4', None, 'no RANK'), ('4', '1', 'no LOCAL_RANK'), ('two', '0', 'no number')])
def test_an_environment_that_torchrun_did_not_set_is_told(monkeypatch, number, rank, part):
    monkeypatch.setenv('WORLD_SIZE', number)
    for name in ('RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        if rank is None or (part == 'no LOCAL_RANK' and name == 'LOCAL_RANK'):
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, rank)
    text = error_of(pick_device, 'cpu')
    assert part in text and f'WORLD_SIZE={number}' in text and 'torchrun' in text


def test_the_cpu_is_always_there(monkeypatch):
    assert pick_device('cpu') == CPU and pick_device('auto').type in ('cpu', 'cuda', 'mps')
    monkeypatch.setattr(training.ctypes, 'CDLL', lambda name: SimpleNamespace())  # a C library that is not glibc
    assert pick_device('cpu') == CPU


@pytest.mark.parametrize('facts, native', [
    ('vendor_id: GenuineIntel\nflags: avx512_bf16 amx_bf16', True), ('vendor_id: GenuineIntel\nflags: avx512f avx512_bf16', False),
    ('vendor_id: AuthenticAMD\nflags: avx512f avx512_bf16', True), ('vendor_id: AuthenticAMD\nflags: avx2', False),
    ('Features: fp asimd bf16 i8mm', True)])
def test_a_cpu_has_bfloat16_where_its_flags_say_that_it_gains(facts, native, monkeypatch):
    monkeypatch.setattr(Path, 'read_text', lambda path: facts)
    assert training.has_bf16(CPU) is native and training.has_bf16(torch.device('mps')) is False
    assert training.free_memory(CPU) == 4 * 2**30  # where nothing tells it


def test_a_lenet_on_the_cpu_stays_in_float32_and_a_resnet_follows_the_hardware(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(training, 'has_bf16', lambda device, native=native: native)
        assert pick_amp('auto', CPU, 'lenet5') == pick_amp('auto', CPU, 'lenet5half') == 'off'
        assert pick_amp('auto', CPU, 'resnet18') == pick_amp('auto', CUDA, 'lenet5') == ('bf16' if native else 'off')
        assert pick_amp('bf16', CPU, 'lenet5') == 'bf16' and pick_amp('off', CUDA, 'resnet18') == 'off'


def test_autocast_is_on_for_bf16_only():
    with training.autocast(torch.device('meta'), 'off'):  # which autocast does not know, as torch 2.4's does not know MPS
        assert training.free_memory(CPU) > 2**20
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for amp, dtype in (('bf16', torch.bfloat16), ('off', torch.float32)):
        with training.autocast(CPU, amp):
            assert layer(x).dtype == dtype


def test_evaluation_equals_a_plain_loop_at_any_batch_size():
    torch.manual_seed(0)
    net = ResNet18(num_classes=4, in_channels=1, width=8)
    net(torch.randn(8, 1, 32, 32))  # statistics that are no ones and zeros
    split = Split(torch.randint(256, (23, 1, 32, 32), dtype=torch.uint8), torch.arange(23) % 4)
    normalise = Normalise((0.5,), (0.25,), CPU)
    with torch.no_grad():
        logits = torch.cat([net.eval()((image[None].float() / 255 - 0.5) / 0.25) for image in split.images]).double()
    loss = float((logits.logsumexp(dim=1) - logits[torch.arange(23), split.labels]).mean())
    correct = int((logits.argmax(dim=1) == split.labels).sum())
    for batch_size in (1, 5, 23, 500):
        found = evaluate(net.train(), split, normalise, CPU, 'off', batch_size)
        assert found == (pytest.approx(loss, rel=1e-4), pytest.approx(100 * correct / 23)) and not net.training
    assert evaluate(net, None, normalise, CPU, 'off') == (None, None)


def test_means_weigh_by_the_batchs_size_and_lose_nothing_of_many_small_numbers():
    means = Means()
    for count, a, b in ((3, 1.0, 10.0), (1, 5.0, 2.0)):
        means.add(count, loss=torch.tensor(a, requires_grad=True), other=torch.tensor(b))
    assert means.read() == {'loss': 2.0, 'other': 8.0} and means.count == 4
    assert not means.sums['loss'].requires_grad
    seconds = means.seconds
    assert means.read() and means.seconds == seconds > 0  # until it is first read
    means = Means()
    for _ in range(20_000):
        means.add(256, loss=torch.tensor(0.1))
    assert means.read()['loss'] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_or_a_weight_that_is_not_finite_stops_the_run_with_advice(value):
    means, good = Means(), [torch.zeros(2)]
    means.add(4, loss=torch.tensor(1.0), loss_kd=torch.tensor(value))
    means.add(4, loss=torch.tensor(1.0), loss_kd=torch.tensor(1.0))
    text = error_of(check_finite, means.read(), good, 'by step 7')
    assert all(part in text for part in ('loss_kd', str(value), '--lr or --T', '--amp off', 'step 7'))
    assert '--lr_G' in error_of(check_finite, {'loss_oh': value, 'loss_kd': value}, good, '')
    assert 'weight' in error_of(check_finite, {'loss': 1.0}, [torch.tensor(value)], '')
    check_finite({'loss': 1.0}, good, '')


def test_the_next_item_is_made_while_one_is_worked_on():
    made = []
    for i in ahead(made.append(i) or i for i in range(4)):
        end = time.time() + 5
        while len(made) < min(i + 2, 4) and time.time() < end:
            time.sleep(0.001)
        assert len(made) == min(i + 2, 4)  # one ahead, and no more
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 / (1 - i) for i in range(3)))
