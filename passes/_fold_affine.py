"""Affine functions of each channel in front of a Conv, for `fold_preprocess`. Imports onnx_ir."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.core.onnx_names import NameTable
from optimc.core.passes import RewriteLog
from optimc.passes._fuse_layer import (
    Array,
    Layer,
    constant_array,
    drop_unused,
    fits,
    layer_of,
    per_channel,
    put_constants,
)
from optimc.passes._simplify_work import where

RULE = "fold_preprocess"
_AFFINE = frozenset({"Add", "Div", "Mul", "Sub"})
_LAYOUT = frozenset(
    {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "DepthToSpace"}
)


@dataclass(frozen=True)
class Chain:
    """``y = factor * x + shift`` for each channel, from `start` (x) to what the Conv reads (y)."""

    start: ir.Value
    nodes: tuple[ir.Node, ...]
    """From the first to the last."""
    factor: Array
    """[channels]"""
    shift: Array
    """[channels]"""


def fold_into(conv: ir.Node, names: NameTable, log: RewriteLog) -> None:
    """Folds what stands between an input of the model and `conv` into it, as far as it is exact."""
    chain = _chain_before(conv)
    if chain is None:
        return
    layer = chain if isinstance(chain, str) else layer_of(conv)
    if isinstance(chain, str) or isinstance(layer, str):
        log.refuse(RULE, where(conv), str(layer))
        return
    keeps_shift = _pads(conv) and bool(np.any(chain.shift != 0))
    if keeps_shift:
        reason = _why_not_scale(chain)
        if reason is not None:
            log.refuse(RULE, where(conv), reason)
            return
    weight, bias = _folded(layer, chain, keeps_shift=keeps_shift)
    reason = fits(layer, weight, bias)
    if reason is not None:
        log.refuse(RULE, where(conv), reason)
    elif log.allow(RULE, where(conv)):
        put_constants(layer, weight, bias, names)
        conv.replace_input_with(0, _shifted(chain, conv, names) if keeps_shift else chain.start)
        _remove(chain)


def _chain_before(conv: ir.Node) -> Chain | str | None:
    """The chain, why it cannot be folded, or None where the Conv reads no preprocessed input."""
    value, nodes = conv.inputs[0], []
    while value is not None and _operand(value.producer()) is not None:
        node = value.producer()
        assert node is not None
        nodes.append(node)
        value = node.inputs[_operand(node)]  # type: ignore[index]
    if value is None or not nodes or not _comes_from_input(value):
        return None
    weight = conv.inputs[1]
    if weight is None or weight.shape is None or not isinstance(weight.shape[1], int):
        return "the channels of its weight are not known"
    rank = len(weight.shape)
    channels = weight.shape[1] * (conv.attributes.get_int("group", 1) or 1)
    for node in nodes:
        output = node.outputs[0]
        if len(output.uses()) > 1 or output.is_graph_output():
            return f"the result of {where(node)} is also read elsewhere"
    return _composed(value, tuple(reversed(nodes)), rank, channels)


def _operand(node: ir.Node | None) -> int | None:
    """Which input of an affine operator is not the constant; None for any other node."""
    if node is None or node.domain != "" or node.op_type not in _AFFINE:
        return None
    constants = [constant_array(value) is not None for value in node.inputs]
    if constants == [False, True]:
        return 0
    return 1 if constants == [True, False] and node.op_type != "Div" else None


def _composed(start: ir.Value, nodes: tuple[ir.Node, ...], rank: int, channels: int) -> Chain | str:
    factor, shift = np.ones(channels), np.zeros(channels)
    for node in nodes:
        operand = _operand(node)
        assert operand is not None
        array = constant_array(node.inputs[1 - operand])
        assert array is not None
        row = per_channel(array, rank, channels)
        if row is None:
            return f"the constant of {where(node)} is not one number for each channel"
        if not np.isfinite(row).all() or (node.op_type == "Div" and np.any(row == 0)):
            return f"the constant of {where(node)} is zero or not finite"
        if node.op_type in ("Mul", "Div"):
            row = row if node.op_type == "Mul" else 1.0 / row
            factor, shift = factor * row, shift * row
        elif node.op_type == "Add":
            shift = shift + row
        elif operand == 0:
            shift = shift - row
        else:
            factor, shift = -factor, row - shift
    return Chain(start, nodes, factor, shift)


def _comes_from_input(value: ir.Value | None) -> bool:
    """Whether nothing but casts and layout stands between an input of the model and `value`."""
    while value is not None and not value.is_graph_input():
        producer = value.producer()
        if producer is None or producer.domain != "" or producer.op_type not in _LAYOUT:
            return False
        value = producer.inputs[0]
    return value is not None


def _pads(conv: ir.Node) -> bool:
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return any(conv.attributes.get_ints("pads", ()))


def _why_not_scale(chain: Chain) -> str | None:
    """Why the scale alone is not folded either where the padding keeps the shift outside."""
    if np.any(chain.factor == 0):
        return "a channel is multiplied by zero"
    if len(chain.nodes) == 1 and np.all(chain.factor == 1):
        return "the Conv pads with zeros that stand for the mean, so the shift stays in front of it"
    return None


def _folded(layer: Layer, chain: Chain, *, keeps_shift: bool) -> tuple[Array, Array]:
    """Weight [out, in / group, ...] and bias [out] for the chain's start, or for it shifted."""
    weight = layer.weight
    out, width = weight.shape[:2]
    groups = len(chain.factor) // width
    spread = (1,) * (weight.ndim - 2)

    def rows(values: Array) -> Array:
        """What each output channel sees of `values`, the numbers of the input channels."""
        each = np.repeat(values.reshape(groups, width), out // groups, axis=0)
        return each.reshape(out, width, *spread)

    bias = layer.bias
    if not keeps_shift:
        bias = bias + (weight * rows(chain.shift)).reshape(out, -1).sum(axis=1)
    return weight * rows(chain.factor), bias


def _shifted(chain: Chain, conv: ir.Node, names: NameTable) -> ir.Value:
    """``x + shift / factor``: what the folded weight multiplies; zero where y is zero."""
    rank = len(conv.inputs[1].shape)  # type: ignore[arg-type, union-attr]
    offset = (-chain.shift / chain.factor).astype(np.float32).reshape(-1, *[1] * (rank - 2))
    name = names.unique(f"{chain.start.name}_offset")
    tensor = ir.tensor(offset, name=name)
    constant = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(offset.shape),
        const_value=tensor,
    )
    assert conv.graph is not None
    conv.graph.register_initializer(constant)
    node = ir.node("Sub", [chain.start, constant], name=names.unique(f"{name}_sub"))
    result, read = node.outputs[0], conv.inputs[0]
    assert read is not None
    result.name, result.type = node.name, ir.TensorType(ir.DataType.FLOAT)
    result.shape = None if read.shape is None else ir.Shape(list(read.shape))
    conv.graph.insert_before(conv, [node])
    return result


def _remove(chain: Chain) -> None:
    for node in reversed(chain.nodes):
        inputs = list(node.inputs)
        drop_unused(node.outputs[0])
        for value in dict.fromkeys(inputs):
            if value is not None and value is not chain.start and value.producer() is None:
                drop_unused(value)
