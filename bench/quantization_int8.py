"""Static INT8 against the peers: ONNX Runtime's own tool, and NNCF with OpenVINO.

    python bench/quantization_int8.py [--models resnet20 resnet56] [--seconds 120] [--quick]

Quantizes each model with every tool from the same 500 calibration images, measures top-1 on all
evaluation images through the runtime that is named, and the latency of one image on one thread,
all engines in turns in one run. Speed is against the float model on ONNX Runtime. Prints a table in
Markdown. Needs the shared models (``../shared``, or `OPTIMC_SHARED`) and the extra `openvino`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimc.calibration.dataset import Dataset
from optimc.calibration.npz import NpzSource
from optimc.core.model import OnnxModel
from optimc.measure.latency import SamplingPlan, measure
from optimc.measure.machine import describe_machine
from optimc.measure.paired import proportion_drop

CALIBRATION = 500
TRANSFORM = [
    "nchw",
    {"divide": 255},
    {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
]
FLOAT = "ONNX Runtime, float"
Array = NDArray[np.generic]


@dataclass
class Candidate:
    """One engine: a file that one runtime loads. Times one image in its process's thread."""

    name: str
    runtime: str
    path: Path
    seconds: float | None = None
    """How long quantizing took."""
    image: Array | None = None
    _run: Callable[[], object] = field(default=lambda: None)

    def reopen(self) -> float:
        """Opens a fresh session; milliseconds."""
        start = time.perf_counter()
        assert self.image is not None
        self._run = SESSIONS[self.runtime](self.path, self.image)
        return (time.perf_counter() - start) * 1e3

    def time_block(self, runs: int) -> NDArray[np.int64]:
        """Nanoseconds of each run."""
        taken = np.empty(runs, np.int64)
        for index in range(runs):
            start = time.perf_counter_ns()
            self._run()
            taken[index] = time.perf_counter_ns() - start
        return taken

    def logits(self, data: Dataset) -> NDArray[np.float32]:
        """The outputs for all samples."""
        batches = [PREDICT[self.runtime](self.path, b.feeds["input"]) for b in data.batches(500)]
        return np.concatenate(batches)


def onnxruntime_session(path: Path) -> Any:
    """A session on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnxruntime_runner(path: Path, image: Array) -> Callable[[], object]:
    """Runs one image with input and output bound."""
    import onnxruntime

    session = onnxruntime_session(path)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", onnxruntime.OrtValue.ortvalue_from_numpy(image))
    binding.bind_output("logits")
    return lambda: session.run_with_iobinding(binding)


def onnxruntime_predict(path: Path, images: Array) -> Array:
    """The logits of a batch."""
    return onnxruntime_session(path).run(["logits"], {"input": images})[0]  # type: ignore[no-any-return]


def openvino_request(path: Path) -> Any:
    """A request on one thread, in float32 where a layer is not INT8."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(path, "CPU", options).create_infer_request()


def openvino_runner(path: Path, image: Array) -> Callable[[], object]:
    """Runs one image with the input bound."""
    import openvino

    request = openvino_request(path)
    request.set_input_tensor(openvino.Tensor(image))
    return lambda: request.infer()


def openvino_predict(path: Path, images: Array) -> Array:
    """The logits of a batch."""
    results = openvino_request(path).infer({"input": images})
    return next(iter(results.values())).copy()  # type: ignore[no-any-return]


SESSIONS = {"onnxruntime": onnxruntime_runner, "openvino": openvino_runner}
PREDICT = {"onnxruntime": onnxruntime_predict, "openvino": openvino_predict}


class Reader:
    """Feeds ONNX Runtime's tool."""

    def __init__(self, data: Dataset) -> None:
        self._batches = data.batches(50)

    def get_next(self) -> Mapping[str, Array] | None:
        """The next batch, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch.feeds)


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what tools print to nowhere, and keeps them off the network."""
    os.environ |= {"NNCF_TELEMETRY": "0", "OPENVINO_TELEMETRY": "0", "DO_NOT_TRACK": "1"}
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def by_onnxruntime(source: Path, target: Path, data: Dataset, activations: str) -> None:
    """ONNX Runtime's quantize_static with Q and DQ, one scale for each channel, min-max ranges."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(target),
        Reader(data),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=getattr(QuantType, activations),
        weight_type=QuantType.QInt8,
    )


def by_nncf(source: Path, target: Path, data: Dataset) -> None:
    """NNCF's post-training quantization with its defaults."""
    import nncf
    import openvino

    images = [batch.feeds["input"] for batch in data.batches(1)]
    model = openvino.Core().read_model(source)
    found = nncf.quantize(model, nncf.Dataset(images, lambda x: x), subset_size=len(images))
    openvino.save_model(found, target, compress_to_fp16=False)


