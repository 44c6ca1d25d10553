"""report.py on small, made-up runs: the table by hand-computed values, README markers, errors, figures."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'report.py'
BARE = ('-S', '-E', '-s')  # no site-packages: neither numpy nor torch nor matplotlib can be imported


def report(folder, *flags, bare=True, script=SCRIPT):
    command = [sys.executable, *(BARE if bare else ()), str(script), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding='utf-8')


def make_run(root, name, method, args=None, finished=True, **values):
    """One run's config.json and result.json; a DFND run is the lenet recipe's unless values say otherwise."""
    folder = root / name
    folder.mkdir(parents=True)
    result = dict(
        script=f'{method}.py', method=method, recipe=None, select=None, loss=None, dataset='mnist5k',
        arch='lenet5half', width=3, seed=0, epochs=3, steps=120, images_seen=30720, num_select=None,
        wild=None, top1=95.0, top1_best=95.5, teacher_top1=None, seconds=90.0, run=name, params=15738,
        flops=133740)
    if method == 'dfnd':
        result.update(recipe='lenet', select='balanced', loss='kd+nll', num_select=10000, wild='demo',
                      teacher_top1=98.0)
    result.update(values)
    args = {'seed': result['seed'], 'run': name, 'data': f'/data/{name}', 'T': 4.0, **(args or {})}
    config = {'args': args, 'command': f'{method}.py', 'versions': {},
              'hardware': {'cpu': 'Some CPU', 'threads': 2}}
    (folder / 'config.json').write_text(json.dumps(config))
    if finished:
        (folder / 'result.json').write_text(json.dumps(result) + '\n')
    return folder


def cells(markdown):
    """{algorithm: the other cells of its line} of one Markdown table, in its order."""
    lines = [[cell.strip() for cell in line.strip('| ').split(' | ')] for line in markdown.splitlines()
             if line.startswith('| ')]
    return {line[0]: line[1:] for line in lines[1:]}


def table(folder, *flags):
    done = report(folder, '--no_figures', *flags)
    assert done.returncode == 0, done.stderr
    return cells(done.stdout)


def assert_one_line(done, *words):
    assert done.returncode == 2
    assert done.stderr.startswith('report.py: error: ') and done.stderr.count('\n') == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_mean_std_and_counts_by_hand(tmp_path):
    for seed, (last, best) in enumerate([(97.0, 97.5), (97.4, 97.6), (98.2, 98.2)]):
        make_run(tmp_path / 'runs', f'deep/er/s{seed}', 'dfnd', seed=seed, top1=last, top1_best=best,
                 teacher_top1=98.0 + seed)  # another teacher is no other setting
    make_run(tmp_path / 'runs', 't', 'teacher', arch='lenet5', params=61706, flops=416520, top1=98.1)
    done = report(tmp_path, '--no_figures')
    rows = cells(done.stdout)
    # mean 292.6 / 3; squared distances .28444 + .01778 + .44444 over 2, root .61101
    assert rows['DFND'] == ['unlabeled', '133.7K', '15.7K', '97.53 ± 0.61', '97.77', '3', '-']
    assert rows['Teacher'] == ['original', '416.5K', '61.7K', '98.10', '95.50', '1', '-']
    assert list(rows) == ['Teacher', 'DFND']
    assert 'Wild pool: demo.' in done.stdout
    assert '6.0 min on Some CPU, threads 2.' in done.stdout  # four runs of 90 s
    assert (tmp_path / 'report' / 'table.md').read_text(encoding='utf-8') == done.stdout[:-1]


def test_rows_are_named_and_ordered_as_in_the_paper(tmp_path):
    runs = tmp_path / 'runs'
    make_run(runs, 'a', 'dfnd', select='confidence')
    make_run(runs, 'b', 'dfnd', num_select=25000)
    make_run(runs, 'c', 'dfnd')
    make_run(runs, 'd', 'dfnd', loss='kd')
    make_run(runs, 'd2', 'dfnd', loss='kd+ce')
    make_run(runs, 'e', 'dfnd', select='random', num_select=10000)
    make_run(runs, 'f', 'dfnd', select='all', num_select=52131)
    make_run(runs, 'g', 'dafl', epochs=200)
    make_run(runs, 'g2', 'dafl', epochs=20)  # a tenth of the published run, which must not pass for one
    make_run(runs, 'h', 'kd', teacher_top1=98.0, loss='kd+ce')
    make_run(runs, 'i', 'student', width=16)
    make_run(runs, 'j', 'student', width=64)
    make_run(runs, 'k', 'teacher')
    assert list(table(tmp_path)) == [
        'Teacher', 'Student (width 16)', 'Student (width 64)', 'Knowledge distillation',
        'DAFL (20 epochs)', 'DAFL (200 epochs)',
        'Randomly selected (10,000)', 'All wild images', 'DFND (balanced, 10,000)',
        'DFND (balanced, 10,000, KD + CE without Q)', 'DFND (balanced, 10,000, KD only)',
        'DFND (balanced, 25,000)', 'DFND (confidence, 10,000)']


def test_arguments_in_config_make_rows_of_their_own(tmp_path):
    runs = tmp_path / 'runs'
    make_run(runs, 'a0', 'dfnd', seed=0, args={'T': 4.0, 'workers': 2, 'teacher_acc': 0.98})
    make_run(runs, 'a1', 'dfnd', seed=1, args={'T': 4.0, 'workers': 4, 'teacher_acc': 0.9725},
             teacher_top1=97.25)
    make_run(runs, 'b0', 'dfnd', seed=0, args={'T': 8.0, 'teacher_acc': 0.98})
    rows = table(tmp_path)
    assert {name: row[-2] for name, row in rows.items()} == {'DFND (T=4)': '2', 'DFND (T=8)': '1'}


def test_the_same_seed_is_counted_once(tmp_path):
    make_run(tmp_path / 'runs', 'a', 'dfnd', top1=95.0)
    make_run(tmp_path / 'runs', 'b', 'dfnd', top1=97.0)
    done = report(tmp_path, '--no_figures')
    assert cells(done.stdout)['DFND'][3:6] == ['95.00', '95.50', '1']
    assert 'same settings and seed' in done.stderr and done.stderr.count('\n') == 1


def test_paper_numbers_and_rows_not_run(tmp_path):
    cifar = dict(dataset='cifar10', arch='resnet18', width=16, wild='stl10')
    make_run(tmp_path / 'runs', 'a', 'dfnd', recipe='released', select='confidence', **cifar)
    make_run(tmp_path / 'runs', 'b', 'dfnd', recipe='corrected', **cifar)
    make_run(tmp_path / 'runs', 'c', 'dfnd', recipe='corrected', loss='nll', **cifar)
    make_run(tmp_path / 'runs', 'd', 'dfnd', recipe='corrected', select='all', **cifar)
    make_run(tmp_path / 'runs', 'e', 'kd', loss='kd+ce', **cifar)
    done = report(tmp_path, '--no_figures')
    rows = cells(done.stdout)
    assert 'paper (width 64)' in done.stdout and 'Paper: DFND, Table 1.' in done.stdout
    assert {name: row[-1] for name, row in rows.items()} == {
        'Teacher': '94.85', 'Student': '93.92', 'Knowledge distillation': '94.34', 'DAFL': '92.22',
        'DFAD': '93.30', 'DeepInversion': '93.26', 'PU-compression': '93.75', 'Randomly selected': '91.25',
        'All wild images': '-', 'DFND (corrected)': '94.02', 'DFND (corrected, NLL only)': '-',
        'DFND (released, confidence)': '94.02'}
    assert rows['Teacher'][3] == rows['Randomly selected'][3] == 'not run'
    assert rows['DFAD'][3] == 'not run: not implemented here'


def test_mnist_has_the_numbers_of_dafl_and_none_for_dfnd(tmp_path):
    make_run(tmp_path / 'runs', 'a', 'dfnd', dataset='MNIST')
    assert [row[-1] for row in table(tmp_path).values()] == ['98.91', '98.65', '98.91', '88.01', '94.56', '98.20', '-']


@pytest.mark.parametrize('wild, select, dataset, name', [
    ('noise', 'all', 'MNIST', 'Normal distribution'), ('demo', 'all', 'MNIST', 'Alternative data (wild demo)'),
    ('usps', 'all', 'MNIST', 'Alternative data'), ('emnist+usps', 'all', 'MNIST', 'All wild images'),
    ('noise', 'random', 'MNIST', 'Randomly selected'), ('noise', 'all', 'cifar10', 'All wild images'),
    ('demo', 'all', 'mnist5k', 'All wild images')])
def test_dafls_rows_are_of_mnist_and_of_a_whole_pool(tmp_path, wild, select, dataset, name):
    make_run(tmp_path / 'runs', 'a', 'dfnd', dataset=dataset, wild=wild, select=select, top1=12.34)
    rows = table(tmp_path)
    assert [row for row in rows if rows[row][3] == '12.34'] == [name]
    paper = {'Normal distribution': ('none', '88.01'), 'Alternative data': ('alternative', '94.56'),  # DAFL's, on USPS
             'Alternative data (wild demo)': ('alternative', '-')}
    assert (rows[name][0], rows[name][-1]) == paper.get(name, ('unlabeled', '-'))
    assert ('Normal distribution' in rows) == (dataset == 'MNIST')


def three_seeds(root, name, top1s, **values):
    for seed, top1 in enumerate(top1s):
        make_run(root, f'{name}-s{seed}', 'dfnd', seed=seed, top1=top1, **values)


def test_the_difference_and_the_order_by_hand(tmp_path):
    three_seeds(tmp_path / 'runs', 'random', (90.0, 91.0, 92.0), select='random')
    three_seeds(tmp_path / 'runs', 'dfnd', (91.0, 92.5))
    text = report(tmp_path, '--no_figures').stdout
    # 91.75 - 91; variances 1.125 and 1: root of 1.125 / 2 + 1 / 3 is .94648
    assert ('DFND - Randomly selected: +0.75 ± 0.95 (difference of means ± its standard error, n = 2 and 3). '
            'Order seen: Randomly selected 91.00 < DFND 91.75.\n') in text
    make_run(tmp_path / 'runs', 'kd-s0', 'kd', top1=91.0)
    make_run(tmp_path / 'runs', 'loss-kd-s0', 'dfnd', top1=99.0, loss='kd')  # an ablation is not DFND's best row
    text = report(tmp_path, '--no_figures').stdout
    assert 'Order seen: Knowledge distillation 91.00 = Randomly selected 91.00 < DFND 91.75.\n' in text


def test_one_seed_has_a_difference_and_no_error(tmp_path):
    make_run(tmp_path / 'runs', 'random-s0', 'dfnd', select='random', top1=90.0)
    make_run(tmp_path / 'runs', 'a-s0', 'dfnd', top1=89.0)
    make_run(tmp_path / 'runs', 'b-s0', 'dfnd', select='confidence', top1=88.0)
    text = report(tmp_path, '--no_figures').stdout
    assert 'DFND (balanced) - Randomly selected: -1.00 (difference of means, n = 1 and 1; the best of 2 DFND rows).' in text
    (tmp_path / 'runs' / 'random-s0' / 'result.json').unlink()
    assert 'Order seen' not in report(tmp_path, '--no_figures').stdout


def test_a_study_is_a_slim_table_in_the_order_asked_for(tmp_path):
    runs = tmp_path / 'runs'
    three_seeds(runs, 'dfnd', (95.0, 96.0), args={'T': 4.0, 'teacher_acc': 0.98})
    for seed, top1 in ((0, 94.0), (1, 96.0), (2, 50.0)):  # DFND has 95 and 96, and no third seed
        make_run(runs, f'T8-s{seed}', 'dfnd', seed=seed, args={'T': 8.0, 'teacher_acc': 0.98}, top1=top1)
    make_run(runs, 'loss-kd-s0', 'dfnd', loss='kd', args={'T': 4.0, 'teacher_acc': 0.98})
    make_run(runs, 'acc-published-s0', 'dfnd', args={'T': 4.0, 'teacher_acc': 0.9523})
    make_run(runs, 'twin-s0', 'dfnd', args={'T': 4.0, 'teacher_acc': 0.98})  # of the same settings, by another name
    text = report(tmp_path, '--no_figures', '--study', 'T8', 'dfnd', 'T2', '--study', 'dfnd', 'loss-kd', 'acc-published').stdout
    first, second = text.split('**mnist5k**, wild pool: demo.\n')[1:]
    assert cells(first) == {'DFND (T=8)': ['80.00 ± 26.00', '-0.50 ± 0.50', '95.50', '3', '30,720'],
                            'DFND (T=4)': ['95.50 ± 0.71', '-', '95.50', '2', '30,720'], 'T2': ['not run', '-', '-', '0', '-']}
    assert list(cells(first)) == ['DFND (T=8)', 'DFND (T=4)', 'T2']
    assert list(cells(second)) == ['DFND (KD + NLL, teacher_acc measured)', 'DFND (KD only)', 'DFND (KD + NLL, teacher_acc=0.9523)']
    done = report(tmp_path, '--no_figures', '--study', 'dfnd', 'twin')
    assert 'left out' not in done.stderr and done.stdout.count('| DFND |') == 2


def test_what_selections_hold_stands_below_a_study_that_compares_them(tmp_path):
    held = dict(noise=0.01234, noise_max=0.5, pool_noise=0.71)
    make_run(tmp_path / 'runs', 'dfnd-s0', 'dfnd', selected_per_class=[3, 4, 3], **held)
    make_run(tmp_path / 'runs', 'dfnd-s1', 'dfnd', seed=1, noise=0.03234, noise_max=0.7, pool_noise=0.71, selected_per_class=[9, 9, 8])
    make_run(tmp_path / 'runs', 'confidence-s0', 'dfnd', select='confidence', selected_per_class=[0, 9, 1], **held)
    make_run(tmp_path / 'runs', 'T8-s0', 'dfnd', args={'T': 8.0}, selected_per_class=[3, 4, 3], **held)
    text = report(tmp_path, '--no_figures', '--study', 'confidence', 'dfnd').stdout
    assert cells(text[text.index('| selection'):]) == {
        'DFND (balanced)': ['0.0223', '0.6', '0.71', '6 6 6'], 'DFND (confidence)': ['0.0123', '0.5', '0.71', '0 9 1']}
    assert 'pseudo-label' not in report(tmp_path, '--no_figures', '--study', 'dfnd', 'T8').stdout


def test_teachers_that_differ_within_a_seed_are_told(tmp_path):
    make_run(tmp_path / 'runs', 'a', 'dfnd', teacher='one')
    assert 'All students had one teacher.' in report(tmp_path, '--no_figures').stdout
    make_run(tmp_path / 'runs', 'b', 'dfnd', seed=1, teacher='two')
    assert 'had 2 teachers; within a seed, all rows used the same' in report(tmp_path, '--no_figures').stdout
    make_run(tmp_path / 'runs', 'c', 'dfnd', select='random', teacher='two')
    assert 'had 2 teachers; within a seed, not all rows used the same one' in report(tmp_path, '--no_figures').stdout


def test_rows_asked_for_alone_and_those_that_did_not_run(tmp_path):
    cifar = dict(dataset='cifar10', arch='resnet18', width=16, wild='stl10')
    make_run(tmp_path / 'runs', 'dfnd-corrected-s0', 'dfnd', recipe='corrected', **cifar)
    make_run(tmp_path / 'runs', 'T8-s0', 'dfnd', recipe='corrected', args={'T': 8.0}, **cifar)
    rows = table(tmp_path, '--rows', 'teacher', 'kd', 'random', 'dfnd-released', 'dfnd-corrected')
    assert list(rows)[-3:] == ['Randomly selected', 'DFND', 'DFND (dfnd-released)']
    assert rows['DFND'][-1] == '94.02' and rows['DFND (dfnd-released)'][3] == rows['Randomly selected'][3] == 'not run'


def test_no_test_data_and_unfinished_runs(tmp_path):
    make_run(tmp_path / 'runs', 'a', 'dfnd', top1=None, top1_best=None)
    make_run(tmp_path / 'runs', 'b', 'dfnd', seed=1, top1=12.0, finished=False)
    done = report(tmp_path, '--no_figures')
    assert cells(done.stdout)['DFND'][3:6] == ['no test data', '-', '0']
    assert '1 unfinished run' in done.stderr and done.stderr.count('\n') == 1


def test_rows_that_differ_in_more_than_the_selection_are_told(tmp_path):
    runs = tmp_path / 'runs'
    make_run(runs, 'a', 'dfnd', select='random', wild_images=25000, images_seen=1000)
    make_run(runs, 'b', 'dfnd', wild_images=90000, images_seen=1000, args={'T': 1.0})
    text = report(tmp_path, '--no_figures').stdout
    assert 'Wild pool: demo (25,000 images), demo (90,000 images).' in text
    assert 'But for the selection, the two differ in T (1.0, 4.0), wild_images (90000, 25000). Order seen' in text
    shutil.rmtree(runs / 'b')
    make_run(runs, 'b', 'dfnd', wild_images=25000, images_seen=1000)
    assert 'the two differ' not in report(tmp_path, '--no_figures').stdout


def test_a_short_dafl_is_called_short(tmp_path):
    for dataset, epochs in (('cifar10', 200), ('MNIST', 200)):
        make_run(tmp_path / 'runs', dataset, 'dafl', dataset=dataset, epochs=epochs)
    text = report(tmp_path, '--no_figures').stdout
    mnist, cifar = text.split('**cifar10**')
    assert '| DAFL |' in mnist and '| DAFL (200 epochs) |' in cifar


def test_one_table_a_data_set(tmp_path):
    make_run(tmp_path / 'runs', 'a', 'teacher')
    make_run(tmp_path / 'runs', 'b', 'teacher', dataset='FashionMNIST')
    text = report(tmp_path, '--no_figures').stdout
    assert text.index('**FashionMNIST**') < text.index('**mnist5k**') and text.count('| Teacher |') == 2


def readme_in(folder, *markers):
    for name in ('report.py', 'report_rows.py', 'report_bench.py'):
        shutil.copy(SCRIPT.with_name(name), folder)
    make_run(folder / 'results' / 'mnist', 'a', 'teacher', top1=98.76)
    text = '\n'.join(['# Title', *markers, 'the end', ''])
    (folder / 'README.md').write_text(text, encoding='utf-8')
    return folder / 'report.py'


def test_readme_is_written_between_markers_and_checked(tmp_path):
    marks = ('<!-- table:results/mnist:begin -->', 'old', '<!-- table:results/mnist:end -->')
    script, readme = readme_in(tmp_path, *marks), tmp_path / 'README.md'
    assert report(tmp_path, '--readme', 'README.md', '--check', script=script).returncode == 1
    assert 'old' in readme.read_text(encoding='utf-8')  # a check writes nothing
    assert report(tmp_path, '--readme', 'README.md', script=script).returncode == 0
    text = readme.read_text(encoding='utf-8')
    assert text.startswith(f'# Title\n{marks[0]}\n') and text.endswith(f'{marks[2]}\nthe end\n')
    assert cells(text)['Teacher'][3] == '98.76' and 'old' not in text
    assert report(tmp_path.parent, '--check', script=script).returncode == 0  # from any folder
    assert report(tmp_path, '--readme', 'README.md', script=script).returncode == 0
    assert readme.read_text(encoding='utf-8') == text  # writing twice changes nothing
    readme.write_text(text.replace('98.76', '98.77'), encoding='utf-8')
    done = report(tmp_path, '--check', script=script)
    assert done.returncode == 1 and 'table:results/mnist' in done.stderr and done.stderr.count('\n') == 1


def test_markers_name_their_rows(tmp_path):
    marks = [f'<!-- {name}:{end} -->' for name in ('table:results/mnist dfnd random', 'table1:results/mnist dfnd a', 'table:results/mnist')
             for end in ('begin', 'end')]
    script = readme_in(tmp_path, *marks)
    three_seeds(tmp_path / 'results' / 'mnist', 'dfnd', (90.0, 91.0))
    assert report(tmp_path, '--readme', 'README.md', script=script).returncode == 0
    assert report(tmp_path, '--check', script=script).returncode == 0
    text = (tmp_path / 'README.md').read_text(encoding='utf-8')
    slim, some, whole = (text.split(begin)[1].split(end)[0] for begin, end in zip(marks[::2], marks[1::2]))
    assert cells(slim) == {'DFND': ['90.50 ± 0.71', '-', '95.50', '2', '30,720'], 'random': ['not run', '-', '-', '0', '-']}
    assert list(cells(some)) == list(cells(whole)) == ['Teacher', 'DFND']
    (tmp_path / 'README.md').write_text(text.replace('90.50', '90.51', 1), encoding='utf-8')
    done = report(tmp_path, '--check', script=script)
    assert done.returncode == 1 and 'table:results/mnist dfnd random differs' in done.stderr


BEGIN, END = '<!-- table:results/mnist:begin -->', '<!-- table:results/mnist:end -->'


@pytest.mark.parametrize('markers, words', [
    ((BEGIN,), ('no partner',)),
    ((END,), ('no partner',)),
    ((BEGIN, BEGIN, END, END), ('no partner',)),
    ((BEGIN, END, BEGIN, END), ('more than once',)),
    ((BEGIN.replace('mnist', 'gone'), END.replace('mnist', 'gone')), ('results/gone', 'no folder')),
    ((), ('holds no line',)),
])
def test_wrong_markers_are_one_line(tmp_path, markers, words):
    script = readme_in(tmp_path, *markers)
    before = (tmp_path / 'README.md').read_text(encoding='utf-8')
    assert_one_line(report(tmp_path, '--readme', 'README.md', script=script), *words)
    assert (tmp_path / 'README.md').read_text(encoding='utf-8') == before


@pytest.mark.parametrize('flags, words', [
    (('--run', 'x'), ('--run', '--help')),  # no abbreviations: unknown
    (('--runs', 'nowhere'), ('nowhere', 'not a folder')),
    (('--runs', 'empty'), ('empty', 'no finished run')),
    (('--runs', 'broken'), ('result.json', 'not a JSON object')),
    (('--runs', 'list'), ('result.json', 'not a JSON object')),
    (('--runs', 'odd'), ("method='magic'", 'teacher, student')),
    (('--runs', 'text'), ("top1='high'", 'expected a number')),
    (('--check', '--rows', 'a'), ('--rows', '--check')),
    (('--check', '--runs', 'odd'), ('--runs', '--check')),
    (('--readme', 'nowhere.md'), ('nowhere.md', 'not a file')),
])
def test_errors_are_one_line(tmp_path, flags, words):
    for name, text in [('broken', '{"method": '), ('list', '[1]'),
                       ('odd', '{"method": "magic", "dataset": "x"}'),
                       ('text', '{"method": "kd", "dataset": "x", "top1": "high"}')]:
        (tmp_path / name / 'run').mkdir(parents=True)
        (tmp_path / name / 'run' / 'result.json').write_text(text)
    (tmp_path / 'empty').mkdir()
    done = report(tmp_path, *flags)
    assert_one_line(done, *words)
    assert done.stdout == ''


def test_without_matplotlib_the_table_still_comes(tmp_path):
    make_run(tmp_path / 'runs', 'a', 'teacher')
    done = report(tmp_path, '--runs', 'runs', '--out', 'there')
    assert_one_line(done, 'requirements-report.txt', '--no_figures')
    assert 'Teacher' in cells(done.stdout)
    assert 'Teacher' in cells((tmp_path / 'there' / 'table.md').read_text(encoding='utf-8'))


def add_files(folder, classes):
    """What a DFND run leaves beside its result; the thumbnails are grey."""
    import numpy as np
    rng = np.random.default_rng(0)
    rows = [{'epoch': e, 'step': 40 * e, 'lr': 0.1, 'loss': 2 / e, 'loss_kd': 1 / e, 'loss_ie': -1.0,
             'test_loss': None, 'top1': None if e == 1 else 90.0 + e} for e in (1, 2, 3)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    lines = [f'"a, {i}.png",{i / 100},{i % classes},{i % 2}\n' for i in range(60)]
    (folder / 'selection.csv').write_text('image,noise,pseudo_label,chosen\n' + ''.join(lines))
    arrays = {'class_names': np.array([f'class {c}' for c in range(classes)])}
    for kind in ('clean', 'noisy'):
        arrays[f'{kind}_images'] = rng.integers(0, 256, (9, 28, 28), dtype=np.uint8)
        arrays[f'{kind}_labels'] = rng.integers(0, classes, 9)
        arrays[f'{kind}_noise'] = rng.random(9)
    np.savez(folder / 'thumbnails.npz', **arrays)
    q = np.where(np.eye(classes) > 0, 0.98, 0.02 / (classes - 1))
    np.save(folder / 'adaptation.npy', q.astype(np.float32))


def test_figures(tmp_path):
    image = pytest.importorskip('matplotlib.image')
    add_files(make_run(tmp_path / 'runs', 'a', 'dfnd'), classes=10)
    hundred = make_run(tmp_path / 'runs', 'b', 'dfnd', dataset='cifar100')
    add_files(hundred, classes=100)
    (hundred / 'thumbnails.npz').unlink()
    done = report(tmp_path, bare=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ('report.py: cifar100-selection.png not drawn: '
                           'no finished run on cifar100 holds thumbnails.npz\n')
    pictures = sorted((tmp_path / 'report').glob('*.png'))
    assert [path.stem for path in pictures] == [
        'cifar100-adaptation', 'cifar100-curves', 'cifar100-histogram',
        'mnist5k-adaptation', 'mnist5k-curves', 'mnist5k-histogram', 'mnist5k-selection']
    for path in pictures:
        assert image.imread(path)[..., :3].std() > 0.05, f'{path.name} is blank'


def test_one_data_set_has_no_prefix_and_missing_files_are_said(tmp_path):
    pytest.importorskip('matplotlib')
    folder = make_run(tmp_path / 'runs', 'a', 'teacher')
    (folder / 'metrics.jsonl').write_text('{"epoch": 1, "step": 40, "lr": 0.1, "loss": 1.0, "top1": 50.0}\n')
    done = report(tmp_path, bare=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / 'report').glob('*.png')] == ['curves.png']
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        'selection.png', 'histogram.png', 'adaptation.png']


def test_a_damaged_file_of_a_run_is_one_line(tmp_path):
    pytest.importorskip('matplotlib')
    (make_run(tmp_path / 'runs', 'a', 'dfnd') / 'metrics.jsonl').write_text('{"epoch": 1, "st')
    assert_one_line(report(tmp_path, bare=False), 'damaged')


def test_the_run_that_is_shown(tmp_path):
    pytest.importorskip('matplotlib')
    import report as module
    from report_figures import find_run

    for name, select, seed in (('a', 'random', 0), ('b', 'balanced', 2), ('c', 'balanced', 1),
                               ('d', 'balanced', 0)):
        folder = make_run(tmp_path, name, 'dfnd', select=select, seed=seed)
        if name != 'd':  # the lowest seed lacks the file
            (folder / 'adaptation.npy').write_bytes(b'')
    rows = module.name_rows(module.load_runs(tmp_path))
    assert find_run(rows, 'adaptation.npy')['run'] == 'c'
    (tmp_path / 'b' / 'adaptation.npy').unlink()
    (tmp_path / 'c' / 'adaptation.npy').unlink()
    assert find_run(rows, 'adaptation.npy')['run'] == 'a'
    assert find_run(rows, 'thumbnails.npz') is None


# ---------------------------------------------------------------- the benchmarks' tables


def test_the_benchmarks_tables_are_built_from_their_json_in_docs_too(tmp_path):
    script = readme_in(tmp_path, '<!-- speed:results/bench:begin -->', '<!-- speed:results/bench:end -->')
    row = dict(plain=[10.0, 30.0, 20.0], ours=[80.0, 60.0, 70.0], ratio=3.5, need=3.0)
    speed = dict(machine=dict(name='A CPU', threads=2, precision='bfloat16', matmul_flops=4e11, copy_bytes=3e10),
                 photos='pictures', photo_bytes=100_000, checks=['decode: the same'],
                 rows=dict(decode=row, score=row | dict(share=1.07, limit=3.75),
                           selection=dict(seconds=2.0, GiB=0.5, scores=10**7, classes=1000)))
    step = dict(images_per_s={'30': 100.0, '300': 98.0}, time_ratio=1.02, memory_MiB={'30': 900.0, '300': 910.0}, memory_ratio=1.011)
    folder = tmp_path / 'results' / 'bench'
    folder.mkdir(parents=True)
    (folder / 'speed.json').write_text(json.dumps(speed))
    (folder / 'scale.json').write_text(json.dumps(dict(images=[30, 300], rows=dict(stream=step))))
    (tmp_path / 'docs').mkdir()
    marks = [f'<!-- {kind}:results/bench:{end} -->' for kind in ('scale', 'plan') for end in ('begin', 'end')]
    (tmp_path / 'docs' / 'scale.md').write_text('\n'.join(marks) + '\n')
    for file in ('README.md', 'docs/scale.md'):
        assert report(tmp_path, '--readme', file, script=script).returncode == 0
    text = (tmp_path / 'README.md').read_text()
    assert '| score | 20 (10-30) | 70 (60-80) | 3.50 x | 3 x | 107 % of matrix product | 3.75 x |' in text
    assert 'selection of 10,000,000 scores' in text and '2.00 s, 0.50 GiB' in text and 'decode: the same.' in text
    assert 'A CPU, 2 threads: 400 GFLOP/s in a bfloat16 matrix product, 30.0 GB/s in a copy. Photos: pictures.' in text
    text = (tmp_path / 'docs' / 'scale.md').read_text()
    assert '| stream | 100 img/s | 98 img/s | 1.020 | 900, 910 MiB | 1.011 |' in text
    assert '| 100,000,000 | 10.00 TB | 307 GB | 396.8 core hours |' in text and '20 s, 5.0 GiB' in text
    assert report(tmp_path, '--check', script=script).returncode == 0
    (folder / 'scale.json').write_text(json.dumps(dict(images=[30, 300], rows={})))
    assert report(tmp_path, '--check', script=script).returncode == 1  # docs/scale.md is out of date
