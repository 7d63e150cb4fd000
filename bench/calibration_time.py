"""Time of calibration and placement against NNCF's, on a sentence encoder and 150 samples.

    MODEL=all-MiniLM-L6-v2 STS=folder-with-the-tsv-files python bench/calibration_time.py

Both start from the same ONNX file, exported once beforehand, and from the same samples, tokenized
beforehand; nothing is kept from one round to the next, and each measurement has a process of its
own. Ours observes the values in its worker process and places Q and DQ for ONNX Runtime, then from
the same values for OpenVINO. NNCF's is `nncf.quantize` of the OpenVINO model with its defaults for
transformers. The two take turns. Prints the seconds of each round, by the clock and of all CPUs,
and the ratios' medians with their ends. Exits with 1 where the median by the clock is above 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset
    from optimc.core.model import OnnxModel

RECIPE = Path(__file__).parents[1] / "recipes" / "minilm.yaml"


def prepared(folder: Path) -> tuple[OnnxModel, OnnxModel, Dataset]:
    """The source, what `simplify` and `fuse` make of it, and the calibration data.

    The export is kept in `folder`, for the process after this one.
    """
    from optimc.passes.fuse import Fuse
    from optimc.passes.simplify import Simplify
    from optimc.pipeline.build import worker_limits
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.data import open_data
    from optimc.pipeline.ingest import read_source
    from optimc.pipeline.ingest_torch import with_known
    from optimc.pipeline.recipe import load_recipe
    from optimc.testing.runs import run_pass

    recipe = load_recipe(RECIPE)
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True)
    source = read_source(recipe, Cache(folder / "cache"), worker_limits(recipe), workspace)
    data = open_data(with_known(recipe, source.known), source.model.signature)
    simplified = run_pass(Simplify(), source.model).model
    fused = run_pass(Fuse(), simplified).model  # type: ignore[arg-type]
    return source.model, fused, data.calibration  # type: ignore[return-value]


def ours(source: OnnxModel, fused: OnnxModel, data: Dataset) -> dict[str, float]:
    """Seconds for the first target, observing included, and for the second; sweeps made."""
    from optimc.calibration.observe import ActivationCalibration
    from optimc.core.cpu import cpu_features
    from optimc.passes.quantize_int8 import QuantizeInt8
    from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu
    from optimc.testing.calibrated import FolderStore, target_spec
    from optimc.testing.runs import run_pass

    features = set(cpu_features())
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        calibration = ActivationCalibration(source, data, 0, FolderStore(Path(folder)))
        run_pass(
            QuantizeInt8(),
            fused,
            spec=target_spec(onnxruntime_cpu(features)),
            calibration=calibration,
        )
        first = time.perf_counter()
        run_pass(
            QuantizeInt8(),
            fused,
            spec=target_spec(openvino_cpu(features)),
            calibration=calibration,
        )
        second = time.perf_counter()
        return {"one": first - started, "other": second - first, "sweeps": calibration.sweeps}


def theirs(source: OnnxModel, feeds: list[Any]) -> float:
    """Seconds of NNCF's quantization."""
    import nncf
    import openvino

    nncf.set_log_level(40)
    model = openvino.convert_model(source.path)
    started = time.perf_counter()
    nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    return time.perf_counter() - started


def measured(who: str, folder: Path) -> dict[str, float]:
    """One measurement of this process: seconds of the clock and of all its CPUs, and the peak.

    The CPU seconds are those of the worker too, which has ended by then. The peak is the larger one
    of the two processes, in MB of 10^6 bytes, with what `prepared` took.
    """
    source, fused, data = prepared(folder)
    feeds = [dict(batch.feeds) for batch in data.batches(1)]
    before = _cpu_seconds()
    if who == "ours":
        found = ours(source, fused, data)
        found["seconds"] = found["one"] + found["other"]
    else:
        found = {"seconds": theirs(source, feeds)}
    found["cpu"] = _cpu_seconds() - before
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    found["peak_mb"] = max(resource.getrusage(who).ru_maxrss for who in whose) * 1024 / 1e6
    return {**found, "samples": len(feeds)}


def _cpu_seconds() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in whose]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _apart(who: str, folder: Path) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", who, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keeps the export for the next time")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, arguments.folder)))
        return
    print("| round | one target, s | a second, s | both, s | CPU, s | peak, MB |", end="")
    print(" NNCF, s | CPU, s | peak, MB | ratio | CPU ratio |")
    print("|" + " --- |" * 11, flush=True)
    walls: list[float] = []
    cpus: list[float] = []
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        for number in range(arguments.rounds):
            turn = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
            found = {who: _apart(who, folder) for who in turn}
            own, peer = found["ours"], found["theirs"]
            walls.append(own["seconds"] / peer["seconds"])
            cpus.append(own["cpu"] / peer["cpu"])
            row = [f"{own[key]:.2f}" for key in ("one", "other", "seconds", "cpu")]
            row += [f"{own['peak_mb']:.0f}", f"{peer['seconds']:.2f}", f"{peer['cpu']:.2f}"]
            row += [f"{peer['peak_mb']:.0f}", f"{walls[-1]:.2f}", f"{cpus[-1]:.2f}"]
            print(f"| {number + 1} | {' | '.join(row)} |", flush=True)
    print(f"\n{own['samples']:.0f} samples, {own['sweeps']:.0f} sweeps; ours to NNCF's:", end=" ")
    print(f"time {_spread(walls)}, CPU {_spread(cpus)}")
    sys.exit(1 if statistics.median(walls) > 1.0 else 0)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
