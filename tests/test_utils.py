"""How a script fails, what it prints, and the files that it writes and reads."""

import sys

import pytest
import torch
from images import error_of

from utils import (
    LocalError,
    UserError,
    first_line,
    harmless,
    json_line,
    progress,
    read_json,
    read_json_lines,
    read_rows,
    run_script,
    say,
    warn,
    write_json,
)


def ended(main, **kw):
    with pytest.raises(SystemExit) as stop:
        run_script(main, **kw)
    return stop.value.code


@pytest.mark.parametrize('error, code, parts', [
    (UserError('what\n to   do'), 2, ['error: what to do']), (KeyboardInterrupt(), 130, ['DFND-train.py', '--resume']),
    (MemoryError(), 2, ['--batch_size']), (torch.cuda.OutOfMemoryError('CUDA out of memory'), 2, ['--batch_size'])])
def test_a_script_ends_with_one_line_and_its_code(error, code, parts, capsys, monkeypatch):
    def main():
        raise error

    monkeypatch.setattr(sys, 'argv', ['DFND-train.py'])
    assert ended(main) == code
    err = capsys.readouterr().err
    assert all(part in err for part in parts) and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize('error', [RuntimeError, AttributeError])
def test_an_interruption_within_a_library_that_fails_at_it_is_an_interruption(error, capsys):
    def main():
        try:
            raise KeyboardInterrupt
        finally:
            raise error('its own end failed')

    assert ended(main) == 130 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_more_memory_than_there_is_is_told(capsys):
    assert ended(lambda: torch.empty(2**55)) == 2 and '--batch_size' in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match='shape'):
        run_script(lambda: torch.ones(2).view(3))


@pytest.mark.parametrize('error, code, left, shown', [
    (None, 7, 1, False), (UserError('no'), 2, 1, False), (LocalError('no'), 2, 0, True)])
def test_of_several_processes_the_others_speak_only_of_what_they_alone_met(error, code, left, shown, monkeypatch, capsys):
    """And they leave the group together, except where the others still wait."""
    def main():
        say('a line')
        if error:
            raise error
        return 7

    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    leaves = []
    assert ended(main, leave=lambda: leaves.append(1)) == code and len(leaves) == left
    out, err = capsys.readouterr()
    assert out == '' and bool(err) == shown


def test_the_first_line_of_an_error_is_short_and_one_line():
    assert first_line(ValueError('bad\nand worse')) == 'ValueError: bad'
    assert first_line(RuntimeError('\n\nlate\n')) == 'RuntimeError: late'
    assert 'AssertionError' in first_line(AssertionError()) and len(first_line(ValueError('x' * 999))) < 160


def test_lines_and_warnings_go_their_ways_and_a_bar_only_to_a_terminal(capsys):
    say('a line')
    warn('a flaw')
    assert list(progress(range(3))) == [0, 1, 2]
    assert capsys.readouterr() == ('a line\n', 'warning: a flaw\n')


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'a': 'ä'})
    with pytest.raises(TypeError):
        write_json(path, {'b': object()})
    assert read_json(path) == {'a': 'ä'}


def test_of_a_log_the_rows_that_are_as_they_were_written_are_read(tmp_path, capsys):
    path = tmp_path / 'metrics.jsonl'
    assert read_rows(path) == []
    path.write_bytes(json_line({'a': 1}) + json_line({'a': 2}).replace(b'2', b'3', 1) + b'{"a": 4}\n{"a": 5, "b')
    assert read_rows(path) == [{'a': 1}, {'a': 4}]  # one row has another checksum, and one no end
    assert read_rows(path, 6) == read_rows(path)
    assert [line.split(': ')[2] for line in capsys.readouterr().err.splitlines()] == [
        f'{lost} of its {count} rows are lost' for lost, count in ((2, 4), (4, 6), (2, 4))]


def test_json_lines_are_read_and_damage_is_told(tmp_path):
    path = tmp_path / 'lines.jsonl'
    assert read_json_lines(path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert read_json_lines(path) == [{'a': 1}, {'b': 2}]
    for content in ('{"a": 1}\n{"b', '[1]\n', '\n'):
        path.write_text(content)
        for read in (read_json_lines, read_json):
            assert str(path) in error_of(read, path)


@pytest.mark.parametrize('text, shown', [
    ('a photo.jpg', 'a photo.jpg'), ('über 東京.jpg', 'über 東京.jpg'), ("it's a \\", "it's a \\"), ('two\nlines\tand', 'two\nlines\tand'),
    ('\x1b[31mred\x1b[0m', r'\u001b[31mred\u001b[0m'), ('\x1b]0;title\x07', r'\u001b]0;title\u0007'),
    ('over\rwritten', r'over\u000dwritten'),
    ('\x9b2J', r'\u009b2J'), ('evil\u202egpj.exe', r'evil\u202egpj.exe'), ('\udcff.jpg', r'\udcff.jpg'), ('\x08\x7f', r'\u0008\u007f'),
    (1.5, '1.5')])
def test_a_name_can_not_move_the_cursor_or_turn_the_writing(text, shown, capsys):
    assert harmless(text) == shown
    warn(text)
    assert capsys.readouterr().err == f'warning: {shown}\n'
