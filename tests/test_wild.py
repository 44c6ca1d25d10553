"""The wild pool from every source: folders, lists of paths, shards, torchvision's sets by name, the demo, and several of them joined."""
import bz2
import errno
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from images import CPU, assert_pool_is, error_of, pixels, random_images, reference, resized, whole, write_idx, write_images
from PIL import Image

from utils import read_json_lines
from wild import decode, parts, reading
from wild import demo as demo_pool
from wild import pool as wild_pool
from wild.pool import SETS, Pool, open_stream
from wild.reading import HERE
from wild.sources import find_images

webdataset = pytest.importorskip('webdataset')


def test_images_are_found_at_any_depth_once_and_hidden_files_are_not(tmp_path, pool_of, capfd):
    root = tmp_path / 'photos'
    deep, near, own = write_images(root / 'b' / 'deep' / 'deeper', 2), write_images(root / 'a', 1), write_images(root, 1)
    os.rename(own[0], root / 'no suffix')
    os.link(write_images(root / '.thumbnails', 1)[0], root / 'a' / '._000.png')
    for name in ('notes.txt', 'labels.csv', 'archive.zip'):
        (root / name).write_text('no image')
    write_images(tmp_path / 'elsewhere', 2)
    (root / 'c').symlink_to(tmp_path / 'elsewhere')  # links are followed, and a loop ends
    (root / 'b' / 'loop').symlink_to(root)
    (root / 'd').symlink_to(root / 'c')
    (root / 'a' / 'gone.png').symlink_to('nowhere.png')  # skipped, as is a pipe
    os.mkfifo(root / 'a' / 'pipe')
    # a folder's own files come before its folders'
    assert_pool_is(pool_of(root), [str(root / 'no suffix'), *near, *deep, *(str(root / 'c' / f'00{i}.png') for i in (0, 1))])
    assert 'skipped 2 of 8' in capfd.readouterr().out


def test_a_folder_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, monkeypatch, capfd):
    paths, original = write_images(tmp_path / 'a', 1), os.scandir
    write_images(tmp_path / 'b', 1)
    monkeypatch.setattr(os, 'scandir', lambda path: original('b cannot be read' if path == str(tmp_path / 'b') else path))
    assert list(find_images(str(tmp_path), HERE)) == paths and 'b cannot be read' in capfd.readouterr().err


FILES = {'no image/notes.txt': 'text', 'a file.png': '', 'empty.txt': '', 'blank.txt': '\n \n', '00.tar': '', '01.tar': '',
         **{f'{name}.tar': '' for name in ('three/00000', 'three/00001', 'three/00002', 'one/000', 'two/train-07', 'two/train-08')},
         'three/00000_stats.json': '{}'}


@pytest.mark.parametrize('source, told', [
    ('empty', 'name a folder'), ('no image', 'name a folder'), ('missing', 'name a folder'), ('a file.png', 'name a folder'),
    ('empty.txt', 'a path a line'), ('blank.txt', 'a path a line'), ('{00..03}.tar', '2 of its 4 shards'), ('{00..03}.tar', '/02.tar'),
    ('{00..2.tar', 'brace range'), ('three', '3 .tar: '), ('three', 'three/{00000..00002}.tar"'), ('one', 'one/{000..000}.tar"'),
    ('two', 'two/train-{07..08}.tar"')])
def test_a_source_without_images_is_told_in_one_line(source, told, tmp_path, pool_of):
    (tmp_path / 'empty').mkdir()
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    text = error_of(pool_of, tmp_path / source)
    assert str(tmp_path / source) in text and told in text


def test_an_unknown_name_lists_the_known_ones(pool_of):
    text = error_of(pool_of, 'stl11')
    assert 'stl11' in text and 'demo' in text and all(name in text for name in SETS)


@pytest.mark.parametrize('encoding, end', [('utf-8', '\n'), ('utf-8-sig', '\r\n')])  # the second as Windows writes it
def test_a_text_file_lists_the_images_relative_to_itself(encoding, end, tmp_path, pool_of, capfd):
    a, b = write_images(tmp_path / 'lists' / 'near', 2), write_images(tmp_path / 'far', 1)
    lines = ['near/001.png', '', b[0], 'gone.png', 'near/0\0.png', 'near/000.png']
    (tmp_path / 'lists' / 'some.txt').write_bytes(end.join(lines).encode(encoding))
    pool = pool_of(tmp_path / 'lists' / 'some.txt')
    assert_pool_is(pool, [a[1], b[0], a[0]])  # in the list's order
    assert pool.name == 'some.txt' and 'skipped 2 of 5' in capfd.readouterr().out
    listed = read_json_lines(next((tmp_path / 'cache').glob('*/skipped.jsonl')))
    assert [skip['image'] for skip in listed] == [str(tmp_path / 'lists' / name) for name in ('gone.png', 'near/0\0.png')]
    assert [skip['again'] for skip in listed] == [True, False]


