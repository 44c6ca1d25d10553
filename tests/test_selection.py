"""The score beside a closed form, every way to select beside a plain loop, and what is kept, said and written of a selection."""
import csv
import dataclasses
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from images import error_of, random_images, teacher_of
from torch import nn

import selection
from keep.chosen import write_csv, write_thumbnails
from selection import POWER, SELECT, Rule, Selection, score, score_and_select, select, worth_keeping
from utils import written_aside
from wild import parts
from wild.pool import Pool


class Part:
    """Images in memory, in place of a parts.Part."""

    file = Path(os.devnull) / "none"  # so nothing can be kept beside them

    def __init__(self, images, name='image[{}]'):
        self.images, self.count, self.name = images, len(images), name

    def seal(self):
        return self.images.tobytes()

    def names(self):
        return [self.name.format(i) for i in range(self.count)]


def pool_of(*parts, **how):
    return Pool([Part(images, **how) for images in parts], 'made up')


def first_pixels(**how):
    """A teacher whose logits are an image's first ten pixels: exact at any batch size."""
    return teacher_of(lambda x: x.flatten(1)[:, :10], **how)


@pytest.mark.parametrize('batch_size', [1, 7, 50, 512])
def test_noise_is_the_cross_entropy_against_the_teachers_own_label(batch_size):
    images = np.random.default_rng(0).integers(0, 8, (50, 1, 4, 4), dtype=np.uint8)
    images[7] = 3
    noise, energy, labels = score(first_pixels(), pool_of(images[:20], images[20:]), batch_size)
    assert noise.dtype == energy.dtype == np.float32 and labels.dtype == np.int64
    assert noise[7] == pytest.approx(math.log(10), rel=1e-6)  # uniform logits
    for i, image in enumerate(images):
        logits = [float(v) for v in image.flatten()[:10]]
        assert labels[i] == logits.index(max(logits))
        assert energy[i] == pytest.approx(math.log(sum(math.exp(v) for v in logits)), rel=1e-5)
        assert noise[i] == pytest.approx(energy[i] - max(logits), rel=1e-5, abs=1e-6)
        assert noise[i] == score(first_pixels(), pool_of(images[i : i + 1]))[0][0]  # bit by bit


def test_scores_are_kept_beside_the_images_for_the_same_teacher_alone(tmp_path):
    seen, images = [], random_images(150, 1, 4, 4)
    with written_aside(tmp_path / '000000.npy') as file:
        np.save(file, images)
    pool = Pool([parts.Part(tmp_path / '000000.npy', 150)], 'kept')

    def scores(digest='digest', **how):
        teacher = teacher_of(lambda x: seen.append(len(x)) or x.flatten(1)[:, :10], **how)
        return score(dataclasses.replace(teacher, digest=digest), pool)

    first, again = scores(), scores()
    assert seen == [128, 22] and all(np.array_equal(*pair) for pair in zip(first, again))
    scores(digest='another')
    scores(mean=(0.3,))
    assert seen == 3 * [128, 22]
    for file in tmp_path.glob('*.npz'):
        file.write_bytes(file.read_bytes()[:-30])  # cut off
    assert np.array_equal(scores()[1], first[1]) and seen == 4 * [128, 22]


def test_score_sees_normalised_images_keeps_no_graph_and_counts_what_is_not_finite():
    net, graphs = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), []
    net.register_forward_hook(lambda module, images, logits: graphs.append(logits.requires_grad))
    images = random_images(5, 1, 2, 2)
    noise, *_ = score(teacher_of(net, mean=(0.5,), std=(0.2,), classes=3), pool_of(images))
    assert graphs == [False]
    logits = net((torch.from_numpy(images).float() / 255 - 0.5) / 0.2)
    np.testing.assert_allclose(noise, -logits.softmax(1).max(1).values.log().detach().numpy(), rtol=1e-5)
    images[:] = np.array([1, 0, 1, 0, 0], np.uint8).reshape(5, 1, 1, 1)
    assert '2 of 5' in error_of(score, teacher_of(lambda x: torch.where(x > 0, float('nan'), x).flatten(1)), pool_of(images))


