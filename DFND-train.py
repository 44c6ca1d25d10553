"""DFND: distils a student from unlabelled images off the web, of which the teacher picks those to use (CVPR 2021).

    python teacher-train.py --dataset cifar10
    python DFND-train.py --dataset cifar10 --wild ~/photos          # without --wild, STL-10's unlabelled images
    python DFND-train.py --dataset mnist5k                          # 2 minutes on a core, 97 %
"""

import keep.stops  # isort: skip  # before torch, see there

import argparse

import numpy as np
import torch
import torch.nn.functional as F

import arguments
import distributed
import recipes
import training
from arguments import at_least
from data import DATASETS, EpochPlan, TransferSet, batches, load, load_test, padding_of
from keep.begun import settings_before
from losses import kd_loss, log_adaptation_matrix, noisy_nll, robust_kd_losses
from networks import count_parameters
from own.estimate import estimated_accuracy, held_out
from own.export import export, formats
from own.student import check_last_batch, is_trained, make_student, run_name
from own.teacher import Wanted, load_teacher, own_info
from rivals import pu
from runs import Run, print_result
from selection import SELECT, Rule, score, score_and_select, worth_keeping
from utils import UserError, progress, say, warn, written_aside
from wild.pool import Wild, open_pool
from wild.reading import Decoder
from wild.stream import stream_and_select


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    positive, flag = at_least(float, 0, strict=True), argparse.BooleanOptionalAction
    g = arguments.add_common_arguments(parser, (*DATASETS, 'none'), 'MNIST')
    arguments.add_teacher_arguments(parser)
    arguments.add_student_arguments(g)
    g.add_argument('--recipe', choices=recipes.DFND, help='the settings of every flag that is not given: released and first-upload as '
                   'in the two published files; corrected: released with its faults mended; pu: of PU-compression; lenet, short: ours, '
                   'short for ResNets that see few images (default: lenet for LeNets, short for a ResNet on a CPU, corrected on a GPU)')
    g.add_argument('--epochs', type=at_least(int, 1), help="passes over the selected images (default: the recipe's formula)")
    g.add_argument('--steps', type=at_least(int, 1),
                   help='stop after so many batches, in place of --epochs: to compare selections of different size')
    arguments.add_optimizer_arguments(g)
    g.add_argument('--T', type=positive, help='temperature of the distillation')
    g.add_argument('--T_power', type=at_least(int, 0, high=8), help='the distillation loss is times T to this power: 2 as published')
    g.add_argument('--loss', choices=('kd+nll', 'kd', 'nll', 'kd+ce', 'ce', 'rkd'), help='terms of the loss: kd, distillation; nll, the '
                   'noise-adapted likelihood; ce, cross entropy without the adaptation matrix; rkd, kd by the worse of two guesses of the '
                   "class weights (default: the recipe's; kd+ce with --transfer_set original, rkd with --select pu)")
    g.add_argument('--augment', action=flag, help='random crop, and flip where the classes allow it')
    g.add_argument('--transfer_set', choices=('wild', 'original'), default='wild', help='original: the original images and true labels, '
                   'Table 1\'s "Knowledge distillation"')
    g = parser.add_argument_group('wild images and their selection')
    g.add_argument('--wild', '--data_imagenet', nargs='+', action='extend', metavar='SOURCE', help='folders of images, text files of '
                   "paths, .tar shards, torchvision's sets (stl10, svhn, ...), demo, characters, noise; joined (default: the data set's)")
    g.add_argument('--select', choices=SELECT, help='weighted: of every class by chance, the surer the likelier; balanced: '
                   'the cleanest of every class; class-random: of every class at random; gumbel: as weighted, by the energy; '
                   "confidence: the cleanest over all; random: the paper's control; pu: as a classifier has it; all: the whole pool")
    pu.add_arguments(g)
    g.add_argument('--num_select', type=arguments.count_of, metavar='N', help="images to keep: a number, or a share of the pool such "
                   "as 47%% (default: the recipe's number, at most half of the pool; of short and lenet, at most as many as the teacher "
                   'finds of use)')
    g.add_argument('--class_weights', action=flag, help='weigh rare pseudo-labels up, as the first upload does')
    g.add_argument('--wild_norm', choices=('teacher', 'imagenet'), help="mean and std: the teacher's, or ImageNet's as published")
    g.add_argument('--teacher_acc', type=positive, help="the adaptation matrix's diagonal in 0..1 (default: the teacher's accuracy)")
    g.add_argument('--stream', action='store_true', help='for a pool too large to keep: one pass over it, scoring as it is read, keeping '
                   'what can still be chosen; needs --num_select')
    g.add_argument('--score_only', action='store_true', help='stop after the selection; to distil, run the same command with --resume in '
                   'place of --score_only')
    return parser.parse_args()


