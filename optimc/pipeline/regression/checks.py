"""The limits of a policy, asked of one pair of cells.

Every check is decided from an interval: a limit is met when the end of the interval that is
nearer to it is within it, broken when the whole interval lies beyond, and undecided between. What
was not measured is undecided, and the check says what would decide it.
"""

from __future__ import annotations

import math
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
    from optimc.report.schema import Cell, Metric

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


def checks_of(pair: Pair) -> list[RegressionCheck]:
    """Every limit of the policy, asked of the pair."""
    missing = _not_there(pair)
    if missing is not None:
        return [missing]
    found = [_drop(pair, name, limit) for name, limit in pair.policy.drop.items()]
    found += [_metric(pair, name, limit) for name, limit in pair.policy.metrics.items()]
    if pair.policy.slowdown is not None:
        found.append(_slowdown(pair, pair.policy.slowdown))
    found += [_latency(pair, name, limit) for name, limit in pair.policy.latency_ms.items()]
    if pair.policy.throughput_per_s is not None:
        found.append(_throughput(pair, pair.policy.throughput_per_s))
    found += _sizes(pair)
    found += _memory(pair)
    return found


def _not_there(pair: Pair) -> RegressionCheck | None:
    """The finding that one of the cells was not built."""
    for side, name, who in (
        (pair.candidate, pair.cell, "candidate"),
        (pair.baseline, pair.against, "baseline"),
    ):
        cell = side.cells().get(name)
        if side.report is None or (cell is not None and cell.status == "built"):
            continue
        why = f"{cell.status}: {cell.reason}" if cell is not None else "no such cell"
        reason = f"{name} is not built in the {who}: {why}"
        verdict = "failed" if who == "candidate" else "undecided"
        decides = None if who == "candidate" else "a baseline in which the cell is built"
        none = Skipped(skipped=reason)
        return pair.check(
            "built", none, missing=reason, verdict=verdict, method=reason, decides=decides
        )
    return None


def _verdict(value: Interval, limit: float, bound: str = "at_most") -> CheckVerdict:
    meets, misses = value.upper <= limit, value.lower > limit
    if bound == "at_least":
        meets, misses = value.lower >= limit, value.upper < limit
    return "passed" if meets else "failed" if misses else "undecided"


def _more(value: Interval, limit: float, what: str) -> str:
    needed = samples_to_decide(value, limit)
    if needed is None:
        return f"a limit that the value does not lie on, or many more {what}"
    return f"about {figures.count(needed)} {what}"


# Accuracy


def _drop(pair: Pair, name: str, limit: float) -> RegressionCheck:
    ours, theirs = _metric_of(pair.ours, name), _metric_of(pair.theirs, name)
    full = f"drop.{name}"
    for metric, who in ((ours, "candidate"), (theirs, "baseline")):
        if isinstance(metric, str):
            decides = f"a report of the {who} that measured {name}"
            return pair.unmeasured(full, limit, f"the {who}: {metric}", decides)
    assert not isinstance(ours, str)
    assert not isinstance(theirs, str)
    own = {"candidate": ours.value, "baseline": theirs.value}
    drop, method = _paired_drop(pair, name)
    if drop is None:
        drop, why = _unpaired_drop(pair, ours, theirs)
        if drop is None:
            decides = f"both builds' folders with records.npz in them ({method})"
            return pair.unmeasured(full, limit, why, decides, **own)
        method = f"{why}, as {method}"
    verdict = _verdict(drop, limit)
    return pair.check(
        full,
        limit,
        value=drop.point,
        ci95=drop.ci95,
        samples=drop.n,
        verdict=verdict,
        method=method,
        decides=_more(drop, limit, "samples") if verdict == "undecided" else None,
        **own,
    )


def _metric_of(cell: Cell | None, name: str) -> Metric | str:
    if cell is None:
        return "an engine alone has no metrics"
    if isinstance(cell.metrics, Skipped):
        return cell.metrics.skipped
    return cell.metrics.get(name, f"no metric {name}")


