"""The rows of the papers' tables and of our study: what each is called, what it needs, what the paper has, which command makes it."""

from typing import NamedTuple

TEACHER, DFND, DAFL, INVERSION = 'teacher-train.py', 'DFND-train.py', 'DAFL-train.py', '-m rivals.inversion'
FIRST = {'deepinversion': 'inverted'}  # rows that need the run of another, besides the teacher


class Row(NamedTuple):
    id: str  # its runs lie in folders <id>-s<seed>
    name: str
    data: str  # the images it needs, in the papers' words
    paper: dict | None  # the paper's top-1 (percent) by data set; None: the papers have no such row
    script: str | None  # None: of no row of these
    flags: str  # at every scale; the words in braces are WORDS', {acc} is recipes.PUBLISHED_ACC's


# ---------------------------------------------------------------- the rows

# dataset: its kind, which has the networks and the schedules
KIND = {'cifar10': 'cifar', 'cifar100': 'cifar', 'MNIST': 'MNIST', 'mnist5k': 'mnist5k'}
SOURCE = {  # of the paper's numbers
    'cifar10': 'DFND, Table 1', 'cifar100': 'DFND, Table 1', 'MNIST': 'the tables of DAFL (ICCV 2019), and for DFAD its own'}
STEPS = {'student': 'resnet18', 'plain': '--recipe published', 'recipe': '--recipe corrected', 'base': '--recipe corrected',
         'pu': '--recipe pu'}
SHORT = {'student': 'resnet18', **dict.fromkeys(('plain', 'recipe', 'base'), '--recipe short'), 'pu': '--recipe short --select pu'}
LENETS = {'student': 'lenet5half', **dict.fromkeys(('plain', 'recipe', 'base'), '')}
ONECYCLE = LENETS | {'recipe': '--recipe lenet-onecycle', 'base': '--recipe lenet-onecycle'}
WORDS = {  # (kind, scale): the words in braces of a row's flags
    ('cifar', 'full'): STEPS, ('cifar', 'study'): STEPS | {'pu': '--recipe corrected --select pu'},
    **{('cifar', scale): SHORT for scale in ('paper', 'paper32', 'cpu', 'pools')},
    ('MNIST', 'full'): ONECYCLE, ('MNIST', 'study'): ONECYCLE,
    ('MNIST', 'cpu'): LENETS, ('MNIST', 'pools'): LENETS, ('mnist5k', 'demo'): LENETS}
DFNDS = {'cifar10': 94.02, 'cifar100': 76.35}  # one number in the paper, whichever file of theirs made it

RULES = ('random', 'class-random', 'confidence', 'balanced', 'gumbel', 'weighted')
SHARES = (0, 50, 80, 95, 99)

