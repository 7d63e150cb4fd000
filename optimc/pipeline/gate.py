"""The gate: which cells may ship, decided from intervals, never from points alone.

A value that must stay at or below its limit passes when the upper end of its one-sided 95 %
interval does, fails when the lower end is beyond, and is undecided between; values that must reach
a limit the other way round. A limit whose value was not measured is not met: undecided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from optimc.core.passes import Budget
from optimc.measure.statistics import Interval, Percentile, samples_to_decide
from optimc.pipeline.recipe.schema import BEST, cells_matching
from optimc.report.schema import Check, Gate
from optimc.report.values import CheckVerdict, GateVerdict, Skipped

if TYPE_CHECKING:
    from optimc.pipeline.recipe.schema import Gate as GateRecipe
Bound = Literal["at_most", "at_least"]
_SEVERITY: tuple[CheckVerdict, ...] = ("passed", "undecided", "failed")


@dataclass(frozen=True)
class CaseFigures:
    """What was measured of one cell on one benchmark case."""

    speedup: Interval | str
    latency: Mapping[str, Percentile | str]
    """By percentile: p50, p90, p99."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one cell, as the gate asks for it; a string is why there is nothing."""

    variant: str
    target: str
    built: bool
    drops: Mapping[str, Interval | str] = field(default_factory=dict)
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    lower_is_better: Mapping[str, bool] = field(default_factory=dict)
    """By metric."""
    cases: Mapping[str, CaseFigures] = field(default_factory=dict)
    """By the case's name, in the recipe's order: limits mean the first."""
    throughput_per_s: Interval | str = "not measured"
    size_mb: float | str = "not built"
    budgets: Sequence[Budget] = ()
    """Limits that passes worked to, which are judged on the tuning split by their point."""
    not_measured: str = "no such metric"
    """Why a metric has no figure."""
    not_timed: str = "no such case"
    """Why a case has no figures."""

    @property
    def name(self) -> str:
        """`variant/target`."""
        return f"{self.variant}/{self.target}"

    @property
    def first_case(self) -> CaseFigures | None:
        """The figures of the first benchmark case."""
        return next(iter(self.cases.values()), None)


@dataclass(frozen=True)
class GateResult:
    """The gate of the report, and the cell that ships as the best."""

    gate: Gate
    best: Figures | None


def judge(
    gate: GateRecipe | None, cells: Sequence[Figures], *, chosen: str | None = None
) -> GateResult:
    """Judges the built `cells` by the recipe's gate.

    `chosen` replays an earlier choice of the best: that cell has to meet every limit now.
    """
    if gate is None:
        unmet = tuple(
            check
            for cell in cells
            for check in map(partial(_budget_check, cell), cell.budgets)
            if cell.built and check.verdict == "failed"
        )
        return GateResult(Gate(verdict="failed" if unmet else "none", checks=unmet), None)
    asked = [cell for cell in cells if cell.built and _asked(gate, cell)]
    by_cell = {cell.name: _checks(gate, cell) for cell in asked}
    if gate.ship == BEST:
        candidates = [cell for cell in asked if chosen in (None, cell.name)]
        return _best(candidates, {cell.name: by_cell[cell.name] for cell in candidates})
    verdicts = [_together(checks) for checks in by_cell.values()]
    checks = tuple(check for checks in by_cell.values() for check in checks)
    ship = ", ".join(gate.patterns)
    verdict: GateVerdict = _worst(verdicts) if verdicts else "failed"
    return GateResult(Gate(verdict=verdict, ship=ship, checks=checks), None)


def _asked(gate: GateRecipe, cell: Figures) -> bool:
    named = [(cell.variant, cell.target)]
    return gate.ship == BEST or any(cells_matching(p, tuple(named)) for p in gate.patterns)


def _best(asked: Sequence[Figures], by_cell: Mapping[str, Sequence[Check]]) -> GateResult:
    """One cell that meets every limit suffices; the fastest such ships."""
    verdicts = {name: _together(checks) for name, checks in by_cell.items()}
    passed = [cell for cell in asked if verdicts[cell.name] == "passed"]
    best = max(passed, key=_speed, default=None)
    verdict: GateVerdict = "passed" if best else "failed"
    if best is None and "undecided" in verdicts.values():
        verdict = "undecided"
    checks = tuple(
        check.model_copy(update={"required": best is None or check.cell == best.name})
        for checks in by_cell.values()
        for check in checks
    )
    gate = Gate(
        verdict=verdict,
        ship="best",
        candidates=len(asked),
        chosen_on="evaluation" if best else None,
        checks=checks,
    )
    return GateResult(gate, best)


