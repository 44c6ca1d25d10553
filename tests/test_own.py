"""Networks, weights and classes of others: files as people have them, what a probe finds, the whole way to an exported student."""

import argparse
import contextlib
import sys
import types
from collections import OrderedDict
from unittest.mock import ANY, Mock

import numpy as np
import pytest
import torch
import torchvision
from images import error_of
from PIL import Image
from scripts import error, result, run
from torch import nn
from torch.nn.utils import prune

import training
from arguments import Parser, add_student_arguments
from data import CIFAR, DATASETS, Split
from networks import build, load_network, save_network
from own import estimate, export, made, probe, spec, weights
from own.student import check_last_batch, is_trained, make_student, run_name
from own.teacher import Teacher, Wanted, load_teacher, own_info
from selection import Selection
from utils import UserError

CPU = torch.device('cpu')
NORM = dict(mean=[0.5], std=[0.25])
# a repository of its own, with names that ours have too
CODE = '''
import warnings

import torch
import torchvision
from torch import nn

import resnet


def small(num_classes=4, in_chans=3):
    return resnet.Small(num_classes, in_chans)


def ready():
    torch.manual_seed(0)
    return small().eval()


def softmax(images):
    return ready()(images).softmax(1).detach().numpy()


def dropped():
    return nn.Sequential(small(), nn.Dropout(0.5))


class Aux(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, x):
        return (self.net(x), self.net(x)) if self.training else self.net(x)


def fixed():
    return small().requires_grad_(False)


def one_by_one():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))


def four():
    torch.manual_seed(0)
    return small(in_chans=4)


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))


def in_bfloat16():
    return ready().bfloat16()


def softened():
    return nn.Sequential(small(), nn.Softmax(1))


def fails():
    raise RuntimeError('no such luck')


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ready()

    def forward(self, x):
        return self.net(x).squeeze()


def several(images):
    return {'features': images.flatten(1), 'output': ready()(images)}


def in_place(images):
    images -= 0.5
    return ready()(images)


with warnings.catch_warnings(action='ignore'):  # the newest torch would have another way

    @torch.jit.script
    def scripted(images):
        return images.flatten(1)[:, :4]


text = 'no function'
'''
PARTS = '''
from torch import nn


class Small(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, 2)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 7 * 7, classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().view(x.size(0), -1))
'''


@pytest.fixture(scope='module')
def repo(tmp_path_factory):
    """A folder with a repository of 16 x 16 networks, their weights in every form, and wild photos."""
    folder = tmp_path_factory.mktemp('theirs')
    (folder / 'mine.py').write_text(CODE)
    (folder / 'resnet.py').write_text(PARTS)
    net = spec.make(f'{folder}/mine.py:ready').call
    state = net.state_dict()
    module = OrderedDict((f'module.{k}', v) for k, v in state.items())
    content = {
        'bare.pth': state, 'wrapped.pth': {'state_dict': module, 'best_prec1': 61.5, 'epoch': 3},
        'half.pth': {'model': {f'_orig_mod.{k}': v.half() if v.is_floating_point() else v for k, v in state.items()},
                     'acc': np.float64(0.5), 'args': argparse.Namespace(lr=0.1)},
        'lightning.ckpt': {'state_dict': {f'model.{k}': v for k, v in state.items()}, 'epoch': 1},
        'both.pth': {'net': {f'module._orig_mod.{k}': v for k, v in state.items()}, 'ema': state},
        'old_names.pth': {k: v for k, v in state.items() if 'num_batches' not in k},
    }
    for name, value in content.items():
        torch.save(value, folder / name)
    torch.save(content['wrapped.pth'], folder / 'zipless.pth', _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(4, 4), folder / 'pickled.pth')
    x = torch.randn(2, 3, 16, 16)
    torch.jit.trace(net, x).save(folder / 'net.ts')
    export.write_pt2(net, x, folder / 'net.pt2')
    torch.export.save(torch.export.export(net, (x[:1],)), folder / 'one.pt2')
    random = np.random.default_rng(0)
    (folder / 'run').mkdir()
    save_network(folder / 'run' / 'student.pt', build('resnet18', 8, 10, 3), CIFAR.facts('none', 'resnet18', 8) | {'accuracy': None})
    (folder / 'wild').mkdir()
    for i in range(60):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / 'wild' / f'{i}.png')
    return types.SimpleNamespace(folder=folder, net=net, state=state, at=lambda name: str(folder / name))


def teacher_of(repo, name, dataset=None, info=None, **how):
    return load_teacher(Wanted(repo.at(name), **{**NORM, **how}), dataset, info, CPU, 'off')


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize('name, undone, accuracy', [
    ('bare.pth', [], None), ('wrapped.pth', ['state_dict', 'module.'], 0.615), ('half.pth', ['model', '_orig_mod.', 'float16'], 0.5),
    ('lightning.ckpt', ['state_dict', 'model.'], None), ('both.pth', ['net', 'ema', 'module.', '_orig_mod.'], None),
    ('zipless.pth', ['state_dict', 'module.'], 0.615), ('old_names.pth', [], None)])
def test_weights_in_any_form_give_the_same_network(repo, name, undone, accuracy):
    net = spec.make(repo.at('mine.py:small')).call
    read = weights.read_weights(repo.at(name))
    said = weights.fit(net, read)
    assert read.accuracy == accuracy and read.classes == 4 and len(said) == len(undone) - (name == 'both.pth')
    assert all(word in ' '.join(said) for word in undone)
    tolerance = 1e-3 if 'half' in name else 0
    for key, value in repo.state.items():
        if 'num_batches' not in key:
            torch.testing.assert_close(net.state_dict()[key], value, rtol=tolerance, atol=tolerance)


