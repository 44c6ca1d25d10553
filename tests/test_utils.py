"""What every script does, and its arguments: learning rates, seeds, how it fails, device, evaluation."""
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import error_of
from torch import nn

import arguments
import utils
from arguments import at_least, name_in, override
from data import Normalise, Split
from lenet import LeNet5Half
from resnet import ResNet18
from utils import Means, UserError, ahead, evaluate, first_line, learning_rate, pick_amp, pick_device, rng, seed_init

CPU = torch.device('cpu')


# ---------------------------------------------------------------- learning rates


@pytest.mark.parametrize('per_epoch', [1, 7, 391, 196])
def test_the_published_rate_drops_at_epochs_80_and_120_of_200(per_epoch):
    def at(epoch, step):
        return learning_rate(0.1, 'steps', (0.4, 0.6), epoch * per_epoch + step, 200 * per_epoch)

    for epoch, expected in ((0, 0.1), (79, 0.1), (80, 0.01), (119, 0.01), (120, 0.001), (199, 0.001)):
        for step in (0, per_epoch - 1):
            assert at(epoch, step) == pytest.approx(expected, rel=1e-12), (epoch, step)


@pytest.mark.parametrize('milestones, steps', [((0.4, 0.6), 200), ((0.4, 0.8), 2000), ((0.4, 0.8), 10)])
def test_steps_equal_torchs_multi_step(milestones, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(m * steps + 0.5) for m in milestones])
    for step in range(steps):
        assert learning_rate(0.1, 'steps', milestones, step, steps) == pytest.approx(optimizer.param_groups[0]['lr'], rel=1e-9)
        optimizer.step()
        theirs.step()


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
    for schedule in utils.SCHEDULES:
        for steps in (1, 2, 3):
            assert all(0 < learning_rate(0.1, schedule, (0.4, 0.8), step, steps) <= 0.1 for step in range(steps)), (schedule, steps)


def test_optimisers_are_the_papers():
    net = nn.Linear(2, 2)
    sgd = utils.make_optimizer('sgd', net.parameters(), 0.1)
    assert type(sgd) is torch.optim.SGD
    assert {k: sgd.defaults[k] for k in ('lr', 'momentum', 'weight_decay', 'nesterov')} == dict(
        lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False)
    adam = utils.make_optimizer('adam', net.parameters(), 1e-3)
    assert type(adam) is torch.optim.Adam and adam.defaults['weight_decay'] == 0
    utils.set_lr(adam, 0.5)
    assert [g['lr'] for g in adam.param_groups] == [0.5]


# ---------------------------------------------------------------- seeds


def test_the_same_seed_and_purpose_give_the_same_numbers_and_others_do_not():
    def draw(*key):
        return tuple(torch.randn(4, generator=rng(*key)).tolist())

    torch.manual_seed(1)
    first = draw(0, 'epoch', 1)
    torch.manual_seed(2)
    assert draw(0, 'epoch', 1) == first
    keys = [(0, 'epoch', 1), (1, 'epoch', 1), (-1, 'epoch', 1), (10, 'epoch', 1), (0, 'epoch', 2), (0, 'epoch', 11), (0, 'latent', 1),
            (0, 'epoch')]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_seeded_weights_are_the_same_for_the_same_seed():
    def weights(*key):
        seed_init(*key)
        return LeNet5Half().conv1.weight.flatten().tolist()

    assert weights(0, 'teacher') == weights(0, 'teacher')
    assert len({tuple(weights(*key)) for key in ((0, 'teacher'), (1, 'teacher'), (0, 'dafl'))}) == 3


# ---------------------------------------------------------------- arguments


def parser():
    p = arguments.Parser('a test')
    p.add_argument('--num_select', type=at_least(int, 1))
    p.add_argument('--teacher_dir')
    p.add_argument('--lr', type=at_least(float, 0, strict=True))
    p.add_argument('--dataset', type=name_in(('MNIST', 'cifar10', 'cifar100')))
    return p


