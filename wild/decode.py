"""Image files and shards to uint8 arrays: decoded once by worker processes, then kept in parts and read as memory."""

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np

from utils import (
    Damaged,
    UserError,
    checked,
    first_line,
    progress,
    read_json,
    say,
    warn,
    write_json,
)
from wild.parts import Part, read_names, read_skipped, remove, save_part, write_skipped
from wild.pixels import SQUARE, to_array
from wild.reading import Skip, cut_shard, decode_job, read_file
from wild.workers import locked, run_jobs

DECODER = 'pil-8'  # part of a cache's key: raise it when the pixels that come out, a part's files, or CHUNK change
CHUNK = 1024  # files of a part up to SQUARE; a shard is a part of its own
MANY = 0.05  # the share of files at which skipped ones are warned of, and unreadable ones end a build


def write_part(task, apart=False):
    """Decodes a job into the files of a part. The array gets its name last: a part that has it is whole."""
    folder, number, job, size, channels, decoder = task
    images, names, skipped = decode_job(job, size, channels, decoder, apart)
    save_part(folder, number, images, names, skipped)
    return len(names), skipped


def jobs_of(paths, size):
    """Cuts an iterable of paths into jobs: each shard is one, and of other files up to CHUNK are. Above SQUARE a job takes fewer
    images, as many bytes, and shards are cut too: some jobs of every worker are in memory at a time."""
    count = CHUNK if size <= SQUARE else max(1, CHUNK * SQUARE**2 // size**2)
    for shards, some in itertools.groupby(paths, lambda path: path.endswith('.tar')):
        for path in some if shards else ():
            yield from [(path, 0, None)] if size <= SQUARE else cut_shard(path, count)
        while job := list(itertools.islice(some, count)):
            yield job


def decode_files(paths, shape, cache_dir, name, decoder):
    """The Parts of image files and WebDataset shards, decoded or found in the cache; a file that changes is noticed by its size and
    times. What can't be decoded is skipped, counted and listed with its reason; what couldn't be read last time is tried again. shape:
    (size, channels). name: of the source. Raises UserError when nothing can be read, or much can't be read now."""

    def write(folder):
        jobs = list(enumerate(jobs_of(paths, shape[0])))
        again = {number for number, skipped in read_skipped(folder).items() if any(skip.again for skip in skipped)}
        todo = [(folder, i, job, *shape, decoder) for i, job in jobs if i in again or not (folder / f'{i:06d}.npy').is_file()]
        before, count, start, told, away = len(jobs) - len(todo), 0, time.perf_counter(), 0, []
        with progress(total=len(jobs), initial=before, desc=f'decode {name}', unit='part') as bar:
            for done, (good, skipped) in enumerate(run_jobs(write_part, todo, decoder.workers), 1):
                count, seconds = count + good + len(skipped), time.perf_counter() - start
                away += [skip for skip in skipped if skip.again]
                check_away(away, len(paths))
                rate = f'{count / seconds:.0f} img/s'
                bar.set_postfix_str(rate)
                bar.update()
                if bar.disable and seconds > told + 30:  # a line in a log
                    told, left = seconds, seconds / done * (len(todo) - done)
                    say(f'decode {name}: {count} images, part {before + done}/{len(jobs)}, {rate}, ETA {left:.0f} s')
        if todo:
            (folder / 'statistics.json').unlink(missing_ok=True)  # of classes.statistics
        write_skipped(folder / 'skipped.jsonl', itertools.chain.from_iterable(read_skipped(folder).values()))

    lines = list(fingerprints(paths))
    check_away([Skip(path, 'it is not there', True) for path, line in zip(paths, lines) if line == path], len(paths))
    folder = cache_folder(cache_dir, name, [f'{shape} {decoder.key()}', *lines])
    reopen(folder)
    parts = cached(folder, write)
    good, skipped = sum(part.count for part in parts), [*itertools.chain(*read_skipped(folder).values())]
    if skipped:
        tell_skipped(skipped, good, name, folder / 'skipped.jsonl')
    if not good:
        raise UserError(f'none of the files of {name} is a readable image{f", the first is {skipped[0].image}" if skipped else ""}: name a '
                        'folder of images')
    return parts


def check_away(away, count):
    """Raises UserError where many of `count` files can't be read now. away: their Skips, which are given up for this run where they are
    few."""
    if len(away) > max(16, MANY * count):
        raise UserError(f'{len(away)} of {count} files can not be read, the first is {away[0].image} ({away[0].reason}): mount their '
                        'folder, or mend its rights, and run the same command again')


def tell_skipped(skipped, good, name, file):
    count = len(skipped) + good
    say(f'skipped {len(skipped)} of {count} files of {name}, the first is {skipped[0].image} ({skipped[0].reason}): all are listed in '
        f'{file}')
    if len(skipped) > MANY * count:
        kinds = Counter(re.sub(r'\d+', '', skip.reason) for skip in skipped)
        kind, most = kinds.most_common(1)[0]
        shown = next(skip.reason for skip in skipped if re.sub(r'\d+', '', skip.reason) == kind)
        warn(f'{100 * len(skipped) / count:.0f} % of {name} is skipped, most of it ({most} files) for this reason: {shown}')


def reopen(folder):
    """Makes a cache one that is still to be built in the parts that lack a file, where one of these files can be read now."""
    some = {number: names for number, skipped in read_skipped(folder).items() if (names := [s.image for s in skipped if s.again])}
    if folder.is_dir() and any(map(is_readable, itertools.chain(*some.values()))):
        with contextlib.suppress(OSError):  # a cache that can only be read serves too
            remove(itertools.chain.from_iterable(folder.glob(f'{number:06d}.scores-*') for number in some))
            unfinish(folder)


def unfinish(folder):
    """Makes a cache one that is being built."""
    with locked(folder.with_name(folder.name + '.lock')), contextlib.suppress(FileNotFoundError):  # another process did it
        os.rename(folder, folder.with_name(folder.name + '.partial'))


def is_readable(path):
    with contextlib.suppress(OSError, ValueError):
        read_file(path)
        return True
    return False


def decode_dataset(dataset, shape, cache_dir, name, source):
    """The same for a torchvision data set, `dataset()`, which is built only if the cache lacks its images. source: (a line that names it,
    a function that returns its files). Without its files the cache is used as it is; where they are others now, it is built anew."""
    folder = cache_folder(cache_dir, name, [f'{shape}', source[0]])
    kept = folder / 'source.json'

    def known():
        return {'files': list(fingerprints(source[1]()))}

    if kept.is_file() and known() not in ({'files': []}, read_json(kept)):
        unfinish(folder)
    images = None if folder.is_dir() else dataset()

    def write(folder):
        some = dataset() if images is None else images  # a part of a whole cache is damaged
        if not (folder / kept.name).is_file() or read_json(folder / kept.name) != known():
            remove(folder.glob('[0-9]*'))
        write_json(folder / kept.name, known())
        for number, start in enumerate(progress(range(0, len(some), CHUNK), desc=f'resize {name}', unit='part')):
            rows = range(start, min(start + CHUNK, len(some)))
            if not (folder / f'{number:06d}.npy').is_file():
                save_part(folder, number, np.stack([to_array(some[i][0], *shape) for i in rows]), [f'{name}[{i}]' for i in rows])

    return cached(folder, write)


# ---------------------------------------------------------------- the cache


def fingerprints(files, changed=True):
    """A string for each file that changes when its content does. changed: also when its state did, a time that no program can set."""
    for path in files:
        try:
            stat = os.stat(path)
            yield f'{path} {stat.st_size} {stat.st_mtime_ns}' + (f' {stat.st_ctime_ns}' if changed else '')
        except (OSError, ValueError):  # it leads nowhere, and will be skipped and listed
            yield path


def cache_folder(cache_dir, name, key):
    """Where decoded images are kept. key: strings that change when the images or their decoding do."""
    digest = hashlib.sha256()
    for line in (DECODER, *key):
        digest.update(line.encode('utf-8', 'surrogateescape') + b'\0')
    readable = ''.join(c if c.isalnum() else '_' for c in name[:40])  # a file system takes 255 bytes
    return Path(cache_dir) / f'{readable}-{digest.hexdigest()[:16]}'


def cached(folder, write):
    """All Parts of a folder of the cache, which `write(folder)` builds where it is missing: under another name, part by
    part, until it is whole. So a build that was stopped goes on where it was; of two runs that want the same, the second waits."""

    def build():
        partial = folder.with_name(folder.name + '.partial')
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(folder.name + '.lock')):
                if not folder.is_dir():
                    partial.mkdir(exist_ok=True)
                    try:
                        complete(partial, write)
                    finally:
                        remove(partial.glob('*.partial'))  # of workers that were ended
                    os.rename(partial, folder)
        except OSError as e:
            raise UserError(f'--cache_dir {folder.parent} can not be written ({first_line(e)}): free space there, or name '
                            'another') from None

    def rebuild(file, damaged):
        with locked(folder.with_name(folder.name + '.lock')):
            try:
                checked(file, must=True)
                read_names(file.with_suffix('.txt'))  # another process has mended it meanwhile
            except (Damaged, FileNotFoundError):
                warn(f'{damaged} is damaged or gone: its part is decoded again')
                file.unlink(missing_ok=True)
                complete(folder, write)

    if not folder.is_dir():
        build()
    try:
        counts = read_json(folder / 'parts.json')
    except Damaged:
        warn(f'{folder}/parts.json is damaged or gone: the parts are counted again, and those that are gone decoded')
        unfinish(folder)
        build()
        counts = read_json(folder / 'parts.json')
    return [Part(folder / file, count, rebuild) for file, count in counts.items()]


def complete(folder, write):
    """Has `write(folder)` make the parts that are missing, and writes how many images each holds, {its file: count}."""
    write(folder)
    if broken := [file for file in folder.glob('*.npy') if count_of(file) is None]:
        warn(f'{len(broken)} parts of {folder} are damaged, such as {broken[0].name}: decoded again')
        remove(broken)
        write(folder)
    write_json(folder / 'parts.json', {file.name: count_of(file) for file in sorted(folder.glob('*.npy'))})


def count_of(file):
    """How many images a part holds, None where its file is damaged."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return len(np.load(file, mmap_mode='r'))
