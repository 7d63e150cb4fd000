"""Correlation of the similarity of pairs with given scores: spearman, pearson."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from optimc.measure.metric import Direction, OutputMetric, Recorder
from optimc.measure.paired import statistic_drop
from optimc.measure.similarity import cosine_of, rows_of
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Outputs, Records


class _Pairs(OutputMetric):
    """Pairs of embeddings, and a number for each pair."""

    better: ClassVar[Direction] = "higher"

    second: str | None = None
    """The output with the second members [n, size], where a model embeds both at once. Without it,
    rows 2i and 2i + 1 of the output are pair i."""

    def named_outputs(self) -> dict[str, str]:
        """See `SampleMetric`."""
        named = super().named_outputs()
        return named if self.second is None else {**named, "second": self.second}

    def recorder(self) -> Recorder:
        """See `Metric`."""
        return super().recorder() if self.second is not None else _PairRecorder(self)

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        first, second = self.embeddings(outputs), self.select(outputs, "second")
        if first.shape != second.shape:
            raise self.fail(
                f"the members of pairs have the shapes {list(first.shape)} and "
                f"{list(second.shape)}",
                f"name two outputs that are alike: {self.where}.output and {self.where}.second",
            )
        return self.pairs(first, second, self.numbers(labels, len(first)))

    def embeddings(self, outputs: Outputs) -> Array:
        """The judged output, checked."""
        output = self.select(outputs, "output")
        if output.ndim != 2:
            raise self.fail(
                f"the output has shape {list(output.shape)}, not embeddings [samples, size]",
                f"name the output with the pooled embeddings: {self.where}.output",
            )
        return output

    def numbers(self, labels: Any, count: int) -> Array:
        """The labels of `count` rows or pairs as float64 [count]; raises InputError."""
        import numpy as np

        array = self.regular(labels)
        if array.dtype.kind not in "iuf" or array.shape not in ((count,), (count, 1)):
            raise self.fail(
                f"labels have shape {list(array.shape)} and dtype {array.dtype}; scores are "
                f"numbers, one for each of {count}",
                "point data.evaluation.labels at such an array",
            )
        return array.reshape(count).astype(np.float64)

    def pairs(self, first: Array, second: Array, gold: Array) -> Records:
        """The records of pairs of embeddings [n, size] with the scores `gold` [n]."""
        a, b = rows_of(self, first), rows_of(self, second)
        return {"similarity": cosine_of(a, b), "gold": gold}

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`."""
        similarity, gold = self.prepared(records["similarity"]), self.prepared(records["gold"])
        if indices is not None:
            similarity, gold = similarity[indices], gold[indices]
        return self.correlation(similarity, gold)

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""
        # Prepared once, not for each of some thousand resamples.
        gold = self.prepared(source["gold"])
        ours, theirs = (self.prepared(r["similarity"]) for r in (candidate, source))

        def drop(chosen: Indices) -> float:
            right = gold[chosen]
            return self.correlation(theirs[chosen], right) - self.correlation(ours[chosen], right)

        return statistic_drop(drop, len(gold), seed)

    @abstractmethod
    def prepared(self, values: Array) -> Array:
        """What `correlation` takes in place of `values` [n]."""

    @abstractmethod
    def correlation(self, a: Array, b: Array) -> float:
        """The correlation of `a` [n] and `b` [n]; 0 where one is constant: it orders nothing."""


class Spearman(_Pairs):
    """Spearman's rank correlation of the similarity of pairs with given scores.

    The output holds embeddings [2 n, size]: rows 2i and 2i + 1 belong to pair i, whatever batches
    they come in. Their cosine is ranked against the label of pair i, a number. Labels are one a
    pair, or one a row where both rows of a pair have the same.
    """

    name: ClassVar[str] = "spearman"

    def prepared(self, values: Array) -> Array:
        """For each of `values` [n], how many distinct ones are smaller, [n]."""
        import numpy as np

        return np.unique(values, return_inverse=True)[1]

    def correlation(self, a: Array, b: Array) -> float:
        """Of what `prepared` gave; ties get their mean rank."""
        return _correlation(_ranks(a), _ranks(b))


class Pearson(_Pairs):
    """Pearson's correlation of the similarity of pairs with given scores.

    The output holds embeddings [2 n, size]: rows 2i and 2i + 1 belong to pair i, whatever batches
    they come in. Labels are one a pair, or one a row where both rows of a pair have the same.
    """

    name: ClassVar[str] = "pearson"

    def prepared(self, values: Array) -> Array:
        """The values themselves."""
        return values

    def correlation(self, a: Array, b: Array) -> float:
        """See `_Pairs`."""
        return _correlation(a, b)


class _PairRecorder:
    """Joins rows to pairs across batches: a batch may end between the two members of a pair."""

    def __init__(self, metric: _Pairs) -> None:
        self._metric = metric
        self._waiting: tuple[Array, Array] | None = None
        """The first member of a pair whose second is to come, with its label."""
        self._batches: list[Records] = []

    def update(self, outputs: Outputs, labels: Any, source: Outputs | None = None) -> None:
        import numpy as np

        metric = self._metric
        if labels is None:
            raise metric.fail(
                "the evaluation data have no labels", "name them: data.evaluation.labels"
            )
        rows = metric.embeddings(outputs)
        if len(labels) * 2 == len(rows) and self._waiting is None:
            gold = np.repeat(metric.numbers(labels, len(rows) // 2), 2)
        else:
            gold = metric.numbers(labels, len(rows))
        if self._waiting is not None:
            rows = np.concatenate([self._waiting[0], rows])
            gold = np.concatenate([self._waiting[1], gold])
        whole = len(rows) - len(rows) % 2
        self._waiting = (rows[whole:].copy(), gold[whole:]) if whole < len(rows) else None
        if not whole:
            return
        if (gold[:whole:2] != gold[1:whole:2]).any():
            raise metric.fail(
                "the two rows of a pair have different labels",
                "put the members of a pair one after the other, both with the pair's score",
            )
        self._batches.append(metric.pairs(rows[:whole:2], rows[1:whole:2], gold[:whole:2]))

    def records(self) -> Records:
        metric = self._metric
        if self._waiting is not None:
            raise metric.fail(
                "the number of rows is odd: the last one has no partner",
                "put the members of a pair one after the other",
            )
        if not self._batches:
            raise metric.fail("the evaluation data hold no sample", "add samples")
        return metric.join(self._batches)


def _correlation(x: Array, y: Array) -> float:
    import numpy as np

    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def mean_ranks(values: Array) -> Array:
    """The ranks float64 [n] of `values` [n], from 1; ties get their mean rank."""
    import numpy as np

    return _ranks(np.unique(values, return_inverse=True)[1])


def _ranks(order: Array) -> Array:
    import numpy as np

    counts = np.bincount(order)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[order]
    return ranks
