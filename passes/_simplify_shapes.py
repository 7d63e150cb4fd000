"""Shape inference for `simplify` by onnx's C++ code. Imports onnx and onnx_ir at the top.

Known dims are never replaced, only unknown ones filled in: a file may know more than inference.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from optimc.core.onnx_signature import all_graphs, all_values

_GENERATED = "unk__"
"""How names begin that shape inference makes up; files carry them too."""

_SMALL_BYTES = 1024
"""Initializers up to this size stay constants for inference; bigger ones become mere inputs."""


def infer_shapes(model: ir.Model) -> bool:
    """Fills in types and dims of inner values, subgraphs included; outputs keep what they declare.

    Value names have to be unique over the whole model. Where inference fails, nothing changes.
    Returns whether anything was filled in.
    """
    try:
        # Not with data_prop: it gives a shape tensor as many dims as it has elements, and a small
        # file can declare billions. The folder follows shape values within bounds.
        inferred = onnx.shape_inference.infer_shapes(_light_proto(model))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return False
    found = {info.name: info.type for graph in _protos(inferred.graph) for info in _infos(graph)}
    names = {name for value in model.graph.inputs for name in _symbols(value)}
    names |= {n for v in all_values(model) for n in _symbols(v) if not n.startswith(_GENERATED)}
    fixed = {*model.graph.inputs, *model.graph.outputs}
    changed = False
    for graph in all_graphs(model):
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            if value in fixed:
                continue
            before = (value.type, value.shape)
            if value.shape is not None:
                value.shape = _without_generated(value.shape, names)
            if value.name in found:
                _merge(value, found[value.name], names)
            changed |= before != (value.type, value.shape)
    return changed


def _light_proto(model: ir.Model) -> onnx.ModelProto:
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES:
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.dtype = value.const_value.dtype
            del light.graph.initializers[name]
            light.graph.inputs.append(value)
    return ir.to_proto(light)


def _protos(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in inner:
                found += _protos(subgraph)
    return found


def _infos(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.value_info, *graph.output, *graph.input]


def _symbols(value: ir.Value) -> list[str]:
    return [dim.value for dim in value.shape or () if not isinstance(dim, int) and dim.value]


def _without_generated(shape: ir.Shape, names: set[str]) -> ir.Shape:
    """The shape with dims that inference called unk__0, unk__1 unknown: the folder may know."""
    return ir.Shape([d if isinstance(d, int) or d.value in names else None for d in shape])


def _merge(value: ir.Value, proto: onnx.TypeProto, names: set[str]) -> None:
    if value.type is None:
        value.type = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if shape is not None:
        value.shape = filled(value.shape, _without_generated(shape, names))


def filled(known: ir.Shape | None, new: ir.Shape) -> ir.Shape:
    """`known`, with its unknown dims taken from `new`."""
    if known is None:
        return new
    if len(known) != len(new):
        return known
    return ir.Shape([b if _unknown(a) else a for a, b in zip(known, new, strict=True)])


def _unknown(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None