@pytest.mark.parametrize('arguments, expected', [
    (['--num_selct', '5'], '--num_select'), (['--num-select=5'], '--num_select'), (['--teacherdir', 'a', '--lr', '1'], '--teacher_dir'),
    (['--num', '5'], '--num'),  # no abbreviations either
    (['--zzz'], '--help'), (['stray\nword'], 'stray word'),
    (['--dataset', 'cifer10'], 'did you mean cifar10?'), (['--dataset', 'imagenet'], 'MNIST, cifar10, cifar100'),
    (['--num_select', '0'], 'at least 1'), (['--num_select', 'many'], 'many'), (['--num_select', '1.5'], '1.5'), (['--lr', '0'], 'above 0'),
    (['--lr', 'nan'], 'nan'), (['--lr', 'inf'], 'inf'), (['--lr'], '--lr'),
])
def test_a_wrong_argument_is_one_line_and_exit_2(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == '' and err.count('\n') == 1 and expected in err and 'error' in err


def test_a_name_is_found_in_any_case():
    for text, name in (('mnist', 'MNIST'), ('CIFAR10', 'cifar10'), ('cifar100', 'cifar100')):
        assert parser().parse_args(['--dataset', text]).dataset == name


def test_explicit_flags_beat_the_recipe_zero_and_false_too():
    recipe = dict(epochs=10, lr=0.1, augment=True, ie=5.0, select='balanced')
    args = SimpleNamespace(epochs=3, lr=None, augment=False, ie=0.0, dataset='MNIST')
    assert override(recipe, args) == dict(epochs=3, lr=0.1, augment=False, ie=0.0, select='balanced')
    assert recipe['epochs'] == 10  # the recipe itself stays


@pytest.mark.parametrize('error, code, text', [
    (UserError('what\n to   do'), 2, 'error: what to do\n'), (KeyboardInterrupt(), 130, '--resume'), (MemoryError(), 2, '--batch_size'),
    (torch.cuda.OutOfMemoryError('CUDA out of memory'), 2, '--batch_size')])
def test_a_script_ends_with_one_line_and_its_code(error, code, text, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        utils.run_script(main)
    err = capsys.readouterr().err
    assert stop.value.code == code and text in err and len(err.strip().splitlines()) == 1


def test_more_memory_than_there_is_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        utils.run_script(lambda: torch.empty(2**55))
    assert stop.value.code == 2 and 'out of memory: lower --batch_size' in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        utils.run_script(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match='shape'):
        utils.run_script(lambda: torch.ones(2).view(3))


def test_the_first_line_of_an_error_is_short_and_one_line():
    assert first_line(ValueError('bad\nand worse')) == 'ValueError: bad'
    assert first_line(RuntimeError('\n\nlate\n')) == 'RuntimeError: late'
    assert 'AssertionError' in first_line(AssertionError()) and len(first_line(ValueError('x' * 999))) < 160


# ---------------------------------------------------------------- device and precision


@pytest.mark.parametrize('name', ['cuda:99', 'gpu', 'mps:7', ''])
def test_a_device_that_is_not_there_is_told(name):
    assert '--device auto' in error_of(pick_device, name)


@pytest.mark.parametrize('name, rank, part', [('mps', 0, 'mps takes one'), ('cuda', 2, 'lower --nproc_per_node')])
def test_more_processes_than_the_device_takes_are_told(monkeypatch, name, rank, part):
    monkeypatch.setenv('WORLD_SIZE', '3')
    monkeypatch.setenv('LOCAL_RANK', str(rank))
    monkeypatch.setattr(torch, 'zeros', lambda *a, **k: None)  # as if it were there
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert part in error_of(pick_device, name)


def test_the_cpu_is_always_there():
    assert pick_device('cpu') == CPU and pick_device('auto').type in ('cpu', 'cuda', 'mps')


def test_a_lenet_on_the_cpu_stays_in_float32_and_a_resnet_follows_the_hardware(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(utils, 'has_bf16', lambda device, native=native: native)
        assert pick_amp('auto', CPU, 'lenet5') == pick_amp('auto', CPU, 'lenet5half') == 'off'
        assert pick_amp('auto', CPU, 'resnet18') == pick_amp('auto', torch.device('cuda'), 'lenet5') == ('bf16' if native else 'off')
        assert pick_amp('bf16', CPU, 'lenet5') == 'bf16' and pick_amp('off', torch.device('cuda'), 'resnet18') == 'off'


def test_autocast_is_on_for_bf16_only():
    with utils.autocast(torch.device('meta'), 'off'):  # which autocast does not know, as torch 2.4's does not know MPS
        pass
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for amp, dtype in (('bf16', torch.bfloat16), ('off', torch.float32)):
        with utils.autocast(CPU, amp):
            assert layer(x).dtype == dtype


# ---------------------------------------------------------------- evaluation and means


def test_evaluation_equals_a_plain_loop_at_any_batch_size():
    torch.manual_seed(0)
    net = ResNet18(num_classes=4, in_channels=1, width=2)
    net(torch.randn(8, 1, 32, 32))  # statistics that are no ones and zeros
    split = Split(torch.randint(256, (23, 1, 32, 32), dtype=torch.uint8), torch.arange(23) % 4)
    normalise = Normalise((0.5,), (0.25,), CPU)
    loss, correct = 0.0, 0
    with torch.no_grad():
        for image, label in zip(split.images, split.labels):
            logits = net.eval()((image[None].float() / 255 - 0.5) / 0.25)[0].double()
            loss += float(torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[label]) / 23
            correct += int(logits.argmax()) == int(label)
    for batch_size in (1, 5, 23, 500):
        found = evaluate(net.train(), split, normalise, CPU, 'off', batch_size)
        assert found == (pytest.approx(loss, rel=1e-4), pytest.approx(100 * correct / 23)) and not net.training
    assert evaluate(net, None, normalise, CPU, 'off') == (None, None)


def test_means_weigh_by_the_batchs_size():
    means = Means()
    for count, a, b in ((3, 1.0, 10.0), (1, 5.0, 2.0)):
        means.add(count, loss=torch.tensor(a, requires_grad=True), other=torch.tensor(b))
    assert means.read() == {'loss': 2.0, 'other': 8.0} and means.count == 4
    assert not means.sums['loss'].requires_grad


def test_means_of_many_small_numbers_lose_nothing():
    means = Means()
    for _ in range(20_000):
        means.add(256, loss=torch.tensor(0.1))
    assert means.read()['loss'] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(value):
    means = Means()
    means.add(4, loss=torch.tensor(1.0), loss_kd=torch.tensor(value))
    means.add(4, loss=torch.tensor(1.0), loss_kd=torch.tensor(1.0))
    text = error_of(means.read)
    assert 'loss_kd' in text and str(value) in text and '--lr' in text and '--amp off' in text


# ---------------------------------------------------------------- one ahead


def test_the_next_item_is_made_while_one_is_worked_on():
    made = []

    def items():
        for i in range(4):
            made.append(i)
            yield i

    for i in ahead(items()):
        end = time.time() + 5
        while len(made) < min(i + 2, 4) and time.time() < end:
            time.sleep(0.001)
        assert len(made) == min(i + 2, 4)  # one ahead, and no more

    def fails():
        yield 1
        raise ValueError('unreadable')

    with pytest.raises(ValueError, match='unreadable'):
        list(ahead(fails()))
