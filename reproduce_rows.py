"""Which commands make which row of the papers' tables and of our study, at which scale, as plain tables: reproduce.py runs them."""

TEACHER, DFND, DAFL = 'teacher-train.py', 'DFND-train.py', 'DAFL-train.py'

# ---------------------------------------------------------------- the rows

# dataset: its kind, which has the networks and the schedules
KIND = {'cifar10': 'cifar', 'cifar100': 'cifar', 'MNIST': 'MNIST', 'mnist5k': 'mnist5k'}
WORDS = {'cifar': {'student': 'resnet18', 'base': '--recipe corrected'},
         'MNIST': {'student': 'lenet5half', 'base': '--select balanced'},
         'mnist5k': {'student': 'lenet5half', 'base': '--select balanced'}}
PUBLISHED_ACC = {'cifar10': 0.9523, 'cifar100': 0.7774}  # the adaptation matrix's diagonal in the published files, as DFND-train.py has it

ROWS = {  # id: (name, script, flags at every scale); {words} are those above
    'teacher': ('Teacher', TEACHER, ''),
    'student': ('Student', TEACHER, '--arch {student}'),
    'kd': ('Knowledge distillation', DFND, '--transfer_set original'),
    'noise': ('Normal distribution', DFND, '--wild noise --select all'),
    'alternative': ('Alternative data', DFND, '--wild demo --select all'),
    'dafl': ('DAFL', DAFL, ''),
    'random': ('Randomly selected', DFND, '--select random'),
    'dfnd': ('DFND', DFND, '{base}'),
    'dfnd-released': ("DFND, today's published file", DFND, '--recipe released'),
    'dfnd-first-upload': ('DFND, the first upload', DFND, '--recipe first-upload'),
    'dfnd-corrected': ('DFND, corrected', DFND, '{base}'),
    # the study's: each departs in one thing from dfnd (for CIFAR dfnd-corrected)
    'confidence': ('DFND, the surest over all classes', DFND, '--select confidence'),
    'all': ('All wild images', DFND, '--select all'),
    'loss-kd': ('DFND, KD only', DFND, '{base} --loss kd'),
    'loss-nll': ('DFND, NLL only', DFND, '{base} --loss nll'),
    'loss-kd+ce': ('DFND, KD + CE without Q', DFND, '{base} --loss kd+ce'),
    'acc-published': ("DFND, the published constant as Q's diagonal (elsewhere CIFAR-10's)", DFND, '{base} --teacher_acc {acc}'),
    'norm-imagenet': ("DFND, ImageNet's normalisation", DFND, '{base} --wild_norm imagenet'),
    'confidence-imagenet': ("DFND, the surest over all classes, ImageNet's normalisation", DFND,
                            '--select confidence --wild_norm imagenet'),
    # to the balanced selection they would do nothing: where all classes are as large, all weights are 1
    'class-weights': ('DFND, the surest over all classes, with class weights', DFND, '--select confidence --class_weights'),
    'T2': ('DFND, T = 2', DFND, '{base} --T 2'),
    'T8': ('DFND, T = 8', DFND, '{base} --T 8'),
    'no-augment': ('DFND, no augmentation', DFND, '{base} --no-augment'),
    **{f'n{n}': (f'DFND, {n:,} images', DFND, f'{{base}} --num_select {n}') for n in (1000, 2500, 5000, 25000)},
    'seen-half': ('DFND, half the images seen', DFND, '{base}'),
    'seen-double': ('DFND, twice the images seen', DFND, '{base}'),
}

TABLE1 = {
    'cifar': ['teacher', 'student', 'kd', 'dafl', 'random', 'dfnd-released', 'dfnd-first-upload', 'dfnd-corrected'],
    'MNIST': ['teacher', 'student', 'kd', 'noise', 'alternative', 'dafl', 'random', 'dfnd'],  # DAFL's table, and DFND
    'mnist5k': ['teacher', 'dfnd', 'random', 'dafl'],
}
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

