"""A small network that learns from a large one, against the same network trained alone.

    python bench/distill.py [--seeds 0 1 2] [--at-most "7 min"] [--teacher FILE]
        [--precision bfloat16] [--threads N] [--work FOLDER] [--out distill.json]

A ResNet-20 with new weights is trained on the shared training images twice for each seed, for the
same time: with labels alone, and with the answers of ResNet-56 beside them (`distill`). Both are
variants of one recipe, from the same weights, with the same order and augmentation of images, built
for ONNX Runtime, and judged on all evaluation images, which no choice has seen. Prints top-1 of
both, their difference with its standard error over the images (both answer the same images, whose
answers are not independent: the error is an upper bound), and the mean over the seeds. `--teacher`
is an ONNX file to learn from in place of ResNet-56's module. A run that was stopped is gone on with
by the same command. Needs the shared data (``../shared``, or `OPTIMC_SHARED`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from pruning import RECIPE, ROOT, built, course_of

EPOCHS = 200


def recipe(options: argparse.Namespace, shared: Path, seed: int) -> dict[str, Any]:
    """Both variants for one seed, with the data and the training of the shared recipe."""
    with RECIPE.open() as file:
        made: dict[str, Any] = yaml.safe_load(file)
    training = {
        **made["variants"]["pruned_int8"][1]["train"],
        "epochs": EPOCHS,
        "at_most": options.at_most,
        "learning_rate": options.learning_rate,
        "precision": options.precision,
        "threads": options.threads,
    }
    resnet = "prune_distill.network:resnet"
    teacher = (
        {"onnx": str(options.teacher.resolve())}
        if options.teacher is not None
        else {
            "factory": resnet,
            "arguments": {"depth": 56},
            "weights": {"file": str(shared / "models" / "resnet56.safetensors")},
        }
    )
    alone = {name: value for name, value in training.items() if name != "distill"}
    distilled = {**alone, "distill": {"teacher": teacher}}
    return made | {
        "seed": seed,
        "model": {"factory": resnet, "arguments": {"depth": 20}},
        "variants": {
            "alone": [{"train": alone}, "simplify", "fuse"],
            "distilled": [{"train": distilled}, "simplify", "fuse"],
        },
        "gate": {"ship": "best", "drop": {"top1": 1.0}},  # the figures are wanted, no verdict
    }


def build(options: argparse.Namespace, work: Path, shared: Path, seed: int) -> Any:
    """The report for one seed."""
    folder = work / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    code = "prune_distill"
    shutil.copytree(RECIPE.parent / code, folder / code, dirs_exist_ok=True)
    made = yaml.safe_dump(recipe(options, shared, seed), sort_keys=False)
    (folder / "recipe.yaml").write_text(made)
    environment = {"CIFAR": str(shared / "data"), "OPTIMC_CACHE_DIR": str(work / "cache")}
    return built(folder, environment)


def main() -> int:
    """Builds, prints, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-most", default="7 min", help="training time of each network")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--teacher", type=Path, help="an ONNX file; else ResNet-56's module")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="of the training; else all")
    parser.add_argument("--work", type=Path, help="kept between runs: the cache and the builds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = Path(os.environ.get("OPTIMC_SHARED", ROOT.parent / "shared")).resolve()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        for seed in options.seeds:
            report = build(options, work, shared, seed)
            found = {r["variant"]: r["metrics"]["top1"] for r in report["results"]}
            rows.append(
                {
                    "seed": seed,
                    "samples": found["alone"]["samples"],
                    "alone": found["alone"]["value"],
                    "distilled": found["distilled"]["value"],
                    "course": course_of(report),
                }
            )
            if options.out is not None:
                options.out.write_text(json.dumps(rows, indent=1))
    gains = []
    for row in rows:
        variance = sum(row[name] * (1 - row[name]) for name in ("alone", "distilled"))
        error = (variance / row["samples"]) ** 0.5
        gains.append(row["distilled"] - row["alone"])
        print(
            f"seed {row['seed']}: alone {row['alone']:.4f}, distilled {row['distilled']:.4f}: "
            f"{gains[-1]:+.4f} (standard error at most {error:.4f})"
        )
        print("  " + "\n  ".join(row["course"]))
    spread = f", standard deviation {statistics.stdev(gains):.4f}" if len(gains) > 1 else ""
    print(f"mean {statistics.mean(gains):+.4f}{spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
