"""The wild pool beside PIL and torchvision, pixel by pixel: every format and mode, broken files, the cache and how it is built."""
import bz2
import hashlib
import multiprocessing
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import decode
import demo_pool
from decode import decode_files
from utils import UserError
from wild import SETS, Pool, find_images, open_pool


def pixels(seed, *shape):
    """Smooth noise, so that a resized image is no grey mush and a wrong filter or orientation shows."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, *shape[2:]), dtype=np.uint8))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.BICUBIC))


def write_images(folder, count, size=(40, 50)):
    """RGB images, named so that their order is by number. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f'{i:03}.png') for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(pixels(i, *size, 3)).save(path)
    return paths


def reference(path, channels):
    """The image by torchvision's pil_loader and Resize, sixteen-bit grey scaled to eight."""
    with Image.open(path) as image:
        if image.mode.startswith('I;16'):
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        image = transforms.Resize((32, 32))(image.convert('RGB' if channels == 3 else 'L'))
    return np.asarray(image).reshape(32, 32, channels).transpose(2, 0, 1)


def assert_pool_is(pool, paths, channels=3):
    assert [pool.image_name(i) for i in range(len(pool))] == list(paths)
    taken = pool.take(torch.arange(len(pool)))
    assert taken.dtype == torch.uint8 and taken.shape == (len(paths), channels, 32, 32)
    for image, path in zip(taken.numpy(), paths):
        assert np.array_equal(image, reference(path, channels)), path


