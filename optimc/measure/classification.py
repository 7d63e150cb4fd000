"""Metrics of classifiers: top1, top5, f1."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from optimc.measure.metric import Direction, RegularMetric
from optimc.measure.paired import proportion_drop, statistic_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Records


class _Classifier(RegularMetric):
    """Scores [n, classes] (float) or class numbers [n] (integer), against class numbers [n]."""

    better: ClassVar[Direction] = "higher"
    unit: ClassVar[str] = "fraction"

    def record(self, output: Array, labels: Array | None, source: Array | None) -> Records:
        """See `RegularMetric`."""
        if output.ndim == 2 and output.shape[1] >= 2 and output.dtype.kind in "fiu":
            assert labels is not None
            return self._classify(output, self._labels(labels, len(output), output.shape[1]))
        if output.ndim == 1 and output.dtype.kind in "iu":
            assert labels is not None
            return self._compare(output, self._labels(labels, len(output), None))
        raise self.fail(
            f"the output has shape {list(output.shape)} and dtype {output.dtype}, not scores "
            "[samples, classes] or class numbers [samples]",
            f"name the output that holds the scores: {self.where}.output",
        )

    @abstractmethod
    def _classify(self, scores: Array, labels: Array) -> Records:
        """The records of scores [n, classes] and labels [n]."""

    def _compare(self, predicted: Array, labels: Array) -> Records:
        """The records of class numbers [n] and labels [n]."""
        raise self.fail(
            "the output holds class numbers, not scores",
            f"name the output that holds the scores: {self.where}.output",
        )

    def _labels(self, labels: Array, samples: int, classes: int | None) -> Array:
        import numpy as np

        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind not in "iu" or labels.shape != (samples,):
            raise self.fail(
                f"labels have shape {list(labels.shape)} and dtype {labels.dtype}; class numbers "
                f"are integers [{samples}], one a sample",
                "point data.evaluation.labels at such an array",
            )
        labels = labels.astype(np.int64)
        wrong = (labels < 0) | (labels >= (classes or np.inf))
        if wrong.any():
            most = "" if classes is None else f" to {classes - 1}"
            raise self.fail(
                f"label {labels[wrong][0]} is no class of the model, which knows 0{most}",
                "number the classes from 0, in the order of the model's scores",
            )
        return labels


class _TopK(_Classifier):
    k: ClassVar[int]

    def _classify(self, scores: Array, labels: Array) -> Records:
        import numpy as np

        samples, classes = scores.shape
        if classes <= self.k:
            raise self.fail(f"{self.name} says nothing about {classes} classes", "use top1 instead")
        own = scores[np.arange(samples), labels][:, None]
        # Ties go to the lower number, as with argmax: else a constant output would be all right.
        tied = (scores == own) & (np.arange(classes) < labels[:, None])
        rank = ((scores > own) | tied).sum(axis=1)
        broken = np.isnan(scores).any(axis=1)
        correct = (rank < self.k) & ~broken
        if self.k > 1:
            return {"correct": correct}
        # The labels say how often two models agree, right or wrong.
        return {"correct": correct, "predicted": np.where(broken, -1, scores.argmax(axis=1))}

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `RegularMetric`."""
        correct = records["correct"]
        return float((correct if indices is None else correct[indices]).mean())

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""
        return _correctness_drop(source["correct"], candidate["correct"])


class Top1(_TopK):
    """The share of samples whose highest score is the label's."""

    name: ClassVar[str] = "top1"
    k: ClassVar[int] = 1

    def _compare(self, predicted: Array, labels: Array) -> Records:
        import numpy as np

        return {"correct": predicted == labels, "predicted": predicted.astype(np.int64)}


class Top5(_TopK):
    """The share of samples whose label is among the five highest scores."""

    name: ClassVar[str] = "top5"
    k: ClassVar[int] = 5


class F1(_Classifier):
    """The harmonic mean of precision and recall.

    ``macro`` is the mean over the classes that occur among labels or predictions; ``micro`` counts
    all classes together, which for one label a sample is top1.
    """

    name: ClassVar[str] = "f1"

    average: Literal["macro", "micro"] = "macro"
    """How classes are brought together."""

    def _classify(self, scores: Array, labels: Array) -> Records:
        import numpy as np

        # A sample with NaN counts as missed in its own class, and for no other.
        broken = np.isnan(scores).any(axis=1)
        return self._compare(np.where(broken, -1, scores.argmax(axis=1)), labels)

    def _compare(self, predicted: Array, labels: Array) -> Records:
        import numpy as np

        return {"predicted": predicted.astype(np.int64), "label": labels}

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `RegularMetric`."""
        import numpy as np

        predicted, label = records["predicted"], records["label"]
        if indices is not None:
            predicted, label = predicted[indices], label[indices]
        right = label[predicted == label]
        if self.average == "micro":
            return len(right) / len(label)
        classes = int(max(label.max(), predicted.max())) + 1
        hits = np.bincount(right, minlength=classes)
        said = np.bincount(predicted[predicted >= 0], minlength=classes)
        total = said + np.bincount(label, minlength=classes)
        met = total > 0
        return float((2 * hits[met] / total[met]).mean())

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`.

        No narrower on either side than the interval of the share of right answers: a bootstrap of
        few or no disagreements would call the drop known exactly.
        """
        label = source["label"]
        share = _correctness_drop(source["predicted"] == label, candidate["predicted"] == label)
        if self.average == "micro":
            return share
        drop = statistic_drop(
            lambda chosen: self.value(source, chosen) - self.value(candidate, chosen),
            len(label),
            seed,
        )

        def low(end: float, floor: float) -> float:
            return min(end, drop.point + floor - share.point)

        def high(end: float, floor: float) -> float:
            return max(end, drop.point + floor - share.point)

        return replace(
            drop,
            ci95=(low(drop.ci95[0], share.ci95[0]), high(drop.ci95[1], share.ci95[1])),
            lower=low(drop.lower, share.lower),
            upper=high(drop.upper, share.upper),
            method=f"{drop.method}; no narrower than Tango's interval of the right answers",
        )


def _correctness_drop(source: Array, candidate: Array) -> Interval:
    lost = int((source & ~candidate).sum())
    won = int((candidate & ~source).sum())
    return proportion_drop(lost, won, len(source))
