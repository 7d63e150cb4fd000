"""The layers of a quantized graph, each beside the float layer that it was. Imports onnx_ir."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.errors import PreconditionError
from optimc.passes._quantize_graph import GraphWriter, number
from optimc.passes._quantize_units import constant, node_label

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel
    from optimc.core.passes import PassContext

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(eq=False)
class QuantizedLayer:
    """A Conv, ConvTranspose, Gemm or MatMul whose int8 weight stands behind a DQ."""

    node: ir.Node
    float_node: ir.Node
    """The node of the float model that it was."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return node_label(self.node)

    @property
    def axis(self) -> int:
        """The axis of output channels in the layer's result."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1

    @property
    def output(self) -> ir.Value:
        """The layer's result, in the quantized graph."""
        return self.node.outputs[0]

    @property
    def source(self) -> ir.Value:
        """The layer's input, in the quantized graph."""
        source = self.node.inputs[0]
        assert source is not None
        return source

    @property
    def bias(self) -> ir.Value | None:
        """The bias: a constant, or a DQ of int32."""
        inputs = self.node.inputs
        return inputs[2] if self.node.op_type != "MatMul" and len(inputs) > 2 else None


def check_quantized(context: PassContext, name: str) -> None:
    """Raises PreconditionError where no pass before `name` quantized the model."""
    if context.float_model is None:
        raise PreconditionError(
            f"{name} compares with the float model, and no pass before it quantized one",
            fix=f"put {name} behind quantize_int8",
        )


def quantized_layers(model: OnnxModel, context: PassContext, name: str) -> list[QuantizedLayer]:
    """The layers of `model` in the graph's order; `name` is the pass that asks."""
    origin = context.float_model
    assert origin is not None, "check_quantized was asked"
    floats: dict[str, list[ir.Node]] = {}
    for node in origin.ir.graph:
        floats.setdefault(node.name or "", []).append(node)
    layers = []
    for node in model.ir.graph:
        if node.op_type not in WEIGHTED or integers_of(node.inputs[1]) is None:
            continue
        found = [f for f in floats.get(node.name or "", []) if f.op_type == node.op_type]
        if len(found) == 1 and node.name and constant(found[0].inputs[1]) is not None:
            layers.append(QuantizedLayer(node, found[0]))
        else:
            context.log.refuse(name, node_label(node), "the float model has no such layer")
    return layers


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DQ with constant inputs that makes a value, or None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return node if all(constant(v) is not None for v in node.inputs) else None


def integers_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The int8 integers behind a DQ whose zero points are 0, or None."""
    node = dequantizer(value)
    if node is None:
        return None
    integers, zero = constant(node.inputs[0]), _zero_point(node)
    assert integers is not None
    symmetric = zero is None or not np.any(zero)
    return integers if integers.dtype == np.int8 and symmetric else None


def scale_of(node: ir.Node) -> NDArray[np.float32]:
    """The scale of a constant DQ, in a shape that broadcasts with its integers."""
    scale, integers = constant(node.inputs[1]), constant(node.inputs[0])
    assert scale is not None
    assert integers is not None
    if scale.ndim == 0 or scale.size == 1:
        return scale.reshape(()).astype(np.float32)
    axis = int(number(node, "axis", 1)) % integers.ndim
    return scale.reshape([-1 if i == axis else 1 for i in range(integers.ndim)]).astype(np.float32)


def replace_input(node: ir.Node, index: int, array: NDArray[Any], suffix: str) -> None:
    """Puts `array` in the place of a constant input, behind a DQ of its own where it had one.

    Others may share the old constant or its DQ: they keep it.
    """
    old = node.inputs[index]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    writer, dq = GraphWriter(node.graph), dequantizer(old)
    if dq is None:
        node.replace_input_with(index, writer.initializer(f"{old.name}_{suffix}", array))
    elif len(old.uses()) == 1:
        integers = dq.inputs[0]
        assert integers is not None
        dq.replace_input_with(0, writer.initializer(f"{integers.name}_{suffix}", array))
        writer.remove_unread(integers)
        return
    else:
        integers = dq.inputs[0]
        assert integers is not None
        stored = writer.initializer(f"{integers.name}_{suffix}", array)
        axis = None if "axis" not in dq.attributes else int(number(dq, "axis", 1))
        parameters = [value for value in dq.inputs[1:] if value is not None]
        own = writer.dequantize(stored, parameters, old, axis)
        node.graph.insert_before(node, [own])
        node.replace_input_with(index, own.outputs[0])
    writer.remove_unread(old)


def _zero_point(node: ir.Node) -> NDArray[Any] | None:
    return constant(node.inputs[2]) if len(node.inputs) > 2 else None