def _paired_drop(pair: Pair, name: str) -> tuple[Interval | None, str]:
    """The candidate's drop from the baseline over the same samples, or None and why."""
    from optimc.measure.metrics import compare
    from optimc.pipeline.regression.rebuilt import rebuilt_metric

    for found in pair.records:
        if isinstance(found, str):
            return None, found
    ours, theirs = pair.records
    assert not isinstance(ours, str)
    assert not isinstance(theirs, str)
    if ours.data != theirs.data:
        return None, "the two were evaluated on different data"
    if ours.metrics.get(name) != theirs.metrics.get(name) or name not in ours.metrics:
        return None, f"the two measured {name} with different options"
    records = (
        theirs.cells.get(pair.against, {}).get(name),
        ours.cells.get(pair.cell, {}).get(name),
    )
    if records[0] is None or records[1] is None:
        return None, f"no records of {name} were kept"
    try:
        interval = compare(rebuilt_metric(name, ours.metrics[name]), records[0], records[1])
    except (KeyError, ValueError, IndexError) as error:
        return None, f"the records of {name} do not fit one another ({error})"
    return interval, f"paired by samples; {interval.method}"


def _unpaired_drop(pair: Pair, ours: Metric, theirs: Metric) -> tuple[Interval | None, str]:
    """The difference of two drops from the same source, as wide as it can be.

    However the two are correlated, their difference varies by no more than the sum of their
    deviations: so much wider is the interval.
    """
    a, b = pair.candidate.report, pair.baseline.report
    assert a is not None
    assert b is not None
    if a.source.sha256 != b.source.sha256:
        return None, "the two are held against different sources"
    if ours.source != theirs.source or ours.samples != theirs.samples:
        return None, "the source scores differently in the two: the data differ"
    drops = (ours.drop, theirs.drop, ours.ci95, theirs.ci95)
    if any(isinstance(one, Skipped) for one in drops):
        return None, "a drop from the source was not measured"
    assert isinstance(ours.drop, float)
    assert isinstance(theirs.drop, float)
    assert isinstance(ours.ci95, tuple)
    assert isinstance(theirs.ci95, tuple)
    point = ours.drop - theirs.drop
    up = (ours.ci95[1] - ours.drop) + (theirs.drop - theirs.ci95[0])
    down = (ours.drop - ours.ci95[0]) + (theirs.ci95[1] - theirs.drop)
    ends = (point - down, point + up)
    n = 0 if isinstance(ours.samples, Skipped) else ours.samples
    method = "the two drops from the source, not paired by samples"
    return Interval(point, ends, *ends, n, method), method


def _metric(pair: Pair, name: str, limit: float) -> RegressionCheck:
    ours = _metric_of(pair.ours, name)
    full = f"metrics.{name}"
    if isinstance(ours, str) or isinstance(ours.value, Skipped):
        reason = ours if isinstance(ours, str) else _why(ours.value)
        return pair.unmeasured(full, limit, reason, f"a report that measured {name}")
    lower = ours.better == "lower"
    met = ours.value <= limit if lower else ours.value >= limit
    theirs = _metric_of(pair.theirs, name)
    return pair.check(
        full,
        limit,
        bound="at_most" if lower else "at_least",
        value=ours.value,
        candidate=ours.value,
        baseline=Skipped(skipped=theirs) if isinstance(theirs, str) else theirs.value,
        samples=ours.samples,
        verdict="passed" if met else "failed",
        method="the value on all samples",
    )


def _why(value: object) -> str:
    return value.skipped if isinstance(value, Skipped) else "not measured"


# Time


def slowdown_of(speed: Interval) -> Interval:
    """How much slower, from how many times as fast: 0.05 is 5 % more time."""

    def slower(ratio: float) -> float:
        return 1 / ratio - 1

    return Interval(
        slower(speed.point),
        (slower(speed.ci95[1]), slower(speed.ci95[0])),
        slower(speed.upper),
        slower(speed.lower),
        speed.n,
        speed.method,
    )


def verdict_of_speed(speed: Interval | str, alarm: Interval | str, margin: float) -> CheckVerdict:
    """Failed only beyond the rate of false alarms, passed at 95 %."""
    if isinstance(speed, str) or isinstance(alarm, str):
        return "undecided"
    if slowdown_of(alarm).lower > margin:
        return "failed"
    return "passed" if slowdown_of(speed).upper <= margin else "undecided"


