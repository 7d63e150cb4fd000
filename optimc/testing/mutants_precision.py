"""Planted bugs of `float16` and `quantize_dynamic`: see `optimc.testing.mutants_simplify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Plants the mutant of this name while the block runs."""
    with {**FLOAT16_MUTANTS, **DYNAMIC_MUTANTS}[name]():
        yield


def products() -> OnnxModel:
    """Two MatMuls and a Gemm with factors and a bias, all weights 64 by 64."""
    b = GraphBuilder(18)
    x = b.input("x", ["batch", 64])
    h = b.node("Tanh", b.node("MatMul", x, b.weight(64, 64)))
    h = b.node("Relu", b.node("Add", b.node("MatMul", h, b.weight(64, 64)), b.weight(64)))
    weight, bias = b.weight(64, 64), b.constant(b.rng.normal(0, 20.0, 64))
    b.node("Gemm", h, weight, bias, transB=1, alpha=0.5, beta=2.0, to="y")
    b.output("y", ["batch", 64])
    return b.model()


def _rounded(change: Callable[[Any], Any]) -> Any:
    """Constants are rounded to float16 by another function, wherever the pass does it."""
    from optimc.passes import _float16_convert, _float16_store
    from optimc.passes._float16_range import half as right

    stack = ExitStack()
    for module in (_float16_convert, _float16_store):
        stack.enter_context(patch.object(module, "half", lambda tensor: change(right(tensor))))
    return stack


def _few_bits() -> Any:
    """Three bits of the mantissa stay."""
    import numpy as np

    def wrong(array: Any) -> Any:
        return (array.view(np.uint16) & np.uint16(0xFF80)).view(np.float16)

    return _rounded(wrong)


def _transposed_constants() -> Any:
    """Square constants are written transposed."""
    return _rounded(lambda array: array.T.copy() if array.ndim == 2 else array)


def _constants_by_shape() -> Any:
    """A constant that was converted stands for all of its shape."""
    from optimc.passes import _float16_convert, _float16_store
    from optimc.passes._float16_range import half as right

    known: dict[Any, Any] = {}

    def wrong(tensor: Any) -> Any:
        return known.setdefault(tuple(tensor.shape), right(tensor))

    stack = ExitStack()
    for module in (_float16_convert, _float16_store):
        stack.enter_context(patch.object(module, "half", wrong))
    return stack


FLOAT16_MUTANTS: dict[str, Callable[[], Any]] = {
    "float16_few_bits": _few_bits,
    "float16_transposed_constants": _transposed_constants,
    "float16_constants_by_shape": _constants_by_shape,
}


def _wrong_inputs(op_type: str, change: Callable[[list[Any]], list[Any]]) -> Any:
    """Nodes of a type are written with other inputs."""
    from optimc.passes._quantize_graph import GraphWriter

    right = GraphWriter.node

    def wrong(self: Any, kind: str, inputs: Any, *rest: Any) -> Any:
        return right(self, kind, change(list(inputs)) if kind == op_type else inputs, *rest)

    return patch.object(GraphWriter, "node", wrong)


def _zero_point_dropped() -> Any:
    """MatMulInteger does not know the activation's zero point."""
    return _wrong_inputs("MatMulInteger", lambda inputs: inputs[:2])


def _wrong_scale() -> Any:
    """The scale of the weight alone is multiplied with, squared."""
    return _wrong_inputs("Mul", lambda inputs: [inputs[1], inputs[1]])


def _first_activation() -> Any:
    """The integers of the first activation stand for all of them."""
    from optimc.passes._dynamic_place import DynamicPlacer

    right = DynamicPlacer._quantized

    def wrong(self: Any, value: Any) -> Any:
        return next(iter(self._activations.values()), None) or right(self, value)

    return patch.object(DynamicPlacer, "_quantized", wrong)


def _flag_ignored() -> Any:
    """Gemm's transB is not looked at."""
    from optimc.passes import _dynamic_place

    return patch.object(_dynamic_place, "_transposed", lambda node: False)


def _factor_ignored(name: str) -> Any:
    """One of Gemm's factors is taken for 1."""
    from optimc.passes import _dynamic_place

    right = vars(_dynamic_place)["number"]

    def wrong(node: Any, attribute: str, default: Any) -> Any:
        return default if attribute == name else right(node, attribute, default)

    return patch.object(_dynamic_place, "number", wrong)


def _bias_factor_ignored() -> Any:
    """Gemm's beta is taken for 1."""
    return _factor_ignored("beta")


def _product_factor_ignored() -> Any:
    """Gemm's alpha is taken for 1."""
    return _factor_ignored("alpha")


DYNAMIC_MUTANTS: dict[str, Callable[[], Any]] = {
    "dynamic_zero_point_dropped": _zero_point_dropped,
    "dynamic_wrong_scale": _wrong_scale,
    "dynamic_first_activation": _first_activation,
    "dynamic_flag_ignored": _flag_ignored,
    "dynamic_bias_factor_ignored": _bias_factor_ignored,
    "dynamic_product_factor_ignored": _product_factor_ignored,
}
