"""How much of an activation 8 bits keep, told from its histogram. Works on arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optimc.calibration.affine import Affine
    from optimc.core.statistics import TensorStatistics


def activation_sqnr(seen: TensorStatistics, affine: Affine) -> float:
    """The signal-to-quantization-noise ratio, in dB, of a tensor with these parameters.

    With counts h over bin centres c: ``10 log10(sum(h c^2) / sum(h (c - Q(c))^2))``, clipping and
    rounding together. Infinite where nothing is lost.
    """
    edges = np.linspace(-seen.limit, seen.limit, len(seen.histogram) + 1)
    centres, counts = (edges[:-1] + edges[1:]) / 2, seen.histogram.astype(np.float64)
    info = np.iinfo(affine.dtype)
    q = np.clip(np.rint(centres / affine.scale) + affine.zero_point, info.min, info.max)
    noise = float(counts @ np.square((q - affine.zero_point) * affine.scale - centres))
    signal = float(counts @ np.square(centres))
    if noise <= 0.0 or signal <= 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise)
