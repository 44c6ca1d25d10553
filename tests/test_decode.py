"""Decoding beside PIL and torchvision, pixel by pixel: every format and mode, broken files, the cache and how it is built."""
import contextlib
import errno
import faulthandler
import functools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import filelock
import numpy as np
import pytest
from images import assert_pool_is, break_files, error_of, pixels, random_images, reference, whole, write_images
from PIL import Image, ImageOps
from torchvision import transforms

from utils import read_json_lines
from wild import decode, parts, reading, workers
from wild.decode import decode_files, jobs_of
from wild.pixels import to_array
from wild.pool import Pool
from wild.reading import Decoder, Skip
from wild.workers import lock, locked, run_jobs

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
                image = Image.fromarray(pixels(i, 33 + 9 * i, 60 - 5 * i, 4 if mode in ('RGBA', 'LA') else 3)).convert(mode)
            path = folder / mode.replace(';', '') / suffix / f'image.{suffix.upper() if i % 2 else suffix}'
            path.parent.mkdir(parents=True)
            image.save(path)
            paths.append(str(path))
    return sorted(paths)


@pytest.mark.parametrize('channels', [1, 3])
def test_every_format_and_mode_equals_pil_and_torchvision(channels, tmp_path, pool_of, capfd):
    paths = write_every_format(tmp_path / 'photos')
    pool = pool_of(tmp_path / 'photos', channels=channels)
    assert len(paths) == 33 and pool.name == 'photos'
    assert_pool_is(pool, paths, channels)
    assert 'skipped' not in capfd.readouterr().out
    assert pool.take([5]).float().std() > 10  # a picture, not one grey


@pytest.mark.parametrize('shape, scale', [
    ((375, 500), 4), ((500, 375), 4), ((333, 500), 4), ((319, 500), 2), ((160, 256), 2), ((900, 600), 4), ((1100, 2000), 8),
    ((127, 127), 1), ((96, 400), 1), ((20, 31), 1), ((159, 159), 1)])
