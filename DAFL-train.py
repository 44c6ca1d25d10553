"""DAFL: distils a student with no data at all, from images that a generator learns to draw for the teacher (ICCV 2019).

    python teacher-train.py --dataset MNIST
    python DAFL-train.py --dataset MNIST                           # hours on a CPU; the paper has 98.20 %
    python DAFL-train.py --dataset MNIST --epochs 20               # a tenth of it: one to two hours of a core, 95 %
    python DAFL-train.py --dataset MNIST --method dfad             # two hours of a core or more; its paper has 98.3 %

Small batches hurt: at batch 64 people report half the accuracy. --method dfad is its rival, Data-Free Adversarial Distillation (Fang et
al., 2019): the same generator draws what the student gets most wrong.
"""

import keep.stops  # isort: skip  # before torch, see there

import torch
import torch.nn.functional as F

import arguments
import distributed
import recipes
import training
from arguments import at_least
from data import DATASETS, load_test
from generator import Generator
from losses import (
    activation_loss,
    classes_drawn,
    fewest_classes,
    information_entropy_loss,
    kd_loss,
    logit_difference,
    one_hot_loss,
)
from networks import count_parameters
from own.export import export, formats
from own.student import is_trained, make_student, run_name
from own.teacher import Wanted, load_teacher, own_info
from runs import Run
from utils import UserError, progress, say, warn
from wild.reading import Decoder


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    positive = at_least(float, 0, strict=True)
    g = arguments.add_common_arguments(parser, (*DATASETS, 'none'), 'MNIST')
    arguments.add_teacher_arguments(parser)
    arguments.add_student_arguments(g)
    g.add_argument('--method', choices=recipes.DATA_FREE, default='dafl', help='dafl: the generator draws what the teacher is sure of, all '
                   'classes alike; dfad: where teacher and student differ most, a step after five of the student')
    g.add_argument('--epochs', '--n_epochs', type=at_least(int, 1),
                   help='each ends with an evaluation; the published number unless given')
    g.add_argument('--epoch_steps', type=at_least(int, 1), help="steps of an epoch: 120 as published; the generator's 50 of dfad")
    g.add_argument('--batch_size', type=at_least(int, 2), help='lower it only if memory runs out: the entropy term needs many images')
    g.add_argument('--lr', '--lr_S', type=positive, help="the student's learning rate")
    g.add_argument('--schedule', choices=training.SCHEDULES, help="of the student's rate, and with dfad of the generator's too")
    g.add_argument('--lr_G', type=positive, help="the generator's; lower it if the student's accuracy jumps about")
    g.add_argument('--latent_dim', type=at_least(int, 1), help="length of the generator's noise vector")
    g.add_argument('--oh', type=at_least(float, 0), help='weight of the one-hot loss')
    g.add_argument('--ie', type=at_least(float, 0), help='weight of the information entropy loss: raise it if classes are missing')
    g.add_argument('--a', type=at_least(float, 0), help='weight of the activation loss')
    args = parser.parse_args()
    if given := [f'--{flag}' for flag in ('oh', 'ie', 'a') if args.method == 'dfad' and getattr(args, flag) is not None]:
        raise UserError(f"--method dfad has none of DAFL's loss terms, so {', '.join(given)} means nothing there: leave it out")
    return args


def settle(args, arch, width, teacher):
    of = recipes.DATA_FREE[args.method]
    recipe = teacher.dataset if teacher.dataset in of else 'cifar10' if teacher.channels == 3 else 'MNIST'
    return arguments.settle(
        args, of[recipe], arch=arch, width=width, loss={'dafl': 'oh+ie+a+kd', 'dfad': 'l1'}[args.method], dataset=teacher.dataset,
        teacher=teacher.digest, device=teacher.device.type,
        amp=training.pick_amp(args.amp, teacher.device, 'generator'))  # of all three networks: the generator takes most of the time


