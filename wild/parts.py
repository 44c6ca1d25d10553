"""A part of a cache or a stream: decoded images, their names and what was skipped beside them, each a file with a checksum."""

import functools
import os

import numpy as np
import torch

from utils import SEAL, Damaged, UserError, checked, json_line, read_checked, read_json_lines, written_aside
from wild.reading import Skip

MAPPED = 2**15  # parts whose images are mapped at a time: Linux lets a process have 65,530 maps


def save_part(folder, number, images, names, skipped=()):
    (folder / f'{number:06d}.npy').unlink(missing_ok=True)  # of an earlier build: it would make a part that is stopped here a whole one
    write_names(folder / f'{number:06d}.txt', names)
    (folder / f'{number:06d}.skipped').unlink(missing_ok=True)  # of a part that was stopped
    if skipped:
        write_skipped(folder / f'{number:06d}.skipped', skipped)
    with written_aside(folder / f'{number:06d}.npy') as file:
        np.save(file, images)


def write_skipped(file, skipped):
    """A JSON object a line, see `reading.Skip`. Letters outside ASCII, and bytes that are none, are escaped."""
    with written_aside(file, 'w', encoding='ascii') as lines:
        lines.writelines(json_line(skip._asdict()).decode() for skip in skipped)


def read_skipped(folder):
    """{number of the part: its Skips} of a folder of the cache. A list that is damaged is itself one: then its part is decoded again."""
    found = {}
    for file in sorted(folder.glob('*.skipped')):
        try:
            found[int(file.stem)] = [Skip(**line) for line in read_json_lines(file)]
        except Damaged:
            found[int(file.stem)] = [Skip(str(file), 'this list is damaged', True)]
    return found


def write_names(file, names):
    """One a line, as bytes of any kind. A line's end inside a name would move all that follow to the wrong images."""
    with written_aside(file) as out:
        out.write(''.join(name.replace('\n', '\\n') + '\n' for name in names).encode('utf-8', 'surrogateescape'))


def read_names(file, must=True):
    return read_checked(file, must).decode('utf-8', 'surrogateescape').split('\n')[:-1]


def read_seal(path, must=False):
    """The last bytes of a file, which hold its checksum. Raises Damaged where it has fewer and `must`."""
    with open(path, 'rb') as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(SEAL % 0)))
        if len(end := file.read()) < len(SEAL % 0) and must:
            raise Damaged(f'{path} is damaged: its end is missing')
        return end


class Part:
    """One file of decoded images, verified when it is first read. count: how many it holds. rebuild: writes the part's files again, where
    one is damaged; see `cached`."""

    def __init__(self, file, count, rebuild=None):
        self.file, self.count, self.rebuild, self.sound = file, count, rebuild, False

    def __reduce__(self):
        return Part, (self.file, self.count)  # a worker process reads it, and can't rebuild it

    def verified(self, read, file):
        """read(file, must=True), once more where the file was damaged."""
        try:
            return read(file, must=True)
        except (Damaged, FileNotFoundError):
            if not self.rebuild:
                raise
            self.rebuild(self.file, file)
            return read(file, must=True)

    def mend(self):
        """Has the images decoded again where their file is damaged."""
        if not self.sound:
            self.verified(checked, self.file)
            self.sound = True

    @property
    def images(self):
        """(count, channels, size, size) uint8."""
        self.mend()
        return mapped(self)

    def seal(self):
        """Bytes that change with the pixels."""
        return self.verified(read_seal, self.file)

    def names(self):
        return self.verified(read_names, self.file.with_suffix('.txt'))


def remove(files):
    for file in files:
        file.unlink(missing_ok=True)


@functools.lru_cache(MAPPED)
def mapped(part):
    """The images of a Part. Mapped by torch: numpy's memmap keeps a file open for each, and a large pool has more parts than a process may
    have open files (often 1,024). Raises UserError where they are not as many as they were."""
    array = np.load(part.file, mmap_mode='r')
    if len(array) != part.count:  # see reopen
        raise UserError(f'{part.file} holds {len(array)} images, and held {part.count}: another run could read files that could not be '
                        'read before; run the same command again')
    whole = torch.from_file(str(part.file), size=array.offset + array.size, dtype=torch.uint8)
    return whole[array.offset :].view(array.shape).numpy()
