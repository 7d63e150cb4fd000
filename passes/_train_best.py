"""Which epoch is the best: shared by passes that train."""

from __future__ import annotations

import math
from collections.abc import Iterable


def is_best(drop: float, before: Iterable[float]) -> bool:
    """Whether a drop is as small as all `before`: of equal epochs the later one is better.

    NaN, of a metric that has no value, is worse than any number, and never the best.
    """
    return not math.isnan(drop) and all(math.isnan(other) or drop <= other for other in before)
