"""Matrix products as Gemm, for `fuse`. Imports onnx_ir at the top.

Gemm (ONNX operators) computes op(A) * op(B) + C of two matrices, where op transposes or does not:

    MatMul(A, B) + c           = Gemm(A, B, c)           c: one number for each column
    MatMul(A, Transpose(B))    = Gemm(A, B, transB=1)
    Gemm(Transpose(A), B, C)   = Gemm(A, B, C, transA=1 - transA)

Only for matrices: a product with more dims has no such operator, and flattening it to one would
cost reshapes. The numbers are the same but for the order in which a runtime sums.
"""

from __future__ import annotations

import onnx_ir as ir

from optimc.passes._fuse_job import Job, producer, read_outside
from optimc.passes._fuse_layer import absorb, constant, drop_unused, per_channel
from optimc.passes._simplify_work import where

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_FLAGS = ("transA", "transB")


def fuse_gemm(node: ir.Node, job: Job) -> None:
    """Add of a constant row to a product of two matrices into one Gemm."""
    rule = "fuse_gemm"
    for value, other in ((0, 1), (1, 0)):
        product, row = producer(node.inputs[value], "MatMul"), node.inputs[other]
        if product is None or constant(row) is None:
            continue
        reason = _why_no_row(product, row) or read_outside(node, [product])
        if reason is not None:
            job.log.refuse(rule, where(node), reason)
        elif job.allow(rule, node):
            product.op_type = "Gemm"
            product.resize_inputs(3)
            product.replace_input_with(2, row)
            absorb(product, node)
        return


def fuse_transpose(node: ir.Node, job: Job) -> None:
    """Transposes of the matrices of a MatMul or Gemm into Gemm's flags; others keep theirs."""
    for index, flag in enumerate(_FLAGS):
        value = node.inputs[index]
        transpose = producer(value, "Transpose")
        if value is None or transpose is None or job.stopped:
            continue
        reason = _why_no_matrices(node)
        if reason is None and transpose.attributes.get_ints("perm", (1, 0)) != (1, 0):
            continue  # It does nothing: `simplify` drops it.
        if reason is not None:
            # Heads of an attention are transposed before every product: that is no refusal.
            if constant(transpose.inputs[0]) is not None:
                job.log.refuse("fuse_transpose", where(transpose), reason)
        elif job.allow("fuse_transpose", transpose):
            node.op_type = "Gemm"
            node.replace_input_with(index, transpose.inputs[0])
            node.attributes.add(ir.AttrInt64(flag, 1 - node.attributes.get_int(flag, 0)))
            drop_unused(value)


def _why_no_matrices(node: ir.Node) -> str | None:
    for value in node.inputs[:2]:
        if value is None or value.shape is None:
            return f"the rank of an input of {where(node)} is not known"
        if len(value.shape) != 2:
            return f"an input of {where(node)} has {len(value.shape)} dims, Gemm takes matrices"
        if value.dtype not in _FLOATS:
            return f"{where(node)} does not work on float32 or float64"
    return None


def _why_no_row(product: ir.Node, row: ir.Value | None) -> str | None:
    reason = _why_no_matrices(product)
    if reason is not None:
        return reason
    weight, tensor = product.inputs[1], constant(row)
    assert weight is not None and weight.shape is not None and tensor is not None
    columns = weight.shape[1]
    if not isinstance(columns, int):
        return f"the number of columns of {where(product)} is not known"
    if per_channel(tensor.numpy(), 2, columns) is None:
        return "the constant is not one number for each column"
    return None
