"""Trains a network on labelled data: the teacher, and Table 1's "Student" row.

    python teacher-train.py --dataset cifar10                      # the teacher, by the published schedule
    python teacher-train.py --dataset cifar10 --arch resnet18      # Table 1's "Student"

Published: ResNet-34, SGD 0.1, momentum 0.9, weight decay 5e-4, batch 128, 200 epochs, lr / 10 at 80 and 120;
MNIST: LeNet-5, Adam 1e-3, batch 256, 10 epochs.
"""

import time
from types import SimpleNamespace

import torch.nn.functional as F

import arguments
import distributed
import utils
from arguments import at_least
from data import DATASETS, EpochPlan, Normalise, batches, load
from networks import ARCHS, build, count_parameters, resolve_width
from runs import Run, print_result

RECIPES = {
    'resnet': dict(epochs=200, batch_size=128, optimizer='sgd', lr=0.1, schedule='steps', milestones=(0.4, 0.6), augment=True),
    'lenet': dict(epochs=10, batch_size=256, optimizer='adam', lr=1e-3, schedule='constant', milestones=(0.4, 0.6), augment=False),
    # 4,000 images are few: crops and a longer cycle of smaller batches make up for it. Ours: the papers have no such set.
    'mnist5k': dict(epochs=48, batch_size=128, optimizer='adam', lr=4e-3, schedule='onecycle', milestones=(0.4, 0.6), augment=True),
}


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    g = arguments.add_common_arguments(parser, DATASETS)
    g.add_argument('--arch', type=arguments.name_in(ARCHS), metavar='NAME',
                   help=f"the data set's teacher (LeNet-5, ResNet-34) unless given: one of {', '.join(ARCHS)}")
    g.add_argument('--width', type=at_least(int, 1),
                   help="channels of a ResNet's first stage: 64 as published; 16 and 32 make CPU runs possible")
    g.add_argument('--epochs', type=at_least(int, 1), help='the published number unless given; the schedule keeps its shape')
    arguments.add_optimizer_arguments(g)
    return parser.parse_args()


def main():
    # ---------------------------------------------------------------- settings
    args = parse()
    info = DATASETS[args.dataset]
    arch = args.arch or info.teacher
    width = resolve_width(arch, args.width)
    device = utils.pick_device(args.device)
    amp = utils.pick_amp(args.amp, device, arch)
    recipe = RECIPES[args.dataset if args.dataset in RECIPES else 'lenet' if arch.startswith('lenet') else 'resnet']
    r = SimpleNamespace(**arguments.override(recipe, args))
    shown = vars(r) | {'arch': arch, 'width': width, 'device': device.type, 'amp': amp}
    method = 'student' if arch == info.student else 'teacher'

    # ---------------------------------------------------------------- data, network, run
    train = load(args.dataset, args.data, True, args.cache_dir, args.workers).to(device)
    test = load(args.dataset, args.data, False, args.cache_dir, args.workers).to(device)
    run = Run(args, f'{args.dataset}-{method}-{arch}-w{width}-s{args.seed}', device, vars(args) | shown)
    arguments.say_settings(shown)
    if run.finished():
        return print_result(run.finished())
    count = len(train.labels)
    normalise = Normalise(info.mean, info.std, device)
    utils.seed_init(args.seed, 'teacher')
    net = utils.to_device(build(arch, width, info.classes, info.channels), device)
    optimizer = utils.make_optimizer(r.optimizer, net.parameters(), r.lr)
    epoch, step = run.start(method, net, info.facts(args.dataset, arch, width), r.epochs, device, optimizer=optimizer)
    utils.compile_networks(args.compile, device, net)
    steps = r.epochs * -(-count // r.batch_size)
    utils.say(f'{method}: {arch}, width {width}, {count_parameters(net):,} parameters, on {count} images of {args.dataset}')

    # ---------------------------------------------------------------- train
    while epoch < r.epochs:
        epoch += 1
        net.train()
        means, start = utils.Means(), time.time()
        plan = EpochPlan(count, r.batch_size, args.seed, epoch, r.augment, info.flip)
        with utils.progress(total=count, desc=f'epoch {epoch}/{r.epochs}') as bar:
            for indices, x, size, weight in batches(plan, train.images, device):
                lr = utils.learning_rate(r.lr, r.schedule, r.milestones, step, steps)
                utils.set_lr(optimizer, lr)
                with utils.autocast(device, amp):
                    logits = net(normalise(x))
                loss = F.cross_entropy(logits.float(), train.labels[indices])
                optimizer.zero_grad(set_to_none=True)
                (loss * weight).backward()
                distributed.average_gradients(net)
                optimizer.step()
                means.add(size, weight, loss=loss)
                step += 1
                bar.update(size)
        distributed.same_buffers(net)
        means.read()  # waits for the device
        seconds = time.time() - start
        run.end_epoch(epoch, step, lr, means, seconds, *utils.evaluate(net, test, normalise, device, amp))

    # ---------------------------------------------------------------- result
    run.finish({
        'script': 'teacher-train.py', 'method': method, 'recipe': None, 'select': None, 'loss': 'ce', 'dataset': args.dataset, 'arch': arch,
        'width': width, 'seed': args.seed, 'epochs': r.epochs, 'steps': step, 'images_seen': r.epochs * count, 'num_select': None,
        'wild': None, 'teacher_top1': None,
    })


if __name__ == '__main__':
    utils.run_script(main)
