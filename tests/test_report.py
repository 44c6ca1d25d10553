"""report.py and paper/ on small, made-up runs: tables by hand-computed values, published files, markers, errors, figures."""

import itertools
import json
import math
import os
import re
import subprocess
import sys

import pytest
from scripts import ROOT

import report as script
import utils
from paper.fits import fit
from paper.results import entries, load_runs, publish, thinned


@pytest.fixture
def report(tmp_path, monkeypatch, capsys, call_main):
    """Calls report.py as if it lay in tmp_path, and returns what it printed on stdout and on stderr."""
    def call(*flags, code=0):
        monkeypatch.setattr(script, 'ROOT', tmp_path)
        return call_main(script, flags, capsys, code)

    return call


@pytest.fixture
def table(report):
    return lambda *flags: report('--no_figures', *flags)[0]


def make_run(root, name, method='dfnd', settings=None, finished=True, command='', **values):
    """One run's config.json and result.json; a DFND run is the lenet recipe's unless values say otherwise."""
    folder = root / name
    folder.mkdir(parents=True)
    seed = re.search(r'-s(\d+)$', name)
    result = dict(method=method, recipe=None, select=None, loss=None, dataset='mnist5k', arch='lenet5half', width=3,
                  seed=int(seed[1]) if seed else 0, epochs=3, steps=120, images_seen=30720, num_select=None, wild=None, top1=95.0,
                  top1_best=95.5, teacher_top1=None, seconds=90.0, run=name, params=15738, flops=133740)
    if method == 'dfnd':
        result |= dict(recipe='lenet', select='balanced', loss='kd+nll', num_select=10000, wild='demo', teacher_top1=98.0)
    result |= values
    config = {'settings': {'seed': result['seed'], 'run': name, 'data': f'/data/{name}', 'T': 4.0, **(settings or {})},
              'command': command or f'{method}.py', 'commit': 'abc', 'versions': {}, 'hardware': {'cpu': 'Some CPU', 'threads': 2}}
    (folder / 'config.json').write_text(json.dumps(config))
    if finished:
        (folder / 'result.json').write_text(json.dumps(result) + '\n')
    return folder


def seeds(root, row, top1s, **values):
    for seed, top1 in enumerate(top1s):
        make_run(root, f'{row}-s{seed}', top1=top1, **values)


def cells(markdown):
    """{first cell: the other cells of its line} of one Markdown table, in its order."""
    lines = [[cell.strip() for cell in line.strip('| ').split(' | ')] for line in markdown.splitlines() if line.startswith('| ')]
    return {line[0]: line[1:] for line in lines[1:]}


def assert_one_line(err, *words):
    assert err.startswith('report.py: error: ') and err.count('\n') == 1, err
    assert all(word in err for word in words), err


def test_mean_std_and_counts_by_hand(tmp_path, table):
    for seed, (last, best) in enumerate([(97.0, 97.5), (97.4, 97.6), (98.2, 98.2)]):
        make_run(tmp_path / 'runs', f'deep/er/dfnd-s{seed}', top1=last, top1_best=best, teacher_top1=98.0 + seed)
    make_run(tmp_path / 'runs', 'teacher-s0', 'teacher', arch='lenet5', params=61706, flops=416520, top1=98.1)
    text = table()
    # mean 292.6 / 3; squared distances .28444 + .01778 + .44444 over 2, root .61101
    assert cells(text) == {'Teacher': ['original', '416.5K', '61.7K', '98.10', '95.50', '1', '-'],
                           'DFND': ['unlabeled', '133.7K', '15.7K', '97.53 ± 0.61', '97.77', '3', '-']}
    assert 'Wild pool: demo.' in text and '6.0 min on Some CPU, threads 2.' in text  # four runs of 90 s
    assert (tmp_path / 'report' / 'table.md').read_text(encoding='utf-8') == text[:-1]


def test_rows_are_named_by_their_ids_and_users_runs_by_their_method(tmp_path, table):
    runs = tmp_path / 'runs'
    for method, names in {'dfnd balanced': 'T8-s0 loss-kd+ce-s0 mine-w3-s0', 'dfnd random': 'random-s0 their-random-s0', 'kd': 'kd-s0',
                          'dfnd all': 'everything-s0', 'dafl': 'dafl-s0', 'student': 'small-s0', 'teacher': 'teacher-s0 seedless'}.items():
        for name in names.split():
            make_run(runs, name, method.split()[0], select=method.partition(' ')[2], epochs=20)
    rows = cells(table())
    assert list(rows) == [
        'Teacher', 'Knowledge distillation', 'DAFL (20 epochs)', 'Randomly selected', 'DFND, KD + CE without Q', 'DFND, T = 8',
        'All wild images (everything)', 'DFND (mine-w3)', 'Teacher (seedless)', 'Student (small)', 'Randomly selected (their-random)']
    assert rows['Student (small)'][0] == 'original' and rows['DFND (mine-w3)'][0] == 'unlabeled' and rows['DAFL (20 epochs)'][0] == 'none'


