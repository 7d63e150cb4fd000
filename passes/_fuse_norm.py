"""LayerNormalization from the nodes that exporters spell it with, for `fuse`. Imports onnx_ir.

Ba et al. 2016, "Layer Normalization" (arXiv:1607.06450), section 3, over the last axis:

    d = x - mean(x)      y = d / sqrt(mean(d^2) + epsilon) * scale + bias

ONNX has it as LayerNormalization from opset 17 on. Both spellings round d where the mean is large
against the deviation, each in its own way: 2e-6 of the scale apart at 100 to 1, 2e-5 at 1000 to 1.
In an older opset the nodes stay, see `_fuse_gelu`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.passes._fuse_job import Job, producer, read_outside, replace, scalar
from optimc.passes._fuse_layer import constant, constant_array
from optimc.passes._simplify_work import where

_LEAST_OPSET = 17


@dataclass(frozen=True, eq=False)
class _Norm:
    x: ir.Value
    epsilon: float
    size: int
    scale: np.ndarray | None
    bias: np.ndarray | None
    last: ir.Node
    inner: tuple[ir.Node, ...]


def fuse_layer_norm(node: ir.Node, job: Job) -> None:
    """The Div of a LayerNormalization, with what is before and behind it, into one node."""
    rule = "fuse_layer_norm"
    found = _norm(node)
    if found is None:
        return
    if isinstance(found, str):
        job.log.refuse(rule, where(node), found)
        return
    if job.opset < _LEAST_OPSET:
        reason: str | None = (
            f"LayerNormalization is in opset {_LEAST_OPSET} and newer, the model has {job.opset}"
        )
    else:
        reason = read_outside(found.last, found.inner)
    if reason is not None:
        job.log.refuse(rule, where(node), reason)
    elif job.allow(rule, node):
        _put(found, job)


def _put(norm: _Norm, job: Job) -> None:
    graph, name = norm.last.graph, where(norm.last)
    assert isinstance(graph, ir.Graph)
    scale = np.ones(norm.size) if norm.scale is None else norm.scale
    inputs = [norm.x, job.new_constant(graph, scale.astype(np.float32), f"{name}_scale")]
    if norm.bias is not None:
        inputs.append(job.new_constant(graph, norm.bias.astype(np.float32), f"{name}_bias"))
    attributes = [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", norm.epsilon)]
    replace(norm.last, norm.inner, ir.Node("", "LayerNormalization", inputs, attributes))


def _norm(div: ir.Node) -> _Norm | str | None:
    """The normalization around a Div; None where it is none, a reason where it cannot be fused."""
    sub, root = producer(div.inputs[0], "Sub"), producer(div.inputs[1], "Sqrt")
    add = producer(root.inputs[0], "Add") if root is not None else None
    if sub is None or root is None or add is None or sub.inputs[0] is None:
        return None
    x = sub.inputs[0]
    for spread, small in (add.inputs, reversed(add.inputs)):
        epsilon, variance = scalar(small), producer(spread, "ReduceMean")
        if epsilon is None or variance is None:
            continue
        squares = _square(variance.inputs[0], x)
        mean = producer(sub.inputs[1], "ReduceMean")
        if squares is None or mean is None or mean.inputs[0] is not x:
            return None
        if not all(_over_last_axis(reduced) for reduced in (mean, variance)):
            return "the means are not over the last axis alone, or drop it"
        inner = dict.fromkeys((sub, mean, root, add, variance, *squares))
        return _with_affine(div, x, epsilon, tuple(inner))
    return None


def _square(value: ir.Value | None, x: ir.Value) -> tuple[ir.Node, ...] | None:
    """The nodes of (x - mean(x))^2, by Pow or Mul and from a Sub of its own perhaps, or None."""
    node = producer(value, "Pow", "Mul")
    if node is None:
        return None
    base, other = node.inputs
    if not (base is other if node.op_type == "Mul" else scalar(other) == 2):
        return None
    sub = producer(base, "Sub")
    mean = producer(sub.inputs[1], "ReduceMean") if sub is not None else None
    if sub is None or mean is None or sub.inputs[0] is not x or mean.inputs[0] is not x:
        return None
    return (node, sub, mean) if _over_last_axis(mean) else None


def _over_last_axis(node: ir.Node) -> bool:
    """Whether a ReduceMean is over the last axis alone and keeps it as a 1."""
    x = node.inputs[0]
    axes = node.attributes.get_ints("axes", None)
    if axes is None and len(node.inputs) > 1:
        array = constant(node.inputs[1])
        axes = None if array is None else tuple(array.numpy().reshape(-1).tolist())
    if axes is None or len(axes) != 1 or node.attributes.get_int("keepdims", 1) != 1:
        return False
    return axes[0] == -1 or (x is not None and x.shape is not None and axes[0] == len(x.shape) - 1)


def _with_affine(
    div: ir.Node, x: ir.Value, epsilon: float, inner: tuple[ir.Node, ...]
) -> _Norm | str:
    """Takes a constant scale and a constant bias behind the Div in, where they are there."""
    if x.dtype != ir.DataType.FLOAT:
        return "it does not work on float32"
    size = x.shape[-1] if x.shape else None
    if not isinstance(size, int):
        return "the size of the last axis is not known"
    rank = len(x.shape) if x.shape is not None else 0
    last, scale, bias = div, None, None
    mul, array = _constant_reader(last, "Mul", size, rank)
    if mul is not None:
        last, scale, inner = mul, array, (*inner, last)
    add, array = _constant_reader(last, "Add", size, rank)
    if add is not None:
        last, bias, inner = add, array, (*inner, last)
    return _Norm(x, epsilon, size, scale, bias, last, inner)


def _constant_reader(
    node: ir.Node, op_type: str, size: int, rank: int
) -> tuple[ir.Node | None, np.ndarray | None]:
    """The only reader of a node, where it is `op_type` with one number for each of `size`."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None, None
    reader, index = uses[0]
    if reader.op_type != op_type or reader.domain != "" or reader.graph is not node.graph:
        return None, None
    array = constant_array(reader.inputs[1 - index])
    if array is None or array.ndim > rank or array.size not in (1, size):
        return None, None
    if array.ndim and (array.shape[-1] != array.size):
        return None, None
    return reader, np.broadcast_to(array.reshape(-1), (size,))