def test_packages_of_an_environment_inside_our_folder_stay_while_a_users_code_is_built(repo, monkeypatch):
    package = types.ModuleType('package')
    package.__file__ = str(made.ROOT / '.venv/lib/python3/site-packages/package.py')
    monkeypatch.setitem(sys.modules, 'package', package)
    with spec.told('mine.py', repo.folder):
        assert sys.modules['package'] is package and 'resnet' not in sys.modules and 'own.spec' not in sys.modules
    assert sys.modules['own.spec'] is spec


def test_a_function_that_reads_other_weights_is_another_teacher(tmp_path):
    (tmp_path / 'f.py').write_text('import pathlib\n\n\ndef f(x):\n    scale = float(pathlib.Path(__file__).with_name("w").read_text())\n'
                                   '    return scale * x.flatten(1)[:, :4]\n')
    digests = []
    for weights_of_it in ('1', '1', '2'):
        (tmp_path / 'w').write_text(weights_of_it)
        digests.append(load_teacher(Wanted(f'{tmp_path}/f.py:f', size=16, channels='3', **NORM), None, None, CPU, 'off').digest)
    assert digests[0] == digests[1] != digests[2]


def test_code_that_was_changed_makes_another_teacher_of_the_same_weights(tmp_path):
    (tmp_path / 'net.py').write_text('from parts import Net\n\n\ndef one():\n    return Net()\n\n\ndef two():\n    return Net().train()\n')
    torch.manual_seed(0)
    torch.save(nn.Linear(3 * 16 * 16, 4).state_dict(), tmp_path / 'w.pth')

    def digest(name, code):
        (tmp_path / 'parts.py').write_text('from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self):\n        '
                                           f'super().__init__(768, 4)\n\n    def forward(self, x):\n        return {code}\n')
        sys.modules.pop('parts', None)
        return spec.make(f'{tmp_path}/net.py:{name}', str(tmp_path / 'w.pth')).digest

    same = digest('one', 'super().forward(x.flatten(1))')
    assert same == digest('one', 'super().forward(x.flatten(1))')
    assert len({same, digest('two', 'super().forward(x.flatten(1))'), digest('one', 'super().forward(x.flatten(1)).relu()')}) == 3


def test_user_code_may_hold_dataclasses(tmp_path):
    (tmp_path / 'net.py').write_text('from __future__ import annotations\n\nimport dataclasses\n\nfrom torch import nn\n\n\n'
                                     '@dataclasses.dataclass\nclass Sizes:\n    inside: int = 3\n\n\n'
                                     'def net():\n    return nn.Linear(Sizes().inside, 2)\n')
    assert spec.make(f'{tmp_path}/net.py:net').kind == 'builder'


