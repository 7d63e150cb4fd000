"""What each recovery pass gives back of the accuracy that INT8 takes from a depthwise network.

    python bench/recovery.py [--spread 4] [--rows 0 1] [--out results.json]

The network (`bench/depthwise/train.py`, its weights beside it) is quantized with one scale for each
weight tensor and min-max ranges, which is plain post-training quantization, and then with each of
the recovery passes and all of them. The rows with one scale for each channel are what the placement
for ONNX Runtime does by itself. Calibration sees 500 training images, nothing sees the evaluation
images before the end. With `--spread S` each channel between two layers is first divided by a
factor from 1/S to S (log-uniform, seeded) and multiplied back in the next layer: the same function
with uneven channels, the inverse of what equalization does. Prints top-1 on all evaluation images,
and the drop with its 95 % interval on the same images (Tango). Needs the shared data
(``../shared``, or `OPTIMC_SHARED`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimc.calibration.npz import NpzSource
from optimc.calibration.observe import ActivationCalibration
from optimc.core.cpu import cpu_features
from optimc.core.passes import Pass
from optimc.core.targets import TargetSpec
from optimc.measure.paired import proportion_drop
from optimc.passes.correct_bias import CorrectBias
from optimc.passes.equalize import Equalize
from optimc.passes.fit_rounding import FitRounding
from optimc.passes.fuse import Fuse
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing.calibrated import FolderStore
from optimc.testing.graphs import GraphBuilder
from optimc.testing.runs import run_pass

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset
    from optimc.core.model import OnnxModel

CALIBRATION = 500
STAGES = ((32, 2), (64, 1), (128, 2), (128, 1), (192, 2), (192, 1))  # as in depthwise/train.py
TRANSFORM = [
    "nchw",
    {"divide": 255},
    {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One way to INT8: what runs before and behind `quantize_int8`."""

    name: str
    before: tuple[Pass, ...] = ()
    behind: tuple[Pass, ...] = ()
    per_channel: bool = False
    ranges: str = "minmax"


FIT, BIAS, EVEN = FitRounding(), CorrectBias(), Equalize()
ANALYTIC = CorrectBias(method="analytic")
ROWS = (
    Row("per tensor, plain"),
    Row("+ ranges: mse", ranges="mse"),
    Row("+ equalize", (EVEN,)),
    Row("+ correct_bias", behind=(BIAS,)),
    Row("+ fit_rounding", behind=(FIT,)),
    Row("+ equalize, correct_bias", (EVEN,), (BIAS,)),
    Row("+ equalize, fit_rounding", (EVEN,), (FIT,)),
    Row("+ equalize, ranges: mse, fit_rounding, correct_bias", (EVEN,), (FIT, BIAS), ranges="mse"),
    Row("per channel, plain", per_channel=True),
    Row("per channel, all", (EVEN,), (FIT, BIAS), per_channel=True, ranges="mse"),
    Row("+ ranges: output_error", ranges="output_error"),
    Row("+ correct_bias: analytic", behind=(ANALYTIC,)),
    Row("per channel, ranges: mse", per_channel=True, ranges="mse"),
    Row("per channel, ranges: output_error", per_channel=True, ranges="output_error"),
)


def spread_out(tensors: dict[str, Floats], spread: float) -> None:
    """Divides the channels between two layers by factors from ``1 / spread`` to `spread`."""
    rng = np.random.default_rng(0)
    for index in range(2 * len(STAGES)):
        norm, conv = f"features.{index}.1", f"features.{index + 1}.0.weight"
        size = len(tensors[f"{norm}.weight"])
        factors = np.exp(rng.uniform(-1, 1, size) * np.log(spread)).astype(np.float32)
        for name in (f"{norm}.weight", f"{norm}.bias"):
            tensors[name] = tensors[name] / factors
        # A depthwise filter stands as [channels, 1, 3, 3], a pointwise one as [outputs, channels].
        axis = 0 if tensors[conv].shape[1] == 1 else 1
        tensors[conv] = tensors[conv] * factors.reshape([-1 if i == axis else 1 for i in range(4)])


