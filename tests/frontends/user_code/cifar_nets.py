"""A CIFAR ResNet (He et al. 2015, section 4.2, shortcuts of option A), as a user writes one."""

from __future__ import annotations

import torch
from torch.nn.functional import pad, relu


class Block(torch.nn.Module):
    """Two convolutions and a shortcut that subsamples and pads channels with zeros."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.stride, self.extra = stride, (width - inside) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        extra = self.extra
        return relu(y + pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, extra, extra)))


class ResNet(torch.nn.Module):
    """Three stages of basic blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        for stage, width in enumerate((16, 32, 64), 1):
            inside = 16 if stage == 1 else width // 2
            first = Block(inside, width, 1 if stage == 1 else 2)
            rest = [Block(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", torch.nn.Sequential(first, *rest))
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return {"logits": self.linear(x.mean((2, 3)))}


def resnet(depth: int) -> torch.nn.Module:
    """The network with `depth` layers (20, 56, ...)."""
    return ResNet((depth - 2) // 6)
