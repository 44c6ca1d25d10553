"""Files that are damaged, and disks that are full: everything is written aside by one function, and read by its checksum."""
import json

import numpy as np
import pytest
import torch

from data import MNIST
from networks import build, load_network, save_network
from utils import Damaged, FileError, checked, json_line, read_checked, read_json, read_json_lines, write_json, written_aside


def write_network(path):
    torch.manual_seed(0)
    save_network(path, build('lenet5half', 3, 10, 1), MNIST.facts('MNIST', 'lenet5half', 3) | {'accuracy': 0.9})


def write_lines(path):
    path.write_bytes(b''.join(json_line({'epoch': epoch, 'loss': 1 / epoch}) for epoch in range(1, 20)))


def write_array(path):
    with written_aside(path) as file:
        np.save(file, np.arange(5000, dtype=np.uint8))


def write_arrays(path):
    with written_aside(path) as file:
        np.savez(file, noise=np.linspace(0, 1, 500), labels=np.arange(500))


KINDS = {  # a file's name -> what writes it, what reads it
    'student.pt': (write_network, load_network),
    'result.json': (lambda path: write_json(path, {'top1': 98.5, 'name': 'x'}), read_json),
    'metrics.jsonl': (write_lines, read_json_lines),
    'an array': (write_array, lambda path: read_checked(path, must=True)),
    'arrays.npz': (write_arrays, lambda path: np.load(checked(path))),
}


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def noticed(read, *args):
    """Whether reading says, in a line, that the file is damaged."""
    try:
        read(*args)
    except Damaged as e:
        return 'damaged' in str(e) and '\n' not in str(e)
    return False


@pytest.mark.parametrize('name', KINDS)
def test_a_flipped_bit_is_noticed_wherever_it_is(name, tally, tries, dice, tmp_path):
    write, read = KINDS[name]
    write(tmp_path / name)
    read(tmp_path / name)
    bits, end = 8 * (tmp_path / name).stat().st_size, range(8 * 64)
    some = [dice.randrange(bits) for _ in range(tries(10, 100))]
    with tally('one bit flipped', name) as t:
        for bit in [*some, *dice.sample(range(bits), min(bits, 5)), *(bits - 1 - b for b in end[:: tries(31, 3)])]:
            flip(tmp_path / name, bit)
            t.tried(noticed(read, tmp_path / name), f'bit {bit} of {bits}')
            flip(tmp_path / name, bit)
    read(tmp_path / name)


def test_a_file_that_others_wrote_has_no_checksum_and_is_read(tmp_path):
    path = tmp_path / 'other.json'
    path.write_text(json.dumps({'run': 'deadbeef'}) + '\n')
    assert read_json(path) == {'run': 'deadbeef'} and checked(path) == path
    with pytest.raises(Damaged):
        checked(path, must=True)


def test_what_is_written_is_read_back(tmp_path):
    for size in (0, 1, 2**20 - 1, 2**20, 2**20 + 1):
        with written_aside(tmp_path / 'x') as file:
            file.write(bytes(size))
        assert read_checked(tmp_path / 'x', must=True) == bytes(size)
    content = {'a': 1.5, 'b': [1, 'ü'], 'c': {}}
    write_json(tmp_path / 'x', content)
    assert read_json(tmp_path / 'x') == content == {k: v for k, v in json.loads((tmp_path / 'x').read_text()).items() if k != 'crc32'}


@pytest.mark.parametrize('name', [name for name in KINDS if name != 'metrics.jsonl'])
def test_a_full_disk_leaves_the_file_that_was_there(name, tally, tmp_path, full_disk):
    write = KINDS[name][0]
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with tally('full disk', name) as t:
        for free in (0, 1, len(before) // 4, len(before) // 2, len(before) - 1):
            with full_disk(free), pytest.raises(FileError) as error:
                write(tmp_path / name)
            t.tried(str(tmp_path / name) in str(error.value) and (tmp_path / name).read_bytes() == before
                    and [path.name for path in tmp_path.iterdir()] == [name], f'{free} bytes free')
