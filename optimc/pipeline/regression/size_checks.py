"""Checks of what an engine takes: bytes on the disk, and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.pipeline.regression.pairs import Pair
from optimc.report.regression import RegressionCheck
from optimc.report.values import CheckVerdict, Skipped

if TYPE_CHECKING:
    from optimc.report.schema import Cell


def size_checks(pair: Pair) -> list[RegressionCheck]:
    """The size of the engine, and how it grew."""
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


def memory_checks(pair: Pair) -> list[RegressionCheck]:
    """The peak of memory, and how it grew."""
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
