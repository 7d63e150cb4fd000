"""Integers of weights with one scale for each block. Works on arrays; imports no graph library.

A scale is max |w| / k of its block, with the k that leaves the least squared error. Rounding to the
nearest with k = 7 is the usual choice for 4 bits; weights that lie on a grid of their own, as other
tools (GPTQ, AWQ) leave them, have none of that length in most blocks, and then another k fits them
without loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def quantize_blocks(
    weight: NDArray[np.generic], axis: int, block: int, bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The integers of a finite matrix, in its shape, and the scales: `axis` shorter by `block`.

    `block` divides `axis`. Integers are signed with `bits` (4 or 8) bits, their zero is 0.
    """
    last = np.moveaxis(weight.astype(np.float64), axis, -1)
    groups = last.reshape(*last.shape[:-1], -1, block)
    limit = 2 ** (bits - 1) - 1
    greatest = np.abs(groups).max(axis=-1)
    best = _rounded(groups, greatest, limit, limit)
    for steps in range(1, limit + 2) if bits == 4 else ():
        other = _rounded(groups, greatest, steps, limit)
        better = other[2] < best[2]
        best = (
            np.where(better[..., None], other[0], best[0]),
            np.where(better, other[1], best[1]),
            np.where(better, other[2], best[2]),
        )
    integers = best[0].astype(np.int8).reshape(last.shape)
    scales = best[1].astype(np.float32)
    return (
        np.ascontiguousarray(np.moveaxis(integers, -1, axis)),
        np.ascontiguousarray(np.moveaxis(scales, -1, axis)),
    )


def _rounded(
    groups: Floats, greatest: Floats, steps: int, limit: int
) -> tuple[Floats, Floats, Floats]:
    """Integers, scales and squared errors of blocks whose greatest magnitude is `steps` scales."""
    scale = (greatest / steps).astype(np.float32).astype(np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    integers = np.clip(np.rint(groups / scale[..., None]), -limit - 1, limit)
    return integers, scale, np.square(integers * scale[..., None] - groups).sum(axis=-1)