def write_shards(folder, paths):
    """As img2dataset does: 00000.tar and on, each with 000000000.jpg, .txt and .json an image. Returns the samples' names."""
    names = []
    for number, own in enumerate(np.array_split(paths, 3)):
        with webdataset.TarWriter(str(file := folder / f'{number:05d}.tar')) as tar:
            for i, path in enumerate(own):
                key = f'{number:05d}{i:04d}'
                tar.write({'__key__': key, 'txt': 'a caption', 'jpg': Path(path).read_bytes(), 'json': {'key': 1}})
                names.append(f'{file}#{key}')
    return names


@pytest.fixture
def shards(tmp_path):
    """(pattern, the names of its 8 images, the same images' paths in a folder)."""
    paths = write_images(tmp_path / 'photos', 8)
    return str(tmp_path / '{00000..00002}.tar'), write_shards(tmp_path, paths), paths


@pytest.mark.parametrize('workers', [0, 2])
def test_a_brace_range_of_shards_equals_the_same_images_in_a_folder(workers, shards, tmp_path, pool_of, fork, monkeypatch):
    pattern, names, paths = shards
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')  # under torchrun too, where WebDataset would share them out
    pool = pool_of(pattern, workers=workers)
    assert list(pool.names()) == names
    assert np.array_equal(pool.take(range(8)), [reference(p, 3) for p in paths])
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
    assert file.name in error_of(pool_of, file)  # nothing is left


def test_a_part_without_an_image_is_counted_as_a_stream_counts_it(shards, tmp_path, pool_of, wild_of):
    pattern, names, _ = shards
    Path(names[3].split('#')[0]).write_bytes(b'no tar' * 500)
    for sources, numbers in (([pattern], (0, 2)), ([pattern, str(tmp_path / 'photos')], (0, 2, 3))):
        pool = pool_of(*sources)
        passing = [part.number for part in open_stream(wild_of(*sources)) if part.names]
        assert pool.numbers == numbers == tuple(passing) and len(pool.spans()) == len(numbers)


def test_a_stream_whose_parts_are_gone_or_others_is_told(shards, wild_of):
    pattern, names, _ = shards
    wild = wild_of(pattern)
    seen = {part.number: part.source for part in open_stream(wild)}
    assert [part.number for part in open_stream(wild, {0: seen[0], 2: seen[2]})] == [1]
    for other, known, number in ((wild_of(names[0].split('#')[0]), seen, 1), (wild, {0: seen[1]}, 0)):
        assert f'in part {number}' in error_of(list, open_stream(other, known))


def test_a_shard_that_cannot_be_opened_now_is_not_given_up_and_a_changed_one_decoded_anew(shards, pool_of, tmp_path, monkeypatch):
    pattern, names, paths = shards
    with monkeypatch.context() as m:
        m.setattr(reading, 'open', Mock(side_effect=OSError(errno.EMFILE, 'Too many open files')), raising=False)
        text = error_of(pool_of, pattern)
    assert '00000.tar' in text and 'the same command again' in text and whole(tmp_path / 'cache') == set()
    before = pool_of(pattern)
    assert list(before.names()) == names
    write_shards(tmp_path, paths[::-1])
    os.utime(tmp_path / '00000.tar', ns=(1, 1))
    after = pool_of(pattern)
    assert list(after.names()) == names and torch.equal(after.take(range(8)), before.take(range(8)).flip(0))


def write_tar(path, *members):
    """members: (name, content)."""
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def contents(tmp_path):
    """Six images' paths, and their bytes."""
    paths = write_images(tmp_path / 'photos', 6)
    return paths, [Path(path).read_bytes() for path in paths]


