"""Puts Q and DQ into the graph for the units that were chosen. Imports onnx_ir.

Any subset of units gives a valid graph: a value keeps one Q/DQ pair, which quantized operators
read; where the operator that makes the value needs its Q to be the only consumer, everybody reads
the DQ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.calibration.affine import Affine, IntegerType, Range
from optimc.core.model import SOURCE_KEY
from optimc.core.targets import QuantizationSpec
from optimc.passes._quantize_graph import GraphWriter, ir_dtype, number, redirect
from optimc.passes._quantize_units import Unit, constant, float_constant, pad_value
from optimc.passes._quantize_weights import quantize_bias, quantize_weight

Floats = NDArray[np.float32]


class Placer:
    """Places one unit after the other, in the graph's order."""

    def __init__(
        self, graph: ir.Graph, spec: QuantizationSpec, affine: Mapping[ir.Value, Affine]
    ) -> None:
        self._writer = GraphWriter(graph)
        self._spec = spec
        self._affine = dict(affine)
        self._pairs: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._stored: dict[tuple[ir.Value, bytes], ir.Value] = {}
        self._replaced: list[ir.Value] = []

    def place(self, unit: Unit) -> None:
        """Gives the unit quantized inputs, weight and bias, and the Q that it needs behind it."""
        node = unit.node
        for index in unit.activations:
            value = node.inputs[index]
            assert value is not None
            integers, floats = self._pair(value)
            node.replace_input_with(index, integers if unit.rule.on_integers else floats)
        for index in unit.constants:
            node.replace_input_with(index, self._constant(unit, index))
        if unit.rule.explicit_padding:
            self._pad_input(unit)
        if unit.weight is not None:
            self._place_weight(unit)
        if unit.rule.bias_apart:
            self._add_apart(unit)
        if unit.pools:
            self._pool(unit)
        elif unit.rule.on_integers:
            self._output_of_integers(unit)
        elif unit.rule.output:
            self._output_pair(unit.output)

    def finish(self) -> None:
        """Removes what nobody reads any more: DQs, and the constants that were replaced."""
        for _, floats in self._pairs.values():
            self._writer.remove_unread(floats)
        for value in self._replaced:
            self._writer.remove_unread(value)

    def _pair(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The Q and DQ of a value; made behind its producer where there are none yet."""
        if value not in self._pairs:
            affine = self._affine[value]
            parameters = self._writer.parameters(str(value.name), affine)
            q = self._writer.quantize(value, parameters, affine.dtype)
            dq = self._writer.dequantize(q.outputs[0], parameters, value, None)
            self._writer.insert_behind(value, [q, dq])
            self._remember(value, q.outputs[0], dq.outputs[0])
        return self._pairs[value]

    def _remember(self, value: ir.Value, integers: ir.Value, floats: ir.Value) -> None:
        affine = self._affine[value]
        for known in (value, floats):
            self._pairs[known] = (integers, floats)
            self._affine[known] = affine

    def _output_pair(self, value: ir.Value) -> None:
        """Makes the Q the only consumer of `value`: everybody else reads the DQ."""
        integers, floats = self._pair(value)
        q = integers.producer()
        for consumer, index in value.uses():
            if consumer is not q:
                consumer.replace_input_with(index, floats)
        if value.is_graph_output():
            self._writer.take_over(value, floats, "float")

    def _output_of_integers(self, unit: Unit) -> None:
        """The node gives integers now: a DQ behind it stands for its result."""
        node, value = unit.node, unit.output
        affine = self._affine[value]
        fill = pad_value(node) if node.op_type == "Pad" else None
        if fill is not None:
            node.resize_inputs(max(3, len(node.inputs)))
            q = affine.quantize(np.array(fill, np.float32))
            node.replace_input_with(2, self._writer.initializer(f"{value.name}_fill", q))
        parameters = self._writer.parameters(str(value.name), affine)
        dq = self._writer.dequantize(value, parameters, value, None)
        redirect(value, dq.outputs[0])
        self._writer.graph.insert_after(node, [dq])
        self._writer.take_over(value, dq.outputs[0], "quantized")
        value.meta.pop(SOURCE_KEY, None)
        # A clone shares its types with the original, so they are replaced and not changed.
        value.type = ir.TensorType(ir_dtype(affine.dtype))
        self._remember(value, value, dq.outputs[0])

    def _pad_input(self, unit: Unit) -> None:
        """Writes the padding that a pool averages in as a Pad of the integers."""
        node, writer = unit.node, self._writer
        value, attribute = node.inputs[0], node.attributes.get("pads")
        pads = [] if attribute is None else list(attribute.as_ints())
        assert value is not None
        affine = self._affine[value]
        if not any(pads) or not number(node, "count_include_pad", 0) or affine.zero_point == 0:
            return
        integers, half = self._pairs[value][0], len(pads) // 2
        amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        inputs = [
            integers,
            writer.initializer(f"{node.outputs[0].name}_pads", amounts),
            writer.initializer(f"{value.name}_fill", affine.quantize(np.zeros((), np.float32))),
        ]
        pad = writer.node("Pad", inputs, value, "padded", affine.dtype)
        pad.outputs[0].shape = None
        dq = writer.dequantize(
            pad.outputs[0], writer.parameters(str(value.name), affine), value, None
        )
        writer.graph.insert_before(node, [pad, dq])
        node.replace_input_with(0, dq.outputs[0])
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))

    def _add_apart(self, unit: Unit) -> None:
        """Writes the Add of a constant that alone reads the result as Sum: the same numbers."""
        output = unit.node.outputs[0]
        uses = tuple(output.uses())
        add = uses[0].node if len(uses) == 1 and not output.is_graph_output() else None
        if add is None or add.op_type != "Add" or add.graph is not unit.node.graph:
            return
        if all(constant(value) is None for value in add.inputs):
            return
        total = ir.node("Sum", list(add.inputs), name=add.name)
        old, new = add.outputs[0], total.outputs[0]
        new.type, new.shape = old.type, old.shape
        self._writer.graph.insert_before(add, [total])
        redirect(old, new)
        self._writer.take_over(old, new, "added")
        if old in self._affine:
            self._affine[new] = self._affine[old]
        self._writer.graph.remove(add, safe=True)

    def _pool(self, unit: Unit) -> None:
        """Writes a ReduceMean as GlobalAveragePool and Q, and a Flatten where it drops the axes."""
        node, value, writer = unit.node, unit.output, self._writer
        affine = self._affine[value]
        parameters = writer.parameters(str(value.name), affine)
        pool = writer.node("GlobalAveragePool", node.inputs[:1], value, "pooled", "float32")
        pool.outputs[0].shape = _pooled_shape(node)
        nodes = [pool, writer.quantize(pool.outputs[0], parameters, affine.dtype)]
        if not number(node, "keepdims", 1):
            integers = nodes[-1].outputs
            nodes.append(writer.node("Flatten", integers, value, "flat", affine.dtype, {"axis": 1}))
        dq = writer.dequantize(nodes[-1].outputs[0], parameters, value, None)
        redirect(value, dq.outputs[0])
        writer.graph.insert_after(node, [*nodes, dq])
        writer.take_over(value, dq.outputs[0], "replaced")
        self._remember(value, nodes[-1].outputs[0], dq.outputs[0])
        self._replaced.append(value)
        self._replaced += [axes for axes in node.inputs[1:] if axes is not None]

    def _constant(self, unit: Unit, index: int) -> ir.Value:
        """The DQ of a constant that stands for an activation: stored as integers."""
        value = unit.node.inputs[index]
        assert value is not None
        array = float_constant(value)
        span = Range(float(array.min(initial=0.0)), float(array.max(initial=0.0)))
        kind = IntegerType(self._spec.activation_dtype, self._spec.activation_symmetric)
        affine = kind.parameters(span)
        key = (value, b"activation")
        if key not in self._stored:
            name = str(value.name)
            integers = self._writer.initializer(f"{name}_quantized", affine.quantize(array))
            parameters = self._writer.parameters(name, affine)
            dq = self._writer.dequantize(integers, parameters, value, None)
            self._writer.graph.insert_before(unit.node, [dq])
            self._stored[key] = dq.outputs[0]
            self._replaced.append(value)
        return self._stored[key]

    def _place_weight(self, unit: Unit) -> None:
        node, index = unit.node, unit.weight
        assert index is not None
        value, source = node.inputs[index], node.inputs[unit.activations[0]]
        assert value is not None
        assert source is not None
        bias = None if unit.bias is None else float_constant(node.inputs[unit.bias])
        weight, bias = _with_factors(node, float_constant(value), bias)
        input_scale = self._affine[source].scale
        quantized = quantize_weight(
            weight,
            _channel_axis(unit, weight.ndim),
            reduce_range=self._spec.reduce_range,
            bias=None if bias is None else bias.reshape(-1),
            input_scale=input_scale,
        )
        self._replace(unit, index, quantized.integers, quantized.scale, quantized.axis)
        if bias is not None and self._spec.bias == "int32":
            channels = weight.shape[quantized.axis] if quantized.axis is not None else bias.size
            bias = np.broadcast_to(bias.reshape(-1), (channels,))
            integers, scale = quantize_bias(bias, input_scale, quantized.scale)
            assert unit.bias is not None
            self._replace(unit, unit.bias, integers, scale, 0 if scale.ndim else None)
        elif bias is not None:
            self._keep_float_bias(unit, bias)

    def _replace(
        self,
        unit: Unit,
        index: int,
        integers: NDArray[np.integer],
        scale: Floats,
        axis: int | None,
    ) -> None:
        """Puts the DQ of integers in the place of a constant; one DQ for all that share it."""
        value = unit.node.inputs[index]
        assert value is not None
        content = hashlib.sha256(integers.tobytes() + scale.tobytes() + str(axis).encode())
        key = (value, content.digest())
        if key not in self._stored:
            self._stored[key] = self._writer.stored(value, integers, scale, axis, unit.node)
            self._replaced.append(value)
        unit.node.replace_input_with(index, self._stored[key])

    def _keep_float_bias(self, unit: Unit, bias: Floats) -> None:
        """Stores the bias anew where a factor went into it."""
        assert unit.bias is not None
        old = unit.node.inputs[unit.bias]
        assert old is not None
        if not np.array_equal(bias, float_constant(old)):
            new = self._writer.initializer(f"{old.name}_scaled", bias)
            unit.node.replace_input_with(unit.bias, new)
            self._replaced.append(old)


def _channel_axis(unit: Unit, rank: int) -> int | None:
    """The axis of output channels; None for one scale, where there is no rule or no such axis."""
    axis = unit.rule.weight_axis
    if axis is None or rank < 2 or (unit.node.op_type == "MatMul" and rank != 2):
        return None
    if unit.node.op_type == "Gemm" and number(unit.node, "transB", 0):
        return 1 - axis
    return axis


def _with_factors(
    node: ir.Node, weight: Floats, bias: Floats | None
) -> tuple[Floats, Floats | None]:
    """Gemm's alpha and beta multiplied into weight and bias: the kernels know only factors of 1."""
    if node.op_type != "Gemm":
        return weight, bias
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    if alpha != 1.0:
        weight = weight * np.float32(alpha)
        node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
    if beta != 1.0 and bias is not None:
        bias = bias * np.float32(beta)
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return weight, bias


def _pooled_shape(node: ir.Node) -> ir.Shape | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    return ir.Shape([*source.shape[:2], *[1] * (len(source.shape) - 2)])
