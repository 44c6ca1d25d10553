"""A SPEC, as --teacher and --student take it -> a network: a file of any kind, or a builder and its weights."""

import contextlib
import hashlib
import importlib.util
import inspect
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from arguments import nearest
from networks import ARCHS, LENET_WIDTH, RESNET_WIDTH, build, load_network, resolve_width
from own.weights import fit, in_order_of, is_torchscript, plain_line, read_content, read_weights
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent  # of our own code
FORMS = ('a network file of ours or its run\'s folder, TorchScript, .pt2, .onnx, '
         f'{", ".join(ARCHS)}, torchvision:NAME, timm:NAME, hub:DIR:ENTRY, or file.py:FUNCTION')


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


def make(spec, weights=None, width=None, classes=None, channels=None):
    """The network of a SPEC, on the CPU. weights: the file of a builder's state dict. width: of our ResNets. classes, channels: what a
    builder is to have where neither the weights nor the builder say. Raises UserError for what is no SPEC, can't be read or doesn't fit."""
    spec = str(spec)
    kind = spec.partition(':')[0]
    builder = spec in ARCHS or kind in ('torchvision', 'timm', 'hub') or '.py:' in spec
    if not builder:
        if weights:
            raise UserError(f'{spec} is a file with its own weights, so --teacher_weights {weights} means nothing there: leave it out, or '
                            'name a builder such as torchvision:resnet18')
        made = open_file(Path(spec))
        if width and made.facts.get('width') != width:
            raise UserError(f'a width of {width}, but {spec} has {made.facts.get("width") or "its own"}: leave it out')
        return made
    if width and spec not in ARCHS:
        raise UserError(f'a width of {width}, but only our ResNets have one: leave it out for {spec}')
    weights = read_weights(weights) if weights else None
    if weights and weights.file.endswith('.safetensors') and spec not in ARCHS:
        weights = in_order_of(call_builder(spec, None, None)[0], weights)
    classes = weights.classes if weights else classes
    channels = weights.first[1] if weights and weights.first else channels
    if spec in ARCHS:
        return of_ours(spec, weights, width, classes, channels)
    net, advice = call_builder(spec, classes, channels)
    code, facts = code_of(spec, net), {}
    if not isinstance(net, nn.Module):
        if weights:
            raise UserError(f'{spec} gives a function and no torch module, so {weights.file} can not be loaded into it: load it there')
        return Made(net, 'function', {}, digest_of(*code))
    cfg = getattr(net, 'pretrained_cfg', None) or {}  # timm's, and whoever follows it
    advice = {**advice, **{k: cfg[k] for k in ('mean', 'std') if cfg.get(k)}}
    if cfg.get('input_size'):
        advice['size'] = cfg['input_size'][-1]
    undone = ()
    if weights:
        undone = tuple(fit(net, weights))
        facts = {'accuracy': weights.accuracy}
    with told(spec):  # a lazy module has no weights yet
        digest = digest_of_state(net)
    return Made(net.eval(), 'builder', facts, digest_of(digest.encode(), *code) if code else digest, advice, undone)


def code_of(spec, net):
    """What tells a user's network from another one with the same weights: the function's name, and the files that it and its modules'
    `forward` are written in. Nothing of installed packages, whose versions change."""
    if spec.startswith(('torchvision:', 'timm:')):
        return []
    where, _, name = spec.removeprefix('hub:').rpartition(':')
    files = {str(Path(where, 'hubconf.py') if spec.startswith('hub:') else Path(where))}
    for kind in {type(module) for module in net.modules()} if isinstance(net, nn.Module) else ():
        if code := getattr(inspect.unwrap(kind.forward), '__code__', None):
            files.add(code.co_filename)
    return [name.encode(), *(Path(file).read_bytes() for file in sorted(files) if '-packages' not in file and Path(file).is_file())]


def digest_of(*parts):
    return hashlib.sha256(b''.join(parts)).hexdigest()[:16]


def digest_of_state(net):
    tensors = (tensor.detach().cpu().contiguous().flatten() for tensor in net.state_dict().values())
    return digest_of(*(tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors))  # NumPy has no bfloat16


# ---------------------------------------------------------------- builders


