"""Puts Q and DQ into the graph for the units that were chosen. Imports onnx_ir.

Any subset of units gives a valid graph: a value keeps one Q/DQ pair, which quantized operators
read; where the operator that makes the value needs its Q to be the only consumer, everybody reads
the DQ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.calibration.affine import Affine, IntegerType, Range
from optimc.core.model import SOURCE_KEY
from optimc.core.targets import QuantizationSpec
from optimc.passes._quantize_units import Unit, constant, pad_value
from optimc.passes._quantize_weights import quantize_bias, quantize_weight

Array = NDArray[np.generic]


class Placer:
    """Places one unit after the other, in the graph's order."""

    def __init__(
        self, graph: ir.Graph, spec: QuantizationSpec, affine: Mapping[ir.Value, Affine]
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._affine = dict(affine)
        self._names = {value.name for value in _values(graph)} | {node.name for node in graph}
        self._pairs: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[tuple[ir.Value, bytes], ir.Value] = {}
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
        if unit.weight is not None:
            self._place_weight(unit)
        if unit.pools:
            self._pool(unit)
        elif unit.rule.on_integers:
            self._output_of_integers(unit)
        elif unit.rule.output:
            self._output_pair(unit.output)

    def finish(self) -> None:
        """Removes what nobody reads any more: DQs, and the float constants that were replaced."""
        for _, floats in self._pairs.values():
            dq = floats.producer()
            if not floats.uses() and not floats.is_graph_output() and dq and dq.graph:
                self._graph.remove(dq, safe=True)
        for value in self._replaced:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                self._graph.remove(producer, safe=True)
            elif value.name in self._graph.initializers:
                del self._graph.initializers[value.name]

    def _pair(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The Q and DQ of a value; made behind its producer where there are none yet."""
        if value not in self._pairs:
            affine = self._affine[value]
            scale, zero = self._parameters(str(value.name), affine)
            q = self._node("QuantizeLinear", [value, scale, zero], value, "quantized", affine.dtype)
            dq = self._dequantize(q.outputs[0], affine, str(value.name), value)
            self._insert_behind(value, [q, dq])
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
            self._take_over(value, floats, "float")

    def _take_over(self, value: ir.Value, new: ir.Value, suffix: str) -> None:
        """Lets `new` stand for `value`: its name and source name, its place in the outputs."""
        name, source = value.name, value.meta.get(SOURCE_KEY)
        value.name = self._unique(f"{name}_{suffix}")
        new.name = name
        if source is not None:
            new.meta[SOURCE_KEY] = source
        for position, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[position] = new

    def _output_of_integers(self, unit: Unit) -> None:
        """The node gives integers now: a DQ behind it stands for its result."""
        node, value = unit.node, unit.output
        affine = self._affine[value]
        if node.op_type == "Pad":
            self._pad_with_integer(node, affine)
        dq = self._dequantize(value, affine, str(value.name), value)
        self._redirect(value, dq)
        self._graph.insert_after(node, [dq])
        self._take_over(value, dq.outputs[0], "quantized")
        value.meta.pop(SOURCE_KEY, None)
        value.type = ir.TensorType(
            _dtype(affine.dtype)
        )  # a clone shares its types: no change in place
        self._remember(value, value, dq.outputs[0])

    def _pool(self, unit: Unit) -> None:
        """Writes a ReduceMean as GlobalAveragePool, Q, and where it drops the axes a Flatten."""
        node, value = unit.node, unit.output
        affine = self._affine[value]
        scale, zero = self._parameters(str(value.name), affine)
        pool = self._node("GlobalAveragePool", node.inputs[:1], value, "pooled", "float32")
        pool.outputs[0].shape = _pooled_shape(node)
        q = self._node(
            "QuantizeLinear",
            [pool.outputs[0], scale, zero],
            pool.outputs[0],
            "quantized",
            affine.dtype,
        )
        nodes = [pool, q]
        if not _attribute(node, "keepdims", 1):
            nodes.append(
                self._node("Flatten", [q.outputs[0]], value, "flat", affine.dtype, {"axis": 1})
            )
        dq = self._node(
            "DequantizeLinear", [nodes[-1].outputs[0], scale, zero], value, "dequantized", "float32"
        )
        self._redirect(value, dq)
        self._graph.insert_after(node, [*nodes, dq])
        self._take_over(value, dq.outputs[0], "replaced")
        self._remember(value, nodes[-1].outputs[0], dq.outputs[0])
        self._graph.remove(node, safe=True)

    def _redirect(self, value: ir.Value, to: ir.Node) -> None:
        """Lets every reader of `value` but the node `to` itself read that node's output."""
        for consumer, index in value.uses():
            if consumer is not to:
                consumer.replace_input_with(index, to.outputs[0])

    def _pad_with_integer(self, node: ir.Node, affine: Affine) -> None:
        fill = pad_value(node)
        if fill is None:
            return
        q = affine.quantize(np.array(fill, np.float32))
        value = self._initializer(f"{node.outputs[0].name}_fill", q)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, value)

    def _constant(self, unit: Unit, index: int) -> ir.Value:
        """Q/DQ of a constant that stands for an activation: stored as integers."""
        value = unit.node.inputs[index]
        array = constant(value)
        assert value is not None
        assert array is not None
        span = Range(float(array.min(initial=0.0)), float(array.max(initial=0.0)))
        kind = IntegerType(self._spec.activation_dtype, self._spec.activation_symmetric)
        affine = kind.parameters(span)
        key = (value, b"activation")
        if key not in self._constants:
            integers = self._initializer(f"{value.name}_quantized", affine.quantize(array))
            dq = self._dequantize(integers, affine, str(value.name), value)
            self._graph.insert_before(unit.node, [dq])
            self._constants[key] = dq.outputs[0]
            self._replaced.append(value)
        return self._constants[key]

    def _place_weight(self, unit: Unit) -> None:
        node, index = unit.node, unit.weight
        assert index is not None
        value = node.inputs[index]
        weight = constant(value)
        assert value is not None
        assert weight is not None
        bias = self._bias(unit)
        weight, bias = _with_factors(node, weight, bias)
        source = node.inputs[unit.activations[0]]
        assert source is not None
        input_scale = self._affine[source].scale
        quantized = quantize_weight(
            weight,
            _channel_axis(unit, weight.ndim),
            reduce_range=self._spec.reduce_range,
            bias=bias if self._spec.bias == "int32" else None,
            input_scale=input_scale,
        )
        node.replace_input_with(
            index, self._stored(unit, value, quantized.integers, quantized.scale, quantized.axis)
        )
        self._replaced.append(value)
        if bias is not None:
            self._place_bias(unit, bias, input_scale, quantized.scale)

    def _bias(self, unit: Unit) -> Array | None:
        return None if unit.bias is None else constant(unit.node.inputs[unit.bias])

    def _place_bias(
        self, unit: Unit, bias: Array, input_scale: float, weight_scale: NDArray[np.float32]
    ) -> None:
        assert unit.bias is not None
        old = unit.node.inputs[unit.bias]
        assert old is not None
        if self._spec.bias == "int32":
            bias = np.broadcast_to(
                bias.reshape(-1), np.broadcast_shapes(bias.reshape(-1).shape, weight_scale.shape)
            )
            integers, scale = quantize_bias(bias, input_scale, weight_scale)
            new = self._stored(unit, old, integers, scale, 0 if scale.ndim else None)
        elif bias is constant(old):
            return
        else:
            new = self._initializer(f"{old.name}_scaled", bias)
        unit.node.replace_input_with(unit.bias, new)
        self._replaced.append(old)

    def _stored(
        self,
        unit: Unit,
        value: ir.Value,
        integers: Array,
        scale: NDArray[np.float32],
        axis: int | None,
    ) -> ir.Value:
        """The DQ of integers that are kept as an initializer; one for all that share them."""
        key = (value, integers.tobytes() + scale.tobytes() + bytes(str(axis), "ascii"))
        if key not in self._constants:
            name = str(value.name)
            inputs = [
                self._initializer(f"{name}_quantized", integers),
                self._initializer(f"{name}_scale", scale),
            ]
            if integers.dtype != np.int32:
                zero = np.zeros(scale.shape, integers.dtype)
                inputs.append(self._initializer(f"{name}_zero_point", zero))
            dq = self._node(
                "DequantizeLinear",
                inputs,
                value,
                "dequantized",
                "float32",
                {} if axis is None else {"axis": axis},
            )
            dq.outputs[0].shape = ir.Shape(integers.shape)
            self._graph.insert_before(unit.node, [dq])
            self._constants[key] = dq.outputs[0]
        return self._constants[key]

    def _parameters(self, name: str, affine: Affine) -> tuple[ir.Value, ir.Value]:
        scale = self._initializer(f"{name}_scale", np.array(affine.scale, np.float32))
        zero = self._initializer(f"{name}_zero_point", np.array(affine.zero_point, affine.dtype))
        return scale, zero

    def _dequantize(self, q: ir.Value, affine: Affine, name: str, like: ir.Value) -> ir.Node:
        """A DQ of `q`, with the parameters of its Q where it has one."""
        producer = q.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            scale, zero = producer.inputs[1], producer.inputs[2]
        else:
            scale, zero = self._parameters(name, affine)
        return self._node("DequantizeLinear", [q, scale, zero], like, "dequantized", "float32")

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        suffix: str,
        dtype: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Node:
        """A node with one output named after `like` and of its shape."""
        name = self._unique(f"{like.name}_{suffix}")
        node = ir.node(op_type, inputs, attributes or {}, name=name)
        output = node.outputs[0]
        output.name = name
        output.type = ir.TensorType(_dtype(dtype))
        output.shape = like.shape.copy() if like.shape is not None else None
        return node

    def _insert_behind(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)

    def _initializer(self, name: str, array: Array) -> ir.Value:
        unique = self._unique(name)
        tensor = ir.tensor(array, name=unique)
        value = ir.Value(
            name=unique,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate


def _values(graph: ir.Graph) -> list[ir.Value]:
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    initializers = [
        value for sub in (graph, *graph.subgraphs()) for value in sub.initializers.values()
    ]
    return [*graph.inputs, *inner, *initializers]


def _dtype(name: str) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(name))


def _channel_axis(unit: Unit, rank: int) -> int | None:
    """The axis of output channels; None for one scale, where there is no rule or no such axis."""
    axis = unit.rule.weight_axis
    if axis is None or rank < 2 or (unit.node.op_type == "MatMul" and rank != 2):
        return None
    if unit.node.op_type == "Gemm" and _attribute(unit.node, "transB", 0):
        return 1 - axis
    return axis


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _with_factors(node: ir.Node, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """Gemm's alpha and beta multiplied into weight and bias: the kernels know only factors of 1."""
    if node.op_type != "Gemm":
        return weight, bias
    alpha, beta = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
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
