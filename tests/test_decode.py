"""Decoding beside PIL and torchvision, pixel by pixel: every format and mode, broken files, the cache and how it is built."""
import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from images import assert_pool_is, break_files, error_of, pixels, reference, whole, write_images
from PIL import Image

import decode
import processes
from decode import decode_files, to_array
from wild import Pool, open_pool

# ---------------------------------------------------------------- any format, any mode

EVERY = ('png', 'jpg', 'webp', 'gif', 'bmp', 'tiff', 'ppm')
FORMATS = {'RGB': EVERY, 'L': EVERY, 'RGBA': ('png', 'webp', 'tiff', 'bmp'), 'P': ('png', 'gif', 'bmp', 'tiff'), 'LA': ('png', 'tiff'),
           'CMYK': ('jpg', 'tiff'), '1': ('png', 'gif', 'bmp', 'tiff', 'ppm'), 'I;16': ('png', 'tiff')}


def write_every_format(folder):
    paths = []
    for mode, suffixes in FORMATS.items():
        for i, suffix in enumerate(suffixes):
            if mode == 'I;16':
                image = Image.fromarray(pixels(i, 48, 37).astype(np.uint16) * 257)
            else:
                image = Image.fromarray(pixels(i, 33 + 9 * i, 60 - 5 * i, 4), 'RGBA') if mode in ('RGBA', 'LA') else Image.fromarray(
                    pixels(i, 33 + 9 * i, 60 - 5 * i, 3))
                image = image.convert(mode)
            path = folder / mode.replace(';', '') / suffix / f'image.{suffix.upper() if i % 2 else suffix}'
            path.parent.mkdir(parents=True)
            image.save(path)
            paths.append(str(path))
    return sorted(paths)


