"""N:M patterns in arrays. Works on arrays; imports no graph library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def holds_pattern(nonzero: Bools, axis: int, n: int, m: int) -> bool:
    """Whether at most `n` of each `m` neighbours along `axis` are not zero.

    False where `m` does not divide the axis.
    """
    if nonzero.ndim < 2 or not nonzero.shape[axis] or nonzero.shape[axis] % m:
        return False
    return bool((grouped(nonzero, axis, m).sum(axis=-1) <= n).all())


def grouped(array: NDArray[Any], axis: int, m: int) -> NDArray[Any]:
    """A view or copy [..., groups, m] of neighbours along `axis`, which `m` divides."""
    last = np.moveaxis(array, axis, -1)
    return last.reshape(*last.shape[:-1], last.shape[-1] // m, m)
