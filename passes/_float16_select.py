"""Which operators `float16` converts, and why not the others. Imports onnx and onnx_ir at the top.

Seeds are convolutions, matrix products, and what reads large weights. From them the choice spreads
over the operators beside them, as far as these may compute in float16, so that casts stand only at
the borders of regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx_ir as ir
from onnx import defs

from optimc.core.passes import RewriteLog
from optimc.passes._float16_range import overflow, underflow
from optimc.passes._fuse_layer import constant
from optimc.passes._simplify_work import subgraphs, where

TYPE_BLIND = frozenset({"Shape", "Size"})
"""Operators whose result does not depend on the input's dtype."""

_HEAVY = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_LARGE = 1024
"""Elements from which on a constant is worth storing in half the bytes."""

_FEW = 64
"""So many elements may be averaged: half the bits of a sum of more could be rounding."""

_OVERFLOWS = "it leaves the range of float16 easily"
_SUMS = "it sums many elements"
_NORMALIZES = "it divides by a deviation, whose square float16 may not hold"
_COORDINATES = "it computes coordinates or orders, which rounding moves"
_RECURS = "its rounding errors add up from step to step"

_KEPT: dict[str, str] = {
    **dict.fromkeys(
        ["Cos", "Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "Sin", "Softmax", "Softplus",
         "Sqrt", "Tan"],
        _OVERFLOWS,
    ),
    **dict.fromkeys(
        ["Attention", "CumSum", "DFT", "GlobalLpPool", "LpPool", "ReduceL1", "ReduceL2",
         "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare", "STFT"],
        _SUMS,
    ),
    **dict.fromkeys(
        ["BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN",
         "LayerNormalization", "LpNormalization", "MeanVarianceNormalization",
         "RMSNormalization"],
        _NORMALIZES,
    ),
    **dict.fromkeys(
        ["AffineGrid", "Ceil", "DeformConv", "Floor", "GridSample", "MaxRoiPool", "Mod",
         "NonMaxSuppression", "Range", "Resize", "RoiAlign", "RotaryEmbedding", "Round", "TopK",
         "Upsample"],
        _COORDINATES,
    ),
    **dict.fromkeys(["GRU", "LSTM", "RNN"], _RECURS),
}  # fmt: skip

_MEANS = frozenset({"GlobalAveragePool", "ReduceMean", "ReduceSum"})

