"""Time of calibration and placement against NNCF's, on a sentence encoder and 150 samples.

    MODEL=all-MiniLM-L6-v2 STS=folder-with-the-tsv-files python bench/calibration_time.py

Both start from the same ONNX file, exported once beforehand, and from the same samples, tokenized
beforehand; nothing is kept from one round to the next. Ours observes the values in its worker
process and places Q and DQ for ONNX Runtime, then from the same values for OpenVINO. NNCF's is
`nncf.quantize` of the OpenVINO model with its defaults for transformers. The two take turns.
Prints the seconds of each round, and exits with 1 where our median is above NNCF's.
"""

from __future__ import annotations

import argparse
import statistics
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
    """The source, what `simplify` and `fuse` make of it, and the calibration data."""
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
    source = read_source(recipe, Cache(), worker_limits(recipe), folder)
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


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, fused, data = prepared(Path(folder))
        feeds = [dict(batch.feeds) for batch in data.batches(1)]
        print(f"{len(feeds)} samples\n")
        print("| round | one target, s | a second, s | both, s | sweeps | NNCF, s |")
        print("| --- | --- | --- | --- | --- | --- |")
        both: list[tuple[float, float]] = []
        for number in range(arguments.rounds):
            own = ours(source, fused, data)
            peer = float("nan") if arguments.only_ours else theirs(source, feeds)
            both.append((own["one"] + own["other"], peer))
            row = [f"{own['one']:.2f}", f"{own['other']:.2f}", f"{both[-1][0]:.2f}"]
            row += [f"{own['sweeps']:.0f}", f"{peer:.2f}"]
            print(f"| {number + 1} | {' | '.join(row)} |", flush=True)
    own_median, peer_median = (statistics.median(column) for column in zip(*both, strict=True))
    print(f"\nmedians: ours {own_median:.2f} s, NNCF {peer_median:.2f} s")
    sys.exit(1 if own_median > peer_median else 0)


if __name__ == "__main__":
    main()
