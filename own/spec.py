"""A SPEC, as --teacher and --student take it -> a network: a file of any kind, or a builder and its weights."""

import importlib.util
import inspect
import os
import sys
import zipfile
from pathlib import Path

import torch
from torch import nn

from arguments import nearest
from networks import ARCHS, LENET_WIDTH, RESNET_WIDTH, build, load_network, resolve_width, unwrapped
from own.made import Made, digest_of, digest_of_state, from_export, from_onnx, from_torchscript, told
from own.weights import fit, in_order_of, is_torchscript, read_content, read_weights
from utils import UserError

FORMS = ('a network file of ours or its run\'s folder, TorchScript, .pt2, .onnx, '
         f'{", ".join(ARCHS)}, torchvision:NAME, timm:NAME, hub:DIR:ENTRY, or file.py:FUNCTION')


def make(spec, weights=None, width=None, classes=None, channels=None, role='teacher'):
    """The network of a SPEC, on the CPU, in float32. weights: the file of a builder's state dict. width: of our ResNets. classes, channels:
    what a builder is to have where neither the weights nor the builder say. role: of the network, as its flags begin. Raises UserError for
    what is no SPEC, can't be read or doesn't fit."""
    spec = str(spec)
    kind = spec.partition(':')[0]
    builder = spec in ARCHS or kind in ('torchvision', 'timm', 'hub') or '.py:' in spec
    if not builder:
        if weights:
            raise UserError(f'{spec} is a file with its own weights, so --{role}_weights {weights} means nothing there: leave it out, or '
                            'name a builder such as torchvision:resnet18')
        made = open_file(Path(spec), role)
        if width and made.facts.get('width') != width:
            raise UserError(f'a width of {width}, but {spec} has {made.facts.get("width") or "its own"}: leave it out')
        return made
    if width and spec not in ARCHS:
        raise UserError(f'a width of {width}, but only our ResNets have one: leave it out for {spec}')
    weights = read_weights(weights) if weights else None
    if weights and weights.file.endswith('.safetensors') and spec not in ARCHS:
        weights = in_order_of(call_builder(spec, weights.classes, channels)[0], weights)
    asked, classes = channels, weights.classes if weights else classes
    if weights and weights.first and weights.first[1] in (1, 3):  # others are no images': it is no first filter
        channels = weights.first[1]
    if spec in ARCHS:
        return of_ours(spec, weights, width, classes, channels)
    net, advice, undone = fitted(spec, weights, dict.fromkeys([(classes, channels), (classes, asked), (None, None)]))
    code = code_of(spec, net)
    if not isinstance(net, nn.Module):
        if weights:
            raise UserError(f'{spec} gives a function and no torch module, so {weights.file} can not be loaded into it: load it there, or, '
                            'if it builds a module, give its parameters defaults, or the names num_classes and in_chans')
        return Made(net, 'function', {}, digest_of(*code))
    cfg = getattr(net, 'pretrained_cfg', None) or {}  # timm's, and whoever follows it
    advice = {**advice, **{k: cfg[k] for k in ('mean', 'std') if cfg.get(k)}}
    if cfg.get('input_size'):
        advice['size'] = cfg['input_size'][-1]
    with told(spec):  # a lazy module has no weights yet; a program of torch.export refuses eval()
        digest = digest_of_state(net.eval().float())
    return Made(net, 'builder', weights.stated if weights else {}, digest_of(digest.encode(), *code) if code else digest, advice, undone)


def fitted(spec, weights, inputs):
    """(what a builder gives, its advice, what was undone to load the weights into it). inputs: (classes, channels) to build it with: where
    the weights, of which they were guessed, don't fit, a user's function is called with the next ones. Raises the first UserError."""
    errors = []
    for classes, channels in inputs:
        net, advice = call_builder(spec, classes, channels)
        if not (weights and isinstance(net, nn.Module)):
            return net, advice, ()
        try:
            with told(spec):
                return net, advice, tuple(fit(net, weights))
        except UserError as e:
            errors.append(e)
        if '.py:' not in spec:
            break
    raise errors[0]


def code_of(spec, net):
    """What tells a user's network from another one with the same weights: the function's name, and the files that it and its modules'
    `forward` are written in. Nothing of installed packages, whose versions change."""
    if spec.startswith(('torchvision:', 'timm:')):
        return []
    where, _, name = os.path.expanduser(spec.removeprefix('hub:')).rpartition(':')
    files = {str(Path(where, 'hubconf.py') if spec.startswith('hub:') else Path(where))}
    for kind in {type(module) for module in net.modules()} if isinstance(net, nn.Module) else ():
        if code := getattr(inspect.unwrap(getattr(kind, 'forward', None)), '__code__', None):  # TorchScript's modules have none
            files.add(code.co_filename)
    return [name.encode(), *(Path(file).read_bytes() for file in sorted(files) if '-packages' not in file and Path(file).is_file())]


# ---------------------------------------------------------------- builders


def call_builder(spec, classes, channels):
    """(what a builder that is not ours gives, its advice: see Made)."""
    kind, _, rest = spec.partition(':')
    if kind == 'torchvision':
        return from_torchvision(rest, classes, channels)
    if kind == 'timm':
        return from_timm(rest, classes, channels)
    if '.py:' in spec:
        return unwrapped(from_function(*spec.rsplit(':', 1), classes, channels)), {}
    return unwrapped(from_hub(rest)), {}


def of_ours(arch, weights, width, classes, channels):
    """One of our own networks; its width is the number of the weights' first filters, where there are weights."""
    if weights and weights.first and arch not in LENET_WIDTH and weights.first[0] >= RESNET_WIDTH:
        width = width or weights.first[0]
    width = resolve_width(arch, width)
    net = build(arch, width, classes or 10, channels or 3)
    undone = tuple(fit(net, weights)) if weights else ()
    facts = {**(weights.stated if weights else {'accuracy': None}), 'arch': arch, 'width': width, 'channels': channels or 3}
    return Made(net.eval(), 'ours', facts, digest_of_state(net), undone=undone)


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
    folder, _, entry = os.path.expanduser(rest).rpartition(':')
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
        net = function(**{k: v for k, v in known.items() if k in parameters and v})
    if not callable(net):
        raise UserError(f'{file}:{name} returns {"nothing" if net is None else f"a {type(net).__name__}"}: it is to return the network')
    return net


# ---------------------------------------------------------------- files


def open_file(path, role='teacher'):
    """The network in a file, whose kind is known by its content. role: see make. Raises UserError where it holds none."""
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
        raise UserError(f'{path} is no program of torch.export: export it again, or fetch the file itself where this one points to it'
                        if path.suffix == '.pt2' else f'{path} is a Python file: add :FUNCTION')
    content = None if path.suffix == '.safetensors' else read_content(path)
    if not (isinstance(content, dict) and isinstance(content.get('facts'), dict)):
        count = len(read_weights(path).state)
        raise UserError(f'{path} holds {count} tensors and not the network that they belong to: name it too, as --{role} SPEC '
                        f'--{role}_weights {path}, where SPEC is one of {", ".join(ARCHS)}, torchvision:NAME, timm:NAME or '
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
