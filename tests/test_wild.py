"""The wild pool from every source: folders, lists of paths, shards, torchvision's sets by name, the demo, and several of them joined."""
import bz2
import errno
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from images import assert_pool_is, error_of, pixels, reference, whole, write_images
from PIL import Image

import decode
import demo_pool
import wild
from wild import SETS, Pool, find_images, open_pool

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
    # a folder's own files come before its folders'
    assert_pool_is(pool_of(root), [paths[-1], paths[2], *paths[:2]])


def test_links_are_followed_and_a_loop_ends(tmp_path):
    root = tmp_path / 'photos'
    inside, outside = write_images(root / 'real', 2), write_images(tmp_path / 'elsewhere', 2)
    (root / 'linked').symlink_to(tmp_path / 'elsewhere')
    (root / 'real' / 'loop').symlink_to(root)
    (root / 'again').symlink_to(root / 'linked')
    found = list(find_images(root))
    real = [os.path.realpath(p) for p in found]
    assert sorted(real) == sorted(inside + outside)  # each once


def test_a_dangling_link_is_not_fatal(tmp_path, pool_of):
    paths = write_images(tmp_path / 'photos', 1)
    (tmp_path / 'photos' / 'gone.png').symlink_to('nowhere.png')
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)


@pytest.mark.parametrize('source', ['empty', 'no image inside', 'missing', 'a file.png'])
def test_a_source_without_images_is_told_in_one_line(source, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'no image inside').mkdir()
    (tmp_path / 'no image inside' / 'notes.txt').write_text('text')
    write_images(tmp_path, 1)
    os.rename(tmp_path / '000.png', tmp_path / 'a file.png')
    text = error_of(open_pool, [str(tmp_path / source)], 3, 'data', str(tmp_path / 'cache'), 0)
    assert str(tmp_path / source) in text and 'name a folder' in text


def test_an_unknown_name_lists_the_known_ones():
    text = error_of(open_pool, ['stl11'], 3, 'data', 'cache', 0)
    assert 'stl11' in text and 'demo' in text and all(name in text for name in SETS)


# ---------------------------------------------------------------- a list of paths


def test_a_text_file_lists_the_images_relative_to_itself(tmp_path, pool_of, capfd):
    a, b = write_images(tmp_path / 'lists' / 'near', 2), write_images(tmp_path / 'far', 1)
    lines = ['near/001.png', '', b[0], 'gone.png', 'near/000.png']
    for encoding, end in (('utf-8', '\n'), ('utf-8-sig', '\r\n')):  # the second as Windows writes it
        (tmp_path / 'lists' / 'some.txt').write_bytes(end.join(lines).encode(encoding))
        pool = pool_of(tmp_path / 'lists' / 'some.txt')
        assert_pool_is(pool, [a[1], b[0], a[0]])  # in the list's order
        assert pool.name == 'some.txt' and 'skipped 1 of 4' in capfd.readouterr().out
        listed = next((tmp_path / 'cache').glob('*/*.skipped'))
        assert listed.read_text().splitlines() == [str(tmp_path / 'lists' / 'gone.png')]


@pytest.mark.parametrize('content', ['', '\n \n'])
def test_an_empty_list_is_told(content, tmp_path, pool_of):
    (tmp_path / 'some.txt').write_text(content)
    text = error_of(pool_of, tmp_path / 'some.txt')
    assert str(tmp_path / 'some.txt') in text and 'a path a line' in text


# ---------------------------------------------------------------- WebDataset shards


def write_shards(folder, paths, shards=3):
    """As img2dataset does: 00000.tar and on, each with 000000000.jpg, .txt and .json an image. Returns the samples' names."""
    names = []
    for number, own in enumerate(np.array_split(paths, shards)):
        file = folder / f'{number:05d}.tar'
        with tarfile.open(file, 'w') as tar:
            for i, path in enumerate(own):
                key = f'{number:05d}{i:04d}'
                for suffix, content in (('jpg', Path(path).read_bytes()), ('txt', b'a caption'), ('json', b'{"key": 1}')):
                    member = tarfile.TarInfo(f'{key}.{suffix}')
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                names.append(f'{file}#{key}')
    return names


@pytest.fixture
def shards(tmp_path):
    """(pattern, the names of its 8 images, the same images' paths in a folder)."""
    pytest.importorskip('webdataset')
    paths = write_images(tmp_path / 'photos', 8)
    return str(tmp_path / '{00000..00002}.tar'), write_shards(tmp_path, paths), paths


