"""What single samples say of two models: where they agree, and where the candidate is worst.

The records of a metric that is a mean over samples hold each sample's own score. Of a correlation
it is how near a pair's rank by similarity is to its rank by label, the difference that Spearman's
coefficient squares and sums. Records of other metrics over the whole set (mean average precision,
F1 of spans) hold none, and give no figure here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimc.measure.paired import mcnemar
from optimc.measure.pairs import mean_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimc.measure.metric import Array, Direction, Records

MOST_WORST = 8
"""Worst samples that are kept: enough to look at, few enough for a report."""


@dataclass(frozen=True, slots=True)
class WorstSample:
    """A sample on which the candidate does worse than the source."""

    number: int
    """In the evaluation data, from 0."""
    source: float
    candidate: float
    """The sample's own score by each: 1 right and 0 wrong for labels; for correlations 1 less the
    distance of the ranks, as a share of the greatest one."""


@dataclass(frozen=True, slots=True)
class SampleEvidence:
    """What the samples say beyond the drop; a string is why there is nothing."""

    lost: int | str
    """Samples that only the source got right."""
    won: int | str
    """Samples that only the candidate got right."""
    mcnemar_p: float | str
    """The exact two-sided p-value of McNemar's test."""
    agreement: float | str
    """The share of samples to which both gave the same label."""
    worst: tuple[WorstSample, ...]


def evidence(source: Records, candidate: Records, better: Direction) -> SampleEvidence:
    """Compares two records of the same samples in the same order."""
    ours, theirs = sample_scores(candidate, better), sample_scores(source, better)
    worst = _worst(source, candidate, better) if ours is not None and theirs is not None else ()
    agreement = _agreement(source, candidate)
    if ours is None or theirs is None or not _are_labels(source):
        reason = "the metric does not count right answers"
        return SampleEvidence(reason, reason, reason, agreement, worst)
    lost = int(((theirs > 0) & (ours <= 0)).sum())
    won = int(((theirs <= 0) & (ours > 0)).sum())
    return SampleEvidence(lost, won, mcnemar(lost, won), agreement, worst)


def sample_scores(records: Records, better: Direction = "higher") -> Array | None:
    """Each sample's own score float64 [n], higher is better; None where the metric has none."""
    import numpy as np

    scores = _own(records)
    if scores is None or scores.ndim != 1:
        return None
    sign = -1.0 if better == "lower" and not _are_labels(records) else 1.0
    signed: Array = sign * scores.astype(np.float64)
    return signed


def _own(records: Mapping[str, Array]) -> Array | None:
    if "correct" in records:
        return records["correct"]
    if "predicted" in records and "label" in records:
        same: Array = records["predicted"] == records["label"]
        return same
    if set(records) == {"similarity", "gold"}:
        return _nearness(records["similarity"], records["gold"])
    # Beside other records a score is that of a box, not of a sample.
    return records["score"] if set(records) == {"score"} else None


def _nearness(similarity: Array, gold: Array) -> Array:
    """1 where a pair's rank by `similarity` [n] is that by `gold` [n], 0 where it is farthest."""
    distance = abs(mean_ranks(similarity) - mean_ranks(gold))
    near: Array = 1.0 - distance / max(len(gold) - 1, 1)
    return near


def _are_labels(records: Mapping[str, Array]) -> bool:
    return "correct" in records or ("predicted" in records and "label" in records)


def _agreement(source: Records, candidate: Records) -> float | str:
    ours, theirs = candidate.get("predicted"), source.get("predicted")
    if ours is None or theirs is None or ours.ndim != 1 or ours.shape != theirs.shape:
        return "the metric knows no label for each sample"
    return float((ours == theirs).mean())


def _worst(source: Records, candidate: Records, better: Direction) -> tuple[WorstSample, ...]:
    import numpy as np

    ours, theirs = sample_scores(candidate, better), sample_scores(source, better)
    assert ours is not None
    assert theirs is not None
    drop = theirs - ours
    order = np.argsort(-drop, kind="stable")[:MOST_WORST]
    sign = -1.0 if better == "lower" and not _are_labels(source) else 1.0
    return tuple(
        WorstSample(int(i), sign * float(theirs[i]), sign * float(ours[i]))
        for i in order
        if drop[i] > 0
    )
