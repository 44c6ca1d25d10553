"""What a SPEC gives: a network with what is known of it; and the files whose networks give outputs alone, TorchScript, .pt2, ONNX."""

import contextlib
import hashlib
import io
import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from own.weights import plain_line
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent  # of our own code
FOLDERS = set()  # of users' code, of which something was imported


class Made(NamedTuple):
    """What a SPEC gave."""

    call: object  # a module, or a function: images (B, channels, size, size), normalised -> (B, classes)
    kind: str  # ours, builder, TorchScript, .pt2, ONNX, function: the last four give outputs alone
    facts: dict  # what its file states, with keys of networks.FACTS, and 'batch' where it takes only so many images at a time
    digest: str  # of its weights, or its file
    advice: dict = {}  # mean, std and size as the builder's package has them for its own weights
    undone: tuple = ()  # what was undone to read the weights, in words

    @property
    def black_box(self):
        return self.kind not in ('ours', 'builder')


def digest_of(*parts):
    return hashlib.sha256(b''.join(parts)).hexdigest()[:16]


def digest_of_state(net):
    return digest_of(*map(bytes_of, net.state_dict().values()))


def bytes_of(value):
    """Of an entry of a state dict: a tensor's numbers; of others, such as a quantised layer's, the file that torch makes of them."""
    if isinstance(value, torch.Tensor) and not value.is_quantized:
        return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


@contextlib.contextmanager
def told(spec, folder=None):
    """What a user's code, or a package, raises while it builds a network, is one line. folder: of the user's code, whose imports come from
    there; its resnet.py or utils.py must not be taken for ours or for another user's, so these are out of sight meanwhile."""
    path, hidden, dtype, grad = list(sys.path), {}, torch.get_default_dtype(), torch.is_grad_enabled()
    if folder:
        files = {k: Path(file) for k, m in sys.modules.items() if k != '__main__' and (file := getattr(m, '__file__', None))}
        folder = folder.resolve()
        others = {ROOT, *FOLDERS} - {folder}
        FOLDERS.add(folder)
        # such a file lies in one of these or in a package of it; an environment there, such as .venv, lies deeper
        hidden = {k: sys.modules[k] for k, file in files.items() if not others.isdisjoint((file.parent, file.parent.parent))}
        sys.path[:] = [str(folder), *(p for p in path if Path(p or '.').resolve() != ROOT), str(ROOT)]
        for name in hidden:
            del sys.modules[name]
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        what = 'install it, or name its folder in PYTHONPATH' if isinstance(e, ModuleNotFoundError) else 'call it in Python to see more'
        raise UserError(f'{spec} could not be built ({plain_line(e)}): {what}') from None
    finally:
        torch.set_default_dtype(dtype)  # a user's file may set both, for all that follows
        torch.set_grad_enabled(grad)
        sys.path[:] = path
        sys.modules.update(hidden)


# ---------------------------------------------------------------- files


def static(path, shape):
    """(batch, channels, size) of an input's shape (B, C, H, W), each where it is fixed, as facts. Raises UserError for (B, H, W, C)."""
    if len(shape) == 4 and shape[1] not in (1, 3) and isinstance(shape[1], int) and shape[3] in (1, 3):
        raise UserError(f'{path} takes images of the shape {tuple(shape[1:])}, whose channels come last: export it with channels first, or '
                        'permute them in a function of yours, file.py:FUNCTION')
    sides = dict(zip(('batch', 'channels', 'size'), shape))
    return {k: v for k, v in sides.items() if isinstance(v, int) and v > 0} if len(shape) == 4 else {}


def from_torchscript(path):
    with told(path), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that this kind is old
        net = torch.jit.load(str(path), map_location='cpu').eval().float()
    return Made(net, 'TorchScript', {}, digest_of(path.read_bytes()))


def from_export(path):
    with told(path):
        program = torch.export.load(path)
        shape = next(node.meta['val'].shape for node in program.graph.nodes
                     if node.op == 'placeholder' and node.name in program.graph_signature.user_inputs)
        module = program.module()
    # a function, since a module that is part of another is put into evaluation mode, which this kind refuses; it stays on the CPU
    facts = static(path, tuple(n if isinstance(n, int) else None for n in shape))
    if not isinstance(shape[0], int):  # as many images as its range allows, where it ends
        most = program.range_constraints[shape[0].node.expr].upper
        facts |= {'batch': int(most)} if most < 2**20 else {}
    return Made(lambda x: module(x.cpu()), '.pt2', facts, digest_of(path.read_bytes()))


def from_onnx(path):
    """onnxruntime on the CPU, with as many threads as torch."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is said in one line
    with told(path):
        session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    first, names = session.get_inputs()[0], [output.name for output in session.get_outputs()]
    dtype = {'tensor(float)': np.float32, 'tensor(float16)': np.float16, 'tensor(double)': np.float64}.get(first.type)
    if not dtype:
        raise UserError(f'{path} takes a {first.type}, where normalised images, in numbers of floating point, are expected: export it '
                        'without what comes before them')

    def call(x):
        outputs = session.run(None, {first.name: x.cpu().numpy().astype(dtype)})
        outputs = [torch.from_numpy(np.asarray(out)).to(x.device) for out in outputs]
        return dict(zip(names, outputs)) if 'logits' in names else outputs

    return Made(call, 'ONNX', static(path, first.shape), digest_of(*(file.read_bytes() for file in files_of(path))))


def files_of(path):
    """A network's file and, of ONNX, those beside it that it keeps large weights in, which it names."""
    if path.suffix != '.onnx':
        return [path]
    data = path.read_bytes()
    beside = {data[at.end() :][: at[1][0]].decode() for at in re.finditer(rb'\n\x08location\x12([\x01-\x7f])', data)}
    return [path, *(file for name in sorted(beside) if (file := path.parent / name).is_file())]


def onnxruntime():
    try:
        import onnxruntime as runtime
    except ImportError:
        raise UserError('ONNX needs the package onnxruntime: pip install onnxruntime') from None
    return runtime