def test_rows_asked_for_the_papers_numbers_and_what_did_not_run(tmp_path, table):
    for row in ('dfnd-corrected', 'T8', 'mine'):
        make_run(tmp_path / 'runs', f'{row}-s0', dataset='cifar10')
    text = table('--rows', 'teacher', 'deepinversion', 'mine', 'dfnd-corrected', 'dfnd-released', 'T8', 'gone')
    assert {name: [row[3], row[-1]] for name, row in cells(text).items()} == {
        'Teacher': ['not run', '94.85'], 'DeepInversion': ['not run', '93.26'], 'DFND (mine)': ['95.00', '-'],
        'DFND, corrected': ['95.00', '94.02'], "DFND, today's published file": ['not run', '94.02'], 'DFND, T = 8': ['95.00', '-'],
        'gone': ['not run', '-']}
    assert 'paper (width 64)' in text and 'Paper: DFND, Table 1.' in text


def test_mnist_has_dafls_numbers_and_each_data_set_a_table(tmp_path, table):
    for dataset in ('MNIST', 'FashionMNIST'):
        make_run(tmp_path / 'runs', f'{dataset}/alternative-s0', dataset=dataset, select='all')
    fashion, mnist = table('--rows', 'teacher', 'student', 'kd', 'noise', 'alternative', 'dafl', 'random').split('**MNIST**')
    assert fashion.startswith('**FashionMNIST**') and {row[-1] for row in cells(fashion).values()} == {'-'}
    assert [(row[0], row[-1]) for row in cells(mnist).values()] == [
        *zip(['original'] * 3, ['98.91', '98.65', '98.91']), ('none', '88.01'), ('alternative', '-'), ('none', '98.20'), ('unlabeled', '-')]


FITTED = dict(settings={'fit_pool': True})


@pytest.mark.parametrize('one, other, words', [
    ({}, dict(seed=0), ('seed 0',)),  # counted twice, it would shrink the spread
    ({}, dict(settings={'T': 8.0}), ('T (8.0, 4.0)', '--run')),
    (dict(epochs=3), dict(epochs=30), ('epochs (30, 3)',)),
    (dict(settings={'teacher_acc': 0.98}), dict(settings={'teacher_acc': 0.9523}), ('teacher_acc (0.9523, measured)',)),
    (dict(settings={'teacher_acc': 0.98}), dict(settings={'teacher_acc': 0.9725}, teacher_top1=97.25), ()),  # both measured
    (dict(settings={'workers': 1, 'device': 'cpu', 'export': None}),
     dict(settings={'workers': 4, 'device': 'cuda', 'teacher_dir': 'there', 'export': ['pt2']}), ()),
    ({}, dict(settings={'stream': False}, wild_images=9), ()),  # an older run lacks a newer flag
    (FITTED, FITTED | dict(num_select=900, epochs=30, images_seen=27000), ()),  # each seed's teacher has its own number
    (FITTED | dict(command='x --epochs 3'), FITTED | dict(command='x --epochs=30', num_select=900, epochs=30), ('epochs (30, 3)',)),
    (FITTED | dict(command='x --num_select 10000'), FITTED | dict(command='x --num_select 900', num_select=900),
     ('num_select (900, 10000)',)),
])
def test_runs_that_are_no_seeds_of_one_row_are_not_averaged(tmp_path, report, one, other, words):
    make_run(tmp_path / 'runs', 'x/dfnd-s0', top1=95.0, **one)
    make_run(tmp_path / 'runs', 'y/dfnd-s1', top1=97.0, **other)
    out, err = report('--no_figures')
    assert cells(out)['DFND'][3:6] == (['95.00', '95.50', '1'] if words else ['96.00 ± 1.41', '95.50', '2'])
    assert err.count('\n') == bool(words) and all(word in err for word in ('y/dfnd-s1' if words else '', *words))


def test_no_test_data_and_unfinished_runs(tmp_path, report):
    make_run(tmp_path / 'runs', 'dfnd-s0', top1=None, top1_best=None)
    make_run(tmp_path / 'runs', 'dfnd-s1', top1=12.0, finished=False)
    out, err = report('--no_figures')
    assert cells(out)['DFND'][3:6] == ['no test data', '-', '0']
    assert '1 unfinished run' in err and err.count('\n') == 1