def _speed(cell: Figures) -> tuple[float, float]:
    """The order of speed; where none was measured, the smaller engine comes first."""
    case = cell.first_case
    speed = case.speedup.point if case and isinstance(case.speedup, Interval) else 0.0
    size = cell.size_mb if isinstance(cell.size_mb, float) else 0.0
    return (speed, -size)


def _together(checks: Sequence[Check]) -> CheckVerdict:
    return _worst([check.verdict for check in checks])


def _worst(verdicts: Sequence[CheckVerdict]) -> CheckVerdict:
    return max(verdicts, key=_SEVERITY.index, default="passed")


def _checks(gate: GateRecipe, cell: Figures) -> list[Check]:
    missing = cell.not_measured
    checks = [
        _interval_check(cell, f"drop.{name}", "at_most", limit, cell.drops.get(name, missing))
        for name, limit in gate.drop.items()
    ]
    for name, limit in gate.metrics.items():
        bound: Bound = "at_most" if cell.lower_is_better.get(name) else "at_least"
        value = cell.metrics.get(name, missing)
        checks.append(_exact_check(cell, f"metrics.{name}", bound, limit, value))
    case = cell.first_case
    if gate.speedup is not None:
        speedup = case.speedup if case else cell.not_timed
        checks.append(_interval_check(cell, "speedup", "at_least", gate.speedup, speedup))
    for percentile, limit in gate.latency_ms.items():
        latency = _as_interval(case.latency[percentile] if case else cell.not_timed)
        checks.append(_interval_check(cell, f"latency_ms.{percentile}", "at_most", limit, latency))
    if gate.throughput_per_s is not None:
        name, limit = "throughput_per_s", gate.throughput_per_s
        checks.append(_interval_check(cell, name, "at_least", limit, cell.throughput_per_s))
    if gate.size_mb is not None:
        checks.append(_exact_check(cell, "size_mb", "at_most", gate.size_mb, cell.size_mb))
    return [*checks, *(_budget_check(cell, budget) for budget in cell.budgets)]


def _budget_check(cell: Figures, budget: Budget) -> Check:
    """Whether a pass met its limit: it chose by the point, and says so where it found nothing."""
    return Check(
        name=budget.name,
        variant=cell.variant,
        target=cell.target,
        bound="at_most",
        limit=float(budget.limit),
        value=budget.drop.point,
        ci95=Skipped(skipped="a pass chose by the point on the tuning split; the notes have it"),
        verdict="passed" if budget.met else "failed",
        samples=Skipped(skipped="a pass chose by the point"),
    )


def _as_interval(value: Percentile | str) -> Interval | str:
    if isinstance(value, str):
        return value
    return Interval(value.ms, value.ci95, *value.ci95, value.runs, "order statistics")


def _interval_check(
    cell: Figures, name: str, bound: Bound, limit: float, value: Interval | str
) -> Check:
    if isinstance(value, str):
        return _unmeasured(cell, name, bound, limit, value)
    meets, misses = value.upper <= limit, value.lower > limit
    if bound == "at_least":
        meets, misses = value.lower >= limit, value.upper < limit
    verdict: CheckVerdict = "passed" if meets else "failed" if misses else "undecided"
    needed = samples_to_decide(value, limit) if verdict == "undecided" else None
    return Check(
        name=name,
        variant=cell.variant,
        target=cell.target,
        bound=bound,
        limit=float(limit),
        value=value.point,
        ci95=(value.lower, value.upper),
        verdict=verdict,
        samples=value.n,
        samples_to_decide=needed,
    )


def _exact_check(cell: Figures, name: str, bound: Bound, limit: float, value: float | str) -> Check:
    if isinstance(value, str):
        return _unmeasured(cell, name, bound, limit, value)
    met = value <= limit if bound == "at_most" else value >= limit
    return Check(
        name=name,
        variant=cell.variant,
        target=cell.target,
        bound=bound,
        limit=float(limit),
        value=value,
        ci95=Skipped(skipped="an exact figure"),
        verdict="passed" if met else "failed",
        samples=Skipped(skipped="an exact figure"),
    )


def _unmeasured(cell: Figures, name: str, bound: Bound, limit: float, reason: str) -> Check:
    return Check(
        name=name,
        variant=cell.variant,
        target=cell.target,
        bound=bound,
        limit=float(limit),
        value=Skipped(skipped=reason),
        ci95=Skipped(skipped=reason),
        verdict="undecided",
        samples=Skipped(skipped=reason),
    )
