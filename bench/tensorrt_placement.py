"""The placement for TensorRT without a GPU: what the lint says of it, and what it costs.

    python bench/tensorrt_placement.py [--models resnet20 resnet56 minilm] [--take N] [NAME...]

Names and models given leave out the others. First, each architecture (built from a config with
seeded weights by a factory, see bench/architectures.py) and each shared model is quantized for
TensorRT, and linted: clean placements have no finding. Then Q and DQ for TensorRT on the shared
models: the values by ONNX Runtime with optimizations off, against the same ranges placed for ONNX
Runtime, on all evaluation data; `minilm` (Spearman on pairs of sentences) only where it is named.
Exits with 1 where the lint complains or the metric differs by more than 0.002. No figure in here is
a GPU's: none was measured. Needs the shared models (``../shared``, or `OPTIMC_SHARED`) and the
extra `torch`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel

sys.path.insert(0, str(Path(__file__).parent))
ARCHITECTURES = ("ResNet", "ViT", "BERT")
MODELS = ("resnet20", "resnet56")
ALLOWED = 0.002
_RECIPE = """
variants: {int8: {passes: [simplify, fuse, quantize_int8], targets: [trt]}}
targets: {trt: {runtime: tensorrt, optional: true}}
"""


def findings(model: OnnxModel) -> str:
    """What the lint says, in a few words."""
    from optimc.targets.tensorrt_lint import lint

    found = lint(model)
    counted = Counter(f"{f.severity} {f.rule}" for f in found)
    first = f": {found[0]}" if found else ""
    return (", ".join(f"{n} {rule}" for rule, n in counted.items()) or "none") + first


def quantized_nodes(model: OnnxModel) -> int:
    """Q and DQ."""
    pair = ("QuantizeLinear", "DequantizeLinear")
    return sum(node.op_type in pair for node in model.ir.graph.all_nodes())


def architecture(name: str) -> tuple[int, str]:
    """Q and DQ in one of bench/architectures.py, placed for TensorRT, and its findings."""
    import shutil

    import architectures

    from optimc.core.model import OnnxModel, load_model
    from optimc.pipeline.build import Build, BuildOptions
    from optimc.pipeline.observer import Silent
    from optimc.pipeline.recipe import load_recipe

    place = Path(tempfile.mkdtemp(prefix="optimc-bench-"))
    try:
        shutil.copy(architectures.__file__, place / "architectures.py")
        text = architectures.recipe(name).split("variants:")[0] + _RECIPE
        (place / "recipe.yaml").write_text(text, encoding="utf-8")
        options = BuildOptions(
            # Random weights lose more to INT8 than trained ones: nothing is judged here.
            place / "out",
            "bench",
            measure=False,
            use_cache=False,
            verify="off",
            overridden=True,
        )
        report = Build(load_recipe(place / "recipe.yaml"), options, Silent()).run()
        kit = place / "out/artifacts/int8/trt"
        if not kit.is_dir():
            raise RuntimeError(f"{name}: {report.results[0].reason}")
        model = load_model(kit / "model")
        assert isinstance(model, OnnxModel)
        return quantized_nodes(model), findings(model)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def outputs(path: Path, batches: list[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
    """The first output by ONNX Runtime with all optimizations off, all batches in a row."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = np.concatenate([session.run(None, dict(b))[0] for b in batches])
    return found


def shared_model(name: str, shared: Path, take: int | None) -> bool:
    """Prints the row of one shared model; whether the two placements agree."""
    import onnx_ir
    from quantization_models import subject
    from quantization_tools import Ours

    from optimc.passes.quantize_int8 import QuantizeInt8
    from optimc.testing import as_model

    with tempfile.TemporaryDirectory(prefix="optimc-bench-") as folder:
        of = subject(name, shared, Path(folder), take)
        assert of.judge is not None
        ours = Ours(of, Path(folder))
        values = {"float": of.judge(outputs(of.path, of.evaluation))}
        for runtime in ("onnxruntime", "tensorrt"):
            path = Path(folder) / f"{runtime}.onnx"
            ours.quantize(runtime, [QuantizeInt8()], path)
            values[runtime] = of.judge(outputs(path, of.evaluation))
        said = findings(as_model(onnx_ir.load(path)))
    gap = values["tensorrt"] - values["onnxruntime"]
    cells = [f"{value:.4f}" for value in values.values()]
    print(f"| {name} | {' | '.join(cells)} | {gap:+.4f} | {said} |", flush=True)
    return abs(gap) <= ALLOWED and said == "none"


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures")
    parser.add_argument("--models", nargs="*", default=None, help="shared models")
    parser.add_argument("--take", type=int, default=None, help="evaluation images")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("OPTIMC_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    good = True
    print("| placed for TensorRT | Q and DQ | findings |\n| --- | --- | --- |")
    everything = not arguments.names and arguments.models is None
    for name in ARCHITECTURES if everything else arguments.names:
        count, said = architecture(name)
        good &= said == "none"
        print(f"| {name} | {count} | {said} |", flush=True)
    print("\n| metric | float | placed for ONNX Runtime | for TensorRT | gap | findings |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in MODELS if everything else arguments.models or ():
        good &= shared_model(name, shared, arguments.take)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
