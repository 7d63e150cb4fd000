"""Generated graphs through the whole pipeline, in this process, each held against its source.

What a build delivers is run again by its runtime, on inputs that verification has not seen, and
compared with the source by rules of its own: what verification let through by mistake shows here.
A roll-back is a bug of a pass that verification found.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimc.core.errors import OptimcError
from optimc.testing.inline_workers import inline_workers
from optimc.testing.wide_graphs import wide_model

if TYPE_CHECKING:
    import onnx

    from optimc.core.model import OnnxModel
    from optimc.report.schema import Cell, Report

Runtime = Literal["onnxruntime", "openvino"]

RELATIVE = {"f32": 1e-3, "f16": 5e-2, "bf16": 2e-1}
"""How far a delivered float engine may be from the source, of an output's scale, on new inputs."""
SQNR_DB = 8.0
"""The least signal-to-noise ratio of a delivered quantized engine on new inputs."""

PAGES = 8
"""One graph in so many has its report drawn as a page too, which takes a fifth of the time."""

_HONEST = (
    "SQNR",
    "nothing in this model can be",
    "the model is quantized",
    "is quantized already",
)
"""What the reasons of failures say that are no bugs: a limit that was missed, nothing to do."""

VARIANTS = {
    "plain": "[]",
    "fp32": "[simplify, fuse]",
    "folded": "[fold_preprocess, simplify]",
    "fp16": "[simplify, fuse, float16]",
    "int8": "[simplify, fuse, quantize_int8]",
    "dynamic": "[simplify, fuse, quantize_dynamic]",
}


@dataclass
class Outcome:
    """What became of the graph of one seed."""

    seed: int
    opset: int
    operators: list[str]
    verdicts: dict[str, int] = field(default_factory=dict)
    """By pass and verdict, such as ``simplify equivalent``; cells by their status."""
    finds: list[str] = field(default_factory=list)
    """What must not be: roll-backs, wrong results, bugs."""

    def json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def recipe_text(seed: int, runtime: Runtime, model: OnnxModel) -> str:
    """A recipe over all passes. One variant of the precision variants a seed, plain ones always."""
    lossy = ("fp16", "int8", "dynamic", "folded")[seed % 4]
    return recipe_of(["fp32", lossy] if seed % 8 else ["plain", "fp32", lossy], runtime, model)


def recipe_of(names: Sequence[str], runtime: Runtime, model: OnnxModel) -> str:
    """A recipe over these of `VARIANTS`."""
    variants = "\n".join(f"  {name}: {VARIANTS[name]}" for name in names)
    return (
        f"model: {{onnx: model.onnx}}\nvariants:\n{variants}\n"
        f"targets: {{engine: {{runtime: {runtime}, threads: 1}}}}\n"
        f"{_dims(model)}"
    )


def _dims(model: OnnxModel) -> str:
    sizes = "{min: 1, typical: 2, max: 4}"
    symbols = ", ".join(f"{symbol}: {sizes}" for symbol in model.signature.symbols)
    return f"dims: {{{symbols}}}\n"


def fuzz_seed(seed: int, runtime: Runtime) -> Outcome:
    """Builds the graph of `seed` for `runtime` and judges what came out, on new inputs."""
    from optimc.testing.runs import seeded_feeds

    model = wide_model(seed)
    feeds = seeded_feeds(model, sizes=(2, 1), seed=seed + 1)
    recipe = recipe_text(seed, runtime, model)
    return judge_model(seed, model, recipe, feeds, external=seed % 10 == 7)


def judge_model(
    seed: int, model: OnnxModel, recipe: str, feeds: Sequence[Any], *, external: bool = False
) -> Outcome:
    """Builds `model` by `recipe`, and holds what is delivered against it on `feeds`.

    With `external` the weights lie in a file beside the model.
    """
    import onnx_ir

    proto = onnx_ir.to_proto(model.ir)
    outcome = Outcome(seed, proto.opset_import[0].version, sorted(_operators(proto.graph)))
    with tempfile.TemporaryDirectory(prefix="optimc-fuzz-") as name:
        folder = Path(name)
        _write(proto, folder, external=external)
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        try:
            report = _build(folder, page=seed % PAGES == 0)
        except OptimcError as error:
            outcome.verdicts[f"refused: {error.what[:60]}"] = 1
            if "broke:" in error.what:
                outcome.finds.append(f"a pass broke: {error}")
            return outcome
        except Exception as error:  # noqa: BLE001 (whatever it is, a user would see it)
            outcome.finds.append(f"bug: {type(error).__name__}: {error}")
            return outcome
        _count(report, outcome)
        for cell in report.results:
            if cell.status == "built":
                outcome.finds += _wrong(model, folder, cell, feeds)
    return outcome


def _write(proto: onnx.ModelProto, folder: Path, *, external: bool) -> None:
    import onnx

    if external:
        # Shapes and the like have to stay: ONNX Runtime does not infer from data elsewhere.
        options: dict[str, Any] = {"location": "model.data", "size_threshold": 64}
        onnx.save(proto, folder / "model.onnx", save_as_external_data=True, **options)
    else:
        (folder / "model.onnx").write_bytes(proto.SerializeToString())