@pytest.mark.filterwarnings('ignore:.*mode.*parameter is deprecated')
@pytest.mark.parametrize('channels', [1, 3])
def test_every_format_and_mode_equals_pil_and_torchvision(channels, tmp_path, pool_of, capfd):
    paths = write_every_format(tmp_path / 'photos')
    pool = pool_of(tmp_path / 'photos', channels=channels)
    assert len(paths) == 33 and pool.name == 'photos'
    assert_pool_is(pool, paths, channels)
    assert 'skipped' not in capfd.readouterr().out
    assert pool.take([5]).float().std() > 10  # a picture, not one grey


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, pool_of):
    values = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    (tmp_path / 'photos').mkdir()
    Image.fromarray(values).save(tmp_path / 'photos' / 'a.png')
    assert pool_of(tmp_path / 'photos', channels=1).take([0])[0, 0].tolist() == (values // 256).tolist()


def photo(seed, height, width):
    """Smooth shapes, and some grain, as a camera's."""
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return (pixels(seed, height, width, 3) + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('shape, scale', [
    ((375, 500), 4), ((500, 375), 4), ((333, 500), 4), ((319, 500), 2), ((160, 256), 2), ((900, 600), 4), ((1100, 2000), 8)])
def test_a_large_jpeg_is_decoded_at_a_smaller_scale_and_hardly_differs(shape, scale, tmp_path):
    Image.fromarray(photo(0, *shape)).save(tmp_path / 'a.jpg', quality=90)
    for channels in (1, 3):
        with Image.open(tmp_path / 'a.jpg') as image:
            ours = to_array(image, 32, channels)
            assert image.size == (-(-shape[1] // scale), -(-shape[0] // scale))  # the decoder did less
        difference = np.abs(ours.astype(int) - reference(tmp_path / 'a.jpg', channels))
        assert ours.shape == (channels, 32, 32) and difference.mean() < 0.4  # 0.6 to 1.9 for those moved by a part of a pixel


@pytest.mark.parametrize('shape', [(127, 127), (96, 400), (20, 31), (159, 159)])
def test_a_small_jpeg_is_decoded_bit_by_bit_as_torchvision_does(shape, tmp_path):
    Image.fromarray(photo(1, *shape)).save(tmp_path / 'a.jpg', quality=90)
    for channels in (1, 3):
        with Image.open(tmp_path / 'a.jpg') as image:
            assert np.array_equal(to_array(image, 32, channels), reference(tmp_path / 'a.jpg', channels))


# ---------------------------------------------------------------- broken files


def test_broken_files_are_skipped_counted_and_listed(tmp_path, pool_of, capfd, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 2)
    good, broken = break_files(tmp_path / 'photos')
    for _ in range(2):  # the second time from the cache
        pool = pool_of(tmp_path / 'photos')
        assert_pool_is(pool, good)
        line = next(x for x in capfd.readouterr().out.splitlines() if 'skipped' in x)
        assert 'skipped 3 of 6' in line
        listed = next(w for w in line.split() if w.endswith('*.skipped'))
        files = sorted(Path(listed).parent.glob('*.skipped'))
        assert [line for file in files for line in file.read_text().splitlines()] == broken


def test_only_broken_files_are_an_error(tmp_path, capfd):
    good, _ = break_files(tmp_path / 'photos')
    for path in good:
        os.remove(path)
    for _ in range(2):
        text = error_of(open_pool, [str(tmp_path / 'photos')], 3, 'data', str(tmp_path / 'cache'), 0)
        assert 'none of the files of photos' in text and 'name a folder' in text
        assert 'skipped 3 of 3' in capfd.readouterr().out


@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes are Linux')
def test_a_file_name_that_is_no_utf8_is_listed_too(tmp_path, pool_of, capfd):
    good, broken = break_files(tmp_path / 'photos')
    os.rename(broken[0], os.fsencode(tmp_path / 'photos') + b'/gar\xff\xfebage.png')
    os.rename(good[2], os.fsencode(tmp_path / 'photos') + b'/003\xe9.png')
    pool = pool_of(tmp_path / 'photos')
    assert len(pool) == 3 and os.fsencode(list(pool.names())[2]).endswith(b'/003\xe9.png')
    listed = next((tmp_path / 'cache').glob('*/*.skipped'))
    assert len(listed.read_bytes().splitlines()) == 3


@pytest.mark.parametrize('broken', [range(2), range(2, 4), range(4, 5)])
def test_a_part_without_a_single_image_does_no_harm(broken, tmp_path, pool_of, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 2)
    paths = write_images(tmp_path / 'photos', 5)
    for i in broken:
        Path(paths[i]).write_bytes(b'broken')
    for _ in range(2):
        assert_pool_is(pool_of(tmp_path / 'photos'), [p for i, p in enumerate(paths) if i not in broken])


@pytest.mark.parametrize('error', [OSError(errno.EMFILE, 'Too many open files'), OSError(errno.EIO, 'Input/output error'), MemoryError()])
def test_a_fault_of_the_machine_is_no_broken_file(error, tmp_path, pool_of, monkeypatch):
    paths, original = write_images(tmp_path / 'photos', 5), Image.open
    monkeypatch.setattr(decode, 'CHUNK', 2)

    def failing(path):
        if path == paths[3]:
            raise error
        return original(path)

    with monkeypatch.context() as m:
        m.setattr(Image, 'open', failing)
        text = error_of(pool_of, tmp_path / 'photos')
    assert paths[3] in text and type(error).__name__ in text and 'run the same command again' in text
    assert whole(tmp_path / 'cache') == set() and not list((tmp_path / 'cache').rglob('*.skipped'))
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)


def test_a_line_end_in_a_name_moves_no_other_name(tmp_path, pool_of):
    paths = write_images(tmp_path / 'photos', 4)
    for path, name in zip(paths, ('0\n.png', '1\r.png', '2\u2028\x85\x0c.png')):
        os.rename(path, tmp_path / 'photos' / name)
    names = [os.path.basename(name) for name in pool_of(tmp_path / 'photos').names()]
    assert names == ['0\\n.png', '003.png', '1\r.png', '2\u2028\x85\x0c.png']


# ---------------------------------------------------------------- the cache


def test_the_second_time_nothing_is_decoded(tmp_path, pool_of, decoded):
    paths = write_images(tmp_path / 'photos', 5)
    first = pool_of(tmp_path / 'photos').take(range(5))
    assert sorted(decoded) == paths
    decoded.clear()
    assert torch.equal(pool_of(tmp_path / 'photos').take(range(5)), first) and decoded == []
    assert pool_of(tmp_path / 'photos', channels=1).take(range(5)).shape[1] == 1  # a cache of its own
    assert len(decoded) == 5


@pytest.mark.parametrize('change', ['content', 'time', 'size', 'added', 'removed', 'renamed'])
def test_a_changed_folder_is_decoded_anew(change, tmp_path, pool_of, decoded):
    paths = write_images(tmp_path / 'photos', 3)
    pool_of(tmp_path / 'photos')
    stat = os.stat(paths[1])
    if change in ('content', 'time'):
        if change == 'content':
            Image.fromarray(pixels(99, 40, 50, 3)).save(paths[1])
        os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    elif change == 'size':
        Image.fromarray(pixels(99, 44, 70, 3)).save(paths[1])
        os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == 'added':
        paths.append(str(tmp_path / 'photos' / '9.png'))
        Image.fromarray(pixels(99, 44, 70, 3)).save(paths[-1])
    elif change == 'removed':
        os.remove(paths.pop(1))
    else:
        os.rename(paths[0], tmp_path / 'photos' / 'z.png')
        paths = [*paths[1:], str(tmp_path / 'photos' / 'z.png')]
    decoded.clear()
    pool = pool_of(tmp_path / 'photos')
    assert sorted(decoded) == sorted(paths)
    assert_pool_is(pool, sorted(paths))


def test_a_build_that_is_stopped_leaves_no_cache_and_goes_on_where_it_was(tmp_path, monkeypatch):
    paths, cache = write_images(tmp_path / 'photos', 9), tmp_path / 'cache'
    monkeypatch.setattr(decode, 'CHUNK', 2)
    original, done = decode.to_array, []

    def stopped_in_the_third_chunk(image, size, channels):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(image.filename)
        return original(image, size, channels)

    monkeypatch.setattr(decode, 'to_array', stopped_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        decode_files(paths, 32, 3, cache, 'photos', workers=0)
    assert done == paths[:5] and whole(cache) == set()
    again = []
    monkeypatch.setattr(decode, 'to_array', lambda image, *a: again.append(image.filename) or original(image, *a))
    pool = Pool(decode_files(paths, 32, 3, cache, 'photos', workers=0), 'photos')
    assert set(paths[5:]) <= set(again) and not set(paths[:4]) & set(again)  # the chunk that was torn may be done again
    assert len(whole(cache)) == 1
    assert_pool_is(pool, paths)


def test_a_stopped_build_of_other_files_is_not_taken_for_this_one(tmp_path, monkeypatch):
    paths = write_images(tmp_path / 'photos', 4)
    with monkeypatch.context() as m:
        m.setattr(decode, 'to_array', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decode_files(paths, 32, 3, tmp_path / 'cache', 'photos', workers=0)
    assert_pool_is(Pool(decode_files(paths[:3], 32, 3, tmp_path / 'cache', 'photos', workers=0), 'photos'), paths[:3])


def test_a_build_that_is_killed_goes_on_without_the_parts_that_are_done(tmp_path, monkeypatch, fork, decoded):
    paths, cache, original = write_images(tmp_path / 'photos', 10), tmp_path / 'cache', decode.to_array
    monkeypatch.setattr(decode, 'CHUNK', 2)

    def killed(image, *a):  # in a worker: at the last part, when another is done
        while image.filename == paths[8]:
            if list(cache.rglob('*.npy')):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        return original(image, *a)

    with monkeypatch.context() as m:
        m.setattr(decode, 'to_array', killed)
        text = error_of(decode_files, paths, 32, 3, cache, 'photos', workers=2)
    assert 'run the same command again' in text and whole(cache) == set()
    done = {int(p.stem) for p in cache.rglob('*.npy')}
    decoded.clear()
    pool = Pool(decode_files(paths, 32, 3, cache, 'photos', workers=0), 'photos')
    assert done and decoded == [p for i, p in enumerate(paths) if i // 2 not in done]
    assert_pool_is(pool, paths)


def test_a_part_that_is_done_again_forgets_what_was_skipped(tmp_path):
    decode.save_part(tmp_path, 0, np.zeros((1, 3, 32, 32), np.uint8), ['a'], skipped=['b'])
    decode.save_part(tmp_path, 0, np.zeros((2, 3, 32, 32), np.uint8), ['a', 'b'])
    assert sorted(os.listdir(tmp_path)) == ['000000.npy', '000000.txt']


@pytest.mark.parametrize('workers', [0, 2])
def test_few_jobs_are_under_way_at_a_time(workers):
    taken = []

    class Jobs(list):
        def __iter__(self):
            for job in super().__iter__():
                taken.append(job)
                yield job

    done = []
    for result in processes.run_jobs(abs, Jobs(range(0, -200, -1)), workers):
        done.append(result)
        assert len(taken) - len(done) < max(3 * workers, 2)
    assert done == list(range(200))  # in order


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
def test_a_pool_of_many_parts_keeps_no_file_open(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 1)
    paths = write_images(tmp_path / 'photos', 20)
    pool = Pool(decode_files(paths, 32, 3, tmp_path / 'cache', 'photos', workers=0), 'photos')
    before = len(os.listdir('/proc/self/fd'))
    assert_pool_is(pool, paths)
    assert len(os.listdir('/proc/self/fd')) <= before  # or 1,024 parts would be the end


def test_forked_workers_give_the_same_as_none(tmp_path, monkeypatch, fork):
    good, broken = break_files(tmp_path / 'photos')
    paths = sorted(good + broken)
    monkeypatch.setattr(decode, 'CHUNK', 2)
    for n in (0, 2):
        assert_pool_is(Pool(decode_files(paths, 32, 3, tmp_path / f'cache{n}', 'photos', workers=n), 'photos'), good)


SCRIPT = '''
import hashlib, multiprocessing, os, sys, time
sys.path.insert(0, sys.argv[1])
import decode
decode.CHUNK = 4
original = decode.to_array
def slow(image, size, channels):  # spawned workers import this too
    time.sleep(0.02)
    with open(sys.argv[5], 'a') as f:
        f.write('x')
    return original(image, size, channels)
decode.to_array = slow
if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[2])
    paths = sorted(os.path.join(sys.argv[3], name) for name in os.listdir(sys.argv[3]))
    print('ready', flush=True)
    sys.stdin.readline()
    parts = decode.decode_files(paths, 32, 3, sys.argv[4], 'photos', 2)
    print(hashlib.sha256(b''.join(part.images.tobytes() for part in parts)).hexdigest())
'''


def test_two_processes_that_want_the_same_cache_both_get_it_from_spawned_workers(tmp_path):
    paths = write_images(tmp_path / 'photos', 16)
    (tmp_path / 'script.py').write_text(SCRIPT)
    expected = hashlib.sha256(np.stack([reference(p, 3) for p in paths]).tobytes()).hexdigest()
    command = [sys.executable, str(tmp_path / 'script.py'), str(Path(decode.__file__).parent), 'spawn', str(tmp_path / 'photos'),
               str(tmp_path / 'cache'), str(tmp_path / 'count')]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.stdout.readline() for run in runs] == ['ready\n'] * 2  # both have imported: now they start together
    for run in runs:
        run.stdin.write('go\n')
        run.stdin.flush()
    for run in runs:
        out, err = run.communicate(timeout=100)
        assert run.returncode == 0 and out.split()[-1] == expected, err
    assert (tmp_path / 'count').read_text() == 'x' * 16  # one of the two decoded, the other waited


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='no /proc')
@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_a_killed_run_leaves_neither_its_lock_nor_its_workers(tmp_path, method):
    write_images(tmp_path / 'photos', 200)
    (tmp_path / 'script.py').write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / 'script.py'), str(Path(decode.__file__).parent), method, str(tmp_path / 'photos'),
               str(tmp_path / 'cache'), str(tmp_path / 'count')]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        run.stdin.write(b'go\n')
        run.stdin.flush()
        while not (tmp_path / 'count').exists():
            time.sleep(0.01)
        workers = [Path(f'/proc/{pid}/cmdline') for pid in descendants(run.pid)]
        lock, = (tmp_path / 'cache').glob('*.lock')
        assert len(workers) >= 2 and not processes.lock(lock)
        run.kill()
        run.wait()
    assert processes.lock(lock)
    until = time.time() + 20
    while any(map(is_alive, workers)):
        assert time.time() < until
        time.sleep(0.1)


def descendants(pid):
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return children + [pid for child in children for pid in descendants(child)]


def is_alive(cmdline):
    try:
        return cmdline.read_bytes() != b''  # a zombie's is empty
    except OSError:
        return False


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    write_images(tmp_path / 'photos', 1)
    (tmp_path / 'file').write_text('in the way')
    text = error_of(open_pool, [str(tmp_path / 'photos')], 3, 'data', str(tmp_path / 'file'), 0)
    assert f'--cache_dir {tmp_path / "file"}' in text