def test_a_teacher_of_one_output_is_told_before_the_rest_of_the_pool_is_scored():
    images, read = random_images(200, 1, 4, 4), []
    parts = [Part(images), Part(images)]
    dead = teacher_of(lambda x: read.append(len(x)) or torch.ones(len(x), 10) * torch.arange(10.0))
    text = error_of(score, dead, Pool(parts, 'made up'))
    assert 'one and the same output' in text and '200' in text and sum(read) <= 400 - 128
    score(dead, pool_of(images[:50]))  # so few may be alike



def slow(noise, labels, num_select, how, num_classes):
    order = sorted(range(len(noise)), key=lambda i: (noise[i], i))
    kept = []
    if how == 'balanced':
        quota = max(1, num_select // num_classes)
        kept = [i for rank, i in enumerate(order) if sum(labels[j] == labels[i] for j in order[:rank]) < quota][:num_select]
    for i in order:
        if len(kept) < num_select and i not in kept:
            kept.append(i)
    return sorted(kept)


def random_pools(count):
    """Yields (a random generator, noise, labels, num_select, num_classes) of small pools."""
    for seed in range(count):
        random = np.random.default_rng(seed)
        count, classes = int(random.integers(1, 70)), int(random.integers(2, 9))
        weight = random.random(classes) ** 4 * (random.random(classes) < 0.8) + 1e-9  # some rare, some empty
        noise = random.random(count).astype(np.float32)
        yield (random, noise.round(1) if seed % 2 else noise,  # ties
               random.choice(classes, count, p=weight / weight.sum()), int(random.integers(1, count + 1)), classes)


@pytest.mark.parametrize('how', ['balanced', 'confidence'])
def test_selection_equals_a_plain_loop_on_random_pools(how):
    for _, noise, labels, num_select, classes in random_pools(200):
        chosen = select(noise, labels, Rule(how, num_select, 0), classes)
        assert chosen.dtype == np.int64 and chosen.tolist() == slow(noise, labels, num_select, how, classes)


def test_balanced_takes_the_same_of_every_class_where_there_is_enough():
    labels = np.repeat(np.arange(10), [100, 20, 30, 40, 50, 60, 70, 80, 90, 20])
    noise = np.random.default_rng(0).random(len(labels)).astype(np.float32) + 5 * (labels == 3)  # class 3 is the noisiest
    assert np.bincount(labels[select(noise, labels, Rule('balanced', 200, 0), 10)]).tolist() == [20] * 10
    assert 3 not in labels[select(noise, labels, Rule('confidence', 200, 0), 10)]
    labels = np.random.default_rng(0).permutation(np.arange(5000) % 1000)
    chosen = select(np.random.default_rng(1).random(5000), labels, Rule('balanced', 3000, 0), 1000)
    assert np.bincount(labels[chosen]).tolist() == [3] * 1000


def test_random_selection_follows_the_seed_alone_and_takes_nothing_twice():
    noise, labels = np.random.default_rng(0).random(1000), np.zeros(1000, np.int64)
    draws = [select(noise, labels, Rule('random', 300, seed), 10) for seed in range(100)]
    assert all((np.diff(draw) > 0).all() and len(draw) == 300 and draw[0] >= 0 and draw[-1] < 1000 for draw in draws)
    assert np.array_equal(select(noise[::-1], labels, Rule('random', 300, 0), 10), draws[0])
    hits = np.bincount(np.concatenate(draws), minlength=1000)
    assert hits.min() >= 10 and hits.max() <= 52  # a fair draw: 30 +- 4.6 each


@pytest.mark.parametrize('how', ['weighted', 'gumbel'])
def test_a_class_is_drawn_in_proportion_to_its_weights_and_by_the_seed_and_the_part_alone(how):
    weights, labels, first = np.log(np.array([1, 2, 4, 8, 1, 1, 1, 1], np.float32)), np.array([0] * 4 + [1] * 4), []
    scores = {'weighted': ((np.log(np.float32(8)) - weights) / POWER, np.zeros(8)), 'gumbel': (np.zeros(8), weights)}[how]
    for seed in range(4000):
        rule = Rule(how, 2, seed)
        chosen = select(rule.keys(*scores), labels, rule, 2)
        assert labels[chosen].tolist() == [0, 1]
        first.append(chosen)
    share = np.bincount(np.concatenate(first), minlength=8) / 4000
    np.testing.assert_allclose(share, [1 / 15, 2 / 15, 4 / 15, 8 / 15, 1 / 4, 1 / 4, 1 / 4, 1 / 4], atol=0.04)  # 5 standard errors
    rule = Rule(how, 2, 0)
    assert np.array_equal(rule.keys(*scores, 3), rule.keys(*scores, 3))
    assert not np.array_equal(rule.keys(*scores, 3), rule.keys(*scores, 4))


@pytest.mark.parametrize('how', sorted({*SELECT} - {'pu'}))  # whose keys its classifier gives
def test_every_rule_has_keys_of_its_own_and_no_other_name_has_any(how):
    random = np.random.default_rng(0)
    noise, energy = random.random(50).astype(np.float32), random.random(50).astype(np.float32)
    keys = {other: Rule(other, 9, 0).keys(noise, energy) for other in SELECT if other != 'pu'}
    same = [other for other in keys if np.array_equal(keys[other], keys[how])]
    assert same in ([how], ['balanced', 'confidence', 'all'], ['class-random', 'random'])  # these differ in what is kept by class
    with pytest.raises(KeyError):
        Rule(f'{how} of mine', 9, 0).keys(noise, energy)


def test_scores_that_another_form_of_the_score_gave_are_not_taken(tmp_path, monkeypatch):
    images = random_images(20, 1, 32, 32)
    parts.save_part(tmp_path, 0, images, [str(i) for i in range(20)])
    kept = Pool([parts.Part(tmp_path / '000000.npy', 20)], 'kept')
    noise = score(first_pixels(), kept)[0]

    def scores_of(teacher, x):
        return torch.ones(len(x)), *original(teacher, x)[1:]

    original = selection.scores_of
    monkeypatch.setattr(selection, 'scores_of', scores_of)
    assert score(first_pixels(), kept)[0].tolist() == [1] * 20 != noise.tolist()


def test_class_random_is_blind_to_the_scores_and_takes_the_same_of_every_class():
    labels, rule = np.repeat(np.arange(4), [100, 40, 30, 30]), Rule('class-random', 80, 0)
    noise = np.linspace(0, 1, 200, dtype=np.float32)
    chosen = select(rule.keys(noise, -noise), labels, rule, 4)
    assert np.bincount(labels[chosen]).tolist() == [20] * 4
    assert np.array_equal(chosen, select(rule.keys(noise[::-1], noise), labels, rule, 4))


@pytest.mark.parametrize('how', SELECT)
def test_a_pool_holds_just_so_many_images(how):
    noise, labels = np.zeros(300), np.zeros(300, np.int64)
    for number in (300, 1, 10**9) if how == 'all' else (300,):
        assert select(noise, labels, Rule(how, number, 0), 10).tolist() == list(range(300))
    if how != 'all':
        text = error_of(select, noise, labels, Rule(how, 301, 0), 10)
        assert 'num_select=301' in text and '300 images' in text


def test_class_weights_facts_and_description_count_chosen_and_pool_by_class():
    def selection_of(labels, pool_counts):
        pool, chosen = pool_of(random_images(len(labels), 1, 32, 32)), np.arange(len(labels))
        return Selection(pool, chosen, np.linspace(0.5, 2, len(labels)), np.array(labels), np.array(pool_counts), 1.55)

    w = selection_of([0] * 9 + [1] * 4 + [3], [0] * 4).class_weights()
    inverse = [1 / 10, 1 / 5, 1 / 1, 1 / 2]  # to the counts, and scaled to sum to the classes
    torch.testing.assert_close(w, torch.tensor([4 * v / sum(inverse) for v in inverse]))
    assert w.dtype == torch.float32
    selection = selection_of([0, 1, 2], [1, 2, 2, 0])
    text = '\n'.join(selection.describe(('cat', 'dog', 'ship', 'frog')))
    assert '3 of 5' in text and '2.0000' in text and '1.5500' in text  # the threshold; the pool's mean
    assert 'copies' not in text
    assert text.split('class  ')[1].split() == ['cat', '1/1', 'dog', '1/2', 'ship', '1/2', 'frog', '0/0']
    assert selection.facts() == {'wild': selection.pool.name, 'wild_images': 5, 'selected_per_class': [1, 1, 1, 0], 'pool_noise': 1.55,
                                 'noise': 1.25, 'noise_max': 2.0}


def test_copies_of_an_image_are_said():
    images = random_images(150, 1, 32, 32)[[*range(150), *[3] * 59, 140]]  # sixty of one, and two of another
    selection = Selection(pool_of(images), np.arange(210), np.ones(210), np.zeros(210, int), np.array([300]), 1.0)
    assert selection.copies() == 60 and any(line.startswith('60 of the selected images are copies') for line in selection.describe(['cat']))
    some = selection._replace(chosen=np.array([0, 3, 200]), noise=np.ones(3), labels=np.zeros(3, int))
    assert some.copies() == 1


def test_a_kept_selection_is_found_again_but_not_for_other_images(tmp_path):
    images, teacher, rule = random_images(40, 1, 32, 32), first_pixels(std=(0.1,)), Rule('balanced', 15, 0)
    noise, _, labels = score(teacher, pool_of(images))
    chosen = select(noise, labels, rule, 10)
    for scorer in (teacher, teacher_of(None)):  # the second has no network that it could score with
        selection = score_and_select(tmp_path, pool_of(images), scorer, rule)
        assert np.array_equal(selection.chosen, chosen) and np.array_equal(selection.noise, noise[chosen])
        assert np.array_equal(selection.labels, labels[chosen]) and np.array_equal(selection.pool_counts, np.bincount(labels, minlength=10))
        assert selection.pool_noise == pytest.approx(noise.mean()) and np.array_equal(selection.pool.take(chosen), images[chosen])
    assert sorted(os.listdir(tmp_path)) == ['selection.csv', 'selection.npz', 'thumbnails.npz']
    moved = score_and_select(tmp_path, pool_of(images, name='another[{}]'), teacher, rule)
    assert np.array_equal(moved.chosen, chosen)
    for other in (pool_of(255 - images), pool_of(images[:-1]), pool_of(images[::-1]), pool_of(images[..., ::-1])):
        text = error_of(score_and_select, tmp_path, other, teacher, rule)
        assert '--run NAME' in text and str(tmp_path / 'selection.csv') in text


def test_a_kept_selection_goes_on_in_a_pool_that_gained_what_could_not_be_read(tmp_path):
    images, teacher, rule = random_images(60, 1, 32, 32), first_pixels(std=(0.1,)), Rule('balanced', 15, 0)
    one, two, more = Part(images[:20], 'a{}'), Part(images[20:40], 'c{}'), Part(images[40:], 'b{}')
    kept = score_and_select(tmp_path, Pool([one, two], 'at first'), teacher, rule)
    for now in ([one, more, two], [one, two, more], [more, one, two]):
        again = score_and_select(tmp_path, Pool(now, 'later'), teacher, rule)
        assert np.array_equal(again.pool.take(again.chosen), images[kept.chosen]) and np.array_equal(again.noise, kept.noise)
        assert again.pool_counts.sum() == 40 and again.counts.tolist() == kept.counts.tolist()
    for now in ([two, more, one], [one, more], [one, Part(images[20:40][..., ::-1], 'c{}'), more]):
        assert '--run NAME' in error_of(score_and_select, tmp_path, Pool(now, 'others'), teacher, rule)
    os.remove(tmp_path / 'selection.csv')
    assert '--run NAME' in error_of(score_and_select, tmp_path, Pool([one, more, two], 'no list'), teacher, rule)


@pytest.mark.parametrize('name', ['photos/a "{}", b.png', pytest.param(os.fsdecode(b'caf\xe9{}.png'), marks=pytest.mark.skipif(
    sys.platform != 'linux', reason='names of any bytes are Linux'))])
def test_the_csv_holds_every_image_of_the_pool(name, tmp_path):
    noise, labels = np.array([0.123456789, 2e-8, 3.5], np.float32), np.array([3, 1, 9])
    write_csv(tmp_path / 'selection.csv', pool_of(np.zeros((3, 1, 2, 2), np.uint8), name=name), noise, labels, np.array([0, 2]))
    with open(tmp_path / 'selection.csv', newline='', encoding='utf-8', errors='surrogateescape') as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ['image', 'noise', 'pseudo_label', 'chosen']
    assert [r['image'] for r in rows] == [name.format(i) for i in range(3)]
    np.testing.assert_allclose([float(r['noise']) for r in rows], noise, rtol=1e-5)
    assert [int(r['pseudo_label']) for r in rows] == labels.tolist() and [r['chosen'] for r in rows] == ['1', '0', '1']


@pytest.mark.parametrize('channels', [1, 3])
def test_thumbnails_are_the_extremes_of_the_most_predicted_classes(channels, tmp_path):
    random = np.random.default_rng(0)
    images, noise = random_images(400, channels, 4, 4), random.random(400).astype(np.float32)
    share = [0.14, 0.01, 0.14, 0.13, 0.02, 0.12, 0.1, 0.1, 0.09, 0.08, 0.04, 0.03]
    labels = random.choice(12, 400, p=share)
    chosen = np.flatnonzero(noise < 0.5)
    write_thumbnails(tmp_path / 't.npz', pool_of(images), noise, labels, tuple('abcdefghijkl'), chosen)
    content = np.load(tmp_path / 't.npz')
    assert content['class_names'].tolist() == list('abcdefghijkl')
    common = sorted(np.argsort(-np.bincount(labels))[:10])
    for kind, sign in (('clean', 1), ('noisy', -1)):
        rows = []
        for c in common:
            rows += sorted((i for i in range(400) if labels[i] == c), key=lambda i: sign * noise[i])[:4]
        assert len(rows) == 40 and np.array_equal(content[f'{kind}_images'], images[rows].transpose(0, 2, 3, 1))
        assert content[f'{kind}_labels'].tolist() == labels[rows].tolist() and content[f'{kind}_noise'].tolist() == noise[rows].tolist()
    for kind, mine in (('chosen', noise < 0.5), ('left', noise >= 0.5)):
        rows = [i for c in common for i in np.flatnonzero(mine & (labels == c))[:4]]
        assert np.array_equal(content[f'{kind}_images'], images[rows].transpose(0, 2, 3, 1))
    one_class = np.array([0.5, 0.1]), np.array([3, 3]), tuple('0123456789')
    write_thumbnails(tmp_path / 't.npz', pool_of(images[:2]), *one_class, np.array([0, 1]))
    content = np.load(tmp_path / 't.npz')
    assert content['clean_noise'].tolist() == [0.1, 0.5] and content['noisy_noise'].tolist() == [0.5, 0.1]
    assert len(content['left_images']) == 0


def test_worth_keeping_is_the_effective_number_of_images():
    labels = np.array([0] * 40 + [1] * 400 + [3])
    assert worth_keeping(np.full(441, 2.5, np.float32), labels) == 441  # sure of none, but of all alike: the whole pool
    noise = np.where(np.arange(441) % 40 < 2, 0, 5).astype(np.float32)  # sure of 2 of class 0, 20 of class 1; of class 3 there is one
    assert worth_keeping(noise, labels) == 2 + 20 + 1
    noise[:40] = -np.log(np.where(np.arange(40) < 1, 1, 0.5))  # 39 of class 0 at half the confidence: weights of 1 / 1,024
    share = np.array([1] + [2.0**-POWER] * 39) / (1 + 39 * 2.0**-POWER)
    assert worth_keeping(noise, labels) == round(math.exp(-(share * np.log(share)).sum()) + 20 + 1)
