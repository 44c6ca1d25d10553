"""What every file here may use, with the standard library alone: how a script fails, its lines, and the files that it writes and reads."""

import contextlib
import json
import os
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one line: what was given, what was expected, what to do."""


class LocalError(UserError):
    """One that only this process of several meets, so that it must print it itself."""


def first_line(error):
    """What went wrong, short enough for one line."""
    return f'{type(error).__name__}: {(str(error).strip() or "no message").splitlines()[0][:120]}'


def first_process():
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get('WORLD_SIZE', '1') == '1' or os.environ.get('RANK', '0') == '0'


def run_script(main, leave=lambda: None):
    """Calls `main`, whose result is the exit code. A UserError becomes one line on stderr and exit code 2, an interrupt exit code 130.
    leave: called after main, and after an error that all processes of a group meet; see distributed.run_script."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a file's name can hold what the terminal's encoding lacks
            stream.reconfigure(errors='backslashreplace')
    try:
        code = main()
        leave()
        sys.exit(code)
    except UserError as e:
        local = isinstance(e, LocalError)
        code = fail(script, str(e), local)
        if not local:  # else the others still wait for this process, and leaving could wait for them
            leave()
        sys.exit(code)
    except (MemoryError, RuntimeError) as e:  # torch's, on any device, is a RuntimeError
        if isinstance(e.__context__, KeyboardInterrupt):  # it fell into torch.save, whose own end then failed
            sys.exit(interrupted(script))
        if not isinstance(e, MemoryError) and not any(part in str(e) for part in ('out of memory', "can't allocate memory")):
            raise
        sys.exit(fail(script, 'out of memory: lower --batch_size, or --width, or --workers', local=True))
    except KeyboardInterrupt:
        sys.exit(interrupted(script))
    except BrokenPipeError:  # such as by `| head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def fail(script, message, local=False):
    """One line on stderr; returns exit code 2. local: from this process, whichever of several it is."""
    if local or first_process():
        print(f'{script}: error: {" ".join(message.split())}', file=sys.stderr, flush=True)
    return 2


def interrupted(script):
    hint = ' with --resume' if script.endswith('-train.py') else ''
    print(f'\n{script}: interrupted; the same command{hint} goes on', file=sys.stderr)
    return 130


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
        tqdm = sys.modules.get('tqdm')  # where nobody has loaded it, there is no bar
        file = file or sys.stdout
        (tqdm.tqdm.write if tqdm else print)(line, file=file)
        file.flush()


def warn(line):
    say(f'warning: {line}', sys.stderr)


@contextlib.contextmanager
def written_aside(path, mode='wb', **kw):
    """Opens a file beside `path`, which takes that name once it is written: a reader, or a run killed in the middle, never meets
    half a file."""
    path = Path(path)
    partial = path.with_name(path.name + '.partial')
    with open(partial, mode, **kw) as file:
        yield file
    os.replace(partial, path)


def write_json(path, content):
    with written_aside(path, 'w', encoding='utf-8') as file:
        file.write(json.dumps(content) + '\n')


def read_json(path):
    """A file's JSON object. Raises UserError where it holds none."""
    return _read_objects(path, lambda file: [file.read()])[0]


def read_json_lines(path):
    """The JSON objects of a file, one a line; none where there is no file. Raises UserError for a line that holds none."""
    return _read_objects(path, iter) if Path(path).is_file() else []


def _read_objects(path, texts):
    try:
        with open(path, encoding='utf-8') as file:
            return [dict(json.loads(text)) for text in texts(file)]
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f'{path} is damaged, it holds no JSON object ({first_line(e)}): delete that run, or make it again') from None
