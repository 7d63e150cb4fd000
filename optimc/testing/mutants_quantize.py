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


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Plants the mutant of this name, one of `MUTANTS`, while the block runs."""
    with MUTANTS[name]():
        yield


def _forgotten_zero_point() -> Any:
    """The DQs of activations are written without their zero point."""
    from optimc.passes._quantize_graph import GraphWriter

    right = GraphWriter.dequantize

    def wrong(self: Any, integers: Any, parameters: Any, like: Any, axis: Any) -> Any:
        return right(self, integers, parameters[:1], like, axis)

    return patch.object(GraphWriter, "dequantize", wrong)


def _wrong_weight_axis() -> Any:
    """The DQ of a weight scales along the input channels; its integers go by output channels."""
    from optimc.passes._quantize_graph import GraphWriter

    right = GraphWriter.stored

    def wrong(self: Any, value: Any, integers: Any, scale: Any, axis: Any, before: Any) -> Any:
        square = integers.ndim > 1 and integers.shape[0] == integers.shape[1]
        wrong_axis = 1 - axis if square and axis is not None else axis
        return right(self, value, integers, scale, wrong_axis, before)

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
    """The DQs in front of an operator with two activations have each other's parameters."""
    from optimc.passes._quantize_place import Placer

    right = Placer.place

    def wrong(self: Placer, unit: Any) -> None:
        right(self, unit)
        producers = [unit.node.inputs[index].producer() for index in unit.activations]
        if len(producers) == 2 and all(producer is not None for producer in producers):
            one, two = producers
            for index in range(1, min(len(one.inputs), len(two.inputs))):
                first, second = one.inputs[index], two.inputs[index]
                one.replace_input_with(index, second)
                two.replace_input_with(index, first)

    return patch.object(Placer, "place", wrong)


def _wrapped_weights() -> Any:
    """Weights are scaled to 8 unsigned bits and wrap around, because nothing clips them."""
    import numpy as np

    from optimc.passes import _quantize_place
    from optimc.passes._quantize_weights import quantize_weight

    def wrong(weight: Any, axis: Any, **options: Any) -> Any:
        found = quantize_weight(weight, axis, **options)
        scale = (found.scale / 2).astype(np.float32)
        shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        integers = np.rint(weight / shaped).astype(np.int64).astype(np.int8)
        return replace(found, integers=integers, scale=scale)

    return patch.object(_quantize_place, "quantize_weight", wrong)


MUTANTS: dict[str, Callable[[], Any]] = {
    "forgotten_zero_point": _forgotten_zero_point,
    "wrong_weight_axis": _wrong_weight_axis,
    "wrong_bias_scale": _wrong_bias_scale,
    "swapped_scales": _swapped_scales,
    "wrapped_weights": _wrapped_weights,
}
"""By name: what makes the patch."""
