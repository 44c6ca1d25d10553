"""A run's folder: what it holds, whose it is, and resume bit by bit."""

import errno
import fcntl
import itertools
import json
import signal
import subprocess
import time

import pytest
import torch
from images import error_of
from torch import nn

import runs
from arguments import Settings
from data import MNIST
from keep import origin, stops
from losses import noisy_nll
from networks import build, load_network
from runs import Run
from training import Means, make_optimizer, rng, seed_init
from utils import read_json, read_json_lines, write_json

CPU = torch.device('cpu')


OPENED = []


def open_run(tmp_path, resume=False, name=None, measured=(), **settings):
    """A Run, as if the process of the one before were dead."""
    while OPENED:
        OPENED.pop().lock.release()
    settings = {'tensorboard': False, 'seed': 0, 'lr': 0.1, 'epochs': 9, 'save_minutes': 10, 'milestones': (0.4, 0.8), **settings}
    OPENED.append(Run(Settings(output_dir=str(tmp_path / 'runs'), run=name, resume=resume, **settings), 'MNIST-teacher', CPU, measured))
    return OPENED[-1]


def open_begun(tmp_path, **kw):
    """A Run with a first epoch behind it."""
    run = open_run(tmp_path, **kw)
    (run.folder / 'last.pt').write_bytes(b'')
    return run


def config_of(run):
    return read_json(run.folder / 'config.json')


def test_a_run_writes_its_settings_and_what_it_runs_on(tmp_path):
    run = open_run(tmp_path)
    assert run.folder == tmp_path / 'runs' / 'MNIST-teacher' and run.name == 'MNIST-teacher' and not run.finished()
    config = config_of(run)
    assert config['settings'] == vars(run.settings) | {'milestones': [0.4, 0.8]}
    assert config['versions']['torch'] == torch.__version__ and {'command', 'commit', 'hardware'} <= config.keys()
    assert open_run(tmp_path, name='mine').folder == tmp_path / 'runs' / 'mine'


@pytest.mark.parametrize('status, expected', [('', 'abc'), (' M runs.py\n', 'abc+'), (None, None)])
def test_the_commit_is_marked_where_the_tree_was_changed(status, expected, monkeypatch):
    def git(words, **kw):
        if status is None:
            raise FileNotFoundError('git')
        return subprocess.CompletedProcess(words, 0, 'abc\n' if 'rev-parse' in words else status)

    monkeypatch.setattr(subprocess, 'run', git)
    assert origin.commit() == expected


@pytest.mark.parametrize('content', ['{"settings": {"se', '{"command": "x"}'])
def test_a_damaged_config_is_told(content, tmp_path):
    (open_begun(tmp_path).folder / 'config.json').write_text(content)
    assert 'config.json is damaged' in error_of(open_run, tmp_path, resume=True)


def test_a_config_that_was_deleted_is_written_again_by_resume(tmp_path, capsys):
    (open_begun(tmp_path).folder / 'config.json').unlink()
    run = open_run(tmp_path, resume=True, lr=0.2)
    assert config_of(run)['settings']['lr'] == 0.2 and 'config.json is missing' in capsys.readouterr().err
    (run.folder / 'config.json').unlink()
    assert '--resume' in error_of(open_run, tmp_path)


