"""Trains the depthwise network of `bench/recovery.py` on CIFAR-10.

A small MobileNet (Howard et al. 2017, arXiv:1704.04861) for 32x32 images: a 3x3 convolution, then
depthwise 3x3 and pointwise 1x1 convolutions, each with BatchNormalization and ReLU. Its depthwise
filters have few weights each, so that their folded BatchNormalization scales differ much from
channel to channel: hard for one scale a tensor (Nagel et al. 2019, arXiv:1906.04721, figure 2).

    python bench/depthwise/train.py --data TRAIN.npz --out FOLDER [--epochs 12] [--minutes 14]

Stops after `--minutes` and goes on from its checkpoint when it is called again. Writes
`depthwise.safetensors` (float16) when all epochs are done. Seeded, one thread.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = ((32, 2), (64, 1), (128, 2), (128, 1), (192, 2), (192, 1))
"""Output channels and stride of each depthwise-separable block, after a stem of 16 channels."""


def _layer(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    pad = size // 2
    convolution = nn.Conv2d(inside, outside, size, stride, pad, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


class DepthwiseNet(nn.Module):
    """Images [n, 3, 32, 32], normalised float32, to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = [_layer(3, 16, 3)], 16
        for channels, stride in STAGES:
            layers += [_layer(width, width, 3, stride, groups=width), _layer(width, channels, 1)]
            width = channels
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, 10]."""
        result: Tensor = self.linear(self.features(images).mean((2, 3)))
        return result


def decoded(path: Path, cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images [n, 32, 32, 3] and labels [n] of an archive of JPEG files."""
    from PIL import Image

    with np.load(path, allow_pickle=False) as archive:
        jpeg, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
    if cache.exists():
        return np.load(cache, allow_pickle=False), labels
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for index in range(len(labels)):
        data = jpeg[offsets[index] : offsets[index + 1]].tobytes()
        images[index] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.save(cache, images)
    return images, labels


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of [n, 3, 32, 32] moved by up to 4 pixels, half of them mirrored."""
    count = len(images)
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (count, 1, 1, 1), generator=generator)
    columns = torch.randint(0, 9, (count, 1, 1, 1), generator=generator)
    flip = torch.rand((count, 1, 1, 1), generator=generator) < 0.5
    across = torch.arange(32).view(1, 1, 1, 32)
    across = torch.where(flip, 31 - across, across) + columns
    down = torch.arange(32).view(1, 1, 32, 1) + rows
    which = torch.arange(count).view(-1, 1, 1, 1)
    return padded[which, torch.arange(3).view(1, 3, 1, 1), down, across]


def train(arguments: argparse.Namespace) -> nn.Module | None:
    """The trained network, or None where the minutes were over first."""
    start = time.monotonic()
    out: Path = arguments.out
    torch.manual_seed(0)
    images, labels = decoded(arguments.data, out / "images.npy")
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    model = DepthwiseNet().to(memory_format=torch.channels_last)
    steps = len(labels) // arguments.batch
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=arguments.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=steps * arguments.epochs, pct_start=0.2
    )
    checkpoint, first = out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
    for epoch in range(first, arguments.epochs):
        began, total = time.monotonic(), 0.0
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(labels), generator=generator).numpy()
        for step in range(steps):
            index = order[step * arguments.batch : (step + 1) * arguments.batch]
            batch = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float() / 255
            batch = augmented((batch - mean) / std, generator)
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[index]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - began
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
        states = {"model": model, "optimizer": optimizer, "schedule": schedule}
        state = {name: part.state_dict() for name, part in states.items()}
        torch.save({**state, "epoch": epoch + 1}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").rename(checkpoint)
        left = arguments.minutes * 60 - (time.monotonic() - start)
        if left < 1.2 * seconds and epoch + 1 < arguments.epochs:
            print("stopped: call it again to go on", flush=True)
            return None
    return model


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="jpeg, offsets, labels (npz)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--minutes", type=float, default=14.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = train(arguments)
    if model is None:
        return
    from safetensors.torch import save_file

    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, arguments.out / "depthwise.safetensors")
    print(f"wrote {arguments.out / 'depthwise.safetensors'}")


if __name__ == "__main__":
    main()
