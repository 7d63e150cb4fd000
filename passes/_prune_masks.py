"""Which weights stay, by their magnitude. Works on arrays; imports no graph library.

The same rules serve the torch and the ONNX level. Of equal magnitudes the first ones stay, so that
the result is the same every time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from optimc.core.patterns import Bools, grouped

Array = NDArray[np.generic]


def largest_everywhere(arrays: Mapping[str, Array], share: float) -> dict[str, Bools]:
    """By name: where a weight is not among the `share` of all weights nearest to zero."""
    names = list(arrays)
    sizes = [arrays[name].size for name in names]
    joined = [np.abs(arrays[name].astype(np.float64)).reshape(-1) for name in names]
    kept = _largest(np.concatenate(joined), share)
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    return {n: p.reshape(arrays[n].shape) for n, p in zip(names, parts, strict=True)}


def largest_in_each(arrays: Mapping[str, Array], share: float) -> dict[str, Bools]:
    """By name: where a weight is not among the `share` of its layer's nearest to zero."""
    return {name: largest_everywhere({name: a}, share)[name] for name, a in arrays.items()}


def largest_of_neighbours(array: Array, axis: int, n: int, m: int) -> Bools:
    """Where a weight is one of the `n` largest of its `m` neighbours along `axis`.

    `m` divides the axis. Other weights are cut even where they are zero already.
    """
    groups = grouped(np.abs(array.astype(np.float64)), axis, m)
    order = np.argsort(-groups, axis=-1, kind="stable")
    kept = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(kept, order[..., :n], True, axis=-1)
    last = np.moveaxis(array, axis, -1)
    return np.ascontiguousarray(np.moveaxis(kept.reshape(last.shape), -1, axis))


def _largest(magnitudes: NDArray[np.float64], share: float) -> Bools:
    kept = np.ones(magnitudes.size, np.bool_)
    cut = round(share * magnitudes.size)
    # Backwards, so that of equal ones the last are cut.
    order = np.argsort(magnitudes[::-1], kind="stable")[:cut]
    kept[magnitudes.size - 1 - order] = False
    return kept
