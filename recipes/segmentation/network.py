"""A small U-Net (Ronneberger et al. 2015, arXiv:1505.04597): the factory of segmentation.yaml."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4  # background, circle, square, triangle


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch normalization."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Three levels of encoder and decoder; the height and width are multiples of 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = block(1, width)
        self.second = block(width, 2 * width)
        self.third = block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.up_second = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.back_second = block(4 * width, 2 * width)
        self.up_first = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.back_first = block(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 1, h, w] in [0, 1] -> scores float32 [batch, 4, h, w]."""
        first = self.first(image)
        second = self.second(self.pool(first))
        third = self.third(self.pool(second))
        second = self.back_second(torch.cat([self.up_second(third), second], dim=1))
        first = self.back_first(torch.cat([self.up_first(second), first], dim=1))
        scores: Tensor = self.head(first)
        return scores


def make(width: int = 8) -> SmallUNet:
    """The network without its weights; 29,508 parameters with the default width."""
    return SmallUNet(width)