@pytest.mark.parametrize('workers', [0, 2])
def test_a_brace_range_of_shards_equals_the_same_images_in_a_folder(workers, shards, tmp_path, pool_of, fork, monkeypatch):
    pattern, names, paths = shards
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')  # under torchrun too, where WebDataset would share them out
    pool = pool_of(pattern, workers=workers)
    assert list(pool.names()) == names
    assert torch.equal(pool.take(range(8)), pool_of(tmp_path / 'photos').take(range(8)))
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)
    single = pool_of(tmp_path / '00001.tar', tmp_path / 'photos')
    assert list(single.names()) == [*names[3:6], *paths] and single.name == '00001.tar+photos'
    assert torch.equal(single.take([1, 7]), pool.take([4, 4]))


@pytest.mark.parametrize('damage', ['truncated', 'garbage inside', 'garbage', 'empty'])
def test_a_damaged_shard_keeps_what_comes_before_the_damage(damage, shards, pool_of, capfd):
    pattern, names, paths = shards
    file = Path(names[3].split('#')[0])
    content = file.read_bytes()
    with tarfile.open(file) as tar:
        second = next(m for m in tar if m.name.endswith('0001.jpg'))
    if damage == 'truncated':
        file.write_bytes(content[: second.offset_data + 100])
    elif damage == 'garbage inside':
        file.write_bytes(content[: second.offset_data] + b'?' * second.size + content[second.offset_data + second.size :])
    else:
        file.write_bytes(b'no tar' * 500 if damage == 'garbage' else b'')
    lost = {'truncated': [4, 5], 'garbage inside': [4]}.get(damage, [3, 4, 5])
    kept = [i for i in range(8) if i not in lost]
    for _ in range(2):
        pool = pool_of(pattern)
        assert list(pool.names()) == [names[i] for i in kept]
        assert np.array_equal(pool.take(range(len(kept))), [reference(paths[i], 3) for i in kept])
        assert f'skipped 1 of {len(kept) + 1} files' in capfd.readouterr().out
    file.write_bytes(b'no tar' * 500)
    text = error_of(pool_of, file)  # nothing is left
    assert file.name in text and 'none of the files' in text


def test_a_shard_that_cannot_be_opened_now_is_not_given_up(shards, pool_of, tmp_path, monkeypatch):
    pattern, names, _ = shards

    def failing(path, *a, **k):
        if str(path).endswith('00001.tar'):
            raise OSError(errno.EMFILE, 'Too many open files')
        return open(path, *a, **k)

    with monkeypatch.context() as m:
        m.setattr(decode, 'open', failing, raising=False)
        text = error_of(pool_of, pattern)
    assert '00001.tar' in text and 'run the same command again' in text and whole(tmp_path / 'cache') == set()
    assert list(pool_of(pattern).names()) == names


def test_a_changed_shard_is_decoded_anew(shards, pool_of, tmp_path):
    pattern, names, paths = shards
    before = pool_of(pattern).take(range(8))
    write_shards(tmp_path, paths[::-1])
    os.utime(tmp_path / '00000.tar', ns=(1, 1))
    assert list(pool_of(pattern).names()) == names and torch.equal(pool_of(pattern).take(range(8)), before.flip(0))


def test_a_shard_that_is_missing_is_named(shards, pool_of, tmp_path):
    text = error_of(pool_of, shards[0].replace('00002', '00004'))
    assert '2 of its 5 shards are missing' in text and str(tmp_path / '00003.tar') in text
    assert '{00000..2.tar' in error_of(pool_of, tmp_path / '{00000..2.tar')


def test_shards_without_the_package_say_how_to_get_it(tmp_path, pool_of, monkeypatch):
    for name in ('webdataset', 'webdataset.shardlists', 'webdataset.tariterators'):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / '00000.tar').write_bytes(b'')
    for call in (lambda: pool_of(tmp_path / '00000.tar'), lambda: list(decode.read_job(str(tmp_path / '00000.tar')))):
        text = error_of(call)
        assert str(tmp_path / '00000.tar') in text and 'pip install webdataset' in text


@pytest.mark.parametrize('names, pattern', [(('00000', '00001', '00002'), '{00000..00002}.tar'), (('000',), '{000..000}.tar'),
                                            (('train-07', 'train-08'), 'train-{07..08}.tar')])