def test_only_a_large_jpeg_is_decoded_at_a_smaller_scale_and_hardly_differs(shape, scale, tmp_path):
    grain = np.random.default_rng(0).normal(0, 6, (*shape, 3))  # on smooth shapes, as a camera's
    Image.fromarray((pixels(0, *shape, 3) + grain).clip(0, 255).astype(np.uint8)).save(tmp_path / 'a.jpg', quality=90)
    for channels in (1, 3):
        with Image.open(tmp_path / 'a.jpg') as image:
            ours = to_array(image, 32, channels)
            assert image.size == (-(-shape[1] // scale), -(-shape[0] // scale))  # the decoder did less
        difference = np.abs(ours.astype(int) - reference(tmp_path / 'a.jpg', channels)).mean()
        assert ours.shape == (channels, 32, 32)
        assert difference < 0.4 if scale > 1 else difference == 0  # 0.6 to 1.9 for those moved by a part of a pixel


def drawing(paper=255, ink=0):
    image = Image.new('L', (64, 64), paper)
    image.paste(ink, (24, 8, 40, 56))
    return image


def clear(ink, mode):
    """The drawing, in ink, on a transparent ground of the ink's colour."""
    image = Image.new(mode, (64, 64), (ink,) * (len(mode) - 1) + (0,))
    image.putalpha(drawing(0, 255))
    return image


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
@pytest.mark.parametrize('ink', [0, 90, 170, 255])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_drawing_on_a_transparent_ground_is_visible(mode, ink, channels):
    shown = to_array(clear(ink, mode), 32, channels)
    assert shown[:, 16, 16].tolist() == [ink] * channels and shown[:, 2, 2].tolist() == [255 if ink < 128 else 0] * channels
    opaque = Image.fromarray(pixels(0, 50, 40, 3))
    assert np.array_equal(to_array(opaque.convert('RGBA'), 32, channels), to_array(opaque, 32, channels))
    palette = clear(ink, 'RGBA').quantize(16)  # as in a GIF or a small PNG
    assert np.abs(to_array(palette, 32, channels).astype(int) - shown).max() < 10


@pytest.mark.parametrize('kind, factor', [(np.uint16, 1), (np.int32, 1), (np.uint16, 16), (np.int32, 257), (np.uint16, 257),
                                          (np.int32, 2**20), (np.float32, 1), (np.float32, 1 / 255), (np.float32, 1.004 / 255),
                                          (np.float32, 257)])
def test_grey_of_a_wide_type_is_scaled_by_the_bits_that_it_uses(kind, factor):
    image = Image.fromarray((np.asarray(drawing(), np.float64) * factor).astype(kind))
    assert image.mode[0] in 'IF' and np.abs(to_array(image, 64, 1)[0].astype(int) - np.asarray(drawing())).max() <= 1


@pytest.mark.parametrize('size', [32, 96])
@pytest.mark.parametrize('shape', [(375, 500), (64, 84)])
@pytest.mark.parametrize('turn', range(1, 9))
def test_a_photo_that_was_taken_on_its_side_is_upright(turn, shape, size, tmp_path):
    exif, image = Image.Exif(), Image.fromarray(pixels(0, *shape, 3))
    exif[0x0112] = turn
    for suffix in ('jpg', 'png', 'tiff'):
        image.save(tmp_path / f'a.{suffix}', exif=exif)
        with Image.open(tmp_path / f'a.{suffix}') as file:
            upright = ImageOps.exif_transpose(file)
        with Image.open(tmp_path / f'a.{suffix}') as file:
            assert np.abs(to_array(file, size, 3).astype(int) - to_array(upright, size, 3)).mean() < 0.6, suffix


@pytest.mark.parametrize('shape', [(300, 400), (500, 375), (240, 250), (100, 700), (224, 224), (256, 256), (1, 3000)])
def test_above_64_the_aspect_is_kept_as_torchvisions_references_do(shape):
    image = Image.fromarray(random_images(*shape, 3))
    short = max(224, min(256, *shape))  # a smaller image is not enlarged to be cut
    ours = to_array(image, 224, 3)
    assert ours.shape == (3, 224, 224)
    if shape[0] > 1:
        theirs = transforms.Compose([transforms.Resize(short), transforms.CenterCrop(224)])(image)
        assert np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(theirs)).max() <= 1


def test_jobs_of_larger_images_take_fewer_of_them():
    paths = [f'{i}.png' for i in range(2000)]
    assert [len(job) for job in jobs_of(paths, 32)] == [len(job) for job in jobs_of(paths, 64)] == [1024, 976]
    assert len(next(jobs_of(paths, 224))) == 83 and len(next(jobs_of(paths, 10_000))) == 1
    assert list(jobs_of(['a.tar'], 32)) == [('a.tar', 0, None)]


def test_broken_files_are_skipped_counted_and_listed(tmp_path, pool_of, capfd, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 2)
    good, broken = break_files(tmp_path / 'photos')
    for _ in range(2):  # the second time from the cache
        assert_pool_is(pool_of(tmp_path / 'photos'), good)
        out, err = capfd.readouterr()
        line = next(x for x in out.splitlines() if 'skipped 3 of 6' in x)
        listed = read_json_lines(next(word for word in line.split() if word.endswith('skipped.jsonl')))
        assert [skip['image'] for skip in listed] == broken and not any(skip['again'] for skip in listed)
        assert [skip['reason'].split()[0] for skip in listed] == ['is', 'is', 'OSError:'] and 'warning: 50 % of photos' in err
    for path in good:
        os.remove(path)
    for _ in range(2):  # nothing is left
        text = error_of(pool_of, tmp_path / 'photos')
        assert 'photos' in text and 'name a folder' in text and 'skipped 3 of 3' in capfd.readouterr().out


@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes are Linux')
def test_any_bytes_of_a_name_are_kept_and_a_line_end_in_it_moves_no_other_name(tmp_path, pool_of):
    names = [b'0\n.png', b'1\r.png', '2\u2028\x85\x0c.png'.encode(), b'3.png', b'\xe9.png']
    for path, name in zip(write_images(tmp_path / 'photos', 5), names):
        os.rename(path, os.fsencode(tmp_path / 'photos') + b'/' + name)
    with open(os.fsencode(tmp_path / 'photos') + b'/gar\xff\xfe\nbage.png', 'wb'):
        pass
    found = [os.fsencode(os.path.basename(name)) for name in pool_of(tmp_path / 'photos').names()]
    assert found == [b'0\\n.png', *names[1:]]
    listed = read_json_lines(next((tmp_path / 'cache').glob('*/skipped.jsonl')))
    assert [os.fsencode(skip['image']).rpartition(b'/')[2] for skip in listed] == [b'gar\xff\xfe\nbage.png']


@pytest.mark.parametrize('broken', [range(2), range(2, 4), range(4, 5)])
def test_a_part_without_a_single_image_does_no_harm(broken, tmp_path, pool_of, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 2)
    paths = write_images(tmp_path / 'photos', 5)
    for i in broken:
        Path(paths[i]).write_bytes(b'broken')
    for _ in range(2):
        assert_pool_is(pool_of(tmp_path / 'photos'), [p for i, p in enumerate(paths) if i not in broken])


@pytest.mark.parametrize('error', [errno.EMFILE, errno.EIO, errno.ENOENT, errno.EACCES, errno.ESTALE, errno.ENOTCONN])
def test_a_fault_of_the_file_system_is_no_broken_file_and_never_cached(error, tmp_path, pool_of, monkeypatch, decoded):
    paths, original = write_images(tmp_path / 'photos', 5), reading.opened
    monkeypatch.setattr(decode, 'CHUNK', 2)
    with monkeypatch.context() as m:
        m.setattr(reading, 'opened', lambda path, *a: original(path if path != paths[3] else fail(error), *a))
        assert_pool_is(pool_of(tmp_path / 'photos'), paths[:3] + paths[4:])
        listed = read_json_lines(next((tmp_path / 'cache').glob('*/skipped.jsonl')))
        assert [skip['image'] for skip in listed] == [paths[3]] and errno.errorcode[error] in listed[0]['reason'] and listed[0]['again']
        decoded.clear()
        assert_pool_is(pool_of(tmp_path / 'photos'), paths[:3] + paths[4:])
        assert decoded == []
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)
    assert decoded == paths[2:4]
    assert read_json_lines(next((tmp_path / 'cache').glob('*/skipped.jsonl'))) == []


