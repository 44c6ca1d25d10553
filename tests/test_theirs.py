"""Networks and weights in the forms that people bring, which this project once refused or took for something else."""

import datetime
import re
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from images import error_of
from torch import nn

from networks import save_network
from own import made, probe, spec, student, weights
from own.teacher import Wanted, load_teacher

CPU = torch.device('cpu')
CODE = '''
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=5, in_chans=3):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Folded(Net):
    def __init__(self):
        super().__init__(in_chans=12)

    def forward(self, x):
        return super().forward(F.pixel_unshuffle(x, 2))


class DepthwiseFirst(Net):
    def __init__(self, num_classes=5, in_chans=3):
        super().__init__(num_classes, in_chans)
        self.conv, self.norm, self.fc = None, None, None
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.stem = nn.Conv2d(in_chans, 16, 3)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(F.relu(self.depthwise(self.stem(x))).mean((2, 3)))


class HeadFirst(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head, self.stem, self.inside = nn.Linear(32, num_classes), nn.Conv2d(3, 8, 3), nn.Linear(8, 32)

    def forward(self, x):
        return self.head(F.relu(self.inside(self.stem(x).mean((2, 3)))))


class Extra(Net):
    def get_extra_state(self):
        return {'a': 1}

    def set_extra_state(self, state):
        assert state == {'a': 1}


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(5)


fixed = Net()
unfrozen = Net().train()


def at_random(images):
    return fixed.eval()(images)


def in_training(images):
    return unfrozen(images)


def seven(num_classes=7):
    return HeadFirst(num_classes)


def in_half():
    torch.manual_seed(0)
    return Net().half()


def parallel():
    return nn.DataParallel(Net())


def width_needed(width):
    return Net()


def pair():
    return Net(), 'best'
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'net.py').write_text(CODE)
    return tmp_path


def of(folder, name, weights=None, **how):
    path = folder / 'w.pth' if weights is not None else None
    if path:
        torch.save(weights, path)
    how = {'mean': [0.5], 'std': [0.25], 'size': 16, **how}
    name = name if '.' in name else f'net.py:{name}'
    return load_teacher(Wanted(f'{folder}/{name}', path and str(path), **how), None, None, CPU, 'off')


def state_of(folder, name):
    torch.manual_seed(0)
    return spec.make(f'{folder}/net.py:{name}').call.state_dict()


def test_a_network_that_is_left_in_training_mode_is_told_by_other_company(folder):
    assert 'batch norm' in error_of(of, folder, 'in_training') and 'eval()' in error_of(of, folder, 'in_training')


def test_a_function_around_random_weights_is_told(folder):
    assert 'random' in error_of(of, folder, 'at_random')
    (folder / 'net.py').write_text(CODE.replace('fixed = Net()', 'torch.manual_seed(0)\nfixed = Net()'))
    assert of(folder, 'at_random').classes == 5


@pytest.mark.parametrize('name', ['Net', 'Folded', 'DepthwiseFirst', 'Extra', 'parallel', 'seven'])
def test_weights_of_a_network_of_any_build_come_into_it(folder, name):
    state = state_of(folder, name)
    teacher = of(folder, name, state)
    assert teacher.channels == 3 and teacher.classes == (7 if name == 'seven' else 5) and teacher.has_features() is not None
    assert of(folder, name, state).digest == teacher.digest
    for key, value in teacher.net.call.state_dict().items():
        assert value == state[key] if isinstance(value, dict) else torch.equal(value, state[key])


def test_a_student_in_a_wrapper_is_read_again(folder):
    net = spec.make(f'{folder}/net.py:parallel').call
    facts = dict(arch=f'{folder}/net.py:parallel', width=None, classes=5, channels=3, mean=[0.5] * 3, std=[0.25] * 3, dataset='none',
                 accuracy=None, size=16)
    save_network(folder / 'student.pt', nn.DataParallel(net), facts)
    teacher = load_teacher(Wanted(f'{folder}/net.py:parallel', str(folder / 'student.pt')), None, None, CPU, 'off')
    assert torch.equal(teacher.net.call.fc.weight, net.fc.weight) and type(net).__name__ == 'Net'


def test_safetensors_come_into_a_wrapper_in_its_networks_order(folder):
    """By their names' order, z's 32 rows would be the classes."""
    save_file = pytest.importorskip('safetensors.torch').save_file
    (folder / 'net.py').write_text(CODE + """

class Named(Net):
    def __init__(self, num_classes):
        super().__init__()
        del self.fc
        self.z, self.fc = nn.Linear(16, 32), nn.Linear(32, num_classes)


def wrapped(num_classes=7):
    return nn.DataParallel(Named(num_classes))
""")
    state = spec.make(f'{folder}/net.py:wrapped', classes=5).call.state_dict()
    save_file(state, folder / 'w.safetensors')
    found = spec.make(f'{folder}/net.py:wrapped', str(folder / 'w.safetensors'))
    assert all(torch.equal(value, state[key]) for key, value in found.call.state_dict().items())


def test_half_precision_becomes_float32_and_a_users_defaults_are_put_back(folder):
    (folder / 'net.py').write_text(CODE + '\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\n')
    assert of(folder, 'in_half').logits(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).half()
    torch.jit.trace(net, torch.zeros(2, 3, 16, 16).half(), check_trace=False).save(folder / 'half.ts')
    assert of(folder, 'half.ts', channels='3').classes == 5


@pytest.mark.parametrize('name, weights, parts', [
    ('Lazy', {'conv.weight': torch.zeros(16, 3, 3, 3)}, ['lazy layers', 'run it once']),
    ('width_needed', None, ['parameters defaults']), ('pair', None, ['returns a tuple'])])
def test_a_builder_that_is_not_ready_is_told(folder, name, weights, parts):
    text = error_of(of, folder, name, weights)
    assert all(part in text for part in parts), text


def test_a_students_mistakes_name_its_flags(folder):
    for words, part in (((folder / 'w.pth', None), '--student_weights'), ((folder / 'student.pt', 'w.pth'), '--student_weights w.pth')):
        torch.save({'fc.weight': torch.zeros(2, 2)}, words[0])
        assert part in error_of(spec.make, *words, role='student')
    args = types.SimpleNamespace(arch=f'{folder}/net.py:width_needed', width=None, student_weights=None, seed=0)
    teacher = types.SimpleNamespace(arch='resnet34', classes=5, channels=3)
    assert '--student' in (text := error_of(student.make_student, args, 'resnet18', teacher, 'student')) and 'defaults' in text


def test_what_was_undone_in_a_students_weights_is_said(folder, capsys):
    torch.save({'state_dict': state_of(folder, 'Net')}, folder / 'w.pth')
    args = types.SimpleNamespace(arch=f'{folder}/net.py:Net', width=None, student_weights=str(folder / 'w.pth'), seed=0, amp='off')
    teacher = types.SimpleNamespace(arch='resnet34', classes=5, channels=3, size=16, device=CPU)
    assert student.make_student(args, 'resnet18', teacher, 'student')[1] == args.arch
    assert "taken from under 'state_dict'" in capsys.readouterr().out


@pytest.mark.parametrize('size, width', [(200_000, 8), (10**8, 64)])
def test_the_width_beside_a_file_counts_all_its_files(tmp_path, capsys, size, width):
    location = b'\n\x08location\x12\x04data'
    (tmp_path / 'net.onnx').write_bytes(location)
    (tmp_path / 'data').write_bytes(b'')
    with (tmp_path / 'data').open('r+b') as file:
        file.truncate(size)
    teacher = types.SimpleNamespace(arch='net.onnx', parameters=None, file=tmp_path / 'net.onnx', classes=10, channels=3)
    assert made.files_of(teacher.file) == [tmp_path / 'net.onnx', tmp_path / 'data']
    assert student.smaller_width('resnet18', teacher) == width
    assert ('the smallest' in capsys.readouterr().err) == (width == 8)


def test_names_that_contradict_the_teachers_file_or_come_twice_are_told():
    assert probe.read_names(['cat', 'dog'], 2, ['cat', 'dog']) == probe.read_names(['cat', 'dog'], 2, ['0', '1']) == ('cat', 'dog')
    assert "the teacher's file, dog, cat" in error_of(probe.read_names, ['cat', 'dog'], 2, ['dog', 'cat'])
    assert 'cat more than once' in error_of(probe.read_names, ['cat', 'cat', 'dog'], 3)


@pytest.mark.parametrize('shape, static', [((None, 3, 32, 32), dict(channels=3, size=32)), ((4, 32, 32, 3), None), ((2, 7), {})])
def test_channels_that_come_last_are_told(shape, static):
    if static is None:
        assert 'channels come last' in error_of(made.static, 'net.onnx', shape)
    else:
        assert made.static('net.onnx', shape) == static


def test_an_onnx_file_of_whole_numbers_is_told(tmp_path):
    for package in ('onnx', 'onnxruntime'):
        pytest.importorskip(package)
    from onnx import TensorProto, helper

    graph = helper.make_graph([helper.make_node('Cast', ['x'], ['y'], to=TensorProto.FLOAT)], 'g',
                              [helper.make_tensor_value_info('x', TensorProto.UINT8, [None, 3, 8, 8])],
                              [helper.make_tensor_value_info('y', TensorProto.FLOAT, [None, 3, 8, 8])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    (tmp_path / 'net.onnx').write_bytes(model.SerializeToString())
    assert 'tensor(uint8)' in error_of(spec.make, tmp_path / 'net.onnx')


# ---------------------------------------------------------------- weights


def test_the_only_weights_under_any_name_are_taken_and_others_are_named(folder):
    state = state_of(folder, 'Net')
    torch.save({'module': state, 'epoch': 3}, folder / 'w.pth')
    assert weights.read_weights(folder / 'w.pth').state.keys() == state.keys()
    torch.save({'state_dict': state, 'state_dict_ema': state, 'optimizer': {'state': {}}}, folder / 'w.pth')
    assert weights.read_weights(folder / 'w.pth').undone == ["taken from under 'state_dict', not 'state_dict_ema'"]


def test_weights_beside_those_of_a_loss_or_an_average_lose_their_prefix(folder):
    state = state_of(folder, 'Net')
    lightning = OrderedDict((f'{prefix}.{k}', v) for prefix in ('ema_model', 'model') for k, v in state.items())
    lightning['criterion.weight'] = torch.ones(5)
    assert torch.equal(of(folder, 'Net', {'state_dict': lightning}).net.call.fc.weight, state['fc.weight'])
    net = spec.make(f'{folder}/net.py:Net').call
    said = weights.fit(net, weights.Weights(lightning, 'w.pth', None, []))
    assert said == [f"'model.' taken off, {len(state) + 1} names without it left out"] and torch.equal(net.fc.weight, state['fc.weight'])


def test_class_names_in_an_array_are_read_and_facts_that_are_none_are_no_crash(folder):
    state = state_of(folder, 'Net')
    assert of(folder, 'Net', {'state_dict': state, 'names': np.array(['a', 'bc'])}).classes == 5
    torch.save({'facts': [1], 'state_dict': state}, folder / 'facts.pth')
    assert '--teacher_weights' in error_of(spec.make, folder / 'facts.pth')


class Odd(nn.Linear):
    """What is pickled by its name."""


@pytest.mark.parametrize('content', [Odd(2, 2), {'model': Odd(2, 2)}, {'state_dict': Odd(2, 2).state_dict(), 'when': datetime.date.today()},
                                     {'net': Odd(2, 2).state_dict(), 'optimizer': {'lr': datetime.date.today()}}])
def test_the_lines_that_convert_a_pickled_file_make_one_that_is_read(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'w.pth')
    lines = re.search(r'import torch;.*', error_of(weights.read_weights, 'w.pth'))[0]
    exec(lines)
    assert weights.read_weights('weights.pth').state.keys() == {'weight', 'bias'}
