"""Command lines of any kind, and every numeric flag at its extremes: a line at most, never a traceback."""
import contextlib
import importlib.util
import io
import itertools
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import ROOT

from utils import run_script

SCRIPTS = ('teacher-train', 'DFND-train', 'DAFL-train')
EXTREMES = ('0', '-1', '1', '2', '1e300', '-1e300', '1e-300', 'nan', 'inf', '-inf', '1e9', str(10**9), str(10**20), str(2**63),
            '9' * 5000, '', ' ', '１２', '0x10', '1_000', '\x1b[31m', 'ü' * 300)
WORDS = ('MNIST', 'cifar10', 'folder', 'none', 'NaN', 'auto', 'cpu', 'onnx,pt2', '<b>', 'a|b', '--', '--=', '-', '=', '../..', 'x' * 300,
         *EXTREMES)


def module(name):
    spec = importlib.util.spec_from_file_location(name.replace('-', '_'), ROOT / f'{name}.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


MODULES = {name: module(name) for name in (*SCRIPTS, 'reproduce', 'report')}


def checks(name, words):
    """What a script does with its words before it opens anything."""
    script = MODULES[name]
    args = script.parse(words) if name == 'reproduce' else script.parse()
    if name == 'DFND-train':
        script.check(args)


def outcome(name, words, call):
    """(exit code or None, the lines on stderr) of a script whose main is `call`."""
    err, before = io.StringIO(), sys.argv
    sys.argv = [f'{name}.py', *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            run_script(call)
    except SystemExit as e:
        code = e.code
    finally:
        sys.argv = before
    return code, [line for line in err.getvalue().splitlines() if 'warning: ' not in line]


def flags_of(name):
    """The option strings of a script, read from its --help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        if name == 'reproduce':
            MODULES[name].parse(['--help'])
        else:
            before, sys.argv = sys.argv, [f'{name}.py', '--help']
            try:
                MODULES[name].parse()
            finally:
                sys.argv = before
    return sorted({word.strip('[],') for word in out.getvalue().split() if word.strip('[],').startswith('--')})


@pytest.mark.parametrize('name', MODULES)
def test_any_command_line_is_taken_or_refused_in_a_line(name, tally, tries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flag = st.sampled_from(flags_of(name))
    word = st.one_of(st.sampled_from(WORDS), st.floats().map(str), st.integers().map(str),
                     st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']), max_size=20))
    piece = st.one_of(st.tuples(flag, word), st.tuples(flag), st.tuples(word), st.tuples(flag, word, word),
                      st.tuples(flag, word).map(lambda pair: ('='.join(pair),)))
    commands = st.lists(piece, max_size=6).map(lambda pieces: [*itertools.chain.from_iterable(pieces)])

    with tally('random command line', f'{name}.py') as t:
        @settings(max_examples=tries(40, 500), deadline=None, database=None, derandomize=True,
                  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
        @given(commands)
        def check(words):
            if name == 'reproduce' and words[:1] != ['study']:
                words = ['table1', *words]
            code, lines = outcome(name, words, lambda: checks(name, words))
            t.tried(code in (None, 0) or (code == 2 and len(lines) == 1 and lines[0].isprintable()), (words, code, lines))

        check()


def numeric_flags(name):
    """The flags of a script that take numbers: those that refuse a word as one."""
    found = []
    for flag in flags_of(name):
        code, lines = outcome(name, [flag, 'no-number'], lambda flag=flag: checks(name, [flag, 'no-number']))
        if code == 2 and 'value' in lines[0] and 'no-number' in lines[0]:
            found.append(flag)
    return found


@pytest.fixture(scope='module')
def ready(tmp_path_factory):
    """A folder with a teacher and a small run's words for each script."""
    folder = tmp_path_factory.mktemp('extremes')
    common = ['--dataset', 'mnist5k', '--epochs', '1', '--device', 'cpu', '--workers', '0', '--run', 'r']
    words = {'teacher-train': [*common, '--batch_size', '2000'],
             'DFND-train': [*common, '--wild', 'noise', '--num_select', '20', '--teacher', 'teacher.pt'],
             'DAFL-train': [*common, '--epoch_steps', '2', '--batch_size', '8', '--teacher', 'teacher.pt']}
    return folder, words


def run(name, words):
    return outcome(name, words, MODULES[name].main)


@pytest.mark.slow
@pytest.mark.parametrize('name', SCRIPTS)
def test_every_numeric_flag_at_its_extremes(name, ready, tally, monkeypatch):
    folder, words = ready
    monkeypatch.chdir(folder)
    if not (folder / 'teacher.pt').is_file():
        assert run('teacher-train', [*words['teacher-train'], '--run', 'teacher'])[0] in (0, None)
        (folder / 'runs' / 'teacher' / 'teacher.pt').rename(folder / 'teacher.pt')
    flags = numeric_flags(name)
    assert len(flags) >= 10
    with tally('numeric flag at its extremes', f'{name}.py') as t:
        for i, (flag, value) in enumerate(itertools.product(flags, EXTREMES)):
            if flag in ('--epochs', '--n_epochs', '--steps', '--epoch_steps', '--max_minutes') and value in ('1e9', str(10**9), '1_000'):
                continue  # are taken, and would take years
            code, lines = run(name, [*words[name], '--run', f'r{i}', f'{flag}={value}'])
            t.tried(code in (0, None) or (code == 2 and len(lines) == 1), (flag, value[:40], code, lines))
