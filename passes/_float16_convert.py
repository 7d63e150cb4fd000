"""Puts float16 and casts into a graph, for `float16`. Imports onnx_ir at the top."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_names import NameTable
from optimc.core.onnx_signature import all_graphs
from optimc.passes._float16_range import half
from optimc.passes._float16_select import TYPE_BLIND, is_float32
from optimc.passes._fuse_layer import constant, drop_unused

_HALF = ir.TensorType(ir.DataType.FLOAT16)


def convert(model: ir.Model, nodes: Sequence[ir.Node]) -> int:
    """Lets `nodes` of the main graph compute in float16; returns the number of casts.

    Values that float32 operators or outputs need as well get one Cast each, which takes over the
    source name: calibration and verification compare it with a float32 value.
    """
    work = _Work(model, set(nodes))
    for node in nodes:
        for output in node.outputs:
            if is_float32(output):
                work.halve(node, output)
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and is_float32(value):
                node.replace_input_with(index, work.half_of(value))
                if constant(value) is not None:
                    drop_unused(value)
    for node, output in work.halved:
        work.cast_back(node, output)
    return work.casts


class _Work:
    def __init__(self, model: ir.Model, nodes: set[ir.Node]) -> None:
        self._model = model
        self._nodes = nodes
        self._names = NameTable.of_values(model)
        self._known: dict[ir.Value, ir.Value] = {}
        self.halved: list[tuple[ir.Node, ir.Value]] = []
        self._sources: dict[ir.Value, str] = {}
        self.casts = 0

    def halve(self, node: ir.Node, value: ir.Value) -> None:
        """Makes a result of `node` float16."""
        self.halved.append((node, value))
        value.type = _HALF
        if SOURCE_KEY in value.meta:
            self._sources[value] = value.meta.pop(SOURCE_KEY)

    def half_of(self, value: ir.Value) -> ir.Value:
        """The float16 constant for a float32 constant; a Cast of anything else."""
        if value not in self._known:
            name = self._names.unique(f"{value.name}_float16")
            tensor = constant(value)
            if tensor is None:
                self._known[value] = self._cast(value, name, ir.DataType.FLOAT16)
            else:
                self._known[value] = self._constant(tensor, name)
        return self._known[value]

    def cast_back(self, node: ir.Node, value: ir.Value) -> None:
        """A Cast to float32 behind a float16 result, for readers and outputs that need it."""
        readers = [
            use
            for use in value.uses()
            if use.node not in self._nodes and use.node.op_type not in TYPE_BLIND
        ]
        graphs = [g for g in all_graphs(self._model) if any(o is value for o in g.outputs)]
        if not readers and not graphs:
            return
        name = value.name or ""
        is_output = any(graph is self._model.graph for graph in graphs)
        other = self._names.unique(f"{name}_{'float16' if is_output else 'float32'}")
        if is_output:
            value.name = other
        result = self._cast(value, name if is_output else other, ir.DataType.FLOAT, after=node)
        for reader, index in readers:
            reader.replace_input_with(index, result)
        for graph in graphs:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result

    def _constant(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        rounded = ir.Tensor(half(tensor), name=name)
        value = ir.Value(name=name, type=_HALF, shape=ir.Shape(rounded.shape), const_value=rounded)
        self._model.graph.register_initializer(value)
        return value

    def _cast(
        self, value: ir.Value, name: str, dtype: ir.DataType, after: ir.Node | None = None
    ) -> ir.Value:
        """Right behind the producer, at the start of the graph for inputs: before every reader."""
        result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        if dtype == ir.DataType.FLOAT and value in self._sources:
            result.meta[SOURCE_KEY] = self._sources[value]
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[result])
        cast.name = f"{name}_cast"
        graph, producer = self._model.graph, after or value.producer()
        if producer is not None:
            graph.insert_after(producer, cast)
        else:
            graph.insert_before(graph[0], cast)
        self.casts += 1
        return result
