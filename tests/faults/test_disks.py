"""Whole scripts on a disk that is full, a folder that can't be written or is gone, a closed stdout: a line, exit code 2, and what was there
stays."""
import contextlib
import os
import subprocess
import sys

import pytest
from scripts import ENV, ROOT, error, run, start

pytestmark = pytest.mark.slow


def mounted(folder, *options):
    """Whether a small file system in memory could be mounted there: that takes root."""
    folder.mkdir()
    try:
        return subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', folder], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes): the folder of a disk of that size."""
    folders = []

    def make(kilobytes):
        folders.append(tmp_path / f'disk{kilobytes}')
        if not mounted(folders[-1], f'size={kilobytes}k'):
            pytest.skip('mounting a disk takes root')
        return folders[-1]

    yield make
    for folder in folders:
        subprocess.run(['umount', folder])


WORDS = ['--dataset', 'mnist5k', '--epochs', '2', '--workers', '0', '--device', 'cpu']


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    run('teacher-train.py', *WORDS, '--run', 't', cwd=folder)
    return folder / 'runs' / 't' / 'teacher.pt'


COMMANDS = {'teacher-train.py': [*WORDS, '--run', 'r'],
            'DFND-train.py': [*WORDS, '--run', 'r', '--wild', 'noise', '--num_select', '200', '--export', 'pt2'],
            'DAFL-train.py': [*WORDS, '--run', 'r', '--epoch_steps', '2', '--batch_size', '8']}


@pytest.mark.parametrize('script', COMMANDS)
def test_a_full_disk_at_every_kind_of_write(script, teacher, disk, tally, tmp_path):
    words = [*COMMANDS[script], *([] if 'teacher' in script else ['--teacher', teacher])]
    with tally('full disk', script) as t:
        for kilobytes in (4, 64, 300, 600, 1000, 2000, 4000):
            folder = disk(kilobytes)
            where = ['--output_dir', folder / 'runs', '--cache_dir', folder / 'cache', '--resume']
            done = run(script, *words, *where, cwd=tmp_path, code=None)
            wrong = [path.name for path in folder.rglob('*.partial') if path.is_file()]
            if done.returncode == 2:
                wrong += [] if said_in_a_line(done) else [done.stderr]
                subprocess.run(['mount', '-o', 'remount,size=64m', folder], check=True)  # there is space now
                again = run(script, *words, *where, cwd=tmp_path, code=None)
                wrong += [again.stderr] if again.returncode else []
            t.tried(not wrong and done.returncode in (0, 2), (kilobytes, done.returncode, wrong))


def said_in_a_line(done):
    with contextlib.suppress(AssertionError):
        return bool(error(done))
    return False


@pytest.mark.parametrize('script', COMMANDS)
def test_a_disk_that_can_only_be_read(script, teacher, disk, tally, tmp_path):
    folder = disk(8000)
    subprocess.run(['mount', '-o', 'remount,ro', folder], check=True)
    with tally('read-only disk', script) as t:
        for flag in ('--output_dir', '--cache_dir'):
            if flag == '--cache_dir' and script != 'DFND-train.py':
                continue  # nothing is decoded
            words = [*COMMANDS[script], *([] if 'teacher' in script else ['--teacher', teacher]), flag, folder / 'x']
            done = run(script, *words, '--run', flag, cwd=tmp_path, code=None)
            t.tried(done.returncode == 2 and said_in_a_line(done), done)


@pytest.mark.parametrize('to, code', [('full', 2), ('closed', 2), ('a reader that ends', 141)])
def test_a_stdout_that_fails(to, code, tally, tmp_path):
    with tally('stdout fails', to) as t:
        words = [ROOT / 'teacher-train.py', *WORDS]
        if to == 'full':
            with open('/dev/full', 'w') as full:
                process = start(*words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
        elif to == 'closed':
            process = subprocess.Popen(['sh', '-c', '"$@" >&-', 'sh', sys.executable, *map(str, words)], cwd=tmp_path, env=ENV,
                                       stderr=subprocess.PIPE)
        else:
            read, write = os.pipe()
            process = start(*words, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
            os.close(read)
            os.close(write)
        said = process.communicate()[1].decode()
        t.tried(process.returncode == code and len(said.splitlines()) == (code == 2), (process.returncode, said))
