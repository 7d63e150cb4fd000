"""What calibration knows of a tensor; the observers in `optimc.calibration` fill it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of one value over all calibration samples.

    `minimum` and `maximum` are exact, of the finite elements (both 0 where there is none).
    `histogram` counts the finite elements in equal bins over ``[-limit, limit)``; `limit` is the
    least power of two above ``max(|minimum|, |maximum|)``. `count` is the number of all elements,
    `non_finite` that of the infinities and NaNs among them. `average_minimum` and `average_maximum`
    are exponentially weighted means of the samples' own extremes, the last sample weighing most.
    """

    minimum: float
    maximum: float
    count: int
    non_finite: int
    limit: float
    average_minimum: float
    average_maximum: float
    histogram: NDArray[np.int64]
