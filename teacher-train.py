"""Trains a network on labelled data: the teacher, and Table 1's "Student" row.

    python teacher-train.py --dataset cifar10                      # the teacher, by the published schedule
    python teacher-train.py --dataset cifar10 --arch resnet18      # Table 1's "Student"

Published: ResNet-34, SGD 0.1, momentum 0.9, weight decay 5e-4, batch 128, 200 epochs, lr / 10 at 80 and 120;
MNIST: LeNet-5, Adam 1e-3, batch 256, 10 epochs.
"""

import time

import torch.nn.functional as F

from data import DATASETS, EpochPlan, Normalise, load
from networks import ARCHS, build, count_multiply_adds, count_parameters, resolve_width
from runs import Run, print_result
from utils import (SCHEDULES, Means, Parser, add_common_arguments, at_least, autocast, evaluate, learning_rate, make_optimizer, name_in,
                   pick_amp, pick_device, progress, run_script, say, seed_init, set_lr, to_device)

RECIPES = {
    'resnet': dict(epochs=200, batch_size=128, optimizer='sgd', lr=0.1, schedule='steps', milestones=(0.4, 0.6), augment=True),
    'lenet': dict(epochs=10, batch_size=256, optimizer='adam', lr=1e-3, schedule='constant', milestones=(), augment=False),
    # 4,000 images are few: crops and a longer cycle of smaller batches make up for it. Ours: the papers have no such set.
    'mnist5k': dict(epochs=48, batch_size=128, optimizer='adam', lr=4e-3, schedule='onecycle', milestones=(), augment=True),
}


def parse():
    parser = Parser(__doc__.split('\n')[0])
    g = add_common_arguments(parser, DATASETS)
    g.add_argument('--arch', type=name_in(ARCHS), metavar='NAME', help="the data set's teacher (LeNet-5, ResNet-34) unless given: one of "
                   + ', '.join(ARCHS))
    g.add_argument('--width', type=at_least(int, 1), help="channels of a ResNet's first stage: 64 as published; 16 and 32 make CPU runs possible")
    g.add_argument('--epochs', type=at_least(int, 1), help='the published number unless given; the schedule keeps its shape')
    g.add_argument('--batch_size', type=at_least(int, 2), help='change --lr with it')
    g.add_argument('--lr', type=at_least(float, 0, strict=True), help='at the start, or the peak of one cycle; lower it if the loss turns to NaN')
    g.add_argument('--schedule', choices=SCHEDULES, help='onecycle gets furthest where epochs are few')
    return parser.parse_args()


def main():
    # ---------------------------------------------------------------- settings
    args = parse()
    info = DATASETS[args.dataset]
    arch = args.arch or info.teacher
    width = resolve_width(arch, args.width)
    recipe = dict(RECIPES[args.dataset if args.dataset in RECIPES else 'lenet' if info.channels == 1 else 'resnet'])
    recipe |= {k: v for k in ('epochs', 'batch_size', 'lr', 'schedule') if (v := getattr(args, k)) is not None}
    device = pick_device(args.device)
    amp = pick_amp(args.amp, device, arch)
    settings = vars(args) | recipe | {'arch': arch, 'width': width, 'amp': amp, 'device': device.type}
    method = 'student' if arch == info.student else 'teacher'
    epochs, batch_size = recipe['epochs'], recipe['batch_size']

    # ---------------------------------------------------------------- data, network, run
    train = load(args.dataset, args.data, True, args.cache_dir, args.workers).to(device)
    test = load(args.dataset, args.data, False, args.cache_dir, args.workers).to(device)
    normalise = Normalise(info.mean, info.std, device)
    seed_init(args.seed, 'teacher')
    net = to_device(build(arch, width, info.classes, info.channels), device)
    run = Run(args, f'{args.dataset}-{method}-{arch}-w{width}-s{args.seed}', device, settings)
    if run.finished():
        return print_result(run.finished())
    facts = info.facts(args.dataset, arch, width)
    optimizer = make_optimizer(recipe['optimizer'], net.parameters(), recipe['lr'])
    epoch, step, best = run.load(device, net=net, optimizer=optimizer)
    plan = EpochPlan(len(train.labels), batch_size, args.seed, 0, recipe['augment'], info.flip)
    steps = epochs * len(plan)
    say(f'{method}: {arch}, width {width}, {count_parameters(net):,} parameters, on {len(train.labels)} images of {args.dataset}')
    say('settings: ' + ', '.join(f'{k} {v}' for k, v in recipe.items()) + f', steps {steps}, device {device}, amp {amp}')

    # ---------------------------------------------------------------- train
    test_loss = top1 = None
    while epoch < epochs:
        epoch += 1
        net.train()
        means, start = Means(), time.time()
        plan = EpochPlan(len(train.labels), batch_size, args.seed, epoch, recipe['augment'], info.flip)
        with progress(total=len(train.labels), desc=f'epoch {epoch}/{epochs}') as bar:
            for indices, augment in plan:
                lr = learning_rate(recipe['lr'], recipe['schedule'], recipe['milestones'], step, steps)
                set_lr(optimizer, lr)
                indices = indices.to(device)
                with autocast(device, amp):
                    logits = net(normalise(augment(train.images[indices])))
                loss = F.cross_entropy(logits.float(), train.labels[indices])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                means.add(len(indices), loss=loss)
                step += 1
                bar.update(len(indices))
        losses = means.read()  # waits for the device
        seconds = time.time() - start
        test_loss, top1 = evaluate(net, test, normalise, device, amp)
        if best is None or top1 > best:
            best = top1
            run.save_network(f'{method}-best.pt', net, facts, top1 / 100)
        run.log({'epoch': epoch, 'step': step, 'lr': lr, **losses, 'test_loss': test_loss, 'top1': top1,
                 'images_per_s': len(train.labels) / seconds, 'seconds': run.seconds()}, epochs)
        run.save(epoch, step, best, net=net, optimizer=optimizer)

    # ---------------------------------------------------------------- result
    _, top1 = evaluate(net, test, normalise, device, amp)
    run.save_network(f'{method}.pt', net, facts, top1 / 100)
    run.finish({
        'script': 'teacher-train.py', 'method': method, 'recipe': None, 'select': None, 'loss': 'ce', 'dataset': args.dataset, 'arch': arch,
        'width': width, 'seed': args.seed, 'epochs': epochs, 'steps': step, 'images_seen': epochs * len(train.labels), 'num_select': None,
        'wild': None, 'top1': top1, 'top1_best': best, 'teacher_top1': None, 'params': count_parameters(net),
        'flops': count_multiply_adds(net, info.channels),
    })


if __name__ == '__main__':
    run_script(main)
