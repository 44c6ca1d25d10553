"""DAFL's generator (ICCV 2019, section 3.1): noise in, images in the teacher's normalised space out."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Generator(nn.Module):
    """latent (B, latent_dim) -> images (B, channels, img_size, img_size) of zero mean and unit variance per channel. The batch norms'
    eps of 0.8 is no slip of ours: DAFL's published code passes 0.8 where `eps` is positional, and its results were made so. DFAD's has
    the same generator with torch's own eps."""

    def __init__(self, img_size=32, latent_dim=100, channels=1, eps=0.8):
        super().__init__()
        self.start_size = img_size // 4
        self.linear = nn.Linear(latent_dim, 128 * self.start_size**2)
        self.bn0 = nn.BatchNorm2d(128)
        self.conv1 = nn.Conv2d(128, 128, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(128, eps=eps)
        self.conv2 = nn.Conv2d(128, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64, eps=eps)
        self.conv3 = nn.Conv2d(64, channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z):
        x = self.linear(z).view(len(z), 128, self.start_size, self.start_size)
        x = self.bn0(x).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.bn1(upsampled_conv(x, self.conv1)), 0.2)  # (B, 128, img_size / 2, img_size / 2)
        x = F.leaky_relu(self.bn2(upsampled_conv(x, self.conv2)), 0.2)  # (B, 64, img_size, img_size)
        # In float32 also under autocast: bfloat16's tanh is exactly 1 from 3.5 on, where its gradient dies and the images with it.
        return self.bn3(self.conv3(x).float().tanh())


def upsampled_conv(x, conv):
    """conv(F.interpolate(x, scale_factor=2)), nearest, for a 3 x 3 convolution with padding 1, at half its multiply-adds.

    Of the 3 x 3 pixels under a kernel, pairs are copies of one: so each of the four pixels that x's pixel becomes is a 2 x 2
    convolution of x, whose weights are sums of the kernel's. x: (B, I, H, W) -> (B, C, 2 H, 2 W)."""
    C = conv.weight.shape[0]
    top, middle, bottom = conv.weight.unbind(2)  # (C, I, 3) each
    rows = torch.stack([torch.stack([top, middle + bottom], 2), torch.stack([top + middle, bottom], 2)])  # (2, C, I, 2, 3)
    left, centre, right = rows.unbind(4)
    kernels = torch.stack([torch.stack([left, centre + right], 4), torch.stack([left + centre, right], 4)], 1)  # (2, 2, C, I, 2, 2)
    kernels = kernels.reshape(4 * C, -1, 2, 2).contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x, kernels, conv.bias.repeat(4), padding=1)  # (B, 4 C, H + 1, W + 1): the even pixels begin at 0, the odd at 1
    return Interleave.apply(y.permute(0, 2, 3, 1).unflatten(3, (2, 2, C))).permute(0, 3, 1, 2)


class Interleave(torch.autograd.Function):
    """y (B, H + 1, W + 1, 2, 2, C) -> (B, 2 H, 2 W, C), where pixel (2 h + a, 2 w + b) is y[h + a, w + b, a, b]. By hand, since the
    gradients of four slices would be four tensors as large as y, of zeros, and their sum: a quarter of a step's time."""

    @staticmethod
    def forward(ctx, y):
        B, H, W, _, _, C = y.shape
        x = y.new_empty(B, 2 * (H - 1), 2 * (W - 1), C)
        for of_y, of_x in Interleave.shared(y, x):
            of_x.copy_(of_y)
        return x

    @staticmethod
    def backward(ctx, gradient):
        B, H, W, C = gradient.shape
        y = gradient.new_zeros(B, H // 2 + 1, W // 2 + 1, 2, 2, C)
        for of_y, of_x in Interleave.shared(y, gradient):
            of_y.copy_(of_x)
        return y

    @staticmethod
    def shared(y, x):
        """Yields the same pixels as views of both."""
        H, W = x.shape[1] // 2, x.shape[2] // 2
        for a, b in itertools.product((0, 1), (0, 1)):
            yield y[:, a : a + H, b : b + W, a, b], x[:, a::2, b::2]
