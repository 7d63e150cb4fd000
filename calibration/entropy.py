"""The entropy estimator: the clipping threshold that loses the least information.

For every threshold T, the distribution P of the clipped magnitudes (what lies beyond T counted at
T) is compared with the distribution Q that is left of it after quantization to the levels of the
integer type; the T with the least Kullback-Leibler divergence ``sum(P log(P / Q))`` is taken.

Source: S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017, slides 34 to 39.
As in TensorRT's quantization toolkit, the bin at zero, where Relu piles up its zeros, counts no
more than its neighbour (it is represented exactly at any scale), an unsigned type has 256 levels
for values without negative ones and 128 otherwise, and of equal divergences the widest wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optimc.calibration.affine import IntegerType, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.statistics import TensorStatistics

_CANDIDATES = 256
"""Thresholds that are tried: all of the bins would take ten times as long, and say little more."""


@dataclass(frozen=True)
class Entropy:
    """Minimises the Kullback-Leibler divergence, see the module."""

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """``[-T, T]`` cut to the observed extremes."""
        full = Range(seen.minimum, seen.maximum)
        counts = _magnitudes(seen, full.magnitude)
        levels = 256 if full.low == 0.0 and (not kind.symmetric or kind.least == 0) else 128
        if full.magnitude == 0.0 or len(counts) <= levels:
            return full
        width = 2.0 * seen.limit / len(seen.histogram)

        step = max(1, (len(counts) - levels) // _CANDIDATES)
        # Counted down from the whole range, so that the first of equal ones is the widest.
        tried = range(len(counts), levels, -step)
        threshold = width * min(tried, key=lambda bins: _divergence(counts, bins, levels))
        return Range(max(full.low, -threshold), min(full.high, threshold))


def _magnitudes(seen: TensorStatistics, greatest: float) -> NDArray[np.float64]:
    """Counts of the magnitudes, in bins from zero to the greatest one."""
    half = len(seen.histogram) // 2
    folded = (seen.histogram[half:] + seen.histogram[:half][::-1]).astype(np.float64)
    used = int(np.ceil(greatest / seen.limit * half)) if greatest else 0
    counts = folded[: max(used, 2)].copy()
    counts[0] = counts[1]
    return counts


def _divergence(counts: NDArray[np.float64], bins: int, levels: int) -> float:
    """KL divergence of the first `bins` bins, clipped, from what `levels` levels make of them."""
    kept = counts[:bins]
    clipped = kept.copy()
    beyond = float(counts[bins:].sum())
    clipped[-1] += beyond
    starts = np.arange(levels) * bins // levels
    occupied = kept > 0.0
    members = np.add.reduceat(occupied, starts, dtype=np.int64)
    means = np.add.reduceat(kept, starts) / np.maximum(members, 1)
    spread = np.repeat(means, np.diff(starts, append=bins)) * occupied
    total = spread.sum()
    there = clipped > 0.0
    if total <= 0.0 or not np.all(spread[there] > 0.0):
        return float("inf")  # something is clipped to where nothing is
    p = clipped[there] / clipped.sum()
    q = spread[there] / (total + beyond)
    return float(np.sum(p * np.log(p / q)))
