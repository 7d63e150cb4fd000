"""CIFAR-10's training images from JPEG bytes, in parts that have no image in common.

`${CIFAR}/cifar10_train_jpeg.npz` holds `jpeg` uint8 (all files, one after the other), `offsets`
int64 [n + 1] and `labels` [n]. A seeded order of the images is cut into parts: 500 to calibrate,
2,000 for choices (tuning), the rest for training. Samples are uint8 [32, 32, 3] and a class.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Sample = tuple[dict[str, NDArray[np.uint8]], int]

CALIBRATION, TUNING = 500, 2_000
SEED = 0


def calibration() -> Iterator[Sample]:
    """500 images."""
    return _part(0, CALIBRATION)


def tuning() -> Iterator[Sample]:
    """2,000 other images."""
    return _part(CALIBRATION, CALIBRATION + TUNING)


def training() -> Iterator[Sample]:
    """The rest."""
    return _part(CALIBRATION + TUNING, None)


def _part(first: int, last: int | None) -> Iterator[Sample]:
    with np.load(Path(os.environ["CIFAR"]) / "cifar10_train_jpeg.npz") as data:
        jpeg, offsets, labels = data["jpeg"], data["offsets"], data["labels"]
    for number in np.random.default_rng(SEED).permutation(len(labels))[first:last]:
        file = jpeg[offsets[number] : offsets[number + 1]].tobytes()
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
            yield {"input": np.asarray(image.convert("RGB"))}, int(labels[number])
