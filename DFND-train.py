"""DFND: distils a student from unlabelled images off the web, of which the teacher picks those to use (CVPR 2021).

    python teacher-train.py --dataset cifar10
    python DFND-train.py --dataset cifar10                          # STL-10's unlabelled images as the wild pool
    python DFND-train.py --dataset cifar10 --wild ~/photos          # your own

Score every wild image with the teacher, select the clean ones, distil with a loss that knows the labels are noisy.
"""

import argparse
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import arguments
import distributed
import utils
from arguments import at_least
from data import DATASETS, EpochPlan, Normalise, batches, load, load_test
from losses import kd_loss, log_adaptation_matrix, noisy_nll
from networks import ARCHS, build, count_parameters, load_teacher, resolve_width, teacher_accuracy
from runs import Run, print_result
from selection import SELECT, class_weights, describe, score_and_select
from stream import stream_and_select
from wild import open_pool, open_stream, pool_name

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED_ACC = {'cifar10': 0.9523, 'cifar100': 0.7774}  # the adaptation matrix's diagonal in both published files
LOSSES = ('kd+nll', 'kd', 'nll', 'kd+ce', 'ce')

# epochs_of: num_select -> number of epochs, the published formulas; range(1, epochs) in both published files drops the last one.
RELEASED = dict(select='confidence', num_select=600_000, T=4.0, class_weights=False, augment=True, wild_norm='imagenet', published_acc=True,
                epochs_of=lambda n: int(40_000 / n * 512) - 1, steps=None, batch_size=256, optimizer='sgd', lr=0.1, schedule='steps',
                milestones=(0.4, 0.8), lr_theta=1e-3)
RECIPES = {
    'released': RELEASED,
    'first-upload': RELEASED | dict(T=2.0, class_weights=True, num_select=50_000, augment=False,
                                    epochs_of=lambda n: 2 * int(50_000 / n * 800) - 1),
    # released, with what is wrong put right
    'corrected': RELEASED | dict(select='balanced', wild_norm='teacher', published_acc=False,
                                 epochs_of=lambda n: int(40_000 / n * 512)),
    # Ours: a LeNet has no batch norm, and SGD at 0.1 under a loss scaled by T^2 = 16 does not suit it.
    'lenet': RELEASED | dict(select='balanced', wild_norm='teacher', published_acc=False, num_select=25_000,
                             epochs_of=None, steps=3000, optimizer='adam', lr=4e-3, schedule='onecycle'),
}


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    positive, flag = at_least(float, 0, strict=True), argparse.BooleanOptionalAction
    g = arguments.add_common_arguments(parser, DATASETS)
    arguments.add_student_arguments(g, ARCHS)
    g.add_argument('--recipe', choices=RECIPES, help='the settings of every flag that is not given: released and first-upload as '
                   'in the two published files; corrected: released with its faults mended; lenet: ours (default: lenet for LeNets, else '
                   'corrected)')
    g.add_argument('--epochs', type=at_least(int, 1), help="passes over the selected images (default: the recipe's formula)")
    g.add_argument('--steps', type=at_least(int, 1),
                   help='stop after so many batches, in place of --epochs: to compare selections of different size')
    arguments.add_optimizer_arguments(g)
    g.add_argument('--T', type=positive, help='temperature of the distillation')
    g.add_argument('--loss', choices=LOSSES, help='terms of the loss: kd, distillation; nll, the noise-adapted likelihood; ce, cross '
                   'entropy without the adaptation matrix (default: kd+nll, or kd+ce with --transfer_set original)')
    g.add_argument('--augment', action=flag, help='random crop, and flip where the classes allow it')
    g.add_argument('--transfer_set', choices=('wild', 'original'), default='wild', help='original: the original images and true labels, '
                   'Table 1\'s "Knowledge distillation"')
    g = parser.add_argument_group('wild images and their selection')
    g.add_argument('--wild', '--data_imagenet', nargs='+', metavar='SOURCE', help='folders of images, text files of paths, .tar shards, '
                   "torchvision's sets (stl10, svhn, emnist, ...), demo or noise; several are joined (default: the data set's own pool)")
    g.add_argument('--select', choices=SELECT, help='balanced: the cleanest of every class; confidence: the cleanest over all; random: the '
                   "paper's control; all: the whole pool")
    g.add_argument('--num_select', type=at_least(int, 1),
                   help="images to keep; the recipe's number, at most half of the pool, unless given")
    g.add_argument('--class_weights', action=flag, help='weigh rare pseudo-labels up, as the first upload does')
    g.add_argument('--wild_norm', choices=('teacher', 'imagenet'),
                   help="mean and std for wild images: the teacher's, or ImageNet's as published")
    g.add_argument('--teacher_acc', type=positive,
                   help="the adaptation matrix's diagonal in 0..1 (default: the teacher's measured accuracy)")
    g.add_argument('--stream', action='store_true', help='for a pool too large to keep: one pass over it, scoring as it is read, keeping '
                   'what can still be chosen; needs --num_select')
    g.add_argument('--score_only', action='store_true', help='stop after the selection; to distil, run the same command with --resume in '
                   'place of --score_only')
    return parser.parse_args()


