"""--stream: what is chosen in passing is what would be chosen from the whole pool, and little is kept."""
import csv
import itertools
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from images import error_of, pixels, write_images, write_mnist
from PIL import Image
from scripts import error, result, run
from test_selection import random_pools, slow

import distributed
from data import DATASETS
from networks import build, save_network
from own import estimate
from selection import Rule, lowest_first, select
from utils import read_json_lines
from wild import decode, demo, pool, stream
from wild.pool import Passing
from wild.reading import Skip
from wild.stream import Candidates, Journal


def feed(kept, noise, labels, sizes, own=lambda number: True):
    """The energy is taken to be minus the noise."""
    images = np.arange(len(noise), dtype=np.uint32).view(np.uint8).reshape(-1, 1, 2, 2)  # an image is its own number
    start = 0
    for number, size in enumerate(sizes):
        part = slice(start, start + size)
        if own(number) and size:
            kept.add(number, images[part], [f'image {i}' for i in range(*part.indices(len(noise)))],
                     (noise[part], -noise[part], labels[part]))
        start += size
    kept.clear()


def numbers(pool):
    return pool.take(np.arange(len(pool))).numpy().reshape(len(pool), 4).copy().view(np.uint32).ravel().tolist()


def merged(kept, folder):
    return stream.opened(folder / 'selected', *stream.merge(kept, folder))


@pytest.mark.parametrize('how', ['balanced', 'confidence'])
def test_a_stream_gives_the_selection_of_the_whole_pool(how, tmp_path):
    for random, noise, labels, num_select, classes in random_pools(100):
        rule = Rule(how, num_select, 0)
        kept = Candidates(rule, classes)
        kept.capacity = 2 * num_select + int(random.integers(1, 20))  # cleared often
        cuts = np.sort(random.integers(0, len(noise) + 1, random.integers(0, 6)))
        feed(kept, noise, labels, np.diff([0, *cuts, len(noise)]))
        selection = merged(kept, tmp_path)
        chosen = numbers(selection.pool)
        assert chosen == select(noise, labels, rule, classes).tolist() == slow(noise, labels, num_select, how, classes)
        assert list(selection.pool.names()) == [f'image {i}' for i in chosen]
        assert np.array_equal(selection.noise, noise[chosen]) and np.array_equal(selection.labels, labels[chosen])
        assert selection.pool_counts.tolist() == np.bincount(labels, minlength=classes).tolist()
        assert selection.pool_noise == pytest.approx(noise.mean(), rel=1e-5)


@pytest.mark.parametrize('how', ['weighted', 'gumbel', 'class-random'])
def test_a_stream_draws_what_the_kept_pool_draws_part_by_part(how, tmp_path):
    for random, noise, labels, num_select, classes in random_pools(30):
        kept = Candidates(Rule(how, num_select, 1), classes)
        kept.capacity = 2 * num_select + int(random.integers(1, 20))
        sizes = np.diff([0, *np.sort(random.integers(1, len(noise), 3)), len(noise)]) if len(noise) > 1 else [1]
        sizes = [size for size in sizes if size]
        feed(kept, noise, labels, sizes)
        ends = np.cumsum(sizes)
        keys = [kept.rule.keys(noise[end - size : end], -noise[end - size : end], i) for i, (size, end) in enumerate(zip(sizes, ends))]
        assert numbers(merged(kept, tmp_path).pool) == select(np.concatenate(keys), labels, kept.rule, classes).tolist()


@pytest.mark.parametrize('how', ['balanced', 'confidence', 'random', 'weighted'])
def test_what_is_kept_does_not_grow_with_the_stream(how):
    """One class is the cleanest by far, so that the others' best are kept beside it."""
    random = np.random.default_rng(0)
    images = np.zeros((1000, 1, 32, 32), np.uint8)
    tracemalloc.start()
    kept, most = Candidates(Rule(how, 10_000, 0), 10), 0
    for number in range(100):
        labels = random.integers(0, 10, 1000)
        noise = (random.random(1000) + (labels > 0)).astype(np.float32)
        kept.add(number, images, ['x'] * 1000, (noise, -noise, labels))
        most = max(most, kept.count)
    kept.clear()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most > 24_000
    if how == 'weighted':  # by class too, but by chance
        assert 10_000 < len(kept.table()[0]) <= 19_000
    else:
        assert len(kept.table()[0]) == (19_000 if how == 'balanced' else 10_000)
    assert peak < 1.3 * 25_000 * images[0].nbytes
    assert kept.counts.sum() == 100_000


