"""DAFL: distils a student with no data at all, from images that a generator learns to draw for the teacher (ICCV 2019).

    python teacher-train.py --dataset MNIST
    python DAFL-train.py --dataset MNIST

Every epoch is 120 steps. Small batches hurt: at batch 64 people report half the accuracy.
"""

import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from data import DATASETS, Normalise, load
from generator import Generator
from losses import activation_loss, information_entropy_loss, kd_loss, one_hot_loss
from networks import ARCHS, build, count_multiply_adds, count_parameters, find_teacher, load_network, resolve_width
from runs import Run, print_result
from utils import (Means, Parser, UserError, add_common_arguments, at_least, autocast, evaluate, learning_rate, make_optimizer, name_in,
                   pick_amp, pick_device, progress, rng, run_script, say, seed_init, set_lr, to_device, warn)

EPOCH_STEPS = 120

LENET = dict(epochs=200, batch_size=512, latent_dim=100, lr_G=0.2, optimizer='adam', lr=2e-3, schedule='constant', milestones=(),
             oh=1.0, ie=5.0, a=0.1)
CIFAR10 = dict(epochs=2000, batch_size=1024, latent_dim=1000, lr_G=0.02, optimizer='sgd', lr=0.1, schedule='steps', milestones=(0.4, 0.8),
               oh=0.05, ie=5.0, a=0.01)
RECIPES = {'MNIST': LENET, 'FashionMNIST': LENET, 'mnist5k': LENET, 'cifar10': CIFAR10,
           'cifar100': CIFAR10 | dict(oh=0.5, ie=20.0, a=0.1)}


def parse():
    parser = Parser(__doc__.split('\n')[0])
    positive = at_least(float, 0, strict=True)
    g = add_common_arguments(parser, DATASETS)
    g.add_argument('--teacher_dir', metavar='PATH', help="the teacher: an output folder, a run's folder or a file (default: --output_dir)")
    g.add_argument('--arch', type=name_in(ARCHS), metavar='NAME', help="the student: LeNet-5-Half or ResNet-18 unless given")
    g.add_argument('--width', type=at_least(int, 1), help="a ResNet student's width (default: the teacher's)")
    g.add_argument('--epochs', '--n_epochs', type=at_least(int, 1), help=f'of {EPOCH_STEPS} steps each; the published number unless given')
    g.add_argument('--batch_size', type=at_least(int, 2), help='lower it only if memory runs out: the entropy term needs many images')
    g.add_argument('--lr', '--lr_S', type=positive, help="the student's learning rate")
    g.add_argument('--lr_G', type=positive, help="the generator's; lower it if the student's accuracy jumps about")
    g.add_argument('--latent_dim', type=at_least(int, 1), help="length of the generator's noise vector")
    g.add_argument('--oh', type=at_least(float, 0), help='weight of the one-hot loss')
    g.add_argument('--ie', type=at_least(float, 0), help='weight of the information entropy loss: raise it if classes are missing')
    g.add_argument('--a', type=at_least(float, 0), help='weight of the activation loss')
    g.add_argument('--img_size', type=int, default=32, help='of the generated images: the networks take 32')
    g.add_argument('--channels', type=int, help="of the generated images (default: the teacher's)")
    return parser.parse_args()


