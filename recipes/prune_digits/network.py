"""A residual network for digits (He et al. 2016, arXiv:1512.03385): prune_digits.yaml's factory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3 x 3 convolutions with an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [batch, channels, h, w] -> the same shape."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A stem and blocks at 8 x 8, a convolution down to 4 x 4, blocks there, a linear head."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_bn = nn.BatchNorm2d(2 * width)
        self.late = nn.Sequential(*(Residual(2 * width) for _ in range(blocks)))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 1, 8, 8] in [0, 1] -> logits float32 [batch, 10]."""
        x = self.blocks(torch.relu(self.stem_bn(self.stem(image))))
        x = self.late(torch.relu(self.down_bn(self.down(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def make(width: int = 24, blocks: int = 3) -> DigitsNet:
    """The network without its weights."""
    return DigitsNet(width, blocks)