@pytest.mark.parametrize('error', [OSError(errno.ENOLCK, 'No locks available'), NotImplementedError('flock is not implemented')])
def test_a_file_system_without_locks_will_do(error, tmp_path, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr(fcntl, 'flock', refuse)
    open_begun(tmp_path)
    assert open_run(tmp_path, resume=True).settings.seed == 0


@pytest.mark.parametrize('left', [(), ('lock', 'config.json.partial')])
def test_a_folder_that_holds_no_epoch_makes_room(left, tmp_path):
    folder = tmp_path / 'runs' / 'MNIST-teacher'
    folder.mkdir(parents=True)
    for name in left:  # by a run that was killed at its very start
        (folder / name).touch()
    open_run(tmp_path, lr=1e9)
    run = open_run(tmp_path, lr=0.1)
    assert run.settings.lr == config_of(run)['settings']['lr'] == 0.1


def test_a_folder_in_use_is_refused_without_resume_or_while_its_process_lives(tmp_path):
    run = open_begun(tmp_path)
    OPENED.clear()  # it lives
    assert str(run.folder) in error_of(open_run, tmp_path, resume=True)
    run.lock.release()
    text = error_of(open_run, tmp_path)
    assert str(run.folder) in text and '--resume' in text and '--run NAME' in text


@pytest.mark.parametrize('in_the_way', ['runs', 'runs/MNIST-teacher', 'runs/MNIST-teacher/photo.jpg'])
def test_what_is_no_run_is_told_and_left_alone(in_the_way, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text('mine')
    for resume in (False, True):
        assert str(tmp_path / 'runs' / 'MNIST-teacher') in error_of(open_run, tmp_path, resume=resume)
    assert [path.read_text() for path in tmp_path.rglob('*') if path.is_file()] == ['mine']


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize('change, named', [
    (dict(lr=0.2), ('lr', '0.1', '0.2')), (dict(milestones=(0.4,)), ('milestones', '[0.4, 0.8]', '[0.4]')),
    (dict(amp='off'), ('amp', 'bf16', 'off'))])  # bf16: what --amp auto found there
def test_resume_with_another_setting_is_refused_by_name(change, named, tmp_path):
    open_begun(tmp_path, amp='bf16')
    text = error_of(open_run, tmp_path, resume=True, **{'amp': 'bf16', **change})
    assert all(part in text for part in (*named, '--run NAME'))


@pytest.mark.parametrize('resume', [False, True])
def test_what_a_stream_has_read_is_not_lost_to_another_setting(resume, tmp_path):
    (open_run(tmp_path).folder / 'stream').mkdir()
    run = open_run(tmp_path, seed=1)  # no part is read yet
    (run.folder / 'stream' / '00000000.npz').touch()
    assert open_run(tmp_path, seed=1, resume=resume).settings.seed == 1
    text = error_of(open_run, tmp_path, seed=2, resume=resume)
    assert 'seed=1' in text and 'seed=2' in text and '--run NAME' in text


def test_every_setting_that_changed_is_named(tmp_path):
    open_begun(tmp_path, T=4.0)
    text = error_of(open_run, tmp_path, resume=True, T=2.0, lr=0.2)
    assert all(part in text for part in ('lr=0.1', 'lr=0.2', 'T=4.0', 'T=2.0'))


@pytest.mark.parametrize('schedule, old, new, longer', [
    ('constant', (9, None), (12, None), True), ('constant', (9, 90), (12, 120), True), ('linear', (9, None), (12, None), False),
    ('constant', (9, None), (8, None), False), ('constant', (9, 85), (12, 120), False)])  # 85 steps end in the middle of an epoch
def test_a_run_can_be_made_longer_where_its_first_epochs_stay_the_same(schedule, old, new, longer, tmp_path):
    run = open_begun(tmp_path, schedule=schedule, epochs=old[0], steps=old[1])
    write_json(run.folder / 'result.json', {'epochs': old[0]})
    again = dict(resume=True, schedule=schedule, epochs=new[0], steps=new[1])
    if longer:
        assert not open_run(tmp_path, **again).finished() and config_of(run)['settings']['epochs'] == new[0]
    else:
        assert 'epochs' in error_of(open_run, tmp_path, **again)


@pytest.mark.parametrize('restart, torchrun, goes_on', [('1', 'one', True), ('0', 'one', False), ('1', 'another', False)])
def test_what_torchrun_starts_again_goes_on_without_resume(restart, torchrun, goes_on, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'one')
    open_begun(tmp_path)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', torchrun)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', restart)
    if goes_on:
        assert open_run(tmp_path).folder
    else:
        assert '--resume' in error_of(open_run, tmp_path)


def test_resume_elsewhere_is_the_same_run_and_keeps_what_was_measured(tmp_path):
    open_begun(tmp_path, workers=4, device='cuda', data='a', cache_dir='b', teacher_acc=0.98)
    here = dict(workers=0, device='cpu', data='c', cache_dir='d', teacher_acc=0.97)
    settings = open_run(tmp_path, resume=True, measured=('teacher_acc',), **here).settings
    assert (settings.teacher_acc, settings.data) == (0.98, 'c')
    assert 'teacher_acc' in error_of(open_run, tmp_path, resume=True, **here)  # asked for


def test_a_run_begun_before_settings_had_that_name_goes_on(tmp_path):
    run = open_begun(tmp_path, teacher_acc=0.98)
    config = config_of(run)
    write_json(run.folder / 'config.json', {'args': {**config.pop('settings'), 'compile': False}, **config})
    assert open_run(tmp_path, resume=True, measured=('teacher_acc',), teacher_acc=0.97).settings.teacher_acc == 0.98
    assert 'lr' in error_of(open_run, tmp_path, resume=True, lr=0.2, teacher_acc=0.98)


def train(net, theta, optimizer, optimizer_theta, seed):
    x = torch.randn(4, 1, 32, 32, generator=rng(seed, 'x'))
    for _ in range(3):
        optimizer.zero_grad()
        optimizer_theta.zero_grad()
        noisy_nll(net(x), torch.arange(4), theta, 0.9).backward()
        optimizer.step()
        optimizer_theta.step()


def start(run, seed=0):
    """A network with batch norms, a learned tensor, and an optimiser of each kind; and where the run goes on."""
    seed_init(seed)
    net, theta = build('resnet18', 8, 10, 1), torch.zeros(10, 9, requires_grad=True)
    state = dict(optimizer=make_optimizer('sgd', net.parameters(), 0.1), theta=theta,
                 optimizer_theta=torch.optim.Adam([theta], lr=0.01))
    run.start('student', net, MNIST.facts('MNIST', 'resnet18', 8), **state)
    return net, state, run.epoch, run.step


def end_epoch(run, top1, loss=1.0):
    run.step += 9
    run.step_done(8, 1.0, 0.1, loss=torch.tensor(loss))
    run.means.seconds = 2.0
    run.end_epoch((None, None) if top1 is None else (0.5, top1))


def rows_of(run):
    return read_json_lines(run.folder / 'metrics.jsonl')


def test_resume_restores_network_optimisers_and_tensor_bit_by_bit(tmp_path):
    run = open_run(tmp_path)
    net, state, epoch, step = start(run)
    assert (epoch, step) == (0, 0)
    train(net.train(), **state, seed=1)
    end_epoch(run, 50.0)
    train(net, **state, seed=2)

    again = open_run(tmp_path, resume=True)
    net2, state2, epoch, step = start(again, seed=7)
    assert (epoch, step, again.best, again.top1) == (1, 10, 50.0, 50.0)
    train(net2.train(), **state2, seed=2)  # with momentum, and with Adam's means
    assert state2['theta'].requires_grad and state2['theta'].abs().max() > 0
    assert torch.equal(state['theta'], state2['theta'])
    assert all(torch.equal(v, net2.state_dict()[k]) for k, v in net.state_dict().items())


def test_the_saved_state_of_another_network_is_told(tmp_path):
    run = open_run(tmp_path)
    start(run)
    end_epoch(run, 50.0)
    again, other = open_run(tmp_path, resume=True), build('resnet18', 16, 10, 1)
    facts = MNIST.facts('MNIST', 'resnet18', 16)
    for net, state, part in ((other, {}, 'size mismatch'), (build('resnet18', 8, 10, 1), {'scaler': torch.zeros(1)}, 'scaler')):
        text = error_of(again.start, 'student', net, facts, **state)
        assert part in text and str(run.folder) in text and '--run NAME' in text


def test_a_result_without_a_saved_state_is_never_lost(tmp_path, capsys):
    run = open_run(tmp_path, schedule='constant')
    start(run)
    end_epoch(run, 50.0)
    rows = rows_of(run)
    for saved in run.folder.glob('*.pt'):
        saved.unlink()
    write_json(run.folder / 'result.json', {'epochs': 9})
    assert open_run(tmp_path, resume=True, schedule='constant').finished()
    (run.folder / 'result.json').write_text('{"epo')
    again = open_run(tmp_path, resume=True, schedule='constant')
    assert not again.finished() and 'no saved state' in error_of(start, again) and rows_of(run) == rows
    (run.folder / 'result.json').unlink()
    (run.folder / 'selection.npz').touch()
    assert start(open_run(tmp_path, resume=True, schedule='constant'))[2:] == (0, 0) and rows_of(run) == []
    assert 'begins at its first epoch' in capsys.readouterr().out
    write_json(run.folder / 'result.json', {'epochs': 9})
    before = (run.folder / 'config.json').read_bytes()
    OPENED.pop().lock.release()
    assert 'no saved state' in error_of(open_run, tmp_path, resume=True, schedule='constant', epochs=12)
    assert (run.folder / 'config.json').read_bytes() == before


def test_the_export_of_a_shorter_run_is_told(tmp_path, capsys):
    run = open_run(tmp_path)
    start(run)
    for name in ('student.onnx', 'student.pt2'):
        (run.folder / name).touch()
    end_epoch(run, 50.0)
    run.finish('test', export={'onnx': {'file': 'student.onnx'}, 'cost': {}})
    said = capsys.readouterr().err
    assert 'student.pt2 is an export of the student before' in said and 'student.onnx' not in said


def test_a_run_saves_so_often_and_for_no_more_than_a_fiftieth_of_its_time(tmp_path, monkeypatch):
    """By a clock that a step moves on by a second, and a save by three."""
    run, clock, saves = open_run(tmp_path, save_minutes=1), [0.0], []
    monkeypatch.setattr(runs.time, 'monotonic', lambda: clock[0])
    start(run)

    def slow_save(content, file):
        saves.append(clock[0])
        clock[0] += 3

    monkeypatch.setattr(torch, 'save', slow_save)
    for _ in range(1000):
        clock[0] += 1
        run.step_done(8, 1.0, 0.1, loss=torch.tensor(1.0))
    assert saves[0] == 60 and {b - a for a, b in itertools.pairwise(saves)} == {153}  # 50 times 3, and these 3


@pytest.mark.parametrize('stopped', [1, 7])  # of the 7 steps of an epoch
def test_a_stop_inside_an_epoch_keeps_the_place_and_the_means(stopped, tmp_path, monkeypatch):
    run = open_run(tmp_path)
    start(run)
    end_epoch(run, 50.0)
    losses = torch.rand(7, generator=rng(0, 'losses'))
    with pytest.raises(stops.Stopped) as stop:
        for number, loss in enumerate(losses[:stopped], 1):
            monkeypatch.setattr(stops, 'asked', lambda last=number == stopped: signal.SIGTERM if last else 0)
            run.step_done(8, 1.0, 0.1, loss=loss)
    assert stop.value.number == signal.SIGTERM and f'step {10 + stopped}' in stop.value.where
    monkeypatch.undo()
    again = open_run(tmp_path, resume=True)
    start(again)
    assert (again.epoch, again.step, again.done, again.lr) == (1, 10 + stopped, stopped, 0.1) and next(again.epochs()) == 2
    for loss in losses[stopped:]:
        again.step_done(8, 1.0, 0.1, loss=loss)
    whole = Means()
    for loss in losses:
        whole.add(8, 1.0, loss=loss)
    assert again.means.read() == whole.read() and again.means.count == whole.count


def test_a_lost_row_brings_no_row_back_that_the_saved_state_does_not_know(tmp_path):
    run = open_run(tmp_path)
    start(run)
    for _ in range(3):
        run.saving = 0.0
        end_epoch(run, 50.0)
    first, _, third = (run.folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (run.folder / 'metrics.jsonl').write_text(first + third + json.dumps({'epoch': 4}) + '\n')
    start(again := open_run(tmp_path, resume=True))
    assert [row['epoch'] for row in rows_of(again)] == [1, 3] and (run.folder / 'metrics.jsonl').read_text() == first + third


@pytest.mark.parametrize('extra', [json.dumps({'epoch': 3}) + '\n', '{"epoch": 3, "st', ''])
@pytest.mark.parametrize('saved', [0, 2])
def test_rows_that_the_saved_state_does_not_know_are_dropped(extra, saved, tmp_path):
    run = open_run(tmp_path)
    start(run)
    for _ in range(saved):
        run.saving = 0.0  # or it would come too soon after the last
        end_epoch(run, 50.0)
    with open(run.folder / 'metrics.jsonl', 'a') as f:
        f.write(extra)  # killed between the row and the state
    again = open_run(tmp_path, resume=True)
    assert start(again)[2:] == (saved, 10 * saved)
    end_epoch(again, 55.0)
    assert [row['epoch'] for row in rows_of(again)] == list(range(1, saved + 2))


def test_last_and_best_networks_are_kept_with_their_own_accuracy(tmp_path, capsys):
    run = open_run(tmp_path)
    net, weights = start(run)[0], {}
    for epoch, top1 in enumerate((50.0, 70.0, 60.0), 1):
        nn.init.normal_(net.linear.weight)
        weights[top1] = net.linear.weight.detach().clone()
        end_epoch(run, top1, loss=epoch / 4)
    capsys.readouterr()
    run.finish('test', steps=30)
    for name, top1 in (('student.pt', 60.0), ('student-best.pt', 70.0)):
        loaded, facts = load_network(run.folder / name)
        assert facts['accuracy'] == pytest.approx(top1 / 100) and torch.equal(loaded.linear.weight, weights[top1])
    row = rows_of(run)[1]
    assert {k: row[k] for k in ('epoch', 'step', 'lr', 'loss', 'test_loss', 'top1', 'images_per_s')} == dict(
        epoch=2, step=20, lr=0.1, loss=0.5, test_loss=0.5, top1=70.0, images_per_s=4.0)
    line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(line.removeprefix('RESULT '))
    expected = dict(method='test', top1=60.0, top1_best=70.0, run='MNIST-teacher', seed=0, epochs=9, steps=30,
                    params=sum(p.numel() for p in net.parameters()))
    assert result['flops'] > 0 and result.items() >= expected.items() and result == read_json(run.folder / 'result.json')
    assert open_run(tmp_path, resume=True).finished() and capsys.readouterr().out.splitlines() == [line]


@pytest.mark.parametrize('first, last, best', [(70.0, 60.0, 70.0), (None, None, None)])  # None: without test data
def test_a_resumed_run_keeps_the_best_and_the_seconds_of_its_first_sitting(first, last, best, tmp_path):
    run = open_run(tmp_path)
    start(run)
    run.started = time.time() - 100
    end_epoch(run, first)
    again = open_run(tmp_path, resume=True)
    start(again)
    if last:
        end_epoch(again, last)
    again.finish('test')
    result = read_json(again.folder / 'result.json')
    assert (result['top1'], result['top1_best']) == (last, best) and 100 <= result['seconds'] < 130
    assert load_network(again.folder / 'student.pt')[1]['accuracy'] == (last and pytest.approx(last / 100))
    assert (again.folder / 'student-best.pt').exists() == (best is not None)
    assert not best or load_network(again.folder / 'student-best.pt')[1]['accuracy'] == pytest.approx(best / 100)


def test_the_exports_of_a_run_take_the_same_images(tmp_path):
    done = Run.__new__(Run)
    done.folder, done.settings = tmp_path, Settings(export=['onnx'], export_normalise=False)
    assert 'student.pt2 was exported with mean and std' in error_of(done._late, {'pt2': {'file': 'student.pt2'}, 'normalise': True})
    assert done._late({'pt2': {'file': 'student.pt2'}, 'normalise': False}) == ['onnx']
