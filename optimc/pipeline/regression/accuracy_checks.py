"""Checks of accuracy: how far a metric dropped from the baseline, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.measure.statistics import Interval
from optimc.pipeline.regression.pairs import Pair, verdict_of, what_decides, why_missing
from optimc.report.regression import RegressionCheck
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.report.schema import Cell, Metric


def drop_check(pair: Pair, name: str, limit: float) -> RegressionCheck:
    """How far the metric `name` dropped from the baseline, paired by samples where it can be."""
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
    verdict = verdict_of(drop, limit)
    return pair.check(
        full,
        limit,
        value=drop.point,
        ci95=drop.ci95,
        samples=drop.n,
        verdict=verdict,
        method=method,
        decides=what_decides(drop, limit, "samples") if verdict == "undecided" else None,
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


def metric_check(pair: Pair, name: str, limit: float) -> RegressionCheck:
    """The candidate's own value of the metric `name`."""
    ours = _metric_of(pair.ours, name)
    full = f"metrics.{name}"
    if isinstance(ours, str) or isinstance(ours.value, Skipped):
        reason = ours if isinstance(ours, str) else why_missing(ours.value)
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
