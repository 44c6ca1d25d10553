"""The student: of our networks, or from any builder, fresh or with weights to start from."""

from networks import ARCHS, LENET_WIDTH, build, count_parameters, resolve_width
from own.probe import output_kind, probe
from own.spec import make
from training import seed_init, to_device
from utils import UserError

WIDTHS = (64, 32, 16, 8)  # of a ResNet


def make_student(args, default, teacher, purpose):
    """(network on the teacher's device, arch, width or None). args: the flags; default: our architecture that --student auto stands for.
    purpose: of its random weights, with the seed. Raises UserError where it is no trainable network of the teacher's classes and size."""
    auto = args.arch in (None, 'auto')
    spec, width = default if auto else args.arch, args.width
    if auto and not width and teacher.arch not in ARCHS and spec not in LENET_WIDTH:
        width = smaller_width(spec, teacher)
    if spec in ARCHS and not args.student_weights:
        width = resolve_width(spec, width, teacher)
    seed_init(args.seed, purpose)
    made = make(spec, args.student_weights, width, teacher.classes, teacher.channels)
    if made.black_box:
        raise UserError(f'--student {spec} gives outputs alone and can not be trained: give a builder, such as resnet18 or '
                        'torchvision:mobilenet_v3_small, or a network file of ours')
    _, _, y = probe(f'--student {spec}', made.call, [teacher.channels], [teacher.size], 'cpu')
    if y.shape[1] != teacher.classes:
        raise UserError(f'--student {spec} gives {y.shape[1]} numbers an image, and the teacher has {teacher.classes} classes: build it '
                        'with as many (a function may have a parameter num_classes)')
    if output_kind(spec, y) == 'probabilities':
        raise UserError(f'--student {spec} ends with a softmax, and a student gives logits: leave its last layer out')
    arch = made.facts.get('arch', spec)
    if made.kind == 'ours':
        return to_device(made.call, teacher.device), arch, made.facts['width']
    made.call.register_forward_pre_hook(contiguous)
    return made.call.to(teacher.device), arch, None


def contiguous(_, inputs):
    """A hook: many networks of others can't read the memory format channels_last."""
    return (inputs[0].contiguous(), *inputs[1:])


def smaller_width(arch, teacher):
    """The greatest width at which our ResNet has at most half of the parameters of another's teacher, which, where nobody knows them, are
    taken to be a number of four bytes each in its file."""
    half = (teacher.parameters or teacher.file.stat().st_size / 4) / 2
    return next((w for w in WIDTHS if count_parameters(build(arch, w, teacher.classes, teacher.channels)) <= half), WIDTHS[-1])


def run_name(dataset, method, arch, width, seed):
    """Of a run's folder, where --run gives none."""
    arch = ''.join(c if c.isalnum() or c in '._' else '-' for c in arch).strip('-.')[-60:]
    return '-'.join(filter(None, (dataset, method, arch, width and f'w{width}', f's{seed}')))
