"""Pairs of layers that can trade a factor for each channel, for `equalize`. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.passes._quantize_graph import GraphWriter, number
from optimc.passes._quantize_units import constant, is_global_average, node_label

Floats = NDArray[np.float64]
Refuse = Callable[[str, str], None]

_LAYERS = ("Conv", "Gemm")
_BY_CHANNEL = (
    "AveragePool",
    "GlobalAveragePool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "PRelu",
    "Relu",
)


@dataclass(eq=False)
class Layer:
    """A Conv, Gemm or MatMul (of two dims) with a float32 weight of its own."""

    node: ir.Node

    @property
    def weight(self) -> NDArray[np.float32]:
        """As it is stored."""
        array = constant(self.node.inputs[1])
        assert array is not None
        return array.astype(np.float32, copy=False)

    @property
    def groups(self) -> int:
        """Of a convolution; 1 for the others."""
        return int(number(self.node, "group", 1)) if self.node.op_type == "Conv" else 1

    @property
    def _transposed(self) -> bool:
        """Whether the weight stands as [inputs, outputs]."""
        return inputs_first(self.node)

    @property
    def inputs(self) -> int:
        """Input channels."""
        shape = self.weight.shape
        return int(shape[0] if self._transposed else shape[1] * self.groups)

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.weight.shape[1 if self._transposed else 0])

    def magnitudes(self) -> Floats:
        """max |W| over space: [groups, outputs / groups, inputs / groups]."""
        weight = np.abs(self.weight.T if self._transposed else self.weight).astype(np.float64)
        flat = weight.reshape(*weight.shape[:2], -1).max(axis=2)
        split: Floats = flat.reshape(self.groups, -1, flat.shape[1])
        return split

    def shifts(self, *, rectified: bool) -> Floats:
        """What the bias adds to each output [outputs], as far as a Relu lets it through."""
        bias = constant(self.node.inputs[2]) if len(self.node.inputs) > 2 else None
        if bias is None:
            return np.zeros(self.outputs)
        wide = bias.astype(np.float64).reshape(-1)
        return np.maximum(wide, 0.0) if rectified else np.abs(wide)

    def divide_outputs(self, scale: Floats) -> None:
        """Divides output channels of weight and bias by `scale` [outputs]."""
        weight, axis = self.weight, 1 if self._transposed else 0
        shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        self._store(1, weight / shaped)
        bias = constant(self.node.inputs[2]) if len(self.node.inputs) > 2 else None
        if bias is not None:
            self._store(2, bias.astype(np.float64) / scale)

    def multiply_inputs(self, scale: Floats) -> None:
        """Multiplies input channels of the weight by `scale` [inputs]."""
        weight = self.weight
        if self._transposed:
            self._store(1, weight * scale[:, None])
            return
        split = weight.reshape(self.groups, -1, *weight.shape[1:])
        shaped = scale.reshape(self.groups, 1, -1, *[1] * (weight.ndim - 2))
        self._store(1, (split * shaped).reshape(weight.shape))

    def _store(self, index: int, array: Floats) -> None:
        """Puts a new constant in the place of an input; others may still read the old one."""
        old = self.node.inputs[index]
        assert old is not None
        assert isinstance(self.node.graph, ir.Graph)
        writer = GraphWriter(self.node.graph)
        new = writer.initializer(f"{old.name}_equalized", array.astype(np.float32))
        self.node.replace_input_with(index, new)
        writer.remove_unread(old)


def inputs_first(node: ir.Node) -> bool:
    """Whether a layer's weight stands as [inputs, outputs]."""
    gemm = node.op_type == "Gemm" and not number(node, "transB", 0)
    return gemm or node.op_type == "MatMul"


@dataclass(eq=False)
class Pair:
    """Two layers and the values between them."""

    first: Layer
    second: Layer
    between: tuple[ir.Value, ...]

    @property
    def rectified(self) -> bool:
        """Whether a Relu stands right behind the first layer."""
        return any(reader.op_type == "Relu" for reader, _ in self.between[0].uses())

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{node_label(self.first.node)} -> {node_label(self.second.node)}"


def find_pairs(graph: ir.Graph, refuse: Refuse) -> list[Pair]:
    """All pairs in the graph's order; says of every other layer why it leads no pair."""
    layers = {}
    for node in graph:
        if node.op_type in _LAYERS and node.domain in ("", "ai.onnx"):
            reason = unfit(node)
            if reason is None:
                layers[node] = Layer(node)
            else:
                refuse(node_label(node), reason)
    pairs = []
    for node, layer in layers.items():
        found = _follow(node, layers)
        if isinstance(found, str):
            refuse(node_label(node), found)
        elif layer.outputs != found[0].inputs:
            refuse(node_label(node), "the layer behind it reads other channels")
        else:
            pairs.append(Pair(layer, *found))
    return pairs


def unfit(node: ir.Node) -> str | None:
    """Why a layer's weight and bias cannot be scaled, or None."""
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return "its weight is no float32 constant"
    if not np.isfinite(weight).all():
        return "its weight holds infinities or NaNs"
    if node.inputs[1] is not None and len(node.inputs[1].uses()) > 1:
        return "its weight is read by other nodes too"
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None:
        bias = constant(value)
        outputs = weight.shape[1 if inputs_first(node) else 0]
        if bias is None or bias.dtype != np.float32:
            return "its bias is no float32 constant"
        if bias.shape not in ((outputs,), (1, outputs)):
            return "its bias is not one number for each channel"
    return None


def _follow(
    node: ir.Node, layers: dict[ir.Node, Layer]
) -> tuple[Layer, tuple[ir.Value, ...]] | str:
    """The layer that alone reads this one's result, with the values between; or why none does."""
    value, between = node.outputs[0], []
    while True:
        uses = tuple(value.uses())
        if value.is_graph_output():
            return f"`{value.name}` is an output of the model"
        if len(uses) != 1:
            return f"`{value.name}` is read by {len(uses)} nodes"
        between.append(value)
        reader, index = uses[0]
        if reader in layers:
            transposed = reader.op_type == "Gemm" and number(reader, "transA", 0)
            if index != 0 or transposed:
                return f"{node_label(reader)} reads it, but not as its input"
            return layers[reader], tuple(between)
        if reader.graph is not node.graph or not _homogeneous(reader, index):
            return f"{reader.op_type} behind it does not scale with its input, channel by channel"
        value = reader.outputs[0]


def _homogeneous(node: ir.Node, index: int) -> bool:
    """Whether a positive factor for each channel of the input is one of the output."""
    if node.domain not in ("", "ai.onnx") or index != 0:
        return False
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    if node.op_type in _BY_CHANNEL:
        return True
    if node.op_type == "ReduceMean":
        return is_global_average(node)
    if node.op_type == "Flatten":
        source = node.inputs[0]
        shape = None if source is None else source.shape
        flat = shape is not None and all(size == 1 for size in shape[2:])
        return flat and int(number(node, "axis", 1)) == 1
    return False
