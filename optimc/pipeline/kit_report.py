"""The report of a kit that was finished: that of its build, with what was missing filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimc import __version__
from optimc.pipeline import assemble
from optimc.pipeline.assemble import CellResult, skipped
from optimc.pipeline.gate import GateResult
from optimc.pipeline.reporting import machine_report
from optimc.pipeline.timing import BuildTimings
from optimc.pipeline.versions import tool_versions
from optimc.report import schema

ENGINE = "engine"
"""The folder of the finished engine in its kit."""
_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "numpy")


def completed_report(
    before: schema.Report,
    result: CellResult,
    command: str,
    notes: Sequence[str],
    gate: GateResult,
    timings: BuildTimings,
    source_metrics: Mapping[str, float],
) -> schema.Report:
    """The build's report of this cell, completed."""
    cell = assemble.cell_report(result)
    engine = cell.engine
    if isinstance(engine, schema.EngineReport):
        engine = engine.model_copy(update={"path": ENGINE})
    passes = before.results[0].passes if before.results else ()
    changes: dict[str, Any] = {"metrics": dict(source_metrics) or before.source.metrics}
    if timings.source:
        changes["latency"] = tuple(
            assemble.latency_report(case, figures, 1) for case, figures in timings.source.items()
        )
    else:
        changes["latency"] = skipped(str(timings.noise_floor))
    tools = tool_versions({*_TOOLS, *type(result.cell.target).tools})
    best = gate.best
    return before.model_copy(
        update={
            "optimc": __version__,
            "created": assemble.now(),
            "command": command,
            "lock": skipped("a kit has no lock of its own; the build's names what it is of"),
            "machine": machine_report(),
            "environment": assemble.environment(tools),
            "source": before.source.model_copy(update=changes),
            "results": (cell.model_copy(update={"passes": passes, "engine": engine}),),
            "noise_floor": assemble.noise_floor(timings.noise_floor),
            "best": schema.CellName(variant=best.variant, target=best.target) if best else None,
            "gate": gate.gate,
            "notes": assemble.unique([*before.notes, *notes]),
        }
    )