def fail(error):
    raise OSError(error, os.strerror(error))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_folder_that_vanishes_stops_the_build_and_is_read_when_it_is_back(workers, tmp_path, pool_from, monkeypatch, fork):
    paths, original = write_images(tmp_path / 'photos', 40), decode.write_part
    monkeypatch.setattr(decode, 'CHUNK', 8)

    def vanish(task, **more):
        if task[1] >= 1:  # whichever of them a worker takes first
            with contextlib.suppress(FileNotFoundError):
                os.rename(tmp_path / 'photos', tmp_path / 'away')
        return original(task, **more)

    with monkeypatch.context() as m:
        m.setattr(decode, 'write_part', vanish)
        text = error_of(pool_from, paths, workers)
    assert 'of 40 files can not be read' in text and 'ENOENT' in text and 'the same command again' in text
    assert whole(tmp_path / 'cache') == set()
    os.rename(tmp_path / 'away', tmp_path / 'photos')
    assert_pool_is(pool_from(paths, workers), paths)


def test_a_second_build_that_is_stopped_moves_no_name_to_another_image(tmp_path, pool_of, monkeypatch):
    paths, original = write_images(tmp_path / 'photos', 5), reading.opened
    with monkeypatch.context() as m:
        m.setattr(reading, 'opened', lambda path, *a: original(path if path != paths[1] else fail(errno.EIO), *a))
        assert_pool_is(pool_of(tmp_path / 'photos'), paths[:1] + paths[2:])
    with monkeypatch.context() as m:
        m.setattr(parts.np, 'save', lambda *a: fail(errno.ENOSPC))  # the names are written, and the array is not
        assert 'free space' in error_of(pool_of, tmp_path / 'photos')
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)


def test_files_that_are_not_there_are_told_before_the_others_are_decoded(tmp_path, pool_from, decoded):
    paths = write_images(tmp_path / 'photos', 40)
    text = error_of(pool_from, [*paths, *(str(tmp_path / 'gone' / f'{i}.png') for i in range(17))])
    assert '17 of 57 files can not be read' in text and 'gone/0.png' in text and not decoded and not list((tmp_path / 'cache').glob('*'))
    assert len(pool_from([*paths, *(str(tmp_path / 'gone' / f'{i}.png') for i in range(16))])) == 40  # few: skipped


@pytest.mark.parametrize('name', ['n' * 240, '\u6f22' * 80])
def test_a_long_name_has_a_cache(name, tmp_path, pool_of):
    paths = write_images(tmp_path / name, 2)
    assert_pool_is(pool_of(tmp_path / name), paths)


