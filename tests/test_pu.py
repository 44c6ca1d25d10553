"""PU-compression: the labelled share, the classifier, the weights of the robust distillation, and the script that has them."""

from types import SimpleNamespace

import pytest
import torch
from images import write_small_world
from scripts import ROOT, command, error, result, run, untimed, weights

from rivals import pu
from utils import read_json, read_json_lines

COMMON = ('--dataset', 'MNIST', '--teacher', 'runs/teacher', '--wild', 'wild', '--workers', 0, '--batch_size', 16, '--steps', 6)
PU = (*COMMON, '--select', 'pu', '--labelled', 0.1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A small MNIST, a teacher of it and 200 wild images."""
    folder = tmp_path_factory.mktemp('pu')
    write_small_world(folder, wild=200)
    run('teacher-train.py', '--dataset', 'MNIST', '--workers', 0, '--epochs', 1, '--run', 'teacher', cwd=folder)
    return folder


def test_the_labelled_share_is_the_same_of_every_class_and_another_by_another_seed():
    labels = torch.arange(1000) % 10
    rows = pu.labelled_rows(labels, 10, 0.02, 0)
    assert torch.bincount(labels[rows]).tolist() == [2] * 10 and rows.tolist() == sorted(rows.tolist())
    assert torch.equal(rows, pu.labelled_rows(labels, 10, 0.02, 0)) and not torch.equal(rows, pu.labelled_rows(labels, 10, 0.02, 1))
    assert len(pu.labelled_rows(labels, 10, 1e-6, 0)) == 10


def test_the_head_finds_the_positives_that_hide_in_the_unlabelled():
    g = torch.Generator().manual_seed(0)
    centre = torch.randn(16, generator=g, dtype=torch.float64)
    positive = torch.randn(100, 16, generator=g, dtype=torch.float64) + centre
    hidden = torch.randn(200, 16, generator=g, dtype=torch.float64) + centre
    others = torch.randn(800, 16, generator=g, dtype=torch.float64) - centre
    unlabelled = torch.cat([hidden, others])
    found, again = (pu.train_head(positive, unlabelled, 0.2, 0)(unlabelled) > 0 for _ in range(2))
    assert found[:200].float().mean() > 0.9 and found[200:].float().mean() < 0.1 and torch.equal(found, again)


def test_the_robust_weights_lift_rare_classes():
    logits = torch.tensor([[5.0, 0.0, 0.0]] * 6 + [[0.0, 5.0, 0.0]] * 3 + [[0.0, 0.0, 5.0]])
    teacher = SimpleNamespace(logits=lambda rows: logits[rows.flatten().long()], device=torch.device('cpu'))
    w = pu.robust_weights(teacher, torch.arange(10, dtype=torch.uint8).view(10, 1), 0)
    inverse = 1 / torch.softmax(logits, dim=1).sum(dim=0)
    torch.testing.assert_close(w[:, 0], inverse / inverse.sum() * 3)
    noise = w[:, 1] - w[:, 0]
    assert noise.gt(0).all() and noise.lt(0.1).all() and len(noise.unique()) == 3


def test_the_script_learns_from_labelled_and_found_images_and_says_so(folder):
    done = run('DFND-train.py', *PU, cwd=folder)
    r = result(done)
    labelled, found = r['labelled_images'], sum(r['selected_per_class'])
    assert (r['method'], r['select'], r['loss'], r['run']) == ('pu-compression', 'pu', 'rkd', 'MNIST-pu-compression-lenet5half-w3-s0')
    assert labelled > 0 < found and r['num_select'] == labelled + found
    kept = read_json(folder / 'runs' / r['run'] / 'config.json')['settings']
    assert (kept['labelled'], kept['prior']) == (0.1, 0.21)  # the published prior
    rows = read_json_lines(folder / 'runs' / r['run'] / 'metrics.jsonl')
    assert all(row['loss'] == row['loss_kd'] > 0 for row in rows)
    fewer = result(run('DFND-train.py', *PU, '--num_select', labelled + 5, '--run', 'fewer', cwd=folder))
    assert sum(fewer['selected_per_class']) == 5 and fewer['num_select'] == labelled + 5


def test_score_only_then_resume_and_another_run_keep_the_selection(folder):
    run('DFND-train.py', *PU, '--run', 'once', cwd=folder)
    assert result(run('DFND-train.py', *PU, '--run', 'twice', '--score_only', cwd=folder))['top1'] is None
    r = result(run('DFND-train.py', *PU, '--run', 'twice', '--resume', cwd=folder))
    assert untimed(r) == untimed(read_json(folder / 'runs/once/result.json'))
    one, two = (folder / 'runs' / name for name in ('once', 'twice'))
    assert (one / 'selection.csv').read_bytes() == (two / 'selection.csv').read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(one / 'student.pt').values(), weights(two / 'student.pt').values()))


def test_two_processes_find_the_same_images(folder):
    command('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2, '--', ROOT / 'DFND-train.py', *PU, '--run', 'both',
            cwd=folder)
    run('DFND-train.py', *PU, '--run', 'alone', cwd=folder)
    one, two = (folder / 'runs' / name for name in ('both', 'alone'))
    assert (one / 'selection.csv').read_bytes() == (two / 'selection.csv').read_bytes()
    rows = [read_json_lines(path / 'metrics.jsonl')[0]['loss'] for path in (one, two)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_the_published_recipe(folder):
    run('DFND-train.py', *PU, '--recipe', 'pu', '--run', 'published', '--score_only', cwd=folder)
    kept = read_json(folder / 'runs/published/config.json')['settings']
    expected = dict(select='pu', loss='rkd', T=1.0, T_power=1, optimizer='sgd', lr=0.1, milestones=[0.25, 0.5, 0.75], augment=True)
    assert kept.items() >= expected.items() and kept['num_select'] < 10**6


@pytest.mark.parametrize('recipe', ['released', 'first-upload'])
def test_the_published_recipes_of_dfnd_give_way_where_pu_has_its_own(folder, recipe):
    run('DFND-train.py', *PU, '--recipe', recipe, '--num_select', 40, '--run', recipe, '--score_only', cwd=folder)
    kept = read_json(folder / 'runs' / recipe / 'config.json')['settings']
    assert kept['loss'] == 'rkd' and kept['wild_norm'] == 'teacher' and kept['class_weights'] is False


@pytest.mark.parametrize('args, parts', [
    ((*PU, '--stream', '--num_select', 20), ('--stream', '--select pu')),
    ((*COMMON, '--labelled', 0.1), ('--labelled', '--select pu')),
    ((*COMMON, '--prior', 0.1), ('--prior', '--select pu')),
    ((*PU, '--prior', 1.5), ('--prior', '1.5')),
    ((*PU, '--wild_norm', 'imagenet'), ('--wild_norm imagenet',)),
    ((*PU, '--class_weights'), ('--class_weights', 'rkd')),
    ((*PU, '--num_select', 3), ('num_select=3', '--labelled')),
    ((*COMMON[:-4], '--transfer_set', 'original', '--loss', 'rkd'), ('original',)),
    (('--dataset', 'none', *PU[2:]), ('--dataset',)),
    ((*COMMON, '--loss', 'ce', '--T_power', 0), ('--T_power', '--loss ce')),
])
def test_mistakes_are_one_line(folder, args, parts):
    line = error(run('DFND-train.py', *args, '--run', 'none', cwd=folder, code=2))
    assert all(part in line for part in parts), line
    assert not (folder / 'runs/none').exists()