def test_a_students_code_does_not_get_the_teachers_modules(tmp_path):
    for name, filters in (('a', 32), ('b', 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.py').write_text(f'FILTERS = {filters}\n')
        (tmp_path / name / 'net.py').write_text('from torch import nn\n\nfrom model import FILTERS\n\n\ndef net():\n'
                                                '    return nn.Conv2d(3, FILTERS, 1)\n')
    for name, filters in (('a', 32), ('b', 4), ('a', 32)):
        assert spec.make(f'{tmp_path}/{name}/net.py:net').call.out_channels == filters


@pytest.mark.parametrize('name, prefix', [
    ('torchvision:mobilenet_v2', ''), ('torchvision:squeezenet1_1', 'module.'), ('timm:mobilenetv3_small_050', ''), (None, '')])
def test_safetensors_keep_no_order_and_fit_all_the_same(repo, tmp_path, name, prefix):
    save_file = pytest.importorskip('safetensors.torch').save_file
    if name and name.startswith('timm'):
        pytest.importorskip('timm')
    name = name or repo.at('mine.py:small')
    state = repo.state if 'mine' in name else spec.make(name, classes=7).call.state_dict()
    more = {'aux1.conv.conv.weight': torch.zeros(8, 512, 1, 1)}
    save_file({prefix + k: v.contiguous() for k, v in (state | more).items()}, tmp_path / 'w.safetensors')
    made = spec.make(name, str(tmp_path / 'w.safetensors'))
    assert all(torch.equal(v, state[k]) for k, v in made.call.state_dict().items())


def test_a_prefix_that_the_network_has_itself_stays():
    net = nn.ModuleDict({'model': nn.Linear(2, 3)})
    read = weights.Weights(dict(net.state_dict()), 'w.pth', None, [])
    assert weights.fit(net, read) == []


def test_a_pickled_network_is_refused_unread_with_the_lines_that_convert_it(repo):
    text = error_of(weights.read_weights, repo.at('pickled.pth'))
    parts = ('pickled.pth', 'torch.nn', 'import torch;', 'weights_only=False', 'torch.save(')
    assert all(part in text for part in parts) and '\x1b' not in text and 'weights_only=True' not in text


OURS = dict(arch='resnet18', width=8, classes=10, channels=3)


@pytest.mark.parametrize('change, cause', [
    (dict(classes=7), 'classes, 7 in the file and 10'), (dict(width=16), 'width, 16 in the file and 8'),
    (dict(channels=1), '1 channels'), (dict(arch='resnet34'), 'depth')])
def test_weights_that_do_not_fit_name_names_shapes_and_the_likely_cause(change, cause):
    given = build(**OURS | change).state_dict()
    text = error_of(weights.fit, build(**OURS), weights.Weights(given, 'w.pth', None, []))
    assert cause in text and 'w.pth' in text and len(text) < 700
    assert ('expected' in text) == (change != dict(arch='resnet34'))


@pytest.mark.parametrize('shape', [(8, 3), (8,)])
def test_weights_of_no_filters_where_filters_are_expected_are_told(shape):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    given = {'0.weight': torch.zeros(shape), '0.bias': torch.zeros(8)}
    assert str(shape) in error_of(weights.fit, net, weights.Weights(given, 'w.pth', None, []))


def test_the_stem_and_the_names_of_torchvision_are_recognised():
    from torchvision.models import resnet18
    text = error_of(weights.fit, build(**OURS | {'width': 64}), weights.Weights(resnet18().state_dict(), 'w.pth', None, []))
    assert "ImageNet's stem (7 x 7)" in text and 'missing' in text and 'unknown' in text
    theirs = {k.replace('linear', 'fc').replace('shortcut', 'downsample'): v for k, v in build(**OURS).state_dict().items()}
    assert 'downsample' in error_of(weights.fit, build(**OURS), weights.Weights(theirs, 'w.pth', None, []))


# ---------------------------------------------------------------- specs


def test_a_network_that_works_in_place_and_a_scripted_function_are_taken_as_they_are(repo):
    teacher = teacher_of(repo, 'mine.py:in_place', size=16)
    x = torch.randn(3, 3, 16, 16)
    kept = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits(x), repo.net(kept - 0.5))
    assert torch.equal(x, kept)
    assert torch.equal(teacher_of(repo, 'mine.py:scripted', size=16, channels='3').logits(x), x.flatten(1)[:, :4])


def test_a_functions_digest_changes_with_its_weights_and_not_with_a_processors_rounding(tmp_path, monkeypatch):
    (tmp_path / 'f.py').write_text('import os\nimport torch\n\ntorch.manual_seed(0)\nW = torch.randn(768, 50)\n\n\ndef f(images):\n'
                                   "    y = images.flatten(1) @ W\n    torch.manual_seed(int(os.environ['SEED']))\n"
                                   "    y[:, -1] *= 1 - float(os.environ.get('LAST', 0))\n"
                                   "    return y * (1 + float(os.environ['BY']) * torch.randn(y.shape))\n")

    def digest(seed, by):
        monkeypatch.setenv('SEED', str(seed))
        monkeypatch.setenv('BY', str(by))
        return load_teacher(Wanted(f'{tmp_path}/f.py:f', **NORM, size=16, channels='3'), None, None, CPU, 'off').digest

    one = digest(0, 0)
    assert {digest(seed, 1e-6) for seed in range(20)} == {one} != {digest(0, 0.03)}
    monkeypatch.setenv('LAST', '1')  # another weight of the last class alone
    assert digest(0, 0) != one


@pytest.mark.parametrize('name', ['mine.py:ready', 'mine.py:softmax', 'net.ts', 'net.pt2', 'one.pt2'])
def test_a_teacher_of_any_kind_gives_the_networks_logits(repo, name):
    teacher = teacher_of(repo, name, size=16)
    images = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        plain = repo.net((images / 255 - 0.5) / 0.25)
    logits = teacher.logits(images)
    if 'softmax' in name:
        assert teacher.output == 'probabilities' and teacher.black_box
        plain = plain.log_softmax(1)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    assert (teacher.classes, teacher.channels, teacher.size, teacher.dataset) == (4, 3, 16, 'none')
    assert teacher.black_box == (name != 'mine.py:ready') and len(teacher.class_names) == 4


def test_onnx_gives_the_same_with_any_batch_and_with_one(repo, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    x = torch.randn(2, 3, 16, 16)
    with export.quiet(), open(tmp_path / 'free.onnx', 'wb') as file:
        export.write_onnx(repo.net, x, file)
        torch.onnx.export(repo.net, (x[:1],), tmp_path / 'one.onnx', dynamo=True, external_data=False)
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    plain = teacher_of(repo, 'mine.py:ready', size=16).logits(images)
    for name in ('free', 'one'):
        teacher = load_teacher(Wanted(tmp_path / f'{name}.onnx', **NORM), None, None, CPU, 'off')
        torch.testing.assert_close(teacher.logits(images), plain, rtol=1e-4, atol=1e-4)
    assert teacher.net.batch == 1


def test_onnx_weights_in_a_file_of_their_own_tell_teachers_apart(tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    files, digests = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with export.quiet():
            torch.onnx.export(nn.Sequential(nn.Flatten(), nn.Linear(300, 100)), (torch.zeros(2, 3, 10, 10),), tmp_path / 'net.onnx',
                              dynamo=True, external_data=True)
        files.append((tmp_path / 'net.onnx').read_bytes())
        digests.append(spec.make(tmp_path / 'net.onnx').digest)
    assert (tmp_path / 'net.onnx.data').is_file() and files[0] == files[1] and digests[0] != digests[1]


def test_outputs_from_another_device_come_to_that_of_the_images():
    outputs = probe.Outputs(lambda x: np.zeros((len(x), 3)), 'probabilities')
    assert outputs(torch.zeros(2, 3, 4, 4, device='meta')).device.type == 'meta'


def test_user_code_imports_its_own_files_and_ours_stay(repo):
    ours = sys.modules['resnet']
    path = list(sys.path)
    spec.make(repo.at('mine.py:ready'))
    assert sys.modules['resnet'] is ours and sys.path == path


def test_a_hub_repository_and_torchvision_are_builders(repo):
    (repo.folder / 'hubconf.py').write_text("dependencies = ['torch']\nfrom mine import small\n")
    made = spec.make(f'hub:{repo.folder}:small', repo.at('wrapped.pth'))
    assert made.kind == 'builder' and made.facts['accuracy'] == 0.615
    made = spec.make('torchvision:squeezenet1_1', classes=6)
    assert made.advice['size'] == 224 and made.advice['mean'] == (0.485, 0.456, 0.406)
    assert made.call(torch.zeros(1, 3, 64, 64)).shape == (1, 6)


def test_timm_is_a_builder_with_its_own_mean_and_size():
    pytest.importorskip('timm')
    made = spec.make('timm:resnet10t', classes=5, channels=1)
    assert made.call(torch.zeros(1, 1, 32, 32)).shape == (1, 5) and {'mean', 'std', 'size'} <= made.advice.keys()


def test_our_resnets_take_width_and_classes_from_their_weights(tmp_path):
    torch.save({'module.' + k: v for k, v in build('resnet18', 8, 7, 1).state_dict().items()}, tmp_path / 'w.pth')
    teacher = load_teacher(Wanted('resnet18', str(tmp_path / 'w.pth'), **NORM, size=32), None, None, CPU, 'off')
    assert (teacher.arch, teacher.width, teacher.classes, teacher.channels) == ('resnet18', 8, 7, 1)


@pytest.mark.parametrize('name, how, parts', [
    ('resnet19', {}, ['resnet19', 'train one', 'torchvision:NAME']), ('bare.pth', {}, ['tensors', '--teacher_weights']),
    ('mine.py', {}, [':FUNCTION']), ('mine.py:nothing', {}, ['nothing']), ('mine.py:text', {}, ['no function text']),
    ('mine.py:fails', {}, ['no such luck']), ('none.py:f', {}, ['no file']), ('net.ts', dict(weights='bare.pth'), ['its own weights']),
    ('mine.py:ready', dict(size=16, weights='pickled.pth'), ['pickled.pth', 'no file']), ('wild', {}, ['no finished', 'teacher']),
    ('net.pt2', dict(size=32), ['--size 32', '16']), ('net.pt2', dict(channels='1'), ['--channels 1', '3']),
    ('mine.py:ready', dict(size=20), ['3 x 20 x 20', '--size']), ('mine.py:ready', dict(size=16, mean=None), ['--mean', '0.485']),
    ('mine.py:ready', dict(size=16, mean=[0.1, 0.2]), ['--mean has 2 numbers', '3 channels']),
    ('mine.py:ready', dict(size=16, output='probabilities'), ['--teacher_output probabilities', 'logits']),
    ('mine.py:ready', dict(size=16, class_names=['a', 'b']), ['2 names', '4 classes']),
    ('mine.py:ready', dict(size=16, class_names=['gone.txt']), ['no file gone.txt']),
    ('mine.py:four', dict(size=16), ['4 channels', '1 or 3']), ('mine.py:Squeezed', dict(size=16), ['not one alone', 'squeeze']),
    ('mine.py:several', dict(size=16), ['features, output', 'logits']),
    ('mine.py:lazy', dict(size=16), ['lazy', 'could not be built']),
    ('run', dict(width=64), ['width of 64', 'has 8'])])
def test_a_wrong_spec_is_one_line(repo, name, how, parts, monkeypatch):
    if name == 'resnet19':
        text = error_of(load_teacher, Wanted(name, **NORM), None, None, CPU, 'off')
        parts = [part.replace('train one', 'Train one') for part in parts]
    else:
        text = error_of(teacher_of, repo, name, **how)
    assert all(part in text for part in parts), text
    assert '\n' not in text and len(text) < 700


def test_named_builders_need_weights_packages_and_known_names(monkeypatch):
    assert '--teacher_weights' in error_of(load_teacher, Wanted('torchvision:resnet18', **NORM), None, None, CPU, 'off')
    assert 'did you mean' in error_of(spec.make, 'torchvision:resnet_18')
    assert 'hubconf.py' in error_of(spec.make, 'hub:nowhere:net')
    for package, call, args in (('timm', spec.make, ['timm:resnet18']), ('onnxruntime', made.onnxruntime, []),
                                ('onnxscript', export.formats, ['onnx,pt2'])):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, package, None)
            assert 'pip install' in error_of(call, *args)
    assert 'onnx, pt2' in error_of(export.formats, 'tflite')


def test_a_file_does_not_decide_which_code_is_run(repo, tmp_path):
    facts = dict(arch=repo.at('mine.py:small'), width=None, classes=4, channels=3, mean=[0.5] * 3, std=[0.25] * 3, dataset='none',
                 accuracy=None, size=16)
    save_network(tmp_path / 's.pt', repo.net, facts)
    text = error_of(spec.make, tmp_path / 's.pt')
    assert '--teacher_weights' in text and 'if you trust that code' in text
    made = spec.make(repo.at('mine.py:small'), str(tmp_path / 's.pt'))
    assert torch.equal(made.call.fc.weight, repo.net.fc.weight)


# ---------------------------------------------------------------- what flags and files say


@pytest.mark.parametrize('dataset, size, said', [
    (None, None, 'images of 224 x 224, as torchvision:squeezenet1_1 has them: --size'),
    ('cifar10', None, 'images of 32 x 32, as the data set has them: --size'), ('cifar10', 64, '')])
def test_a_size_that_no_flag_says_is_told(dataset, size, said, tmp_path):
    torch.save(spec.make('torchvision:squeezenet1_1', classes=10).call.state_dict(), tmp_path / 'w.pth')
    wanted = Wanted('torchvision:squeezenet1_1', str(tmp_path / 'w.pth'), size=size)
    told = [note for note in load_teacher(wanted, dataset, DATASETS.get(dataset), CPU, 'off').notes if '--size' in note]
    assert len(told) == bool(said) and all(note.startswith(said) for note in told)


@pytest.mark.parametrize('mean, std, expected', [
    ((0.5,), (0.25,), (0.5, 0.25)), ((127.5,), (63.75,), (0.5, 0.25)), ((127.5,), (1.0,), (0.5, 1 / 255)), ((127.5,), (0.25,), (0.5, 0.25)),
    ((0.0,), (255.0,), (0.0, 1.0)), ((0.0,), (1.0,), (0.0, 1.0))])
def test_mean_and_std_on_the_scale_of_255_are_recognised(mean, std, expected):
    (m,), (s,), undone = probe.on_unit_scale(mean, std)
    assert (m, s) == pytest.approx(expected) and bool(undone) == ((mean, std) != ((m,), (s,)))


@pytest.mark.parametrize('kind', probe.OUTPUTS)
def test_the_kind_of_output_is_found_and_serves_as_logits(kind):
    logits = 3 * torch.randn(8, 5)
    call = {'logits': lambda x: logits, 'probabilities': lambda x: (logits.softmax(1), 'auxiliary'),
            'log_probabilities': lambda x: {'logits': logits.log_softmax(1)}}[kind]
    assert probe.output_kind('net', probe.scores(call(None))) == kind
    ours = probe.Outputs(call, kind)(torch.zeros(8, 3, 2, 2))
    torch.testing.assert_close(ours.softmax(1), logits.softmax(1))


def test_bgr_flips_the_channels_and_takes_mean_and_std_in_that_order(repo):
    flipped = teacher_of(repo, 'mine.py:ready', size=16, channels='bgr', mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    x = (images.flip(1) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(flipped.logits(images), repo.net(x), rtol=1e-4, atol=1e-4)
    assert flipped.digest != teacher_of(repo, 'mine.py:ready', size=16).digest


def test_class_folders_do_not_say_what_a_networks_input_is_normalised_with(repo):
    text = error_of(load_teacher, Wanted(repo.at('mine.py:ready'), size=16), 'folder', DATASETS['folder'], CPU, 'off')
    assert 'nobody says' in text and '--mean 0.485' in text


def test_bgr_leaves_the_order_of_what_no_flag_gave():
    wanted, made = Wanted('net', std=[0.4, 0.5, 0.6], channels='bgr'), spec.Made(None, 'builder', {}, 'd', {'mean': (0.1, 0.2, 0.3)})
    assert probe.normalisation(wanted, made, None, 3, True)[:2] == ((0.1, 0.2, 0.3), (0.6, 0.5, 0.4))


def test_a_size_that_nobody_says_is_probed_and_asked_for_where_several_fit(repo):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert '--size' in error_of(probe.probe, 'net', net, [3], [16, 32], CPU)
    assert probe.probe('net', probe.Outputs(repo.net), [1, 3], [8, 16, 32], CPU)[:2] == (3, 16)


class Sees(nn.Module):
    """Tells four classes apart by the mean of the red channel, if it is normalised by 0.5 and 0.25."""

    def forward(self, x):
        mean = (x[:, 0].mean(dim=(1, 2), keepdim=True).flatten(1) * 0.25 + 0.5) * 4 - 0.5  # (B, 1): 0 .. 3 for its class
        return -(mean - torch.arange(4.0)) ** 2


def sighted(dataset_order=(0, 1, 2, 3), flip=False, **how):
    """A Teacher of `Sees` and a test split of 40 images that it is right on, but for what is changed."""
    net = probe.Outputs(Sees())
    labels = torch.arange(40) % 4
    images = torch.full((40, 3, 8, 8), 100, dtype=torch.uint8)
    images[:, 2 if flip else 0] = (labels * 64 + 32).byte().view(-1, 1, 1)
    facts = dict(mean=(0.5,) * 3, std=(0.25,) * 3) | how
    teacher = Teacher(net, 'net', None, 4, 3, facts['mean'], facts['std'], 'none', 0.97, 'd', CPU, 'off', 'net.pt', tuple('abcd'), 8)
    return teacher, Split(images, torch.tensor(dataset_order)[labels])


@pytest.mark.parametrize('how, cause', [
    (dict(mean=(0.25,) * 3, std=(0.5,) * 3), 'swapped'), (dict(flip=True), 'BGR'),
    (dict(dataset_order=(1, 2, 3, 0)), 'order of the classes')])
def test_a_teacher_that_is_not_as_good_as_its_file_states_is_warned_of_with_the_cause(how, cause, capsys):
    teacher, test = sighted(**how)
    top1 = teacher.measure(test)
    text = capsys.readouterr().err
    assert f'{top1:.2f}' in text and '97.00' in text and cause in text.split('Likely cause')[1]
    assert sighted()[0].measure(sighted()[1]) == 100


def test_features_are_the_input_of_the_last_linear_layer_of_any_network(repo):
    teacher = teacher_of(repo, 'mine.py:ready', size=16)
    x = torch.randn(3, 3, 16, 16, requires_grad=True)
    logits, features = teacher.logits_and_features(x)
    torch.testing.assert_close(logits, features @ repo.net.fc.weight.T + repo.net.fc.bias)
    assert features.shape == (3, 294) and torch.autograd.grad(features.sum(), x)[0].abs().sum() > 0
    assert not repo.net.fc._forward_pre_hooks
    teacher.check_gradients()
    assert 'gives outputs alone' in error_of(teacher_of(repo, 'net.pt2').check_gradients)


# ---------------------------------------------------------------- student and export


def flags(*words):
    parser = Parser('')
    add_student_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(words)), seed=0, amp='off')


@pytest.mark.parametrize('words, parts', [
    (['--student', 'NETnet.pt2'], ['outputs alone']), (['--student', 'NETmine.py:ready', '--student_weights', 'NETboth.pth'], None),
    (['--student', 'torchvision:resnet18', '--width', '8'], ['width of 8']), (['--student', 'NETmine.py:softened'], ['softmax']),
    (['--student', 'NETmine.py:Aux'], ["can not be trained (AttributeError: 'tuple'"]), (['--student', 'NETmine.py:lazy'], ['lazy']),
    (['--student', 'NETmine.py:fixed'], ['can not be trained (RuntimeError']), (['--student', 'NETmine.py:Squeezed'], ['not one alone']),
    (['--student', 'NETrun', '--width', '77'], ['width of 77', 'has 8'])])
def test_a_student_is_built_for_the_teacher_or_refused(repo, words, parts):
    teacher = teacher_of(repo, 'net.pt2')
    args = flags(*(word.replace('NET', f'{repo.folder}/') for word in words))
    if parts is None:
        net, arch, width = make_student(args, 'resnet18', teacher, 'student')
        assert (arch, width) == (repo.at('mine.py:ready'), None) and torch.equal(net.fc.weight, repo.net.fc.weight)
        net(torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last))  # its view() wants contiguous images
    else:
        text = error_of(make_student, args, 'resnet18', teacher, 'student')
        assert all(part in text for part in parts), text


def test_a_last_batch_of_one_image_is_refused_where_the_student_can_not_learn_from_it(repo):
    teacher = teacher_of(repo, 'net.pt2')
    net = make_student(flags('--student', repo.at('mine.py:one_by_one')), 'resnet18', teacher, 'student')[0]
    for count, student in ((18, net), (16, net), (17, repo.net)):
        check_last_batch(student, teacher, count, 16, '--num_select')
    text = error_of(check_last_batch, net, teacher, 17, 16, '--num_select')
    assert '17 images, 16 a batch' in text and '--num_select' in text


def test_steps_that_end_before_the_last_batch_do_not_ask_for_two_images_in_it(repo, tmp_path):
    args = ['--teacher', repo.at('mine.py:softmax'), '--size', 16, '--mean', 0.5, '--std', 0.25, '--wild', repo.at('wild'), '--student',
            repo.at('mine.py:one_by_one'), '--num_select', 17, '--batch_size', 16, '--score_only']
    assert result(run('DFND-train.py', *args, '--steps', 1, cwd=tmp_path))['num_select'] == 17
    assert 'change --num_select' in error(run('DFND-train.py', *args, '--steps', 2, '--run', 'r', cwd=tmp_path, code=2))


ODD = '''
import warnings

import torch
from torch import nn

torch.manual_seed(0)
DROPOUT = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 4))
NORM = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4))


def scripted():
    with warnings.catch_warnings(action='ignore'):
        return torch.jit.script(NORM.eval())


def dropout(images):
    return DROPOUT(images)


def norm(images):
    return NORM(images)


def two(images):
    return images.flatten(1)[:, :9], images.flatten(1)[:, :4]


def percent(images):
    return 100 * images.flatten(1)[:, :4].softmax(1)


def sigmoid(images):
    return images.flatten(1)[:, :4].sigmoid()


def forgot():
    nn.Linear(48, 4)


def needs(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))


class Float32(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(48, 4)

    def forward(self, x):
        return torch.zeros(len(x), 4).index_add(1, torch.arange(4), self.fc(x.flatten(1)))
'''


@pytest.mark.parametrize('name, part', [
    ('dropout', 'dropout'), ('norm', 'batch norm'), ('two', '9 and 4 numbers'), ('percent', 'percentages'),
    ('forgot', 'returns nothing')])
def test_a_teacher_that_is_hardly_meant_is_one_line(tmp_path, name, part):
    (tmp_path / 'odd.py').write_text(ODD)
    wanted = Wanted(f'{tmp_path}/odd.py:{name}', **NORM, size=4, channels='3')
    text = error_of(load_teacher, wanted, None, None, CPU, 'off')
    assert part in text and f'odd.py:{name}' in text, text


def test_a_builder_may_need_the_number_of_classes(tmp_path):
    (tmp_path / 'odd.py').write_text(ODD)
    assert load_teacher(Wanted(f'{tmp_path}/odd.py:needs'), 'cifar10', DATASETS['cifar10'], CPU, 'off').classes == 10


def test_a_builder_of_random_weights_is_no_teacher(repo):
    text = error_of(load_teacher, Wanted(repo.at('mine.py:small'), **NORM, size=16), None, None, CPU, 'off')
    assert 'random' in text and '--teacher_weights' in text


@pytest.mark.parametrize('name, amp, note', [
    ('scripted', 'off', None), ('Float32', 'auto', 'float32'), ('sigmoid', 'off', 'a sigmoid')])
def test_what_is_odd_of_a_teacher_is_said(tmp_path, monkeypatch, name, amp, note):
    (tmp_path / 'odd.py').write_text(ODD)
    monkeypatch.setattr(training, 'has_bf16', lambda device: True)
    teacher = load_teacher(Wanted(f'{tmp_path}/odd.py:{name}', **NORM, size=4, channels='3'), None, None, CPU, amp)
    assert teacher.classes == 4 and teacher.amp == 'off'
    assert not note or any(note in line for line in teacher.notes)
    teacher.logits(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_a_student_that_can_not_train_in_bfloat16_is_told_to_leave_it(tmp_path, repo):
    (tmp_path / 'odd.py').write_text(ODD)
    teacher = types.SimpleNamespace(channels=3, classes=4, size=4, arch='net', device=CPU)
    words = ['--student', f'{tmp_path}/odd.py:Float32']
    assert make_student(flags(*words), 'resnet18', teacher, 'student')
    args = argparse.Namespace(**vars(flags(*words)) | {'amp': 'bf16'})
    assert '--amp off' in error_of(make_student, args, 'resnet18', teacher, 'student')


def test_weights_of_our_file_bring_their_facts_to_another_builder(repo, tmp_path):
    facts = {'arch': f'{repo.at("mine.py")}:ready', 'width': None, 'classes': 4, 'channels': 3, 'mean': [0.4, 0.5, 0.6],
             'std': [0.1, 0.2, 0.3], 'dataset': 'none', 'accuracy': 0.5, 'size': 16, 'class_names': ['a', 'b', 'c', 'd']}
    save_network(tmp_path / 'student.pt', repo.net, facts)
    teacher = load_teacher(Wanted(repo.at('mine.py:small'), str(tmp_path / 'student.pt')), None, None, CPU, 'off')
    assert (teacher.mean, teacher.std, teacher.size, teacher.class_names) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 16, tuple('abcd'))
    assert teacher.accuracy == 0.5 and teacher.arch == repo.at('mine.py:small')


def test_of_a_function_the_students_width_is_asked_for(repo):
    teacher = teacher_of(repo, 'mine.py:softmax', size=16, channels='3')
    assert '--width' in error_of(make_student, flags(), 'resnet18', teacher, 'student')
    assert make_student(flags('--width', '8'), 'resnet18', teacher, 'student')[1:] == ('resnet18', 8)


def test_torchvisions_heads_of_training_are_left_out():
    net = torchvision.models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    own = spec.make('torchvision:googlenet', classes=5).call
    undone = weights.fit(own, weights.Weights(net.state_dict(), 'file', None, []))
    assert 'aux1, aux2 left out' in undone[0] and '--mean 0.5 --std 0.5' in undone[1]
    assert torch.equal(own.fc.weight, net.fc.weight)


def test_names_of_classes_in_any_encoding(tmp_path):
    for name, encoding in (('a', 'utf-8'), ('b', 'utf-8-sig'), ('c', 'utf-16')):
        (tmp_path / name).write_text('café\n\n b \n', encoding=encoding)
        assert probe.read_names([str(tmp_path / name)], 2) == ('café', 'b')
    (tmp_path / 'd').write_text('café\nb', encoding='latin-1')
    assert 'UTF-8' in error_of(probe.read_names, [str(tmp_path / 'd')], 2)


def test_the_default_student_is_smaller_than_a_teacher_of_others(repo):
    teacher = teacher_of(repo, 'mine.py:ready', size=16)
    assert make_student(flags(), 'resnet18', teacher, 'student')[1:] == ('resnet18', 8)
    assert run_name('none', 'dfnd', './a/b.py:net', None, 3) == 'none-dfnd-a-b.py-net-s3'


@pytest.mark.parametrize('normalise, count', [(True, 70), (False, 70), (True, 1)])
def test_an_export_is_the_student_behind_its_normalisation(repo, tmp_path, normalise, count):
    names = ['pt2']
    with contextlib.suppress(UserError):
        names = export.formats('onnx,pt2')
    teacher, student = teacher_of(repo, 'mine.py:ready', size=16), spec.make(repo.at('mine.py:ready')).call
    images = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)
    settings = types.SimpleNamespace(export=names, export_normalise=normalise)
    kept = export.export(tmp_path, student, teacher, images, settings)['export']
    x = images / 255 if normalise else teacher.normalise(images).contiguous()
    for name in names:
        call = spec.open_file(tmp_path / f'student.{name}').call
        with torch.no_grad():
            expected = student(teacher.normalise(images[:5]).contiguous())
            torch.testing.assert_close(export.logits_of(call, x[:5]), expected, rtol=1e-4, atol=1e-4)
        assert kept[name]['difference'] < 1e-4 and kept[name]['other_predictions'] == 0 and kept[name]['bytes'] > 4000
    cost = kept['cost']['student, pt2']
    assert cost['params'] == sum(p.numel() for p in student.parameters()) and cost['ms_64'] > 0


