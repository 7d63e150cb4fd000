"""The core of attention as ONNX Runtime's MultiHeadAttention.

    y = softmax(scale * Q K^T + mask) V      in each head; Q, K, V: [batch, length, heads * size]

(Vaswani et al. 2017, arXiv:1706.03762, section 3.2). Exporters write it as a dozen operators that
mostly move data. The products in front of it and behind it are left alone, whether they are float
or integer: that is why it is found here, where patterns from the projections on match only floats.
See com.microsoft.MultiHeadAttention in onnxruntime/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

DOMAIN = "com.microsoft"
_HEADS_OUT = (0, 2, 1, 3)
_TURNED = ((0, 2, 3, 1), (0, 1, 3, 2))


@dataclass(frozen=True)
class _Heads:
    """A tensor [batch, length, heads * size] that was split into its heads."""

    value: ir.Value
    size: int
    heads: int


@dataclass(frozen=True)
class _Core:
    softmax: ir.Node
    query: _Heads
    key: _Heads
    value: _Heads
    mask: ir.Value | None
    scale: float
    output: ir.Value
    """The value [batch, length, heads * size] that the operator gives instead."""


def fuse_attention(model: ir.Model) -> int:
    """Rewrites every core of attention in the main graph; how many there were."""
    cores = [_core(node) for node in model.graph if node.op_type == "Softmax"]
    found = [core for core in cores if core is not None]
    for core in found:
        _replace(model.graph, core)
    if found:
        model.opset_imports.setdefault(DOMAIN, 1)
        _sweep(model.graph)
    return len(found)


def _replace(graph: ir.Graph, core: _Core) -> None:
    inputs = [core.query.value, core.key.value, core.value.value, None, None, core.mask]
    if core.mask is None:
        del inputs[3:]
    node = ir.node(
        "MultiHeadAttention",
        inputs,
        {"num_heads": core.query.heads, "scale": core.scale},
        domain=DOMAIN,
        name=f"{core.output.name}_attention",
    )
    old, new = core.output, node.outputs[0]
    maker = old.producer()
    assert maker is not None
    new.type, new.shape = old.type, old.shape
    graph.insert_before(maker, [node])
    name, old.name = old.name, f"{old.name}_fused_away"
    new.name = name
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _sweep(graph: ir.Graph) -> None:
    """Removes the nodes that nobody reads any more."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[str(value.name)]


def _core(softmax: ir.Node) -> _Core | None:
    """The core of attention around a Softmax, or None where it is none."""
    axis = softmax.attributes.get("axis")
    if axis is not None and axis.as_int() not in (-1, 3):
        return None
    scores, mask = _without_mask(softmax.inputs[0])
    product = _made_by(scores, "MatMul")
    after = _after(softmax)
    if product is None or after is None:
        return None
    output, value = after
    left, right = product.inputs[0], product.inputs[1]
    query, first = _unscaled(left)
    turned, second = _unscaled(right)
    q, k, v = _split(query), _turned_heads(turned), _split(value)
    scale = first * second * _scale_of(softmax.inputs[0])
    if q is None or k is None or v is None or not (q.heads == k.heads == v.heads):
        return None
    if q.size != k.size or not math.isfinite(scale) or scale == 0.0:
        return None
    if mask is not None and not _fits(mask, q, k):
        return None
    mask = None if mask is not None and _is_zero(mask) else mask
    return _Core(softmax, q, k, v, mask, scale, output)


