"""The student to take away: ONNX and torch.export files, each read again and compared with the network, and what it costs to run."""

import contextlib
import copy
import functools
import io
import logging
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from networks import count_multiply_adds, count_parameters
from own.probe import scores
from own.spec import open_file
from utils import FileError, UserError, first_line, say, warn, written_aside

FORMATS = ('onnx', 'pt2')
TOLERANCE = 1e-4  # of a logit, times the greatest logit where that is above 1
BATCHES = (1, 64)  # images that latency is measured with
RUNS = 9  # of each, the median counts


class Exported(nn.Module):
    """The network with its normalisation in front: images (B, channels, size, size) in 0..1 -> logits (B, classes)."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net = net
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images):
        return self.net((images - self.mean) / self.std)


def formats(text):
    """An argparse type: names of FORMATS, with commas between. Raises UserError for others, and, before hours of training and not after
    them, for a package that is missing."""
    names = [name.strip() for name in text.split(',') if name.strip()]
    if not names or set(names) - set(FORMATS):
        raise UserError(f'--export {text}, but the formats are {", ".join(FORMATS)}: name one or more, with commas between')
    if 'onnx' in names:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as e:
            raise UserError(f'--export onnx needs the package {e.name}: pip install onnx onnxscript onnxruntime') from None
    return names


def export(folder, student, teacher, images, settings):
    """Writes student.onnx and student.pt2, as settings.export has it, to the run's folder, and says how they compare.

    images: (n, channels, size, size) uint8, to compare on. settings: export, a list of FORMATS, and export_normalise. Returns what
    the run's result keeps: of each format its file, bytes, largest difference of a logit and how many predictions differ; and
    parameters, multiply-adds and latency in ms of student and teacher. Raises UserError where the student can't be exported."""
    example = teacher.normalise(images[:2].to(teacher.device)).contiguous()
    with torch.no_grad():
        student.eval()(example)  # hooks, as of torch's prune, make weights anew: these can be copied
        net = copy.deepcopy(student).cpu().float().to(memory_format=torch.contiguous_format)
        net(example.cpu())
    for module in net.modules():
        module._forward_pre_hooks.clear()  # such weights are made, and what comes in is contiguous (own.student.contiguous)
    mean, std = (teacher.mean, teacher.std) if settings.export_normalise else ((0.0,) * teacher.channels, (1.0,) * teacher.channels)
    whole = Exported(net, mean, std).eval()
    pixels = images.cpu().float() / 255
    if not settings.export_normalise:
        pixels = (pixels - torch.tensor(teacher.mean).view(1, -1, 1, 1)) / torch.tensor(teacher.std).view(1, -1, 1, 1)
    plain = infer(whole, pixels)
    calls, kept = {'PyTorch': whole}, {}
    for name in settings.export:
        path = Path(folder) / f'student.{name}'
        try:
            with quiet(), written_aside(path, 'w+b') as file:
                WRITE[name](whole, pixels[[0, -1]], file)  # two, or torch.export takes the one for all there can be
        except FileError:
            raise
        except Exception as e:  # whatever a tracer raises for a network of others
            raise UserError(f'the student can not be exported to {name} ({first_line(e)}). Its code must hold for any '
                            'number of images: x.flatten(1) or x.size(0), not len(x). The training is kept: leave '
                            f'{name} out of --export and go on with --resume') from None
        calls[name] = functools.partial(logits_of, open_file(path).call)
        y = infer(calls[name], pixels)
        difference, other = (y - plain).abs().max().item(), int((y.argmax(dim=1) != plain.argmax(dim=1)).sum())
        kept[name] = {'file': path.name, 'bytes': path.stat().st_size, 'difference': difference, 'other_predictions': other}
        say(f'{path}: {path.stat().st_size / 1e6:.2f} MB, read again: largest difference of a logit {difference:.1e} on {len(y)} images, '
            f'{other} predictions differ')
        if difference > TOLERANCE * max(1, plain.abs().max().item()):
            warn(f'{path} is not the same function as student.pt')
    kept |= {'normalise': settings.export_normalise}
    kept |= {'input': 'images in 0..1' if settings.export_normalise else 'normalised images', 'images': len(pixels),
             'class_names': list(teacher.class_names)}
    return {'export': kept | {'cost': cost(calls, whole, teacher, pixels)}}


def logits_of(call, x):
    return scores(call(x))


@torch.no_grad()
def infer(call, pixels):
    return torch.cat([call(some) for some in pixels.split(250)])


def write_pt2(net, example, file):
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    torch.export.save(program, file)


def write_onnx(net, example, file):
    program = torch.onnx.export(net, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim('batch')},), input_names=['images'],
                                output_names=['logits'])
    file.write(program.model_proto.SerializeToString())


WRITE = {'onnx': write_onnx, 'pt2': write_pt2}


@contextlib.contextmanager
def quiet():
    """Without what the exporters print of their steps."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


# ---------------------------------------------------------------- cost


def cost(calls, whole, teacher, pixels):
    """Says and returns, for the student in every form and for the teacher as it is: parameters, multiply-adds for one image, and the
    latency in ms of a batch of each of BATCHES, the median of RUNS, on this machine. The exports run on the CPU; so does the student."""
    channels, size = pixels.shape[1], pixels.shape[2]
    student = {'params': count_parameters(whole), 'flops': count_multiply_adds(whole, channels, size)}
    rows = {f'student, {name}': student | latencies(call, pixels) for name, call in calls.items()}
    rows[f'teacher, on {teacher.device.type}'] = {'params': teacher.parameters, 'flops': teacher.multiply_adds(),
                                                  **latencies(teacher.logits, pixels.to(teacher.device))}
    for name, row in rows.items():
        numbers = ', '.join(f'{row[key]:,} {words}' for key, words in (('params', 'parameters'), ('flops', 'multiply-adds')) if row[key])
        say(f'{name}: {numbers or "size unknown"}; ' + ', '.join(f'{row[f"ms_{batch}"]:.2f} ms for {batch}' for batch in BATCHES))
    return rows


@torch.no_grad()
def latencies(call, pixels):
    """{'ms_1': ..., 'ms_64': ...}"""
    found = {}
    for batch in BATCHES:
        x, seconds = pixels[:1].expand(batch, -1, -1, -1).contiguous(), []
        for _ in range(RUNS + 2):  # two to warm up
            start = time.perf_counter()
            call(x)
            if x.device.type != 'cpu':
                torch.accelerator.synchronize(x.device)
            seconds.append(time.perf_counter() - start)
        found[f'ms_{batch}'] = round(1000 * statistics.median(seconds[2:]), 3)
    return found
