"""The table that follows a cell from pass to pass, as every view of the report shows it."""

from __future__ import annotations

from dataclasses import dataclass

from optimc.report import figures
from optimc.report.steps import CellSteps, Step
from optimc.report.values import Skipped

HEADER = ("step", "parameters", "MACs", "size", "drop (tuning)", "speed-up")


@dataclass(frozen=True)
class StepRow:
    """One step, in words."""

    name: str
    parameters: str
    macs: str
    size: str
    drop: str
    speedup: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADER`."""
        return (self.name, self.parameters, self.macs, self.size, self.drop, self.speedup)


def step_rows(one: CellSteps) -> tuple[StepRow, ...]:
    """A row a step; the first one is the source."""
    return tuple(_row(step) for step in one.steps)


def _row(step: Step) -> StepRow:
    return StepRow(
        name=step.name,
        parameters=figures.count(step.parameters),
        macs="skipped" if isinstance(step.macs, Skipped) else f"{step.macs / 1e6:,.3g} M",
        size=figures.size(step.bytes),
        drop=_figure(step.drop, step.drop_ci95),
        speedup=_figure(step.speedup, step.speedup_ci95, figures.TIMES),
    )


def _figure(value: float | Skipped, ends: tuple[float, float] | None, unit: str = "") -> str:
    if isinstance(value, Skipped):
        return "skipped"
    return figures.bracketed(value, ends, unit) if ends else figures.trimmed(value, 4) + unit
