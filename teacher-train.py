"""Trains a network on labelled data: the teacher, and Table 1's "Student" row.

    python teacher-train.py --dataset mnist5k                      # LeNet-5: half a minute on two cores, 98 %
    python teacher-train.py --dataset cifar10                      # ResNet-34, by the published schedule: for a GPU; the paper has 94.85 %
    python teacher-train.py --dataset cifar10 --width 16 --recipe published --epochs 15 --schedule onecycle   # an hour of a core, 89 %
    python teacher-train.py --dataset cifar10 --arch resnet18      # Table 1's "Student"
    python teacher-train.py --dataset folder --data DIR --size 64  # your own classes: DIR/{train,test}/<class>/*
"""

import keep.stops  # isort: skip  # before torch, see there

import torch.nn.functional as F

import arguments
import distributed
import recipes
import training
from arguments import at_least
from data import DATASETS, EpochPlan, batches, load, measure, padding_of
from networks import ARCHS, SIZE, Normalise, build, count_parameters, resolve_width
from own.made import digest_of_state
from own.student import check_last_batch
from runs import Run
from utils import progress, say
from wild.reading import Decoder


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    g = arguments.add_common_arguments(parser, DATASETS)
    g.add_argument('--arch', type=arguments.name_in(ARCHS), metavar='NAME',
                   help=f"the data set's teacher (LeNet-5, ResNet-34) unless given: one of {', '.join(ARCHS)}")
    g.add_argument('--width', type=at_least(int, 1, high=2**16),
                   help="channels of a ResNet's first stage: 64 as published; 16 and 32 make CPU runs possible")
    g.add_argument('--size', type=at_least(int, 8, high=2**14), default=SIZE, help='images are resized to size x size: up to 64 squeezed '
                   'to a square, above by the short side and cut; our ResNets are made for 32 and 64, and slow from 128 on')
    g.add_argument('--channels', type=int, choices=(1, 3), help='with --dataset folder: 1, grey, or 3, colour (default: 3 unless all '
                   'training images are grey)')
    g.add_argument('--recipe', choices=recipes.TEACHER, help='the settings of every flag that is not given: published; short: ours, for '
                   'ResNets in few epochs; lenet: for LeNets; mnist5k: for that data set (default: short for a ResNet on a CPU, '
                   'published on a GPU)')
    g.add_argument('--epochs', type=at_least(int, 1), help="the recipe's number unless given; the schedule keeps its shape")
    arguments.add_optimizer_arguments(g)
    return parser.parse_args()


def settle(args, info, device):
    arch = args.arch or info.teacher
    own = args.dataset if args.dataset in recipes.TEACHER else 'lenet' if arch.startswith('lenet') else None
    recipe = arguments.pick_recipe(args.recipe, own, 'published', device)
    return arguments.settle(args, recipes.TEACHER[recipe], recipe=recipe, arch=arch, width=resolve_width(arch, args.width, size=args.size),
                            channels=info.channels, flip=info.flip if args.flip is None else args.flip, loss='ce', device=device.type,
                            amp=training.pick_amp(args.amp, device, arch))


def train_epoch(epoch, run, steps, train, learner):
    """One pass over `train`, a Split on the device, or what is left of it. learner: (network, its optimiser, a Normalise, the device)."""
    s, (net, optimizer, normalise, device) = run.settings, learner
    net.train()
    plan = EpochPlan(len(train.labels), s.batch_size, s.seed, epoch, s.augment and padding_of(s.size), s.flip)
    with progress(total=len(train.labels), initial=run.means.count, desc=f'epoch {epoch}/{s.epochs}') as bar:
        for indices, x, size, weight in batches(plan, train.images, device, run.done):
            lr = training.learning_rate(s.lr, s.schedule, s.milestones, run.step, steps)
            training.set_lr(optimizer, lr)
            with training.autocast(device, s.amp):
                logits = net(normalise(x))
            loss = F.cross_entropy(logits.float(), train.labels[indices])
            optimizer.zero_grad(set_to_none=True)
            (loss * weight).backward()
            distributed.average_gradients(net)
            optimizer.step()
            run.step_done(size, weight, lr, loss=loss)
            bar.update(size)
    distributed.same_buffers(net)
    run.means.read()  # waits for the device


def main():
    # ---------------------------------------------------------------- settings and data
    args = parse()
    keep.stops.limit(args.max_minutes)
    device = training.pick_device(args.device, args.rank_timeout)
    info = measure(args.dataset, args.data, args.size, args.channels, args.cache_dir, Decoder.of(args))
    s = settle(args, info, device)
    train, test = (load(s.dataset, s.data, part, s.cache_dir, Decoder.of(s), info).to(device) for part in (True, False))
    s = s.replace(labelled_data=train.source)  # so that a run is gone on with by the same alone
    training.seed_init(s.seed, 'teacher')
    net = training.to_device(build(s.arch, s.width, info.classes, info.channels), device)
    check_last_batch(net, info, len(train.labels), s.batch_size, '--batch_size or --size')
    method = 'student' if s.arch == info.student else 'teacher'
    run = Run(s, f'{s.dataset}-{method}-{s.arch}-w{s.width}-s{s.seed}', device)
    arguments.say_settings(s)
    if run.finished():
        return

    # ---------------------------------------------------------------- network
    optimizer = training.make_optimizer(s.optimizer, net.parameters(), s.lr, s.amp)
    normalise = Normalise(info.mean, info.std, device)
    run.start(method, net, info.facts(s.dataset, s.arch, s.width), optimizer=optimizer)
    count = len(train.labels)
    steps = s.epochs * -(-count // s.batch_size)
    say(f'{method}: {s.arch}, width {s.width}, {count_parameters(net):,} parameters, on {count} images of {s.dataset}')

    # ---------------------------------------------------------------- train
    for epoch in run.epochs():
        train_epoch(epoch, run, steps, train, (net, optimizer, normalise, device))
        due = epoch % s.test_every == 0 or epoch == s.epochs
        run.end_epoch(training.evaluate(net, due and test, normalise, device, s.amp))
    run.finish(method, steps=run.step, images_seen=s.epochs * count, digest=digest_of_state(net))


if __name__ == '__main__':
    distributed.run_script(main)
