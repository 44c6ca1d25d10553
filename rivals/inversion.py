"""DeepInversion: images drawn out of a teacher's batch norms, kept as PNG files, to distil a student from (Yin et al., CVPR 2020).

    python -m rivals.inversion --dataset cifar10 --run inverted                       # 2,000 steps a batch, as published: needs a GPU
    python -m rivals.inversion --dataset cifar10 --run inverted --iterations 200      # less than an hour and a half of a core
    python DFND-train.py --dataset cifar10 --wild runs/inverted/images --select all --loss kd

An epoch is a batch of images, which begin as noise; a step changes all of them. --adaptive is Adaptive DeepInversion: the images are also
to be those on which a student, --student, does not agree with the teacher yet.
"""

import keep.stops  # isort: skip  # before torch, see there

from statistics import mean

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import arguments
import distributed
import recipes
import training
from arguments import at_least
from data import DATASETS
from losses import disagreement, statistics_loss, total_variation
from own.student import run_name
from own.teacher import Wanted, load_teacher
from runs import Run, print_result
from utils import UserError, progress, read_rows, say, write_json, written_aside


def parse():
    parser = arguments.Parser(__doc__.split('\n')[0])
    weight = at_least(float, 0)
    g = arguments.add_common_arguments(parser, (*DATASETS, 'none'), 'cifar10')
    arguments.add_teacher_arguments(parser)
    g.add_argument('--images', type=at_least(int, 1), help='how many, rounded up to whole batches')
    g.add_argument('--iterations', type=at_least(int, 1), help='steps of each batch; fewer give noisier images')
    g.add_argument('--batch_size', type=at_least(int, 2), help='images whose statistics together are to be those of the original data')
    g.add_argument('--lr', type=at_least(float, 0, strict=True), help="of Adam, on the images' normalised pixels")
    g.add_argument('--bn', type=weight, help='weight of the difference to the batch norms')
    g.add_argument('--tv', type=weight, help='weight of the total variation: higher is smoother')
    g.add_argument('--l2', type=weight, help="weight of the images' norm")
    g.add_argument('--adaptive', type=weight, help="weight of a student's agreement with the teacher, which is to be small (--student)")
    g.add_argument('--student', metavar='SPEC', help='of --adaptive, trained already: a network file or a run, as --teacher')
    args = parser.parse_args()
    if bool(args.adaptive) != bool(args.student):
        raise UserError('--adaptive and --student go together: give both, or neither')
    return args


