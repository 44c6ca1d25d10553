"""LeNet-5 and its half, for 32 x 32 input (DAFL section 4.1)."""

import torch.nn.functional as F
from torch import nn


class LeNet5(nn.Module):
    """61,706 parameters for ten classes of grey images. `planes`: the channels of the three convolutions and of fc1."""

    def __init__(self, num_classes=10, in_channels=1, planes=(6, 16, 120, 84)):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes[0], 5)
        self.conv2 = nn.Conv2d(planes[0], planes[1], 5)
        self.conv3 = nn.Conv2d(planes[1], planes[2], 5)
        self.fc1 = nn.Linear(planes[2], planes[3])
        self.fc2 = nn.Linear(planes[3], num_classes)

    def forward(self, x, out_feature=False):
        """x: (B, in_channels, 32, 32), normalised. Returns logits (B, num_classes); with `out_feature` also the
        features (B, planes[2]) after the third convolution's ReLU, which DAFL's activation loss reads."""
        # pooled first: the same values and gradients as after the ReLU, with a quarter of them to pass through it
        out = F.relu(F.max_pool2d(self.conv1(x), 2), inplace=True)  # (B, 6, 14, 14)
        out = F.relu(F.max_pool2d(self.conv2(out), 2), inplace=True)  # (B, 16, 5, 5)
        feature = F.relu(self.conv3(out)).flatten(1)  # (B, 120)
        logits = self.fc2(F.relu(self.fc1(feature)))
        return (logits, feature) if out_feature else logits


def LeNet5Half(num_classes=10, in_channels=1):
    """Half the channels of LeNet-5 in every layer: 15,738 parameters for ten classes of grey images."""
    return LeNet5(num_classes, in_channels, planes=(3, 8, 60, 42))
