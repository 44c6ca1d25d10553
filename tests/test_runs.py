"""A run's folder: what it holds, whose it is, and resume bit by bit."""
import errno
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from images import error_of
from torch import nn

import processes
import utils
from data import MNIST
from losses import noisy_nll
from networks import build, load_network
from runs import Run, print_result
from utils import Means, rng, seed_init

CPU = torch.device('cpu')
FACTS = MNIST.facts('MNIST', 'lenet5half', 3)


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


def test_a_damaged_config_is_told(tmp_path):
    (open_begun(tmp_path).folder / 'config.json').write_text('{"args": {"se')
    assert 'config.json is damaged' in error_of(open_run, tmp_path, resume=True)


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(processes.fcntl, 'flock', refuse)
    open_begun(tmp_path)
    assert open_run(tmp_path, resume=True).settings['seed'] == 0


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
