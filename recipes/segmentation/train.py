"""Trains the network of segmentation.yaml on drawn shapes, and draws the recipe's images.

Run from the checkout, with the extras `torch` and `images` installed (about a minute):

    python recipes/segmentation/train.py

It writes, beside itself or into the folder given by `-o`:

    weights.safetensors                        of network.py's `make()`
    calibration/*.png                          60 grey images of 64 x 64 pixels
    evaluation/*.png, evaluation_masks/*.png   200 images, and the class of every pixel: 0 for the
                                               background, 1 circle, 2 square, 3 triangle

Every image holds one to three shapes on noise. All are drawn by a seed, which is another one for
each split, so the images of training are in neither folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from optimc.recipes.segmentation.network import CLASSES, SmallUNet, make

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = 64
CALIBRATION = 60
EVALUATION = 200
TRAINING = 800
EPOCHS = 8
BATCH = 20
THREADS = 1  # fixed: a sum over threads depends on their number
SEEDS = {"training": 0, "calibration": 1, "evaluation": 2}


def draw(random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image and its mask, uint8 [64, 64]."""
    background = int(random.integers(30, 100))
    picture, mask = Image.new("L", (SIZE, SIZE), background), Image.new("L", (SIZE, SIZE), 0)
    for _ in range(random.integers(1, 4)):
        kind = int(random.integers(1, CLASSES))
        radius = float(random.uniform(7, 14))
        x, y = random.uniform(radius, SIZE - radius, 2).tolist()
        shade = background + int(random.integers(40, 140))
        for image, colour in ((picture, shade), (mask, kind)):
            pen = ImageDraw.Draw(image)
            if kind == 1:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            else:
                sides = 4 if kind == 2 else 3
                pen.regular_polygon((x, y, radius), sides, fill=colour)
    noise = random.normal(0, 14, (SIZE, SIZE))
    # In steps of 8, so that the files are small.
    pixels = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8) // 8 * 8
    return pixels, np.array(mask)


def split(name: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and masks of a split, uint8 [count, 64, 64]."""
    random = np.random.default_rng(SEEDS[name])
    images, masks = zip(*(draw(random) for _ in range(count)), strict=True)
    return np.stack(images), np.stack(masks)


def train() -> SmallUNet:
    """AdamW with a one-cycle learning rate; the same result on the same machine."""
    torch.manual_seed(SEEDS["training"])
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    drawn, masks = split("training", TRAINING)
    images = torch.from_numpy(drawn)[:, None].float() / 255
    labels = torch.from_numpy(masks).long()
    model = make()
    steps = EPOCHS * (TRAINING // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(TRAINING).reshape(-1, BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}")
    return model.eval()


def save(images: NDArray[np.uint8], folder: Path) -> None:
    """Write each image [n, h, w] as a grey PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03}.png", optimize=True)


def main() -> None:
    """Train, and write the weights and the images that the recipe uses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent)
    output: Path = parser.parse_args().output
    save(split("calibration", CALIBRATION)[0], output / "calibration")
    images, masks = split("evaluation", EVALUATION)
    save(images, output / "evaluation")
    save(masks, output / "evaluation_masks")
    model = train()
    save_file(model.state_dict(), output / "weights.safetensors")
    with torch.inference_mode():
        said = model(torch.from_numpy(images)[:, None].float() / 255).argmax(dim=1).numpy()
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    print(f"right pixels of evaluation: {(said == masks).mean():.4f}")


if __name__ == "__main__":
    main()