def test_a_shards_members_are_told_apart_by_their_last_suffix_and_their_content(contents, tmp_path, pool_of, capfd):
    paths, (a, b, c, d, e, f) = contents
    write_tar(file := tmp_path / 'a.tar', ('x/IMG.000.png', a), ('x/IMG.000.json', b'{}'), ('x/2021.03.01 10.15.22.png', b),
              ('x/0.png', c), ('x/0.png', d), ('x/._0.png', b'by a file manager'), ('x/photo.png?width=640', e), ('x/plain', f),
              ('x/0.mp4', b'film'))
    pool = pool_of(file)
    assert np.array_equal(pool.take(range(6)), [reference(path, 3) for path in paths])  # of two with one name, both
    keys = ('IMG.000', '2021.03.01 10.15.22', '0', '0', 'photo.png?width=640', 'plain')
    assert list(pool.names()) == [f'{file}#x/{key}' for key in keys]
    assert f'skipped 1 of 7 files of a.tar, the first is {file}#x/0.mp4 (is none of JPEG' in capfd.readouterr().out


@pytest.mark.parametrize('damage, kept', [('in an image', 3), ('between two', 3), ('in a header', 5)])
def test_a_shard_that_breaks_off_says_where(damage, kept, contents, tmp_path, pool_of, capfd):
    paths, images = contents
    write_tar(file := tmp_path / 'a.tar', *((f'{i}.png', x) for i, x in enumerate(images)))
    with tarfile.open(file) as tar:
        places = [member.offset for member in tar]
    content = bytearray(file.read_bytes())
    if kept == 3:
        content = content[: places[3] + (700 if damage == 'in an image' else 0)]
    else:
        content[places[5] : places[5] + 512] = b'?' * 512  # tarfile takes it for the end
    file.write_bytes(content)
    assert_pool_is(pool_of(file), [f'{file}#{i}' for i in range(kept)], expected=paths[:kept])
    assert f'skipped 1 of {kept + 1} files' in (out := capfd.readouterr().out) and f'breaks off at byte {places[kept]}' in out


def test_shards_that_were_joined_are_told(contents, tmp_path, pool_of, capfd):
    paths, images = contents
    for name, some in (('a', range(3)), ('b', range(3, 6))):
        write_tar(tmp_path / f'{name}.tar', *((f'{i}.png', images[i]) for i in some))
    (tmp_path / 'joined.tar').write_bytes((tmp_path / 'a.tar').read_bytes() + (tmp_path / 'b.tar').read_bytes())
    assert_pool_is(pool_of(tmp_path / 'joined.tar'), [f'{tmp_path}/joined.tar#{i}' for i in range(3)], expected=paths[:3])
    assert 'skipped 1 of 4 files' in (out := capfd.readouterr().out) and 'holds more behind its end' in out


