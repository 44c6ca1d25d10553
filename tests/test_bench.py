"""The benchmarks run: not how fast, which is for a quiet machine."""

import argparse
import re

import pytest
from scripts import command

from bench.measure import result_file
from utils import UserError, read_json

ROWS = ['decode', 'load', 'score', 'distil', 'teacher', 'dafl', 'muon', 'selection']


@pytest.mark.parametrize('rows', [['decode', 'score', 'teacher', 'selection'], pytest.param(ROWS, marks=pytest.mark.slow)])
def test_every_row_is_measured(rows, tmp_path):
    command('-m', 'bench.speed', '--quick', '--rows', *rows, cwd=tmp_path)
    speed = read_json(tmp_path / 'bench.json')['speed']
    assert list(speed['rows']) == rows
    assert all(row['ratio'] > 0 for name, row in speed['rows'].items() if name != 'selection')
    assert [line.split(':')[0] for line in speed['checks']] == [row for row in rows if row not in ('teacher', 'muon')]


@pytest.mark.parametrize('name, content', [('no/bench.json', None), ('.', None), ('bench.json', '{"sp')])
def test_a_file_that_can_not_keep_the_figures_is_told_before_they_are_measured(name, content, tmp_path):
    file = tmp_path / name
    if content:
        file.write_text(content)
    with pytest.raises((argparse.ArgumentTypeError, UserError), match=re.escape(str(file))):
        result_file(str(file))
    assert result_file(str(tmp_path / 'new.json')) == str(tmp_path / 'new.json')


@pytest.mark.slow  # nine processes
def test_both_pools_are_measured_into_the_same_file(tmp_path):
    (tmp_path / 'bench.json').write_text('{"speed": {"kept": true}}')
    command('-m', 'bench.scale', '--quick', cwd=tmp_path)
    content = read_json(tmp_path / 'bench.json')
    rows = content['scale']['rows']
    assert content['speed'] == {'kept': True} and list(rows) == ['cache and score', 'score', 'stream']
    assert all(set(row[key]) == {'300', '3000'} for row in rows.values() for key in ('images_per_s', 'memory_MiB'))
    assert all(mebibytes > 100 for row in rows.values() for mebibytes in row['memory_MiB'].values())  # so few images have no time
