"""Small modules that pruning is tested on, with weights that are no start of a training."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class Residual(nn.Module):
    """A basic block with an identity shortcut."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width, h, w] as given."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(x + y)


class ResidualNet(nn.Module):
    """A stem, blocks, and a linear head: every width can be cut."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(16, 24) for _ in range(blocks)))
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, 3, h, w] images."""
        return {"logits": self.head(self.blocks(self.stem(image)).mean((2, 3)))}


class PaddedNet(nn.Module):
    """Shortcuts of option A (He et al. 2015): subsampled, and padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = Residual(16, 16)
        self.conv1 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, 3, h, w] images."""
        x = self.first(self.stem(image))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        x = torch.relu(shortcut + self.conv2(torch.relu(self.conv1(x))))
        return {"logits": self.head(x.mean((2, 3)))}


class DenseNet(nn.Module):
    """Every block reads all that were before it; the head reads a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 16, 3, padding=1))
            for w in (16, 32, 48)
        )
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64 * 4, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, 3, h, w] images."""
        x = self.stem(image)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        pooled = nn.functional.adaptive_avg_pool2d(torch.relu(self.norm(x)), 2)
        return {"logits": self.head(pooled.flatten(1))}


class GroupedNet(nn.Module):
    """Grouped and depthwise convolutions, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.grouped = nn.Conv2d(32, 64, 3, groups=4)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.squeeze = nn.Conv2d(64, 16, 1)
        self.excite = nn.Conv2d(16, 64, 1)
        self.project = nn.Conv2d(64, 32, 1)
        self.head = nn.Conv2d(32, 10, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, 3, h, w] images."""
        x = self.depthwise(torch.relu(self.grouped(torch.relu(self.stem(image)))))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = torch.relu(self.project(x * torch.sigmoid(gate)))
        return {"logits": self.head(x).mean((2, 3))}


class NormalisedNet(nn.Module):
    """What cannot be cut: GroupNorm, a fixed reshape, a mean over channels. And what can."""

    def __init__(self) -> None:
        super().__init__()
        self.under_norm = nn.Conv2d(3, 16, 3)
        self.norm = nn.GroupNorm(4, 16)
        self.shuffled = nn.Conv2d(16, 16, 3)
        self.gating = nn.Conv2d(16, 16, 3)
        self.plain = nn.Conv2d(16, 16, 3)
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, 3, h, w] images."""
        x = self.shuffled(self.norm(self.under_norm(image)))
        n, _, h, w = x.shape
        x = x.view(n, 2, 8, h, w).transpose(1, 2).reshape(n, 16, h, w)
        x = self.gating(x)
        x = torch.relu(self.plain(x * x.mean(1, keepdim=True)))
        return {"logits": self.head(x).mean((2, 3))}


class SelfAttention(nn.Module):
    """Attention with separate projections, whose count of heads is under another name."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, tokens, width] as given."""
        n, tokens, width = x.shape
        size = width // self.parts

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(n, tokens, -1, size).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + cast("torch.Tensor", self.out(mixed.transpose(1, 2).reshape(n, tokens, -1)))


class AttentionNet(nn.Module):
    """One layer of attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention(32, 4)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, tokens, 32]."""
        return {"logits": self.head(self.norm(self.attention(tokens)).mean(1))}


class RotatedNet(nn.Module):
    """Halves that are swapped and added, as rotary embeddings do; then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.rotated = nn.Linear(16, 16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of [n, tokens, 16]."""
        x = self.rotated(tokens)
        x = x * 0.8 + torch.cat((-x[..., 8:], x[..., :8]), dim=-1) * 0.6
        return {"logits": self.head(torch.relu(self.hidden(x))).mean(1)}


class HiddenStates(nn.Module):
    """A model of transformers, of whose outputs the last hidden states count."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The last hidden states."""
        return {"states": self.inner(x).last_hidden_state}


def spread(module: nn.Module) -> nn.Module:
    """`module` with seeded weights whose batch norms scale and shift each channel differently."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator))
                assert part.running_mean is not None
                part.running_mean.copy_(torch.randn(part.bias.shape, generator=generator))
    return module.eval()
