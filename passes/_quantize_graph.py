"""Writing Q, DQ and integer constants into a graph, with names of their own. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.calibration.affine import Affine
from optimc.core.model import SOURCE_KEY

Array = NDArray[np.generic]


class GraphWriter:
    """Makes nodes and initializers whose names stand nowhere else in the model's main graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        inner = [value for node in graph.all_nodes() for value in node.outputs]
        graphs = (graph, *graph.subgraphs())
        constants = [value for sub in graphs for value in sub.initializers.values()]
        self._names = {value.name for value in [*graph.inputs, *inner, *constants]}
        self._names |= {node.name for node in graph.all_nodes()}

    def unique(self, name: str) -> str:
        """`name`, numbered where something is called so already."""
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def initializer(self, name: str, array: Array) -> ir.Value:
        """A constant of the graph."""
        unique = self.unique(name)
        tensor = ir.tensor(array, name=unique)
        value = ir.Value(
            name=unique,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def parameters(self, name: str, affine: Affine) -> tuple[ir.Value, ir.Value]:
        """The scale and the zero point as initializers."""
        scale = self.initializer(f"{name}_scale", np.array(affine.scale, np.float32))
        zero = self.initializer(f"{name}_zero_point", np.array(affine.zero_point, affine.dtype))
        return scale, zero

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        suffix: str,
        dtype: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Node:
        """A node, not in the graph yet, with one output: named after `like` and of its shape."""
        name = self.unique(f"{like.name}_{suffix}")
        node = ir.node(op_type, inputs, attributes or {}, name=name)
        output = node.outputs[0]
        output.name = name
        output.type = ir.TensorType(ir_dtype(dtype))
        output.shape = ir.Shape(like.shape) if like.shape is not None else None
        return node

    def quantize(
        self, value: ir.Value, parameters: tuple[ir.Value, ir.Value], dtype: str
    ) -> ir.Node:
        """A Q of `value`."""
        return self.node("QuantizeLinear", [value, *parameters], value, "quantized", dtype)

    def dequantize(
        self, integers: ir.Value, parameters: Sequence[ir.Value], like: ir.Value, axis: int | None
    ) -> ir.Node:
        """A DQ of `integers`, named after `like`."""
        attributes = {} if axis is None else {"axis": axis}
        inputs = [integers, *parameters]
        dq = self.node("DequantizeLinear", inputs, like, "dequantized", "float32", attributes)
        dq.outputs[0].shape = None if integers.shape is None else ir.Shape(integers.shape)
        return dq

    def stored(
        self,
        value: ir.Value,
        integers: Array,
        scale: NDArray[np.float32],
        axis: int | None,
        before: ir.Node,
    ) -> ir.Value:
        """The DQ of integers that are kept as an initializer, in front of the node `before`."""
        name = str(value.name)
        stored = self.initializer(f"{name}_quantized", integers)
        parameters = [self.initializer(f"{name}_scale", scale)]
        if integers.dtype != np.int32:
            zero = np.zeros(scale.shape, integers.dtype)
            parameters.append(self.initializer(f"{name}_zero_point", zero))
        dq = self.dequantize(stored, parameters, value, axis)
        self.graph.insert_before(before, [dq])
        return dq.outputs[0]

    def insert_behind(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Puts nodes behind the one that makes `value`, or first where it is an input."""
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)

    def take_over(self, value: ir.Value, new: ir.Value, suffix: str) -> None:
        """Lets `new` stand for `value`: its name and source name, its place in the outputs."""
        name, source = value.name, value.meta.get(SOURCE_KEY)
        value.name = self.unique(f"{name}_{suffix}")
        new.name = name
        if source is not None:
            new.meta[SOURCE_KEY] = source
        for position, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[position] = new

    def remove_unread(self, value: ir.Value) -> None:
        """Removes a constant or the node that makes `value` where nobody reads it any more."""
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            return
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            self.graph.remove(producer, safe=True)
        elif value.name is not None and self.graph.initializers.get(value.name) is value:
            del self.graph.initializers[value.name]


def redirect(value: ir.Value, to: ir.Value) -> None:
    """Lets every reader of `value` read `to`, but for the node that makes `to` from it."""
    maker = to.producer()
    for consumer, index in value.uses():
        if consumer is not maker:
            consumer.replace_input_with(index, to)


def ir_dtype(name: str) -> ir.DataType:
    """The ONNX dtype of a numpy dtype name."""
    return ir.DataType.from_numpy(np.dtype(name))


def number(node: ir.Node, name: str, default: float) -> float:
    """A numeric attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
