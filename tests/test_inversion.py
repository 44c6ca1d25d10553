"""DeepInversion: images out of a teacher's batch norms, stopped and gone on with, and taken by DFND-train.py."""

import shutil
import time

import pytest
import torch
from images import write_small_world
from PIL import Image
from scripts import command, error, result, run, start, untimed

from networks import build, load_network, save_network
from own.teacher import Wanted, load_teacher
from rivals.inversion import watch
from utils import read_json, read_json_lines

COMMON = ('--dataset', 'cifar10', '--teacher', 'teacher.pt', '--images', 6, '--batch_size', 4, '--iterations', 5, '--amp', 'off')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A teacher of width 8 with random weights, whose batch norms know something."""
    folder = tmp_path_factory.mktemp('inversion')
    torch.manual_seed(0)
    net = build('resnet18', 8, 10, 3)
    with torch.no_grad():
        for _ in range(30):
            net(0.3 * torch.randn(16, 3, 32, 32) + 1)  # which the noise that images begin as is not
    facts = {'arch': 'resnet18', 'width': 8, 'classes': 10, 'channels': 3, 'mean': [0.5] * 3, 'std': [0.2] * 3, 'dataset': 'cifar10',
             'accuracy': 0.9}
    save_network(folder / 'teacher.pt', net, facts)
    return folder


def invert(folder, *args, code=0):
    return command('-m', 'rivals.inversion', *COMMON, *args, cwd=folder, code=code)


def pictures(folder, name):
    return {path.name: path.read_bytes() for path in sorted((folder / 'runs' / name / 'images').iterdir())}


def test_images_are_kept_and_a_student_learns_from_them(folder):
    r = result(invert(folder, '--run', 'a'))
    assert (r['script'], r['method'], r['images'], r['top1']) == ('-m rivals.inversion', 'inverted', 8, None)
    names = list(pictures(folder, 'a'))
    assert names == [f'{i:06}-{i % 4}.png' for i in range(8)]  # of every batch the classes 0, 1, 2, 3
    with Image.open(folder / 'runs/a/images' / names[0]) as image:
        assert (image.size, image.mode) == ((32, 32), 'RGB')
    rows = read_json_lines(folder / 'runs/a/metrics.jsonl')
    assert [row['step'] for row in rows] == [5, 10] and rows[0]['agreement'] is not None
    assert rows[0]['loss'] == pytest.approx(sum(rows[0][f'loss_{term}'] for term in ('ce', 'bn', 'tv', 'l2')), rel=1e-5)
    kept = read_json(folder / 'runs/a/config.json')
    assert kept['settings'].items() >= dict(lr=0.05, bn=10.0, tv=2.5e-5, l2=0.0).items()  # the published constants
    assert kept['command'].startswith('python -m rivals.inversion --dataset cifar10')
    r = result(run('DFND-train.py', '--dataset', 'none', '--teacher', 'teacher.pt', '--wild', 'runs/a/images', '--select', 'all',
                   '--steps', 2, '--workers', 0, '--batch_size', 4, '--run', 'student', cwd=folder))
    assert (r['wild'], r['wild_images']) == ('images', 8)


def test_the_same_seed_gives_the_same_images_and_the_losses_fall(folder):
    for name, *flags in (('one', '--seed', 3), ('two', '--seed', 3), ('three', '--seed', 4)):
        invert(folder, '--run', name, '--images', 4, '--iterations', 30, '--lr', 0.1, *flags)
    one, two, three = (pictures(folder, name) for name in ('one', 'two', 'three'))
    assert one == two and one != three
    invert(folder, '--run', 'short', '--images', 4, '--iterations', 1, '--seed', 3)
    first, mean = (read_json_lines(folder / 'runs' / name / 'metrics.jsonl')[0]['loss_bn'] for name in ('short', 'one'))
    assert mean < 0.8 * first


def test_a_killed_inversion_goes_on_to_the_same_images(folder):
    flags = ('--images', 12, '--iterations', 20, '--save_minutes', 0.001)
    whole = result(invert(folder, '--run', 'whole', *flags))
    process = start('-m', 'rivals.inversion', *COMMON, '--run', 'cut', *flags, cwd=folder)
    metrics = folder / 'runs/cut/metrics.jsonl'
    while not metrics.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    shutil.rmtree(folder / 'runs/cut/images', ignore_errors=True)  # they come again where they were not saved
    before = torch.load(folder / 'runs/cut/last.pt', weights_only=True)['step'] if (folder / 'runs/cut/last.pt').exists() else 0
    assert untimed(result(invert(folder, '--run', 'cut', *flags, '--resume'))) == untimed(whole)
    ours, all_of = pictures(folder, 'cut'), pictures(folder, 'whole')
    assert ours.items() <= all_of.items() and len(ours) >= len(all_of) - 4 * (before // 20)
    one, two = ([{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s', 'crc32')}
                 for row in read_json_lines(folder / 'runs' / name / 'metrics.jsonl')] for name in ('whole', 'cut'))
    assert one == two
    (folder / 'runs/cut/result.json').unlink()  # as after a stop behind the last batch
    assert untimed(result(invert(folder, '--run', 'cut', *flags, '--resume'))) == untimed(whole)
    assert whole['agreement'] == pytest.approx(sum(row['agreement'] for row in one) / 3)


def test_adaptive_deepinversion_asks_a_student(folder):
    invert(folder, '--run', 'adaptive', '--images', 4, '--adaptive', 10, '--student', 'teacher.pt')
    row, = read_json_lines(folder / 'runs/adaptive/metrics.jsonl')
    assert row['loss_adaptive'] == pytest.approx(10, rel=1e-3)  # a student that is the teacher agrees everywhere


def test_the_hooks_see_what_the_batch_norms_see(folder):
    teacher = load_teacher(Wanted(str(folder / 'teacher.pt')), 'cifar10', None, torch.device('cpu'), 'off', fold=False)
    seen = watch(teacher)
    x = torch.randn(5, 3, 32, 32)
    teacher.net(x)
    first, norm = teacher.net.conv1(x), teacher.net.bn1
    alone = (first.mean(dim=(0, 2, 3)) - norm.running_mean).norm() + (first.var(dim=(0, 2, 3), unbiased=False) - norm.running_var).norm()
    assert len(seen) == 20 and all(loss > 0 for loss in seen)
    torch.testing.assert_close(seen[0], alone)


def test_a_teacher_without_batch_norm_is_refused_and_says_why(tmp_path):
    write_small_world(tmp_path, wild=1)
    run('teacher-train.py', '--dataset', 'MNIST', '--workers', 0, '--epochs', 1, '--run', 'lenet', cwd=tmp_path)
    line = error(command('-m', 'rivals.inversion', '--dataset', 'MNIST', '--teacher', 'runs/lenet', '--run', 'none', cwd=tmp_path, code=2))
    assert 'batch norm' in line and 'lenet5 has none' in line and not (tmp_path / 'runs/none').exists()


def test_adaptive_without_a_student_is_one_line(folder):
    assert '--adaptive and --student' in error(invert(folder, '--adaptive', 1, '--run', 'none', code=2))


def test_a_student_of_other_images_is_one_line(folder):
    net, facts = load_network(folder / 'teacher.pt')
    save_network(folder / 'other.pt', net, facts | {'std': [0.3] * 3})
    line = error(invert(folder, '--adaptive', 1, '--student', 'other.pt', '--run', 'none', code=2))
    assert 'other.pt' in line and 'std (0.3, 0.3, 0.3) and not (0.2, 0.2, 0.2)' in line


def test_a_stopped_inversion_says_how_to_go_on(folder):
    done = invert(folder, '--run', 'stopped', '--iterations', 10**6, '--max_minutes', 0.05)
    assert 'to go on: python -m rivals.inversion --dataset cifar10' in done.stderr and done.stderr.rstrip().endswith('--resume')