def main():
    # ---------------------------------------------------------------- settings and teacher
    args = parse()
    info = DATASETS[args.dataset]
    device = pick_device(args.device)
    teacher_file = find_teacher(args.teacher_dir or args.output_dir, args.dataset)
    teacher, facts = load_network(teacher_file)
    if facts['dataset'] != args.dataset:
        raise UserError(f'{teacher_file} is a teacher of {facts["dataset"]}, and --dataset is {args.dataset}: change one of the two')
    if args.img_size != 32 or args.channels not in (None, facts['channels']):
        raise UserError(f'--img_size {args.img_size} --channels {args.channels}, but the teacher takes {facts["channels"]} x 32 x 32: '
                        'leave both out')
    arch = args.arch or info.student
    width = resolve_width(arch, args.width or (facts['width'] if arch.startswith('resnet') else None))
    recipe = dict(RECIPES[args.dataset])
    recipe |= {k: v for k in recipe if (v := getattr(args, k, None)) is not None}
    recipe = SimpleNamespace(**recipe)
    amp = pick_amp(args.amp, device, 'generator')  # its convolutions are large, whatever the teacher
    settings = vars(args) | vars(recipe) | {'arch': arch, 'width': width, 'amp': amp, 'device': device.type, 'channels': facts['channels']}
    run = Run(args, f'{args.dataset}-dafl-{arch}-w{width}-s{args.seed}', device, settings)
    if run.finished():
        return print_result(run.finished())

    # ---------------------------------------------------------------- test data, networks
    normalise = Normalise(facts['mean'], facts['std'], device)
    teacher = to_device(teacher, device).requires_grad_(False)
    test, teacher_top1 = None, None if facts['accuracy'] is None else 100 * facts['accuracy']
    try:
        test = load(args.dataset, args.data, False, args.cache_dir, args.workers).to(device)
        _, teacher_top1 = evaluate(teacher, test, normalise, device, amp)
        say(f'teacher {facts["arch"]} from {teacher_file}: top-1 {teacher_top1:.2f}')
    except UserError as e:
        warn(f'no test data, so the student is not evaluated: {e}')
    seed_init(args.seed, 'dafl')
    student = to_device(build(arch, width, facts['classes'], facts['channels']), device)
    generator = to_device(Generator(args.img_size, recipe.latent_dim, facts['channels']), device)
    optimizer_S = make_optimizer(recipe.optimizer, student.parameters(), recipe.lr)
    optimizer_G = torch.optim.Adam(generator.parameters(), lr=recipe.lr_G)
    state = dict(student=student, generator=generator, optimizer_S=optimizer_S, optimizer_G=optimizer_G)
    epoch, step, best = run.load(device, **state)
    student_facts = facts | {'arch': arch, 'width': width}
    steps = recipe.epochs * EPOCH_STEPS
    say('settings: ' + ', '.join(f'{k} {v}' for k, v in vars(recipe).items()) + f', steps {steps}, device {device}, amp {amp}')

    # ---------------------------------------------------------------- generate and distil
    top1 = None
    while epoch < recipe.epochs:
        epoch += 1
        student.train()
        generator.train()
        means, start, noise = Means(), time.time(), rng(args.seed, 'latent', epoch)
        for _ in progress(range(EPOCH_STEPS), desc=f'epoch {epoch}/{recipe.epochs}', unit='step'):
            lr = learning_rate(recipe.lr, recipe.schedule, recipe.milestones, step, steps)
            set_lr(optimizer_S, lr)
            z = torch.randn(recipe.batch_size, recipe.latent_dim, generator=noise).to(device)
            with autocast(device, amp):
                images = generator(z)  # (B, channels, 32, 32), already in the teacher's normalised space
                t, feature = teacher(images, out_feature=True)
                s = student(images.detach())
            t, s = t.float(), s.float()
            loss_oh, loss_ie, loss_a = one_hot_loss(t), information_entropy_loss(t), activation_loss(feature.float())
            loss_kd = kd_loss(s, t.detach(), T=1)
            loss = recipe.oh * loss_oh + recipe.ie * loss_ie + recipe.a * loss_a + loss_kd
            optimizer_G.zero_grad(set_to_none=True)
            optimizer_S.zero_grad(set_to_none=True)
            loss.backward()  # the generator learns from the first three terms, the student from the last
            optimizer_G.step()
            optimizer_S.step()
            means.add(recipe.batch_size, loss=loss, loss_oh=loss_oh, loss_ie=loss_ie, loss_a=loss_a, loss_kd=loss_kd)
            step += 1
        losses = means.read()
        seconds = time.time() - start
        test_loss = None
        if test is not None:
            test_loss, top1 = evaluate(student, test, normalise, device, amp)
            if best is None or top1 > best:
                best = top1
                run.save_network('student-best.pt', student, student_facts, top1 / 100)
        run.log({'epoch': epoch, 'step': step, 'lr': lr, **losses, 'test_loss': test_loss, 'top1': top1,
                 'images_per_s': EPOCH_STEPS * recipe.batch_size / seconds, 'seconds': run.seconds()}, recipe.epochs)
        run.save(epoch, step, best, **state)

    # ---------------------------------------------------------------- result
    if test is not None:
        _, top1 = evaluate(student, test, normalise, device, amp)
    run.save_network('student.pt', student, student_facts, None if top1 is None else top1 / 100)
    run.finish({
        'script': 'DAFL-train.py', 'method': 'dafl', 'recipe': None, 'select': None, 'loss': 'oh+ie+a+kd', 'dataset': args.dataset,
        'arch': arch, 'width': width, 'seed': args.seed, 'epochs': recipe.epochs, 'steps': step, 'images_seen': step * recipe.batch_size,
        'num_select': None, 'wild': None, 'top1': top1, 'top1_best': best, 'teacher_top1': teacher_top1, 'params': count_parameters(student),
        'flops': count_multiply_adds(student, facts['channels']),
    })


if __name__ == '__main__':
    run_script(main)