def test_limits_that_are_written_another_way_are_the_same(tmp_path, pool_of, decoded):
    paths = write_images(tmp_path / 'photos', 2)
    for seconds in (10, 10.0):
        pool_of(tmp_path / 'photos', seconds=seconds)
    assert decoded == paths


@pytest.mark.parametrize('workers', [0, 1])
def test_a_file_too_large_to_read_is_skipped(workers, tmp_path, pool_of, capfd):
    paths = write_images(tmp_path / 'photos', 3)
    with open(tmp_path / 'photos' / 'z.png', 'wb') as file:
        file.write(Path(paths[0]).read_bytes())
        file.truncate(2**40)  # a hole
    assert_pool_is(pool_of(tmp_path / 'photos', workers=workers), paths)
    assert 'z.png (takes more than --decode_memory 1024 MB)' in capfd.readouterr().out


def test_what_a_worker_was_writing_when_it_was_ended_is_taken_away(tmp_path):
    def write(folder):
        for name in ('000000.npy', '000001.npy.partial'):
            (folder / name).touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode.cached(tmp_path / 'x', write)
    assert [path.name for path in (tmp_path / 'x.partial').iterdir()] == ['000000.npy']


def test_a_fault_that_passes_is_waited_for(tmp_path, pool_of, monkeypatch):
    paths, original, left = write_images(tmp_path / 'photos', 3), open, iter([errno.ESTALE, errno.EIO])
    monkeypatch.setattr(reading, 'PAUSES', (0, 0, 0))

    def failing(path, *a, **k):
        if path == paths[1] and (error := next(left, None)):
            fail(error)
        return original(path, *a, **k)

    monkeypatch.setattr(reading, 'open', failing, raising=False)
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)
    assert next(left, None) is None


def test_no_memory_in_this_process_is_no_broken_file(tmp_path, pool_of, monkeypatch):
    write_images(tmp_path / 'photos', 1)
    monkeypatch.setattr(Image, 'open', Mock(side_effect=MemoryError()))
    assert '000.png' in (text := error_of(pool_of, tmp_path / 'photos')) and 'the same command again' in text


@pytest.mark.parametrize('change', [None, 'channels', 'content', 'time', 'size', 'added', 'removed', 'renamed'])
def test_only_a_changed_folder_is_decoded_anew(change, tmp_path, pool_of, decoded):
    paths = write_images(tmp_path / 'photos', 3)
    assert_pool_is(pool_of(tmp_path / 'photos'), paths)
    other, stat, channels = str(tmp_path / 'photos' / 'z.png'), os.stat(paths[1]), 1 if change == 'channels' else 3
    if change in ('content', 'size'):
        Image.fromarray(pixels(99, *((44, 70) if change == 'size' else (40, 50)), 3)).save(paths[1])
    if change in ('content', 'time', 'size'):
        os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if change == 'size' else 1000)))
    elif change == 'added':
        Image.fromarray(pixels(99, 44, 70, 3)).save(other)
        paths.append(other)
    elif change == 'removed':
        os.remove(paths.pop(1))
    elif change == 'renamed':
        os.rename(paths[0], other)
        paths = [*paths[1:], other]
    decoded.clear()
    pool = pool_of(tmp_path / 'photos', channels=channels)
    assert sorted(decoded) == (paths if change else [])
    assert_pool_is(pool, paths, channels)


@pytest.fixture
def pool_from(tmp_path):
    """Decodes a list of files to the test's cache."""
    return lambda paths, workers=0: Pool(decode_files(paths, (32, 3), tmp_path / 'cache', 'photos', Decoder(workers)), 'photos')


def test_a_build_that_is_stopped_leaves_no_cache_and_goes_on_where_it_was(tmp_path, pool_from, interrupted, decoded, monkeypatch):
    paths = write_images(tmp_path / 'photos', 9)
    monkeypatch.setattr(decode, 'CHUNK', 2)
    interrupted(5, lambda: pool_from(paths))
    assert decoded == paths[:6] and whole(tmp_path / 'cache') == set()
    assert_pool_is(pool_from(paths[:3]), paths[:3])  # the parts of other files are not taken for these
    decoded.clear()
    pool = pool_from(paths)
    assert decoded == paths[4:] and len(whole(tmp_path / 'cache')) == 2  # the part that was torn is done again
    assert_pool_is(pool, paths)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSEGV, signal.SIGPROF])
