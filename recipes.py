"""The recipes: the settings of every flag that is not given, one a line, as published and as ours."""

PUBLISHED_ACC = {'cifar10': 0.9523, 'cifar100': 0.7774}  # the adaptation matrix's diagonal in both published DFND files

# ---------------------------------------------------------------- teacher-train.py

TEACHER_PUBLISHED = dict(  # for ResNets
    epochs=200,
    batch_size=128,
    optimizer='sgd',  # momentum 0.9, weight decay 5e-4
    lr=0.1,
    schedule='steps',
    milestones=(0.4, 0.6),  # of all steps: epochs 80 and 120 of 200
    augment=True,  # crop and, where the classes allow it, flip
    test_every=1,  # epochs between two measurements on the test data
)
TEACHER_SHORT = TEACHER_PUBLISHED | dict(  # ours: for a ResNet in few epochs, such as on a CPU
    epochs=15,
    optimizer='muon',
    lr=0.12,
    schedule='linear',
    test_every=3,
)
TEACHER_LENET = TEACHER_PUBLISHED | dict(
    epochs=10,
    batch_size=256,
    optimizer='adam',
    lr=1e-3,
    schedule='constant',
    augment=False,
)
TEACHER_MNIST5K = TEACHER_LENET | dict(  # ours: the papers have no such set
    epochs=48,  # 4,000 images are few: a longer cycle of
    batch_size=128,  # smaller batches,
    lr=4e-3,
    schedule='onecycle',
    augment=True,  # and crops make up for it
)
TEACHER = {'published': TEACHER_PUBLISHED, 'short': TEACHER_SHORT, 'lenet': TEACHER_LENET, 'mnist5k': TEACHER_MNIST5K}

# ---------------------------------------------------------------- DFND-train.py

