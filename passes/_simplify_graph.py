"""Steps of `simplify` that keep every number: constants, identities, duplicates, dead code.

Imports onnx_ir at the top. They stand here, and not in onnx_ir's passes of the same names, because
each rewrite has a number and a place, subgraphs see what is outside, and outputs keep their names.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import onnx_ir as ir

from optimc.core.onnx_digest import tensor_digest
from optimc.core.onnx_signature import all_graphs
from optimc.passes._simplify_shapes import filled
from optimc.passes._simplify_work import (
    ANCHOR_DOMAIN,
    BREAKS_RANGE,
    Work,
    breaks_range,
    detach_subgraphs,
    is_identity,
    keep_source,
    subgraphs,
    where,
)

RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators that may give another result at each call (Dropout in training mode)."""

_CONSTANT_TYPES = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}


def lift_constants(work: Work) -> None:
    """Constant nodes become initializers."""
    for graph in list(all_graphs(work.model)):
        for node in graph:
            if node.op_type != "Constant" or node.domain != "":
                continue
            tensor = _constant_tensor(node)
            if tensor is not None and work.allow("lift_constant", where(node)):
                _lift(graph, node, tensor)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The node's value; None for strings and sparse tensors, which stay nodes."""
    if len(node.attributes) != 1:
        return None
    name, attribute = next(iter(node.attributes.items()))
    if attribute.is_ref():
        return None
    if name == "value":
        tensor = attribute.as_tensor()
        return None if tensor.dtype == ir.DataType.STRING else tensor
    if name in _CONSTANT_TYPES:
        return ir.tensor(attribute.value, dtype=_CONSTANT_TYPES[name])
    return None


def _lift(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    output = node.outputs[0]
    name = output.name
    assert name is not None
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    keep_source(value, output)
    output.replace_all_uses_with(value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def remove_identities(work: Work) -> None:
    """The readers of an Identity, and of a Pad by nothing, read its input."""
    for graph in list(all_graphs(work.model)):
        for node in graph:
            gone = is_identity(node) or _pads_nothing(node)
            if not (gone or _is_read_anchor(node)):
                continue
            source, output = node.inputs[0], node.outputs[0]
            if source is None:
                continue
            if source.const_value is not None and breaks_range(output, source):
                work.log.refuse("remove_identity", where(node), BREAKS_RANGE)
                continue
            if not work.allow("remove_identity", where(node)):
                continue
            _merge_type(source, output)
            output.replace_all_uses_with(source)
            if gone:
                keep_source(source, output)
                graph.remove(node, safe=True)


def _pads_nothing(node: ir.Node) -> bool:
    """A Pad by zeros on all sides, as shortcuts that pad channels export where widths are equal."""
    if node.op_type != "Pad" or node.domain != "" or len(node.inputs) < 2:
        return False
    if node.inputs[1] is None or node.outputs[0].is_graph_output():
        return False
    amounts = ir.convenience.get_const_tensor(node.inputs[1])
    return amounts is not None and not amounts.numpy().any()


def _is_read_anchor(node: ir.Node) -> bool:
    """An Identity that gives an output and is also read inside."""
    return node.domain == ANCHOR_DOMAIN and bool(node.outputs[0].uses())


def _merge_type(value: ir.Value, other: ir.Value) -> None:
    if value.type is None:
        value.type = other.type
    if other.shape is not None:
        value.shape = filled(value.shape, other.shape)


def merge_common_subexpressions(work: Work) -> None:
    """Nodes with the same operator, inputs and attributes become the first of them."""
    _merge_in(work, work.model.graph, {})


def _merge_in(work: Work, graph: ir.Graph, outside: dict[Hashable, ir.Node]) -> None:
    known = dict(outside)
    for node in graph:
        key = _expression(node)
        if key is None:
            for subgraph in subgraphs(node):
                _merge_in(work, subgraph, known)
        elif key not in known:
            known[key] = node
        elif work.allow("merge_equal_nodes", where(node)):
            for old, new in zip(node.outputs, known[key].outputs, strict=True):
                keep_source(new, old)
                old.replace_all_uses_with(new)
            graph.remove(node, safe=True)


def _expression(node: ir.Node) -> Hashable | None:
    """What decides a node's results, or None where equal nodes may differ."""
    if node.domain not in ("", "ai.onnx.ml") or node.op_type in RANDOM:
        return None
    attributes = []
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        if attribute.is_ref() or attribute.type in (
            ir.AttributeType.GRAPH,
            ir.AttributeType.GRAPHS,
        ):
            return None
        attributes.append((name, attribute.type, _frozen(attribute.value)))
    return (
        node.domain,
        node.op_type,
        tuple(id(value) if value is not None else None for value in node.inputs),
        tuple(attributes),
        tuple(bool(output.name) for output in node.outputs),
    )


def _frozen(value: Any) -> Hashable:
    """An attribute's value, exact: 1 is not 1.0, and -0.0 is not 0.0."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, str | bytes | int):
        return value
    if isinstance(value, ir.TensorProtocol):
        return tensor_digest(value)
    return str(value)


def merge_initializers(work: Work) -> None:
    """Equal constants become one, also between a subgraph and what is outside of it."""
    _merge_initializers_in(work, work.model.graph, {})


def _merge_initializers_in(work: Work, graph: ir.Graph, outside: dict[str, ir.Value]) -> None:
    known = dict(outside)
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or value.is_graph_input() or value.is_graph_output():
            continue
        key = tensor_digest(value.const_value)
        if key not in known:
            known[key] = value
        elif work.allow("merge_equal_constants", name):
            keep_source(known[key], value)
            value.replace_all_uses_with(known[key])
            del graph.initializers[name]
    for node in graph:
        for subgraph in subgraphs(node):
            _merge_initializers_in(work, subgraph, known)


def remove_dead_code(work: Work) -> None:
    """Nodes and initializers that no output needs go."""
    _remove_dead_in(work, work.model.graph)
    used = {node.domain for node in work.model.graph.all_nodes()} | {""}
    for domain in sorted(set(work.model.opset_imports) - used):
        if work.allow("remove_unused_domain", domain):
            del work.model.opset_imports[domain]


def _remove_dead_in(work: Work, graph: ir.Graph) -> None:
    for node in reversed(graph):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            for subgraph in subgraphs(node):
                _remove_dead_in(work, subgraph)
        elif work.allow("remove_dead_node", where(node)):
            detach_subgraphs(node)
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        kept = value.uses() or value.is_graph_output() or value.is_graph_input()
        if not kept and work.allow("remove_unused_constant", name):
            del graph.initializers[name]
