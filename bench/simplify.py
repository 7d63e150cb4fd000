"""`simplify` against onnxsim and ONNX Runtime's own optimizer, and what verification says of it.

    python bench/simplify.py [--builds]

Prints a table in Markdown: for each model the nodes that are left, the seconds and the greatest
error relative to the outputs' scale, by each tool. The models are the nine topologies of the ONNX
package's light group, with seeded weights in place of their constants, and the shared ones where
they are there (``../shared``, or `OPTIMC_SHARED`). ONNX Runtime writes at its basic level, the
highest at which all of a graph is standard ONNX. `--builds` builds every light, simple and
converted model by a recipe with nothing but `simplify`, as a user would, and lists the roll-backs
and what else did not end well.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from optimc.core.errors import OptimcError
from optimc.core.model import OnnxModel
from optimc.measure.machine import describe_machine
from optimc.passes.fuse import Fuse
from optimc.passes.simplify import Simplify
from optimc.pipeline.compare import compare_outputs
from optimc.testing import as_model, run_model, run_pass, seeded_feeds
from optimc.testing.backend_models import (
    at_opset,
    light_models,
    small_models,
    with_seeded_weights,
)

REPEATS = 3
"""Runs of each tool; the fastest counts."""

RECIPE = """
model: {{onnx: {model}}}
variants: {{simplified: [simplify]}}
targets: {{ort: {{runtime: onnxruntime}}}}
"""

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def by_optimc(model: OnnxModel, folder: Path) -> OnnxModel:
    """The pass."""
    result = run_pass(Simplify(), model).model
    assert isinstance(result, OnnxModel)
    return result


def by_optimc_fused(model: OnnxModel, folder: Path) -> OnnxModel:
    """The pass, and `fuse` behind it."""
    result = run_pass(Fuse(), by_optimc(model, folder)).model
    assert isinstance(result, OnnxModel)
    return result


def by_onnxsim(model: OnnxModel, folder: Path) -> OnnxModel:
    """onnxsim with its defaults, its own check of the result left out."""
    import onnxsim

    model.write_onnx(folder / "model.onnx")
    result, _ = onnxsim.simplify(onnx.load(folder / "model.onnx"), check_n=0)
    return as_model(result)


def by_onnxruntime(model: OnnxModel, folder: Path) -> OnnxModel:
    """What ONNX Runtime writes when it opens a session at the basic level."""
    import onnxruntime

    model.write_onnx(folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return as_model(onnx.load(folder / "optimized.onnx"))


TOOLS: Mapping[str, Callable[[OnnxModel, Path], OnnxModel]] = {
    "simplify": by_optimc,
    "simplify, fuse": by_optimc_fused,
    "onnxsim": by_onnxsim,
    "ONNX Runtime, basic": by_onnxruntime,
}


def sources() -> Iterator[tuple[str, OnnxModel]]:
    """The models to compare on."""
    for model in light_models():
        yield model.name, as_model(with_seeded_weights(at_opset(model.path)))
    root = Path(__file__).resolve().parents[1]
    shared = Path(os.environ.get("OPTIMC_SHARED", root.parent / "shared")) / "models"
    for path in sorted(shared.glob("*.onnx")):
        yield path.stem, as_model(onnx.load(path))
    if not shared.is_dir():
        print(f"left out: the shared models, {shared} is not there", file=sys.stderr)


def row(name: str, model: OnnxModel) -> str:
    """A model's row: nodes, seconds and error of each tool."""
    feeds = seeded_feeds(model)
    reference = run_model(model, feeds)
    names = [output.name for output in model.signature.outputs]
    cells = [name, str(model.stats.nodes)]
    for tool in TOOLS.values():
        seconds = []
        with tempfile.TemporaryDirectory(prefix="optimc-bench-") as folder:
            for _ in range(REPEATS):
                start = time.perf_counter()
                result = tool(model.clone(), Path(folder))
                seconds.append(time.perf_counter() - start)
        difference = compare_outputs(reference, run_model(result, feeds), names)
        error = difference.broken or f"{difference.max_rel:.0e}"
        cells.append(f"{result.stats.nodes} in {min(seconds):.2f} s, {error}")
    return f"| {' | '.join(cells)} |"


def build_all() -> None:
    """Builds every model of the package, and lists what was rolled back, failed or refused."""
    counts: Counter[str] = Counter()
    told = []
    with tempfile.TemporaryDirectory(prefix="optimc-bench-") as folder:
        for model in [*light_models(), *small_models()]:
            path = model.path
            if model in light_models():
                path = Path(folder) / f"{model.name}.onnx"
                onnx.save(with_seeded_weights(at_opset(model.path)), path)
            verdict, cause = built(path, Path(folder))
            counts[verdict] += 1
            if cause:
                told.append(f"- {model.name}: {verdict}: {cause}")
    print("\n## Builds\n")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    print("\n" + "\n".join(told))


def built(path: Path, folder: Path) -> tuple[str, str]:
    """How the build of a model ended, and the cause where it did not end well."""
    from optimc.pipeline.build import Build, BuildOptions
    from optimc.pipeline.observer import Silent
    from optimc.pipeline.recipe import load_recipe

    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=path), encoding="utf-8")
    options = BuildOptions(
        folder / "out", "bench", measure=False, use_cache=False, verify="full", overridden=True
    )
    try:
        report = Build(load_recipe(recipe), options, Silent()).run()
    except OptimcError as error:
        return "refused", " ".join(str(error).split())[:160]
    [result] = report.results
    [done] = result.passes
    if result.status != "built":
        return f"cell {result.status}", " ".join(str(result.reason).split())[:160]
    verdict = str(done.verdict)
    return verdict, str(done.reason) if verdict in ("rolled_back", "failed", "unverified") else ""


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", action="store_true", help="builds of all models, too")
    arguments = parser.parse_args()
    machine = describe_machine()
    print(f"{machine.cpu}, {machine.cores} cores; load {machine.load_average}\n")
    print(f"| model | nodes | {' | '.join(TOOLS)} |")
    print(f"| --- | --- | {' | '.join('---' for _ in TOOLS)} |")
    for name, model in sources():
        print(row(name, model), flush=True)
    if arguments.builds:
        build_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
