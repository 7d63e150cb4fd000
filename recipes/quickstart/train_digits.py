"""Trains the quickstart's model: a small residual network on scikit-learn's digits.

Run from the checkout, with the extras `torch` and `dev` installed (less than half a minute):

    python recipes/quickstart/train_digits.py

It writes, beside itself or into the folder given by `-o`:

    digits.onnx              input float32 [batch, 1, 8, 8] in [0, 1] -> logits float32 [batch, 10]
    digits_calibration.npz   images uint8 [200, 8, 8, 1] with values 0 to 16, labels int64 [200]
    digits_evaluation.npz    images uint8 [600, 8, 8, 1], labels int64 [600]

The data are the 1,797 test images of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0), as scikit-learn ships them. The splits
are drawn by a seed and are pairwise disjoint: an image that occurs twice is taken once. What is
left after the two splits above is for training.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0
CALIBRATION = 200
EVALUATION = 600
WHITE = 16.0  # the data's largest value
EPOCHS = 16
BATCH = 64
THREADS = 1  # fixed: a sum over threads depends on their number


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, 8, 8, 1], values 0 to 16, and labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write as an npz archive with the arrays `images` and `labels`."""
        np.savez_compressed(path, images=self.images, labels=self.labels)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The network's inputs, float32 [n, 1, 8, 8] in [0, 1], and the labels."""
        images = self.images.transpose(0, 3, 1, 2).astype(np.float32) / WHITE
        return torch.from_numpy(images), torch.from_numpy(self.labels)


def load_splits() -> tuple[Split, Split, Split]:
    """Training, calibration and evaluation: pairwise disjoint, without duplicates."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    order = np.random.default_rng(SEED).permutation(np.sort(first))
    bounds = [CALIBRATION, CALIBRATION + EVALUATION]
    calibration, evaluation, training = (
        Split(images[chosen], labels[chosen].astype(np.int64)) for chosen in np.split(order, bounds)
    )
    return training, calibration, evaluation


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution with batch normalization."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Two convolutions with an identity shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [batch, channels, h, w] -> the same shape."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class DigitsNet(nn.Module):
    """A stem and two residual blocks at 8 x 8, a convolution down to 4 x 4, a linear head."""

    def __init__(self, width: int = 48, features: int = 64) -> None:
        super().__init__()
        self.stem = convolution(1, width)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.down = convolution(width, features, stride=2)
        self.head = nn.Linear(features, 10)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - names the ONNX input
        """float32 [batch, 1, 8, 8] -> logits float32 [batch, 10]."""
        x = self.blocks(torch.relu(self.stem(input)))
        x = torch.relu(self.down(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(x)
        return logits


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images moved by up to one pixel each way, zeros moving in."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, dy : dy + 8, dx : dx + 8]


def train(split: Split) -> DigitsNet:
    """AdamW with a one-cycle learning rate; the same result on the same machine."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    images, labels = split.tensors()
    model = DigitsNet()
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            logits = model(shifted(images[chosen], generator))
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}")
    return model.eval()


def export(model: DigitsNet, path: Path) -> None:
    """Write ONNX opset 18 with a dynamic batch, without doc strings and metadata.

    The exporter's metadata holds stack traces with this machine's paths.
    """
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        optimize=False,  # the exporter's own optimizer would fold the batch normalization
        opset_version=18,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
    )
    assert program is not None, "the dynamo exporter returns its program"
    proto = program.model_proto
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for part in (proto, graph, *graph.node, *values, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)


def accuracy(model: DigitsNet, split: Split) -> float:
    """Top-1 as a fraction."""
    images, labels = split.tensors()
    with torch.inference_mode():
        hits: Tensor = model(images).argmax(dim=1) == labels
    return int(hits.sum()) / len(labels)


def main() -> None:
    """Train, export, and write the splits that the recipe uses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    training, calibration, evaluation = load_splits()
    model = train(training)
    export(model, output / "digits.onnx")
    calibration.save(output / "digits_calibration.npz")
    evaluation.save(output / "digits_evaluation.npz")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(training.labels)} training images, {parameters} parameters")
    print(f"top-1 on evaluation: {accuracy(model, evaluation):.4f}")


if __name__ == "__main__":
    main()