def resolve(args, arch):
    """The recipe with the explicit flags put over it."""
    name = args.recipe or ('lenet' if arch.startswith('lenet') else 'corrected')
    r = SimpleNamespace(**arguments.override(RECIPES[name], args), recipe=name)
    original = args.transfer_set == 'original'
    r.loss = args.loss or ('kd+ce' if original else 'kd+nll')
    wild_only = [f for f in ('wild', 'select', 'num_select', 'class_weights', 'wild_norm', 'teacher_acc', 'stream', 'score_only')
                 if getattr(args, f)]
    if original and (wild_only or 'nll' in r.loss):
        given = ', '.join('--' + f for f in wild_only) or f'--loss {r.loss}'
        raise utils.UserError(f'--transfer_set original has true labels and no wild images, so {given} means nothing there: leave it out')
    if original:
        r.class_weights, r.wild_norm = False, None
    for flag, term in (('teacher_acc', 'nll'), ('T', 'kd')):
        if getattr(args, flag) and term not in r.loss:
            raise utils.UserError(f'--{flag} is of the term {term}, which --loss {r.loss} leaves out: leave --{flag} out too')
    if args.num_select and r.select == 'all':
        raise utils.UserError(f'--num_select {args.num_select} and --select all contradict each other: leave one out')
    if args.stream and (r.select == 'all' or not args.num_select):
        raise utils.UserError('--stream keeps --num_select images of a pool whose size it does not know: give --num_select, and a '
                              '--select other than all')
    if args.epochs and args.steps:
        raise utils.UserError('--epochs and --steps are both given: leave one out')
    if args.teacher_acc and args.teacher_acc > 1:
        raise utils.UserError(f'--teacher_acc {args.teacher_acc}, but it is a fraction such as 0.95')
    return r