def test_a_student_that_was_pruned_is_exported_after_its_last_step(repo, tmp_path):
    teacher, student = teacher_of(repo, 'mine.py:ready', size=16), spec.make(repo.at('mine.py:ready')).call.train()
    prune.l1_unstructured(student.fc, 'weight', 0.5)
    student(torch.randn(4, 3, 16, 16)).sum().backward()
    images = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8)
    export.export(tmp_path, student, teacher, images, types.SimpleNamespace(export=['pt2'], export_normalise=True))
    with torch.no_grad():
        expected = student(teacher.normalise(images).contiguous())
        torch.testing.assert_close(spec.open_file(tmp_path / 'student.pt2').call(images / 255), expected)


def test_a_teacher_of_a_data_set_of_ones_own_is_measured_on_class_folders(tmp_path):
    facts = CIFAR.facts('flowers', 'resnet18', 8) | {'classes': 3, 'class_names': list('abc'), 'accuracy': None}
    save_network(tmp_path / 't.pt', build('resnet18', 8, 3, 3), facts)
    assert load_teacher(tmp_path / 't.pt', None, None, CPU, 'off').dataset == 'flowers'
    assert load_teacher(tmp_path / 't.pt', 'folder', DATASETS['folder'], CPU, 'off').dataset == 'folder'


