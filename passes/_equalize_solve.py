"""The factors of `equalize`, for all pairs together. Imports onnx_ir through the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.passes._equalize_pairs import Layer, Pair

Floats = NDArray[np.float64]

_SWEEPS = 200
_CLOSE = 1e-5
"""Sweeps end when no factor changes by more than this share."""
_LARGE_SHIFT = 4.0
"""A bias counts as large where it is so many times what is usual for the channel's weights."""
_LEAST_RANGE = 1e-9
"""Channels below this share of their layer's range are dead: a factor could only overflow."""


def solved(pairs: Sequence[Pair]) -> list[Floats]:
    """The factor of each channel [channels] of each pair; 1 for dead channels."""
    sizes: dict[ir.Node, Floats] = {}
    for pair in pairs:
        for layer in (pair.first, pair.second):
            if layer.node not in sizes:
                sizes[layer.node] = layer.magnitudes()
    totals = [np.ones(pair.first.outputs) for pair in pairs]
    shifts = [pair.first.shifts(rectified=pair.rectified) for pair in pairs]
    for _ in range(_SWEEPS):
        change = 0.0
        for number, (pair, total) in enumerate(zip(pairs, totals, strict=True)):
            first, second = sizes[pair.first.node], sizes[pair.second.node]
            factor = _factor(_reach(first, shifts[number]), second.max(axis=1, initial=0.0))
            shifts[number] = shifts[number] / factor
            _divide_outputs(sizes, pair.first, factor)
            _multiply_inputs(sizes, pair.second, factor)
            total *= factor
            change = max(change, float(np.abs(np.log(factor)).max(initial=0.0)))
        if change < _CLOSE:
            break
    return totals


def _reach(size: Floats, shift: Floats) -> Floats:
    """The range of each output channel [outputs]: its weights', or more where the bias is large.

    How large is said by the other channels' ratios of bias and weights, which no factor changes.
    """
    weights: Floats = size.max(axis=2, initial=0.0).reshape(-1)
    alive = (weights > _LEAST_RANGE * weights.max(initial=0.0)) & (shift > 0.0)
    if not alive.any():
        return weights
    usual = float(np.median(shift[alive] / weights[alive]))
    reach: Floats = np.maximum(weights, shift / (_LARGE_SHIFT * usual))
    return reach


def _factor(one: Floats, two: Floats) -> Floats:
    """sqrt(one / two) for each channel; 1 where one of them is dead."""
    two = two.reshape(-1)
    alive = (one > _LEAST_RANGE * one.max(initial=0.0)) & (two > _LEAST_RANGE * two.max(initial=0))
    ratio = np.divide(one, two, out=np.ones_like(one), where=alive)
    factor: Floats = np.sqrt(ratio)
    return factor


def _divide_outputs(sizes: dict[ir.Node, Floats], layer: Layer, factor: Floats) -> None:
    size = sizes[layer.node]
    sizes[layer.node] = size / factor.reshape(size.shape[0], size.shape[1], 1)


def _multiply_inputs(sizes: dict[ir.Node, Floats], layer: Layer, factor: Floats) -> None:
    size = sizes[layer.node]
    sizes[layer.node] = size * factor.reshape(size.shape[0], 1, size.shape[2])