def train_epoch(epoch, run, teacher, networks, optimizers):
    """s.epoch_steps steps of generator and student, or what is left of them. networks, optimizers: (student's, generator's). Returns
    the losses' means."""
    s, (optimizer_S, optimizer_G), device = run.settings, optimizers, teacher.device
    for network in networks:
        network.train()
    noise = training.rng(s.seed, 'latent', epoch)
    first, last, weight = distributed.own(0, s.batch_size)

    def draw():
        return torch.randn(s.batch_size, s.latent_dim, generator=noise)[first:last].to(device)

    step, draws = {'dafl': (dafl_step, 1), 'dfad': (dfad_step, s.student_steps + 1)}[s.method]
    for _ in range(run.done * draws):  # of a run that goes on
        draw()
    for _ in progress(range(run.done, s.epoch_steps), desc=f'epoch {epoch}/{s.epochs}', unit='step'):
        lr = training.learning_rate(s.lr, s.schedule, s.milestones, run.step, s.epochs * s.epoch_steps)
        training.set_lr(optimizer_S, lr)
        if s.method == 'dfad':
            training.set_lr(optimizer_G, s.lr_G * lr / s.lr)
        losses = step(s, draw, teacher, networks, optimizers, weight)
        run.step_done(s.batch_size * s.student_steps, weight, lr, **losses)
    distributed.same_buffers(*networks[::-1])
    return run.means.read()  # waits for the device


def dafl_step(s, draw, teacher, networks, optimizers, weight):
    """One step of both on one batch (DAFL, section 3). draw: gives latents (b, latent_dim), this process's share of a batch; weight: see
    distributed.own. Returns the losses."""
    (student, generator), (optimizer_S, optimizer_G) = networks, optimizers
    with training.autocast(teacher.device, s.amp):
        images = generator(draw())  # (b, channels, size, size), already in the teacher's normalised space
        t, feature = teacher.logits_and_features(images)
        logits = student(images.detach())
    t, logits = t.float(), logits.float()
    p = distributed.mean_with_gradient(F.softmax(t, dim=1).mean(dim=0) * weight)  # (classes,), over the global batch
    loss_oh, loss_ie, loss_a = one_hot_loss(t), information_entropy_loss(p), activation_loss(feature.float())
    loss_kd = kd_loss(logits, t.detach(), T=1)
    loss_mean = s.oh * loss_oh + s.a * loss_a + loss_kd  # a mean over this process's images; the entropy is over all
    optimizer_G.zero_grad(set_to_none=True)
    optimizer_S.zero_grad(set_to_none=True)
    (loss_mean * weight + s.ie * loss_ie).backward()  # the generator learns from the first three terms, the student from the last
    distributed.average_gradients(generator, student)
    optimizer_G.step()
    optimizer_S.step()
    return dict(loss=loss_mean + s.ie * loss_ie, loss_oh=loss_oh, loss_ie=loss_ie, loss_a=loss_a, loss_kd=loss_kd)


def dfad_step(s, draw, teacher, networks, optimizers, weight):
    """s.student_steps of the student, each on a batch of its own, then one of the generator (DFAD, algorithm 1); see dafl_step. The
    student's batch norms see the generator's batch too, as in the published code."""
    (student, generator), (optimizer_S, optimizer_G), device = networks, optimizers, teacher.device
    loss_student = 0
    for _ in range(s.student_steps):
        with training.autocast(device, s.amp):
            with torch.no_grad():
                images = generator(draw())
            logits = student(images)
        loss = logit_difference(logits.float(), teacher.logits(images))
        optimizer_S.zero_grad(set_to_none=True)
        (loss * weight).backward()
        distributed.average_gradients(student)
        optimizer_S.step()
        loss_student = loss_student + loss.detach() / s.student_steps
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    student.requires_grad_(False)
    with training.autocast(device, s.amp):
        images = generator(draw())
        t, _ = teacher.logits_and_features(images)
        logits = student(images)
    loss = -logit_difference(logits.float(), t.float())
    optimizer_G.zero_grad(set_to_none=True)
    (loss * weight).backward()
    for parameter in learned:
        parameter.requires_grad_(True)
    distributed.average_gradients(generator)
    optimizer_G.step()
    return dict(loss=loss_student, loss_generator=loss)