def test_the_difference_and_the_order_by_hand(tmp_path, table):
    seeds(tmp_path / 'runs', 'random', (90.0, 91.0, 92.0), select='random')
    seeds(tmp_path / 'runs', 'dfnd', (91.0, 92.5))
    # 91.75 - 91; variances 1.125 and 1: root of 1.125 / 2 + 1 / 3 is .94648
    assert ('DFND - Randomly selected: +0.75 ± 0.95 (difference of means ± its standard error, n = 2 and 3). '
            'Order seen: Randomly selected 91.00 < DFND 91.75.\n') in table()
    make_run(tmp_path / 'runs', 'kd-s0', 'kd', top1=91.0)
    make_run(tmp_path / 'runs', 'loss-kd-s0', top1=99.0, loss='kd')  # the study's, not the paper's method
    assert 'Order seen: Knowledge distillation 91.00 = Randomly selected 91.00 < DFND 91.75.\n' in table()
    make_run(tmp_path / 'runs', 'mine-s0', select='confidence', top1=93.0)  # one seed has no error
    assert 'DFND (mine) - Randomly selected: +2.00 (difference of means, n = 1 and 3; the best of 2 DFND rows).' in table()
    assert 'Order seen' not in table('--rows', 'dfnd', 'kd')


@pytest.mark.parametrize('values, caution', [
    (dict(wild_images=25000), ''),
    (dict(wild_images=90000, settings={'T': 1.0}), 'the two differ in T (1.0, 4.0), wild_images (90000, 25000).')])
def test_rows_that_differ_in_more_than_the_selection_are_told(tmp_path, table, values, caution):
    make_run(tmp_path / 'runs', 'random-s0', select='random', recipe='another', wild_images=25000)
    make_run(tmp_path / 'runs', 'dfnd-s0', **values)
    text = table()
    assert caution in text and ('the two differ' in text) == bool(caution)
    assert ('demo (25,000 images), demo (90,000 images).' in text) == bool(caution)


def test_where_a_seeds_files_lie_and_how_they_are_read_is_no_difference(tmp_path, table):
    for seed, top1 in ((0, 70.0), (1, 90.0)):
        make_run(tmp_path / 'runs', f'dfnd-s{seed}', top1=top1, settings={'teacher_weights': f't{seed}.pth', 'decode_seconds': 10 + seed})
    assert '80.00 ±' in table()


def test_teachers_that_differ_within_a_seed_are_told(tmp_path, table):
    for name, teacher, words in [('dfnd-s0', 1, 'one teacher.'), ('dfnd-s1', 2, 'seed, all'), ('random-s0', 2, 'seed, not all')]:
        make_run(tmp_path / 'runs', name, teacher=teacher, select=name.split('-')[0])
        assert words in table()


def test_rows_of_another_teacher_are_told_and_kd_is_left_out(tmp_path, table):
    for name, method, teacher in (('random-s0', 'dfnd', 'a'), ('dfnd-s0', 'dfnd', 'b'), ('kd-s0', 'kd', 'c')):
        make_run(tmp_path / 'runs', name, method, teacher=teacher, select=name.split('-')[0])
    text = table()
    assert 'the two differ in the teacher.' in text and 'Order seen: DFND 95.00 = Randomly selected 95.00.' in text
    make_run(tmp_path / 'runs', 'teacher-s0', 'teacher', digest='d')
    assert 'The Teacher row is another network' in table()


def test_the_teacher_row_that_the_students_had_is_no_matter(tmp_path, table):
    make_run(tmp_path / 'runs', 'teacher-s0', 'teacher', digest='a')
    make_run(tmp_path / 'runs', 'dfnd-s0', teacher='a')
    assert 'All students had one teacher.' in (text := table()) and 'another network' not in text


def test_a_study_is_a_slim_table_in_the_order_asked_for(tmp_path, report):
    runs = tmp_path / 'runs'
    seeds(runs, 'dfnd', (95.0, 96.0))
    seeds(runs, 'T8', (94.0, 96.0, 50.0), settings={'T': 8.0})  # DFND has 95 and 96, and no third seed
    make_run(runs, 'loss-kd-s0', loss='kd')
    out, err = report('--no_figures', '--study', 'T8', 'dfnd', 'T2', '--study', 'loss-kd', 'T2')
    first, second = out.split('**mnist5k**, wild pool: demo.\n')[1:]
    assert list(cells(first).items()) == [('DFND, T = 8', ['80.00 ± 26.00', '-0.50 ± 0.50', '95.50', '3', '30,720']),
                                          ('DFND', ['95.50 ± 0.71', '-', '95.50', '2', '30,720']),
                                          ('DFND, T = 2', ['not run', '-', '-', '0', '-'])]
    assert 'difference to DFND, paired' in first and 'difference to DFND, KD only, paired' in second  # without dfnd: to the first
    assert err == ''


def test_what_selections_hold_is_below_a_study_that_compares_them(tmp_path, table):
    held = dict(noise=0.01234, noise_max=0.5, pool_noise=0.71)
    make_run(tmp_path / 'runs', 'dfnd-s0', selected_per_class=[3, 4, 3], **held)
    make_run(tmp_path / 'runs', 'dfnd-s1', noise=0.03234, noise_max=0.7, pool_noise=0.71, selected_per_class=[9, 9, 8])
    make_run(tmp_path / 'runs', 'confidence-s0', select='confidence', selected_per_class=[0, 9, 1], **held)
    make_run(tmp_path / 'runs', 'T8-s0', settings={'T': 8.0}, selected_per_class=[3, 4, 3], **held)
    text = table('--study', 'confidence', 'dfnd')
    assert cells(text[text.index('| selection'):]) == {
        'DFND': ['0.0223', '0.6', '0.71', '6 6 6'], 'DFND, most confident over all classes': ['0.0123', '0.5', '0.71', '0 9 1']}
    assert 'pseudo-label' not in table('--study', 'dfnd', 'T8')


