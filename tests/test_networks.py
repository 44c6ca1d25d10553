"""The networks beside known counts, torchvision's blocks and the published layers; the files they are kept in."""
import os
import pickle

import pytest
import torch
from torch import nn
from torchvision.models import resnet as theirs

import networks
from data import DATASETS
from generator import Generator, upsampled_conv
from lenet import LeNet5, LeNet5Half
from networks import (
    ARCHS,
    FACTS,
    build,
    count_multiply_adds,
    count_parameters,
    find_teacher,
    load_network,
    load_teacher,
    resolve_width,
    save_network,
    teacher_accuracy,
)
from report_bench import STUDENT_FLOPS, TEACHER_FLOPS
from resnet import ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from utils import UserError, autocast


def one_line(error):
    """The message of a raised UserError, which must be one line."""
    text = str(error.value)
    assert text and '\n' not in text, text
    return text


def randomise(net, seed=0):
    """Random batch norm weights and statistics too, so that none of them is left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.dtype == torch.float32 and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if 'var' in name or 'weight' in name else 0))
    return net


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize('make, classes, parameters, multiply_adds', [
    (ResNet34, 100, 21_328_292, 1_159_402_496 + 90 * 512),
    (ResNet34, 10, 21_328_292 - 90 * 513, 1_159_402_496),
    (ResNet18, 100, 11_220_132, 555_422_720 + 90 * 512),
    (ResNet18, 10, 11_220_132 - 90 * 513, 555_422_720),
])
def test_resnet_sizes_are_the_papers(make, classes, parameters, multiply_adds):
    net = make(classes)
    assert count_parameters(net) == parameters
    assert count_multiply_adds(net, channels=3) == multiply_adds
    if classes == 10:  # what the benchmarks and the plan reckon with
        assert 2 * multiply_adds == (TEACHER_FLOPS if make is ResNet34 else STUDENT_FLOPS)


@pytest.mark.parametrize('make, parameters, multiply_adds', [(LeNet5, 61_706, 416_520), (LeNet5Half, 15_738, 133_740)])
def test_lenet_sizes_are_the_papers(make, parameters, multiply_adds):
    net = make()
    assert count_parameters(net) == parameters
    assert count_multiply_adds(net, channels=1) == multiply_adds


def test_counting_leaves_mode_statistics_and_hooks_alone():
    net = ResNet18(width=4).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    count_multiply_adds(net, channels=3)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize('make, blocks, convolutions', [
    (ResNet18, (2, 2, 2, 2), 2), (ResNet34, (3, 4, 6, 3), 2), (ResNet50, (3, 4, 6, 3), 3),
    (ResNet101, (3, 4, 23, 3), 3), (ResNet152, (3, 8, 36, 3), 3),
])
def test_state_dict_names_are_the_fields(make, blocks, convolutions):
    norm = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    expected = ['conv1.weight'] + [f'bn1.{n}' for n in norm]
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            prefix = f'layer{stage}.{block}'
            for i in range(1, convolutions + 1):
                expected += [f'{prefix}.conv{i}.weight'] + [f'{prefix}.bn{i}.{n}' for n in norm]
            if block == 0 and (stage > 1 or convolutions == 3):
                expected += [f'{prefix}.shortcut.0.weight'] + [f'{prefix}.shortcut.1.{n}' for n in norm]
    expected += ['linear.weight', 'linear.bias']
    assert sorted(make(width=2).state_dict()) == sorted(expected)


def test_width_32_halves_every_channel():
    wide, narrow = ResNet18(width=64).state_dict(), ResNet18(width=32).state_dict()
    for name, value in wide.items():
        whole = [name.startswith('linear'), name == 'conv1.weight']  # the classes, and the image's channels, stay
        expected = [n if (i == 0 and whole[0]) or (i == 1 and whole[1]) or i > 1 else n // 2 for i, n in enumerate(value.shape)]
        assert list(narrow[name].shape) == expected, name


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize('make, width, channels, features', [
    (ResNet18, 64, 3, 512), (ResNet18, 16, 1, 128), (ResNet50, 4, 3, 128),
    (lambda n, c, w: LeNet5(n, c), None, 1, 120), (lambda n, c, w: LeNet5Half(n, c), None, 3, 60),
])
def test_features_come_with_the_same_logits(make, width, channels, features):
    torch.manual_seed(0)
    net = make(7, channels, width).eval()
    x = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        logits, feature = net(x, out_feature=True)
        assert logits.shape == (2, 7) and feature.shape == (2, features)
        assert torch.equal(net(x), logits)
        head = net.linear if hasattr(net, 'linear') else lambda f: net.fc2(net.fc1(f).relu())
        torch.testing.assert_close(head(feature), logits)


@pytest.mark.parametrize('make, block, blocks', [
    (ResNet18, theirs.BasicBlock, [2, 2, 2, 2]), (ResNet50, theirs.Bottleneck, [3, 4, 6, 3])])
@pytest.mark.parametrize('train', [False, True])
def test_resnet_equals_torchvisions_with_a_small_stem(make, block, blocks, train, monkeypatch):
    monkeypatch.setattr(nn.init, 'kaiming_normal_', lambda *a, **k: None)  # theirs draws weights that ours replace
    ours = randomise(make(10, 3, 64))
    reference = theirs.ResNet(block, blocks, num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    reference.load_state_dict({k.replace('shortcut', 'downsample').replace('linear', 'fc'): v for k, v in ours.state_dict().items()})
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.train(train)(x), reference.train(train)(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('make', [LeNet5, LeNet5Half])
def test_lenet_equals_its_layers_one_after_another(make):
    torch.manual_seed(0)
    net, x = make(), torch.randn(3, 1, 32, 32)
    layers = nn.Sequential(net.conv1, nn.ReLU(), nn.MaxPool2d(2), net.conv2, nn.ReLU(), nn.MaxPool2d(2), net.conv3, nn.ReLU(),
                           nn.Flatten(), net.fc1, nn.ReLU(), net.fc2)
    torch.testing.assert_close(net(x), layers(x))


@pytest.mark.parametrize('make', [ResNet50, ResNet101, ResNet152])
def test_deep_resnets_run_and_learn_at_width_4(make):
    torch.manual_seed(0)
    net = make(num_classes=5, in_channels=1, width=4)
    logits = net(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('size, channels', [(32, 1), (32, 3), (16, 3)])
def test_generator_gives_images_of_zero_mean_and_unit_variance(size, channels):
    torch.manual_seed(0)
    x = Generator(size, latent_dim=20, channels=channels)(torch.randn(64, 20))
    assert x.shape == (64, channels, size, size)
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.var(dim=(0, 2, 3), unbiased=False), torch.ones(channels), atol=5e-3, rtol=0)


@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (1, 2, 1, 1), (2, 3, 7, 3)])
def test_an_upsampled_convolution_equals_interpolation_then_convolution(shape):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(shape[1], 7, 3, padding=1).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    plain, ours = conv(torch.nn.functional.interpolate(x, scale_factor=2)), upsampled_conv(x, conv)
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction)):
        torch.testing.assert_close(a, b)


def test_generator_equals_the_published_layers_with_eps_of_0_8():
    torch.manual_seed(0)
    g, z = randomise(Generator(32, 20, 3)), torch.randn(5, 20)
    published = nn.Sequential(
        nn.BatchNorm2d(128), nn.Upsample(scale_factor=2), nn.Conv2d(128, 128, 3, stride=1, padding=1), nn.BatchNorm2d(128, 0.8),
        nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), nn.Conv2d(128, 64, 3, stride=1, padding=1), nn.BatchNorm2d(64, 0.8),
        nn.LeakyReLU(0.2), nn.Conv2d(64, 3, 3, stride=1, padding=1), nn.Tanh(), nn.BatchNorm2d(3, affine=False))
    for theirs_, ours in zip((0, 2, 3, 6, 7, 9, 11), (g.bn0, g.conv1, g.bn1, g.conv2, g.bn2, g.conv3, g.bn3)):
        published[theirs_].load_state_dict(ours.state_dict())
    assert (g.bn0.eps, g.bn1.eps, g.bn2.eps, g.bn3.eps) == (1e-5, 0.8, 0.8, 1e-5) and not g.bn3.affine
    torch.testing.assert_close(g(z), published(g.linear(z).view(5, 128, 8, 8)), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- files


def facts_of(arch, width, classes=10, channels=1, dataset='MNIST', accuracy=0.5):
    return dict(arch=arch, width=width, classes=classes, channels=channels, mean=[0.1] * channels, std=[0.2] * channels,
                dataset=dataset, accuracy=accuracy)


@pytest.mark.parametrize('arch', ARCHS)
def test_a_saved_network_is_rebuilt_from_its_own_facts_bit_by_bit(arch, tmp_path):
    torch.manual_seed(0)
    width = resolve_width(arch, 4 if arch.startswith('resnet') else None)
    facts = facts_of(arch, width, classes=6, channels=3)
    net = randomise(build(arch, width, 6, 3)).to(memory_format=torch.channels_last)
    save_network(tmp_path / 'net.pt', net, facts | {'unknown': 'left out'})
    loaded, read = load_network(tmp_path / 'net.pt')
    assert read == facts and not loaded.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_saved_network_is_plain_tensors_and_facts(tmp_path):
    net, facts = LeNet5Half(), facts_of('lenet5half', 3, accuracy=None)
    save_network(tmp_path / 'net.pt', net, facts)
    content = torch.load(tmp_path / 'net.pt', weights_only=True)
    assert set(content) == {'facts', 'state_dict'} and content['facts'] == facts and set(facts) == set(FACTS)
    LeNet5Half().load_state_dict(content['state_dict'])
    assert os.listdir(tmp_path) == ['net.pt']  # no half-written file beside it
    with pytest.raises(KeyError):
        save_network(tmp_path / 'other.pt', net, {k: v for k, v in facts.items() if k != 'mean'})


def test_a_save_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    save_network(tmp_path / 'net.pt', LeNet5Half(), facts_of('lenet5half', 3))
    old = (tmp_path / 'net.pt').read_bytes()

    def killed(content, path):
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(networks.torch, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
        save_network(tmp_path / 'net.pt', LeNet5Half(), facts_of('lenet5half', 3))
    assert (tmp_path / 'net.pt').read_bytes() == old


def saved(content):
    return lambda path: torch.save(content, path)


def truncated(path, share=0.9):
    save_network(path, LeNet5Half(), facts_of('lenet5half', 3))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize('write', [
    pytest.param(saved(LeNet5Half()), id='a pickled module, as published'),
    pytest.param(lambda path: path.write_bytes(pickle.dumps({'a': 1})), id='a pickle'),
    pytest.param(saved(LeNet5Half().state_dict()), id='weights without facts'),
    pytest.param(saved(torch.zeros(3)), id='a tensor'),
    pytest.param(saved([1, 2]), id='a list'),
    pytest.param(lambda path: path.write_bytes(b''), id='an empty file'),
    pytest.param(lambda path: path.write_bytes(b'\x00\x01garbage\xff' * 99), id='garbage bytes'),
    pytest.param(lambda path: path.write_text('text that is no network\n'), id='a text file'),
    pytest.param(truncated, id='a file that broke off'),
    pytest.param(lambda path: truncated(path, 0.01), id='a file that broke off at its start'),
    pytest.param(lambda path: save_network(path, LeNet5Half(), facts_of('lenet5half', 3, classes=7)), id='facts of other classes'),
    pytest.param(lambda path: save_network(path, LeNet5Half(), facts_of('lenet5', 6)), id='facts of another size'),
    pytest.param(lambda path: save_network(path, LeNet5Half(), facts_of('alexnet', 3)), id='facts of an unknown architecture'),
    pytest.param(lambda path: save_network(path, LeNet5Half(), facts_of('resnet18', None)), id='facts without a width'),
])
@pytest.mark.filterwarnings('ignore')
def test_what_is_no_network_is_told_in_one_line(write, tmp_path):
    write(tmp_path / 'net.pt')
    with pytest.raises(UserError) as error:
        load_network(tmp_path / 'net.pt')
    text = one_line(error)
    assert str(tmp_path / 'net.pt') in text and 'teacher-train.py' in text and 'save_network' in text and len(text) < 500


def test_a_pickled_module_never_runs_its_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'trapped'),)

    torch.save(Trap(), tmp_path / 'net.pt')
    with pytest.raises(UserError):
        load_network(tmp_path / 'net.pt')
    assert not (tmp_path / 'trapped').exists()


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        load_network(tmp_path / 'none.pt')
    assert str(tmp_path / 'none.pt') in one_line(error)


@pytest.mark.parametrize('arch, width, teacher, expected', [
    ('resnet18', None, None, 64), ('resnet50', 16, None, 16), ('lenet5', None, None, 6), ('lenet5', 6, None, 6),
    ('lenet5half', None, None, 3), ('resnet18', None, ('resnet34', 32), 32), ('resnet18', 16, ('resnet34', 32), 16),
    ('resnet18', None, ('lenet5', 6), 64), ('lenet5half', None, ('resnet34', 32), 3),
])
def test_width_is_the_teachers_or_the_published_one_unless_given(arch, width, teacher, expected):
    assert resolve_width(arch, width, teacher and dict(zip(('arch', 'width'), teacher))) == expected


def test_a_lenet_of_another_width_is_refused():
    with pytest.raises(UserError) as error:
        resolve_width('lenet5half', 6)
    assert '--width 6' in one_line(error) and 'lenet5half' in one_line(error)


# ---------------------------------------------------------------- find_teacher


def make_run(output, name, dataset='MNIST', finished=True):
    (output / name).mkdir(parents=True)
    save_network(output / name / 'teacher.pt', LeNet5Half(), facts_of('lenet5half', 3, dataset=dataset))
    if finished:
        (output / name / 'result.json').write_text('{}')
    return output / name / 'teacher.pt'


def test_find_teacher_takes_the_file_the_runs_folder_and_the_output_folder(tmp_path):
    path = make_run(tmp_path, 'a')
    make_run(tmp_path, 'unfinished', finished=False)
    make_run(tmp_path, 'other', dataset='FashionMNIST')
    (tmp_path / 'student').mkdir()
    save_network(tmp_path / 'student' / 'student.pt', LeNet5Half(), facts_of('lenet5half', 3))
    (tmp_path / 'student' / 'result.json').write_text('{}')
    assert find_teacher(path, 'MNIST') == find_teacher(path.parent, 'MNIST') == find_teacher(str(tmp_path), 'MNIST') == path
    assert find_teacher(tmp_path, 'FashionMNIST') == tmp_path / 'other' / 'teacher.pt'
    assert find_teacher(tmp_path / 'student', 'MNIST') == tmp_path / 'student' / 'student.pt'  # a student, where it is asked for


@pytest.mark.parametrize('where', ['', 'not here', 'unfinished only'])
def test_no_teacher_yet_names_the_command_that_trains_one(where, tmp_path):
    if where == 'unfinished only':
        make_run(tmp_path / where, 'a', dataset='cifar10', finished=False)
        make_run(tmp_path / where, 'b', dataset='MNIST')
    with pytest.raises(UserError) as error:
        find_teacher(tmp_path / where, 'cifar10')
    text = one_line(error)
    assert 'python teacher-train.py --dataset cifar10' in text and str(tmp_path / where) in text and '--teacher_dir' in text


def test_two_teachers_are_both_listed(tmp_path):
    a, b = make_run(tmp_path, 'a'), make_run(tmp_path, 'b')
    make_run(tmp_path, 'c', finished=False)
    with pytest.raises(UserError) as error:
        find_teacher(tmp_path, 'MNIST')
    text = one_line(error)
    assert str(a.parent) in text and str(b.parent) in text and str(tmp_path / 'c') not in text and '--teacher_dir' in text


def test_a_loaded_teacher_is_frozen_and_still(tmp_path):
    path = make_run(tmp_path, 'a')
    teacher, facts, found = load_teacher(tmp_path, 'MNIST', DATASETS['MNIST'], torch.device('cpu'), 'off')
    assert found == path and facts['dataset'] == 'MNIST'
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_another_data_sets_teacher_is_refused_by_name(tmp_path):
    path = make_run(tmp_path, 'a', dataset='FashionMNIST')
    with pytest.raises(UserError) as error:
        load_teacher(path, 'MNIST', DATASETS['MNIST'], torch.device('cpu'), 'off')
    text = one_line(error)
    assert str(path) in text and 'FashionMNIST' in text and '--dataset is MNIST' in text


@pytest.mark.parametrize('accuracy, percent', [(0.9523, 95.23), (None, None)])
def test_without_test_data_the_teachers_accuracy_is_its_files(accuracy, percent):
    facts = facts_of('lenet5half', 3, accuracy=accuracy)
    found = teacher_accuracy(LeNet5Half(), facts, 'teacher.pt', None, None, torch.device('cpu'))
    assert found == (percent and pytest.approx(percent))


@pytest.mark.parametrize('arch', ['resnet18', 'resnet50', 'lenet5'])
def test_a_teacher_made_ready_for_inference_computes_the_same(arch, tmp_path):
    torch.manual_seed(0)
    width = resolve_width(arch, 8 if arch.startswith('resnet') else None)
    net = randomise(build(arch, width, 10, 1)).eval()  # batch norms whose folding would show
    save_network(tmp_path / 'teacher.pt', net, facts_of(arch, width))
    teacher, _, _ = load_teacher(tmp_path / 'teacher.pt', 'MNIST', DATASETS['MNIST'], torch.device('cpu'), 'off')
    x = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        for ours, plain in zip(teacher(x, out_feature=True), net(x, out_feature=True)):
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
            assert ours.std() > 1e-3


def test_a_teacher_in_bfloat16_is_near_the_one_in_float32(tmp_path):
    torch.manual_seed(0)
    net = randomise(build('resnet18', 8, 10, 1)).eval()
    save_network(tmp_path / 'teacher.pt', net, facts_of('resnet18', 8))
    teacher, facts, _ = load_teacher(tmp_path / 'teacher.pt', 'MNIST', DATASETS['MNIST'], torch.device('cpu'), 'bf16')
    assert facts['amp'] == 'bf16' and {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    x = torch.randn(16, 1, 32, 32)
    with torch.no_grad(), autocast(torch.device('cpu'), facts['amp']):
        logits = teacher(x)
    with torch.no_grad():
        exact = net(x)
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize('facts, named', [({'classes': 5}, 'classes=5'),
                                          ({'channels': 3, 'mean': [0.1] * 3, 'std': [0.3] * 3}, 'channels=3'),
                                          ({'mean': [0.1, 0.2]}, 'one number a channel'), ({'mean': 0.1307}, 'mean=0.1307'),
                                          ({'accuracy': 95.0}, 'accuracy=95.0'), ({'accuracy': '95%'}, "accuracy='95%'")])
def test_a_teacher_whose_facts_do_not_fit_the_data_set_is_refused(facts, named, tmp_path):
    facts = DATASETS['MNIST'].facts('MNIST', 'lenet5', 6) | {'accuracy': 0.9} | facts
    save_network(tmp_path / 'teacher.pt', build('lenet5', 6, facts['classes'], facts['channels']), facts)
    with pytest.raises(UserError) as error:
        load_teacher(tmp_path / 'teacher.pt', 'MNIST', DATASETS['MNIST'], torch.device('cpu'), 'off')
    assert named in one_line(error)