def test_a_black_box_and_a_pool_are_enough(repo, tmp_path):
    args = ['--teacher', repo.at('mine.py:softmax'), '--size', 16, '--mean', 127.5, '--std', 63.75, '--wild', repo.at('wild'),
            '--class_names', *'abcd', '--num_select', 20, '--batch_size', 10, '--epochs', 2, '--loss', 'kd+nll']
    done = run('DFND-train.py', *args, '--student', repo.at('mine.py:small'), '--export', 'pt2', '--run', 'r', cwd=tmp_path)
    r = result(done)
    assert done.stdout.startswith('teacher ') and 'accuracy unknown; 4 classes, 3 x 16 x 16' in done.stdout
    assert r['top1'] is None and 0 <= r['agreement'] <= 100 and 0.25 < r['teacher_acc'] <= 1
    assert r['export']['pt2']['difference'] < 1e-4 and r['dataset'] == 'none'
    facts = torch.load(tmp_path / 'runs/r/student.pt', weights_only=True)['facts']
    assert (facts['class_names'], facts['size'], facts['mean'][0]) == (list('abcd'), 16, pytest.approx(0.5))
    args += '--student', repo.at('mine.py:small'), '--stream', '--run', 's'
    again = result(run('DFND-train.py', *args, cwd=tmp_path))
    assert again['teacher_acc'] == pytest.approx(r['teacher_acc']) and 0 <= again['agreement'] <= 100
    (tmp_path / 'runs/s/previous.pt').unlink(missing_ok=True)
    last = (tmp_path / 'runs/s/last.pt').rename(tmp_path / 'last.pt')  # without a saved state it would be trained again
    refused = run('DFND-train.py', *args, '--resume', '--export', 'pt2', cwd=tmp_path)
    assert 'is not exported' in refused.stderr and result(refused) == again
    last.rename(tmp_path / 'runs/s/last.pt')
    late = result(run('DFND-train.py', *args, '--resume', '--export', 'pt2', cwd=tmp_path))  # of a finished run
    assert late['seconds'] == again['seconds']
    assert late['export']['class_names'] == list('abcd') and (tmp_path / 'runs/s/student.pt2').is_file()
    (tmp_path / 'runs/s/student.pt2').unlink()
    assert result(run('DFND-train.py', *args, '--resume', '--export', 'pt2', cwd=tmp_path)) == late | {'export': ANY}
    assert (tmp_path / 'runs/s/student.pt2').is_file()
    plain = result(run('DFND-train.py', *args, '--resume', '--export', 'pt2', '--no-export_normalise', cwd=tmp_path))
    assert (late['export']['input'], plain['export']['input']) == ('images in 0..1', 'normalised images')
    assert [late[key] for key in ('steps', 'agreement', 'images_seen')] == [again[key] for key in ('steps', 'agreement', 'images_seen')]