def test_a_selection_that_memory_does_not_hold_is_refused_before_it_is_filled(monkeypatch):
    monkeypatch.setattr(stream, 'free_memory', lambda device: 10**9)
    part = 0, np.zeros((2, 3, 224, 224), np.uint8), ['a', 'b'], (np.zeros(2, np.float32),) * 2 + (np.zeros(2, int),)
    text = error_of(Candidates(Rule('balanced', 5000, 0), 10).add, *part)
    assert '--num_select 5000' in text and '2.1 GB' in text
    Candidates(Rule('balanced', 50, 0), 10).add(*part)


def test_random_is_a_fair_draw_that_the_seed_decides(tmp_path):
    def draw(seed):
        kept = Candidates(Rule('random', 100, seed), 10)
        feed(kept, np.zeros(400, np.float32), np.zeros(400, np.int64), [100] * 4)
        return numbers(merged(kept, tmp_path).pool)

    draws = [draw(seed) for seed in range(100)]
    assert draw(0) == draws[0] and all(len(set(chosen)) == 100 for chosen in draws)
    hits = np.bincount(np.concatenate(draws), minlength=400)
    assert hits.min() >= 6 and hits.max() <= 46  # 25 +- 4.3 each


def test_shares_of_two_processes_are_merged_in_the_streams_order(tmp_path, monkeypatch):
    """As torchrun would have it, a process after the other."""
    random = np.random.default_rng(3)
    noise, labels, sizes = random.random(500).round(2).astype(np.float32), random.integers(0, 5, 500), [120, 80, 200, 100]
    monkeypatch.setattr(distributed, 'world', lambda: 2)
    for rank in (1, 0):
        kept = Candidates(Rule('balanced', 150, 0), 5)
        feed(kept, noise, labels, sizes, own=lambda number, rank=rank: number % 2 == rank)
        stream.write_candidates(kept, tmp_path, rank)
    selected = stream.select_from_candidates(kept, tmp_path, tmp_path / 'selected')
    assert numbers(stream.opened(tmp_path / 'selected', *selected).pool) == select(noise, labels, kept.rule, 5).tolist()


def journal_of(kept, folder):
    return Journal(folder, kept, SimpleNamespace(digest='it', mean=(0,), std=(1,), amp='off'), SimpleNamespace(size=2, channels=1))


@pytest.mark.parametrize('how', ['balanced', 'confidence', 'weighted', 'random'])
def test_a_stream_that_is_stopped_goes_on_to_the_same_selection_by_any_number_of_processes(how, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, 'on_first', lambda function, *a: function(*a))
    for random, noise, labels, num_select, classes in random_pools(12):
        rule, folder = Rule(how, num_select, 0), tmp_path / str(len(os.listdir(tmp_path)))
        cuts = np.sort(random.integers(0, len(noise) + 1, 8))
        spans = [slice(*span) for span in itertools.pairwise([0, *cuts, len(noise)])]
        images, capacity = np.arange(len(noise), dtype=np.uint32).view(np.uint8).reshape(-1, 1, 2, 2), int(random.integers(1, 9))
        capacity += 2 * num_select
        for world in (2, 1, 3, 1):
            crew = []
            for rank in range(world):
                monkeypatch.setattr(distributed, 'world', lambda world=world: world)
                monkeypatch.setattr(distributed, 'rank', lambda rank=rank: rank)
                kept = Candidates(rule, classes)
                kept.capacity = capacity
                crew.append((kept, journal_of(kept, folder)))
            for rank, (kept, journal) in enumerate(crew):
                assert set(journal.seen) == set(crew[0][1].seen)
                mine = [n for n in range(rank, len(spans), world) if n not in journal.seen and spans[n].start < spans[n].stop]
                for number in mine[: int(random.integers(0, 3)) if world > 1 or crew[0][1].seen == {} else None]:
                    names = [f'image {i}' for i in range(len(noise))[spans[number]]]
                    scores = noise[spans[number]], -noise[spans[number]], labels[spans[number]]
                    part = Passing(number, images[spans[number]], names, [Skip(f'bad {number}', 'is empty')], 'source')
                    kept.skipped += part.skipped
                    journal.keep(part, *kept.add(number, part.images, names, scores))
        for number in set(range(len(spans))) - set(journal_of(Candidates(rule, classes), folder).seen):  # where little was seen before
            names = [f'image {i}' for i in range(len(noise))[spans[number]]]
            kept.skipped += [Skip(f'bad {number}', 'is empty')]
            kept.add(number, images[spans[number]], names, (noise[spans[number]], -noise[spans[number]], labels[spans[number]]))
        kept.clear()
        assert sorted(kept.skipped) == [Skip(f'bad {number}', 'is empty') for number in range(len(spans))]
        keys = np.concatenate([rule.keys(noise[span], -noise[span], number) for number, span in enumerate(spans)])
        expected = lowest_first(keys)[:num_select] if how == 'random' else select(keys, labels, rule, classes)
        selection = merged(kept, tmp_path / 'merged')
        assert numbers(selection.pool) == sorted(expected.tolist()) and selection.pool_counts.sum() == len(noise)
        assert list(selection.pool.names()) == [f'image {i}' for i in numbers(selection.pool)]
        assert len(os.listdir(folder)) <= len(spans)


