"""DAFL's generator (ICCV 2019, section 3.1): noise in, images in the teacher's normalised space out."""

import torch.nn.functional as F
from torch import nn


class Generator(nn.Module):
    """latent (B, latent_dim) -> images (B, channels, img_size, img_size) of zero mean and unit variance per channel.

    The batch norms' eps of 0.8 is no slip of ours: the published code passes 0.8 where `eps` is positional, and its
    results were made so.
    """

    def __init__(self, img_size=32, latent_dim=100, channels=1):
        super().__init__()
        self.start_size = img_size // 4
        self.linear = nn.Linear(latent_dim, 128 * self.start_size**2)
        self.bn0 = nn.BatchNorm2d(128)
        self.conv1 = nn.Conv2d(128, 128, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(128, eps=0.8)
        self.conv2 = nn.Conv2d(128, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64, eps=0.8)
        self.conv3 = nn.Conv2d(64, channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z):
        x = self.linear(z).view(len(z), 128, self.start_size, self.start_size)
        x = F.interpolate(self.bn0(x), scale_factor=2)  # nearest, (B, 128, img_size / 2, img_size / 2)
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        x = F.interpolate(x, scale_factor=2)  # (B, 128, img_size, img_size)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        # In float32 also under autocast: bfloat16's tanh is exactly 1 from 3.5 on, where its gradient dies and the images with it.
        return self.bn3(self.conv3(x).float().tanh())