@pytest.mark.parametrize('count', [0, 1, 49, 50, 51, 99, 1000])
@pytest.mark.parametrize('every', [1, 5, 10**6])
def test_a_published_curve_is_thinned_evenly_and_keeps_its_ends_and_its_measurements(count, every):
    curve = [{'epoch': i, 'top1': 90.0 if i % every == 0 or i == count else None} for i in range(1, count + 1)]
    thin = thinned(curve)
    assert len(thin) == min(count, 50) and thin[:1] + thin[-1:] == curve[:1] + curve[-1:]
    measured, kept = ([row['epoch'] for row in rows if row['top1']] for rows in (curve, thin))
    assert kept[-3:] == measured[-3:] and (kept == measured or len(kept) >= 48)
    assert all(0 < b['epoch'] - a['epoch'] <= 2 * count // 50 + 1 for a, b in itertools.pairwise(thin))


def test_a_published_file_gives_the_same_table_and_is_updated_by_row_and_seed(tmp_path, table):
    file = tmp_path / 'results' / 'mnist5k-demo.jsonl'
    for name, top1 in (('random-s0', 91.0), ('dfnd-s1', 93.0), ('dfnd-s0', 94.0)):
        folder = make_run(tmp_path / 'runs', name, top1=top1, select='random' if 'random' in name else 'balanced')
        (folder / 'metrics.jsonl').write_text(''.join(f'{{"step": {i}}}\n' for i in range(80)))
        publish(folder, file)
    assert table('--runs', str(file)) == table()
    lines = utils.read_json_lines(file)
    assert [(line['row'], line['seed']) for line in lines] == [('dfnd', 0), ('dfnd', 1), ('random', 0)]
    assert list(lines[0]) == ['row', 'seed', 'settings', 'command', 'commit', 'versions', 'hardware', 'result', 'curve']
    assert lines[0]['result'] == json.loads((tmp_path / 'runs/dfnd-s0/result.json').read_text())
    assert lines[0]['settings']['T'] == 4.0 and len(lines[0]['curve']) == 50
    config = tmp_path / 'runs' / 'dfnd-s1' / 'config.json'
    config.write_text(json.dumps({'args': {'T': 7.0}}))  # as older runs have it
    publish(config.parent, file)
    lines = utils.read_json_lines(file)
    assert [line['settings']['T'] for line in lines] == [4.0, 7.0, 4.0]
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(utils.UserError, match='can not be written'):
        publish(config.parent, file / 'below-a-file.jsonl')


def test_the_committed_tables_are_those_of_the_committed_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['report.py', '--check'])
    assert script.main() == 0, capsys.readouterr().err
    for file in set((ROOT / 'results').glob('*.jsonl')):
        runs = [run for rows in load_runs(file).values() for kept in rows.values() for run in kept]
        assert all(len(run.curve) <= 50 and run.line['command'] for run in runs)
    assert capsys.readouterr().err == ''  # no run is left out


def mark(name, *ends):
    return [f'<!-- {name}:{end} -->' for end in ends or ('begin', 'end')]


def readme_in(folder, *lines):
    make_run(folder / 'results' / 'mnist', 'teacher-s0', 'teacher', top1=98.76)
    (folder / 'bench.json').write_text('{"odd": 1}')
    (folder / 'README.md').write_text('\n'.join(['# Title', *lines, 'the end', '']), encoding='utf-8')
    return folder / 'README.md'


def test_a_readme_is_written_between_markers_and_checked(tmp_path, report):
    begin, end = mark('table1:results/mnist')
    readme = readme_in(tmp_path, begin, 'old', end)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'plain.md').write_text('no table\n')
    assert 'table1:results/mnist' in report('--check', code=1)[1] and 'old' in readme.read_text(encoding='utf-8')
    report('--readme', 'README.md')
    text = readme.read_text(encoding='utf-8')
    assert text.startswith(f'# Title\n{begin}\n') and text.endswith(f'{end}\nthe end\n')
    assert cells(text)['Teacher'][3] == '98.76' and 'old' not in text
    report('--check')
    report('--readme', 'README.md')
    assert readme.read_text(encoding='utf-8') == text  # writing twice changes nothing
    readme.write_text(text.replace('98.76', '98.77'), encoding='utf-8')
    assert report('--check', code=1)[1].count('\n') == 1


