"""A run's folder and what every script does: resume bit by bit, learning rates, seeds, arguments, evaluation."""
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import error_of
from torch import nn

import arguments
import utils
from arguments import at_least, name_in, override
from data import CIFAR, MNIST, EpochPlan, Normalise, Split
from lenet import LeNet5Half
from losses import kd_loss, noisy_nll
from networks import build, load_network
from resnet import ResNet18
from runs import Run, print_result
from utils import Means, UserError, evaluate, first_line, learning_rate, pick_amp, pick_device, rng, seed_init

CPU = torch.device('cpu')
FACTS = MNIST.facts('MNIST', 'lenet5half', 3)


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
    (UserError('what\n to   do'), 2, 'error: what to do\n'), (KeyboardInterrupt(), 130, '--resume')])
def test_a_script_ends_with_one_line_and_its_code(error, code, text, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        utils.run_script(main)
    err = capsys.readouterr().err
    assert stop.value.code == code and text in err and len(err.strip().splitlines()) == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        utils.run_script(lambda: 1 / 0)


def test_the_first_line_of_an_error_is_short_and_one_line():
    assert first_line(ValueError('bad\nand worse')) == 'ValueError: bad'
    assert first_line(RuntimeError('\n\nlate\n')) == 'RuntimeError: late'
    assert 'AssertionError' in first_line(AssertionError()) and len(first_line(ValueError('x' * 999))) < 160


# ---------------------------------------------------------------- device and precision


@pytest.mark.parametrize('name', ['cuda:99', 'gpu', 'mps:7', ''])
def test_a_device_that_is_not_there_is_told(name):
    assert '--device auto' in error_of(pick_device, name)


def test_the_cpu_is_always_there():
    assert pick_device('cpu') == CPU and pick_device('auto').type in ('cpu', 'cuda', 'mps')


def test_a_lenet_on_the_cpu_stays_in_float32_and_a_resnet_follows_the_hardware(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(utils, 'has_bf16', lambda device, native=native: native)
        assert pick_amp('auto', CPU, 'lenet5') == pick_amp('auto', CPU, 'lenet5half') == 'off'
        assert pick_amp('auto', CPU, 'resnet18') == pick_amp('auto', torch.device('cuda'), 'lenet5') == ('bf16' if native else 'off')
        assert pick_amp('bf16', CPU, 'lenet5') == 'bf16' and pick_amp('off', torch.device('cuda'), 'resnet18') == 'off'


def test_autocast_is_on_for_bf16_only():
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


# ---------------------------------------------------------------- a run's folder


OPENED = []


def open_run(tmp_path, resume=False, name=None, **settings):
    """A Run, as if the process of the one before were dead."""
    while OPENED:
        OPENED.pop().lock.close()
    args = SimpleNamespace(output_dir=str(tmp_path / 'runs'), run=name, resume=resume)
    OPENED.append(Run(args, 'MNIST-teacher', CPU, {'seed': 0, 'lr': 0.1, 'milestones': (0.4, 0.8), 'resume': resume, **settings}))
    return OPENED[-1]


def open_begun(tmp_path, **kw):
    """A Run with a first epoch behind it."""
    run = open_run(tmp_path, **kw)
    (run.folder / 'last.pt').write_bytes(b'')
    return run


def test_a_run_writes_its_settings(tmp_path):
    run = open_run(tmp_path)
    assert run.folder == tmp_path / 'runs' / 'MNIST-teacher' and run.name == 'MNIST-teacher' and run.finished() is None
    config = json.loads((run.folder / 'config.json').read_text())
    assert config['args'] == {'seed': 0, 'lr': 0.1, 'milestones': [0.4, 0.8], 'resume': False}
    assert config['versions']['torch'] == torch.__version__ and {'command', 'hardware'} <= config.keys()
    assert open_run(tmp_path, name='mine').folder == tmp_path / 'runs' / 'mine'


def test_a_folder_in_use_is_refused_without_resume(tmp_path):
    run = open_begun(tmp_path)
    text = error_of(open_run, tmp_path)
    assert str(run.folder) in text and '--resume' in text and '--run NAME' in text


def test_a_run_that_ended_before_its_first_epoch_makes_room(tmp_path):
    open_run(tmp_path, lr=1e9)
    assert open_run(tmp_path, lr=0.1).settings['lr'] == 0.1
    assert json.loads((tmp_path / 'runs/MNIST-teacher/config.json').read_text())['args']['lr'] == 0.1


@pytest.mark.skipif(sys.platform == 'win32', reason='no fcntl')
def test_a_second_process_in_the_folder_is_refused(tmp_path):
    run = open_begun(tmp_path)
    OPENED.clear()  # it lives
    assert 'another process is running' in error_of(open_run, tmp_path, resume=True)
    run.lock.close()
    open_run(tmp_path, resume=True)


def test_what_was_found_and_not_asked_for_may_differ_on_resume(tmp_path):
    open_begun(tmp_path, teacher_acc=0.98)
    assert open_run(tmp_path, resume=True, teacher_acc=0.97).settings['teacher_acc'] == 0.98


def test_another_precision_is_another_run(tmp_path):
    open_begun(tmp_path, amp='bf16')  # what --amp auto found there
    assert 'amp=bf16, and now it is off' in error_of(open_run, tmp_path, resume=True, amp='off')


def test_what_a_run_leaves_that_was_killed_at_its_start_is_no_hindrance(tmp_path):
    folder = tmp_path / 'runs' / 'MNIST-teacher'
    folder.mkdir(parents=True)
    (folder / 'lock').touch()
    (folder / 'config.json.partial').touch()
    assert open_run(tmp_path).settings['seed'] == 0


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / 'runs' / 'MNIST-teacher'
    folder.mkdir(parents=True)
    open_run(tmp_path, name='MNIST-teacher')  # an empty one is taken
    (folder / 'config.json').unlink()
    (folder / 'photo.jpg').write_bytes(b'mine')
    for resume in (False, True):
        assert str(folder) in error_of(open_run, tmp_path, resume=resume)
    assert sorted(p.name for p in folder.iterdir()) == ['lock', 'photo.jpg']


@pytest.mark.parametrize('in_the_way', ['runs', 'runs/MNIST-teacher'])
def test_a_file_in_the_folders_place_is_told(in_the_way, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text('in the way')
    assert str(tmp_path / in_the_way) in error_of(open_run, tmp_path)


@pytest.mark.parametrize('change, named', [(dict(lr=0.2), 'lr=0.1, and now it is 0.2'), (dict(milestones=(0.4,)), 'milestones')])
def test_resume_with_another_setting_is_refused_by_name(change, named, tmp_path):
    open_begun(tmp_path)
    assert named in error_of(open_run, tmp_path, resume=True, **change)


def test_resume_elsewhere_is_the_same_run(tmp_path):
    open_begun(tmp_path, workers=4, device='cuda', data='a', cache_dir='b')
    open_run(tmp_path, workers=0, device='cpu', data='c', cache_dir='d', resume=True)


def train(net, optimizer, theta, optimizer_theta, steps, seed):
    x = torch.randn(4, 1, 32, 32, generator=rng(seed, 'x'))
    for _ in range(steps):
        loss = noisy_nll(net(x), torch.arange(4), theta, 0.9)
        optimizer.zero_grad(set_to_none=True)
        optimizer_theta.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        optimizer_theta.step()


def start(run, seed):
    """A network with batch norms, a learned tensor, and an optimiser of each kind."""
    seed_init(seed)
    net, theta = build('resnet18', 2, 10, 1), torch.zeros(10, 9, requires_grad=True)
    state = dict(optimizer=utils.make_optimizer('sgd', net.parameters(), 0.1), theta=theta,
                 optimizer_theta=torch.optim.Adam([theta], lr=0.01))
    facts = MNIST.facts('MNIST', 'resnet18', 2)
    epoch, step = run.start('student', net, facts, 3, CPU, **state)
    return net, state, epoch, step


def end_epoch(run, epoch, top1, loss=1.0):
    means = Means()
    means.add(8, loss=torch.tensor(loss))
    run.end_epoch(epoch, 10 * epoch, 0.1, means, 2.0, None if top1 is None else 0.5, top1)


def test_resume_restores_network_optimisers_and_tensor_bit_by_bit(tmp_path):
    run = open_run(tmp_path)
    net, state, epoch, step = start(run, seed=0)
    assert (epoch, step) == (0, 0)
    train(net.train(), **state, steps=3, seed=1)
    end_epoch(run, 1, 50.0)
    train(net, **state, steps=3, seed=2)

    again = open_run(tmp_path, resume=True)
    net2, state2, epoch, step = start(again, seed=7)
    assert (epoch, step, again.best, again.top1) == (1, 10, 50.0, 50.0)
    train(net2.train(), **state2, steps=3, seed=2)
    assert state2['theta'].requires_grad and state2['theta'].abs().max() > 0
    assert torch.equal(state['theta'], state2['theta'])
    assert all(torch.equal(v, net2.state_dict()[k]) for k, v in net.state_dict().items())
    for name in ('optimizer', 'optimizer_theta'):
        ours, theirs = (s[name].state_dict() for s in (state, state2))
        assert ours['param_groups'] == theirs['param_groups'] and ours['state'].keys() == theirs['state'].keys()
        for a, b in zip(ours['state'].values(), theirs['state'].values()):
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def rows_of(run):
    return [json.loads(line) for line in (run.folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('extra', [json.dumps({'epoch': 3}) + '\n', '{"epoch": 3, "st', ''])
def test_rows_that_the_saved_state_does_not_know_are_dropped(extra, tmp_path):
    run = open_run(tmp_path)
    start(run, 0)
    end_epoch(run, 1, 50.0)
    end_epoch(run, 2, 60.0)
    with open(run.folder / 'metrics.jsonl', 'a') as f:
        f.write(extra)  # killed between the row and the state
    again = open_run(tmp_path, resume=True)
    assert start(again, 0)[2:] == (2, 20)
    end_epoch(again, 3, 55.0)
    assert [row['epoch'] for row in rows_of(again)] == [1, 2, 3]


def test_a_run_killed_before_its_first_state_starts_anew(tmp_path):
    run = open_run(tmp_path)
    (run.folder / 'metrics.jsonl').write_text('{"epoch": 1}\n')
    again = open_run(tmp_path, resume=True)
    assert start(again, 0)[2:] == (0, 0)
    end_epoch(again, 1, 50.0)
    assert [row['step'] for row in rows_of(again)] == [10]


def test_last_and_best_networks_are_kept_with_their_own_accuracy(tmp_path, capsys):
    run = open_run(tmp_path)
    net = start(run, 0)[0]
    weights = {}
    for epoch, top1 in enumerate((50.0, 70.0, 60.0), 1):
        nn.init.normal_(net.linear.weight)
        weights[top1] = net.linear.weight.detach().clone()
        end_epoch(run, epoch, top1, loss=epoch / 4)
    capsys.readouterr()
    run.finish({'script': 'test'})
    for name, top1 in (('student.pt', 60.0), ('student-best.pt', 70.0)):
        loaded, facts = load_network(run.folder / name)
        assert facts['accuracy'] == pytest.approx(top1 / 100) and torch.equal(loaded.linear.weight, weights[top1])
    row = rows_of(run)[1]
    assert {k: row[k] for k in ('epoch', 'step', 'lr', 'loss', 'test_loss', 'top1', 'images_per_s')} == dict(
        epoch=2, step=20, lr=0.1, loss=0.5, test_loss=0.5, top1=70.0, images_per_s=4.0)
    line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(line.removeprefix('RESULT '))
    assert (result['script'], result['top1'], result['top1_best'], result['run']) == ('test', 60.0, 70.0, 'MNIST-teacher')
    assert result['params'] == sum(p.numel() for p in net.parameters()) and result['flops'] > 0
    assert result == json.loads((run.folder / 'result.json').read_text()) == open_run(tmp_path, resume=True).finished()
    print_result(result)
    assert capsys.readouterr().out.splitlines() == [line]


def test_a_resumed_run_keeps_the_best_and_the_seconds_of_its_first_sitting(tmp_path):
    run = open_run(tmp_path)
    start(run, 0)
    run.started -= 100
    end_epoch(run, 1, 70.0)
    again = open_run(tmp_path, resume=True)
    start(again, 0)
    end_epoch(again, 2, 60.0)
    again.finish({})
    result = again.finished()
    assert (result['top1'], result['top1_best']) == (60.0, 70.0) and 100 <= result['seconds'] < 130
    assert load_network(again.folder / 'student-best.pt')[1]['accuracy'] == pytest.approx(0.7)


def test_without_test_data_a_run_has_no_accuracy_and_no_best(tmp_path):
    run = open_run(tmp_path)
    start(run, 0)
    end_epoch(run, 1, None)
    again = open_run(tmp_path, resume=True)
    start(again, 0)
    again.finish({})
    assert again.finished()['top1'] is None and again.finished()['top1_best'] is None
    assert load_network(run.folder / 'student.pt')[1]['accuracy'] is None and not (run.folder / 'student-best.pt').exists()


# ---------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('amp', ['off', 'bf16'])
def test_two_steps_on_cuda_equal_those_on_the_cpu(amp):
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=rng(0))
    losses = {}
    for device in (CPU, pick_device('cuda')):
        seed_init(0)
        teacher, student = (utils.to_device(build('resnet18', 8, 10, 3), device) for _ in range(2))
        teacher.eval()
        theta = torch.zeros(10, 9, device=device, requires_grad=True)
        optimizers = [utils.make_optimizer('sgd', student.parameters(), 0.1), torch.optim.Adam([theta], lr=1e-3)]
        normalise, pool = Normalise(CIFAR.mean, CIFAR.std, device), images.to(device)
        losses[device.type] = []
        for indices, augment, *_ in EpochPlan(64, 32, 0, 1, augment=True, flip=True):
            x = normalise(augment(pool[indices.to(device)]))
            with utils.autocast(device, amp if device.type == 'cuda' else 'off'):
                with torch.no_grad():
                    t = teacher(x).float()
                s = student(x).float()
            loss = kd_loss(s, t, 4.0) + noisy_nll(s, t.argmax(dim=1), theta, 0.9)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses[device.type].append(loss.item())
        split = Split(pool, torch.zeros(64, dtype=torch.int64, device=device))
        assert math.isfinite(evaluate(student, split, normalise, device, amp)[0]) and theta.abs().max() > 0
    torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(losses['cuda'], losses['cpu'], rtol=0.02 if amp == 'off' else 0.2, atol=0)  # TF32; bfloat16
