"""Planted bugs of `quantize_int8`, to prove that verification catches what the pass's tests do not.

    with plant("wrong_bias_scale"):
        ...

Each changes one step of the pass in this process, as a slip in the code would, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from optimc.calibration.affine import Affine, IntegerType, Range


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Plants the mutant of this name, one of `MUTANTS`, while the block runs."""
    with MUTANTS[name]():
        yield


def _wrong_zero_point() -> Any:
    """The zero point of asymmetric ranges is rounded in the wrong direction of the sign."""
    right = IntegerType.parameters

    def wrong(self: IntegerType, span: Range) -> Affine:
        affine = right(self, span)
        if self.symmetric or span.low == 0.0:
            return affine
        return replace(affine, zero_point=self.least + self.greatest - affine.zero_point)

    return patch.object(IntegerType, "parameters", wrong)


def _wrong_weight_axis() -> Any:
    """The DQ of a weight scales along the input channels, its integers along the output channels."""
    from optimc.passes._quantize_graph import GraphWriter

    right = GraphWriter.stored

    def wrong(self: Any, value: Any, integers: Any, scale: Any, axis: Any, before: Any) -> Any:
        square = integers.ndim > 1 and integers.shape[0] == integers.shape[1]
        return right(self, value, integers, scale, 1 - axis if square and axis in (0, 1) else axis, before)

    return patch.object(GraphWriter, "stored", wrong)


def _wrong_bias_scale() -> Any:
    """The bias is divided by the scale of the weight alone, not by the accumulator's."""
    from optimc.passes import _quantize_place
    from optimc.passes._quantize_weights import quantize_bias

    def wrong(bias: Any, input_scale: float, weight_scale: Any) -> Any:
        integers, _ = quantize_bias(bias, 1.0, weight_scale)
        _, scale = quantize_bias(bias, input_scale, weight_scale)
        return integers, scale

    return patch.object(_quantize_place, "quantize_bias", wrong)


def _swapped_scales() -> Any:
    """An operator with two activations gives each the other's scale and zero point."""
    from optimc.passes import quantize_int8

    right = quantize_int8.assign_parameters

    def wrong(units: Any, *rest: Any) -> Any:
        affine = dict(right(units, *rest))
        for unit in units:
            sources = unit.sources()
            if len(sources) == 2:
                one, two = sources
                affine[one], affine[two] = affine[two], affine[one]
        return affine

    return patch.object(quantize_int8, "assign_parameters", wrong)


def _wrapped_weights() -> Any:
    """Weights are scaled to 8 unsigned bits and wrap around, because nothing clips them."""
    import numpy as np

    from optimc.passes import _quantize_place
    from optimc.passes._quantize_weights import quantize_weight

    def wrong(weight: Any, axis: Any, **options: Any) -> Any:
        found = quantize_weight(weight, axis, **options)
        scale = found.scale / 2
        shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        integers = np.rint(weight / shaped).astype(np.int64).astype(np.int8)
        return replace(found, integers=integers, scale=scale)

    return patch.object(_quantize_place, "quantize_weight", wrong)


MUTANTS: dict[str, Callable[[], Any]] = {
    "wrong_zero_point": _wrong_zero_point,
    "wrong_weight_axis": _wrong_weight_axis,
    "wrong_bias_scale": _wrong_bias_scale,
    "swapped_scales": _swapped_scales,
    "wrapped_weights": _wrapped_weights,
}
"""By name: what makes the patch."""
