"""Trains the model of prune_digits.yaml on scikit-learn's digits.

Run from the checkout, with the extras `torch` and `dev` installed (about a minute):

    python recipes/prune_digits/train.py

It writes, beside itself or into the folder given by `-o`:

    weights.safetensors   of network.make()
    training.npz          images uint8 [n, 8, 8, 1] with values 0 to 16, labels int64 [n]

The images are those that quickstart/train_digits.py leaves for training: no split of the quickstart
has one of them. The recipe keeps a part of them for tuning.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from optimc.recipes.prune_digits.network import DigitsNet, make

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart" / "train_digits.py"))
"""Its splits and its augmentation."""
SEED, BATCH = 0, 64
THREADS = 1  # fixed: a sum over threads depends on their number
EPOCHS = 12


def train(split: Any) -> DigitsNet:
    """AdamW with a one-cycle learning rate; the same result on the same machine."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    images, labels = split.tensors()
    model = make()
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            logits = model(QUICKSTART["shifted"](images[chosen], generator))
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}")
    return model.eval()


def main() -> None:
    """Train, and write the weights and the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    training, _, evaluation = QUICKSTART["load_splits"]()
    training.save(output / "training.npz")
    model = train(training)
    save_file(model.state_dict(), output / "weights.safetensors")
    images, labels = evaluation.tensors()
    with torch.inference_mode():
        hits = model(images).argmax(dim=1) == labels
    print(f"top-1 on evaluation: {int(hits.sum()) / len(labels):.4f}")


if __name__ == "__main__":
    main()