ROWS = {row.id: row for row in [  # tables without a given order have this one
    Row('teacher', 'Teacher', 'original', {'cifar10': 94.85, 'cifar100': 77.34, 'MNIST': 98.91}, TEACHER, '{plain}'),
    Row('student', 'Student', 'original', {'cifar10': 93.92, 'cifar100': 76.53, 'MNIST': 98.65}, TEACHER, '{plain} --arch {student}'),
    Row('kd', 'Knowledge distillation', 'original', {'cifar10': 94.34, 'cifar100': 76.87, 'MNIST': 98.91}, DFND,
        '{recipe} --transfer_set original'),
    Row('noise', 'Normal distribution', 'none', {'MNIST': 88.01}, DFND, '{recipe} --wild noise --select all'),
    Row('alternative', 'Alternative data (characters; the paper: USPS, 94.56)', 'alternative', None, DFND,
        '{recipe} --wild characters --select all'),
    Row('dafl', 'DAFL', 'none', {'cifar10': 92.22, 'cifar100': 74.47, 'MNIST': 98.20}, DAFL, ''),
    Row('dfad', 'DFAD', 'none', {'cifar10': 93.30, 'cifar100': 67.70, 'MNIST': 98.3}, DAFL, '--method dfad'),
    Row('inverted', 'DeepInversion, its images', 'none', None, INVERSION, ''),
    Row('deepinversion', 'DeepInversion', 'none', {'cifar10': 93.26}, DFND, '{recipe} --select all --loss kd --wild {inverted}'),
    Row('pu-compression', 'PU-compression', 'positive-unlabeled', {'cifar10': 93.75}, DFND, '{pu}'),
    Row('random', 'Randomly selected', 'unlabeled', {'cifar10': 91.25, 'cifar100': 73.25}, DFND, '{recipe} --select random'),
    Row('balanced', 'DFND, the cleanest of each class', 'unlabeled', DFNDS, DFND, '{recipe} --select balanced'),
    Row('all', 'All wild images', 'unlabeled', None, DFND, '{recipe} --select all'),
    Row('dfnd', 'DFND', 'unlabeled', DFNDS, DFND, '{base}'),
    Row('large-pool', 'DFND, 30,000 images, 600,000 seen', 'unlabeled', DFNDS, DFND, '{base} --num_select 30000 --epochs 20'),
    Row('dfnd-47', 'DFND, 47 % of the pool', 'unlabeled', None, DFND, '{base} --num_select 47%'),  # the paper: 600,000 of 1,281,167
    Row('released-short', "DFND, today's published selection and loss", 'unlabeled', None, DFND,
        '{base} --select confidence --wild_norm imagenet --loss kd+nll --T 4 --T_power 2 --teacher_acc {acc}'),
    Row('dfnd-released', "DFND, today's published file", 'unlabeled', DFNDS, DFND, '--recipe released'),
    Row('dfnd-first-upload', 'DFND, the first upload', 'unlabeled', DFNDS, DFND, '--recipe first-upload'),
    Row('dfnd-corrected', 'DFND, corrected', 'unlabeled', DFNDS, DFND, '{base}'),
    # the study's: each departs in one thing from dfnd (for CIFAR dfnd-corrected), or from confidence
    Row('confidence', 'DFND, most confident over all classes', 'unlabeled', DFNDS, DFND, '{recipe} --select confidence'),
    Row('confidence-imagenet', "DFND, most confident, ImageNet's normalisation", 'unlabeled', None, DFND,
        '{recipe} --select confidence --wild_norm imagenet'),
    # with the balanced selection they would change nothing: where all classes are as large, all weights are 1
    Row('class-weights', 'DFND, most confident, class weights', 'unlabeled', None, DFND,
        '{recipe} --select confidence --class_weights'),
    Row('loss-kd', 'DFND, KD only', 'unlabeled', None, DFND, '{base} --loss kd'),
    Row('loss-nll', 'DFND, NLL only', 'unlabeled', None, DFND, '{base} --loss nll'),
    Row('loss-kd+ce', 'DFND, KD + CE without Q', 'unlabeled', None, DFND, '{base} --loss kd+ce'),
    Row('acc-published', "DFND, the published constant as Q's diagonal", 'unlabeled', None, DFND, '{base} --teacher_acc {acc}'),
    Row('norm-imagenet', "DFND, ImageNet's normalisation", 'unlabeled', None, DFND, '{base} --wild_norm imagenet'),
    Row('T2', 'DFND, T = 2', 'unlabeled', None, DFND, '{base} --T 2'),
    Row('T8', 'DFND, T = 8', 'unlabeled', None, DFND, '{base} --T 8'),
    Row('no-augment', 'DFND, no augmentation', 'unlabeled', None, DFND, '{base} --no-augment'),
    *(Row(f'n{n}', f'DFND, {n:,} images', 'unlabeled', DFNDS, DFND, f'{{base}} --num_select {n}')
      for n in (1000, 2500, 5000, 10000, 25000)),
    Row('random-n10000', 'Randomly selected, 10,000 images', 'unlabeled', None, DFND, '{recipe} --select random --num_select 10000'),
    Row('seen-half', 'DFND, half the images seen', 'unlabeled', None, DFND, '{base}'),
    Row('seen-double', 'DFND, twice the images seen', 'unlabeled', None, DFND, '{base}'),
    # pools of which a share, in percent, is of other kinds: see wild/make_pools.py
    *(Row(f'{rule}-{share}', f'{rule}, {share} % of other kinds', 'unlabeled', None, DFND,
          f'{{recipe}} --select {rule} --wild {{pools}}/share-{share:02}.txt') for rule in RULES for share in SHARES),
]}