def _slowdown(pair: Pair, margin: float) -> RegressionCheck:
    if pair.fresh is not None:
        speed, alarm = pair.fresh.speed, pair.fresh.speed_alarm
        method = "measured here in turns, over freshly opened sessions"
        own = {
            "candidate": _p50(pair.fresh.latency),
            "baseline": _p50(pair.fresh.baseline_latency),
        }
    else:
        speed, why = _reported_speed(pair)
        alarm, method = speed, why
        # A wider interval fails nothing that this one does not.
        if not isinstance(speed, str) and slowdown_of(speed).lower > margin:
            alarm = _widened(speed, pair.policy.false_alarms)
        own = {"candidate": _reported_p50(pair.ours), "baseline": _reported_p50(pair.theirs)}
    if isinstance(speed, str):
        decides = "more time (`at_most` in the policy)" if pair.fresh else "--remeasure"
        return pair.unmeasured("slowdown", margin, speed, decides, **own)
    value, verdict = slowdown_of(speed), verdict_of_speed(speed, alarm, margin)
    wanted: str | None = None
    if verdict == "undecided":
        wanted = _more(value, margin, "session pairs")
        wanted += " (`at_most` in the policy)" if pair.fresh else ", or --remeasure"
    return pair.check(
        "slowdown",
        margin,
        value=value.point,
        ci95=value.ci95,
        samples=value.n,
        verdict=verdict,
        method=method,
        decides=wanted,
        **own,
    )


def _p50(latency: Latency) -> float | Skipped:
    return Skipped(skipped=latency.p50) if isinstance(latency.p50, str) else latency.p50.ms


def _reported_p50(cell: Cell | None) -> float | Skipped:
    if cell is None:
        return Skipped(skipped="an engine alone has no times")
    if isinstance(cell.latency, Skipped) or not cell.latency:
        return Skipped(skipped=_why(cell.latency))
    return cell.latency[0].p50_ms


def _reported_speed(pair: Pair) -> tuple[Interval | str, str]:
    """The ratio of the two speed-ups over the same source on one machine, or why there is none."""
    if pair.differences:
        return (
            "reports of different conditions are never compared by time: "
            + "; ".join(pair.differences),
            "",
        )
    found = []
    for side, cell, who in (
        (pair.candidate, pair.ours, "candidate"),
        (pair.baseline, pair.theirs, "baseline"),
    ):
        again = side.report.confirmation if side.report else None
        chosen = again is not None and cell is not None
        chosen = chosen and f"{again.variant}/{again.target}" == cell.name  # type: ignore[union-attr]
        speedup: Any = again.speedup if chosen and again else cell.speedup if cell else None
        if speedup is None or isinstance(speedup, Skipped):
            return f"the {who} has no speed-up: {_why(speedup)}", ""
        found.append((speedup, cell))
    (ours, own), (theirs, other) = found
    first = [one.latency[0] for one in (own, other) if one and isinstance(one.latency, tuple)]
    if len(first) == 2 and (first[0].case, first[0].threads, first[0].inputs) != (
        first[1].case,
        first[1].threads,
        first[1].inputs,
    ):
        return "the two were timed on different cases, inputs or threads", ""
    center = math.log(ours.value / theirs.value)
    down = math.hypot(*(math.log(one.value / one.ci95[0]) for one in (ours, theirs)))
    up = math.hypot(*(math.log(one.ci95[1] / one.value) for one in (ours, theirs)))
    ends = (math.exp(center - down), math.exp(center + up))
    n = min(ours.sessions, theirs.sessions)
    method = "the two speed-ups over the same source, each by its own build on this machine"
    return Interval(math.exp(center), ends, *ends, n, method), method


def _widened(speed: Interval, error: float) -> Interval:
    """`speed` with one-sided ends at `error`, from its two-sided ends at 95 %."""
    from optimc.measure.statistics import TRIMMED, t_quantile

    degrees = max(speed.n - 2 * int(TRIMMED * speed.n) - 1, 1)
    factor = t_quantile(1 - error, degrees) / t_quantile(0.975, degrees)
    center = math.log(speed.point)
    low = math.exp(center + factor * (math.log(speed.ci95[0]) - center))
    high = math.exp(center + factor * (math.log(speed.ci95[1]) - center))
    return Interval(speed.point, speed.ci95, low, high, speed.n, speed.method)


