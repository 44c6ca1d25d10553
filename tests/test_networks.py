"""The networks beside known counts, torchvision's blocks and the published layers; the files they are kept in; the Teacher."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import error_of
from torch import nn
from torchvision.models import resnet as theirs

import networks
import training
from data import MNIST, Split
from generator import Generator, upsampled_conv
from lenet import LeNet5, LeNet5Half
from networks import build, count_multiply_adds, count_parameters, find_teacher, load_network, resolve_width, save_network
from own.teacher import load_teacher
from paper.bench_tables import STUDENT_FLOPS, TEACHER_FLOPS
from resnet import ResNet18, ResNet34
from utils import UserError

CPU = torch.device('cpu')


def randomise(net, seed=0):
    """Random batch norm weights and statistics too, so that none of them is left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.dtype == torch.float32 and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if 'var' in name or 'weight' in name else 0))
    return net


@pytest.mark.parametrize('make, classes, parameters, multiply_adds', [
    (ResNet34, 100, 21_328_292, 1_159_402_496 + 90 * 512),
    (ResNet34, 10, 21_328_292 - 90 * 513, TEACHER_FLOPS // 2),  # what the benchmarks and the plan reckon with
    (ResNet18, 100, 11_220_132, 555_422_720 + 90 * 512),
    (ResNet18, 10, 11_220_132 - 90 * 513, STUDENT_FLOPS // 2),
    (LeNet5, 10, 61_706, 416_520),
    (LeNet5Half, 10, 15_738, 133_740),
])
def test_sizes_are_the_papers_and_counting_leaves_mode_statistics_and_hooks_alone(make, classes, parameters, multiply_adds):
    net = make(classes)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert count_parameters(net) == parameters
    assert count_multiply_adds(net, channels=net.conv1.in_channels) == multiply_adds
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_width_32_halves_every_channel():
    wide, narrow = ResNet18(width=64).state_dict(), ResNet18(width=32).state_dict()
    for name, value in wide.items():
        stays = [name.startswith('linear'), name == 'conv1.weight', True, True]  # the classes, and the image's channels, stay
        assert list(narrow[name].shape) == [n if same else n // 2 for n, same in zip(value.shape, stays)], name


@pytest.mark.parametrize('make, blocks', [(ResNet18, [2, 2, 2, 2]), (ResNet34, [3, 4, 6, 3])])
@pytest.mark.parametrize('train', [False, True])
def test_a_resnet_is_torchvisions_with_a_small_stem_and_the_fields_names(make, blocks, train, monkeypatch):
    monkeypatch.setattr(nn.init, 'kaiming_normal_', lambda *a, **k: None)  # theirs draws weights that ours replace
    ours = randomise(make(10, 3, 64))
    reference = theirs.ResNet(theirs.BasicBlock, blocks, num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    names = {k.replace('downsample', 'shortcut').replace('fc', 'linear'): k for k in reference.state_dict()}
    reference.load_state_dict({names[k]: v for k, v in ours.state_dict().items()})
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = reference.train(train)(x)
        for logits in (ours.train(train)(x), ours(x, out_feature=True)[0]):
            torch.testing.assert_close(logits, plain, rtol=1e-3, atol=1e-4)
        reference.fc = nn.Identity()
        torch.testing.assert_close(ours(x, out_feature=True)[1], reference(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('make, classes, channels', [(LeNet5, 10, 1), (LeNet5Half, 7, 3)])
def test_lenet_equals_its_layers_one_after_another(make, classes, channels):
    torch.manual_seed(0)
    net, x = make(classes, channels), torch.randn(3, channels, 32, 32)
    features = nn.Sequential(net.conv1, nn.ReLU(), nn.MaxPool2d(2), net.conv2, nn.ReLU(), nn.MaxPool2d(2), net.conv3, nn.ReLU(),
                             nn.Flatten())(x)
    plain = net.fc2(net.fc1(features).relu())
    assert plain.shape == (3, classes)
    torch.testing.assert_close((net(x), *net(x, out_feature=True)), (plain, plain, features))


@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (1, 2, 1, 1), (2, 3, 7, 3)])
def test_an_upsampled_convolution_equals_interpolation_then_convolution(shape):
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 7, 3, padding=1).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    plain, ours = conv(nn.functional.interpolate(x, scale_factor=2)), upsampled_conv(x, conv)
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('size, channels', [(32, 1), (32, 3), (16, 3)])
def test_generator_equals_the_published_layers_with_eps_of_0_8(size, channels):
    torch.manual_seed(0)
    g, z = randomise(Generator(size, 20, channels)), torch.randn(5, 20)
    published = nn.Sequential(
        nn.BatchNorm2d(128), nn.Upsample(scale_factor=2), nn.Conv2d(128, 128, 3, stride=1, padding=1), nn.BatchNorm2d(128, 0.8),
        nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), nn.Conv2d(128, 64, 3, stride=1, padding=1), nn.BatchNorm2d(64, 0.8),
        nn.LeakyReLU(0.2), nn.Conv2d(64, channels, 3, stride=1, padding=1), nn.Tanh(), nn.BatchNorm2d(channels, affine=False))
    for number, ours in zip((0, 2, 3, 6, 7, 9, 11), (g.bn0, g.conv1, g.bn1, g.conv2, g.bn2, g.conv3, g.bn3)):
        published[number].load_state_dict(ours.state_dict())
    assert (g.bn0.eps, g.bn1.eps, g.bn2.eps, g.bn3.eps) == (1e-5, 0.8, 0.8, 1e-5) and not g.bn3.affine
    torch.testing.assert_close(g(z), published(g.linear(z).view(5, 128, size // 4, size // 4)), rtol=1e-3, atol=1e-4)
    assert g(z).shape == (5, channels, size, size)


# ---------------------------------------------------------------- files


def save(path, net=None, arch='lenet5half', width=3, **facts):
    """Saves a network of MNIST's, a LeNet-5-Half unless given, and returns its facts."""
    facts = MNIST.facts('MNIST', arch, width) | {'accuracy': 0.5} | facts
    save_network(path, LeNet5Half() if net is None else net, facts)
    return facts


def save_wrong(path, net=None, arch='lenet5half', width=3, **facts):
    """The same for facts that save_network refuses, as a file by another hand may have them."""
    facts = MNIST.facts('MNIST', arch, width) | {'accuracy': 0.5} | facts
    torch.save({'facts': facts, 'state_dict': (net or LeNet5Half()).state_dict()}, path)


@pytest.mark.parametrize('arch', networks.ARCHS)
def test_a_saved_network_is_plain_tensors_and_facts_that_rebuild_it_bit_by_bit(arch, tmp_path):
    torch.manual_seed(0)
    width = resolve_width(arch, 8 if arch.startswith('resnet') else None)
    net = randomise(build(arch, width, 6, 3)).to(memory_format=torch.channels_last)
    facts = MNIST.facts('MNIST', arch, width) | {'classes': 6, 'channels': 3, 'accuracy': None, 'mean': [0.4, 0.5, 0.5], 'std': [0.2] * 3}
    save_network(tmp_path / 'net.pt', net, facts | {'unknown': 'left out'})
    content = torch.load(tmp_path / 'net.pt', weights_only=True)
    assert set(content) == {'facts', 'state_dict'} and set(content['facts']) == set(networks.FACTS)
    assert os.listdir(tmp_path) == ['net.pt']  # no half-written file beside it
    loaded, read = load_network(tmp_path / 'net.pt')
    assert read == networks.LATER | facts and not loaded.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net.eval()(x), rtol=1e-4, atol=1e-4)
    for wrong, error in (({'mean': facts['mean']}, UserError), (facts | {'accuracy': lambda: 0}, Exception)):  # in the midst of it
        with pytest.raises(error):
            save_network(tmp_path / 'net.pt', net, wrong)
        assert load_network(tmp_path / 'net.pt')[1] == networks.LATER | facts


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile, lambda net: nn.DataParallel(torch.compile(net))])
def test_numbers_of_numpy_and_networks_in_a_wrapper_are_saved_as_plain_ones(wrap, tmp_path):
    net = randomise(LeNet5Half())
    save(tmp_path / 'net.pt', wrap(net), accuracy=np.float64(0.91), mean=np.array([0.5]), std=[torch.tensor(0.25)])
    loaded, facts = load_network(tmp_path / 'net.pt')
    assert (facts['accuracy'], facts['mean'], facts['std']) == (0.91, [0.5], [0.25]) and type(facts['accuracy']) is float
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize('facts, part', [
    ({'mean': 0.5}, 'mean=0.5'), ({'std': [0.5, 0.5]}, 'one float a channel'), ({'accuracy': 91}, 'accuracy=91'),
    ({'accuracy': 'x'}, "'x'"),
    ({'arch': 'lenet5', 'width': 6}, 'no lenet5 of width 6'), ({'classes': 7}, 'is another'), ({'channels': 3}, 'mean=')])
def test_what_could_not_be_read_again_is_not_written(facts, part, tmp_path):
    assert part in error_of(save, tmp_path / 'net.pt', **facts)
    assert not (tmp_path / 'net.pt').exists()


class Trap:
    """What makes a file when it is unpickled."""

    def __reduce__(self):
        return open, ('trapped', 'w')


def saved(content):
    return lambda path: torch.save(content, path)


def written(change):
    return lambda path: (save(path), path.write_bytes(change(path.read_bytes())))


@pytest.mark.parametrize('write', [
    pytest.param(saved(LeNet5Half()), id='a pickled module, as published'),
    pytest.param(saved(Trap()), id='a pickle that runs code'),
    pytest.param(written(lambda _: pickle.dumps({'a': 1})), id='a pickle'),
    pytest.param(saved(LeNet5Half().state_dict()), id='weights without facts'),
    pytest.param(saved(torch.zeros(3)), id='a tensor'),
    pytest.param(saved([1, 2]), id='a list'),
    pytest.param(written(lambda _: b''), id='an empty file'),
    pytest.param(written(lambda _: b'\x00\x01garbage\xff' * 99), id='garbage bytes'),
    pytest.param(written(lambda _: b'text that is no network\n'), id='a text file'),
    pytest.param(written(lambda all: all[: int(0.9 * len(all))]), id='a file that broke off'),
    pytest.param(written(lambda all: all[: len(all) // 100]), id='a file that broke off at its start'),
    pytest.param(lambda path: save_wrong(path, classes=7), id='facts of other classes'),
    pytest.param(lambda path: save_wrong(path, arch='lenet5', width=6), id='facts of another size'),
    pytest.param(lambda path: save_wrong(path, arch='alexnet'), id='facts of an unknown architecture'),
    pytest.param(lambda path: save_wrong(path, arch='resnet18', width=None), id='facts without a width'),
])
@pytest.mark.filterwarnings('ignore')
def test_what_is_no_network_is_told_in_one_line_and_never_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'net.pt')
    assert 'none.pt' in error_of(load_network, tmp_path / 'none.pt')
    text = error_of(load_network, tmp_path / 'net.pt')
    assert str(tmp_path / 'net.pt') in text and 'teacher-train.py' in text and 'save_network' in text and len(text) < 500
    assert os.listdir() == ['net.pt']


def teacher_of(tmp_path, arch, width, amp='off'):
    """A Teacher of random weights, and its network as it was saved, in evaluation mode."""
    torch.manual_seed(0)
    net = randomise(build(arch, width, 10, 1)).eval()  # batch norms whose folding would show
    save(tmp_path / 'teacher.pt', net, arch, width, accuracy=0.9523)
    return load_teacher(tmp_path / 'teacher.pt', 'MNIST', MNIST, CPU, amp), net


@pytest.mark.parametrize('arch, width, teacher, expected', [
    ('resnet18', None, None, 64), ('resnet34', 16, None, 16), ('lenet5', None, None, 6), ('lenet5', 6, None, 6),
    ('lenet5half', None, None, 3), ('resnet18', None, ('resnet34', 32), 32), ('resnet18', 16, ('resnet34', 32), 16),
    ('resnet18', None, ('lenet5', 6), 64), ('lenet5half', None, ('resnet34', 8), 3),
])
def test_width_is_the_teachers_or_the_published_one_unless_given(arch, width, teacher, expected):
    assert resolve_width(arch, width, teacher and SimpleNamespace(arch=teacher[0], width=teacher[1], size=32)) == expected


@pytest.mark.parametrize('arch, width, teacher, parts', [
    ('lenet5half', 6, None, ('6', 'lenet5half')), ('resnet18', 4, None, ('4', 'resnet18', '8')),
    ('resnet18', None, SimpleNamespace(arch='resnet34', width=4, size=32), ('4', 'resnet18', '8'))])
def test_a_width_that_a_network_can_not_have_is_refused(arch, width, teacher, parts):
    text = error_of(resolve_width, arch, width, teacher)
    assert '--width' in text and all(part in text for part in parts)


@pytest.mark.parametrize('how', [{'size': 64}, {'teacher': SimpleNamespace(arch='resnet18', width=8, size=64)}])
def test_a_lenet_takes_32_pixels_alone(how):
    assert '--size 32' in error_of(resolve_width, 'lenet5', None, **how) and resolve_width('resnet18', 16, **how) == 16


def test_a_file_knows_size_and_class_names_and_an_old_one_means_32(tmp_path):
    facts = MNIST.facts('MNIST', 'resnet18', 8) | {'accuracy': None, 'size': 64}
    for file, left_out in (('new.pt', ()), ('old.pt', ('size', 'class_names'))):
        save_network(tmp_path / file, build('resnet18', 8, 10, 1), {k: v for k, v in facts.items() if k not in left_out})
    content = torch.load(tmp_path / 'old.pt', weights_only=True)
    del content['facts']['size'], content['facts']['class_names']
    torch.save(content, tmp_path / 'older.pt')
    for file, size, names in (('new.pt', 64, tuple('0123456789')), ('old.pt', 32, None), ('older.pt', 32, None)):
        assert load_network(tmp_path / file)[1]['size'] == size
        teacher = load_teacher(tmp_path / file, 'MNIST', MNIST._replace(names=()), CPU, 'off')
        assert teacher.size == teacher.facts()['size'] == size and teacher.class_names == (names or tuple(map(str, range(10))))
        x = torch.zeros(2, 1, size, size, dtype=torch.uint8)
        assert teacher.logits(x).shape == (2, 10) and count_multiply_adds(teacher.net, 1, 64) > 3.9 * count_multiply_adds(teacher.net, 1)


# ---------------------------------------------------------------- find_teacher


def make_run(output, name, dataset='MNIST', finished=True, kind='teacher'):
    (output / name).mkdir(parents=True)
    save(output / name / f'{kind}.pt', dataset=dataset)
    if finished:
        (output / name / 'result.json').write_text('{}')
    return output / name / f'{kind}.pt'


def test_find_teacher_takes_the_file_the_runs_folder_and_the_output_folder(tmp_path):
    path, other = make_run(tmp_path, 'a'), make_run(tmp_path, 'other', dataset='FashionMNIST')
    make_run(tmp_path, 'unfinished', finished=False)
    student = make_run(tmp_path, 'student', kind='student')
    assert find_teacher(path, 'MNIST') == find_teacher(path.parent, 'MNIST') == find_teacher(str(tmp_path), 'MNIST') == path
    assert find_teacher(tmp_path, 'FashionMNIST') == other
    assert find_teacher(tmp_path / 'student', 'MNIST') == student  # where it is asked for


@pytest.mark.parametrize('where', ['', 'not here', 'unfinished'])
def test_no_teacher_yet_names_the_command_that_trains_one(where, tmp_path):
    make_run(tmp_path / 'unfinished', 'a', dataset='cifar10', finished=False)
    make_run(tmp_path / 'unfinished', 'b', dataset='MNIST')
    text = error_of(find_teacher, tmp_path / where, 'cifar10')
    assert 'python teacher-train.py --dataset cifar10' in text and str(tmp_path / where) in text and text.endswith('with --teacher')


def test_two_teachers_are_both_listed(tmp_path):
    a, b, unfinished = (make_run(tmp_path, name, finished=name != 'c').parent for name in 'abc')
    text = error_of(find_teacher, tmp_path, 'MNIST')
    assert str(a) in text and str(b) in text and str(unfinished) not in text and 'pass --teacher with' in text


# ---------------------------------------------------------------- the teacher


@pytest.mark.parametrize('arch, width, amp, tolerance', [
    ('resnet18', 8, 'off', 1e-3), ('lenet5', 6, 'off', 1e-3), ('resnet18', 8, 'bf16', 0.05)])
def test_a_teacher_is_frozen_and_computes_the_same_from_pixels_and_from_floats(arch, width, amp, tolerance, tmp_path):
    teacher, net = teacher_of(tmp_path, arch, width, amp)
    assert not teacher.net.training and not any(p.requires_grad for p in teacher.net.parameters())
    assert {p.dtype for p in teacher.net.parameters()} == {torch.bfloat16 if amp == 'bf16' else torch.float32}
    assert (teacher.file, teacher.dataset, teacher.class_names, teacher.amp) == (tmp_path / 'teacher.pt', 'MNIST', MNIST.names, amp)
    pixels = torch.randint(256, (16, 1, 32, 32), dtype=torch.uint8)
    x, by_imagenet = (pixels / 255 - 0.1307) / 0.3081, (pixels / 255 - 0.449) / 0.226
    with torch.no_grad(), training.autocast(CPU, amp):
        pairs = [*zip(teacher.net(x, out_feature=True), net(x, out_feature=True))]
    with torch.no_grad():
        pairs += [(teacher.logits(x), net(x)), (teacher.logits(pixels), net(x)),
                  (teacher.normalised_by_imagenet().logits(pixels), net(by_imagenet))]
    for ours, plain in pairs:
        assert plain.std() > 1e-3 and (ours.float() - plain.float()).abs().max() < tolerance * plain.abs().max()
    logits = teacher.logits(x.requires_grad_())
    assert logits.dtype == torch.float32 and not logits.requires_grad


def test_a_teachers_accuracy_is_measured_or_without_test_data_its_files(tmp_path, capsys):
    teacher, net = teacher_of(tmp_path, 'lenet5', 6)
    assert teacher.measure(None) == pytest.approx(95.23)
    images = torch.randint(256, (20, 1, 32, 32), dtype=torch.uint8)
    right = net((images / 255 - 0.1307) / 0.3081).argmax(dim=1)
    assert teacher.measure(Split(images, torch.where(torch.arange(20) < 15, right, (right + 1) % 10))) == 75
    assert '75.00' in capsys.readouterr().out
    save(tmp_path / 'unmeasured.pt', accuracy=None)
    other = load_teacher(tmp_path / 'unmeasured.pt', 'MNIST', MNIST, CPU, 'off')
    assert other.measure(None) is None and other.digest != teacher.digest
    save_network(tmp_path / 'student.pt', LeNet5Half(), teacher.facts(arch='lenet5half', width=3))
    assert load_network(tmp_path / 'student.pt')[1]['mean'] == [0.1307]


@pytest.mark.parametrize('facts, named', [
    ({'dataset': 'FashionMNIST'}, 'FashionMNIST'), ({'classes': 5}, '5'), ({'channels': 3, 'mean': [0.1] * 3, 'std': [0.3] * 3}, '3'),
    ({'mean': [0.1, 0.2]}, '[0.1, 0.2]'), ({'mean': 0.1307}, '0.1307'), ({'accuracy': 95.0}, '95.0'), ({'accuracy': '95%'}, '95%')])
def test_a_teacher_whose_facts_do_not_fit_the_data_set_is_refused(facts, named, tmp_path):
    path = tmp_path / 'teacher.pt'
    save_wrong(path, build('lenet5', 6, facts.get('classes', 10), facts.get('channels', 1)), 'lenet5', 6, **facts)
    text = error_of(load_teacher, path, 'MNIST', MNIST, CPU, 'off')
    assert named in text and next(iter(facts)) in text and str(path) in text


class Attention(nn.Module):
    """As class attention has it: a view of a parameter goes into a module."""

    def __init__(self):
        super().__init__()
        self.conv, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.zeros(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(self.token.expand(len(x), -1, -1), x, x)[0][:, 0]


def test_multiply_adds_of_a_strangers_network():
    assert count_multiply_adds(Attention(), 3, 32) > 3 * 8 * 32 * 32
    assert count_multiply_adds(nn.Flatten(), 3) == 0

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError

    net = Fails()
    assert count_multiply_adds(net, 3) is None and net.training
