"""A quantized layer as a product of rows and a matrix, for `fit_rounding`. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.passes._quantize_graph import number
from optimc.passes._quantize_units import constant
from optimc.passes._quantize_weights import FULL_RANGE, REDUCED_RANGE
from optimc.passes._recovery_layers import (
    QuantizedLayer,
    dequantizer,
    integers_of,
    replace_input,
    scale_of,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The layer's constants, and how its rows are made.

    `weight` (float model) and `scale` have the shape of the stored `integers`; `options` are those
    of `optimc.calibration.reducers.Products`.
    """

    layer: QuantizedLayer
    integers: NDArray[np.int8]
    weight: Floats
    scale: Floats
    bias: Floats
    options: Mapping[str, Any]
    transposed: bool
    """Whether the integers stand as [outputs, inputs...], as in Conv and in Gemm with transB."""

    @property
    def limit(self) -> int:
        """The largest integer that `quantize_int8` gives on this target."""
        most = int(np.abs(self.integers.astype(np.int16)).max(initial=0))
        return REDUCED_RANGE if most <= REDUCED_RANGE else FULL_RANGE

    def arrays(self) -> dict[str, Floats]:
        """weight and scale [G, K, O], bias [G, O]."""
        groups = int(self.options.get("groups", 1))
        scale = np.broadcast_to(self.scale, self.integers.shape)
        return {
            "weight": self._rowwise(self.weight),
            "scale": self._rowwise(scale),
            "bias": self.bias.reshape(groups, -1),
        }

    def _rowwise(self, array: Floats) -> Floats:
        """[G, K, O] of an array in the shape of the integers."""
        if not self.transposed:
            return np.ascontiguousarray(array[None])
        groups = int(self.options.get("groups", 1))
        split = array.reshape(groups, array.shape[0] // groups, -1)
        return np.ascontiguousarray(split.transpose(0, 2, 1))

    def in_place(self, integers: NDArray[Any]) -> NDArray[np.int8]:
        """The inverse: [G, K, O] in the shape of the stored integers."""
        stored = integers.transpose(0, 2, 1) if self.transposed else integers
        return np.ascontiguousarray(stored.reshape(self.integers.shape).astype(np.int8))

    def store(self, integers: NDArray[np.int8]) -> None:
        """Puts new integers into the graph, for this layer alone."""
        replace_input(self.layer.node, 1, integers, "fitted")


def rows_of(layer: QuantizedLayer) -> Rows | str:
    """The layer as a product, or why it is none."""
    node = layer.node
    if node.op_type == "ConvTranspose":
        return "a ConvTranspose adds windows up: its output is no product of rows"
    integers, dq = integers_of(node.inputs[1]), dequantizer(node.inputs[1])
    weight = constant(layer.float_node.inputs[1])
    assert integers is not None
    assert dq is not None
    assert weight is not None
    if weight.shape != integers.shape:
        return "its weight has another shape than in the float model"
    if node.op_type == "Conv":
        options = _window(node, integers.shape)
        if isinstance(options, str):
            return options
    elif integers.ndim != 2:
        return f"its weight has {integers.ndim} dims"
    elif node.op_type == "Gemm" and number(node, "transA", 0):
        return "its input is transposed"
    else:
        options = {}
    transposed = node.op_type == "Conv" or (
        node.op_type == "Gemm" and bool(number(node, "transB", 0))
    )
    factor = _alpha(layer.float_node) / _alpha(node)
    outputs = integers.shape[0] if transposed else integers.shape[1]
    bias = _bias(layer, outputs)
    if isinstance(bias, str):
        return bias
    return Rows(
        layer,
        integers,
        weight.astype(np.float64) * factor,
        scale_of(dq).astype(np.float64),
        bias,
        options,
        transposed,
    )


def _window(node: ir.Node, shape: tuple[int, ...]) -> dict[str, Any] | str:
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
        return "its padding (SAME) depends on the input's size"
    rank = len(shape) - 2

    def ints(name: str, default: list[int]) -> list[int]:
        attribute = node.attributes.get(name)
        return default if attribute is None else [int(i) for i in attribute.as_ints()]

    window = {
        "kernel_shape": [int(size) for size in shape[2:]],
        "pads": ints("pads", [0] * 2 * rank),
        "strides": ints("strides", [1] * rank),
        "dilations": ints("dilations", [1] * rank),
    }
    return {"groups": int(number(node, "group", 1)), "window": window}


def _alpha(node: ir.Node) -> float:
    return number(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0


def _bias(layer: QuantizedLayer, outputs: int) -> Floats | str:
    """What the layer adds to each output channel [O], or why that is not known."""
    value = layer.bias
    if value is None:
        return np.zeros(outputs)
    dq = dequantizer(value)
    array = constant(value if dq is None else dq.inputs[0])
    if array is None:
        return "its bias is not a constant"
    bias = array.astype(np.float64)
    if dq is not None:
        bias = bias * scale_of(dq).astype(np.float64)
    if layer.node.op_type == "Gemm":
        bias = bias * number(layer.node, "beta", 1.0)
    if bias.size not in (1, outputs):
        return "its bias differs from row to row"
    return np.broadcast_to(bias.reshape(-1), (outputs,)).astype(np.float64)