def _without_mask(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """The product of queries and keys below scale and mask, and the mask."""
    node = _made_by(value, "Add")
    if node is None:
        return _unscaled(value)[0], None
    for index in (0, 1):
        inner = _unscaled(node.inputs[index])[0]
        if _made_by(inner, "MatMul") is not None:
            return inner, node.inputs[1 - index]
    return None, None


def _scale_of(value: ir.Value | None) -> float:
    """The factor between the product and the mask."""
    node = _made_by(value, "Add")
    sides = [value] if node is None else list(node.inputs)
    for side in sides:
        inner, factor = _unscaled(side)
        if _made_by(inner, "MatMul") is not None:
            return factor
    return math.nan


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value without the constant factors that it was multiplied by, and their product."""
    factor = 1.0
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in ("Mul", "Div") or len(value.uses()) != 1:
            break
        scalar, other = _scalar(node.inputs[1]), node.inputs[0]
        if scalar is None and node.op_type == "Mul":
            scalar, other = _scalar(node.inputs[0]), node.inputs[1]
        if scalar is None:
            break
        factor = factor * scalar if node.op_type == "Mul" else factor / scalar
        value = other
    return value, factor


def _after(softmax: ir.Node) -> tuple[ir.Value, ir.Value | None] | None:
    """The result [batch, length, heads * size] behind a Softmax, and the values [.., heads, ..]."""
    weights = softmax.outputs[0]
    checked = _guarded(weights)
    reader = _only_reader(checked if checked is not None else weights)
    if reader is None or reader.op_type != "MatMul":
        return None
    if reader.inputs[0] is not (checked if checked is not None else weights):
        return None
    turned = _only_reader(reader.outputs[0])
    if turned is None or turned.op_type != "Transpose" or _perm(turned) != _HEADS_OUT:
        return None
    joined = _only_reader(turned.outputs[0])
    if joined is None or joined.op_type != "Reshape":
        return None
    shape = joined.outputs[0].shape
    if shape is None or len(shape) != 3:
        return None
    return joined.outputs[0], reader.inputs[1]


def _guarded(weights: ir.Value) -> ir.Value | None:
    """The result of ``Where(IsNaN(weights), 0, weights)``: a guard for rows that are all masked."""
    readers = {node for node, _ in weights.uses()}
    where = next((node for node in readers if node.op_type == "Where"), None)
    if where is None or len(readers) != 2 or weights.is_graph_output():
        return None
    condition = _made_by(where.inputs[0], "IsNaN")
    if condition is None or condition.inputs[0] is not weights or where.inputs[2] is not weights:
        return None
    return where.outputs[0] if _scalar(where.inputs[1]) == 0.0 else None


def _split(value: ir.Value | None) -> _Heads | None:
    """The tensor that was split into heads by a Reshape and a Transpose."""
    node = _made_by(value, "Transpose")
    if node is None or _perm(node) != _HEADS_OUT:
        return None
    return _reshaped(node.inputs[0])


def _turned_heads(value: ir.Value | None) -> _Heads | None:
    """The same for keys, whose last two axes have been swapped, in one of three ways."""
    node = _made_by(value, "Transpose")
    if node is not None and _perm(node) == _TURNED[0]:
        return _reshaped(node.inputs[0])
    if node is not None and _perm(node) == _TURNED[1]:
        return _split(node.inputs[0])
    # torch's exporter swaps in three dims: Reshape, Transpose, Reshape, all heads in one axis.
    outer = _made_by(value, "Reshape")
    swap = _made_by(outer.inputs[0], "Transpose") if outer is not None else None
    inner = _made_by(swap.inputs[0], "Reshape") if swap is not None else None
    if swap is None or inner is None or _perm(swap) != (0, 2, 1):
        return None
    turned = inner.inputs[0]
    if turned is None or outer is None:
        return None
    ways = [
        (_axes(inner.inputs[1], turned), _axes(outer.inputs[1], turned)),
        (
            _sizes(inner.inputs[1], turned, [-1, 2, 3]),
            _sizes(outer.inputs[1], turned, [0, 1, 3, 2]),
        ),
    ]
    return _split(turned) if ([-1, 2, 3], [0, 1, 3, 2]) in ways else None


def _sizes(shape: ir.Value | None, of: ir.Value, axes: list[int]) -> list[int] | None:
    """`axes` where a constant shape holds the sizes that `of` has along them (-1 is -1)."""
    tensor = ir.convenience.get_const_tensor(shape) if shape is not None else None
    if tensor is None or of.shape is None:
        return None
    wanted = [-1 if axis < 0 else of.shape[axis] for axis in axes]
    return axes if tensor.numpy().reshape(-1).tolist() == wanted else None


def _axes(shape: ir.Value | None, of: ir.Value) -> list[int] | None:
    """A shape [..] that is put together of sizes of `of` (rank 4), as its axes, -1 standing for -1.

    None for any other.
    """
    node = _made_by(shape, "Concat")
    axes: list[int] = []
    for part in node.inputs if node is not None else [None]:
        if _scalar(part) == -1.0:
            axes.append(-1)
            continue
        cut = _made_by(part, "Slice")
        source = _made_by(cut.inputs[0], "Shape") if cut is not None else None
        ends = [_scalar(value) for value in cut.inputs[1:3]] if cut is not None else []
        if source is None or source.inputs[0] is not of or len(ends) != 2:
            return None
        if any(end is None for end in ends) or source.attributes.get("end") is not None:
            return None
        low, high = (int(end) for end in ends if end is not None)
        axes += range(4)[low:high]
    return axes


def _reshaped(value: ir.Value | None) -> _Heads | None:
    node = _made_by(value, "Reshape")
    source = node.inputs[0] if node is not None else None
    if node is None or source is None or source.shape is None or value is None:
        return None
    whole, parts = source.shape, value.shape
    if parts is None or len(whole) != 3 or len(parts) != 4 or list(whole[:2]) != list(parts[:2]):
        return None
    heads, size, width = parts[2], parts[3], whole[2]
    if not (isinstance(heads, int) and isinstance(size, int) and isinstance(width, int)):
        return None
    return _Heads(source, size, heads) if heads * size == width else None


def _fits(mask: ir.Value, query: _Heads, key: _Heads) -> bool:
    """Whether a mask is [batch or 1, heads or 1, queries, keys] and holds no infinities.

    The operator spreads no mask along queries or keys. A row of infinities alone gives NaN, which
    the graph may guard against and the operator does not.
    """
    if mask.dtype is not ir.DataType.FLOAT:
        return False
    array = ir.convenience.get_const_tensor(mask)
    if array is not None:
        shape, finite = mask.shape, bool(np.isfinite(array.numpy()).all())
    else:
        node = _made_by(mask, "Where")
        if node is None or node.inputs[0] is None:
            return False
        shape = mask.shape or node.inputs[0].shape
        sides = [_scalar(value) for value in node.inputs[1:]]
        finite = all(side is not None and math.isfinite(side) for side in sides)
    lengths = [heads.value.shape for heads in (query, key)]
    if not finite or shape is None or len(shape) != 4 or any(one is None for one in lengths):
        return False
    return list(shape[2:]) == [one[1] for one in lengths if one is not None]


def _is_zero(mask: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(mask)
    return tensor is not None and not tensor.numpy().any()


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    standard = node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx")
    return node if standard else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _perm(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    return () if attribute is None else tuple(attribute.as_ints())


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(-1)[0])
