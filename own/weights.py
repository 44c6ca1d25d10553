"""Weights as people have them: any file of a state dict -> the network that it fits, or one line that says why it does not fit."""

import argparse
import collections
import pathlib
import re
import zipfile
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from networks import FACTS, LATER, wrong_values
from utils import UserError, checked, first_line

HOLDERS = ('state_dict', 'model', 'net', 'model_state_dict', 'ema')  # what a checkpoint may keep its weights under, the first one wins
PREFIXES = ('module.', '_orig_mod.', 'model.')  # DataParallel's and averaged models', torch.compile's, Lightning's
AUXILIARY = ('aux1.', 'aux2.', 'AuxLogits.')  # further heads, torchvision's GoogLeNet's and Inception's
ACCURACIES = ('best_prec1', 'best_acc1', 'best_acc', 'best_top1', 'accuracy', 'acc', 'top1', 'prec1')
SHOWN = 3  # names and shapes of each kind in an error
# what checkpoints hold beside tensors, and what only stores values when it is unpickled: NumPy's numbers, argparse's settings, paths
HARMLESS = [argparse.Namespace, collections.defaultdict, pathlib.PosixPath, np.dtype, np.ndarray,
            *(type(np.dtype(kind)) for kind in ('f8', 'f4', 'f2', 'i8', 'i4', 'u1', 'b1', 'U1')),
            *((function, f'numpy.{core}.multiarray.{name}') for core in ('core', '_core') for name, function in (
                ('scalar', np.float64(0).__reduce__()[0]), ('_reconstruct', np.zeros(1).__reduce__()[0])))]


class Weights(NamedTuple):
    """A state dict and what is known of it."""

    state: dict  # name -> tensor on the CPU; those of a float kind in float32
    file: str
    accuracy: float | None  # in 0..1, where the file states it
    undone: list  # what was undone to read it, in words
    facts: dict = {}  # of a file of ours: those of FACTS that hold for another network with these weights, too

    @property
    def stated(self):
        """The facts, with the accuracy of files of others too."""
        return {'accuracy': self.accuracy, **self.facts}

    @property
    def classes(self):
        """The rows of the last matrix, which is the classifier in nearly every network; of the last filters where there is no matrix."""
        last = {value.ndim: len(value) for value in self.state.values() if value.ndim}
        return last.get(2, last.get(4))

    @property
    def first(self):
        """The shape of the first filters, (filters, channels, height, width), or None."""
        return next((tuple(value.shape) for value in self.state.values() if value.ndim == 4), None)


