"""The published pipeline, plainly: what bench/speed.py measures ours beside.

torchvision's ImageFolder and DataLoader, transforms image by image, every file decoded in every epoch, float32, the adaptation
matrix row by row. Written from the papers' description of their code; each function does one batch or one epoch.
"""

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision import transforms

from data import CIFAR, MNIST, mnist5k
from generator import Generator
from losses import activation_loss, information_entropy_loss, kd_loss, one_hot_loss
from networks import build


def decode(path):
    """A file in full, then Resize: (3, 32, 32) uint8."""
    with Image.open(path) as image:
        return np.asarray(transforms.Resize((32, 32))(image.convert('RGB'))).transpose(2, 0, 1)


def loader(folder, train, batch_size, workers, count=None):
    """Of a folder of class folders: normalised float32 batches, cropped and flipped where `train`; of the first `count` images."""
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
    normalise = transforms.Normalize(CIFAR.mean, CIFAR.std)
    transform = transforms.Compose([transforms.Resize((32, 32)), *augment, transforms.ToTensor(), normalise])
    dataset = torchvision.datasets.ImageFolder(folder, transform)
    dataset = dataset if count is None else torch.utils.data.Subset(dataset, range(count))
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=train, num_workers=workers)


@torch.no_grad()
def score(teacher, batches):
    """The noise of every image, in nats."""
    noise = []
    for x, _ in batches:
        logits = teacher(x)
        noise.append(F.cross_entropy(logits, logits.argmax(dim=1), reduction='none'))
    return torch.cat(noise).numpy()


def adaptation_matrix(theta, accuracy):
    rows = []
    for i in range(len(theta)):
        off = (1 - accuracy) * F.softmax(theta[i], dim=0)
        rows.append(torch.cat([off[:i], torch.tensor([accuracy]), off[i:]]))
    return torch.stack(rows)


def noisy_nll(student, labels, theta, accuracy):
    likelihood = (F.softmax(student, dim=1) @ adaptation_matrix(theta, accuracy)).gather(1, labels[:, None])
    return -torch.log(likelihood).mean()


def descend(loss, *optimizers):
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def distillation_step(teacher, width):
    """A function of a batch of images: one step of DFND's student, ResNet-18 of that width."""
    student = build('resnet18', width, 10, 3).train()
    theta = torch.zeros(10, 9, requires_grad=True)
    optimizers = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=5e-4), torch.optim.Adam([theta], 1e-3)

    def step(x):
        with torch.no_grad():
            t = teacher(x)
        s = student(x)
        descend(kd_loss(s, t, 4) + noisy_nll(s, t.argmax(dim=1), theta, 0.95), *optimizers)

    return step


def mnist_epoch(workers):
    """A function that trains LeNet-5 for an epoch of mnist5k's 4,000 images, and how many they are."""
    pixels, labels = mnist5k()
    transform = transforms.Compose([transforms.Resize((32, 32)), transforms.RandomCrop(32, padding=4), transforms.ToTensor(),
                                    transforms.Normalize(MNIST.mean, MNIST.std)])
    images = [(Image.fromarray(pixels[i].astype(np.uint8).reshape(28, 28)), int(labels[i]))
              for i in np.random.default_rng(0).permutation(len(pixels))[:4000]]

    def collate(batch):
        return torch.utils.data.default_collate([(transform(image), label) for image, label in batch])

    batches = torch.utils.data.DataLoader(images, batch_size=128, shuffle=True, num_workers=workers, collate_fn=collate)
    net = build('lenet5', 6, 10, 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def epoch():
        for x, y in batches:
            descend(F.cross_entropy(net(x), y), optimizer)

    return epoch, len(images)


class PlainGenerator(Generator):
    """With the upsampled images that ours does without."""

    def forward(self, z):
        x = self.linear(z).view(len(z), 128, self.start_size, self.start_size)
        x = F.interpolate(self.bn0(x), scale_factor=2)
        x = F.interpolate(F.leaky_relu(self.bn1(self.conv1(x)), 0.2), scale_factor=2)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        return self.bn3(torch.tanh(self.conv3(x)))


def dafl_step(teacher, batch_size):
    """A function that does one step of DAFL on MNIST."""
    student, generator = build('lenet5half', 3, 10, 1), PlainGenerator(32, 100, 1)
    optimizers = torch.optim.Adam(student.parameters(), 2e-3), torch.optim.Adam(generator.parameters(), 0.2)

    def step():
        x = generator(torch.randn(batch_size, 100))
        t, feature = teacher(x, out_feature=True)
        loss = one_hot_loss(t) + 5 * information_entropy_loss(F.softmax(t, dim=1).mean(dim=0)) + 0.1 * activation_loss(feature)
        descend(loss + kd_loss(student(x.detach()), t.detach(), 1), *optimizers)

    return step