def call_builder(spec, classes, channels):
    """(what a builder that is not ours gives, its advice: see Made)."""
    kind, _, rest = spec.partition(':')
    if kind == 'torchvision':
        return from_torchvision(rest, classes, channels)
    if kind == 'timm':
        return from_timm(rest, classes, channels)
    if '.py:' in spec:
        return from_function(*spec.rsplit(':', 1), classes, channels), {}
    return from_hub(rest), {}


def of_ours(arch, weights, width, classes, channels):
    """One of our own networks; its width is the number of the weights' first filters, where there are weights."""
    if weights and weights.first and arch not in LENET_WIDTH and weights.first[0] >= RESNET_WIDTH:
        width = width or weights.first[0]
    width = resolve_width(arch, width)
    net = build(arch, width, classes or 10, channels or 3)
    undone = tuple(fit(net, weights)) if weights else ()
    facts = {'arch': arch, 'width': width, 'channels': channels or 3, 'accuracy': weights.accuracy if weights else None}
    return Made(net.eval(), 'ours', facts, digest_of_state(net), undone=undone)


@contextlib.contextmanager
def told(spec, folder=None):
    """What a user's code, or a package, raises while it builds a network, is one line. folder: of the user's code, whose imports come from
    there; its resnet.py or utils.py must not be taken for ours, so ours are out of sight meanwhile."""
    path, hidden = list(sys.path), {}
    if folder:
        files = {k: Path(getattr(m, '__file__', None) or '/') for k, m in sys.modules.items() if k != '__main__'}
        # a file of ours lies in ROOT or in a package of it; an environment in ROOT, such as .venv, lies deeper
        hidden = {k: sys.modules[k] for k, file in files.items() if ROOT in (file.parent, file.parent.parent)}
        sys.path[:] = [str(folder.resolve()), *(p for p in path if Path(p or '.').resolve() != ROOT), str(ROOT)]
        for name in hidden:
            del sys.modules[name]
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        raise UserError(f'{spec} could not be built ({plain_line(e)}): call it in Python to see more') from None
    finally:
        sys.path[:] = path
        sys.modules.update(hidden)


def from_torchvision(name, classes, channels):
    from torchvision import models

    if name not in models.list_models(models):
        hint = nearest(name, models.list_models(models)) or 'see torchvision.models.list_models()'
        raise UserError(f'torchvision:{name} is no classifier of torchvision: {hint}')
    if channels not in (None, 3):
        raise UserError(f"torchvision's networks take 3 channels, not {channels}: take timm:NAME, one of {', '.join(ARCHS)}, or "
                        'file.py:FUNCTION')
    with told(f'torchvision:{name}'):
        preset = models.get_model_weights(name).DEFAULT.transforms()
        extra = {'aux_logits': False, 'init_weights': True} if name in ('googlenet', 'inception_v3') else {}
        net = models.get_model(name, weights=None, num_classes=classes or 1000, **extra)
    return net, {'mean': tuple(preset.mean), 'std': tuple(preset.std), 'size': preset.crop_size[0]}


def from_timm(name, classes, channels):
    try:
        import timm
    except ImportError:
        raise UserError(f'timm:{name} needs the package timm: pip install timm') from None
    if not timm.is_model(name.split('.')[0]):
        raise UserError(f'timm:{name} is no network of timm: {nearest(name, timm.list_models()) or "see timm.list_models()"}')
    with told(f'timm:{name}'):
        return timm.create_model(name, pretrained=False, num_classes=classes or 1000, in_chans=channels or 3), {}


def from_hub(rest):
    folder, _, entry = rest.rpartition(':')
    if not (Path(folder) / 'hubconf.py').is_file():
        raise UserError(f'no {folder or "DIR"}/hubconf.py: hub:DIR:ENTRY takes the folder of a torch.hub repository on this machine')
    with told(f'hub:{rest}', Path(folder)):
        return torch.hub.load(folder, entry, source='local')


