"""What every file here may use, with the standard library alone: how a script fails, its lines, and the files that it writes and reads."""

import contextlib
import io
import json
import operator
import os
import signal
import sys
import zlib
from pathlib import Path

from keep import stops

SEAL = b', "crc32": "%08x"}\n'  # the end of a file, or of a line, that was written here: the checksum of all that is before


class UserError(Exception):
    """Something the user can mend. The message is one line: what was given, what was expected, what to do."""


class LocalError(UserError):
    """One that only this process of several meets, so that it must print it itself."""


class FileError(LocalError, OSError):
    """A file that can't be written, now: a full disk, no permission, a folder that is gone."""


class Damaged(UserError):
    """A file that is not as it was written."""


def first_line(error):
    """What went wrong, short enough for one line."""
    return f'{type(error).__name__}: {(str(error).strip() or "no message").splitlines()[0][:120]}'


def encoding_of(path):
    """Of a text that a user wrote: UTF-16 by its first bytes, as Windows' shell writes it, else UTF-8."""
    with open(path, 'rb') as file:
        return 'utf-16' if file.read(2) in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'


def read_text(path, encoding):
    """A text that a user wrote. Raises UserError for one in another encoding."""
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as e:
        raise UserError(f'{path} is no text in UTF-8 ({first_line(e)}): save it as UTF-8') from None


def read_lines(path):
    """The lines of such a text, stripped, without empty ones. Raises UserError for another encoding."""
    return [line for line in map(str.strip, read_text(path, encoding_of(path)).splitlines()) if line]


def first_process():
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get('WORLD_SIZE', '1') == '1' or os.environ.get('RANK', '0') == '0'


def run_script(main, leave=lambda: None):
    """Calls `main`, whose result is the exit code. A UserError becomes one line on stderr and exit code 2, a signal 128 + its number.
    leave: called after main, and after an error that all processes of a group meet; see distributed.run_script."""
    with stops.listening():
        try:
            code = _code_of(main, leave)
        except KeyboardInterrupt as e:
            if getattr(e, 'where', ''):  # all processes stop at the same step
                leave()
            code = interrupted(e)
        sys.exit(code)


def _code_of(main, leave):
    script = Path(sys.argv[0]).name
    if sys.stdout is None or sys.stderr is None:  # else the next file that is opened takes the place, and what is printed goes there
        sys.exit(2 if sys.stderr is None else fail(script, 'stdout is closed: send it to a file, such as with > log', local=True))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a file's name can hold what the terminal's encoding lacks
            stream.reconfigure(errors='backslashreplace')
    try:
        code = main()
        leave()
        sys.stdout.flush()  # Python's own at its end would fail with a traceback
        return code
    except UserError as e:
        local = isinstance(e, LocalError)
        code = fail(script, str(e), local)
        if not local:  # else the others still wait for this process, and leaving could wait for them
            leave()
        return code
    except BrokenPipeError:  # such as by `| head`: the reader has had enough
        drop_stdout()
        return 141
    except OSError as e:  # a disk, a folder or a permission that is gone; every file is written aside, so none is half
        code = fail(script, f'{e.filename or "a file, or stdout"}: {e.strerror or first_line(e)}: free space there, mend the folder or '
                    'the permission, or name another folder; what was written before is as it was', local=True)
        try:
            sys.stdout.flush()
        except OSError:
            drop_stdout()
        return code
    except Exception as e:
        if isinstance(e.__context__, KeyboardInterrupt):  # it fell into torch.save, or the like, whose own end then failed
            return interrupted(e.__context__)
        short = isinstance(e, RuntimeError) and any(part in str(e) for part in ('out of memory', "can't allocate memory"))  # torch's
        if not short and not isinstance(e, MemoryError):
            raise
        return fail(script, 'out of memory: lower --batch_size, or --width, or --workers', local=True)


