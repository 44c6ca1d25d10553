"""The score beside a closed form, every way to select beside a plain loop, and what the report reads of it."""
import csv
import math
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from selection import SELECT, class_weights, describe, score, select, write_csv, write_thumbnails
from utils import UserError
from wild import Pool

CPU = torch.device('cpu')


class Part:
    """Images in memory, in place of a decode.Part."""

    def __init__(self, images, name):
        self.images, self.count, self.name = images, len(images), name

    def names(self):
        return [self.name.format(i) for i in range(self.count)]


def pool_of(images, name='image[{}]'):
    return Pool([Part(images, name)], 'made up')


class FirstPixels(nn.Module):
    """A teacher whose logits are an image's first pixels: exact at any batch size."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return x.flatten(1)[:, : self.classes]


def plain(images):
    return images.float()


# ---------------------------------------------------------------- score


def test_noise_is_the_cross_entropy_against_the_teachers_own_label():
    images = np.random.default_rng(0).integers(0, 8, (50, 1, 4, 4), dtype=np.uint8)
    images[7] = 3
    noise, labels = score(FirstPixels(10), pool_of(images), plain, CPU, 'off')
    assert noise.dtype == np.float32 and labels.dtype == np.int64
    assert noise[7] == pytest.approx(math.log(10), rel=1e-6)  # uniform logits
    for image, n, label in zip(images, noise, labels):
        logits = [float(v) for v in image.flatten()[:10]]
        assert label == logits.index(max(logits))
        assert n == pytest.approx(math.log(sum(math.exp(v) for v in logits)) - max(logits), rel=1e-5)


@pytest.mark.parametrize('batch_size', [1, 7, 50, 512])
def test_score_does_not_depend_on_the_batch_size(batch_size):
    images = np.random.default_rng(1).integers(0, 8, (50, 1, 4, 4), dtype=np.uint8)
    noise, labels = score(FirstPixels(10), pool_of(images), plain, CPU, 'off', batch_size)
    for i in range(50):
        n, label = score(FirstPixels(10), pool_of(images[i : i + 1]), plain, CPU, 'off')
        assert (noise[i], labels[i]) == (n[0], label[0])


def test_score_sees_normalised_images_and_keeps_no_graph():
    teacher, graphs = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), []
    teacher.register_forward_hook(lambda module, images, logits: graphs.append(logits.requires_grad))
    images = np.random.default_rng(1).integers(0, 256, (5, 1, 2, 2), dtype=np.uint8)
    noise, _ = score(teacher, pool_of(images), lambda x: x.float() / 255 - 0.5, CPU, 'off')
    assert graphs == [False]
    logits = teacher(torch.from_numpy(images).float() / 255 - 0.5)
    np.testing.assert_allclose(noise, -logits.softmax(1).max(1).values.log().detach().numpy(), rtol=1e-5)


def test_a_noise_that_is_not_finite_is_an_error_that_counts():
    images = np.zeros((6, 1, 4, 4), np.uint8)
    images[[1, 4]] = 1
    with pytest.raises(UserError) as error:
        score(FirstPixels(10), pool_of(images), lambda x: torch.where(x == 1, float('nan'), x.float()), CPU, 'off')
    assert '2 of 6' in str(error.value) and '\n' not in str(error.value)


# ---------------------------------------------------------------- select


def slow(noise, labels, num_select, how, num_classes):
    order = sorted(range(len(noise)), key=lambda i: (noise[i], i))
    kept = []
    if how == 'balanced':
        for c in range(num_classes):
            kept += [i for i in order if labels[i] == c][: num_select // num_classes]
    for i in order:
        if len(kept) < num_select and i not in kept:
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize('how', ['balanced', 'confidence'])
def test_selection_equals_a_plain_loop_on_random_pools(how):
    for seed in range(200):
        random = np.random.default_rng(seed)
        count, classes = int(random.integers(1, 60)), int(random.integers(2, 9))
        weight = random.random(classes) ** 4 * (random.random(classes) < 0.8) + 1e-9  # some rare, some empty
        labels = random.choice(classes, count, p=weight / weight.sum())
        noise = random.random(count).astype(np.float32)
        if seed % 2:
            noise = noise.round(1)  # ties
        num_select = int(random.integers(1, count + 1))
        chosen = select(noise, labels, num_select, how, classes, seed=seed)
        assert chosen.dtype == np.int64 and chosen.tolist() == slow(noise, labels, num_select, how, classes), seed


def test_balanced_takes_the_same_of_every_class_where_there_is_enough():
    labels = np.repeat(np.arange(10), [100, 20, 30, 40, 50, 60, 70, 80, 90, 20])
    noise = np.random.default_rng(0).random(len(labels)).astype(np.float32) + 5 * (labels == 3)  # class 3 is the noisiest
    chosen = select(noise, labels, 200, 'balanced', 10, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [20] * 10
    assert 3 not in labels[select(noise, labels, 200, 'confidence', 10, seed=0)]


def test_a_thousand_classes_are_balanced_too():
    labels = np.random.default_rng(0).permutation(np.arange(5000) % 1000)
    chosen = select(np.random.default_rng(1).random(5000), labels, 3000, 'balanced', 1000, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [3] * 1000


def test_random_selection_follows_the_seed_alone_and_takes_nothing_twice():
    noise, labels = np.random.default_rng(0).random(1000), np.zeros(1000, np.int64)
    chosen = select(noise, labels, 300, 'random', 10, seed=0)
    assert len(set(chosen.tolist())) == 300 and chosen.min() >= 0 and chosen.max() < 1000 and (np.diff(chosen) > 0).all()
    assert np.array_equal(select(noise[::-1], labels, 300, 'random', 10, seed=0), chosen)
    assert not np.array_equal(select(noise, labels, 300, 'random', 10, seed=1), chosen)
    hits = np.zeros(1000)
    for seed in range(100):
        hits[select(noise, labels, 300, 'random', 10, seed=seed)] += 1
    assert hits.min() >= 10 and hits.max() <= 52  # a fair draw: 30 +- 4.6 each


def test_all_is_all_whatever_the_number():
    for num_select in (1, 5, 10**9):
        assert select(np.zeros(5), np.zeros(5, np.int64), num_select, 'all', 10, seed=0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('how', [h for h in SELECT if h != 'all'])
def test_more_than_the_pool_holds_is_an_error_that_names_both_numbers(how):
    noise, labels = np.zeros(300), np.zeros(300, np.int64)
    with pytest.raises(UserError) as error:
        select(noise, labels, 301, how, 10, seed=0)
    assert 'num_select=301' in str(error.value) and '300 images' in str(error.value) and '\n' not in str(error.value)
    assert select(noise, labels, 300, how, 10, seed=0).tolist() == list(range(300))


def test_class_weights_are_inverse_to_the_counts_and_sum_to_the_classes():
    w = class_weights(np.array([0] * 9 + [1] * 4 + [3]), 4)
    inverse = [1 / 10, 1 / 5, 1 / 1, 1 / 2]
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, torch.tensor([4 * v / sum(inverse) for v in inverse]))
    assert class_weights(np.random.default_rng(0).integers(0, 100, 999), 100).sum().item() == pytest.approx(100, rel=1e-6)


# ---------------------------------------------------------------- what is said and written


def test_the_description_counts_chosen_and_pool_by_class():
    noise, labels = np.array([0.5, 0.25, 1.0, 2.0, 4.0]), np.array([0, 1, 1, 2, 2])
    chosen = np.array([0, 1, 3])
    text = '\n'.join(describe(noise[chosen], labels[chosen], np.array([1, 2, 2, 0]), 1.55, ('cat', 'dog', 'ship', 'frog')))
    assert 'selected 3 of 5' in text and '2.0000' in text and '1.5500' in text  # the threshold; the pool's mean
    assert text.split('class  ')[1].split() == ['cat', '1/1', 'dog', '1/2', 'ship', '1/2', 'frog', '0/0']


def test_the_csv_holds_every_image_of_the_pool(tmp_path):
    noise, labels = np.array([0.123456789, 2e-8, 3.5], np.float32), np.array([3, 1, 9])
    pool = pool_of(np.zeros((3, 1, 2, 2), np.uint8), 'photos/a "{}", b.png')
    write_csv(tmp_path / 'selection.csv', pool, noise, labels, np.array([0, 2]))
    with open(tmp_path / 'selection.csv', newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ['image', 'noise', 'pseudo_label', 'chosen']
    assert [r['image'] for r in rows] == [f'photos/a "{i}", b.png' for i in range(3)]
    np.testing.assert_allclose([float(r['noise']) for r in rows], noise, rtol=1e-5)
    assert [int(r['pseudo_label']) for r in rows] == labels.tolist() and [r['chosen'] for r in rows] == ['1', '0', '1']
    assert os.listdir(tmp_path) == ['selection.csv']


@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes are Linux')
def test_the_csv_takes_a_file_name_that_is_no_utf8(tmp_path):
    pool = pool_of(np.zeros((2, 1, 2, 2), np.uint8), os.fsdecode(b'caf\xe9{}.png'))
    write_csv(tmp_path / 'selection.csv', pool, np.zeros(2), np.zeros(2, np.int64), np.array([0]))
    assert len((tmp_path / 'selection.csv').read_bytes().splitlines()) == 3


@pytest.mark.parametrize('channels', [1, 3])
def test_thumbnails_are_the_extremes_of_the_most_predicted_classes(channels, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (200, channels, 4, 4), dtype=np.uint8)
    labels = random.choice(6, 200, p=[0.3, 0.01, 0.3, 0.2, 0.04, 0.15])
    noise = random.random(200).astype(np.float32)
    names = ('a', 'b', 'c', 'd', 'e', 'f')
    write_thumbnails(tmp_path / 't.npz', pool_of(images), noise, labels, names, per_class=3, classes=4)
    content = np.load(tmp_path / 't.npz')
    assert content['class_names'].tolist() == list(names)
    for kind, sign in (('clean', 1), ('noisy', -1)):
        rows = []
        for c in (0, 2, 3, 5):  # not 1 and 4, the rare ones
            rows += sorted((i for i in range(200) if labels[i] == c), key=lambda i: sign * noise[i])[:3]
        assert np.array_equal(content[f'{kind}_images'], images[rows].transpose(0, 2, 3, 1))
        assert content[f'{kind}_labels'].tolist() == labels[rows].tolist() and content[f'{kind}_noise'].tolist() == noise[rows].tolist()


def test_thumbnails_of_a_pool_with_a_single_class(tmp_path):
    pool = pool_of(np.zeros((2, 1, 4, 4), np.uint8))
    write_thumbnails(tmp_path / 't.npz', pool, np.array([0.5, 0.1]), np.array([3, 3]), tuple('0123456789'))
    content = np.load(tmp_path / 't.npz')
    assert content['clean_noise'].tolist() == [0.1, 0.5] and content['noisy_noise'].tolist() == [0.5, 0.1]