def main():
    # ---------------------------------------------------------------- settings and teacher
    args = parse()
    info = DATASETS[args.dataset]
    arch = args.arch or info.student
    device = utils.pick_device(args.device)
    r = resolve(args, arch)
    teacher, facts, teacher_file = load_teacher(args.teacher_dir or args.output_dir, args.dataset, info, device, args.amp)
    width = resolve_width(arch, args.width, facts)
    amp = utils.pick_amp(args.amp, device, arch)
    classes, channels = facts['classes'], facts['channels']
    names = info.names or tuple(map(str, range(classes)))
    normalise = Normalise(facts['mean'], facts['std'], device)
    test = load_test(args.dataset, args.data, args.cache_dir, args.workers, device)
    teacher_top1 = teacher_accuracy(teacher, facts, teacher_file, test, normalise, device)
    if args.teacher_acc:
        accuracy = args.teacher_acc
    elif r.published_acc and args.dataset in PUBLISHED_ACC:
        accuracy = PUBLISHED_ACC[args.dataset]
    else:
        accuracy = (teacher_top1 or 0) / 100
    if not accuracy and 'nll' in r.loss:
        raise utils.UserError(f"{teacher_file} has no accuracy above 0, measured or in its facts: give the adaptation matrix's diagonal "
                              'with --teacher_acc')

    # ---------------------------------------------------------------- transfer set
    if args.transfer_set == 'original':
        method, pool, wild = 'kd', None, None
        train = load(args.dataset, args.data, True, args.cache_dir, args.workers)
        count, r.select = len(train.labels), None
    else:
        method = f'dfnd-{r.select}'
        sources = (args.wild or info.wild, channels, args.data, args.cache_dir, args.workers)
        pool, wild = None if args.stream else open_pool(*sources), pool_name(sources[0])
        count = args.num_select if args.stream else resolve_num_select(args, r, len(pool))
    r.num_select = count
    r.batch_size = min(r.batch_size, count)
    per_epoch = -(-count // r.batch_size)
    if args.epochs:
        r.epochs, r.steps = args.epochs, args.epochs * per_epoch
    elif r.steps:
        r.epochs = -(-r.steps // per_epoch)
    else:
        r.epochs = max(1, r.epochs_of(count))
        r.steps = r.epochs * per_epoch
        if r.epochs > 5000:
            utils.warn(f"the recipe's formula gives {r.epochs:,} epochs of {count} images: --epochs or --steps makes a shorter run")
    shown = {k: v for k, v in vars(r).items() if k not in ('published_acc', 'epochs_of')}
    shown |= {'teacher_acc': accuracy, 'teacher': facts['digest'], 'arch': arch, 'width': width, 'device': device.type, 'amp': amp}
    run = Run(args, f'{args.dataset}-{method}-{arch}-w{width}-s{args.seed}', device, vars(args) | shown)
    accuracy = run.settings['teacher_acc']  # a resumed run keeps the one that it began with
    arguments.say_settings(shown)
    if run.finished():
        return print_result(run.finished())
    result = {
        'script': 'DFND-train.py', 'method': method.split('-')[0], 'recipe': r.recipe, 'select': r.select, 'loss': r.loss,
        'dataset': args.dataset, 'arch': arch, 'width': width, 'seed': args.seed, 'epochs': r.epochs, 'steps': r.steps,
        'images_seen': 0, 'num_select': count if wild else None, 'wild': wild, 'teacher_top1': teacher_top1,
        'class_weights': r.class_weights, 'T': r.T, 'augment': r.augment, 'wild_norm': r.wild_norm, 'teacher_acc': accuracy,
        'wild_images': None, 'teacher_arch': facts['arch'], 'teacher_width': facts['width'], 'teacher': facts['digest'],
    }

    # ---------------------------------------------------------------- score and select
    weights = labels = None
    wild_normalise = normalise
    if args.transfer_set == 'original':
        images, labels = train.images.to(device), train.labels.to(device)
    else:
        if r.wild_norm == 'imagenet':
            wild_normalise = Normalise(*for_channels(IMAGENET, channels), device)
        scoring = dict(teacher=teacher, normalise=wild_normalise, device=device, amp=facts['amp'], num_select=count, how=r.select,
                       class_names=names, seed=args.seed)
        if args.stream:
            pool, noise, pseudo, counts, mean = stream_and_select(run.folder, open_stream(*sources), **scoring)
            chosen = np.arange(count)
        else:
            noise, pseudo, chosen = score_and_select(run.folder, pool, **scoring)
            counts, mean = np.bincount(pseudo, minlength=classes), float(noise.mean())
        noise, pseudo = noise[chosen], pseudo[chosen]
        nats = {'pool_noise': mean, 'noise': noise.mean(), 'noise_max': noise.max()}
        result |= {'wild_images': int(counts.sum()), 'selected_per_class': np.bincount(pseudo, minlength=classes).tolist(),
                   **{name: round(float(value), 5) for name, value in nats.items()}}
        for line in describe(noise, pseudo, counts, mean, names):
            utils.say(line)
        if args.score_only:
            unmeasured = {'epochs': 0, 'steps': 0, 'top1': None, 'top1_best': None}
            return print_result({**result, **unmeasured, 'seconds': round(run.seconds(), 1), 'run': run.name})
        images = pool.reader(chosen, device)
        if r.class_weights:
            weights = class_weights(pseudo, classes).to(device)

    # ---------------------------------------------------------------- student
    utils.seed_init(args.seed, 'student')
    student = utils.to_device(build(arch, width, classes, channels), device)
    theta = torch.zeros(classes, classes - 1, device=device, requires_grad=True)
    optimizer = utils.make_optimizer(r.optimizer, student.parameters(), r.lr)
    optimizer_theta = torch.optim.Adam([theta], lr=r.lr_theta)
    epoch, step = run.start('student', student, facts | {'arch': arch, 'width': width}, r.epochs, device, theta=theta, optimizer=optimizer,
                            optimizer_theta=optimizer_theta)
    utils.compile_networks(args.compile, device, teacher, student)
    utils.say(f'student: {arch}, width {width}, {count_parameters(student):,} parameters, on {count} images')

    # ---------------------------------------------------------------- distil
    while epoch < r.epochs:
        epoch += 1
        student.train()
        means, start = utils.Means(), time.time()
        plan = EpochPlan(count, r.batch_size, args.seed, epoch, r.augment, info.flip)
        with utils.progress(total=count, desc=f'epoch {epoch}/{r.epochs}') as bar:
            for indices, x, size, weight in batches(plan, images, device):
                if step == r.steps:
                    break
                lr = utils.learning_rate(r.lr, r.schedule, r.milestones, step, r.steps)
                utils.set_lr(optimizer, lr)
                x = wild_normalise(x)  # (B, channels, 32, 32)
                with torch.no_grad(), utils.autocast(device, facts['amp']):
                    t = teacher(x)
                with utils.autocast(device, amp):
                    s = student(x)
                t, s = t.float(), s.float()  # (B, classes)
                y = t.argmax(dim=1) if labels is None else labels[indices]
                w = None if weights is None else weights[y]
                w_sum = None if weights is None else distributed.sum_for_share(w, weight)
                terms = {}
                if 'kd' in r.loss:
                    terms['loss_kd'] = kd_loss(s, t, r.T, w)
                if 'nll' in r.loss:
                    terms['loss_nll'] = noisy_nll(s, y, theta, accuracy, w, w_sum)
                if 'ce' in r.loss:
                    terms['loss_ce'] = F.cross_entropy(s, y) if w is None else F.cross_entropy(s, y, weights, reduction='sum') / w_sum
                loss = sum(terms.values())
                optimizer.zero_grad(set_to_none=True)
                optimizer_theta.zero_grad(set_to_none=True)
                (loss * weight).backward()
                distributed.average_gradients(student, *([theta] if 'nll' in r.loss else []))
                optimizer.step()
                optimizer_theta.step()
                means.add(size, weight, loss=loss, **terms)
                step += 1
                bar.update(size)
        distributed.same_buffers(student)
        means.read()  # waits for the device
        seconds = time.time() - start
        run.end_epoch(epoch, step, lr, means, seconds, *utils.evaluate(student, test, normalise, device, amp))

    # ---------------------------------------------------------------- result
    if 'nll' in r.loss and distributed.rank() == 0:
        np.save(run.folder / 'adaptation.npy', log_adaptation_matrix(theta, accuracy).exp().detach().cpu().numpy())
    seen = (step // per_epoch) * count + (step % per_epoch) * r.batch_size
    run.finish({**result, 'images_seen': seen})


def resolve_num_select(args, r, pool_size):
    """How many images to keep: an explicit number must fit, the recipe's is capped to half of the pool."""
    if r.select == 'all':
        return pool_size
    if args.num_select and r.num_select > pool_size:
        raise utils.UserError(f'num_select={r.num_select}, but the pool holds {pool_size} images: lower --num_select or add images')
    if not args.num_select and r.num_select > pool_size // 2:
        utils.say(f'num_select: the recipe {r.recipe} takes {r.num_select}, the pool holds {pool_size}: capped to half, {pool_size // 2}')
        return max(1, pool_size // 2)
    return r.num_select


def for_channels(statistics, channels):
    """ImageNet's mean and std for three channels; for grey images the mean of the three."""
    return statistics if channels == 3 else tuple((sum(s) / 3,) for s in statistics)


if __name__ == '__main__':
    utils.run_script(main)
