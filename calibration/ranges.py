"""Range estimators: from the statistics of a tensor to the range that the integers span.

A wide range rounds coarsely, a narrow one clips. Each estimator answers that in its way; all of
them work from one `TensorStatistics`, so one sweep over the data feeds every one. A further
estimator is a class with `estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from optimc.calibration.affine import IntegerType, Range

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from optimc.core.statistics import TensorStatistics


class RangeEstimator(Protocol):
    """Chooses the range of a tensor for an integer type."""

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """A range within ``[minimum, maximum]``, widened to hold zero."""


@dataclass(frozen=True)
class MinMax:
    """The observed extremes: nothing is clipped.

    Jacob et al. 2018 (arXiv:1712.05877), section 3.1, without the moving average.
    """

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """[minimum, maximum]."""
        return Range(seen.minimum, seen.maximum)


@dataclass(frozen=True)
class MovingAverage:
    """Weighted means of the samples' extremes: what only few samples reach is clipped.

    Jacob et al. 2018 (arXiv:1712.05877), section 3.1; see `optimc.calibration.observers`.
    """

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """The means of the samples' minima and of their maxima."""
        return Range(seen.average_minimum, seen.average_maximum)


@dataclass(frozen=True)
class Percentile:
    """Cuts the tails: `percent` of the elements lie within the range on either side.

    With cumulated counts C over the bins, `high` is the point where C reaches ``percent`` % and
    `low` where it reaches ``100 - percent`` %, linear within a bin. See Wu et al. 2020, "Integer
    Quantization for Deep Learning Inference" (arXiv:2004.09602), section 5.
    """

    percent: float = 99.999

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """The two percentiles, within the observed extremes."""
        edges, counts = _bins(seen)
        cumulated = np.concatenate([[0], np.cumsum(counts)])
        if cumulated[-1] == 0:
            return Range(0.0, 0.0)
        share = self.percent / 100
        points = np.interp(np.array([1 - share, share]) * cumulated[-1], cumulated, edges)
        low, high = np.clip(points, seen.minimum, seen.maximum)
        return Range(float(low), float(high))


@dataclass(frozen=True)
class MeanSquaredError:
    """Minimises the mean squared error of quantizing the tensor, clipping and rounding together.

    For bin centres c with counts h, ``E(low, high) = sum(h * (c - Q(c))^2)`` where Q quantizes and
    dequantizes with the parameters of the range. Both ends are searched in turn, each over
    `_CANDIDATES` fractions of its extreme and then more finely around the best. See Nagel et al.
    2021, "A White Paper on Neural Network Quantization" (arXiv:2106.08295), section 3.1.
    """

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """The best range found; never wider than the observed extremes."""
        full = Range(seen.minimum, seen.maximum)
        if full.magnitude == 0.0:
            return full
        edges, counts = _bins(seen)
        occupied = counts > 0
        centres = ((edges[:-1] + edges[1:]) / 2)[occupied]
        weights = counts[occupied].astype(np.float64)

        def error(span: Range) -> float:
            return _squared_error(span, kind, centres, weights)

        if kind.symmetric:
            return _search(lambda f: Range(full.low * f, full.high * f), error)[0]
        best = full
        for _ in range(_ROUNDS if full.low < 0.0 < full.high else 1):
            high, low = best.high, best.low
            if full.high > 0.0:
                best = _search(lambda f, low=low: Range(low, full.high * f), error)[0]  # type: ignore[misc]
                high = best.high
            if full.low < 0.0:
                best = _search(lambda f, high=high: Range(full.low * f, high), error)[0]  # type: ignore[misc]
        return best


_CANDIDATES = 24
_LEAST_SHARE = 0.1
_ROUNDS = 2


def _search(make: Callable[[float], Range], error: Callable[[Range], float]) -> tuple[Range, float]:
    """The best range of ``make(f)`` for f from `_LEAST_SHARE` to 1, coarse and then fine."""
    step = (1.0 - _LEAST_SHARE) / _CANDIDATES
    coarse = [1.0 - step * i for i in range(_CANDIDATES)]
    # The first of equal ones wins: the widest range.
    best = min(coarse, key=lambda f: error(make(f)))
    fine = [f for f in (best + step * i / 8 for i in range(8, -8, -1)) if _LEAST_SHARE <= f <= 1.0]
    best = min(fine, key=lambda f: error(make(f)))
    return make(best), error(make(best))


def _squared_error(
    span: Range, kind: IntegerType, centres: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    affine = kind.parameters(span)
    q = np.clip(np.rint(centres / affine.scale) + affine.zero_point, kind.least, kind.greatest)
    difference = (q - affine.zero_point) * affine.scale - centres
    return float(np.dot(weights, difference * difference))


def _bins(seen: TensorStatistics) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The edges of all bins, and their counts."""
    return np.linspace(-seen.limit, seen.limit, len(seen.histogram) + 1), seen.histogram