def watch(teacher):
    """A list to which every batch norm of the teacher adds, at each call, how far its input is from what it knows (statistics_loss). Raises
    UserError for a teacher without any."""
    modules = teacher.net.modules() if isinstance(teacher.net, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    if not norms:
        raise UserError(f'DeepInversion makes images whose statistics are those in the batch norms of the teacher, and {teacher.arch} '
                        f'{"gives outputs alone" if teacher.black_box else "has none"}: take a teacher with batch norms, such as a ResNet, '
                        'or DAFL-train.py')
    seen = []
    for norm in norms:
        norm.register_forward_pre_hook(
            lambda norm, inputs: seen.append(statistics_loss(inputs[0].float(), norm.running_mean, norm.running_var)))
    return seen


def check_alike(student, teacher):
    """Raises UserError where a student, a Teacher or None, takes other images than the teacher, or knows other classes."""
    facts = ('classes', 'channels', 'size', 'mean', 'std')
    if other := [f'{name} {getattr(student, name)} and not {getattr(teacher, name)}' for name in facts
                 if student and getattr(student, name) != getattr(teacher, name)]:
        raise UserError(f'--student {student.file} has {", ".join(other)}, as the teacher: give a student of this teacher')


def invert(epoch, run, teacher, student, statistics, learner):
    """The steps of one batch, or what is left of them. learner: (the images (B, channels, size, size), normalised; their optimiser)."""
    s, (images, optimizer) = run.settings, learner
    targets = torch.arange(len(images), device=images.device) % teacher.classes
    if not run.done:
        images.data.copy_(torch.randn(images.shape, generator=training.rng(s.seed, 'inversion', epoch)))
        optimizer.state.clear()
    offsets = torch.randint(-2, 3, (s.iterations, 2), generator=training.rng(s.seed, 'jitter', epoch)).tolist()
    for step in progress(range(run.done, s.iterations), desc=f'batch {epoch}/{s.epochs}', unit='step'):
        x = images.roll(offsets[step], dims=(2, 3))
        statistics.clear()
        with training.autocast(teacher.device, s.amp):
            t = teacher.net(x).float()
        terms = {'loss_ce': F.cross_entropy(t, targets), 'loss_bn': s.bn * sum(statistics), 'loss_tv': s.tv * total_variation(x),
                 'loss_l2': s.l2 * x.norm()}
        if student:
            with training.autocast(teacher.device, s.amp):
                logits = student.net(x).float()
            terms['loss_adaptive'] = s.adaptive * disagreement(logits, t)
        loss = sum(terms.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.step_done(len(images), 1.0, s.lr, loss=loss, **terms)
    return targets


@torch.no_grad()
def keep_images(folder, images, targets, teacher, first):
    """Writes the images as <number>-<class>.png; returns how many percent the teacher takes for what they were made for. first: the
    number of the first."""
    mean, std = teacher.normalise.mean, teacher.normalise.std
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).byte()
    folder.mkdir(exist_ok=True)
    for number, (image, c) in enumerate(zip(pixels.cpu(), targets.tolist()), first):
        with written_aside(folder / f'{number:06}-{c}.png') as file:
            Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, format='png')
    return 100 * (teacher.logits(pixels).argmax(dim=1) == targets).float().mean().item()


def main():
    args = parse()
    keep.stops.limit(args.max_minutes)
    device = training.pick_device(args.device, args.rank_timeout)
    if distributed.world() > 1:
        raise UserError('rivals.inversion runs as one process: leave torchrun out, or give each process a --seed and a --run of its own')
    info = DATASETS.get(args.dataset)
    teacher = load_teacher(Wanted.of(args), args.dataset, info, device, 'off', fold=False)
    teacher.measure(None)
    statistics = watch(teacher)
    student = args.student and load_teacher(args.student, args.dataset, info, device, 'off')
    check_alike(student, teacher)
    s = arguments.settle(args, recipes.INVERSION, method='inverted', dataset=teacher.dataset, teacher=teacher.digest, device=device.type,
                         student=student and student.digest, arch=teacher.arch, width=teacher.width,
                         amp=training.pick_amp(args.amp, device, 'generator'))
    s = s.replace(epochs=-(-s.images // s.batch_size))
    run = Run(s, run_name(s.dataset, 'inverted', teacher.arch, teacher.width, s.seed), device)
    arguments.say_settings(run.settings)
    if run.finished():
        return
    images = nn.Parameter(torch.zeros(s.batch_size, teacher.channels, teacher.size, teacher.size, device=device))
    optimizer = torch.optim.Adam([images], lr=s.lr)
    run.start('images', nn.ParameterList([images]), teacher.facts(), optimizer=optimizer)
    say(f'{s.epochs * s.batch_size} images out of the batch norms of {teacher.arch}')
    for epoch in run.epochs():
        targets = invert(epoch, run, teacher, student, statistics, (images, optimizer))
        run.end_epoch((None, None), keep_images(run.folder / 'images', images, targets, teacher, (epoch - 1) * s.batch_size))
    agreement = mean(row['agreement'] for row in read_rows(run.folder / 'metrics.jsonl'))  # of all images
    result = run.result('inverted', top1=None, top1_best=None, agreement=agreement, images=s.epochs * s.batch_size)
    write_json(run.folder / 'result.json', result)
    print_result(result)


if __name__ == '__main__':
    distributed.run_script(main)