def test_markers_name_their_rows(tmp_path, report):
    names = ('study:results/mnist.jsonl dfnd random', 'table1:results/mnist.jsonl dfnd teacher', 'table1:results/mnist.jsonl')
    readme = readme_in(tmp_path, *(line for name in names for line in mark(name)))
    seeds(tmp_path / 'results' / 'mnist', 'dfnd', (90.0, 91.0))
    for folder in (tmp_path / 'results' / 'mnist').iterdir():
        publish(folder, tmp_path / 'results' / 'mnist.jsonl')
    report('--readme', 'README.md')
    report('--check')
    text = readme.read_text(encoding='utf-8')
    slim, some, whole = (text.split(mark(name)[0])[1].split(mark(name)[1])[0] for name in names)
    assert cells(slim) == {'DFND': ['90.50 ± 0.71', '-', '95.50', '2', '30,720'], 'Randomly selected': ['not run', '-', '-', '0', '-']}
    assert list(cells(some)) == ['DFND', 'Teacher'] and list(cells(whole)) == ['Teacher', 'DFND']
    readme.write_text(text.replace('90.50', '90.51', 1), encoding='utf-8')
    err = report('--check', code=1)[1]
    assert f'{names[0]} differs' in err and names[2] + ' differs' not in err


def test_a_planned_table_says_that_nothing_is_run(tmp_path, report):
    name = 'table1:results/cifar10-paper.jsonl teacher dfnd'
    readme = readme_in(tmp_path, *mark(name))
    report('--readme', 'README.md')
    text = readme.read_text(encoding='utf-8')
    assert {row: line[3:] for row, line in cells(text).items()} == {'Teacher': ['not run', '-', '0', '94.85'],
                                                                    'DFND': ['not run', '-', '0', '94.02']}
    assert 'Nothing of it is run yet.' in text and 'min' not in text


A, B = 'table1:results/mnist', 'study:results/mnist dfnd'


@pytest.mark.parametrize('lines, words', [
    (mark(A, 'begin'), (A + ':end',)),
    (mark(A, 'end'), (A + ':begin',)),
    (mark(A, 'begin', 'begin', 'end', 'end'), (A, 'once')),
    (mark(A) + mark(A), (A, 'once')),
    ([mark(A)[0], *mark(B), mark(A)[1]], (A + ':end',)),
    (mark('table1:results/gone.jsonl'), ('results/gone.jsonl', 'does not exist')),
    (mark('table1:results/cifar10-gone.jsonl teacher'), ('results/cifar10-gone.jsonl', 'does not exist')),  # no scale of reproduce.py
    (mark('table1:results/cifar10-paper.jsonl'), ('results/cifar10-paper.jsonl', 'does not exist')),  # of which rows?
    (mark('speed:bench.json'), ('speed:bench.json', "KeyError: 'speed'", 'correct the marker')),
    (mark('trials:results/mnist'), ('trials:results/mnist', 'no table of the kind trials')),
    (mark('table:results/mnist'), ('table:results/mnist', 'table1', 'speed')),
    ([], ('holds no line',))])
def test_wrong_markers_are_one_line(tmp_path, report, lines, words):
    readme = readme_in(tmp_path, *lines)
    before = readme.read_text(encoding='utf-8')
    assert_one_line(report('--readme', 'README.md', code=2)[1], 'README.md' if 'holds' in words[0] else '', *words)
    assert readme.read_text(encoding='utf-8') == before


@pytest.mark.parametrize('flags, words', [
    (('--run', 'x'), ('--run', '--help')),  # no abbreviations: unknown
    (('--runs', 'nowhere'), ('nowhere', 'does not exist')),
    (('--runs', 'empty'), ('empty', 'no finished run')),
    (('--runs', 'empty', '--runs', 'broken'), ('empty broken', 'the one above them')),
    (('--runs', 'empty', 'broken'), ('empty broken', 'the one above them')),
    (('--readme', 'latin.md'), ('latin.md', 'UTF-8')),
    (('--runs', 'empty.jsonl'), ('empty.jsonl', 'no finished run')),
    (('--runs', 'broken'), ('result.json', 'no JSON object')),
    (('--runs', 'list.jsonl'), ('list.jsonl', 'no JSON object')),
    (('--runs', 'rowless.jsonl'), ('rowless.jsonl', 'row=None')),
    (('--runs', 'odd'), ("method='magic'", 'teacher, student', 'extending.md')),
    (('--runs', 'text.jsonl'), ('text.jsonl', 'row kd', "top1='high'", 'number or null')),
    (('--runs', 'nan'), ('top1=nan',)),
    (('--runs', 'seed.jsonl'), ('seed.jsonl', "seed='x'")),
    (('--runs', 'settings.jsonl'), ('settings.jsonl', 'settings=[1]', 'objects as settings')),
    (('--runs', 'fine', '--pools'), ('none of the runs', 'reproduce.py pools')),
    (('--check', '--rows', 'a'), ('--rows', '--check')),
    (('--check', '--runs', 'odd'), ('--runs', '--check')),
    (('--html', '--rows', 'a'), ('--rows', '--html')),
    (('--pools', '--study', 'a'), ('--study', '--pools')),
    (('--html', '--runs', 'fine', '--out', 'list.jsonl'), ('list.jsonl', 'can not be written', '--out')),
    (('--readme', 'nowhere.md'), ('nowhere.md', 'not a file')),
    (('--runs', 'fine', '--out', 'list.jsonl'), ('list.jsonl', 'can not be written', '--out'))])