def test_links_in_a_shard_and_members_too_large_are_skipped_and_counted(contents, tmp_path, pool_of, capfd):
    paths = contents[0]
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.add(paths[0], 'a.png')
        for name, kind in (('b.png', tarfile.LNKTYPE), ('c.png', tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, 'a.png'
            tar.addfile(info)
        (large := tarfile.TarInfo('d.mp4')).size = 2**20 + 1
        tar.addfile(large, io.BytesIO(bytes(large.size)))
        tar.add(paths[1], 'e.png')
    assert list(pool_of(tmp_path / 'a.tar', memory=1).names()) == [f'{tmp_path}/a.tar#{name}' for name in 'ae']
    assert 'skipped 3 of 5 files' in capfd.readouterr().out


def test_shards_of_large_images_are_read_in_pieces(contents, tmp_path, wild_of, monkeypatch):
    images = contents[1]
    write_tar(file := tmp_path / 'a.tar', *((f'{i}.{kind}', x) for i, x in enumerate(images) for kind in ('json', 'png')))
    monkeypatch.setattr(decode, 'CHUNK', 9)  # of 64 x 64
    wild = wild_of(file, size=96)
    parts, pool = list(open_stream(wild)), wild_pool.open_pool(wild)
    assert [len(part.names) for part in parts] == [4, 2] == [part.count for part in pool.parts]
    expected = wild_pool.open_pool(wild_of(tmp_path / 'photos', size=96)).take(range(6))
    assert expected.shape == (6, 3, 96, 96) and torch.equal(pool.take(range(6)), expected)
    assert np.array_equal(np.concatenate([part.images for part in parts]), expected)
    assert list(pool.names()) == [f'{file}#{i}' for i in range(6)] == [name for part in parts for name in part.names]


def test_content_decides_what_is_an_image_and_what_is_left_out_is_counted_by_kind(contents, tmp_path, pool_of, capfd):
    paths, images = contents
    names = ['IMG_0.HEIC', 'a.png?width=640', 'b.png.1', 'c', 'd.jpg', 'e.png']  # a wrong suffix too
    for name, content in zip(names, images):
        (tmp_path / 'odd' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'odd' / name).write_bytes(content)
    for name in ('f.heic', 'g.HEIC', 'captions.txt', 'shards/0000.tar', 'shards/0001.tar'):
        (tmp_path / 'odd' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'odd' / name).write_bytes(b'no image')
    assert_pool_is(pool_of(tmp_path / 'odd'), [str(tmp_path / 'odd' / name) for name in names], expected=paths)
    line = next(x for x in capfd.readouterr().out.splitlines() if 'left out' in x)
    for told in ('2 .heic: pip install pillow-heif;', f'2 .tar: name the shards, --wild "{tmp_path}/odd/shards/{{0000..0001}}.tar"'):
        assert told in line and '1 .txt' in line


@pytest.mark.parametrize('content, told', [
    (b'nowhere/0.png\nnowhere/1.png\n', 'none of its paths exists, the first is {}/nowhere/0.png'),
    ('nowhere/0.png\n'.encode('utf-16'), 'none of its paths exists, the first is {}/nowhere/0.png'),
    (b'https://example.com/0.jpg\n', 'lists URLs, the first is https://example.com/0.jpg')])
def test_a_list_that_leads_nowhere_says_why(content, told, tmp_path, pool_of, capfd):
    (tmp_path / 'some.txt').write_bytes(content)
    assert told.format(tmp_path) in error_of(pool_of, tmp_path / 'some.txt')
    assert ('UTF-16' in capfd.readouterr().out) == (content[:2] == b'\xff\xfe')


def test_a_list_in_utf_16_is_read(tmp_path, pool_of):
    paths = write_images(tmp_path, 2)
    (tmp_path / 'some.txt').write_text('001.png\n000.png\n', encoding='utf-16')
    assert_pool_is(pool_of(tmp_path / 'some.txt'), paths[::-1])


def test_batches_in_any_order_equal_single_images_from_memory_or_disk(tmp_path, monkeypatch, capfd):
    images, random = random_images(7, 3, 32, 32), np.random.default_rng(0)
    for i, rows in enumerate((range(3), range(0), range(3, 7))):
        parts.save_part(tmp_path, i, images[rows], [f'image {k}' for k in rows])
    pool = Pool([parts.Part(tmp_path / f'{i:06d}.npy', n) for i, n in enumerate((3, 0, 4))], 'a+b')
    assert len(pool) == 7 and list(pool.names()) == [f'image {k}' for k in range(7)]
    for _ in range(20):
        indices = random.integers(0, 7, 5)
        assert np.array_equal(pool.take(indices), images[indices])
        assert np.array_equal(pool.take(torch.from_numpy(indices)), images[indices])
    assert pool.take(np.array([], int)).shape == (0, 3, 32, 32)

    chosen, positions = np.array([1, 3, 5, 6]), torch.tensor([3, 0, 3])
    resident = pool.reader(chosen, CPU)  # where they fit
    assert isinstance(resident, torch.Tensor) and np.array_equal(resident, images[chosen]) and capfd.readouterr().out == ''
    monkeypatch.setattr(wild_pool, 'free_memory', lambda device: 2 * images[chosen].nbytes)
    reader = pool.reader(chosen, CPU)
    assert not isinstance(reader, torch.Tensor) and torch.equal(reader[positions], resident[positions])
    assert 'cache' in capfd.readouterr().out


@pytest.fixture(scope='module')
def demo():
    pytest.importorskip('sklearn')
    pytest.importorskip('matplotlib')
    return demo_pool.draw_characters(32, glyphs=60)[:, None]


def test_folders_a_set_and_the_demo_are_joined_and_streamed(tmp_path, pool_of, wild_of, demo, monkeypatch, fork):
    demo = demo[:20]
    monkeypatch.setattr(demo_pool, 'draw', lambda size: demo[:, 0])
    monkeypatch.setattr(decode, 'CHUNK', 2)
    (tmp_path / 'data').mkdir()
    usps, n = resized(write_usps(tmp_path / 'data', monkeypatch)), len(demo)
    a, b = write_images(tmp_path / 'a', 2), write_images(tmp_path / 'b', 3)
    sources = ('demo', tmp_path / 'a', 'USPS', tmp_path / 'b')
    pool = pool_of(*sources)
    assert len(pool) == n + 2 + len(usps) + 3 and pool.name == 'demo+a+usps+b'
    indices = [len(pool) - 1, n, n + 2, n - 1, 0]
    names = list(pool.names())
    assert len(names) == len(pool) and [names[i] for i in indices] == [b[2], a[0], 'usps[0]', f'demo[{n - 1}]', 'demo[0]']
    expected = [reference(b[2], 3), reference(a[0], 3), *(x.repeat(3, axis=0) for x in (usps[0], demo[-1], demo[0]))]
    assert np.array_equal(pool.take(indices), expected)

    (tmp_path / 'a' / 'broken.png').write_bytes(b'no image')
    for workers in (0, 2):
        parts = list(open_stream(wild_of(*sources, workers=workers)))
        numbers = [part.number for part in parts]
        assert numbers == sorted(set(numbers)) and [name for part in parts for name in part.names] == names
        assert np.array_equal(np.concatenate([part.images for part in parts]), pool.take(range(len(pool))))
        assert [skip.image for part in parts for skip in part.skipped] == [str(tmp_path / 'a' / 'broken.png')]
    assert len(whole(tmp_path / 'cache')) == 4  # as before: nothing of the folders was kept


def write_usps(root, monkeypatch):
    images = np.stack([pixels(i, 16, 16) for i in range(3)])
    values = [' '.join(f'{k}:{v / 255 * 2 - 1 + 1e-4:.5f}' for k, v in enumerate(x.flatten(), 1)) for x in images]
    (root / 'usps.bz2').write_bytes(bz2.compress('\n'.join(f'{label} {row}' for label, row in enumerate(values, 1)).encode()))
    return images


def write_emnist(root, monkeypatch):
    images = np.stack([pixels(i, 28, 28) for i in range(3)])  # upright: the file holds them transposed
    write_idx(root / 'EMNIST' / 'raw' / 'emnist-letters-train-images-idx3-ubyte', np.ascontiguousarray(images.transpose(0, 2, 1)))
    write_idx(root / 'EMNIST' / 'raw' / 'emnist-letters-train-labels-idx1-ubyte', np.arange(3, dtype=np.uint8))
    return images


def write_svhn(root, monkeypatch):
    images, file = np.stack([pixels(i, 32, 32, 3) for i in range(3)]), root / 'train_32x32.mat'
    pytest.importorskip('scipy.io').savemat(file, {'X': images.transpose(1, 2, 3, 0), 'y': np.array([[1], [10], [3]])})
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setitem(torchvision.datasets.SVHN.split_list, 'train', ['', file.name, md5])
    return images


def write_stl10(root, monkeypatch):
    make, images = torchvision.datasets.STL10, np.stack([pixels(i, 96, 96, 3) for i in range(3)])
    (root / make.base_folder).mkdir()
    for which in ('train_list', 'test_list'):
        files = []
        for name, _ in getattr(make, which):
            content = images.transpose(0, 3, 2, 1).tobytes() if name == 'unlabeled_X.bin' else b'labelled, and not read'
            (root / make.base_folder / name).write_bytes(content)
            files.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(make, which, files)
    return images


@pytest.mark.parametrize('name, write', [('usps', write_usps), ('emnist', write_emnist), ('svhn', write_svhn), ('stl10', write_stl10)])
def test_a_torchvision_set_by_name_equals_its_file_and_is_kept(name, write, tmp_path, pool_of, interrupted, monkeypatch, no_network):
    (tmp_path / 'data').mkdir()
    images = [Image.fromarray(x) for x in write(tmp_path / 'data', monkeypatch)]
    interrupted(2, lambda: pool_of(name))
    assert whole(tmp_path / 'cache') == set()
    for channels in (1, 3):  # a grey set for a colour teacher too, and the other way round
        pool, expected = pool_of(name, channels=channels), np.stack([reference(image, channels) for image in images])
        assert list(pool.names()) == [f'{name}[{i}]' for i in range(3)] and pool.name == name
        assert np.array_equal(pool.take(range(3)), expected)
    os.rename(tmp_path / 'data', tmp_path / 'moved away')
    assert np.array_equal(pool_of(name).take([2, 0]), expected[[2, 0]])  # from the cache


def test_a_torchvision_set_that_is_replaced_is_decoded_anew(tmp_path, pool_of, monkeypatch):
    (tmp_path / 'data').mkdir()
    write_usps(tmp_path / 'data', monkeypatch)
    before = pool_of('usps')
    digest = before.digest()
    (part := before.parts[0].file).with_suffix('.scores-0.npz').write_bytes(b'of the teacher')
    for count in (3, 2):
        images = np.stack([pixels(10 + i, 16, 16) for i in range(count)])
        monkeypatch.setattr('test_wild.pixels', lambda i, *size, images=images: images[i % len(images)])
        write_usps(tmp_path / 'data', monkeypatch)
        after = pool_of('usps')
        assert after.digest() != digest
        assert np.array_equal(after.take(range(3))[:, 0], [reference(Image.fromarray(x), 1)[0] for x in images[[0, 1, 2 % count]]])
        assert not part.with_suffix('.scores-0.npz').exists()


def test_a_pool_is_known_by_its_pixels_wherever_it_lies(tmp_path, pool_of, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 2)
    paths = write_images(tmp_path / 'photos', 5)
    digest = pool_of(tmp_path / 'photos').digest()
    os.rename(tmp_path / 'photos', tmp_path / 'elsewhere')
    assert pool_of(tmp_path / 'elsewhere').digest() == digest == pool_of(f'{tmp_path}//elsewhere/').digest()
    path, stat = paths[3].replace('photos', 'elsewhere'), os.stat(tmp_path / 'elsewhere' / '003.png')
    with open(path, 'r+b') as file:  # another image of the same size and time
        file.write(Path(tmp_path / 'elsewhere' / '002.png').read_bytes().ljust(stat.st_size, b'\0')[: stat.st_size])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert pool_of(tmp_path / 'elsewhere').digest() != digest


@pytest.mark.parametrize('name', SETS)
def test_a_set_without_a_network_is_told_in_one_line(name, tmp_path, pool_of, no_network, capfd, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    text = error_of(pool_of, name)
    assert name in text and str(tmp_path / 'data') in text and '--wild demo' in text
    out = capfd.readouterr().out  # of a folder of the set's name, and nothing of torchvision's
    assert f'./{name}' in out and out.count('\n') == 1 and not (tmp_path / 'cache').exists()


def test_the_characters_are_1797_digits_and_the_glyphs_none_of_them_blank(demo):
    assert demo.shape == (1797 + 60, 1, 32, 32) and demo.dtype == np.uint8
    assert demo.max(axis=(1, 2, 3)).min() > 150  # light strokes
    assert np.median(demo, axis=(1, 2, 3)).max() < 100  # on a dark ground
    assert len(np.unique(demo.reshape(len(demo), -1), axis=0)) == len(demo)  # each of its own


def test_the_demo_pool_is_the_same_at_every_call_and_another_for_another_seed(monkeypatch):
    import sklearn.datasets

    digits = sklearn.datasets.load_digits().images[:30]
    monkeypatch.setattr(sklearn.datasets, 'load_digits', lambda: SimpleNamespace(images=digits))
    first, again, other = (demo_pool.draw(32, others=30, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (30 + 1203 + 30, 32, 32) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_demo_pools_order_does_not_tell_digits_from_glyphs_and_other_kinds(monkeypatch):
    for name, value in (('handwritten', 1), ('glyph', 2)):
        monkeypatch.setattr(demo_pool, name, lambda *a, value=value: np.full((32, 32), value, np.uint8))
    for name in ('patch', 'texture', 'noise'):
        monkeypatch.setattr(demo_pool.kinds, name, lambda *a: np.full((32, 32, 1), 3, np.uint8))
    pool = demo_pool.draw(32, others=600)[:, 0, 0]
    for kind, count in ((1, 1797), (2, 1203), (3, 600)):
        assert (pool == kind).sum() == count and abs(np.flatnonzero(pool == kind).mean() - 1800) < 180  # 42 is the standard error of 600


@pytest.mark.parametrize('package', ['sklearn.datasets', 'matplotlib'])
def test_the_demo_pool_without_a_package_says_how_to_get_it(package, tmp_path, pool_of, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    text = error_of(pool_of, 'demo', channels=1)
    assert package in text and 'pip install -r requirements-demo.txt' in text
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('channels', [1, 3])
def test_the_noise_pool_is_normal_and_the_same_at_every_call(channels):
    first, second = (demo_pool.draw_noise(32, channels, 200) for _ in range(2))
    assert first.shape == ((200, 32, 32) if channels == 1 else (200, 32, 32, 3)) and first.dtype == np.uint8
    assert np.array_equal(first, second) and len(np.unique(first.reshape(200, -1), axis=0)) == 200
    assert abs(first.mean() - 127.5) < 1 and abs(first.std() - 61.5) < 1  # 64, except for what is cut off