OTHERS = ['dafl', 'dfad', 'deepinversion', 'pu-compression', 'random']
PAPER = ['teacher', 'student', 'kd', 'random', 'dfnd', 'dfnd-47', 'released-short']
TABLE1 = {  # (kind, scale) or kind
    ('cifar', 'paper'): PAPER, ('cifar', 'paper32'): PAPER,
    ('cifar', 'cpu'): ['teacher', 'student', 'kd', *OTHERS, 'balanced', 'dfnd'],
    'cifar': ['teacher', 'student', 'kd', *OTHERS, 'dfnd-released', 'dfnd-first-upload', 'dfnd-corrected'],
    ('MNIST', 'cpu'): ['teacher', 'student', 'kd', 'dafl', 'dfad', 'random', 'balanced', 'dfnd'],
    'MNIST': ['teacher', 'student', 'kd', 'noise', 'alternative', 'dafl', 'dfad', 'random', 'dfnd'],  # DAFL's table, its rival, DFND
    'mnist5k': ['teacher', 'dfnd', 'random'],
}
FEWER = ['n10000', 'random-n10000']  # what `short` takes where fewer images are seen
BY_NAME = {  # further rows of a table, trained where --rows names them
    ('table1', 'cifar', 'cpu'): ['large-pool'], ('table1', 'cifar', 'paper'): FEWER, ('table1', 'cifar', 'paper32'): FEWER}
POOLS = [f'{rule}-{share}' for rule in RULES for share in SHARES]
CIFAR_STUDY = {
    'selection': ['confidence', 'dfnd-corrected', 'random', 'all'],
    'loss': ['dfnd-corrected', 'loss-kd', 'loss-nll', 'loss-kd+ce', 'acc-published'],
    'normalisation': ['dfnd-corrected', 'norm-imagenet'],
    'what sets released apart': ['confidence', 'confidence-imagenet', 'dfnd-released'],  # normalisation, then the diagonal
    'class weights': ['confidence', 'class-weights'],
    'temperature': ['T2', 'dfnd-corrected', 'T8'],
    'augmentation': ['dfnd-corrected', 'no-augment'],
    'num_select': ['n2500', 'n5000', 'dfnd-corrected'],
    'images seen': ['seen-half', 'dfnd-corrected', 'seen-double'],
}
MNIST_STUDY = {question: ['dfnd' if row == 'dfnd-corrected' else row for row in rows]
               for question, rows in CIFAR_STUDY.items() if not any('imagenet' in row for row in rows)}  # which is for photos
STUDY = {'cifar': CIFAR_STUDY, 'MNIST': MNIST_STUDY | {'num_select': ['n1000', 'n2500', 'n5000', 'dfnd', 'n25000']}}

# ---------------------------------------------------------------- the scales

# (kind, scale): id: the flags of its budget. 'wild': of every row that selects wild images and has no line of its own here.
MNIST = {'wild': '--num_select 10000', **{f'n{n}': '' for n in (1000, 2500, 5000, 25000)},  # the recipe's 3,000 steps hold for all
         'seen-half': '--num_select 10000 --steps 1500', 'seen-double': '--num_select 10000 --steps 6000'}
# Every student sees about 500,000 images: 15 passes over the 33,408 that the recipe takes for 3,915 batches of 128, ten and a half over
# 47,000, or 50 over 10,000.
PAPER_BUDGET = {'kd': '--epochs 10', 'wild': '--steps 3915', 'dfnd-47': '--steps 3914', **dict.fromkeys(FEWER, '--steps 3950')}
BUDGETS = {
    **{('cifar', scale): {'teacher': f'--width {width}', 'student': f'--width {width} --epochs 10', **PAPER_BUDGET}
       for scale, width in (('paper', 64), ('paper32', 32))},
    ('cifar', 'full'): {'seen-half': '--steps 40000', 'seen-double': '--steps 160000'},
    ('cifar', 'cpu'): {  # every student sees 150,000 images: the recipe's number
        'teacher': '--width 16', 'student': '--width 16 --epochs 3', 'kd': '', 'wild': '--num_select 10000', 'large-pool': '',
        'dafl': '--epochs 24 --batch_size 256', 'dfad': '--epochs 20 --schedule constant',  # less than two hours of a core each
        'inverted': '--iterations 200', 'deepinversion': ''},  # 5,120 images in less than an hour and a half of a core
    ('cifar', 'study'): {  # the same, those of the generators excepted, by the published schedules in small
        'teacher': '--width 16 --epochs 15 --schedule onecycle', 'student': '--width 16 --epochs 3',
        'kd': '--epochs 3 --batch_size 128', 'dafl': '--epochs 3 --batch_size 256', 'dfad': '--epochs 3',
        'inverted': '--iterations 20', 'deepinversion': '--steps 1176 --batch_size 128',
        'wild': '--num_select 10000 --epochs 15 --batch_size 128',
        'all': '--steps 1176 --batch_size 128',  # whatever the pool's size
        'n2500': '--epochs 60 --batch_size 128', 'n5000': '--epochs 30 --batch_size 128',
        'seen-half': '--num_select 10000 --steps 592 --batch_size 128', 'seen-double': '--num_select 10000 --epochs 30 --batch_size 128'},
    ('cifar', 'pools'): {'teacher': '--width 16', 'wild': '--width 8 --num_select 2500 --steps 200 --test_every 10'},
    ('MNIST', 'pools'): {'wild': '--num_select 2000 --steps 400 --test_every 100'},
    ('MNIST', 'full'): MNIST,
    ('MNIST', 'study'): MNIST | {'dafl': '--epochs 20'},
    ('MNIST', 'cpu'): {'dafl': '--epochs 20'},
    ('mnist5k', 'demo'): {'wild': '--num_select 2000 --epochs 95'},
}
SEEDS = {  # (kind, scale) or kind: how many, 0 first; 'other': of every row without a number of its own here
    ('cifar', 'paper'): {'other': 1}, ('cifar', 'paper32'): {'other': 1, 'random': 3, 'dfnd': 3},
    'cifar': {'other': 1, **dict.fromkeys(
        ['student', 'kd', 'dfnd', 'dfnd-first-upload', *CIFAR_STUDY['selection'], *CIFAR_STUDY['loss'], *CIFAR_STUDY['normalisation'],
         *CIFAR_STUDY['what sets released apart'], 'balanced', *POOLS], 3)},
    'MNIST': {'other': 5, 'dafl': 1, 'dfad': 2},
    'mnist5k': {'other': 1},
}

