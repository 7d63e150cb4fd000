"""Checks of time: slower than the baseline, latency, throughput."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from optimc.measure.statistics import Interval
from optimc.pipeline.regression.pairs import Pair, verdict_of, what_decides, why_missing
from optimc.report.regression import RegressionCheck
from optimc.report.values import CheckVerdict, Skipped

if TYPE_CHECKING:
    from optimc.measure.latency import Latency
    from optimc.report.schema import Cell


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


def slowdown_check(pair: Pair, margin: float) -> RegressionCheck:
    """How much slower than the baseline, as measured here, else as the reports say."""
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
        wanted = what_decides(value, margin, "session pairs")
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
        return Skipped(skipped=why_missing(cell.latency))
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
            return f"the {who} has no speed-up: {why_missing(speedup)}", ""
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


def latency_check(pair: Pair, name: str, limit: float) -> RegressionCheck:
    """A percentile of the candidate's latency, such as p99."""
    full = f"latency_ms.{name}"
    if pair.fresh is not None:
        found: Any = getattr(pair.fresh.latency, name)
        ms, ends = (found, None) if isinstance(found, str) else (found.ms, found.ci95)
        runs, method = pair.fresh.latency.runs, "measured here"
    else:
        cell = pair.ours
        if cell is None or isinstance(cell.latency, Skipped) or not cell.latency:
            reason = "an engine alone has no times" if cell is None else why_missing(cell.latency)
            return pair.unmeasured(full, limit, reason, "--remeasure")
        first = cell.latency[0]
        ms, ends = getattr(first, f"{name}_ms"), getattr(first, f"{name}_ci95")
        runs, method = first.runs, "as the candidate's report says, on its machine"
    if isinstance(ms, str | Skipped) or ends is None:
        reason = ms if isinstance(ms, str) else why_missing(ms)
        decides = "more time (`at_most` in the policy)" if pair.fresh else "--remeasure"
        return pair.unmeasured(full, limit, reason, decides)
    value = Interval(ms, ends, ends[0], ends[1], runs, "order statistics")
    verdict = verdict_of(value, limit)
    return pair.check(
        full,
        limit,
        value=ms,
        ci95=ends,
        candidate=ms,
        samples=runs,
        verdict=verdict,
        method=method,
        decides=what_decides(value, limit, "runs") if verdict == "undecided" else None,
    )


def throughput_check(pair: Pair, limit: float) -> RegressionCheck:
    """The candidate's inferences per second."""
    name, decides = "throughput_per_s", "--remeasure"
    value: Interval | str
    if pair.fresh is not None:
        value, method = pair.fresh.throughput, "measured here"
    else:
        found = pair.ours.throughput if pair.ours else None
        method = "as the candidate's report says, on its machine"
        value = (
            why_missing(pair.ours.throughput_per_s) if pair.ours else "an engine alone has no times"
        )
        if found is not None:
            value = Interval(found.per_s, found.ci95, *found.ci95, 1, "")
    if isinstance(value, str):
        return pair.unmeasured(name, limit, value, decides, bound="at_least")
    verdict = verdict_of(value, limit, "at_least")
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