def test_only_stated_names_are_passed_on(repo):
    info = DATASETS['folder']._replace(mean=(0.5,) * 3, std=(0.25,) * 3)
    for names in (None, list('3210')):
        teacher = teacher_of(repo, 'mine.py:softmax', 'folder', info, size=16, class_names=names)
        assert own_info(teacher).names == tuple(names or ()) and teacher.facts()['class_names'] == names
        assert teacher.class_names == tuple(names or '0123')


@pytest.mark.parametrize('words, trained', [
    ([], False), (['--student', 'resnet18'], False), (['--student', 'NETmine.py:ready'], False), (['--student', 'NETrun'], True),
    (['--student', 'NETmine.py:ready', '--student_weights', 'NETboth.pth'], True)])
def test_a_student_starts_trained_where_its_weights_are_given(repo, words, trained):
    assert is_trained(flags(*(word.replace('NET', f'{repo.folder}/') for word in words))) is trained


def test_no_copy_of_a_selected_image_is_held_out():
    images = torch.arange(80, dtype=torch.uint8).view(40, 1, 1, 2)
    teacher = types.SimpleNamespace(device=torch.device('cpu'), logits=lambda x: torch.nn.functional.one_hot(x[:, 0, 0, 0].long() % 10, 10))
    pool = type('Pool', (), {'take': lambda self, rows: torch.cat([images, images])[np.asarray(rows)], '__len__': lambda self: 80})()
    selection = Selection(pool, np.arange(30), np.zeros(30), np.zeros(30, int), np.ones(10), 0.0)
    held = estimate.held_out(selection, pool, None, teacher, 0)
    assert sorted(held.images[:, 0, 0, 0].tolist()) == sorted(2 * images[30:, 0, 0, 0].tolist())
    everything = selection._replace(chosen=np.arange(40))
    assert estimate.held_out(everything, pool, None, teacher, 0) is None


