"""The limits of a policy, asked of one pair of cells.

What was not measured is undecided, and the check says what would decide it.
"""

from __future__ import annotations

from optimc.pipeline.regression.accuracy_checks import drop_check, metric_check
from optimc.pipeline.regression.pairs import Pair
from optimc.pipeline.regression.size_checks import memory_checks, size_checks
from optimc.pipeline.regression.time_checks import latency_check, slowdown_check, throughput_check
from optimc.report.regression import RegressionCheck
from optimc.report.values import Skipped


def checks_of(pair: Pair) -> list[RegressionCheck]:
    """Every limit of the policy, asked of the pair."""
    missing = _not_built(pair)
    if missing is not None:
        return [missing]
    found = [drop_check(pair, name, limit) for name, limit in pair.policy.drop.items()]
    found += [metric_check(pair, name, limit) for name, limit in pair.policy.metrics.items()]
    if pair.policy.slowdown is not None:
        found.append(slowdown_check(pair, pair.policy.slowdown))
    found += [latency_check(pair, name, limit) for name, limit in pair.policy.latency_ms.items()]
    if pair.policy.throughput_per_s is not None:
        found.append(throughput_check(pair, pair.policy.throughput_per_s))
    found += size_checks(pair)
    found += memory_checks(pair)
    return found


def _not_built(pair: Pair) -> RegressionCheck | None:
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