def test_a_journal_is_not_taken_for_another_teacher_and_what_is_damaged_is_seen_again(tmp_path):
    rule, part = Rule('balanced', 2, 0), Passing(0, np.zeros((3, 1, 2, 2), np.uint8), ['a', 'b', 'c'], [], 'source')
    kept = Candidates(rule, 2)
    journal_of(kept, tmp_path / 'x').keep(part, *kept.add(0, part.images, part.names, (np.ones(3, np.float32),) * 2 + (np.zeros(3, int),)))
    assert journal_of(Candidates(rule, 2), tmp_path / 'x').seen == {0: 'source'}
    data = bytearray((file := next((tmp_path / 'x').iterdir())).read_bytes())
    data[len(data) // 2] ^= 1
    shutil.copytree(tmp_path / 'x', tmp_path / 'y')
    (tmp_path / 'y' / file.name).write_bytes(data)
    assert journal_of(Candidates(rule, 2), tmp_path / 'y').seen == {}
    assert journal_of(Candidates(Rule('balanced', 3, 0), 2), tmp_path / 'x').seen == {}
    assert not os.listdir(tmp_path / 'x') and not os.listdir(tmp_path / 'y')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A teacher, test data, and a folder of wild images at several depths, one of them broken."""
    folder = tmp_path_factory.mktemp('stream')
    write_mnist(folder / 'data' / 'MNIST' / 'raw')
    torch.manual_seed(0)
    net = build('lenet5', 6, 10, 1)
    save_network(folder / 'teacher.pt', net, {**DATASETS['MNIST'].facts('MNIST', 'lenet5', 6), 'accuracy': 0.9})
    for i in range(150):
        path = folder / 'wild' / ['.', 'a', 'a/b', 'c'][i % 4] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i, 28, 28)).save(path)
    (folder / 'wild' / 'broken.png').write_bytes(b'no image')
    (folder / 'list.txt').write_text('wild/a/1.png\nwild/c/3.png\nwild/c/7.png\n')
    return folder


def distil(folder, name, *args, wild=('wild',), num_select=60, workers=0, code=0):
    args += ('--num_select', num_select) if num_select else ()
    return run('DFND-train.py', '--dataset', 'MNIST', '--teacher_dir', 'teacher.pt', '--teacher_acc', 0.9, '--epochs', 2, '--wild',
               *wild, '--batch_size', 30, '--run', name, '--workers', workers, *args, cwd=folder, code=code)


def chosen_rows(folder):
    with open(folder / 'selection.csv', newline='') as f:
        return [(r['image'], r['noise'], r['pseudo_label']) for r in csv.DictReader(f) if r['chosen'] == '1']


@pytest.mark.parametrize('wild, workers', [(('wild',), 0), (('wild', 'list.txt', 'demo'), 2)])
def test_the_same_student_with_and_without_the_flag(wild, workers, digits, monkeypatch, fork):
    monkeypatch.setattr('wild.decode.CHUNK', 64)
    drawn = np.stack([pixels(i, 32, 32) for i in range(200)])[:, None]
    monkeypatch.setattr(demo, 'draw', lambda size: drawn[:, 0])
    for module in (decode, stream):  # whose lines in a log come after 30 seconds
        monkeypatch.setattr(module, 'time', Mock(perf_counter=itertools.count(0, 31).__next__))
    before = distil(digits, f'kept-{workers}', wild=wild, workers=workers)
    done = distil(digits, f'passing-{workers}', '--stream', '--cache_dir', 'other', wild=wild, workers=workers)
    kept, streamed, timing = result(before), result(done), ('seconds', 'run')
    assert 'ETA' in before.stdout and 'stream: ' in done.stdout
    assert {k: v for k, v in kept.items() if k not in timing} == {k: v for k, v in streamed.items() if k not in timing}
    folders = [digits / 'runs' / f'{name}-{workers}' for name in ('kept', 'passing')]
    assert chosen_rows(folders[0]) == chosen_rows(folders[1]) and len(set(kept['selected_per_class'])) > 1
    weights = [torch.load(folder / 'student.pt')['state_dict'] for folder in folders]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    assert 'skipped 1 of ' in done.stdout and 'broken.png' in done.stdout
    assert not list((digits / 'other').glob('wild*'))  # nothing was kept


@pytest.mark.parametrize('workers', [0, 1])
def test_a_stop_loses_the_part_that_was_under_way_alone(workers, digits, monkeypatch, fork):
    monkeypatch.setattr('wild.decode.CHUNK', 16)
    args = dict(workers=workers, num_select=20)
    expected = chosen_rows(digits / 'runs' / result(distil(digits, f'whole-{workers}', '--stream', '--score_only', **args))['run'])
    original, run_name, read = stream.scores_of, f'stopped-{workers}', []
    decode_job = pool.decode_job
    monkeypatch.setattr(pool, 'decode_job', lambda job, *a: read.append(len(job)) or decode_job(job, *a))
    for stop in (1, 4, 3):
        left = iter(range(stop))

        def stopped(*a, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return original(*a)

        with monkeypatch.context() as m:
            m.setattr(stream, 'scores_of', stopped)
            distil(digits, run_name, '--stream', '--score_only', code=130, **args)
    os.rename(digits / 'wild', digits / 'moved')
    try:
        done = distil(digits, run_name, '--stream', '--score_only', wild=['moved'], **args)
        assert 'goes on after 8 parts' in done.stdout and 'skipped 1 of 151' in done.stdout
        rows = chosen_rows(digits / 'runs' / run_name)
        assert [(image.replace('moved', 'wild'), *rest) for image, *rest in rows] == expected
        assert not (digits / 'runs' / run_name / 'stream').exists()
        assert [skip['image'] for skip in read_json_lines(digits / 'runs' / run_name / 'skipped.jsonl')] == ['wild/broken.png']
        if not workers:
            assert sum(read) == 151 + 3 * 16  # at each stop one part was under way
    finally:
        os.rename(digits / 'moved', digits / 'wild')


def test_a_part_without_an_image_is_read_once_and_its_skips_are_listed_once(digits, monkeypatch):
    monkeypatch.setattr('wild.decode.CHUNK', 16)
    for i in range(16):
        path = digits / 'hollow' / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'no image')
    words, wild = ('--stream', '--score_only'), ('hollow', 'wild')
    with monkeypatch.context() as m:
        m.setattr(stream, 'scores_of', Mock(side_effect=KeyboardInterrupt))
        distil(digits, 'hollow', *words, wild=wild, code=130)
    done = distil(digits, 'hollow', *words, wild=wild)
    assert 'goes on after 1 parts' in done.stdout and 'skipped 17 of 167' in done.stdout
    skips = [skip['image'] for skip in read_json_lines(digits / 'runs/hollow/skipped.jsonl')]
    assert len(skips) == len(set(skips)) == 17


@pytest.mark.skipif(not os.path.isfile('/proc/self/maps'), reason='needs /proc')
def test_deleted_candidates_take_no_space(digits):
    distil(digits, 'space', '--stream', '--score_only')
    assert 'candidates' not in Path('/proc/self/maps').read_text()


def test_it_goes_on_without_the_pool_but_not_without_the_selected_images(digits):
    shutil.copytree(digits / 'wild', digits / 'going')
    scored = result(distil(digits, 'going', '--stream', '--score_only', wild=['going']))
    assert scored['top1'] is None and scored['wild_images'] == 150
    shutil.rmtree(digits / 'going')
    shutil.copytree(digits / 'runs/going', digits / 'runs/lost')
    r = result(distil(digits, 'going', '--stream', '--resume', wild=['going']))
    assert r['top1'] is not None and r['num_select'] == 60 and r['wild_images'] == 150
    assert sorted(os.listdir(digits / 'runs/going/selected')) == ['000000.npy', '000000.txt']
    assert not (digits / 'runs/going/candidates').exists()
    shutil.rmtree(digits / 'runs/lost/selected')
    done = distil(digits, 'lost', '--stream', '--resume', wild=['going'], code=2)
    assert 'selection is made again' in done.stderr and '--wild going' in error(done)  # and its pool is gone


def test_what_a_resumed_stream_does_not_read_is_told(digits):
    shutil.copytree(digits / 'wild', digits / 'one')
    distil(digits, 'told', '--stream', '--score_only', wild=['one'])
    done = distil(digits, 'told', '--stream', '--resume', wild=['list.txt'])
    assert result(done)['wild'] == 'one' and '--wild list.txt is not read' in done.stdout


def test_a_damaged_part_of_a_set_is_made_again_with_workers_too(digits, fork):
    words = dict(wild=['noise'], num_select=20, workers=1)
    first = result(distil(digits, 'noise', '--stream', '--score_only', '--cache_dir', 'noises', **words))
    file = next((digits / 'noises').glob('noise-*/000001.npy'))
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    done = distil(digits, 'noise-2', '--stream', '--score_only', '--cache_dir', 'noises', **words)
    assert '000001.npy is damaged or gone' in done.stderr
    assert {k: v for k, v in result(done).items() if k not in ('run', 'seconds')} == {
        k: v for k, v in first.items() if k not in ('run', 'seconds')}


@pytest.mark.parametrize('good, gone, passes', [(600, 25, True), (150, 25, False)])
def test_how_many_files_are_away_is_judged_by_the_whole_of_a_short_stream(good, gone, passes, digits, monkeypatch):
    monkeypatch.setattr('wild.decode.CHUNK', 50)
    name = f'away-{gone}-{good}'
    paths = [*(f'nowhere/{i}.png' for i in range(gone)), *(path for path in write_images(digits / name, 150, (9, 9)) * (good // 150))]
    (digits / f'{name}.txt').write_text('\n'.join(paths))
    words = dict(wild=[f'{name}.txt'], num_select=20, code=0 if passes else 2)
    for _ in range(2):  # what it could not read is not taken for read
        done = distil(digits, name, '--stream', '--score_only', *(['--resume'] if _ and passes else []), **words)
        if not passes:
            assert f'{gone} of {good + gone} files can not be read' in error(done)
        else:
            assert result(done)['wild_images'] == good


def test_agreement_is_measured_on_images_that_were_not_selected_wherever_they_are_now(digits):
    folder = digits / 'unseen'
    shutil.copytree(digits / 'wild', folder)
    flags = '--stream', '--data', 'nowhere'
    distil(digits, 'unseen', *flags, '--score_only', wild=['unseen'])
    seen = []
    with pytest.MonkeyPatch.context() as m:
        original = estimate.unseen_of_stream
        m.setattr(estimate, 'unseen_of_stream', lambda *a: seen.append(original(*a)) or seen[-1])
        distil(digits, 'unseen', *flags, '--resume', wild=['./unseen'])
    selected = np.load(digits / 'runs/unseen/selected/000000.npy')
    assert len(seen[0]) == 90 and not {x.tobytes() for x in selected} & {x.tobytes() for x in seen[0].numpy()}


@pytest.mark.parametrize('how, named', [
    (dict(num_select=None), ['--num_select']), (dict(num_select=None, select='all'), ['--num_select']),
    (dict(select='all'), ['--num_select 60', '--select all']), (dict(num_select=500), ['num_select=500', '150 images']),
    (dict(wild=['wild', 'nowhere']), ['nowhere']), (dict(wild=['nothing']), ['num_select=60', ' 0 images'])])
def test_mistakes(how, named, digits, monkeypatch):
    if 'nowhere' in how.get('wild', ()):  # told before anything is decoded
        monkeypatch.setattr('wild.pool.decode_job', None)
    if how.get('wild') == ['nothing']:
        Path(write_images(digits / 'nothing', 1)[0]).write_bytes(b'broken')
    flags = ['--select', how.pop('select')] if 'select' in how else []
    text = error(distil(digits, f'mistake {named[-1]}', '--stream', *flags, **how, code=2))
    assert all(part in text for part in named)