def test_an_estimate_is_made_once_for_a_run(repo, tmp_path, monkeypatch):
    made = Mock(side_effect=[0.8, 0.7])
    monkeypatch.setattr(estimate, 'estimate', made)
    assert [estimate.estimated_accuracy(tmp_path, None, None, None) for _ in range(2)] == [0.8, 0.8] and made.call_count == 1
    (tmp_path / 'estimate.json').write_text('{"teacher_')
    assert [estimate.estimated_accuracy(tmp_path, None, None, None) for _ in range(2)] == [0.7, 0.7] and made.call_count == 2


def test_dafl_takes_a_network_of_others_and_refuses_a_black_box(repo, tmp_path):
    args = ['--size', 16, '--mean', 0.5, '--std', 0.25, '--epochs', 1, '--epoch_steps', 2, '--batch_size', 4, '--latent_dim', 8]
    r = result(run('DAFL-train.py', '--teacher', repo.at('mine.py:ready'), *args, '--width', 8, '--export', 'pt2', cwd=tmp_path))
    assert (r['method'], r['dataset'], r['arch'], r['width']) == ('dafl', 'none', 'resnet18', 8) and 'pt2' in r['export']
    assert 'outputs alone' in error(run('DAFL-train.py', '--teacher', repo.at('net.ts'), *args, cwd=tmp_path, code=2))


def test_a_student_of_a_known_builder_is_a_teacher_again(tmp_path):
    net = spec.make('torchvision:squeezenet1_1', classes=10).call
    save_network(tmp_path / 's.pt', net, dict(CIFAR.facts('cifar10', 'torchvision:squeezenet1_1', None), accuracy=0.1))
    teacher = load_teacher(tmp_path / 's.pt', None, None, CPU, 'off')
    assert (teacher.dataset, teacher.classes, teacher.size) == ('cifar10', 10, 32) and teacher.class_names == CIFAR.names
    assert 'not a network' in error_of(load_network, tmp_path / 's.pt')