def test_a_folder_of_shards_is_told_how_they_are_named(names, pattern, tmp_path, pool_of):
    (tmp_path / 'shards').mkdir()
    for name in names:
        (tmp_path / 'shards' / f'{name}.tar').write_bytes(b'')
        (tmp_path / 'shards' / f'{name}_stats.json').write_text('{}')
    assert f'its {len(names)} .tar shards as "{tmp_path / "shards" / pattern}"' in error_of(pool_of, tmp_path / 'shards')


# ---------------------------------------------------------------- several sources, read as batches


def test_batches_in_any_order_equal_single_images(tmp_path):
    random = np.random.default_rng(0)
    first, second, third = (random.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for n in (3, 0, 4))
    for i, (images, name) in enumerate(((first, 'a'), (second, 'nothing'), (third, 'b'))):
        decode.save_part(tmp_path, i, images, [f'{name}[{k}]' for k in range(len(images))])
    pool = Pool([decode.Part(tmp_path / f'{i:06d}.npy', n) for i, n in enumerate((3, 0, 4))], 'a+b')
    expected = [*first, *third]
    assert len(pool) == 7
    assert list(pool.names()) == ['a[0]', 'a[1]', 'a[2]', 'b[0]', 'b[1]', 'b[2]', 'b[3]']
    for _ in range(20):
        indices = random.integers(0, 7, 5)
        assert np.array_equal(pool.take(indices), [expected[i] for i in indices])
        assert np.array_equal(pool.take(torch.from_numpy(indices)), [expected[i] for i in indices])
    assert pool.take(np.array([], int)).shape == (0, 3, 32, 32)


def test_chosen_images_are_in_memory_where_they_fit_and_else_read_from_the_cache(tmp_path, monkeypatch, capfd):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
    decode.save_part(tmp_path, 0, images, [f'{k}' for k in range(9)])
    pool, chosen = Pool([decode.Part(tmp_path / '000000.npy', 9)], 'a'), np.array([1, 4, 5, 8])
    positions = torch.tensor([3, 0, 3])
    resident = pool.reader(chosen, torch.device('cpu'))
    assert isinstance(resident, torch.Tensor) and np.array_equal(resident, images[chosen])
    monkeypatch.setattr(wild, 'free_memory', lambda device: 2 * images[chosen].nbytes)
    reader = pool.reader(chosen, torch.device('cpu'))
    assert not isinstance(reader, torch.Tensor) and torch.equal(reader[positions], resident[positions])
    assert 'read from the cache' in capfd.readouterr().out


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
    names = list(pool.names())
    assert len(names) == len(pool) and [names[i] for i in indices] == [b[2], a[0], 'usps[0]', f'demo[{n - 1}]', 'demo[0]']
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
    assert list(pool.names()) == [f'{name}[{i}]' for i in range(len(expected))] and pool.name == name
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
    assert whole(tmp_path / 'cache') == set()
    assert np.array_equal(pool_of('usps', channels=1).take(range(3)), expected)


@pytest.mark.parametrize('name', SETS)
def test_a_set_without_a_network_is_told_in_one_line(name, tmp_path, no_network, capfd):
    text = error_of(open_pool, [name], 3, str(tmp_path / 'data'), str(tmp_path / 'cache'), 0)
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
def test_the_demo_pool_without_a_package_says_how_to_get_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    text = error_of(open_pool, ['demo'], 1, 'data', str(tmp_path / 'cache'), 0)
    assert package in text and 'pip install -r requirements-demo.txt' in text
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('channels', [1, 3])
def test_the_noise_pool_is_normal_and_the_same_at_every_call(channels):
    first, second = (demo_pool.draw_noise(32, channels, 200) for _ in range(2))
    assert first.shape == ((200, 32, 32) if channels == 1 else (200, 32, 32, 3)) and first.dtype == np.uint8
    assert np.array_equal(first, second) and len(np.unique(first.reshape(200, -1), axis=0)) == 200
    assert abs(first.mean() - 127.5) < 1 and abs(first.std() - 61.5) < 1  # 64, but for what is cut off


def test_a_pipe_in_the_folder_is_skipped(tmp_path, pool_of):
    paths = write_images(tmp_path / 'photos', 2)
    os.mkfifo(tmp_path / 'photos' / 'pipe')
    assert list(pool_of(tmp_path / 'photos').names()) == paths
    (tmp_path / 'list.txt').write_bytes(b'photos/000.png\nphotos/0\0.png\n')
    assert list(pool_of(tmp_path / 'list.txt').names()) == paths[:1]
