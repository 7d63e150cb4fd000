"""Follows what ships from pass to pass: accuracy, multiply-accumulates, size and latency.

For cells with passes of the torch level, where one wants to see what each of pruning, training and
quantization gave and took. Accuracy is that on the tuning split: what was chosen was chosen there,
and the evaluation split is for the result alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.digest import digest_of
from optimc.core.errors import OptimcError
from optimc.core.model import Level, OnnxModel
from optimc.core.passes import Drop, Ratio
from optimc.core.torch_model import TorchModel
from optimc.pipeline.inspection import macs_of
from optimc.pipeline.profiling import chosen_cells
from optimc.pipeline.tuning import TimedDevice, can_tune
from optimc.report.steps import CellSteps, Step
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.pipeline.assemble import CellResult
    from optimc.pipeline.build import Build
    from optimc.pipeline.gate import GateResult


def cell_steps(build: Build, gate: GateResult) -> tuple[CellSteps, ...]:
    """Of what ships; where nothing ships, of the fastest cell. Others are left out, and so are
    cells without passes of the torch level."""
    try:
        return tuple(
            _steps(build, result)
            for result in chosen_cells(build, gate)
            if any(outcome.model.level is Level.TORCH for outcome in result.outcomes)
        )
    finally:
        build.torch.close()


def _steps(build: Build, result: CellResult) -> CellSteps:
    build.observer.on_stage(f"following {result.cell.name} from pass to pass")
    models = {"source": build.source.model}
    # The export is no step of the recipe: its model stands for the last pass before it.
    passes = [outcome for outcome in result.outcomes if outcome.name != "export"]
    for number, outcome in enumerate(passes, 1):
        if outcome.modified:
            try:
                models[f"{number}. {outcome.name}"] = _as_onnx(build, outcome.model)
            except OptimcError as error:  # a module between two passes, which nobody asked for
                build.warnings.append(
                    f"{result.cell.name}: no figures after {outcome.name}: {error.what}"
                )
    others = {name: model for name, model in models.items() if name != "source"}
    speedups = TimedDevice(build, result.cell).speedups(build.source.model, others)
    drops = _drops(build, others)
    sizes = _sizes(build)
    metric = next(iter(build.recipe.metrics), None)
    steps = tuple(_step(name, model, sizes, drops, speedups) for name, model in models.items())
    return CellSteps(cell=result.cell.name, metric=metric, steps=steps)


def _as_onnx(build: Build, model: OnnxModel | TorchModel) -> OnnxModel:
    return build.torch.lowered(model).model if isinstance(model, TorchModel) else model


def _sizes(build: Build) -> dict[str, int]:
    """One sample: leading dims at 1, the others at their typical sizes."""
    sizes = {name: dim.typical for name, dim in build.data.dims.items()}
    for spec in build.source.model.signature.inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            sizes[spec.shape[0]] = 1
    return sizes


def _drops(build: Build, models: Mapping[str, OnnxModel]) -> Mapping[str, Drop] | str:
    if not can_tune(build.recipe) or not build.options.measure:
        return "no tuning data" if build.options.measure else "measuring is off (--no-measure)"
    try:
        return {name: _drop(build, model) for name, model in models.items()}
    except OptimcError as error:
        return error.what
    finally:
        build.tuning.close()


def _drop(build: Build, model: OnnxModel) -> Drop:
    """On the tuning split; remembered."""
    key = digest_of("step-drop", build.tuning.digest, model.digest)
    entry = build.cache.get("step-drop", key)
    if entry is None:

        def write(folder: Path) -> None:
            drop = build.tuning.drop(model)
            content = [drop.point, drop.lower, drop.upper, drop.samples]
            (folder / "drop.json").write_text(json.dumps(content), encoding="utf-8")

        entry = build.cache.put("step-drop", key, write)
    point, lower, upper, samples = json.loads((entry / "drop.json").read_text(encoding="utf-8"))
    return Drop(point, lower, upper, samples)


def _step(
    name: str,
    model: OnnxModel,
    sizes: Mapping[str, int],
    drops: Mapping[str, Drop] | str,
    speedups: Mapping[str, Ratio] | str,
) -> Step:
    assert model.path is not None
    macs = macs_of(model.path, sizes)
    is_source = name == "source"
    drop = 0.0 if is_source else drops if isinstance(drops, str) else drops[name]
    ratio = 1.0 if is_source else speedups if isinstance(speedups, str) else speedups[name]
    return Step(
        name=name,
        parameters=model.stats.parameters,
        bytes=model.stats.bytes,
        macs=Skipped(skipped="shapes are not all known") if macs is None else macs,
        drop=_point(drop),
        drop_ci95=(drop.lower, drop.upper) if isinstance(drop, Drop) else None,
        speedup=_point(ratio),
        speedup_ci95=(ratio.low, ratio.high) if isinstance(ratio, Ratio) else None,
    )


def _point(figure: Drop | Ratio | float | str) -> float | Skipped:
    if isinstance(figure, str):
        return Skipped(skipped=figure)
    return figure if isinstance(figure, float) else figure.point