# (kind, scale): id: the flags of its budget. 'wild': of every row that selects wild images and stands not here itself.
MNIST = {'wild': '--num_select 10000', **{f'n{n}': '' for n in (1000, 2500, 5000, 25000)},  # the recipe's 3,000 steps hold for all
         'seen-half': '--num_select 10000 --steps 1500', 'seen-double': '--num_select 10000 --steps 6000'}
BUDGETS = {
    ('cifar', 'full'): {'seen-half': '--steps 40000', 'seen-double': '--steps 160000'},
    ('cifar', 'cpu'): {  # a student sees 150,000 images, but DAFL's
        'teacher': '--width 16 --epochs 15 --schedule onecycle', 'student': '--width 16 --epochs 3',
        'kd': '--epochs 3 --batch_size 128', 'dafl': '--epochs 3 --batch_size 256',
        'wild': '--num_select 10000 --epochs 15 --batch_size 128',
        'all': '--steps 1176 --batch_size 128',  # whatever the pool's size
        'n2500': '--epochs 60 --batch_size 128', 'n5000': '--epochs 30 --batch_size 128',
        'seen-half': '--num_select 10000 --steps 592 --batch_size 128', 'seen-double': '--num_select 10000 --epochs 30 --batch_size 128'},
    ('MNIST', 'full'): MNIST,
    ('MNIST', 'cpu'): MNIST | {'dafl': '--epochs 20'},
    ('mnist5k', 'demo'): {'dafl': '--epochs 2 --batch_size 128'},
}
SEEDS = {  # how many, 0 first; 'other': of every row that stands not here
    'cifar': {'other': 1, **dict.fromkeys(
        ['student', 'kd', 'dfnd-first-upload', *CIFAR_STUDY['selection'], *CIFAR_STUDY['loss'], *CIFAR_STUDY['normalisation'],
         *CIFAR_STUDY['what sets released apart']], 3)},
    'MNIST': {'other': 5, 'dafl': 1},
    'mnist5k': {'other': 1},
}

# ---------------------------------------------------------------- the arithmetic of --scale full

MULTIPLY_ADDS = {'cifar': {'teacher': 1.159e9, 'student': 0.555e9, 'generator': 0.123e9},  # for one image
                 'MNIST': {'teacher': 4.165e5, 'student': 1.337e5, 'generator': 1.147e8}}
IMAGES_SEEN = {
    'cifar': {'teacher': 200 * 50_000, 'student': 200 * 50_000, 'kd': 409 * 50_000, 'dafl': 2000 * 120 * 1024,
              'dfnd-first-upload': 2 * 50_000 * 800, 'seen-half': 40_000 * 256, 'seen-double': 160_000 * 256, 'other': 40_000 * 512},
    'MNIST': {'teacher': 10 * 60_000, 'student': 10 * 60_000, 'dafl': 200 * 120 * 512,
              'seen-half': 1500 * 256, 'seen-double': 6000 * 256, 'other': 3000 * 256}}
NOT_IMPLEMENTED = {'cifar10': {'DFAD': 93.30, 'DeepInversion': 93.26, 'PU-compression': 93.75}, 'cifar100': {'DFAD': 67.70}}


def gpu_hours(kind, row, tflops):
    """Two operations a multiply-add; a training pass costs three forward ones, the teacher's is one."""
    cost = MULTIPLY_ADDS[kind]
    if row in ('teacher', 'student'):
        each = 3 * cost[row]
    elif row == 'dafl':  # the gradient goes through the teacher down to the images: two
        each = 3 * cost['student'] + 2 * cost['teacher'] + 3 * cost['generator']
    else:
        each = 3 * cost['student'] + cost['teacher']
    images = IMAGES_SEEN[kind].get(row, IMAGES_SEEN[kind]['other'])
    return 2 * each * images / (tflops * 1e12) / 3600
