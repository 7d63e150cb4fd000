"""Base of metrics whose value is a function of sums over samples, such as F1 over all tokens.

They are no means over samples: a long text weighs more than a short one. What is kept of a sample
is its part of each sum, so that resamples are weighted sums of the same rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimc.measure.metric import OutputMetric, SampleMetric
from optimc.measure.paired import no_narrower, statistic_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Records

    Sums = Mapping[str, Array]


class SummedMetric(OutputMetric):
    """Records are numbers [n] or [n, classes] a batch; classes that a batch lacks count as 0."""

    @abstractmethod
    def of_sums(self, sums: Sums) -> float:
        """The value from the sums of all records over samples, [] or [classes] each."""

    def join(self, batches: Sequence[Records]) -> Records:
        """See `SampleMetric`."""
        import numpy as np

        joined = {}
        for name, first in batches[0].items():
            arrays = [batch[name] for batch in batches]
            if first.ndim == 2:
                width = max(array.shape[1] for array in arrays)
                arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
            joined[name] = np.concatenate(arrays)
        return joined

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`."""
        import numpy as np

        weights = None
        if indices is not None:
            weights = np.bincount(indices, minlength=self.samples(records)).astype(np.float64)
        sums = {
            name: array.sum(axis=0) if weights is None else weights @ array
            for name, array in records.items()
        }
        return self.of_sums(sums)

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`; the bootstrap over samples, paired."""
        sign = 1 if self.better == "higher" else -1
        theirs, ours = _as_floats(source), _as_floats(candidate)

        def drop(chosen: Indices) -> float:
            return sign * (self.value(theirs, chosen) - self.value(ours, chosen))

        interval = statistic_drop(drop, self.samples(source), seed)
        return no_narrower(interval) if self.unit == "fraction" else interval


def f1_of_counts(hits: Array, said: Array, gold: Array, average: str) -> float:
    """F1 from the counts of right, predicted and true items by class, [classes] each.

    ``micro`` adds the classes up, ``macro`` is the mean over classes that occur. 0 where nothing
    was to be found and nothing was said: that is no success.
    """
    import numpy as np

    if average == "micro":
        hits, said, gold = (np.atleast_1d(part.sum()) for part in (hits, said, gold))
    total = said + gold
    met = total > 0
    return float((2 * hits[met] / total[met]).mean()) if met.any() else 0.0


def label_rows(metric: SampleMetric, labels: Any, shape: tuple[int, int], fill: int) -> Array:
    """Labels [n, width] int64 for outputs of `shape`; shorter rows are filled up with `fill`.

    Raises InputError where they are no integers, too many or too long.
    """
    import numpy as np

    samples, width = shape
    rows = [np.asarray(row) for row in labels]
    longest = max((len(row) for row in rows if row.ndim == 1), default=0)
    wrong = [row for row in rows if row.ndim != 1 or (row.size and row.dtype.kind not in "iu")]
    if wrong or len(rows) != samples or longest > width:
        what = (
            f"a label of shape {list(wrong[0].shape)} and dtype {wrong[0].dtype}"
            if wrong
            else f"{len(rows)} rows of labels with up to {longest} tokens"
        )
        raise metric.fail(
            f"the output is of {samples} samples with {width} tokens, its labels are {what}",
            "labels are class numbers, integers, one for each token of the model's input",
        )
    filled = np.full((samples, width), fill, np.int64)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled


def _as_floats(records: Records) -> Records:
    """As float64: products with weights are then matrix products."""
    import numpy as np

    return {name: array.astype(np.float64) for name, array in records.items()}