def warn_of_collapse(losses, run, classes):
    """Warns by the two signs of a training that fails: the generator has left classes out, or the teacher is sure of no image, its one-hot
    loss above 1 nat (0.3 in sound runs of MNIST, 0.8 of CIFAR-10). losses: an epoch's means, with loss_ie. Returns whether it did."""
    found, fewest, unsure = classes_drawn(losses['loss_ie']), fewest_classes(classes, run.settings.batch_size), losses['loss_oh']
    signs = [f'it draws {found:.1f} of {classes} classes (10^-loss_ie), expected {fewest:.1f} or more: raise --ie'] * (found < fewest)
    signs += [f'the teacher is sure of no image (loss_oh {unsure:.2f}, expected 1 or less): raise --batch_size or --oh'] * (unsure > 1)
    if signs:
        warn(f'the generator fails in epoch {run.epoch + 1}, so that the student can not learn: {"; ".join(signs)}. Else lower --lr_G, or '
             'take another --seed; with a new --run')
    return bool(signs)


@torch.no_grad()
def drawn(generator, z, teacher):
    """The generator's images as pixels: (n, channels, size, size) uint8."""
    mean, std = teacher.normalise.mean, teacher.normalise.std
    return ((generator.eval()(z) * std + mean) * 255).clamp(0, 255).byte()


def main():
    # ---------------------------------------------------------------- settings and teacher
    args = parse()
    keep.stops.limit(args.max_minutes)
    args.export = formats(args.export) if args.export else None
    device = training.pick_device(args.device, args.rank_timeout)
    teacher = load_teacher(Wanted.of(args), args.dataset, DATASETS.get(args.dataset), device, args.amp)
    teacher.check_gradients()
    student, arch, width = make_student(args, own_info(teacher).student, teacher, args.method)
    s = settle(args, arch, width, teacher)
    generator = Generator(teacher.size, s.latent_dim, teacher.channels, s.generator_eps)  # right after the student, by one seed
    generator = training.to_device(generator, device)
    test = load_test(s.dataset, s.data, s.cache_dir, Decoder.of(s), device, own_info(teacher))
    teacher_top1 = teacher.measure(test)
    run = Run(s, run_name(s.dataset, s.method, arch, width, s.seed), device)
    arguments.say_settings(s)
    if run.finished():
        return

    # ---------------------------------------------------------------- student and generator
    optimizers = (training.make_optimizer(s.optimizer, student.parameters(), s.lr, s.amp, s.weight_decay, is_trained(args)),
                  torch.optim.Adam(generator.parameters(), lr=s.lr_G))
    run.start('student', student, teacher.facts(arch=arch, width=width), generator=generator, optimizer_S=optimizers[0],
              optimizer_G=optimizers[1])
    say(f'student: {arch}, width {width}, {count_parameters(student):,} parameters; generator: {count_parameters(generator):,}')

    # ---------------------------------------------------------------- generate and distil
    student_amp = training.pick_amp(args.amp, device, s.arch)  # to evaluate in, as the other scripts do
    warned = False
    for epoch in run.epochs():
        losses = train_epoch(epoch, run, teacher, (student, generator), optimizers)
        warned = warned or (s.method == 'dafl' and warn_of_collapse(losses, run, teacher.classes))
        run.end_epoch(training.evaluate(student, test, teacher.normalise, device, student_amp))
    exported = {}
    if s.export and distributed.rank() == 0:
        z = torch.randn(100, s.latent_dim, generator=training.rng(s.seed, 'export')).to(device)
        exported = export(run.folder, student, teacher, test.images[:1000] if test else drawn(generator, z, teacher), s)
    run.finish(s.method, **exported, steps=run.step, images_seen=run.step * s.batch_size * s.student_steps, teacher_top1=teacher_top1,
               teacher_arch=teacher.arch, teacher_width=teacher.width)


if __name__ == '__main__':
    distributed.run_script(main)