def _build(folder: Path, *, page: bool) -> Report:
    from unittest.mock import patch

    from optimc.pipeline.build import Build, BuildOptions
    from optimc.pipeline.observer import Silent
    from optimc.pipeline.recipe import load_recipe
    from optimc.report.write import VIEWS

    options = BuildOptions(
        out=folder / "out", command="optimc build", use_cache=False, measure=False
    )
    views = {name: view for name, view in VIEWS.items() if page or name != "report.html"}
    with inline_workers(), patch("optimc.report.write.VIEWS", views):
        return Build(load_recipe(folder / "recipe.yaml"), options, Silent()).run()


def _count(report: Report, outcome: Outcome) -> None:
    def add(what: str) -> None:
        outcome.verdicts[what] = outcome.verdicts.get(what, 0) + 1

    for cell in report.results:
        honest = [text for text in _HONEST if text in str(cell.reason)]
        add(f"cell {cell.status}{': ' + honest[0] if honest else ''}")
        if cell.status == "failed" and not any(text in str(cell.reason) for text in _HONEST):
            outcome.finds.append(f"{cell.name} failed: {cell.reason}")
        for line in cell.passes:
            add(f"{line.name} {line.verdict}")
            if line.verdict == "rolled_back":
                outcome.finds.append(f"{cell.name}: {line.name} rolled back: {line.reason}")
        engine = cell.engine
        add(f"engine {getattr(engine, 'verdict', 'not built')}")


def _wrong(model: OnnxModel, folder: Path, cell: Cell, feeds: Sequence[Any]) -> Iterator[str]:
    """How the delivered engine is wrong on inputs that verification has not seen."""
    import numpy as np

    from optimc.pipeline.compare import compare_outputs
    from optimc.testing.runs import run_model

    expected = run_model(model, feeds)
    place = folder / "out" / "artifacts" / cell.variant / cell.target
    found = _run_delivered(place, feeds)
    lossy = any(line.name.startswith("quantize") and line.modified for line in cell.passes)
    half = any(line.name == "float16" and line.modified for line in cell.passes)
    unverified = bool(cell.unverified)
    for spec in model.signature.outputs:
        difference = compare_outputs(expected, found, [spec.name])
        jumps = np.dtype(spec.dtype).kind != "f"
        if difference.broken and not (jumps and (lossy or half)) and not unverified:
            yield f"{cell.name} WRONG: {difference.broken}"
        elif difference.broken:
            continue
        elif lossy:
            if difference.sqnr_db < SQNR_DB:
                yield f"{cell.name} WRONG: SQNR {difference.sqnr_db:.1f} dB of `{spec.name}`"
        elif difference.max_rel > RELATIVE["f16" if half else "f32"] and not unverified:
            yield f"{cell.name} WRONG: `{spec.name}` differs by {difference.max_rel:.3g}"


def _run_delivered(folder: Path, feeds: Any) -> list[dict[str, Any]]:
    """The outputs of a delivered engine, by its runtime."""
    from optimc.core.registry import target_class
    from optimc.core.targets import Engine

    engine = Engine.read(folder)
    session = target_class(engine.runtime).open(engine)
    try:
        found = []
        for feed in feeds:
            bound = session.bind(feed)
            bound.run()
            found.append({name: array.copy() for name, array in bound.outputs().items()})
        return found
    finally:
        session.close()


def _operators(graph: onnx.GraphProto) -> set[str]:
    found = set()
    for node in graph.node:
        found.add(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _operators(attribute.g)
    return found


def keep_find(outcome: Outcome, folder: Path, runtime: Runtime) -> Path:
    """Writes model and recipe of a find into `folder`, to build it again by hand; its place."""
    import onnx_ir

    place = folder / f"{runtime}-{outcome.seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    model = wide_model(outcome.seed)
    _write(onnx_ir.to_proto(model.ir), place, external=False)
    text = recipe_text(outcome.seed, runtime, model)
    (place / "recipe.yaml").write_text(text, encoding="utf-8")
    (place / "finds.txt").write_text("\n".join(outcome.finds) + "\n", encoding="utf-8")
    return place


def totals(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over outcomes (as plain data): graphs, verdicts, operators and opsets met, finds."""
    verdicts: dict[str, int] = {}
    operators: dict[str, int] = {}
    opsets: dict[str, int] = {}
    for outcome in outcomes:
        for name, count in outcome["verdicts"].items():
            verdicts[name] = verdicts.get(name, 0) + count
        for name in outcome["operators"]:
            operators[name] = operators.get(name, 0) + 1
        opset = str(outcome["opset"])
        opsets[opset] = opsets.get(opset, 0) + 1
    return {
        "graphs": len(outcomes),
        "finds": sum(1 for outcome in outcomes if outcome["finds"]),
        "verdicts": dict(sorted(verdicts.items())),
        "operators": dict(sorted(operators.items())),
        "opsets": dict(sorted(opsets.items(), key=lambda item: int(item[0]))),
    }