def read_content(path):
    """What torch.save wrote to the file, without running anything in it. Raises UserError also for a pickled network."""
    if not pathlib.Path(path).is_file():
        raise UserError(f'no file {path}: check its path')
    try:
        if is_torchscript(path):
            raise UserError(f'{path} is a TorchScript program, network and weights in one: give it as the network itself, without weights')
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(checked(path), map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as e:  # torch.load raises a dozen kinds for a damaged file
        pickled = re.search(r"(?:GLOBAL|class|global) '?([\w.]+\.\w+)", str(e))
        if pickled:
            raise UserError(
                f'{path} holds a pickled object ({pickled[1]}) in place of plain weights, and reading it would run code, so it was not '
                f"read. If you trust it, turn it into plain weights with:  import torch;  c = torch.load('{path}', weights_only=False);  "
                f"c = c if isinstance(c, dict) else {{'model': c}};  torch.save({{k: getattr(v, 'state_dict', lambda: v)() for k, v in "
                f"c.items() if hasattr(v, 'state_dict') or torch.is_tensor(v) or k in {HOLDERS}}}, 'weights.pth')") from None
        why = plain_line(e) if 'Weights only load failed' not in str(e) else 'it is damaged, or of another kind'
        raise UserError(f'{path} can not be read as weights ({why}): give a file that torch.save or safetensors wrote, and download it '
                        'again if it may be cut off') from None


def is_torchscript(path):
    return zipfile.is_zipfile(path) and any(name.endswith('constants.pkl') for name in zipfile.ZipFile(path).namelist())


def plain_line(error):
    """An error's first line without a terminal's colours; of one within TorchScript, which begins with where it was, the last."""
    lines = str(error).strip().splitlines()
    if lines and 'TorchScript interpreter' in lines[0]:
        return lines[-1]
    return re.sub(r'\x1b\[[\d;]*m', '', first_line(error))


def read_weights(path):
    """The Weights in a file. Raises UserError where it holds none."""
    path, undone, accuracy = str(path), [], None
    content = read_safetensors(path) if path.endswith('.safetensors') else read_content(path)
    facts = content.get('facts') if isinstance(content, dict) else None
    facts = {**LATER, **facts} if isinstance(facts, dict) else {}
    if set(FACTS) - facts.keys() or wrong_values(facts):
        facts = {}
    for _ in range(3):  # such as {'model': {'state_dict': ...}}
        if not hasattr(content, 'items'):
            break
        accuracy = stated_accuracy(content) if accuracy is None else accuracy
        held = [key for key, value in content.items() if holds_tensors(value)]
        holder = next((key for key in HOLDERS if hasattr(content.get(key), 'items')), None)
        if holder is None and len(held) == 1 and not holds_tensors(content):  # under any other name
            holder = held[0]
        if holder is None:
            break
        others = [key for key in held if key != holder]
        undone.append(f'taken from under {holder!r}' + (f', not {", ".join(map(repr, others))}' if others else ''))
        content = content[holder]
    state = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if hasattr(content, 'items') else {}
    state.pop('n_averaged', None)  # torch's AveragedModel counts there
    if not state:
        what = f'a dictionary of {", ".join(map(str, list(content)[:5]))}' if hasattr(content, 'items') else type(content).__name__
        raise UserError(f'{path} holds {what}, and no weights: give a state dict, alone or under one of {", ".join(HOLDERS)}')
    kinds = sorted({str(v.dtype).removeprefix('torch.') for v in state.values() if v.is_floating_point()} - {'float32'})
    if kinds:
        undone.append(f'{" and ".join(kinds)} made float32')
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    return Weights(state, path, accuracy, undone, {k: v for k, v in facts.items() if k not in ('arch', 'width')})


def holds_tensors(content):
    return hasattr(content, 'items') and any(isinstance(value, torch.Tensor) for value in content.values())


def read_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'{path} needs the package safetensors: pip install safetensors') from None
    try:
        return load_file(path)
    except Exception as e:
        raise UserError(f'{path} can not be read as safetensors ({plain_line(e)}): check the file') from None


def stated_accuracy(content):
    """The top-1 in 0..1 that a checkpoint keeps beside its weights, or None."""
    for key in ACCURACIES:
        try:
            value = float(content[key])
        except (KeyError, TypeError, ValueError, RuntimeError):  # not there, or no single number
            continue
        if 0 < value <= 100:
            return value / 100 if value > 1 else value
    return None


def in_order_of(net, weights):
    """The Weights with their names in the network's order, which safetensors does not keep: by it the first filters and the last matrix are
    found."""
    order = {name: i for i, name in enumerate(net.state_dict() if hasattr(net, 'state_dict') else ())}

    def place(name):
        while name not in order and name.startswith(PREFIXES):
            name = name.partition('.')[2]
        return order.get(name, len(order) / 2)  # not the network's, so neither its first nor its last

    return weights._replace(state=dict(sorted(weights.state.items(), key=lambda item: place(item[0]))))


