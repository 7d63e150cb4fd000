"""Stores weights in float16 behind a Cast to float32, for `float16`. Imports onnx_ir at the top."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from optimc.core.onnx_names import NameTable
from optimc.core.passes import RewriteLog
from optimc.passes._float16_range import half, overflow, underflow
from optimc.passes._float16_select import is_float32

_RULE = "store_float16"
_LEAST = 256
"""Elements under which the Cast takes as many bytes as it saves."""


def storable(model: ir.Model, log: RewriteLog, kept: Callable[[str], str | None]) -> list[ir.Value]:
    """The float32 initializers of the main graph that float16 can hold; others are refused.

    `kept` gives the pattern of `keep_float` that names a weight.
    """
    found = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not is_float32(value) or tensor.size < _LEAST:
            continue
        pattern = kept(name)
        reason = f"kept in float32 by `{pattern}`" if pattern else overflow(tensor)
        reason = reason or underflow(tensor)
        if value.is_graph_input() or value.is_graph_output():
            reason = "it is an input or output of the model"
        if reason is None:
            found.append(value)
        else:
            log.refuse(_RULE, name, reason)
    return found


def store(model: ir.Model, weights: Sequence[ir.Value], log: RewriteLog) -> int:
    """Converts these initializers; returns how many."""
    names, count = NameTable.of_values(model), 0
    for value in weights:
        name, tensor = value.name or "", value.const_value
        assert tensor is not None
        if log.allow(_RULE, name):
            _store(model.graph, value, tensor, names.unique(f"{name}_float16"))
            count += 1
    return count


def _store(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, name: str) -> None:
    rounded = ir.Tensor(half(tensor), name=name)
    small = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=ir.Shape(rounded.shape),
        const_value=rounded,
    )
    graph.register_initializer(small)
    old = value.name
    result = ir.Value(name=old, type=value.type, shape=value.shape)
    attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    cast = ir.Node("", "Cast", [small], attributes, outputs=[result], name=f"{old}_cast")
    graph.insert_before(graph[0], cast)
    value.replace_all_uses_with(result)
    assert old is not None
    del graph.initializers[old]
