"""Constants behind a linear layer or a BatchNormalization, for `fuse`. Imports onnx_ir at the top.

A layer computes ``y = W x + b``, with one number of b and one slice of W for each channel. For
constants c with one number a channel, since both sides are affine in x:

    y + c = W x + (b + c)          y - c = W x + (b - c)          c - y = (-W) x + (c - b)
    y * c = (W c) x + (b c)        y / c = (W / c) x + (b / c)    where no number of c is 0

(distributivity; Jacob et al. 2018, arXiv:1712.05877, section 3.2, for BatchNormalization, which is
such a pair of factor and shift). A BatchNormalization that no layer precedes takes them in its own
scale and bias, ``(x - mean) / sqrt(variance + epsilon) * gamma + beta``, as gamma and beta stand
where W and b do. A MatMul has no bias: it takes factors alone.

A Transpose between the two moves the channels, and the constant with them. A Reshape keeps the
elements in their order: where it leaves the first axis as it is, and the axes in which the constant
varies (axis 1 to k, of p elements) count through whole channels (p divides their number C), the
constant's numbers along these axes, in their order, are those of C / p channels each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.passes._fuse_job import Job, only_reader, producer, rewrite_layer
from optimc.passes._fuse_layer import (
    Array,
    absorb,
    constant,
    constant_array,
    drop_unused,
    layer_of,
    per_channel,
)
from optimc.passes._simplify_work import where

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_MOVES = ("Transpose", "Reshape")
_NOT_PER_CHANNEL = "the constant is not one number for each channel"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class _Step:
    """``factor * y + shift`` as a node says it, the constant as it stands: broadcast to y."""

    value: ir.Value
    constant: Array
    sign: int
    """-1 where y is subtracted from the constant."""


def fuse_bias(node: ir.Node, job: Job) -> None:
    """Add or Sub of a constant for each channel into the layer or BatchNormalization before it."""
    _fuse("fuse_bias", node, job, _LAYERS)


def fuse_scale(node: ir.Node, job: Job) -> None:
    """Mul or Div by a constant for each channel into the layer or BatchNormalization before it."""
    _fuse("fuse_scale", node, job, (*_LAYERS, "MatMul"))


def _fuse(rule: str, node: ir.Node, job: Job, layers: tuple[str, ...]) -> None:
    step = _step(node)
    if step is None:
        return
    between = producer(step.value, *_MOVES)
    value = step.value if between is None else between.inputs[0]
    before = producer(value, *layers)
    norm = producer(value, "BatchNormalization") if between is None else None
    if before is None and norm is None:
        return
    if before is not None and before.op_type == "MatMul" and not _scales_product(before):
        return
    if not np.isfinite(step.constant).all() or (node.op_type == "Div" and 0 in step.constant):
        reason: str | None = "the constant is zero or not finite"
    elif norm is not None:
        reason = _into_norm(rule, node, step, norm, job)
    else:
        assert before is not None
        reason = _into_layer(rule, node, step, (before, between), job)
    if reason is not None:
        job.log.refuse(rule, where(node), reason)


def _scales_product(product: ir.Node) -> bool:
    """Whether a factor behind a MatMul may be meant for it: others are no refusal.

    Not the scores of an attention, a product of two activations; nor what a GELU reads twice.
    """
    return constant(product.inputs[1]) is not None and len(product.outputs[0].uses()) == 1


def _step(node: ir.Node) -> _Step | None:
    """What the node does with a constant, or None where it has none or two."""
    arrays = [constant_array(value) for value in node.inputs]
    if [array is None for array in arrays] == [True, False]:
        index = 0
    elif [array is None for array in arrays] == [False, True] and node.op_type != "Div":
        index = 1
    else:
        return None
    value, array = node.inputs[index], arrays[1 - index]
    if value is None or array is None:
        return None
    return _Step(value, array, -1 if index == 1 and node.op_type == "Sub" else 1)


def _factor_and_shift(node: ir.Node, step: _Step, row: Array) -> tuple[Array | None, Array]:
    """For each channel: what is multiplied (None: nothing) and what is then added."""
    nothing = np.zeros_like(row)
    if node.op_type == "Mul":
        return row, nothing
    if node.op_type == "Div":
        return 1.0 / row, nothing
    if step.sign < 0:
        return np.full_like(row, -1.0), row
    return None, row if node.op_type == "Add" else -row


def _into_layer(
    rule: str, node: ir.Node, step: _Step, path: tuple[ir.Node, ir.Node | None], job: Job
) -> str | None:
    """Rewrites, or says why not; the layer, and what stands between it and the node, in `path`."""
    before, between = path
    reason = only_reader(before, between or node)
    if between is not None:
        reason = reason or only_reader(between, node)
    layer = reason or layer_of(before)
    if isinstance(layer, str):
        return layer
    row = _row(step.constant, before, between, len(layer.bias))
    if row is None:
        return _NOT_PER_CHANNEL
    factor, shift = _factor_and_shift(node, step, row)
    weight = None if factor is None else layer.scaled(factor)
    bias = (layer.bias if factor is None else layer.bias * factor) + shift
    rewrite_layer(rule, node, layer, weight, bias, job, between)
    return None


def _row(array: Array, before: ir.Node, between: ir.Node | None, channels: int) -> Array | None:
    """The constant as one number for each channel of the layer, or None."""
    output = before.outputs[0]
    if before.op_type == "MatMul":
        rank = 1 if output.shape is None else len(output.shape)
        if between is not None or array.ndim > rank or array.size not in (1, channels):
            return None
        whole = array.ndim == 0 or array.size == array.shape[-1]
        return np.broadcast_to(array.reshape(-1), (channels,)) if whole else None
    weight = constant(before.inputs[1])
    assert weight is not None
    rank = len(weight.shape)
    if between is not None and between.op_type == "Reshape":
        return _through_reshape(array, output.shape, between.outputs[0].shape, channels)
    if between is not None:
        if array.ndim > rank:
            return None
        perm = between.attributes.get_ints("perm", None) or tuple(reversed(range(rank)))
        array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(np.argsort(perm))
    return per_channel(array, rank, channels)


def _through_reshape(
    array: Array, old: ir.Shape | None, new: ir.Shape | None, channels: int
) -> Array | None:
    """The row of a constant that is added behind a Reshape from `old` to `new`, or None."""
    if old is None or new is None or len(new) < 2 or array.ndim > len(new):
        return None
    if not _same_first_axis(old, new):
        return None
    shape = (1,) * (len(new) - array.ndim) + array.shape
    # The axes in which the constant varies, up to the last: they count through whole channels.
    last = max((axis + 1 for axis, dim in enumerate(shape) if dim != 1), default=1)
    split = tuple(dim for dim in new[1:last] if isinstance(dim, int))
    parts = math.prod(split)
    if shape[0] != 1 or len(split) != last - 1 or not parts or channels % parts:
        return None
    if any(dim not in (1, size) for dim, size in zip(shape[1:last], split, strict=True)):
        return None
    rows = np.broadcast_to(array.reshape(shape[1:last]), split)
    return np.repeat(rows.reshape(-1), channels // parts)


def _same_first_axis(old: ir.Shape, new: ir.Shape) -> bool:
    first = [dim if isinstance(dim, int) else dim.value for dim in (old[0], new[0])]
    if first[0] is not None and first[0] == first[1]:
        return True
    # As many elements in all: where the others are as many, the first axis is the same.
    rest = _product(old[1:]), _product(new[1:])
    return rest[0] is not None and rest[0] > 0 and rest[0] == rest[1]


def _product(dims: tuple[int | ir.SymbolicDim, ...]) -> int | None:
    """The product of known sizes, or None."""
    known = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(known) if len(known) == len(dims) else None


def _into_norm(rule: str, node: ir.Node, step: _Step, norm: ir.Node, job: Job) -> str | None:
    """The constant into gamma and beta of a BatchNormalization, or why not."""
    reason = only_reader(norm, node)
    if reason is not None:
        return reason
    if norm.attributes.get_int("training_mode", 0) or any(v.name for v in norm.outputs[1:]):
        return "the BatchNormalization before it is in training mode"
    tensors = [constant(value) for value in norm.inputs[1:3]]
    arrays = [constant_array(value) for value in norm.inputs[1:3]]
    gamma, beta = arrays
    if gamma is None or beta is None or gamma.ndim != 1 or gamma.shape != beta.shape:
        return f"scale and bias of {where(norm)} are not constants"
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    if any(dtype not in _FLOATS for dtype in dtypes):
        return f"{where(norm)} is not in float32 or float64: fuse before the conversion"
    if norm.outputs[0].shape is None:
        return f"the rank of {where(norm)} is not known"
    row = per_channel(step.constant, len(norm.outputs[0].shape), len(gamma))
    if row is None:
        return _NOT_PER_CHANNEL
    factor, shift = _factor_and_shift(node, step, row)
    scaled = [array if factor is None else array * factor for array in (gamma, beta)]
    with np.errstate(over="ignore"):
        new = [
            array.astype(dtype.numpy())
            for array, dtype in zip((scaled[0], scaled[1] + shift), dtypes, strict=True)
        ]
    if not all(bool(np.isfinite(array).all()) for array in new):
        return f"the fused constants would not be finite in {dtypes[0].name}"
    if job.allow(rule, node):
        assert norm.graph is not None and isinstance(norm.graph, ir.Graph)
        for index, array, part in zip((1, 2), new, ("scale", "bias"), strict=True):
            old = norm.inputs[index]
            fresh = job.new_constant(norm.graph, array, f"{where(norm)}_{part}")
            norm.replace_input_with(index, fresh)
            if old is not None:
                drop_unused(old)
        absorb(norm, node)
    return None
