"""What the finished runs in a folder are, and the rows that they make: grouped by all but the seed, named as in the papers."""
import json
import re
import sys

# DFND's Table 1: its rows in its order, each with the data it needs. From DAFL's table, for MNIST alone: 'Normal distribution',
# 'Alternative data'. 'All wild images' is our addition.
ROWS = {'Teacher': 'original', 'Student': 'original', 'Knowledge distillation': 'original', 'Normal distribution': 'none',
        'Alternative data': 'alternative', 'DAFL': 'none',
        'DFAD': 'none', 'DeepInversion': 'none', 'PU-compression': 'positive-unlabeled',
        'Randomly selected': 'unlabeled', 'All wild images': 'unlabeled', 'DFND': 'unlabeled'}
METHODS = {'teacher': 'Teacher', 'student': 'Student', 'kd': 'Knowledge distillation', 'dafl': 'DAFL',
           'dfnd': 'DFND'}
SELECTIONS = {'random': 'Randomly selected', 'all': 'All wild images'}
MNIST_POOLS = {'noise': 'Normal distribution', 'demo': 'Alternative data', 'usps': 'Alternative data'}  # all of it, as DAFL did
# What makes two runs two rows: these keys of result.json, then the arguments in config.json, but those that
# say where or how a run ran. A row's name takes the first ones that tell it from its siblings.
SETTINGS = ('recipe', 'select', 'num_select', 'loss', 'wild', 'wild_images', 'arch', 'width', 'teacher_arch', 'teacher_width', 'epochs',
            'steps', 'images_seen')
NOT_SETTINGS = ('teacher', 'script', 'method', 'dataset', 'seed', 'run', 'resume', 'device', 'workers', 'compile',
                'data', 'data_cifar', 'data_imagenet', 'cache', 'score_only')
PUBLISHED_LOSS = {'teacher': 'ce', 'student': 'ce', 'kd': 'kd+ce', 'dafl': 'oh+ie+a+kd', 'dfnd': 'kd+nll'}
PUBLISHED_DAFL_EPOCHS = {'MNIST': 200, 'cifar10': 2000, 'cifar100': 2000}
ABLATIONS = {'kd+nll': 'KD + NLL', 'kd': 'KD only', 'nll': 'NLL only', 'ce': 'CE only', 'kd+ce': 'KD + CE without Q'}


def fail(text):
    """One line on stderr, exit code 2."""
    print('report.py: error:', ' '.join(str(text).split()), file=sys.stderr)
    sys.exit(2)


def note(text):
    print('report.py:', text, file=sys.stderr)


def read_json(path):
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (ValueError, TypeError) as error:
        fail(f'{path} is not a JSON object ({error}): delete that run, or train it again')


def load_runs(folder):
    """The finished runs anywhere below a folder: result.json's keys, and 'folder' (Path), 'row' (its name without -s<seed>),
    'config' (dict).

    Exits with code 2 if the folder is missing or holds no finished run, or if a result can't be used.
    """
    if not folder.is_dir():
        fail(f'{folder} is not a folder, expected one that holds runs: train first, or give another --runs')
    runs = []
    for path in sorted(folder.rglob('result.json')):
        run = read_json(path)
        if run.get('method') not in METHODS or not isinstance(run.get('dataset'), str):
            fail(f'{path}: method={run.get("method")!r}, dataset={run.get("dataset")!r}, expected a data set '
                 f'and a method of {", ".join(METHODS)}: delete that run, or train it again')
        for key in ('top1', 'top1_best', 'teacher_top1', 'seconds', 'seed', 'params', 'flops'):
            if not isinstance(run.get(key), (int, float, type(None))) or run.get(key) != run.get(key):  # NaN is not itself
                fail(f'{path}: {key}={run[key]!r}, expected a number or null: train that run again')
        config = path.with_name('config.json')
        row = re.sub(r'-s-?\d+$', '', path.parent.name)
        runs.append({**run, 'folder': path.parent, 'row': row, 'config': read_json(config) if config.exists() else {}})
    unfinished = sum(not path.with_name('result.json').exists() for path in folder.rglob('config.json'))
    if unfinished:
        note(f'{unfinished} unfinished run(s) in {folder} left out (no result.json): --resume finishes one')
    if not runs:
        fail(f'{folder} holds no finished run (no result.json): train first, or give another --runs')
    return runs