def test_errors_are_one_line(tmp_path, report, flags, words):
    for name, text in {'broken/result.json': '{"method": ', 'odd/result.json': '{"method": "magic", "dataset": "x"}', 'empty/none': '',
                       'nan/result.json': '{"method": "kd", "dataset": "x", "top1": NaN}', 'empty.jsonl': '', 'list.jsonl': '[1]\n',
                       'text.jsonl': '{"row": "kd", "seed": 1, "result": {"method": "kd", "dataset": "x", "top1": "high"}}\n',
                       'seed.jsonl': '{"row": "kd", "seed": "x", "result": {"method": "kd", "dataset": "x"}}\n',
                       'settings.jsonl': '{"row": "kd", "settings": [1], "result": {"method": "kd", "dataset": "x"}}\n',
                       'rowless.jsonl': '{"result": {}}\n'}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / 'latin.md').write_bytes(b'caf\xe9')
    make_run(tmp_path / 'fine', 'teacher-s0', 'teacher')
    out, err = report(*flags, code=2)
    assert_one_line(err, *words)
    assert out == '' or '--out' in flags


def test_without_any_package_the_table_still_comes(tmp_path):
    make_run(tmp_path / 'runs', 'teacher-s0', 'teacher')
    done = subprocess.run([sys.executable, '-S', '-E', '-s', ROOT / 'report.py', '--out', 'there'], cwd=tmp_path, capture_output=True,
                          encoding='utf-8')  # -S: no site-packages
    assert done.returncode == 2
    assert_one_line(done.stderr, 'requirements-report.txt', '--no_figures')
    assert 'Teacher' in cells(done.stdout) and 'Teacher' in cells((tmp_path / 'there' / 'table.md').read_text(encoding='utf-8'))