def _latency(pair: Pair, name: str, limit: float) -> RegressionCheck:
    full = f"latency_ms.{name}"
    if pair.fresh is not None:
        found: Any = getattr(pair.fresh.latency, name)
        ms, ends = (found, None) if isinstance(found, str) else (found.ms, found.ci95)
        runs, method = pair.fresh.latency.runs, "measured here"
    else:
        cell = pair.ours
        if cell is None or isinstance(cell.latency, Skipped) or not cell.latency:
            reason = "an engine alone has no times" if cell is None else _why(cell.latency)
            return pair.unmeasured(full, limit, reason, "--remeasure")
        first = cell.latency[0]
        ms, ends = getattr(first, f"{name}_ms"), getattr(first, f"{name}_ci95")
        runs, method = first.runs, "as the candidate's report says, on its machine"
    if isinstance(ms, str | Skipped) or ends is None:
        reason = ms if isinstance(ms, str) else _why(ms)
        decides = "more time (`at_most` in the policy)" if pair.fresh else "--remeasure"
        return pair.unmeasured(full, limit, reason, decides)
    value = Interval(ms, ends, ends[0], ends[1], runs, "order statistics")
    verdict = _verdict(value, limit)
    return pair.check(
        full,
        limit,
        value=ms,
        ci95=ends,
        candidate=ms,
        samples=runs,
        verdict=verdict,
        method=method,
        decides=_more(value, limit, "runs") if verdict == "undecided" else None,
    )


def _throughput(pair: Pair, limit: float) -> RegressionCheck:
    name, decides = "throughput_per_s", "--remeasure"
    value: Interval | str
    if pair.fresh is not None:
        value, method = pair.fresh.throughput, "measured here"
    else:
        found = pair.ours.throughput if pair.ours else None
        method = "as the candidate's report says, on its machine"
        value = _why(pair.ours.throughput_per_s) if pair.ours else "an engine alone has no times"
        if found is not None:
            value = Interval(found.per_s, found.ci95, *found.ci95, 1, "")
    if isinstance(value, str):
        return pair.unmeasured(name, limit, value, decides, bound="at_least")
    verdict = _verdict(value, limit, "at_least")
    return pair.check(
        name,
        limit,
        bound="at_least",
        value=value.point,
        ci95=value.ci95,
        candidate=value.point,
        verdict=verdict,
        method=method,
        decides="another measurement: --remeasure" if verdict == "undecided" else None,
    )


# Size and memory


def _sizes(pair: Pair) -> list[RegressionCheck]:
    ours = pair.candidate.size_bytes(pair.cell)
    theirs = pair.baseline.size_bytes(pair.against)
    return _exact(
        pair,
        ("size_mb", pair.policy.size_mb),
        ("size_growth", pair.policy.size_growth),
        ours if isinstance(ours, str) else ours / 1e6,
        theirs if isinstance(theirs, str) else theirs / 1e6,
        "all files of the engine",
        "a report of a build",
    )


def _memory(pair: Pair) -> list[RegressionCheck]:
    ours: float | str
    theirs: float | str
    if pair.fresh is not None:
        ours, theirs = pair.fresh.memory_mb
        method = "the peaks of fresh processes here"
    else:
        ours, theirs = _reported_memory(pair.ours), _reported_memory(pair.theirs)
        method = "as the reports say"
        if pair.differences and not isinstance(theirs, str):
            theirs = "the reports are of different conditions: " + "; ".join(pair.differences)
    return _exact(
        pair,
        ("memory_mb", pair.policy.memory_mb),
        ("memory_growth", pair.policy.memory_growth),
        ours,
        theirs,
        method,
        "--remeasure",
    )


def _reported_memory(cell: Cell | None) -> float | str:
    if cell is None or isinstance(cell.engine, Skipped):
        return "an engine alone says nothing of memory"
    found = cell.engine.peak_memory_mb
    return found.skipped if isinstance(found, Skipped) else found


def _exact(
    pair: Pair,
    most: tuple[str, float | None],
    growth: tuple[str, float | None],
    ours: float | str,
    theirs: float | str,
    method: str,
    decides: str,
) -> list[RegressionCheck]:
    own = {
        "candidate": Skipped(skipped=ours) if isinstance(ours, str) else ours,
        "baseline": Skipped(skipped=theirs) if isinstance(theirs, str) else theirs,
    }
    found = []
    grown: float | str = "the baseline is empty"
    if isinstance(ours, str) or isinstance(theirs, str):
        grown = ours if isinstance(ours, str) else str(theirs)
    elif theirs > 0:
        grown = ours / theirs - 1
    for (name, limit), value in ((most, ours), (growth, grown)):
        if limit is None:
            continue
        if isinstance(value, str):
            found.append(pair.unmeasured(name, limit, value, decides, **own))
            continue
        met: CheckVerdict = "passed" if value <= limit else "failed"
        found.append(pair.check(name, limit, value=value, verdict=met, method=method, **own))
    return found