@pytest.fixture
def pool_of(tmp_path):
    """Opens a pool with the test's own cache."""
    def opened(*sources, channels=3, workers=0, data_dir=None):
        return open_pool([str(s) for s in sources], channels, str(data_dir or tmp_path / 'data'), str(tmp_path / 'cache'), workers)

    return opened


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the files that are opened from now on."""
    opened, original = [], Image.open
    monkeypatch.setattr(decode.Image, 'open', lambda path, *a, **k: opened.append(str(path)) or original(path, *a, **k))
    return opened


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*a, **k):
        raise URLError('no network')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)


def error_of(*args, **kw):
    with pytest.raises(UserError) as error:
        open_pool(*args, **kw)
    text = str(error.value)
    assert '\n' not in text
    return text


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


# ---------------------------------------------------------------- which files


def test_images_are_found_at_any_depth_and_hidden_files_are_not(tmp_path, pool_of):
    root = tmp_path / 'photos'
    paths = [*write_images(root / 'b' / 'deep' / 'deeper', 2), *write_images(root / 'a', 1), *write_images(root, 1)]
    os.rename(paths[-1], root / 'no suffix')
    paths[-1] = str(root / 'no suffix')
    hidden = write_images(root / '.thumbnails', 1)[0]
    os.link(hidden, root / 'a' / '._000.png')
    for name in ('notes.txt', 'labels.csv', 'archive.zip'):
        (root / name).write_text('no image')
    assert_pool_is(pool_of(root), sorted(paths))


def test_links_are_followed_and_a_loop_ends(tmp_path):
    root = tmp_path / 'photos'
    inside, outside = write_images(root / 'real', 2), write_images(tmp_path / 'elsewhere', 2)
    (root / 'linked').symlink_to(tmp_path / 'elsewhere')
    (root / 'real' / 'loop').symlink_to(root)
    (root / 'again').symlink_to(root / 'linked')
    found = find_images(root)
    real = [os.path.realpath(p) for p in found]
    assert sorted(real) == sorted(inside + outside)  # each once


def test_a_dangling_link_is_not_fatal(tmp_path, pool_of):
    paths = write_images(tmp_path / 'photos', 1)
    (tmp_path / 'photos' / 'gone.png').symlink_to('nowhere.png')
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)


# ---------------------------------------------------------------- broken files


def break_files(folder):
    good = write_images(folder, 3)
    (folder / 'garbage.png').write_bytes(b'\x89PNG no image' * 20)
    (folder / 'empty.jpg').write_bytes(b'')
    Image.fromarray(pixels(1, 90, 90, 3)).save(folder / 'truncated.jpg')
    (folder / 'truncated.jpg').write_bytes((folder / 'truncated.jpg').read_bytes()[:900])
    return good, sorted(str(folder / name) for name in ('garbage.png', 'empty.jpg', 'truncated.jpg'))


def test_broken_files_are_skipped_counted_and_listed(tmp_path, pool_of, capfd):
    good, broken = break_files(tmp_path / 'photos')
    for _ in range(2):  # the second time from the cache
        pool = pool_of(tmp_path / 'photos')
        assert_pool_is(pool, good)
        line = next(x for x in capfd.readouterr().out.splitlines() if 'skipped' in x)
        assert 'skipped 3 of 6' in line
        listed = next(w for w in line.split() if w.endswith('skipped.txt'))
        assert Path(listed).read_text().splitlines() == broken


def test_only_broken_files_are_an_error(tmp_path):
    good, _ = break_files(tmp_path / 'photos')
    for path in good:
        os.remove(path)
    for _ in range(2):
        text = error_of([str(tmp_path / 'photos')], 3, 'data', str(tmp_path / 'cache'), 0)
        assert '3 files of photos' in text and 'name a folder' in text


@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes are Linux')
def test_a_file_name_that_is_no_utf8_is_listed_too(tmp_path, pool_of, capfd):
    good, broken = break_files(tmp_path / 'photos')
    os.rename(broken[0], os.fsencode(tmp_path / 'photos') + b'/gar\xff\xfebage.png')
    os.rename(good[2], os.fsencode(tmp_path / 'photos') + b'/003\xe9.png')
    assert len(pool_of(tmp_path / 'photos')) == 3
    listed = next((tmp_path / 'cache').glob('*/skipped.txt'))
    assert len(listed.read_bytes().splitlines()) == 3


@pytest.mark.parametrize('source', ['empty', 'no image inside', 'missing', 'a file.png'])
def test_a_source_without_images_is_told_in_one_line(source, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'no image inside').mkdir()
    (tmp_path / 'no image inside' / 'notes.txt').write_text('text')
    write_images(tmp_path, 1)
    os.rename(tmp_path / '000.png', tmp_path / 'a file.png')
    text = error_of([str(tmp_path / source)], 3, 'data', str(tmp_path / 'cache'), 0)
    assert str(tmp_path / source) in text and 'name a folder' in text


def test_an_unknown_name_lists_the_known_ones():
    text = error_of(['stl11'], 3, 'data', 'cache', 0)
    assert 'stl11' in text and 'demo' in text and all(name in text for name in SETS)


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    write_images(tmp_path / 'photos', 1)
    (tmp_path / 'file').write_text('in the way')
    text = error_of([str(tmp_path / 'photos')], 3, 'data', str(tmp_path / 'file'), 0)
    assert f'--cache_dir {tmp_path / "file"}' in text


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


def names(cache):
    return {p.name for p in cache.iterdir() if p.is_dir() and not p.name.endswith('.partial')}


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
    assert done == paths[:5] and names(cache) == set()
    again = []
    monkeypatch.setattr(decode, 'to_array', lambda image, *a: again.append(image.filename) or original(image, *a))
    images, rows = decode_files(paths, 32, 3, cache, 'photos', workers=0)
    assert set(paths[5:]) <= set(again) and not set(paths[:4]) & set(again)  # the chunk that was torn may be done again
    assert rows.tolist() == list(range(9)) and len(names(cache)) == 1
    assert all(np.array_equal(image, reference(path, 3)) for image, path in zip(images, paths))


def test_a_stopped_build_of_other_files_is_not_taken_for_this_one(tmp_path, monkeypatch):
    paths = write_images(tmp_path / 'photos', 4)
    with monkeypatch.context() as m:
        m.setattr(decode, 'to_array', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decode_files(paths, 32, 3, tmp_path / 'cache', 'photos', workers=0)
    images, rows = decode_files(paths[:3], 32, 3, tmp_path / 'cache', 'photos', workers=0)
    assert images.shape == (3, 3, 32, 32) and rows.tolist() == [0, 1, 2]


@pytest.fixture
def fork():
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method('fork', force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='no fork here')
def test_forked_workers_give_the_same_as_none(tmp_path, monkeypatch, fork):
    good, broken = break_files(tmp_path / 'photos')
    paths = sorted(good + broken)
    monkeypatch.setattr(decode, 'CHUNK', 2)
    (images, rows), (images2, rows2) = (decode_files(paths, 32, 3, tmp_path / f'cache{n}', 'photos', workers=n) for n in (0, 2))
    assert rows.tolist() == rows2.tolist() == [paths.index(p) for p in good]
    assert np.array_equal(images[rows], images2[rows]) and np.array_equal(images[rows], [reference(p, 3) for p in good])


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
    images, rows = decode.decode_files(paths, 32, 3, sys.argv[4], 'photos', 2)
    print(hashlib.sha256(images[rows].tobytes()).hexdigest())
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


# ---------------------------------------------------------------- several sources, read as batches


def test_batches_in_any_order_equal_single_images():
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for n in (6, 4))
    rows = np.array([0, 2, 5])  # rows 1, 3 and 4 could not be read
    pool = Pool([(first, rows, lambda i: f'a[{i}]'), (second, np.arange(4), lambda i: f'b[{i}]')], 'a+b')
    expected = [*first[rows], *second]
    assert len(pool) == 7
    assert [pool.image_name(i) for i in range(7)] == ['a[0]', 'a[2]', 'a[5]', 'b[0]', 'b[1]', 'b[2]', 'b[3]']
    for _ in range(20):
        indices = random.integers(0, 7, 5)
        assert np.array_equal(pool.take(indices), [expected[i] for i in indices])
        assert np.array_equal(pool.take(torch.from_numpy(indices)), [expected[i] for i in indices])
    assert pool.take(np.array([], int)).shape == (0, 3, 32, 32)


@pytest.fixture(scope='module')
def demo():
    pytest.importorskip('sklearn')
    pytest.importorskip('matplotlib')
    return demo_pool.draw(32, glyphs=60)


def test_folders_a_set_and_the_demo_are_joined(tmp_path, pool_of, demo, monkeypatch):
    monkeypatch.setattr(demo_pool, 'draw', lambda size: demo)
    usps = write_usps(tmp_path / 'data')
    a, b = write_images(tmp_path / 'a', 2), write_images(tmp_path / 'b', 3)
    pool = pool_of('demo', tmp_path / 'a', 'USPS', tmp_path / 'b')
    n = len(demo)
    assert len(pool) == n + 2 + len(usps) + 3 and pool.name == 'demo+a+usps+b'
    indices = [len(pool) - 1, n, n + 2, n - 1, 0]
    assert [pool.image_name(i) for i in indices] == [b[2], a[0], 'usps[0]', f'demo[{n - 1}]', 'demo[0]']
    expected = [reference(b[2], 3), reference(a[0], 3), *(x.repeat(3, axis=0) for x in (usps[0], demo[-1], demo[0]))]
    assert np.array_equal(pool.take(indices), expected)


# ---------------------------------------------------------------- torchvision's sets by name


def resized(images):
    """(N, H, W) or (N, H, W, 3) uint8 -> (N, C, 32, 32), by PIL."""
    out = np.stack([np.asarray(Image.fromarray(x).resize((32, 32), Image.BILINEAR)) for x in images])
    return out.transpose(0, 3, 1, 2) if out.ndim == 4 else out[:, None]


def write_usps(root, count=3):
    root.mkdir(parents=True, exist_ok=True)
    images = np.stack([pixels(i, 16, 16) for i in range(count)])
    values = [' '.join(f'{k}:{v / 255 * 2 - 1 + 1e-4:.5f}' for k, v in enumerate(x.flatten(), 1)) for x in images]
    lines = [f'{label} {row}' for label, row in enumerate(values, 1)]
    (root / 'usps.bz2').write_bytes(bz2.compress('\n'.join(lines).encode()))
    return resized(images)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + b''.join(n.to_bytes(4, 'big') for n in array.shape) + array.tobytes())


def write_emnist(root, monkeypatch):
    images = np.stack([pixels(i, 28, 28) for i in range(3)])
    write_idx(root / 'EMNIST' / 'raw' / 'emnist-letters-train-images-idx3-ubyte', np.ascontiguousarray(images.transpose(0, 2, 1)))
    write_idx(root / 'EMNIST' / 'raw' / 'emnist-letters-train-labels-idx1-ubyte', np.arange(3, dtype=np.uint8))
    return resized(images)  # upright: the file holds them transposed


def write_svhn(root, monkeypatch):
    scipy = pytest.importorskip('scipy.io')
    root.mkdir()
    images = np.stack([pixels(i, 32, 32, 3) for i in range(3)])
    scipy.savemat(root / 'train_32x32.mat', {'X': images.transpose(1, 2, 3, 0), 'y': np.array([[1], [10], [3]])})
    md5 = hashlib.md5((root / 'train_32x32.mat').read_bytes()).hexdigest()
    monkeypatch.setitem(torchvision.datasets.SVHN.split_list, 'train', ['', 'train_32x32.mat', md5])
    return resized(images)


def write_stl10(root, monkeypatch):
    make = torchvision.datasets.STL10
    (root / make.base_folder).mkdir(parents=True)
    images = np.stack([pixels(i, 96, 96, 3) for i in range(3)])
    for which in ('train_list', 'test_list'):
        files = []
        for name, _ in getattr(make, which):
            content = images.transpose(0, 3, 2, 1).tobytes() if name == 'unlabeled_X.bin' else b'labelled, and not read'
            (root / make.base_folder / name).write_bytes(content)
            files.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(make, which, files)
    return resized(images)


@pytest.mark.parametrize('name, write', [('usps', lambda root, m: write_usps(root)), ('emnist', write_emnist), ('svhn', write_svhn),
                                         ('stl10', write_stl10)])
def test_a_torchvision_set_by_name_equals_its_file_and_is_kept(name, write, tmp_path, pool_of, monkeypatch, no_network):
    expected = write(tmp_path / 'data', monkeypatch)
    channels = expected.shape[1]
    pool = pool_of(name, channels=channels)
    assert np.array_equal(pool.take(range(len(pool))), expected)
    assert pool.image_name(2) == f'{name}[2]' and pool.name == name
    os.rename(tmp_path / 'data', tmp_path / 'moved away')
    assert np.array_equal(pool_of(name, channels=channels).take([2, 0]), expected[[2, 0]])  # from the cache


def test_a_grey_set_for_a_colour_teacher_and_the_other_way_round(tmp_path, pool_of, monkeypatch, no_network):
    grey, colour = write_usps(tmp_path / 'grey'), write_svhn(tmp_path / 'colour', monkeypatch)
    assert np.array_equal(pool_of('usps', channels=3, data_dir=tmp_path / 'grey').take(range(3)), grey.repeat(3, axis=1))
    luma = [np.asarray(Image.fromarray(x.transpose(1, 2, 0)).convert('L'))[None] for x in colour]
    assert np.array_equal(pool_of('svhn', channels=1, data_dir=tmp_path / 'colour').take(range(3)), luma)


def test_a_set_that_is_stopped_while_it_is_resized_is_whole_the_next_time(tmp_path, pool_of, monkeypatch, no_network):
    expected = write_usps(tmp_path / 'data')
    original, calls = decode.to_array, []

    def stopped(*a):
        calls.append(a)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*a)

    with monkeypatch.context() as m:
        m.setattr(decode, 'to_array', stopped)
        with pytest.raises(KeyboardInterrupt):
            pool_of('usps', channels=1)
    assert names(tmp_path / 'cache') == set()
    assert np.array_equal(pool_of('usps', channels=1).take(range(3)), expected)


@pytest.mark.parametrize('name', SETS)
def test_a_set_without_a_network_is_told_in_one_line(name, tmp_path, no_network, capfd):
    text = error_of([name], 3, str(tmp_path / 'data'), str(tmp_path / 'cache'), 0)
    assert name in text and str(tmp_path / 'data') in text and '--wild demo' in text
    assert capfd.readouterr().out == '' and not (tmp_path / 'cache').exists()


# ---------------------------------------------------------------- the demo pool


def test_the_demo_pool_is_1797_digits_and_the_glyphs_none_of_them_blank(demo):
    assert demo.shape == (1797 + 60, 1, 32, 32) and demo.dtype == np.uint8
    assert demo.max(axis=(1, 2, 3)).min() > 150  # light strokes
    assert np.median(demo, axis=(1, 2, 3)).max() < 100  # on a dark ground
    assert len(np.unique(demo.reshape(len(demo), -1), axis=0)) == len(demo)  # each of its own


def test_the_demo_pool_is_the_same_at_every_call_and_another_for_another_seed(demo):
    assert np.array_equal(demo_pool.draw(32, glyphs=60), demo)
    assert not np.array_equal(demo_pool.draw(32, glyphs=60, seed=1), demo)


def test_the_demo_pools_order_does_not_tell_digits_from_glyphs(monkeypatch):
    pytest.importorskip('sklearn')
    for name, value in (('handwritten', 1), ('glyph', 2)):
        monkeypatch.setattr(demo_pool, name, lambda *a, value=value: np.full((32, 32), value, np.uint8))
    glyphs = np.flatnonzero(demo_pool.draw(32, glyphs=600)[:, 0, 0, 0] == 2)
    assert len(glyphs) == 600 and abs(glyphs.mean() - 1198) < 120  # 28 is the standard error


@pytest.mark.parametrize('package', ['sklearn.datasets', 'matplotlib'])
def test_the_demo_pool_without_a_package_says_how_to_get_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    text = error_of(['demo'], 1, 'data', 'cache', 0)
    assert package in text and 'pip install -r requirements-demo.txt' in text