def add_files(folder, classes):
    """What a DFND run leaves beside its result; the thumbnails are grey."""
    import numpy as np
    rng = np.random.default_rng(0)
    rows = [{'epoch': e, 'step': 40 * e, 'lr': 0.1, 'loss': 2 / e, 'loss_kd': 1 / e, 'loss_ie': -1.0, 'test_loss': None,
             'top1': None if e == 1 else 90.0 + e} for e in (1, 2, 3)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    lines = [f'"a, {i}.png",{i / 100},{i % classes},{i % 2}\n' for i in range(60)]
    (folder / 'selection.csv').write_text('image,noise,pseudo_label,chosen\n' + ''.join(lines))
    arrays = {'class_names': np.array([f'class {c}' for c in range(classes)])}
    for kind in ('clean', 'noisy', 'chosen', 'left'):
        arrays |= {f'{kind}_images': rng.integers(0, 256, (9, 28, 28), dtype=np.uint8), f'{kind}_noise': rng.random(9),
                   f'{kind}_labels': rng.integers(0, classes, 9)}
    np.savez(folder / 'thumbnails.npz', **arrays)
    np.savez(folder / 'selection.npz', noise=rng.random(60), labels=np.arange(60) % classes, chosen=np.arange(1, 60, 2))
    np.save(folder / 'adaptation.npy', np.where(np.eye(classes) > 0, 0.98, 0.02 / (classes - 1)).astype(np.float32))


def test_figures(tmp_path, report):
    image = pytest.importorskip('matplotlib.image')
    folder = make_run(tmp_path / 'runs', 'a-s0')
    assert report()[1].count('not drawn') == 7
    add_files(folder, classes=10)
    hundred = make_run(tmp_path / 'runs', 'b-s0', dataset='cifar100')
    add_files(hundred, classes=100)
    (hundred / 'thumbnails.npz').unlink()
    err = report()[1]
    assert all(word in err for word in ('cifar100-selection.png', 'cifar100-chosen.png', 'thumbnails.npz')) and err.count('\n') == 2
    pictures = sorted((tmp_path / 'report').glob('*.png'))
    assert [path.stem for path in pictures] == [
        *(f'cifar100-{name}' for name in ('adaptation', 'budget', 'cost', 'curves', 'histogram')),
        *(f'mnist5k-{name}' for name in ('adaptation', 'budget', 'chosen', 'cost', 'curves', 'histogram', 'selection'))]
    for path in pictures:
        assert image.imread(path)[..., :3].std() > (0.02 if 'cost' in path.name else 0.05), f'{path.name} is blank'
    publish(folder, tmp_path / 'published.jsonl')
    err = report('--runs', 'published.jsonl', '--out', 'there')[1]  # a published file has no pictures of a run
    assert {path.name for path in (tmp_path / 'there').glob('*.png')} == {'budget.png', 'cost.png', 'curves.png'} and 'cifar100' not in err
    assert all(word in err for word in ('selection.png', 'histogram.png', 'adaptation.png'))
    assert image.imread(tmp_path / 'there' / 'curves.png').shape == image.imread(tmp_path / 'report' / 'mnist5k-curves.png').shape


def test_core_hours_are_of_all_that_a_row_needs_but_its_teacher(tmp_path):
    for seed, seconds in ((0, 3600.0), (1, 7200.0)):
        make_run(tmp_path / 'runs', f'deepinversion-s{seed}', dataset='cifar10', seconds=seconds)
    make_run(tmp_path / 'runs', 'inverted-s0', 'inverted', dataset='cifar10', seconds=1800.0)
    make_run(tmp_path / 'runs', 'kd-s0', 'kd', dataset='cifar10', seconds=360.0)
    found = {entry.row.id: entry.core_hours() for entry in entries(load_runs(tmp_path / 'runs'))['cifar10']}
    assert found == pytest.approx({'deepinversion': 2 * (1.5 + 0.5), 'inverted': 2 * 0.5, 'kd': 2 * 0.1})  # two threads each


def test_a_power_law_is_found_again_and_its_error_is_that_of_its_points():
    exact = fit([(n, 90 - 400 * n**-0.5) for n in (100, 400, 2500)], ceiling=90)
    assert (exact.c, exact.c_error, exact.first) == pytest.approx((0.5, 0, 100)) and exact.at(10_000) == pytest.approx((86, 86, 86))
    # logarithms 3, 1 and 2, 0 of 100 - top-1 at log n = 0 and 1: slope -2, residuals of 0.5, spread sqrt(1 / 2)
    rough = fit([(n, 100 - math.e**y) for n, y in ((1, 3), (1, 2), (math.e, 1), (math.e, 0))])
    assert (rough.c, rough.spread, rough.c_error) == pytest.approx((2, 0.5**0.5, 0.5**0.5))
    away = (0.5 * (1 + 1 / 4 + 0.5**2)) ** 0.5  # at log n = 1
    assert rough.at(math.e) == pytest.approx([100 - math.exp(0.5 + sign * away) for sign in (0, 1, -1)])
    assert fit([(1, 50), (2, 60)]) is fit([(9, 50), (9, 60), (9, 70)]) is fit([(1, 90), (2, 95), (3, 99)], ceiling=80) is None


def test_the_budgets_table(tmp_path, report):
    def run(row, seed, seen, *top1s, **values):
        folder = make_run(tmp_path / 'runs', f'{row}-s{seed}', dataset='cifar10', top1=top1s[-1], steps=3, images_seen=seen,
                          teacher_top1=90.0, select='random' if row == 'random' else 'weighted', **values)
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps({'epoch': i, 'step': i, 'top1': top1}) + '\n' for i, top1 in
                                                      enumerate(top1s, 1)))
        publish(folder, tmp_path / 'results/some.jsonl')

    run('dfnd', 0, 900, 50.0, 70.0, 80.0)
    run('dfnd', 1, 900, 50.0, 70.0, 80.0)
    run('large-pool', 0, 3600, 50.0, 70.0, 85.0)  # half the gap with four times the images: c = 0.5
    run('random', 0, 900, None, None, 78.0, settings={'fit_pool': True})
    run('random', 1, 905, None, None, 80.0, settings={'fit_pool': True})  # of another teacher, which finds a few more images of use
    readme = readme_in(tmp_path, *mark('budget:results/some.jsonl random dfnd large-pool kd'))
    report('--readme', 'README.md')
    rows = cells(readme.read_text(encoding='utf-8'))
    assert rows['Randomly selected'] == ['905', '79.00', '-', '-', '-', '-', '91.25']
    assert rows['Knowledge distillation'] == ['-', 'not run', '-', '-', '-', '-', '94.34']
    assert rows['DFND'][:3] == ['900', '80.00', '6'] and rows['DFND'][3] == '1.23 ± 0.09'  # gaps 40, 20, 10 at 300, 600, 900
    end = rows['the ends of: DFND; DFND, 30,000 images, 600,000 seen']
    assert end == ['3,600', '85.00', '3', '0.50 ± 0.00', '86.5 (86.5 to 86.5)', '87.5 (87.5 to 87.5)', '94.02']


@pytest.mark.parametrize('content', ['{"epoch": 1, "st\n1\n', ''])
@pytest.mark.parametrize('name', ['selection.csv', 'thumbnails.npz', 'adaptation.npy'])
def test_a_damaged_file_of_a_run_is_one_line(tmp_path, report, name, content):
    pytest.importorskip('matplotlib')
    (file := make_run(tmp_path / 'runs', 'dfnd-s0') / name).write_text(content)
    assert 'error: ' in (line := report(code=2)[1].splitlines()[-1]) and f'{file.relative_to(tmp_path)} is damaged' in line
    file.unlink()
    report()


