"""Float16 at a model's inputs and outputs, for `float16`. Imports onnx_ir at the top."""

from __future__ import annotations

import onnx_ir as ir

from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_names import NameTable
from optimc.core.passes import RewriteLog
from optimc.passes._float16_select import TYPE_BLIND, is_float32

_RULE = "float16 interface"
_HALF = ir.TensorType(ir.DataType.FLOAT16)


def halve_interface(model: ir.Model, log: RewriteLog) -> int:
    """Makes float32 inputs and outputs of the main graph float16; returns how many.

    Names stay. A Cast that stood at the border goes; where float32 begins behind it, one comes.
    """
    names, graph, count = NameTable.of_values(model), model.graph, 0
    for value in list(graph.inputs):
        if is_float32(value) and not value.is_initializer() and log.allow(_RULE, value.name or ""):
            _halve_input(graph, value, names)
            count += 1
    for index, value in enumerate(list(graph.outputs)):
        if is_float32(value) and log.allow(_RULE, value.name or ""):
            _halve_output(graph, index, value, names)
            count += 1
    return count


def _halve_input(graph: ir.Graph, value: ir.Value, names: NameTable) -> None:
    value.type = _HALF
    uses = [use for use in value.uses() if use.node.op_type not in TYPE_BLIND]
    rest = [use for use in uses if not _casts_to(use.node, ir.DataType.FLOAT16)]
    for node in dict.fromkeys(use.node for use in uses):
        if _casts_to(node, ir.DataType.FLOAT16) and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
    if not rest:
        return
    cast = _cast(value, names.unique(f"{value.name}_float32"), ir.DataType.FLOAT)
    graph.insert_before(graph[0], cast)
    for reader, index in rest:
        reader.replace_input_with(index, cast.outputs[0])


def _halve_output(graph: ir.Graph, index: int, value: ir.Value, names: NameTable) -> None:
    name, producer = value.name, value.producer()
    value.name = names.unique(f"{name}_float32")
    half = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    if half is None or half.dtype != ir.DataType.FLOAT16:
        half = None
    if half is None or half.producer() is None or half.is_graph_output():
        # An input, a constant or another output keeps its own name.
        cast = _cast(half or value, name or "", ir.DataType.FLOAT16)
        half = cast.outputs[0]
        graph.append(cast)
    half.name = name
    half.shape = value.shape
    if SOURCE_KEY in value.meta:
        half.meta[SOURCE_KEY] = value.meta.pop(SOURCE_KEY)
    graph.outputs[index] = half
    if producer is not None and not value.uses() and producer.op_type == "Cast":
        assert producer.graph is not None
        producer.graph.remove(producer, safe=True)


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return (
        node.op_type == "Cast"
        and node.domain == ""
        and node.attributes.get_int("to", 0) == int(dtype)
    )


def _cast(value: ir.Value, name: str, dtype: ir.DataType) -> ir.Node:
    result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    attributes = [ir.AttrInt64("to", int(dtype))]
    return ir.Node("", "Cast", [value], attributes, outputs=[result], name=f"{name}_cast")