@pytest.mark.parametrize('wrong', [{8}, {0, 5, 9}])
def test_a_decoder_that_dies_takes_its_image_alone_with_it(number, wrong, tmp_path, pool_from, monkeypatch, fork, capfd):
    paths, original = write_images(tmp_path / 'photos', 10), reading.to_array
    monkeypatch.setattr(decode, 'CHUNK', 2)

    def killed(image, *a):
        faulthandler.disable()  # pytest's
        if image.fp.getbuffer().nbytes in sizes:
            os.kill(os.getpid(), number)
        return original(image, *a)

    monkeypatch.setattr(reading, 'to_array', killed)
    for i, path in enumerate(paths):  # each of its own size
        with open(path, 'ab') as file:
            file.write(bytes(i))
    sizes = {os.path.getsize(paths[i]) for i in wrong}
    assert_pool_is(pool_from(paths, 2), [p for i, p in enumerate(paths) if i not in wrong])
    listed = read_json_lines(next((tmp_path / 'cache').glob('*/skipped.jsonl')))
    assert [skip['image'] for skip in listed] == [paths[i] for i in sorted(wrong)]
    told = '--decode_seconds' if number == signal.SIGPROF else signal.Signals(number).name
    assert all(told in skip['reason'] for skip in listed) and multiprocessing.active_children() == []


@pytest.mark.parametrize('name', Image.OPEN)
def test_an_empty_file_of_any_format_is_no_image(name):
    assert isinstance(reading.Decoder(formats=(name,)).accepts(b''), bool)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_a_hard_limit_on_memory_is_kept(monkeypatch):
    kept = Mock()
    monkeypatch.setattr(reading.resource, 'getrlimit', lambda kind: (2**30, 2**30))
    monkeypatch.setattr(reading.resource, 'setrlimit', kept)
    reading.limit_memory(reading.Decoder(workers=1, memory=2**20))
    reading.limit_memory(reading.Decoder(workers=1, memory=16))
    limits = [call.args[1] for call in kept.call_args_list]
    assert limits[0] == (2**30, 2**30) and limits[1][0] <= 2**30 == limits[1][1]


def test_a_damaged_part_that_has_fewer_images_when_it_is_decoded_again_is_told_once(tmp_path, pool_of, monkeypatch):
    paths, original = write_images(tmp_path / 'photos', 3), decode.decode_job
    pool = pool_of(tmp_path / 'photos')
    pool.parts[0].file.write_bytes(b'damaged')
    monkeypatch.setattr(decode, 'decode_job', lambda *a: [some[1:] if i < 2 else some for i, some in enumerate(original(*a))])
    assert 'the same command again' in error_of(pool.take, [0])
    assert_pool_is(pool_of(tmp_path / 'photos'), paths[1:])


def test_a_part_that_is_done_again_forgets_what_was_skipped(tmp_path):
    parts.save_part(tmp_path, 0, np.zeros((1, 3, 32, 32), np.uint8), ['a'], skipped=[Skip('b', 'is empty')])
    parts.save_part(tmp_path, 0, np.zeros((2, 3, 32, 32), np.uint8), ['a', 'b'])
    assert sorted(os.listdir(tmp_path)) == ['000000.npy', '000000.txt']


def test_a_pool_of_many_parts_maps_few_at_a_time_and_checks_each_once(tmp_path, pool_from, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 1)
    monkeypatch.setattr(parts, 'mapped', functools.lru_cache(3)(parts.mapped.__wrapped__))
    paths = write_images(tmp_path / 'photos', 8)
    pool, checked = pool_from(paths), Mock(side_effect=parts.checked)
    monkeypatch.setattr(parts, 'checked', checked)
    for _ in range(2):
        assert_pool_is(pool, paths)
    assert checked.call_count == 8 and parts.mapped.cache_info().currsize == 3


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
def test_a_pool_of_many_parts_keeps_no_file_open(tmp_path, pool_from, monkeypatch):
    monkeypatch.setattr(decode, 'CHUNK', 1)
    paths = write_images(tmp_path / 'photos', 20)
    pool = pool_from(paths)
    before = len(os.listdir('/proc/self/fd'))
    assert_pool_is(pool, paths)
    assert len(os.listdir('/proc/self/fd')) <= before  # or 1,024 parts would be the end


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, pool_of):
    write_images(tmp_path / 'photos', 1)
    (tmp_path / 'file').write_text('in the way')
    assert f'--cache_dir {tmp_path / "file"}' in error_of(pool_of, tmp_path / 'photos', cache_dir=tmp_path / 'file')