def check(args):
    """Raises UserError for flags that contradict each other."""
    args.export = formats(args.export) if args.export else None
    if args.num_select and args.select == 'all':
        raise UserError(f'--num_select {args.num_select} and --select all contradict each other: leave one out')
    if args.stream and (args.select == 'all' or not isinstance(args.num_select, int)):
        raise UserError('--stream keeps --num_select images of a pool whose size it does not know: give --num_select as a number, and '
                        'a --select other than all')
    if args.epochs and args.steps:
        raise UserError('--epochs and --steps are both given: leave one out')
    if args.teacher_acc and args.teacher_acc > 1:
        raise UserError(f'--teacher_acc {args.teacher_acc}, but it is a fraction such as 0.95')


def settle(args, arch, width, teacher, teacher_top1):
    """All settings except those that depend on the pool's size. arch, width: the student's. teacher_top1: in percent, or None. Raises
    UserError for flags that contradict the recipe."""
    original = args.transfer_set == 'original'
    args.recipe = arguments.pick_recipe(args.recipe, 'lenet' if arch.startswith('lenet') else None, 'corrected', teacher.device)
    select = None if original else args.select or recipes.DFND[args.recipe]['select']
    loss = args.loss = args.loss or ('kd+ce' if original else 'rkd' if select == 'pu' else recipes.DFND[args.recipe]['loss'])
    wild_only = [f for f in ('wild', 'select', 'num_select', 'class_weights', 'wild_norm', 'teacher_acc', 'stream', 'score_only')
                 if getattr(args, f)]
    if original and (wild_only or loss in ('nll', 'kd+nll', 'rkd')):
        given = ', '.join('--' + f for f in wild_only) or f'--loss {loss}'
        raise UserError(f'--transfer_set original has true labels and no wild images, so {given} means nothing there: leave it out')
    for flag, term in (('teacher_acc', 'nll'), ('T', 'kd'), ('T_power', 'kd')):
        if getattr(args, flag) is not None and term not in loss.replace('rkd', 'kd').split('+'):
            raise UserError(f'--{flag} is of the term {term}, which --loss {loss} leaves out: leave --{flag} out too')
    if not (original or args.wild or own_info(teacher).wild):
        raise UserError(f'--dataset {teacher.dataset} has no wild pool of its own: name images with --wild')
    s = arguments.settle(args, recipes.DFND[args.recipe], arch=arch, width=width, teacher=teacher.digest, device=teacher.device.type,
                         dataset=teacher.dataset, amp=training.pick_amp(args.amp, teacher.device, arch),
                         flip=own_info(teacher).flip and teacher.channels == 3 if args.flip is None else args.flip,
                         **(dict(select=None, class_weights=False, wild_norm=None) if original else {}),
                         **pu.settings(args, select, loss, teacher))
    if isinstance(s.teacher_acc, str):
        published = recipes.PUBLISHED_ACC.get(s.dataset) if s.teacher_acc == 'published' else None
        s = s.replace(teacher_acc=published or (teacher_top1 or 0) / 100 or None)
    if s.select == 'gumbel' and teacher.output != 'logits':
        warn(f'the teacher gives {teacher.output}, whose energy is the same for every image: --select gumbel draws by class at random')
    return s