RELEASED = dict(
    select='confidence',  # the lowest noise over all classes
    num_select=600_000,
    fit_pool=False,  # True: fewer, where the teacher finds fewer of the pool worth keeping (selection.worth_keeping)
    loss='kd+nll',
    T=4.0,
    T_power=2,  # L_KD is multiplied by T^2
    class_weights=False,
    augment=True,  # crop and flip
    wild_norm='imagenet',  # though the teacher was trained with CIFAR's mean and std
    teacher_acc='published',  # a constant, where there is one for the data set
    epochs=lambda n: int(40_000 / n * 512) - 1,  # of num_select; range(1, epochs) in both published files drops one
    steps=None,
    batch_size=256,
    optimizer='sgd',  # momentum 0.9, weight decay 5e-4
    lr=0.1,
    schedule='steps',
    milestones=(0.4, 0.8),  # of all steps
    lr_theta=1e-3,  # Adam, for the adaptation matrix
    test_every=1,  # epochs between two measurements on the test data
)
FIRST_UPLOAD = RELEASED | dict(
    num_select=50_000,
    T=2.0,
    class_weights=True,
    augment=False,
    epochs=lambda n: 2 * int(50_000 / n * 800) - 1,
)
CORRECTED = RELEASED | dict(
    select='balanced',  # as the paper and a comment of the first upload have it
    wild_norm='teacher',
    teacher_acc='measured',
    epochs=lambda n: int(40_000 / n * 512),  # none dropped
)
LENET_ONECYCLE = CORRECTED | dict(  # ours: a LeNet has no batch norm, and SGD at 0.1 under a loss scaled by T^2 = 16 does not suit it
    num_select=25_000,
    epochs=None,
    steps=3000,
    optimizer='adam',
    lr=4e-3,
    schedule='onecycle',
)
LENET = LENET_ONECYCLE | dict(  # ours
    select='weighted',
    fit_pool=True,
    steps=6000,
    batch_size=128,
    schedule='linear',
    test_every=5,
)
SHORT = CORRECTED | dict(  # ours: for a ResNet that sees few images, such as on a CPU
    select='weighted',
    num_select=lambda seen: max(10_000, seen // 15),  # of the images that --steps has the student see: each 15 times
    fit_pool=True,
    loss='kd',  # the adapted likelihood adds nothing that was seen
    T=2.0,
    T_power=0,  # Muon does not see a gradient's size; beside a cross entropy, the term has a quarter of its usual weight
    epochs=lambda n: max(1, round(150_000 / n)),
    batch_size=128,
    optimizer='muon',
    lr=0.12,
    schedule='linear',
    test_every=3,  # a fifth of the time would go to measuring
)
PU = CORRECTED | dict(  # PU-compression's published file
    select='pu',
    num_select=10**9,  # all that the classifier takes for original
    loss='rkd',
    T=1.0,
    T_power=1,
    epochs=lambda n: 200,
    batch_size=2048,
    milestones=(0.25, 0.5, 0.75),
)
DFND = {'released': RELEASED, 'first-upload': FIRST_UPLOAD, 'corrected': CORRECTED, 'short': SHORT, 'lenet': LENET,
        'lenet-onecycle': LENET_ONECYCLE, 'pu': PU}
PU_CLASSIFIER = dict(  # of --select pu, with any recipe
    labelled=0.02,  # 100 images a class of CIFAR-10
    prior=0.21,
)
PU_TRAINING = dict(  # ours, except the weight decay: a head learns from nothing; the published file retrains the whole teacher by SGD
    steps=2000,  # for 170 epochs of the pool
    batch_size=4096,  # unlabelled images, as published; all labelled ones are in every batch
    lr=1e-3,  # of Adam; / 10 at each of
    milestones=(50 / 170, 100 / 170, 150 / 170),  # of all steps
    weight_decay=5e-3,
)
PU_EPSILON = 0.1  # of the robust distillation's class weights

# ---------------------------------------------------------------- DAFL-train.py

DAFL_LENET = dict(
    epochs=200,
    epoch_steps=120,
    batch_size=512,
    latent_dim=100,  # length of z
    lr_G=0.2,  # Adam
    optimizer='adam',  # the student's
    lr=2e-3,
    schedule='constant',
    milestones=(0.4, 0.8),  # not used
    weight_decay=5e-4,  # of sgd
    oh=1.0,  # weight of the one-hot loss
    ie=5.0,  # of the information entropy loss
    a=0.1,  # of the activation loss
    student_steps=1,  # on the batch that the generator learns from
    generator_eps=0.8,  # of its batch norms
)
DAFL_CIFAR10 = DAFL_LENET | dict(
    epochs=2000,
    batch_size=1024,
    latent_dim=1000,
    lr_G=0.02,
    optimizer='sgd',  # momentum 0.9, weight decay 5e-4
    lr=0.1,
    schedule='steps',  # / 10 at epochs 800 and 1600 of 2000
    oh=0.05,
    a=0.01,
)
DAFL_CIFAR100 = DAFL_CIFAR10 | dict(oh=0.5, ie=20.0, a=0.1)
DAFL = {'MNIST': DAFL_LENET, 'FashionMNIST': DAFL_LENET, 'mnist5k': DAFL_LENET, 'cifar10': DAFL_CIFAR10, 'cifar100': DAFL_CIFAR100,
        'folder': DAFL_CIFAR10}

DFAD_LENET = dict(  # the published files' defaults
    epochs=40,
    epoch_steps=50,  # the generator's
    student_steps=5,  # before each of the generator's, each on a batch of its own
    batch_size=512,
    latent_dim=100,
    lr_G=1e-3,  # Adam
    optimizer='sgd',  # momentum 0.9
    lr=0.01,
    weight_decay=1e-4,
    schedule='constant',
    milestones=(0.2, 0.4),  # not used
    generator_eps=1e-5,
)
DFAD_CIFAR = DFAD_LENET | dict(
    epochs=500,
    batch_size=256,
    latent_dim=256,
    lr=0.1,
    weight_decay=5e-4,
    schedule='steps',  # / 10 at epochs 100 and 200 of 500, the generator's too
)
DFAD = {name: DFAD_LENET if recipe is DAFL_LENET else DFAD_CIFAR for name, recipe in DAFL.items()}
DATA_FREE = {'dafl': DAFL, 'dfad': DFAD}  # by --method

# ---------------------------------------------------------------- rivals/inversion.py

INVERSION = dict(  # the paper's parameters for CIFAR-10, as its repository's README has them
    images=5120,  # ours
    iterations=2000,
    batch_size=256,
    lr=0.05,  # Adam
    bn=10.0,
    tv=2.5e-5,
    l2=0.0,
    adaptive=0.0,  # Adaptive DeepInversion
)