def network(weights: Path, spread: float) -> OnnxModel:
    """The trained network as an exporter writes it: convolutions and BatchNormalization."""
    from safetensors.numpy import load_file

    tensors = {name: t.astype(np.float32) for name, t in load_file(weights).items()}
    if spread > 1.0:
        spread_out(tensors, spread)
    b = GraphBuilder()
    h = b.input("input", ["batch", 3, 32, 32])
    layers = [(3, 1)]
    for _, stride in STAGES:
        layers += [(3, stride), (1, 1)]
    for index, (size, stride) in enumerate(layers):
        prefix = f"features.{index}"
        weight = tensors[f"{prefix}.0.weight"]
        group = len(weight) if index and weight.shape[1] == 1 else 1
        attributes = {"strides": [stride] * 2, "pads": [size // 2] * 4, "group": group}
        h = b.node("Conv", h, b.constant(weight), name=f"{prefix}.conv", **attributes)
        names = ("weight", "bias", "running_mean", "running_var")
        norm = [b.constant(tensors[f"{prefix}.1.{name}"]) for name in names]
        h = b.node("Relu", b.node("BatchNormalization", h, *norm, epsilon=1e-5))
    h = b.node("Flatten", b.node("GlobalAveragePool", h), axis=1)
    linear = [b.constant(tensors[f"linear.{name}"]) for name in ("weight", "bias")]
    b.node("Gemm", h, *linear, transB=1, name="linear", to="logits")
    b.output("logits", ["batch", 10])
    return b.model()


def target(*, per_channel: bool) -> TargetSpec:
    """ONNX Runtime on this CPU, with one scale for each channel of a weight or for all of it."""
    spec = onnxruntime_cpu(cpu_features())
    if not per_channel:
        rules = {n: r.model_copy(update={"weight_axis": None}) for n, r in spec.rules.items()}
        spec = spec.model_copy(update={"rules": rules})
    return TargetSpec(
        runtime="onnxruntime",
        max_opset=23,
        max_ir_version=11,
        dtypes=frozenset({"float32"}),
        quantization=spec,
    )


def quantized(row: Row, fused: OnnxModel, calibration: ActivationCalibration) -> OnnxModel:
    """The model of one row."""
    model: Any = fused
    for pass_ in row.before:
        model = run_pass(pass_, model).model
    plain = QuantizeInt8.model_validate({"ranges": row.ranges})
    spec = target(per_channel=row.per_channel)
    result: Any = run_pass(plain, model, spec=spec, calibration=calibration).model
    for pass_ in row.behind:
        result = run_pass(pass_, result, calibration=calibration, quantized_from=model).model
    return result  # type: ignore[no-any-return]


def logits(model: OnnxModel, data: Dataset, folder: Path) -> Floats:
    """The outputs for all samples, by ONNX Runtime as it ships, on one thread."""
    import onnxruntime

    path = folder / "model.onnx"
    model.write_onnx(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(["logits"], dict(batch.feeds))[0] for batch in data.batches(250)]
    )


def opened(shared: Path, file: str, take: int | None) -> Dataset:
    """The images as the network takes them."""
    written = {
        "npz": file,
        "inputs": {"input": "images"},
        "labels": "labels",
        "transform": TRANSFORM,
        "take": take,
    }
    return NpzSource.model_validate(written).open(shared / "data", 0)


def figures(found: Floats, reference: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Top-1, its drop with the intervals, and the SQNR of the logits."""
    right, wanted = found.argmax(1) == labels, reference.argmax(1) == labels
    lost, won = int((wanted & ~right).sum()), int((right & ~wanted).sum())
    drop = proportion_drop(lost, won, len(labels))
    noise = float(np.square(found.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return {
        "top1": float(right.mean()),
        "drop": drop.point,
        "ci95": drop.ci95,
        "upper95": drop.upper,
        "sqnr_db": 10 * float(np.log10(signal / noise)) if noise else None,
    }


def main() -> int:
    """Runs the comparison; 0 where it ran, 2 where something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--take", type=int, default=None, help="evaluation images, all by default")
    parser.add_argument("--spread", type=float, default=1.0, help="how uneven channels are made")
    parser.add_argument("--rows", nargs="+", default=None, help="numbers of rows, from 0")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parent
    shared = Path(os.environ.get("OPTIMC_SHARED", root.parent.parent / "shared"))
    if not (shared / "data").is_dir():
        print(f"skipped: no shared data in {shared}; set OPTIMC_SHARED", file=sys.stderr)
        return 2
    evaluation = opened(shared, "cifar10_eval.npz", arguments.take)
    labels = np.concatenate([np.asarray(b.labels) for b in evaluation.batches(500)])
    source = network(root / "depthwise" / "depthwise.safetensors", arguments.spread)
    chosen = ROWS if arguments.rows is None else [ROWS[int(number)] for number in arguments.rows]
    table = {}
    with tempfile.TemporaryDirectory(prefix="optimc-bench-") as name:
        folder = Path(name)
        data = opened(shared, "cifar10_calib.npz", CALIBRATION)
        calibration = ActivationCalibration(source, data, 0, FolderStore(folder))
        reference = logits(source, evaluation, folder)
        print(f"float: {(reference.argmax(1) == labels).mean():.4f}, {len(labels)} images\n")
        print("| INT8 | top-1 | drop (95 % interval) | upper end, one-sided | SQNR dB | s |")
        print("| --- | --- | --- | --- | --- | --- |")
        fused: Any = run_pass(Fuse(), source).model
        for row in chosen:
            start = time.perf_counter()
            model = quantized(row, fused, calibration)
            seconds = time.perf_counter() - start
            seen = figures(logits(model, evaluation, folder), reference, labels)
            table[row.name] = {**seen, "seconds": seconds}
            low, high = seen["ci95"]
            print(
                f"| {row.name} | {seen['top1']:.4f} | {seen['drop']:+.4f} ({low:+.4f} to"
                f" {high:+.4f}) | {seen['upper95']:+.4f} | {seen['sqnr_db']:.1f} | {seconds:.1f} |",
                flush=True,
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