@pytest.mark.parametrize('method, workers', [('fork', 2), ('spawn', 1)])
def test_worker_processes_decode_as_this_one(method, workers, tmp_path, pool_from, monkeypatch, fork):
    good, broken = break_files(tmp_path / 'photos')
    monkeypatch.setattr(decode, 'CHUNK', 2)
    multiprocessing.set_start_method(method, force=True)
    assert_pool_is(pool_from(sorted(good + broken), workers), good)


@pytest.mark.parametrize('workers', [0, 2])
def test_few_jobs_are_under_way_at_a_time_and_results_come_in_order(workers, fork):
    taken, done = [], []

    def jobs():
        for number in range(200):
            taken.append(number)
            yield -number

    for result in run_jobs(abs, jobs(), workers):
        done.append(result)
        assert len(taken) - len(done) <= 3 * workers
    assert done == list(range(200))


def test_of_two_processes_that_want_the_same_cache_one_decodes_and_both_get_it(tmp_path, pool_from, monkeypatch, fork):
    paths, original = write_images(tmp_path / 'photos', 16), reading.to_array
    monkeypatch.setattr(decode, 'CHUNK', 4)

    def slow(*a):
        time.sleep(0.02)
        with open(tmp_path / 'count', 'a') as f:
            f.write('x')
        return original(*a)

    def build(together, pools):
        together.wait()
        pools.put(pool_from(paths, workers=2).take(range(16)).numpy())

    monkeypatch.setattr(reading, 'to_array', slow)
    together, pools = multiprocessing.Barrier(2), multiprocessing.Queue()
    runs = [multiprocessing.Process(target=build, args=(together, pools)) for _ in range(2)]
    for run in runs:
        run.start()
    for _ in runs:
        assert np.array_equal(pools.get(timeout=100), [reference(p, 3) for p in paths])
    for run in runs:
        run.join(100)
    assert (tmp_path / 'count').read_text() == 'x' * 16


def test_a_lock_is_waited_for_and_let_go(tmp_path, monkeypatch):
    held = lock(tmp_path / 'lock')
    assert held and not lock(tmp_path / 'lock')
    monkeypatch.setattr(workers, 'say', said := Mock(side_effect=lambda line: held.release()))
    with locked(tmp_path / 'lock'):
        assert str(tmp_path / 'lock') in said.call_args[0][0] and not lock(tmp_path / 'lock')
    assert lock(tmp_path / 'lock') and said.call_count == 1
    for number, passes in ((errno.ENOLCK, True), (errno.EACCES, False)):  # a file system without locks is used without
        monkeypatch.setattr(filelock.FileLock, 'acquire', Mock(side_effect=OSError(number, 'refused')))
        with contextlib.nullcontext() if passes else pytest.raises(OSError, match='refused'):
            assert lock(tmp_path / 'lock')


def wait_until(condition):
    until = time.time() + 60
    while not condition():
        assert time.time() < until
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/cmdline').read_bytes() != b''  # a zombie's is empty
    except OSError:
        return False


@pytest.mark.skipif(not Path('/proc/self/cmdline').exists(), reason='no /proc')
@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_a_killed_run_leaves_neither_its_lock_nor_its_workers(method, tmp_path, fork):
    begun, path = tmp_path / 'begun', tmp_path / 'lock'
    begun.mkdir()
    job = f'import os, time; os.mkdir(os.path.join({str(begun)!r}, str(os.getpid()))); time.sleep(100)'

    def hold():
        multiprocessing.set_start_method(method, force=True)
        with locked(path):
            list(run_jobs(exec, [job] * 2, 2))

    run = multiprocessing.Process(target=hold)
    run.start()
    wait_until(lambda: len(os.listdir(begun)) == 2)
    assert not lock(path) and all(map(is_alive, os.listdir(begun)))
    run.kill()
    run.join()
    wait_until(lambda: lock(path) and not any(map(is_alive, os.listdir(begun))))