def drop_stdout():
    """What is still to be printed goes nowhere, so that Python's end does not fail at it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(script, message, local=False):
    """One line on stderr; returns exit code 2. local: from this process, whichever of several it is."""
    if local or first_process():
        print(f'{script}: error: {harmless(" ".join(message.split()))}', file=sys.stderr, flush=True)
    return 2


def interrupted(error):
    return stops.farewell(getattr(error, 'number', signal.SIGINT), getattr(error, 'where', ''))


def expand_home(args):
    """The parsed arguments with ~ as the home folder, which a shell leaves alone in --flag=~/folder. Raises UserError for an empty value,
    which would count as not given."""
    for key, value in vars(args).items():
        if value == '' or (isinstance(value, list) and '' in value):
            raise UserError(f"--{key} has an empty value, such as of a shell's variable that is not set: give one, or leave the flag out")
        if isinstance(value, str):
            setattr(args, key, os.path.expanduser(value))
        elif isinstance(value, list):
            setattr(args, key, [os.path.expanduser(x) if isinstance(x, str) else x for x in value])
    return args


def bad_usage(message):
    """Instead of an ArgumentParser's `error`: a wrong flag is a user's error as any other."""
    raise UserError(f'{message}: --help lists the flags')


def progress(iterable=None, total=None, unit='img', **kw):
    """A tqdm bar on a terminal, nothing in a log. It clears itself, so that the plain lines remain alone."""
    from tqdm import tqdm  # here, since the tables need no package

    quiet = not first_process() or not sys.stderr.isatty()
    return tqdm(iterable, total=total, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True, disable=quiet, **kw)


def say(line, file=None):
    """A plain line on stdout, above any bar; from one process of several."""
    if first_process():
        line = harmless(line)
        tqdm = sys.modules.get('tqdm')  # where nobody has loaded it, there is no bar
        file = file or sys.stdout
        (tqdm.tqdm.write if tqdm else print)(line, file=file)
        file.flush()


def harmless(text):
    """A text, or any value as text, in which what a terminal or a browser would obey and not show, such as an escape or a change of
    direction, is its code: names come off the web."""
    return ''.join(c if c.isprintable() or c in '\n\t' else f'\\u{ord(c):04x}' for c in str(text))


def warn(line):
    say(f'warning: {line}', sys.stderr)


@contextlib.contextmanager
def written_aside(path, mode='wb', previous=None, **kw):
    """Opens a file beside `path`, which takes that name once it is written and on the disk: a reader, or a run killed in the middle,
    never meets half a file. Every file is written by this function. With the mode wb it gets its checksum at its end, which torch,
    numpy and zip readers pass over, see `checked`; w and w+b are for files that people and other programs read. previous: a name for the
    file that was there before. Raises FileError, with that file as it was."""
    path = Path(path)
    partial = path.with_name(path.name + '.partial')
    if mode == 'w':
        kw = {'newline': '\n', **kw}  # the same bytes on every system
    try:
        with open(partial, 'w+b' if mode == 'wb' else mode, **kw) as file:
            yield file
            if mode == 'wb':
                file.seek(0)
                file.write(SEAL % checksum(file))
            file.flush()
            os.fsync(file.fileno())
        if previous and path.is_file():
            os.replace(path, previous)
        os.replace(partial, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        cause = e if isinstance(e, OSError) else e.__context__  # torch.save ends with a RuntimeError of its own
        if not isinstance(cause, OSError) or isinstance(e, UserError) or not isinstance(e, Exception):
            raise
        raise FileError(f'{path} can not be written ({cause.strerror or cause}): free space there, or mend the folder. What was there '
                        'before is as it was') from None


def checksum(file, count=None):
    """Of the next `count` bytes of a binary file, or of all that follow. 1.2 GB a second, measured on one core."""
    crc, left = 0, count
    while data := file.read(2**20 if left is None else min(left, 2**20)):
        crc, left = zlib.crc32(data, crc), left and left - len(data)
        if left == 0:
            break
    return crc


def checked(path, must=False):
    """The same path, of a file that is as it was written. Raises Damaged where it is not, and for one without a checksum, as other
    programs write them, where `must`."""
    with open(path, 'rb') as file:
        content_size(file, path, must)
    return path


def content_size(file, name, must=False):
    """How many bytes of an open binary file are before its checksum. Raises as `checked`."""
    size = max(0, file.seek(0, os.SEEK_END) - len(SEAL % 0))
    file.seek(size)
    end = file.read()
    if sum(map(operator.eq, end, SEAL % 0)) < 12:  # of its 15 letters; some of them may be what is damaged
        if must:
            raise Damaged(f'{name} is damaged: its end is missing')
        return size + len(end)
    file.seek(0)
    if end != SEAL % checksum(file, size):
        raise Damaged(f'{name} is damaged: it is not as it was written')
    return size


def read_checked(path, must=False):
    """The bytes of a file without its checksum. Raises as `checked`."""
    with open(path, 'rb') as file:
        size = content_size(file, path, must)
        file.seek(0)
        return file.read(size)


def write_json(path, content):
    with written_aside(path) as file:
        file.write(json.dumps(content)[:-1].encode())  # the checksum closes the object


def json_line(content):
    """A JSON object as a line, whose last entry is the checksum of all before it."""
    text = json.dumps(content)[:-1].encode()
    return text + SEAL % zlib.crc32(text)


def read_json(path):
    """A file's JSON object, without its checksum. Raises Damaged where it holds none."""
    return _read_objects(path, lambda file: [file.read()])[0]


def read_json_lines(path):
    """The JSON objects of a file, one a line; none where there is no file. Raises Damaged for a line that holds none."""
    return _read_objects(path, iter) if Path(path).is_file() else []


def read_rows(path, count=0):
    """As read_json_lines, of a run's log: without damaged lines, of which it warns. count: how many there should be at least."""
    lines, rows = Path(path).read_bytes().splitlines(keepends=True) if Path(path).is_file() else [], []
    for line in lines:
        with contextlib.suppress(Damaged):
            rows.append(read_object(line, path))
    if lost := max(count, len(lines)) - len(rows):
        warn(f'{path} is damaged: {lost} of its {max(count, len(lines))} rows are lost')
    return rows


def read_object(data, name):
    """The JSON object in a file's or a line's bytes, without its checksum. Raises Damaged where there is none."""
    try:
        size = content_size(io.BytesIO(data), name)
        return dict(json.loads(data if size == len(data) else data[:size] + b'}'))
    except (ValueError, TypeError) as e:
        raise Damaged(f'{name} is damaged, it holds no JSON object ({first_line(e)})') from None


def _read_objects(path, texts):
    try:
        with open(path, 'rb') as file:
            return [read_object(data, path) for data in texts(file)]
    except (OSError, Damaged) as e:
        raise Damaged(f'{e}: give the command of that run again, with --resume, or another file') from None