def fit(net, weights):
    """Loads the Weights into the network, in place, and returns what was undone, in words. Raises UserError where they don't fit."""
    state, whole, undone = weights.state, net.state_dict(), list(weights.undone)
    own = {k: v for k, v in whole.items() if isinstance(v, torch.Tensor)}  # a module may keep what it likes there, which stays
    if any(map(is_lazy, own.values())):
        raise UserError('it has lazy layers, whose shapes nobody knows yet: run it once on an image before it is returned')
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state) and not all(k.startswith(p) for k in own)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        undone.append(f"'{prefix}' taken off every name")
    for prefix in PREFIXES:  # beside others, such as of a loss or an average
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if own.keys() - state.keys() and own.keys() <= inside.keys():
            undone.append(f"'{prefix}' taken off, {len(state) - len(inside)} names without it left out")
            state = inside
    if heads := sorted({k.split('.')[0] for k in state.keys() - own.keys() if k.startswith(AUXILIARY)}):
        state = {k: v for k, v in state.items() if k.split('.')[0] not in heads}
        undone.append(f'{", ".join(heads)} left out, which are for training alone')
    if getattr(net, 'transform_input', None) is False:
        undone.append("transform_input is off; for torchvision's own weights, which want it, give --mean 0.5 --std 0.5")
    counters = {k for k in own.keys() - state.keys() if k.endswith('num_batches_tracked')}  # files before 2018 have none
    missing, unknown = [k for k in own if k not in state and k not in counters], [k for k in state if k not in own]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or unknown or wrong:
        kinds = [(f'{len(missing)} missing', missing), (f'{len(unknown)} unknown', unknown), (f'{len(wrong)} of another shape', [
            f'{k} {tuple(state[k].shape)} where {tuple(own[k].shape)} is expected' for k in wrong])]
        found = '; '.join(f'{title}: {", ".join(names[:SHOWN])}{", ..." if len(names) > SHOWN else ""}' for title, names in kinds if names)
        raise UserError(f'the weights in {weights.file} do not fit the network. {found}. {likely_cause(own, state, wrong)}')
    net.load_state_dict({**state, **{k: whole[k] for k in counters | (whole.keys() - own.keys())}})
    return undone


def likely_cause(own, given, wrong):
    """A sentence on why weights don't fit. own, given: state dicts; wrong: the names whose shapes differ, in the network's order."""
    first, last = (next((k for k in order if own[k].ndim == 4), None) for order in (own, [*own][::-1]))
    heads = [k for k in wrong if own[k].shape[1:] == given[k].shape[1:] and k.rsplit('.', 1)[0] == [*own][-1].rsplit('.', 1)[0]]
    if wrong and len(heads) == len(wrong):
        return f'Likely cause: another number of classes, {len(given[wrong[-1]])} in the file and {len(own[wrong[-1]])} in the network.'
    if first in wrong and given[first].ndim == 4:
        (out, channels, *kernel), (out_given, channels_given, *kernel_given) = own[first].shape, given[first].shape
        if kernel != kernel_given:
            stems = {7: "ImageNet's stem (7 x 7)", 3: "CIFAR's stem (3 x 3)"}
            there, here = (stems.get(k[0], f'a stem of {k[0]} x {k[1]}') for k in (kernel_given, kernel))
            return f"Likely cause: the file has {there}, the network {here}. torchvision's and timm's ResNets have ImageNet's, ours " \
                   "have CIFAR's."
        if channels != channels_given:
            return f'Likely cause: the file is for images of {channels_given} channels, the network for {channels}: see --channels.'
        if out != out_given and last in wrong:
            return f'Likely cause: another width, {out_given} in the file and {out} in the network: for our networks see --teacher_width ' \
                   'or --width.'
    renamed = {'downsample.': 'shortcut.', 'fc.': 'linear.'}
    if any(part in k for k in given.keys() - own.keys() for part in renamed) and any(part in k for k in own for part in renamed.values()):
        return "Likely cause: the file has torchvision's names (downsample, fc) and the network the field's (shortcut, linear)."
    if set(given) & set(own) and not wrong:
        return 'Likely cause: the same family of networks in another depth, or with parts that one of the two lacks.'
    return 'Likely cause: the weights of another network.'
