"""Measures the best cell again after it was chosen.

Among several cells the one that looks fastest is as a rule one that was lucky, too: the figures
that it was chosen by flatter it. The gate therefore judges the choice by figures that had no part
in it (sample splitting; Rosenblatt and Benjamini, NeuroImage 103 (2014) 401).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from optimc.pipeline import assemble
from optimc.pipeline.assemble import CellResult, figures_of
from optimc.pipeline.gate import Figures, GateResult, judge
from optimc.report import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optimc.pipeline.recipe.schema import Gate
    from optimc.pipeline.timing import CellTiming


def confirmed(
    gate: Gate | None,
    judged: GateResult,
    results: Mapping[str, CellResult],
    measure: Callable[[CellResult], Mapping[str, CellTiming] | str],
) -> tuple[GateResult, schema.Confirmation | None]:
    """The gate with the best cell's limits of time judged by a second measurement.

    `measure` times a cell afresh on the first case, or says why it could not. Nothing is done
    where no choice was made: fewer than two candidates, or no limit of time.
    """
    best = judged.best
    if gate is None or best is None or judged.gate.candidates < 2 or best.first_case is None:
        return judged, None
    result = results[best.name]
    cases = measure(result)
    if isinstance(cases, str):
        return _with(judged, replace(best, cases={}, not_timed=cases), gate), None
    case, timing = next(iter(cases.items()))
    again = CellResult(result.cell, cases=cases)
    figures = replace(best, cases=figures_of(again).cases)
    confirmation = schema.Confirmation(
        variant=best.variant,
        target=best.target,
        speedup=assemble.speedup_report(timing.speedup, "source on ONNX Runtime"),
        latency=assemble.latency_report(case, timing.latency, assemble.threads_of(result.cell)),
    )
    return _with(judged, figures, gate), confirmation


def _with(judged: GateResult, figures: Figures, gate: Gate) -> GateResult:
    """`judged` with the checks of the best cell made from `figures`."""
    again = judge(gate, [figures], chosen=figures.name)
    checks = tuple(check for check in judged.gate.checks if check.cell != figures.name)
    kept = judged.gate.model_copy(
        update={"verdict": again.gate.verdict, "checks": (*again.gate.checks, *checks)}
    )
    return GateResult(kept, judged.best if again.best else None)
