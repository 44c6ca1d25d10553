"""ResNets for 32 x 32 input, with the state-dict names that the field's CIFAR ResNets share."""

import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, in_planes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()  # the identity where shapes agree, and no name in the state dict
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out)).add_(self.shortcut(x))
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """A ResNet with a 3 x 3 stem and no max pool; `width` channels in the first stage, doubled in each of the next three."""

    def __init__(self, blocks, num_classes=10, in_channels=3, width=64):
        super().__init__()
        self.in_planes = width
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, blocks[0], stride=1)
        self.layer2 = self._stage(width * 2, blocks[1], stride=2)
        self.layer3 = self._stage(width * 4, blocks[2], stride=2)
        self.layer4 = self._stage(width * 8, blocks[3], stride=2)
        self.linear = nn.Linear(width * 8, num_classes)

    def _stage(self, planes, count, stride):
        layers = []
        for i in range(count):
            layers.append(BasicBlock(self.in_planes, planes, stride if i == 0 else 1))
            self.in_planes = planes
        return nn.Sequential(*layers)

    def forward(self, x, out_feature=False):
        """x: (B, in_channels, 32, 32), normalised. Returns logits (B, num_classes); with `out_feature` also the
        average-pooled features (B, 8 * width) that DAFL's activation loss reads."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))  # (B, 8 * width, 4, 4)
        feature = F.adaptive_avg_pool2d(out, 1).flatten(1)
        logits = self.linear(feature)
        return (logits, feature) if out_feature else logits


def ResNet18(num_classes=10, in_channels=3, width=64):
    return ResNet((2, 2, 2, 2), num_classes, in_channels, width)


def ResNet34(num_classes=10, in_channels=3, width=64):
    return ResNet((3, 4, 6, 3), num_classes, in_channels, width)