def test_damaged_rows_of_a_runs_log_are_left_out(tmp_path, report):
    for name in ('dfnd-s0', 'dfnd-s1'):
        (make_run(tmp_path / 'runs', name) / 'metrics.jsonl').write_text('{"epoch": 1, "st\n{"epoch": 2, "step": 9}\n')
    out, err = report('--no_figures')
    assert '95.00 ± 0.00' in out and err.count('1 of its 2 rows are lost') == 2
    assert load_runs(tmp_path / 'runs')['mnist5k']['dfnd'][0].curve == [{'epoch': 2, 'step': 9}]


@pytest.mark.parametrize('name, content', [
    ('config.json', '{"settings": 5}'), ('config.json', '{"sett'), ('result.json', '{"method": "x"}'), ('result.json', '[]'),
    ('result.json', '')])
def test_a_folder_that_is_damaged_or_anothers_is_left_out(tmp_path, report, name, content):
    make_run(tmp_path / 'runs', 'dfnd-s0')
    (make_run(tmp_path / 'runs', 'dfnd-s1') / name).write_text(content)
    out, err = report('--no_figures')
    assert '| 95.00 |' in out and 'runs/dfnd-s1 left out' in err
    assert_one_line(report('--runs', 'runs/dfnd-s1', '--no_figures', code=2)[1], 'error: ')


def test_the_run_that_is_shown(tmp_path):
    pytest.importorskip('matplotlib')
    from paper.figures import find_run

    for name, files in {'random-s0': ['a', 'b'], 'dfnd-s2': ['a'], 'dfnd-s1': ['a'], 'dfnd-s0': []}.items():
        folder = make_run(tmp_path, name, select='random' if 'random' in name else 'balanced')
        for file in files:
            (folder / file).touch()
    rows = entries(load_runs(tmp_path))['mnist5k']
    assert find_run(rows, 'a').folder.name == 'dfnd-s1' and find_run(rows, 'b').folder.name == 'random-s0' and find_run(rows, 'c') is None


def test_the_benchmarks_tables_are_built_from_their_json_in_docs_too(tmp_path, report):
    readme_in(tmp_path, *mark('speed:results/bench.json'))
    row = dict(plain=[10.0, 30.0, 20.0], ours=[80.0, 60.0, 70.0], ratio=3.5, need=3.0)
    speed = dict(machine=dict(name='A CPU', threads=2, precision='bfloat16', matmul_flops=4e11, copy_bytes=3e10),
                 photos='pictures', photo_bytes=100_000, checks=['decode: the same'],
                 rows=dict(decode=row, score=row | dict(share=1.07, limit=3.75),
                           selection=dict(seconds=2.0, GiB=0.5, scores=10**7, classes=1000)))
    step = dict(images_per_s={'30': 100.0, '300': 98.0}, time_ratio=1.02, memory_MiB={'30': 900.0, '300': 910.0}, memory_ratio=1.011)
    file, docs = tmp_path / 'results' / 'bench.json', tmp_path / 'docs' / 'scale.md'
    file.write_text(json.dumps(dict(speed=speed, scale=dict(images=[30, 300], rows=dict(stream=step)))))
    docs.parent.mkdir()
    docs.write_text('\n'.join(mark('scale:results/bench.json') + mark('plan:results/bench.json')) + '\n')
    for name in ('README.md', 'docs/scale.md'):
        report('--readme', name)
    text = (tmp_path / 'README.md').read_text()
    assert '| score | 20 (10-30) | 70 (60-80) | 3.50 x | 3 x | 107 % of matrix product | 3.75 x |' in text
    assert 'selection of 10,000,000 scores' in text and '2.00 s, 0.50 GiB' in text and 'decode: the same.' in text
    assert 'A CPU, 2 threads: 400 GFLOP/s in a bfloat16 matrix product, 30.0 GB/s in a copy. Photos: pictures.' in text
    text = docs.read_text()
    assert '| stream | 100 img/s | 98 img/s | 1.020 | 900, 910 MiB | 1.011 |' in text
    assert '| 100,000,000 | 10.00 TB | 307 GB | 396.8 core hours |' in text and '20 s, 5.0 GiB' in text
    report('--check')
    file.write_text(json.dumps(dict(speed=speed, scale=dict(images=[30, 300], rows={}))))
    assert 'docs/scale.md' in report('--check', code=1)[1]


@pytest.mark.parametrize('words', [('report.py', '--no_figures'), ('reproduce.py', 'table1', '--dry_run')])
def test_a_stdout_that_fails(tmp_path, words):
    make_run(tmp_path / 'runs', 'teacher-s0', 'teacher')
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and re.fullmatch(rf'{words[0]}: error: .*stdout: No space left on device: free space.*\n', done.stderr)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b'')
