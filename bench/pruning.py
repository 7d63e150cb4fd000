"""Speed against accuracy when a network is cut, trained again and quantized, each as one build.

    python bench/pruning.py [--cuts blocks=12 blocks=16 speedup=1.4 ...] [--at-most "15 min"]
        [--teacher FILE] [--precision bfloat16] [--threads N] [--network resnet56]
        [--work FOLDER] [--out pruning.json]

`recipes/prune_distill_int8.yaml` is built once for each cut: `blocks=N` takes N residual blocks out
(`prune_depth`), `speedup=X`, `macs=S` and `ratio=S` narrow the inside of blocks until the target is
met (`prune_width`). Each build gives two engines, float and INT8, of the same trained network; they
are judged on all evaluation images, which no choice has seen, and their speed is measured beside
the source's on ONNX Runtime, one thread, one image. `--at-most` is what training may take of each
cut, `--epochs` the most passes over the images; `--teacher` is an ONNX file to learn from in place
of the whole network's module (ONNX Runtime answers in two thirds of PyTorch's time). Prints MACs,
speed-up and drop with their 95 % intervals, and the drop on the tuning split after each epoch: the
curve over training time. A build that was stopped is gone on with by the same command. Needs the
shared data (``../shared``, or `OPTIMC_SHARED`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "prune_distill_int8.yaml"
FINISH = ["simplify", "fuse"]


def pruning(cut: str) -> dict[str, Any]:
    """The pass of `blocks=16`, `speedup=1.4`, `macs=0.45` or `ratio=0.4`, as recipes write it."""
    name, _, value = cut.partition("=")
    if name == "blocks":
        return {"prune_depth": {"blocks": int(value), "rerank": False}}
    return {"prune_width": {name: float(value)}}


def write_recipe(path: Path, cut: str, training: dict[str, Any], network: str) -> None:
    """The shared recipe with that cut and training, for a float and an INT8 variant."""
    with RECIPE.open() as file:
        recipe = yaml.safe_load(file)
    course = [
        pruning(cut),
        {"train": {**recipe["variants"]["pruned_int8"][1]["train"], **training}},
    ]
    recipe["variants"] = {
        "cut_float": [*course, *FINISH],
        "cut_int8": [*course, *FINISH, "quantize_int8"],
    }
    recipe["gate"] = {"ship": "best", "drop": {"top1": 1.0}}  # the figures are wanted, no verdict
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def build(cut: str, work: Path, shared: Path, training: dict[str, Any], network: str) -> Any:
    """The report of the build of that cut."""
    folder = work / cut.replace("=", "_")
    folder.mkdir(parents=True, exist_ok=True)
    code = "prune_distill"
    shutil.copytree(RECIPE.parent / code, folder / code, dirs_exist_ok=True)
    write_recipe(folder / "recipe.yaml", cut, training, network)
    environment = {
        "MODEL": str(shared / "models" / f"{network}.safetensors"),
        "CIFAR": str(shared / "data"),
        "OPTIMC_CACHE_DIR": str(work / "cache"),
    }
    return built(folder, environment)


def built(folder: Path, environment: Mapping[str, str]) -> Any:
    """Builds `recipe.yaml` of that folder: the report. Ends the program where none is written: the
    build has said why."""
    report = folder / "out" / "report.json"
    report.unlink(missing_ok=True)  # of a run before
    subprocess.run(
        [sys.executable, "-m", "optimc", "build", "recipe.yaml", "-o", "out"],
        cwd=folder,
        env={**os.environ, **environment},
        check=False,  # the report says what came of it
    )
    return json.loads(report.read_text("utf-8")) if report.exists() else sys.exit(1)


def course_of(report: Any) -> list[str]:
    """What `train` noted of its epochs."""
    return [note for note in report["notes"] if note.startswith("train: ")]


def figures(cut: str, report: Any, metric: str = "top1") -> list[dict[str, Any]]:
    """A row for each engine that was built."""
    macs = {
        step["cell"]: step["steps"][-1]["macs"] / step["steps"][0]["macs"]
        for step in report["steps"]
        if all(isinstance(step["steps"][side]["macs"], int) for side in (0, -1))
    }
    rows = []
    for result in report["results"]:
        if result["status"] != "built":
            print(f"{cut}: {result['variant']} {result['status']}: {result['reason']}")
            continue
        found, speed = result["metrics"][metric], result["speedup"]
        rows.append(
            {
                "cut": cut,
                "engine": result["variant"].rpartition("_")[2],
                "macs": macs.get(f"{result['variant']}/{result['target']}"),
                "bytes": result["engine"]["bytes"],
                "speedup": [speed["value"], *speed["ci95"]],
                "value": found["value"],
                "drop": [found["drop"], *found["ci95"]],
                "samples": found["samples"],
                "course": course_of(report),
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """A row as a person reads it."""
    fewer = f"{1 / row['macs']:5.2f}x" if row["macs"] else "    -"
    speed, drop = row["speedup"], row["drop"]
    return (
        f"{row['cut']:>14} {row['engine']:>6} {fewer} {row['bytes'] / 1000:9.0f}"
        f"  {speed[0]:5.2f} [{speed[1]:.2f}, {speed[2]:.2f}]"
        f"  {row['value']:.4f}  {drop[0]:+.4f} [{drop[1]:+.4f}, {drop[2]:+.4f}]"
    )


def main() -> int:
    """Builds, prints, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cuts", nargs="+", default=["blocks=12", "blocks=16", "speedup=1.4"])
    parser.add_argument("--at-most", default="15 min", help="training time of each cut")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--teacher", type=Path, help="an ONNX file; else the network itself")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="of the training; else all")
    parser.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56"])
    parser.add_argument("--work", type=Path, help="kept between runs: the cache and the builds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = Path(os.environ.get("OPTIMC_SHARED", ROOT.parent / "shared")).resolve()
    training = {
        "at_most": options.at_most,
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "precision": options.precision,
        "threads": options.threads,
    }
    if options.teacher is not None:
        training["distill"] = {"teacher": {"onnx": str(options.teacher.resolve())}}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        for cut in options.cuts:
            rows += figures(cut, build(cut, work, shared, training, options.network))
            if options.out is not None:
                options.out.write_text(json.dumps({"training": training, "rows": rows}, indent=1))
    print(f"{'cut':>14} {'engine':>6}  MACs     kB     speed-up             top-1   drop")
    print("\n".join(line(row) for row in rows))
    for cut in options.cuts:
        notes = next((row["course"] for row in rows if row["cut"] == cut), [])
        print(f"{cut}: " + "; ".join(dict.fromkeys(notes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