_HANDS_ON = frozenset(
    {
        "Add", "Concat", "Expand", "Flatten", "Gather", "Identity", "Mul", "Neg", "Pad", "Reshape",
        "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators whose result is as large as their largest input."""


def select(
    model: ir.Model, log: RewriteLog, kept: Callable[[ir.Node], str | None]
) -> list[ir.Node]:
    """The nodes of the main graph to convert, in its order; the others are refused in `log`.

    `kept` gives the pattern of `keep_float` that names a node.
    """
    opset = model.opset_imports.get("", 1)
    able: dict[ir.Node, None] = {}
    large: set[ir.Value] = set()
    for node in model.graph:
        if not _works_on_float32(node):
            continue
        pattern = kept(node)
        reason = f"kept in float32 by `{pattern}`" if pattern else _why_not(node, opset, large)
        if reason is None:
            able[node] = None
        else:
            log.refuse(f"float16 {node.op_type}", where(node), reason)
    chosen = _spread([node for node in able if _is_seed(node)], able)
    for node in able:
        if node not in chosen:
            reason = "no convolution or matrix product beside it computes in float16"
            log.refuse(f"float16 {node.op_type}", where(node), reason)
    return [node for node in able if node in chosen]


def is_float32(value: ir.Value | None) -> bool:
    """Whether the value is a tensor of float32."""
    return (
        value is not None
        and value.dtype == ir.DataType.FLOAT
        and isinstance(value.type, ir.TensorType)
    )


def _works_on_float32(node: ir.Node) -> bool:
    """Whether float32 goes in and comes out; or may, where a type is not known."""
    goes_in = any(is_float32(v) for v in node.inputs) or next(subgraphs(node), None) is not None
    return goes_in and any(is_float32(v) or v.dtype is None for v in node.outputs)


def _why_not(node: ir.Node, opset: int, large: set[ir.Value]) -> str | None:
    """Why a node stays in float32; notes in `large` which values are beyond float16."""
    tensors = [t for v in node.inputs if is_float32(v) and (t := constant(v)) is not None]
    reasons = [reason for t in tensors if (reason := overflow(t)) is not None]
    if any(value in large for value in node.inputs if value is not None):
        reasons.append("what it reads is beyond float16's 65504")
    if reasons and node.op_type in _HANDS_ON:
        large.update(node.outputs)
    reasons += [reason for t in tensors if (reason := underflow(t)) is not None]
    return reasons[0] if reasons else _by_type(node, opset) or _by_range(node)


def _by_type(node: ir.Node, opset: int) -> str | None:
    if node.domain != "":
        return f"nothing is known of the domain {node.domain}"
    if next(subgraphs(node), None) is not None:
        return "its subgraphs stay in float32"
    if "to" in node.attributes or "dtype" in node.attributes:
        return "an attribute says its type"
    if any(v is not None and v.dtype is None for v in (*node.inputs, *node.outputs) if _named(v)):
        return "not all of its types are known"
    return None if _allows_float16(node, opset) else "ONNX has no float16 for it"


def _named(value: ir.Value | None) -> bool:
    return value is not None and bool(value.name)


def _allows_float16(node: ir.Node, opset: int) -> bool:
    """Whether each float32 input and output may be float16 by the operator's schema."""
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return False
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            name = formal[min(index, len(formal) - 1)].type_str
            if "tensor(float16)" not in allowed.get(name, ()) or not is_float32(value):
                return False
    return True


def _by_range(node: ir.Node) -> str | None:
    if node.op_type in _KEPT:
        return _KEPT[node.op_type]
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return "a square is beyond float16's 65504 from 256 on"
    if node.op_type == "Div" and constant(node.inputs[1]) is None:
        return "what it divides by may be too small for float16"
    if node.op_type in _MEANS:
        count = _reduced(node)
        if count is None or count > _FEW:
            return f"it sums {count if count is not None else 'an unknown number of'} elements"
    return None


def _reduced(node: ir.Node) -> int | None:
    """How many elements make one result, or None where that is not known."""
    sizes = [
        math.prod(value.shape.numpy()) if value.shape is not None and value.shape.is_static() else 0
        for value in _without_batch(node)
    ]
    return sizes[0] // sizes[1] if all(sizes) else None


def _without_batch(node: ir.Node) -> Iterator[ir.Value]:
    """Input and output with dims of 1 in the place of names that both have."""
    source, output = node.inputs[0], node.outputs[0]
    names = {d.value for d in output.shape or () if isinstance(d, ir.SymbolicDim)} - {None}
    for value in (source, output):
        shape = value.shape if value is not None else None
        dims = None
        if shape is not None:
            dims = ir.Shape(
                [1 if not isinstance(d, int) and d.value in names else d for d in shape]
            )
        yield ir.Value(name="", shape=dims)


def _is_seed(node: ir.Node) -> bool:
    tensors = (constant(value) for value in node.inputs if is_float32(value))
    return node.op_type in _HEAVY or any(t is not None and t.size >= _LARGE for t in tensors)


def _spread(seeds: list[ir.Node], able: dict[ir.Node, None]) -> set[ir.Node]:
    """The seeds and all that is connected with them through float32 values and `able` nodes."""
    chosen, waiting = set(seeds), list(seeds)
    while waiting:
        node = waiting.pop()
        before = [
            value.producer() for value in node.inputs if value is not None and is_float32(value)
        ]
        behind = [u.node for value in node.outputs if is_float32(value) for u in value.uses()]
        for other in (*before, *behind):
            if other is not None and other in able and other not in chosen:
                chosen.add(other)
                waiting.append(other)
    return chosen
