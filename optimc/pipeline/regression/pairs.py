"""One cell of a candidate with the one of a baseline, and how a limit is decided of the two.

Every check is decided from an interval: a limit is met when the end of the interval that is
nearer to it is within it, broken when the whole interval lies beyond, and undecided between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimc.measure.statistics import Interval, samples_to_decide
from optimc.report import figures
from optimc.report.regression import RegressionCheck
from optimc.report.values import CheckVerdict, Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimc.measure.latency import Latency
    from optimc.pipeline.records import RecordsOfBuild
    from optimc.pipeline.regression.policy import Policy
    from optimc.pipeline.regression.sides import Side
    from optimc.report.schema import Cell

EXACT = "an exact figure"


@dataclass(frozen=True)
class Fresh:
    """What was measured of a pair side by side on this machine."""

    speed: Interval | str
    """The baseline's time over the candidate's; its ends are one-sided at 95 %."""
    speed_alarm: Interval | str
    """The same; its ends are one-sided at the rate of false alarms."""
    latency: Latency
    baseline_latency: Latency
    memory_mb: tuple[float | str, float | str] = ("not asked", "not asked")
    """The candidate's and the baseline's."""
    throughput: Interval | str = "not asked"


@dataclass(frozen=True)
class Pair:
    """One cell of the candidate and the one of the baseline that it is held against."""

    candidate: Side
    baseline: Side
    cell: str
    against: str
    policy: Policy
    differences: tuple[str, ...]
    records: tuple[RecordsOfBuild | str, RecordsOfBuild | str]
    fresh: Fresh | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> Cell | None:
        """The candidate's cell in its report."""
        return self.candidate.cells().get(self.cell)

    @property
    def theirs(self) -> Cell | None:
        """The baseline's cell in its report."""
        return self.baseline.cells().get(self.against)

    def check(self, name: str, limit: float | Skipped, **fields: Any) -> RegressionCheck:
        """A check of this pair; what is not given was not measured."""
        missing = Skipped(skipped=fields.pop("missing", EXACT))
        given = {
            "bound": "at_most",
            **dict.fromkeys(("value", "ci95", "candidate", "baseline", "samples"), missing),
            **fields,
        }
        return RegressionCheck(
            name=name, cell=self.cell, against=self.against, limit=limit, **given
        )

    def unmeasured(
        self, name: str, limit: float, reason: str, decides: str, **fields: Any
    ) -> RegressionCheck:
        """A limit whose value was not measured."""
        return self.check(
            name,
            limit,
            missing=reason,
            verdict="undecided",
            method="not measured",
            decides=decides,
            **fields,
        )


def verdict_of(value: Interval, limit: float, bound: str = "at_most") -> CheckVerdict:
    """Where the interval lies; `bound` is "at_most" or "at_least"."""
    meets, misses = value.upper <= limit, value.lower > limit
    if bound == "at_least":
        meets, misses = value.lower >= limit, value.upper < limit
    return "passed" if meets else "failed" if misses else "undecided"


def what_decides(value: Interval, limit: float, what: str) -> str:
    """What would decide an undecided check: how many more of `what`."""
    needed = samples_to_decide(value, limit)
    if needed is None:
        return f"a limit that the value does not lie on, or many more {what}"
    return f"about {figures.count(needed)} {what}"


def why_missing(value: object) -> str:
    """Why a figure of a report is not there."""
    return value.skipped if isinstance(value, Skipped) else "not measured"