class Ours:
    """simplify, fuse, quantize_int8: calibration is observed once for both targets."""

    def __init__(self, source: Path, data: Dataset, folder: Path) -> None:
        import onnx_ir

        from optimc.calibration.observe import ActivationCalibration
        from optimc.testing import as_model
        from optimc.testing.calibrated import FolderStore

        self.source = as_model(onnx_ir.load(source))
        self.calibration = ActivationCalibration(
            self.source, data, 0, FolderStore(folder / "calibration")
        )

    def quantize(self, runtime: str, target: Path) -> None:
        """Writes the model that is placed for a runtime."""
        from optimc.core.registry import target_class
        from optimc.passes.fuse import Fuse
        from optimc.passes.quantize_int8 import QuantizeInt8
        from optimc.passes.simplify import Simplify
        from optimc.testing import run_pass

        spec = target_class(runtime)(runtime=runtime).spec()
        model: Any = self.source
        for step in (Simplify(), Fuse(), QuantizeInt8()):
            model = run_pass(step, model, spec=spec, calibration=self.calibration).model
        assert isinstance(model, OnnxModel)
        model.write_onnx(target)


def timed(work: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    with quiet():
        work()
    return time.perf_counter() - start


def candidates(source: Path, data: Dataset, folder: Path) -> list[Candidate]:
    """Every tool's result."""
    ours = Ours(source, data, folder)
    made = [
        Candidate(FLOAT, "onnxruntime", source),
        Candidate("OpenVINO, float", "openvino", source),
    ]
    jobs: list[tuple[str, str, str, Callable[[Path], None]]] = [
        (
            "ONNX Runtime, its tool, U8S8",
            "onnxruntime",
            "u8s8.onnx",
            lambda target: by_onnxruntime(source, target, data, "QUInt8"),
        ),
        (
            "ONNX Runtime, its tool, S8S8",
            "onnxruntime",
            "s8s8.onnx",
            lambda target: by_onnxruntime(source, target, data, "QInt8"),
        ),
        ("OpenVINO, NNCF", "openvino", "nncf.xml", lambda target: by_nncf(source, target, data)),
        (
            "ONNX Runtime, optimc",
            "onnxruntime",
            "optimc_ort.onnx",
            lambda target: ours.quantize("onnxruntime", target),
        ),
        (
            "OpenVINO, optimc",
            "openvino",
            "optimc_ov.onnx",
            lambda target: ours.quantize("openvino", target),
        ),
    ]
    for name, runtime, file, job in jobs:
        target = folder / file
        made.append(Candidate(name, runtime, target, timed(lambda job=job, t=target: job(t))))  # type: ignore[misc]
    return made


def opened(shared: Path, file: str, take: int | None) -> Dataset:
    """The images as the models take them."""
    written = {
        "npz": file,
        "inputs": {"input": "images"},
        "labels": "labels",
        "transform": TRANSFORM,
        "take": take,
    }
    return NpzSource.model_validate(written).open(shared / "data", 0)


def compare(model: str, shared: Path, seconds: float, take: int | None) -> None:
    """Prints the rows of one model."""
    evaluation = opened(shared, "cifar10_eval.npz", take)
    labels = np.concatenate([batch.labels for batch in evaluation.batches(500)])
    with tempfile.TemporaryDirectory(prefix="optimc-bench-") as folder:
        made = candidates(
            shared / "models" / f"{model}.onnx",
            opened(shared, "cifar10_calib.npz", CALIBRATION),
            Path(folder),
        )
        image = next(evaluation.batches(1)).feeds["input"]
        for one in made:
            one.image = image
        timings = measure({one.name: one for one in made}, SamplingPlan(at_most_s=seconds))
        reference = made[0].logits(evaluation)
        for one in made:
            ratio = timings.ratio(one.name, FLOAT)
            speed = ratio if isinstance(ratio, str) else f"{ratio.point:.2f}x ({span(ratio.ci95)})"
            p50 = timings.latency(one.name).p50
            latency = p50 if isinstance(p50, str) else f"{p50.ms:.3f}"
            quality = row_of_quality(one.logits(evaluation), reference, labels)
            taken = "-" if one.seconds is None else f"{one.seconds:.1f}"
            print(
                f"| {model} | {one.name} | {speed} | {latency} | {quality} | {taken} |", flush=True
            )


def row_of_quality(
    logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]
) -> str:
    """Top-1, its drop with the interval, and the SQNR against the float model."""
    right, wanted = logits.argmax(1) == labels, reference.argmax(1) == labels
    drop = proportion_drop(int((wanted & ~right).sum()), int((right & ~wanted).sum()), len(labels))
    noise = float(np.square(logits.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    sqnr = f"{10 * np.log10(signal / noise):.1f}" if noise else "-"
    return f"{right.mean():.4f} | {drop.point:+.4f} ({span(drop.ci95, '+.4f')}) | {sqnr}"


def span(ends: tuple[float, float], form: str = ".2f") -> str:
    """An interval's ends."""
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def main() -> int:
    """Runs the comparison; 0 where it ran, 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring, for each model")
    parser.add_argument("--quick", action="store_true", help="20 s a model, 1,000 images")
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    shared = Path(os.environ.get("OPTIMC_SHARED", root.parent / "shared"))
    if not (shared / "models").is_dir():
        print(f"skipped: no shared models in {shared}; set OPTIMC_SHARED", file=sys.stderr)
        return 2
    machine = describe_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.features)};", end=" ")
    print(f"load {machine.load_average}\n")
    print("| model | engine | speed | p50 ms | top-1 | drop | SQNR dB | quantized in s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    seconds = 20.0 if arguments.quick else arguments.seconds
    for model in arguments.models:
        compare(model, shared, seconds, 1000 if arguments.quick else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
