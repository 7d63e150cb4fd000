"""ResNets for CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2): the factory of
prune_distill_int8.yaml. The names of parameters are those of akamaster/pytorch_resnet_cifar10."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; a shortcut that subsamples and pads channels (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """float32 [batch, inputs, h, w] -> [batch, outputs, h / stride, w / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    """A convolution, three stages of widths 16, 32, 64, the mean over places, a linear head."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - names the ONNX input
        """float32 [batch, 3, 32, 32] -> logits float32 [batch, 10]."""
        x = torch.relu(self.bn1(self.conv1(input)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet(depth: int = 56) -> CifarResNet:
    """ResNet-20, -32, -44, -56 or -110 without weights: (depth - 2) / 6 blocks a stage."""
    return CifarResNet((depth - 2) // 6)