# ---------------------------------------------------------------- the arithmetic of the scales full, paper and paper32

WIDTH64 = {'teacher': 1.159e9, 'student': 0.555e9, 'generator': 0.123e9}
MULTIPLY_ADDS = {  # of one image; (kind, scale)
    ('cifar', 'full'): WIDTH64, ('cifar', 'paper'): WIDTH64, ('cifar', 'paper32'): {'teacher': 2.903e8, 'student': 1.393e8},
    ('MNIST', 'full'): {'teacher': 4.165e5, 'student': 1.337e5, 'generator': 1.147e8}}
SHORT_SEEN = {'teacher': 15 * 50_000, 'other': 500_000}
IMAGES_SEEN = {
    ('cifar', 'full'): {
        'teacher': 200 * 50_000, 'student': 200 * 50_000, 'kd': 409 * 50_000, 'dafl': 2000 * 120 * 1024, 'dfad': 500 * 50 * 256,
        'pu-compression': 200 * 270_000,  # its prior's share of ImageNet
        'inverted': 5120 * 2000,
        'dfnd-first-upload': 2 * 50_000 * 800, 'seen-half': 40_000 * 256, 'seen-double': 160_000 * 256, 'other': 40_000 * 512},
    ('cifar', 'paper'): SHORT_SEEN, ('cifar', 'paper32'): SHORT_SEEN,
    ('MNIST', 'full'): {'teacher': 10 * 60_000, 'student': 10 * 60_000, 'dafl': 200 * 120 * 512, 'dfad': 40 * 50 * 512,
                        'seen-half': 1500 * 256, 'seen-double': 6000 * 256, 'other': 3000 * 256}}
# What a machine does, in TFLOP/s: a GPU's is a guess; those of a CPU are measured, on two cores with bfloat16. paper: the row muon of
# docs/speed.md, 66 images a second at 2 x (3 x 0.555 + 1.159) GFLOP an image; paper32: 120 images a second on each core by its own logs.
TFLOPS = {('cifar', 'full'): 50, ('MNIST', 'full'): 50, ('cifar', 'paper'): 0.37, ('cifar', 'paper32'): 0.34}


def hours(kind, scale, row, tflops):
    """Hours of training for a row of this id: two operations a multiply-add; training is three forward passes, a teacher's pass one."""
    cost, seen = MULTIPLY_ADDS[kind, scale], IMAGES_SEEN[kind, scale]
    if row in ('teacher', 'student'):
        each = 3 * cost[row]
    elif row == 'inverted':  # the gradient goes through the teacher
        each = 2 * cost['teacher']
    elif row == 'dafl':  # the gradient goes through the teacher down to the images: two
        each = 3 * cost['student'] + 2 * cost['teacher'] + 3 * cost['generator']
    elif row == 'dfad':  # five batches of the student's, and one of the generator's, whose gradient goes through both networks
        each = 5 * (3 * cost['student'] + cost['teacher'] + cost['generator'])
        each += 2 * cost['student'] + 2 * cost['teacher'] + 3 * cost['generator']
    else:
        each = 3 * cost['student'] + cost['teacher']
    return 2 * each * seen.get(row, seen['other']) / (tflops * 1e12) / 3600
