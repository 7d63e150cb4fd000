"""The observer that every range estimator is fed from: exact extremes and a growing histogram.

A histogram has a fixed number of equal bins over ``[-2^k, 2^k)``. Bins are numbered by
``floor(x / w)`` with the width ``w = 2^(k+1) / bins``, a power of two, so the division is exact.
When a larger value comes, k grows and pairs of bins are merged: ``floor(x / 2w)`` equals
``floor(floor(x / w) / 2)``, so the result is the one that the final k would have given from the
start. It depends neither on the order of the elements nor on how they were cut into batches.

Beside them stand exponentially weighted means of each sample's extremes, in the samples' order:

    m = sum((1 - c)^(n - i) x_i) / sum((1 - c)^(n - i))        for i from 1 to n

with c = `AVERAGING`, as PyTorch's and TensorFlow's observers have it for batches, but without their
bias towards the first one. A value whose first axis does not count the samples (nor a multiple of
them) is taken as one observation a batch: its means then depend on the batches.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from optimc.core.statistics import TensorStatistics

BINS = 8192
"""At least 8 bins for each step of an 8-bit scale that covers the whole range."""

AVERAGING = 0.01
"""The weight of the newest sample in the means of the extremes, against all before it."""

_LEAST_EXPONENT = -100  # so that 1/w stays a normal float32 for values that are all zero
_BLOCK = 1 << 16  # elements that stay in the cache between the steps


class HistogramObserver:
    """Collects `TensorStatistics` of one value, array by array. Memory: one histogram."""

    def __init__(self, bins: int = BINS) -> None:
        if bins < 4 or bins & (bins - 1):
            raise ValueError("the number of bins must be a power of two")
        self._bins = bins
        self._exponent = _LEAST_EXPONENT
        self._histogram = np.zeros(bins, np.int64)
        self._minimum = math.inf
        self._maximum = -math.inf
        self._count = 0
        self._non_finite = 0
        self._averages = np.zeros(2)
        self._weight = 0.0

    def update(self, array: NDArray[np.floating], samples: int = 1) -> None:
        """Adds the elements of a floating-point array of any shape, of so many samples."""
        flat = array.reshape(-1)
        if flat.dtype.kind != "f" or flat.dtype.itemsize == 2:
            flat = flat.astype(np.float32)  # float16 and bfloat16 are exact in float32
        self._count += flat.size
        if not flat.size:
            return
        rows = flat.reshape(samples, -1) if _counts_samples(array, samples) else flat[None]
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        low, high = float(lows.min()), float(highs.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self._non_finite += flat.size - finite.size
            if not finite.size:
                return
            flat, low, high = finite, float(finite.min()), float(finite.max())
            lows, highs = np.array([low]), np.array([high])
        self._average(lows, highs)
        self._minimum = min(self._minimum, low)
        self._maximum = max(self._maximum, high)
        self._grow(max(-low, high))
        self._add(flat)

    def statistics(self) -> TensorStatistics:
        """What was seen so far."""
        seen = self._count > self._non_finite
        return TensorStatistics(
            minimum=self._minimum if seen else 0.0,
            maximum=self._maximum if seen else 0.0,
            count=self._count,
            non_finite=self._non_finite,
            limit=math.ldexp(1.0, self._exponent),
            average_minimum=float(self._averages[0]),
            average_maximum=float(self._averages[1]),
            histogram=self._histogram.copy(),
        )

    def _average(self, lows: NDArray[np.floating], highs: NDArray[np.floating]) -> None:
        """Takes the extremes of some samples into their means, one after the other."""
        for extremes in np.stack([lows, highs], axis=1).astype(np.float64):
            self._weight = self._weight * (1.0 - AVERAGING) + 1.0
            self._averages += (extremes - self._averages) / self._weight

    def _grow(self, bound: float) -> None:
        """Merges pairs of bins until `bound` lies below the limit."""
        if bound == 0.0:
            return
        exponent = math.frexp(bound)[1]  # the least with bound < 2^exponent
        quarter = self._bins // 4
        while self._exponent < exponent:
            if not self._histogram.any():
                self._exponent = exponent
                return
            merged = self._histogram.reshape(-1, 2).sum(axis=1)
            self._histogram = np.pad(merged, quarter)
            self._exponent += 1

    def _add(self, flat: NDArray[np.floating]) -> None:
        half = self._bins // 2
        if math.ldexp(half, -self._exponent) < 1.0:
            flat = flat.astype(np.float64)  # the product could underflow to a zero of no sign
        per_width = flat.dtype.type(math.ldexp(half, -self._exponent))
        for start in range(0, flat.size, _BLOCK):
            scaled = flat[start : start + _BLOCK] * per_width
            index = np.floor(scaled, out=scaled).astype(np.intp)
            index += half
            self._histogram += np.bincount(index, minlength=self._bins)


def _counts_samples(array: NDArray[np.floating], samples: int) -> bool:
    """Whether the first axis counts the samples, or some rows of each."""
    return array.ndim > 0 and array.shape[0] > 0 and array.shape[0] % samples == 0
