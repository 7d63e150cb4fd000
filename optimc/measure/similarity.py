"""Metrics of real-valued outputs: cosine, mse."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from optimc.measure.metric import Direction, RegularMetric, SampleMetric
from optimc.measure.paired import mean_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Records


class _Reference(RegularMetric):
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
        """See `RegularMetric`."""
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
        return {"score": self._score(rows_of(self, output), rows_of(self, reference))}

    @abstractmethod
    def _score(self, output: Array, reference: Array) -> Array:
        """The samples' scores [n] from two float64 arrays [n, elements]."""

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `RegularMetric`."""
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
        return cosine_of(output, reference)


class Mse(_Reference):
    """The mean squared error of an output against its reference.

    With the source as reference, the source itself scores 0.
    """

    name: ClassVar[str] = "mse"
    better: ClassVar[Direction] = "lower"

    def _score(self, output: Array, reference: Array) -> Array:
        score: Array = ((output - reference) ** 2).mean(axis=1)
        return score


def rows_of(metric: SampleMetric, array: Array) -> Array:
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


def cosine_of(a: Array, b: Array) -> Array:
    """The cosine of each row of `a` and `b` [n, elements]; of a zero row with another, 0."""
    import numpy as np

    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    cosine = (a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0)
    # Equal rows are equal exactly, whatever rounding says, and so are two rows of zeros.
    return np.where((a == b).all(axis=1), 1.0, np.clip(cosine, -1.0, 1.0))
