"""Whether new nodes are valid and give what the replaced ones gave. Imports onnx at the top.

onnxscript's rewrites may emit attributes that the model's opset does not have, or another dtype or
rank in corner cases: what the checker or type inference contradicts is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx import checker, shape_inference


def contradiction(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    old: Sequence[ir.Value],
    new: Sequence[ir.Value],
) -> str | None:
    """Why `nodes`, whose values `new` are to replace `old`, must not be taken, or None.

    All values need names. Fills in types and shapes of the nodes' outputs.
    """
    context = checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = dict(model.opset_imports)
    for node in nodes:
        proto = ir.to_proto(node)
        try:
            checker.check_node(proto, context)
            _infer(node, proto, model.opset_imports)
        except (checker.ValidationError, shape_inference.InferenceError) as error:
            return f"{node.op_type} would not be valid: {' '.join(str(error).split())[:200]}"
        except (RuntimeError, onnx.defs.SchemaError):
            continue  # No inference for this operator: nothing is contradicted.
    for before, after in zip(old, new, strict=True):
        if before.dtype is not None and after.dtype is not None and before.dtype != after.dtype:
            return f"the result would be {after.dtype.name} in place of {before.dtype.name}"
        if after.shape is not None and not fits(after.shape, before.shape):
            return f"the result would have the shape {after.shape} in place of {before.shape}"
    return None


def fits(shape: ir.Shape, known: ir.Shape | None) -> bool:
    """Whether a shape agrees with what is known: the rank, and dims that both say."""
    if known is None:
        return True
    return len(shape) == len(known) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(shape, known, strict=True)
    )


def _infer(node: ir.Node, proto: onnx.NodeProto, opsets: dict[str, int]) -> None:
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        kind = _type_of(value)
        if kind is None:
            return
        types[value.name] = kind
        if value.const_value is not None and value.const_value.size <= 20:
            data[value.name] = ir.to_proto(value.const_value)
    if node.op_type == "Constant":
        return
    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    inferred = shape_inference.infer_node_outputs(
        schema, proto, types, data, opset_imports=_opset_list(opsets)
    )
    for output in node.outputs:
        if output.name in inferred:
            output.type = ir.serde.deserialize_type_proto_for_type(inferred[output.name])
            output.shape = ir.serde.deserialize_type_proto_for_shape(inferred[output.name])


def _type_of(value: ir.Value) -> onnx.TypeProto | None:
    dtype, shape = value.dtype, value.shape
    if value.const_value is not None:
        dtype, shape = value.const_value.dtype, ir.Shape(value.const_value.shape.numpy())
    if dtype is None:
        return None
    proto = ir.serde.serialize_type(value.type if value.type is not None else ir.TensorType(dtype))
    if shape is not None:
        ir.serde.serialize_shape_into(proto, shape)
    return proto


def _opset_list(opsets: dict[str, int]) -> list[onnx.OperatorSetIdProto]:
    return [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
