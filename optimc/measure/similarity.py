"""Metrics of real-valued outputs: cosine, mse, and the rank correlation of pairs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from optimc.measure.metric import Direction, SampleMetric
from optimc.measure.paired import mean_drop, statistic_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Records


class _Reference(SampleMetric):
    """A mean over samples of how near an output is to its reference."""

    reference: Literal["source", "labels"] = "source"
    """What to compare with: the source's output, or arrays that the data give as labels."""

    @property
    def needs_labels(self) -> bool:
        """See `Metric`."""
        return self.reference == "labels"

    @property
    def needs_source(self) -> bool:
        """See `Metric`."""
        return self.reference == "source"

    def record(self, output: Array, labels: Array | None, source: Array | None) -> Records:
        """See `SampleMetric`."""
        reference = labels if self.reference == "labels" else source
        assert reference is not None
        if output.ndim == 0 or output.shape != reference.shape:
            raise self.fail(
                f"the output has shape {list(output.shape)}, its reference "
                f"{list(reference.shape)}; they must be alike, with one entry a sample first",
                f"name the right output: {self.where}.output"
                if self.reference == "source"
                else "point data.evaluation.labels at arrays like the output",
            )
        return {"score": self._score(_rows(self, output), _rows(self, reference))}

    @abstractmethod
    def _score(self, output: Array, reference: Array) -> Array:
        """The samples' scores [n] from two float64 arrays [n, elements]."""

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`."""
        score = records["score"]
        return float((score if indices is None else score[indices]).mean())

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""
        sign = 1 if self.better == "higher" else -1
        return mean_drop(sign * (source["score"] - candidate["score"]))


class Cosine(_Reference):
    """The mean over samples of the cosine between an output and its reference.

    With the source as reference, the source itself scores 1.
    """

    name: ClassVar[str] = "cosine"
    better: ClassVar[Direction] = "higher"

    def _score(self, output: Array, reference: Array) -> Array:
        return _cosine(output, reference)


class Mse(_Reference):
    """The mean squared error of an output against its reference.

    With the source as reference, the source itself scores 0.
    """

    name: ClassVar[str] = "mse"
    better: ClassVar[Direction] = "lower"

    def _score(self, output: Array, reference: Array) -> Array:
        score: Array = ((output - reference) ** 2).mean(axis=1)
        return score


class Spearman(SampleMetric):
    """Spearman's rank correlation of the similarity of pairs with given scores.

    The output holds embeddings [2 n, size]: rows 2i and 2i + 1 belong to pair i. Their cosine is
    ranked against the label of pair i, a number; labels are [n]. A batch holds whole pairs.
    """

    name: ClassVar[str] = "spearman"
    better: ClassVar[Direction] = "higher"

    def record(self, output: Array, labels: Array | None, source: Array | None) -> Records:
        """See `SampleMetric`."""
        import numpy as np

        assert labels is not None
        if output.ndim != 2 or len(output) % 2:
            raise self.fail(
                f"the output has shape {list(output.shape)}, not embeddings [2 x pairs, size]",
                f"name the output with the pooled embeddings ({self.where}.output), and give the "
                "two members of a pair one after the other",
            )
        pairs = len(output) // 2
        if labels.dtype.kind not in "iuf" or labels.shape not in ((pairs,), (pairs, 1)):
            raise self.fail(
                f"labels have shape {list(labels.shape)} and dtype {labels.dtype}; scores are "
                f"numbers [{pairs}], one a pair",
                "point data.evaluation.labels at such an array",
            )
        rows = _rows(self, output)
        gold = labels.reshape(pairs).astype(np.float64)
        return {"similarity": _cosine(rows[::2], rows[1::2]), "gold": gold}

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`."""
        similarity, gold = records["similarity"], records["gold"]
        if indices is not None:
            similarity, gold = similarity[indices], gold[indices]
        return _rank_correlation(_order(similarity), _order(gold))

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""
        # Sorted once, not for each of some thousand resamples.
        gold = _order(source["gold"])
        ours, theirs = _order(candidate["similarity"]), _order(source["similarity"])

        def drop(chosen: Indices) -> float:
            right = gold[chosen]
            return _rank_correlation(theirs[chosen], right) - _rank_correlation(ours[chosen], right)

        return statistic_drop(drop, len(gold), seed)


def _rank_correlation(a: Array, b: Array) -> float:
    """Spearman's correlation of `a` [n] and `b` [n], numbers from `_order`; ties get their mean
    rank. 0 where one of them is constant: it then orders nothing.
    """
    import numpy as np

    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def _order(values: Array) -> Array:
    """For each of `values` [n], how many distinct ones are smaller, [n]."""
    import numpy as np

    return np.unique(values, return_inverse=True)[1]


def _ranks(order: Array) -> Array:
    import numpy as np

    counts = np.bincount(order)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[order]
    return ranks


def _rows(metric: SampleMetric, array: Array) -> Array:
    """As float64 [n, elements]; raises InputError where elements are not finite."""
    import numpy as np

    if array.dtype.kind not in "fiub":
        raise metric.fail(f"cannot compare values of dtype {array.dtype}", "name another output")
    rows = array.reshape(len(array), -1).astype(np.float64)
    broken = int((~np.isfinite(rows)).any(axis=1).sum())
    if broken:
        raise metric.fail(
            f"NaN or infinity in {broken} of a batch of {len(rows)} samples",
            "see what the verification says of this cell: its outputs cannot be trusted",
        )
    return rows


def _cosine(a: Array, b: Array) -> Array:
    """The cosine of each row of `a` and `b` [n, elements]; of a zero row with another, 0."""
    import numpy as np

    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    cosine = (a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0)
    # Equal rows are equal exactly, whatever rounding says, and so are two rows of zeros.
    return np.where((a == b).all(axis=1), 1.0, np.clip(cosine, -1.0, 1.0))
