"""What quantization-aware training gives back of the accuracy that INT8 takes from a small network.

    python bench/qat.py [--spread 2] [--train 10000] [--epochs 3] [--seeds 0 1 2] [--out qat.json]

The depthwise network of `bench/recovery.py` is quantized with one scale for each weight tensor and
min-max ranges (with `--per-channel` as ONNX Runtime's placement has it by itself), and then trained
as it stands by `qat` on training images, without labels unless `--distill` is below 1. Calibration
sees 500 images; the last 2,000 training images are the tuning split that tells the best epoch; the
evaluation images are looked at when all is done. `--spread` makes channels uneven, see
`bench/recovery.py`. Prints top-1 on all evaluation images, the drops with their 95 % intervals, and
the share of the loss that is won back. Needs the shared data (``../shared``, or `OPTIMC_SHARED`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from recovery import CALIBRATION, TRANSFORM, figures, logits, network, opened, target

from optimc.calibration.npz import NpzSource
from optimc.calibration.observe import ActivationCalibration
from optimc.calibration.sample_store import store_samples
from optimc.core.passes import Drop
from optimc.measure.paired import proportion_drop
from optimc.passes.fuse import Fuse
from optimc.passes.qat import Qat
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.testing.calibrated import FolderStore
from optimc.testing.runs import run_pass
from optimc.testing.training_data import FolderTraining

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset
    from optimc.core.model import Model, OnnxModel

TUNING = 2000
Labels = NDArray[np.int64]


@dataclass
class TopOneTuning:
    """Top-1 on the tuning split: an `optimc.core.passes.Tuning`."""

    data: Dataset
    labels: Labels
    reference: NDArray[np.bool_]
    folder: Path
    digest: str = "tuning"
    metric: str = "top1"

    def drop(self, model: Model) -> Drop:
        """By how much `model` is worse than the float network."""
        right = logits(model, self.data, self.folder).argmax(1) == self.labels  # type: ignore[arg-type]
        lost, won = (self.reference & ~right).sum(), (right & ~self.reference).sum()
        drop = proportion_drop(int(lost), int(won), len(right))
        print(f"  tuning: {drop.point:+.4f}", flush=True)
        return Drop(drop.point, drop.lower, drop.upper, len(right))

    def drop_of(self, run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Drop:
        """Nothing here runs modules."""
        raise NotImplementedError

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """Nothing here asks for it."""
        raise NotImplementedError


def decoded(path: Path, chosen: range) -> tuple[NDArray[np.uint8], Labels]:
    """The `chosen` images [n, 32, 32, 3] and labels [n] of an archive of JPEG files."""
    from PIL import Image

    with np.load(path, allow_pickle=False) as archive:
        jpeg, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
    images = [
        np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())))
        for i in chosen
    ]
    return np.stack(images), labels[list(chosen)]


def as_dataset(images: NDArray[np.uint8], labels: Labels, folder: Path, name: str) -> Dataset:
    """Images and labels as the network takes them."""
    np.savez(folder / f"{name}.npz", images=images, labels=labels)
    written = {
        "npz": f"{name}.npz",
        "inputs": {"input": "images"},
        "labels": "labels",
        "transform": TRANSFORM,
    }
    return NpzSource.model_validate(written).open(folder, 0)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spread", type=float, default=1.0, help="how uneven channels are made")
    parser.add_argument("--per-channel", action="store_true", help="one scale for each channel")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--scale-learning-rate", type=float, default=0.001)
    parser.add_argument("--distill", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    return parser.parse_args()


def main() -> int:
    """Runs the comparison; 0 where it ran, 2 where something is missing."""
    given = arguments()
    root = Path(__file__).resolve().parent
    shared = Path(os.environ.get("OPTIMC_SHARED", root.parent.parent / "shared"))
    if not (shared / "data").is_dir():
        print(f"skipped: no shared data in {shared}; set OPTIMC_SHARED", file=sys.stderr)
        return 2
    source = network(root / "depthwise" / "depthwise.safetensors", given.spread)
    with tempfile.TemporaryDirectory(prefix="optimc-bench-") as name:
        folder = Path(name)
        fused: Any = run_pass(Fuse(), source).model
        calibration = ActivationCalibration(
            source, opened(shared, "cifar10_calib.npz", CALIBRATION), 0, FolderStore(folder)
        )
        spec = target(per_channel=given.per_channel)
        plain: Any = run_pass(
            QuantizeInt8(ranges="minmax"), fused, spec=spec, calibration=calibration
        ).model
        rows = {"plain": (plain, 0.0)}
        for seed in given.seeds:
            rows[f"qat, seed {seed}"] = trained(given, shared, folder, source, fused, plain, seed)
        table = evaluated(rows, source, opened(shared, "cifar10_eval.npz", None), folder)
    if given.out is not None:
        given.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def trained(
    given: argparse.Namespace,
    shared: Path,
    folder: Path,
    source: OnnxModel,
    fused: OnnxModel,
    plain: OnnxModel,
    seed: int,
) -> tuple[OnnxModel, float]:
    """The model after `qat`, and the seconds that it took."""
    archive = shared / "data" / "cifar10_train_jpeg.npz"
    samples = folder / "samples"
    if not samples.exists():
        store_samples(as_dataset(*decoded(archive, range(given.train)), folder, "train"), samples)
    images, labels = decoded(archive, range(50_000 - TUNING, 50_000))
    data = as_dataset(images, labels, folder, "tuning")
    tuning = TopOneTuning(data, labels, logits(source, data, folder).argmax(1) == labels, folder)
    options = ("epochs", "batch", "learning_rate", "scale_learning_rate", "distill")
    qat = Qat.model_validate({name: getattr(given, name) for name in options})
    start = time.perf_counter()
    training = FolderTraining(f"{given.train} images", samples)
    result = run_pass(qat, plain, quantized_from=fused, training=training, tuning=tuning, seed=seed)
    print(f"  seed {seed}: {dict(result.stats)}", flush=True)
    return result.model, time.perf_counter() - start  # type: ignore[return-value]


def evaluated(
    rows: Mapping[str, tuple[OnnxModel, float]], source: OnnxModel, data: Dataset, folder: Path
) -> dict[str, Any]:
    """Prints the table; the figures by row."""
    labels = np.concatenate([np.asarray(batch.labels) for batch in data.batches(500)])
    reference = logits(source, data, folder)
    print(f"float: {(reference.argmax(1) == labels).mean():.4f}, {len(labels)} images\n")
    print("| INT8 | top-1 | drop (95 % interval) | of the loss won back | s |")
    print("| --- | --- | --- | --- | --- |")
    table: dict[str, Any] = {}
    for name, (model, seconds) in rows.items():
        seen = figures(logits(model, data, folder), reference, labels)
        lost = table.get("plain", seen)["drop"]
        won = 1 - seen["drop"] / lost if lost > 0 else None
        table[name] = {**seen, "seconds": seconds, "won_back": won}
        (low, high), share = seen["ci95"], "-" if won is None else f"{won:.0%}"
        print(
            f"| {name} | {seen['top1']:.4f} | {seen['drop']:+.4f} ({low:+.4f} to {high:+.4f})"
            f" | {share} | {seconds:.0f} |",
            flush=True,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