def settings(run, shared):
    """What the run was told that can matter to its number, the seed apart: {name: value}, in naming order.

    shared: the arguments that all runs of its method have, so that a flag that came later doesn't part old runs from new.
    """
    told = {key: run.get(key) for key in SETTINGS}
    told['loss'] = None if told['loss'] == PUBLISHED_LOSS[run['method']] else told['loss']
    for key, value in sorted(run['config'].get('args', {}).items()):
        if key in shared and key not in (*told, *NOT_SETTINGS) and not key.endswith('_dir') and '/' not in str(value):
            told[key] = value
    acc, top1 = told.get('teacher_acc'), run.get('teacher_top1')
    if isinstance(acc, float) and top1 is not None and abs(100 * acc - top1) < 0.006:
        told['teacher_acc'] = None  # the measured one, which is one setting though teachers differ
    return told


def wording(key, value):
    """How a row's name says one setting; '' for what goes without saying."""
    if value is None and key in SETTINGS:
        return '' if key == 'loss' else f'no {key}'
    if value is None and key == 'teacher_acc':
        return 'teacher_acc measured'
    if key in ('num_select', 'epochs', 'steps', 'images_seen'):
        return f'{value:,}' + {'num_select': '', 'images_seen': ' images seen'}.get(key, f' {key}')
    if key in ('recipe', 'select', 'arch', 'loss'):
        return ABLATIONS.get(value, str(value))
    value = f'{value:g}' if isinstance(value, float) else value
    return f'{key} {value}' if key in ('wild', 'width') else f'{key}={value}'


def base_of(run):
    """The row of the papers' tables that a run belongs to: a key of ROWS."""
    select = run.get('select') if run['method'] == 'dfnd' else None
    if select == 'all' and run['dataset'] == 'MNIST' and run.get('wild') in MNIST_POOLS:
        return MNIST_POOLS[run['wild']]
    return SELECTIONS.get(select, METHODS[run['method']])


def name_rows(runs, study=False):
    """Group one data set's runs by all but the seed, and name the groups as Table 1 does.

    study: a group is of one folder name, too, and a name says what goes without saying in Table 1. Returns a list of dicts in the
    table's order: base (a key of ROWS), name (base and what tells it from its siblings), runs (by seed), told (settings), label
    (the settings in the name).
    """
    groups, shared = {}, {}
    for run in runs:
        keys = run['config'].get('args', {}).keys()
        shared[run['method']] = shared.get(run['method'], keys) & keys
    for run in runs:
        base, told = base_of(run), settings(run, shared[run['method']])
        row = groups.setdefault((base, json.dumps(told), study and run['row']), dict(base=base, told=told, label=[], runs=[]))
        twins = [other for other in row['runs'] if other.get('seed') == run.get('seed')]
        if twins:  # counted twice, it would shrink the std
            note(f'{run["folder"]} left out: same settings and seed as {twins[0]["folder"]}')
        else:
            row['runs'].append(run)
    rows = list(groups.values())
    picking = ('Randomly selected', 'DFND')
    unequal = len({row['told']['num_select'] for row in rows if row['base'] in picking}) > 1
    for key in dict.fromkeys(key for row in rows for key in row['told']):
        alike = {}  # rows that their names do not tell apart yet
        for row in rows:
            alike.setdefault((row['base'], json.dumps(row['label'])), []).append(row)
        for siblings in alike.values():
            differ = len({json.dumps(row['told'].get(key)) for row in siblings}) > 1
            for row in siblings:
                value = row['told'].get(key)
                # said of a lone row too: what departs from the paper, and num_select where random has another
                short_run = key == 'epochs' and row['base'] == 'DAFL' and value != PUBLISHED_DAFL_EPOCHS.get(row['runs'][0]['dataset'])
                other_pool = key == 'wild' and row['base'] == 'Alternative data' and value != 'usps'  # which is the paper's
                always = (value == 'confidence' or other_pool or (key == 'loss' and value) or short_run
                          or (key == 'num_select' and unequal and row['base'] in picking))
                if differ or always:
                    row['label'].append((key, value))
    for row in rows:
        pairs = [(key, PUBLISHED_LOSS['dfnd'] if study and key == 'loss' and value is None else value) for key, value in row['label']]
        words = ', '.join(filter(None, (wording(*pair) for pair in pairs)))
        row['name'] = f'{row["base"]} ({words})' if words else row['base']
        row['runs'].sort(key=lambda run: run.get('seed') or 0)
    return sorted(rows, key=lambda row: (list(ROWS).index(row['base']), [
        (pair[1] if isinstance(pair[1], (int, float)) else 0, wording(*pair)) for pair in row['label']]))