def from_function(file, name, classes, channels):
    """What FUNCTION of file.py returns; the function itself, where it has a parameter that must be given: it takes images then."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f'no file {file}: file.py:FUNCTION takes a Python file and a function in it')
    spec = importlib.util.spec_from_file_location(f'{path.stem} of a user', path)  # a name that no module has
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
    with told(file, path.parent):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f'{file} has no function {name}: {nearest(name, vars(module)) or "check its name"}')
    known = {'num_classes': classes, **dict.fromkeys(('in_chans', 'in_channels', 'num_channels'), channels)}
    ready = isinstance(function, (nn.Module, torch.jit.ScriptFunction))
    parameters = {} if ready else inspect.signature(function).parameters
    if ready or any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
                                              and p.name not in known for p in parameters.values()):
        return function
    with told(f'{file}:{name}', path.parent):
        return function(**{k: v for k, v in known.items() if k in parameters and v})


# ---------------------------------------------------------------- files


def open_file(path):
    """The network in a file, whose kind is known by its content. Raises UserError where it holds none."""
    if path.is_dir():  # of a run
        path = next((file for name in ('student.pt', 'teacher.pt') if (file := path / name).is_file()), path)
    if not path.is_file():
        raise UserError(f'{path} is no file and no builder: give {FORMS}. {nearest(str(path), ARCHS)}'.strip())
    if path.suffix == '.onnx':
        return from_onnx(path)
    if is_torchscript(path):
        return from_torchscript(path)
    if zipfile.is_zipfile(path) and any('archive_format' in name or name.endswith('serialized_exported_program.json')
                                        for name in zipfile.ZipFile(path).namelist()):
        return from_export(path)
    if path.suffix in ('.pt2', '.py'):
        raise UserError(f'{path} is {"no program of torch.export" if path.suffix == ".pt2" else "a Python file: add :FUNCTION"}')
    content = None if path.suffix == '.safetensors' else read_content(path)
    if not (isinstance(content, dict) and 'facts' in content):
        count = len(read_weights(path).state)
        raise UserError(f'{path} holds {count} tensors and not the network that they belong to: name it too, as --teacher SPEC '
                        f'--teacher_weights {path}, where SPEC is one of {", ".join(ARCHS)}, torchvision:NAME, timm:NAME or '
                        'file.py:FUNCTION')
    spec, state = str(content['facts'].get('arch')), content.get('state_dict')
    if ':' not in spec:
        net, facts = load_network(path)
        return Made(net, 'ours', facts, digest_of_state(net))
    if not spec.startswith(('torchvision:', 'timm:')):  # a file must not decide which code is run
        raise UserError(f'{path} holds the weights of {spec}: give {spec} itself, if you trust that code, and the '
                        'file as --teacher_weights or --student_weights')
    made = make(spec, None, None, content['facts']['classes'], content['facts']['channels'])
    with told(path):
        made.call.load_state_dict(state)
    return made._replace(facts=content['facts'], digest=digest_of_state(made.call))


def static(shape):
    """(batch, channels, size) of an input's shape (B, C, H, W), each where it is fixed, as facts."""
    sides = dict(zip(('batch', 'channels', 'size'), shape))
    return {k: v for k, v in sides.items() if isinstance(v, int) and v > 0} if len(shape) == 4 else {}


def from_torchscript(path):
    with told(path), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that this kind is old
        net = torch.jit.load(str(path), map_location='cpu').eval()
    return Made(net, 'TorchScript', {}, digest_of(path.read_bytes()))


def from_export(path):
    with told(path):
        program = torch.export.load(path)
        shape = next(node.meta['val'].shape for node in program.graph.nodes
                     if node.op == 'placeholder' and node.name in program.graph_signature.user_inputs)
        module = program.module()
    # a function, since a module that is part of another is put into evaluation mode, which this kind refuses; it stays on the CPU
    facts = static(tuple(n if isinstance(n, int) else None for n in shape))
    return Made(lambda x: module(x.cpu()), '.pt2', facts, digest_of(path.read_bytes()))


def from_onnx(path):
    """onnxruntime on the CPU, with as many threads as torch."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with told(path):
        session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    first = session.get_inputs()[0]

    def call(x):
        outputs = session.run(None, {first.name: x.cpu().numpy().astype(np.float16 if 'float16' in first.type else np.float32)})
        return [torch.from_numpy(np.asarray(out)).to(x.device) for out in outputs]

    data = path.read_bytes()  # large weights lie in files beside it, which it names
    names = {data[at.end() :][: at[1][0]].decode() for at in re.finditer(rb'\n\x08location\x12([\x01-\x7f])', data)}
    files = [file for name in sorted(names) if (file := path.parent / name).is_file()]
    return Made(call, 'ONNX', static(first.shape), digest_of(data, *(file.read_bytes() for file in files)))


def onnxruntime():
    try:
        import onnxruntime as runtime
    except ImportError:
        raise UserError('ONNX needs the package onnxruntime: pip install onnxruntime') from None
    return runtime
