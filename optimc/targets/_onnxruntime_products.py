"""Products with static ranges and their bias as ONNX Runtime's MatMulIntegerToFloat.

    y = (q_x - z_x) @ q_w * (s_x * s_w) + b

The runtime makes this operator of a DQ on both inputs of a MatMul by itself, but leaves the Add of
the bias behind it as a pass of its own over the result. See com.microsoft.MatMulIntegerToFloat in
onnxruntime/docs/ContribOperators.md.
"""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "com.microsoft"


def fuse_products(model: ir.Model) -> int:
    """Rewrites every product of a quantized activation and weight with a bias; how many."""
    count = 0
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.domain in ("", "ai.onnx"):
            count += _fuse(model.graph, node)
    if count:
        model.opset_imports.setdefault(DOMAIN, 1)
    return count


def _fuse(graph: ir.Graph, product: ir.Node) -> bool:
    source, weight = (_dequantized(value) for value in product.inputs)
    uses = tuple(product.outputs[0].uses())
    if source is None or weight is None or len(uses) != 1 or product.outputs[0].is_graph_output():
        return False
    add, index = uses[0]
    bias = None
    if add.op_type in ("Add", "Sum") and len(add.inputs) == 2 and add.graph is graph:
        bias = add.inputs[1 - index]
    if bias is None or not _fits(source, weight, bias):
        return False
    node = ir.node(
        "MatMulIntegerToFloat",
        [
            source.inputs[0],
            weight.inputs[0],
            source.inputs[1],
            weight.inputs[1],
            source.inputs[2],
            weight.inputs[2],
            bias,
        ],
        domain=DOMAIN,
        name=product.name,
    )
    old, new = add.outputs[0], node.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.meta.update(old.meta)
    name, old.name = old.name, f"{old.name}_fused_away"
    new.name = name
    graph.insert_before(product, [node])
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([add, product], safe=True)
    for dequantize in {source, weight}:
        if not dequantize.outputs[0].uses() and not dequantize.outputs[0].is_graph_output():
            graph.remove(dequantize, safe=True)
    return True


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear with a zero point that makes a value."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 3:
        return None
    return node if node.inputs[2] is not None else None


def _fits(source: ir.Node, weight: ir.Node, bias: ir.Value) -> bool:
    """Whether the kernel takes them: one scale at the input, a matrix of int8, a bias of [N]."""
    matrix, scale = weight.inputs[0], source.inputs[1]
    tensors = [ir.convenience.get_const_tensor(v) for v in (matrix, scale, bias) if v is not None]
    if len(tensors) != 3 or any(tensor is None for tensor in tensors):
        return False
    shapes = [list(tensor.shape.numpy()) for tensor in tensors if tensor is not None]
    kinds = [source.inputs[0].dtype if source.inputs[0] else None, matrix.dtype if matrix else None]
    axis = weight.attributes.get("axis")
    along = axis is None or axis.as_int() in (1, -1)
    return (
        kinds == [ir.DataType.UINT8, ir.DataType.INT8]
        and len(shapes[0]) == 2
        and shapes[1] in ([], [1])
        and shapes[2] == [shapes[0][1]]
        and along
    )
