"""The benchmark runs: not how fast, which is for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_row_is_measured(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'bench.py', '--quick'], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / 'bench.json').read_text())
    assert list(content['rows']) == ['decode', 'load', 'score', 'distil', 'teacher', 'dafl', 'selection']
    assert all(row['ratio'] > 0 for name, row in content['rows'].items() if name != 'selection')
    checked = [line.split(':')[0] for line in content['checks']]
    assert checked == ['decode', 'load', 'score', 'distil', 'dafl', 'selection']


def test_both_pools_are_measured(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'bench_scale.py', '--quick'], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / 'bench-scale.json').read_text())['rows']
    assert list(rows) == ['cache and score', 'score', 'stream']
    assert all(set(row[key]) == {'300', '3000'} for row in rows.values() for key in ('images_per_s', 'memory_MiB'))
    assert all(mebibytes > 100 for row in rows.values() for mebibytes in row['memory_MiB'].values())  # so few images have no time
