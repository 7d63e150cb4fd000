"""Integers of weights and biases. Works on arrays; imports no graph library.

Weights are symmetric: ``s = max|w| / 127`` for each channel, ``q = round(w / s)``, so -128 is never
used. A bias is int32 with the accumulator's scale ``s_x * s_w``, so the kernel adds it before it
rescales (Jacob et al. 2018, arXiv:1712.05877, section 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimc.calibration.affine import LEAST_SCALE

FULL_RANGE = 127
REDUCED_RANGE = 64  # 2 * 255 * 64 stays below 2^15, where a pair of products saturates without VNNI
BIAS_LIMIT = 2.0**30  # leaves half of int32 to the sum of the products


@dataclass(frozen=True)
class QuantizedWeight:
    """int8 integers in the shape of the weight; scales float32 [channels] along `axis`, or one."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int | None


def quantize_weight(
    weight: NDArray[np.floating],
    axis: int | None,
    *,
    reduce_range: bool = False,
    bias: NDArray[np.floating] | None = None,
    input_scale: float = 1.0,
) -> QuantizedWeight:
    """The integers and scales of a finite weight.

    Where a `bias` ([channels] or one) is given, a channel's scale is made large enough for
    ``bias / (input_scale * scale)`` to stay within `BIAS_LIMIT`. That holds for a bias that stays
    in float too: runtimes turn it into int32 on their own.
    """
    limit = REDUCED_RANGE if reduce_range else FULL_RANGE
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    greatest = np.abs(weight.astype(np.float64)).max(axis=others, initial=0.0)
    least = np.full_like(greatest, LEAST_SCALE)
    if bias is not None:
        floor = np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT)
        least = np.maximum(least, floor if axis is not None else floor.max(initial=0.0))
    scale = np.where(greatest > 0.0, np.maximum(greatest / limit, least), least)
    # Nothing to scale at all: 1 is as good as any, and harmless in every product.
    scale = np.where((greatest == 0.0) & (least <= LEAST_SCALE), 1.0, scale).astype(np.float32)
    shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    integers = np.clip(np.rint(weight / shaped), -limit, limit).astype(np.int8)
    return QuantizedWeight(integers, scale, axis)


def quantize_bias(
    bias: NDArray[np.floating], input_scale: float, weight_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The int32 integers of a bias [channels], and their scale [channels] or one."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    limit = 2.0**31 - 1
    integers = np.clip(np.rint(bias.astype(np.float64) / scale), -limit, limit)
    return integers.astype(np.int32), scale
