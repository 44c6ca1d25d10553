"""DAFL: distils a student with no data at all, from images that a generator learns to draw for the teacher (ICCV 2019).

    python teacher-train.py --dataset MNIST
    python DAFL-train.py --dataset MNIST

Small batches hurt: at batch 64 people report half the accuracy.
"""

import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import arguments
import distributed
import utils
from arguments import at_least
from data import DATASETS, SIZE, Normalise, load_test
from generator import Generator
from losses import activation_loss, information_entropy_loss, kd_loss, one_hot_loss
from networks import ARCHS, build, count_parameters, load_teacher, resolve_width, teacher_accuracy
from runs import Run, print_result

LENET = dict(epochs=200, epoch_steps=120, batch_size=512, latent_dim=100, lr_G=0.2, optimizer='adam', lr=2e-3, schedule='constant',
             milestones=(0.4, 0.8), oh=1.0, ie=5.0, a=0.1)
CIFAR10 = dict(epochs=2000, epoch_steps=120, batch_size=1024, latent_dim=1000, lr_G=0.02, optimizer='sgd', lr=0.1, schedule='steps',
               milestones=(0.4, 0.8), oh=0.05, ie=5.0, a=0.01)
RECIPES = {'MNIST': LENET, 'FashionMNIST': LENET, 'mnist5k': LENET, 'cifar10': CIFAR10,
           'cifar100': CIFAR10 | dict(oh=0.5, ie=20.0, a=0.1)}


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    positive = at_least(float, 0, strict=True)
    g = arguments.add_common_arguments(parser, DATASETS)
    arguments.add_student_arguments(g, ARCHS)
    g.add_argument('--epochs', '--n_epochs', type=at_least(int, 1),
                   help='each ends with an evaluation; the published number unless given')
    g.add_argument('--epoch_steps', type=at_least(int, 1), help='steps of an epoch: 120 as published')
    g.add_argument('--batch_size', type=at_least(int, 2), help='lower it only if memory runs out: the entropy term needs many images')
    g.add_argument('--lr', '--lr_S', type=positive, help="the student's learning rate")
    g.add_argument('--lr_G', type=positive, help="the generator's; lower it if the student's accuracy jumps about")
    g.add_argument('--latent_dim', type=at_least(int, 1), help="length of the generator's noise vector")
    g.add_argument('--oh', type=at_least(float, 0), help='weight of the one-hot loss')
    g.add_argument('--ie', type=at_least(float, 0), help='weight of the information entropy loss: raise it if classes are missing')
    g.add_argument('--a', type=at_least(float, 0), help='weight of the activation loss')
    return parser.parse_args()


def main():
    # ---------------------------------------------------------------- settings and teacher
    args = parse()
    info = DATASETS[args.dataset]
    device = utils.pick_device(args.device)
    teacher, facts, teacher_file = load_teacher(args.teacher_dir or args.output_dir, args.dataset, info, device, args.amp)
    arch = args.arch or info.student
    width = resolve_width(arch, args.width, facts)
    r = SimpleNamespace(**arguments.override(RECIPES[args.dataset], args))
    amp = utils.pick_amp(args.amp, device, 'generator')  # of all three networks: the generator takes most of the step's time
    student_amp = utils.pick_amp(args.amp, device, arch)  # to evaluate in, as the other scripts do
    shown = vars(r) | {'teacher': facts['digest'], 'arch': arch, 'width': width, 'channels': facts['channels'], 'device': device.type,
                       'amp': amp}

    # ---------------------------------------------------------------- test data, networks
    test = load_test(args.dataset, args.data, args.cache_dir, args.workers, device)
    normalise = Normalise(facts['mean'], facts['std'], device)
    teacher_top1 = teacher_accuracy(teacher, facts, teacher_file, test, normalise, device)
    run = Run(args, f'{args.dataset}-dafl-{arch}-w{width}-s{args.seed}', device, vars(args) | shown)
    arguments.say_settings(shown)
    if run.finished():
        return print_result(run.finished())
    utils.seed_init(args.seed, 'dafl')
    student = utils.to_device(build(arch, width, facts['classes'], facts['channels']), device)
    generator = utils.to_device(Generator(SIZE, r.latent_dim, facts['channels']), device)
    optimizer_S = utils.make_optimizer(r.optimizer, student.parameters(), r.lr)
    optimizer_G = torch.optim.Adam(generator.parameters(), lr=r.lr_G)
    epoch, step = run.start('student', student, facts | {'arch': arch, 'width': width}, r.epochs, device, generator=generator,
                            optimizer_S=optimizer_S, optimizer_G=optimizer_G)
    utils.compile_networks(args.compile, device, teacher, student, generator)
    steps = r.epochs * r.epoch_steps
    utils.say(f'student: {arch}, width {width}, {count_parameters(student):,} parameters; generator: {count_parameters(generator):,}')

    # ---------------------------------------------------------------- generate and distil
    while epoch < r.epochs:
        epoch += 1
        student.train()
        generator.train()
        means, start, noise = utils.Means(), time.time(), utils.rng(args.seed, 'latent', epoch)
        for _ in utils.progress(range(r.epoch_steps), desc=f'epoch {epoch}/{r.epochs}', unit='step'):
            lr = utils.learning_rate(r.lr, r.schedule, r.milestones, step, steps)
            utils.set_lr(optimizer_S, lr)
            first, last, weight = distributed.own(0, r.batch_size)
            z = torch.randn(r.batch_size, r.latent_dim, generator=noise)[first:last].to(device)
            with utils.autocast(device, amp):
                images = generator(z)  # (B, channels, 32, 32), already in the teacher's normalised space
                t, feature = teacher(images, out_feature=True)
                s = student(images.detach())
            t, s = t.float(), s.float()
            p = distributed.mean_with_gradient(F.softmax(t, dim=1).mean(dim=0) * weight)  # (classes,), over the global batch
            loss_oh, loss_ie, loss_a = one_hot_loss(t), information_entropy_loss(p), activation_loss(feature.float())
            loss_kd = kd_loss(s, t.detach(), T=1)
            loss_mean = r.oh * loss_oh + r.a * loss_a + loss_kd  # a mean over this process's images; the entropy is over all
            optimizer_G.zero_grad(set_to_none=True)
            optimizer_S.zero_grad(set_to_none=True)
            (loss_mean * weight + r.ie * loss_ie).backward()  # the generator learns from the first three terms, the student from the last
            distributed.average_gradients(generator, student)
            optimizer_G.step()
            optimizer_S.step()
            means.add(r.batch_size, weight, loss=loss_mean + r.ie * loss_ie, loss_oh=loss_oh, loss_ie=loss_ie, loss_a=loss_a,
                      loss_kd=loss_kd)
            step += 1
        distributed.same_buffers(generator, student)
        means.read()  # waits for the device
        seconds = time.time() - start
        run.end_epoch(epoch, step, lr, means, seconds, *utils.evaluate(student, test, normalise, device, student_amp))

    # ---------------------------------------------------------------- result
    run.finish({
        'script': 'DAFL-train.py', 'method': 'dafl', 'recipe': None, 'select': None, 'loss': 'oh+ie+a+kd', 'dataset': args.dataset,
        'arch': arch, 'width': width, 'seed': args.seed, 'epochs': r.epochs, 'steps': step, 'images_seen': step * r.batch_size,
        'num_select': None, 'wild': None, 'teacher_top1': teacher_top1, 'teacher_arch': facts['arch'], 'teacher_width': facts['width'],
        'teacher': facts['digest'],
    })


if __name__ == '__main__':
    utils.run_script(main)