def settle_budget(args, s, available, worth=None):
    """s with num_select, batch_size, epochs and steps. args.num_select: the user's, or that of the run that is gone on with. available: how
    many images there are; None if unknown. worth: how many of them are worth keeping, where the recipe fits its number to the pool."""
    count = args.num_select or (available if s.select in (None, 'all') else arguments.count_by_recipe(s))
    if isinstance(count, str):  # see arguments.count_of
        count = max(1, round(float(count[:-1]) / 100 * available))
    if worth and worth < count and not args.num_select:
        say(f'num_select: the recipe {s.recipe} takes {count}, and {worth} are worth keeping: {worth}')
        count = worth
    if args.num_select and available is not None and count > available:
        raise UserError(f'num_select={count}, but the pool holds {available} images: lower --num_select or add images')
    if not args.num_select and s.select not in (None, 'all', 'pu') and count > available // 2:
        say(f'num_select: the recipe {s.recipe} takes {count}, the pool holds {available}: capped to half, {max(1, available // 2)}')
        count = max(1, available // 2)
    batch_size = min(s.batch_size, count)
    per_epoch = -(-count // batch_size)
    if s.steps and not args.epochs:
        return s.replace(num_select=count, batch_size=batch_size, epochs=-(-s.steps // per_epoch))
    epochs = args.epochs or max(1, s.epochs(count))
    if not args.epochs and epochs > 5000:
        warn(f"the recipe's formula gives {epochs:,} epochs of {count} images: --epochs or --steps makes a shorter run")
    return s.replace(num_select=count, batch_size=batch_size, epochs=epochs, steps=epochs * per_epoch)


def scorer_of(teacher, s):
    return teacher.normalised_by_imagenet() if s.wild_norm == 'imagenet' else teacher


def transfer_from_wild(run, s, teacher, wild, pool, found):
    """Scores and selects. Returns (a TransferSet, a Selection). pool: wild's, or None to stream. found: a pu.Found, or None."""
    scorer = scorer_of(teacher, s)
    rule = Rule(s.select, s.num_select - (len(found.images) if found else 0), s.seed)
    selection = (stream_and_select(run.folder, wild, scorer, rule) if s.stream else
                 score_and_select(run.folder, pool, scorer, rule, found and -found.scores))
    for line in selection.describe(teacher.class_names):
        say(line)
    if np.count_nonzero(selection.pool_counts) == 1:
        warn(f'the teacher takes all {selection.pool_counts.sum()} wild images for {teacher.class_names[selection.labels[0]]}, so that a '
             'student learns of no other class: check --mean, --std and --channels, or give other images')
    if s.score_only:
        return None, selection
    images = selection.pool.reader(selection.chosen, teacher.device)
    images = found.beside(images) if found else images
    weights = pu.robust_weights(scorer, images, s.seed) if s.loss == 'rkd' else selection.class_weights() if s.class_weights else None
    return TransferSet(images, None, weights if weights is None else weights.to(teacher.device), scorer.normalise), selection


def train_epoch(epoch, run, s, teacher, transfer, learner):
    """One pass over the transfer set, or what is left of it or of s.steps. learner: the student, the adaptation matrix's theta (C, C - 1),
    and an optimiser for each."""
    student, theta, optimizer, optimizer_theta = learner
    device, weights = teacher.device, transfer.class_weights
    asked = s.loss.split('+')
    student.train()
    plan = EpochPlan(s.num_select, s.batch_size, s.seed, epoch, s.augment and padding_of(teacher.size), s.flip)
    with progress(total=s.num_select, initial=run.means.count, desc=f'epoch {epoch}/{s.epochs}') as bar:
        for indices, x, size, weight in batches(plan, transfer.images, device, run.done):
            if run.step == s.steps:
                break
            lr = training.learning_rate(s.lr, s.schedule, s.milestones, run.step, s.steps)
            training.set_lr(optimizer, lr)
            x = transfer.normalise(x)  # (B, channels, size, size)
            t = teacher.logits(x)  # (B, classes)
            with training.autocast(device, s.amp):
                logits = student(x).float()
            y = t.argmax(dim=1) if transfer.labels is None else transfer.labels[indices]
            w = None if weights is None else weights[y]
            w_sum = None if weights is None else distributed.sum_for_share(w, weight)
            terms = {}
            if 'rkd' in asked:
                losses = robust_kd_losses(logits, t, s.T, w, s.T_power)
                terms['loss_kd'] = losses[distributed.total(losses.detach() * weight).argmax()]  # the worst over the global batch
            if 'kd' in asked:
                terms['loss_kd'] = kd_loss(logits, t, s.T, w, s.T_power)
            if 'nll' in asked:
                terms['loss_nll'] = noisy_nll(logits, y, theta, s.teacher_acc, w, w_sum)
            if 'ce' in asked:
                terms['loss_ce'] = (F.cross_entropy(logits, y) if w is None
                                    else F.cross_entropy(logits, y, weights, reduction='sum') / w_sum)
            loss = sum(terms.values())
            optimizer.zero_grad(set_to_none=True)
            optimizer_theta.zero_grad(set_to_none=True)
            (loss * weight).backward()
            distributed.average_gradients(student, *([theta] if 'nll' in asked else []))
            optimizer.step()
            optimizer_theta.step()
            run.step_done(size, weight, lr, loss=loss, **terms)
            bar.update(size)
    distributed.same_buffers(student)
    run.means.read()  # waits for the device


def main():
    # ---------------------------------------------------------------- settings, teacher, pool
    args = parse()
    keep.stops.limit(args.max_minutes)
    check(args)
    device = training.pick_device(args.device, args.rank_timeout)
    teacher = load_teacher(Wanted.of(args), args.dataset, DATASETS.get(args.dataset), device, args.amp)
    info = own_info(teacher)
    student, arch, width = make_student(args, info.student, teacher, 'student')
    test = load_test(teacher.dataset, args.data, args.cache_dir, Decoder.of(args), device, info)
    teacher_top1 = teacher.measure(test)
    s = settle(args, arch, width, teacher, teacher_top1)
    method = 'kd' if s.transfer_set == 'original' else 'pu-compression' if s.select == 'pu' else 'dfnd'
    name = run_name(s.dataset, f'{method}-{s.select}' if method == 'dfnd' else method, arch, width, s.seed)
    before = distributed.on_first(settings_before, s, name)  # here, and not after the hours that a large pool takes
    wild = pool = found = None
    if s.transfer_set == 'original':
        if s.dataset not in DATASETS:
            raise UserError('--transfer_set original needs labelled data: name it with --dataset')
        train = load(s.dataset, s.data, True, s.cache_dir, Decoder.of(s), info).to(device)
        s = settle_budget(args, s.replace(labelled_data=train.source), len(train.labels))
    else:
        args.num_select = args.num_select or before.get('num_select')  # though the pool may have more images now
        wild = Wild(s.wild or info.wild, teacher.size, teacher.channels, s.data, s.cache_dir, Decoder.of(s))
        pool = None if s.stream else open_pool(wild)
        found = pu.find_positive(teacher, pool, s) if s.select == 'pu' else None
        worth = found and found.worth
        if pool and s.fit_pool and s.select not in ('all', 'pu') and not args.num_select:
            noise, _, labels = score(scorer_of(teacher, s), pool)
            worth = worth_keeping(noise, labels)
        s = settle_budget(args, s, pool and len(pool), worth)
        s = found.settle(s) if found else s
    check_last_batch(student, teacher, min(s.num_select, s.steps * s.batch_size), s.batch_size, '--num_select or --batch_size')
    run = Run(s, name, device, () if args.teacher_acc else ('teacher_acc',))
    s = run.settings
    noisy = 'nll' in s.loss.split('+')
    arguments.say_settings(s)
    if run.finished():
        return

    # ---------------------------------------------------------------- selection
    facts = dict(wild=None, wild_images=None, teacher_top1=teacher_top1, teacher_arch=teacher.arch, teacher_width=teacher.width,
                 images_seen=0)
    if wild:
        transfer, selection = transfer_from_wild(run, s, teacher, wild, pool, found)
        facts |= selection.facts() | ({'labelled_images': len(found.images)} if found else {})
        if s.score_only:
            return print_result(run.result(method, **{**facts, 'epochs': 0, 'steps': 0, 'top1': None, 'top1_best': None}))
        held = None if test else held_out(selection, pool, wild, teacher, s.seed)
        if not s.teacher_acc and noisy:
            s = s.replace(teacher_acc=estimated_accuracy(run.folder, pool, wild, teacher))
            facts['teacher_acc'] = s.teacher_acc
    else:
        transfer = TransferSet(train.images, train.labels, None, teacher.normalise)
        facts['num_select'], held = None, None

    # ---------------------------------------------------------------- student
    theta = torch.zeros(teacher.classes, teacher.classes - 1, device=device, requires_grad=True)
    optimizer = training.make_optimizer(s.optimizer, student.parameters(), s.lr, s.amp, trained=is_trained(args))
    optimizer_theta = torch.optim.Adam([theta], lr=s.lr_theta)
    run.start('student', student, teacher.facts(arch=arch, width=width), theta=theta, optimizer=optimizer,
              optimizer_theta=optimizer_theta)
    say(f'student: {arch}, width {width}, {count_parameters(student):,} parameters, on {s.num_select} images')

    # ---------------------------------------------------------------- distil
    for epoch in run.epochs():
        train_epoch(epoch, run, s, teacher, transfer, (student, theta, optimizer, optimizer_theta))
        due = epoch % s.test_every == 0 or epoch == s.epochs
        measured = [training.evaluate(student, due and split, teacher.normalise, device, s.amp) for split in (test, held)]
        run.end_epoch(measured[0], measured[1][1])

    # ---------------------------------------------------------------- result
    if noisy and distributed.rank() == 0:
        with written_aside(run.folder / 'adaptation.npy') as file:
            np.save(file, log_adaptation_matrix(theta, s.teacher_acc).exp().detach().cpu().numpy())
    per_epoch = -(-s.num_select // s.batch_size)
    facts['images_seen'] = (run.step // per_epoch) * s.num_select + (run.step % per_epoch) * s.batch_size
    if held:
        facts['agreement'] = training.evaluate(student, held, teacher.normalise, device, s.amp)[1]
    if s.export and distributed.rank() == 0:
        facts |= export(run.folder, student, teacher, (test or held or transfer).images[:1000], s)
    run.finish(method, **facts)


if __name__ == '__main__':
    distributed.run_script(main)
