"""Which channels are dead, and how they go, for `remove_dead_channels`. Imports onnx_ir."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_names import NameTable
from optimc.passes._dead_follow import End, Place, Step, Way
from optimc.passes._dead_values import BINARY, UNARY, binary, normalized, unary
from optimc.passes._equalize_pairs import inputs_first
from optimc.passes._fuse_layer import (
    Array,
    Layer,
    constant_array,
    drop_unused,
    fits,
    put_constants,
)
from optimc.passes._simplify_work import where

Bools = NDArray[np.bool_]
Channels = NDArray[np.int64]


@dataclass(frozen=True)
class Dead:
    """Channels that can go."""

    channels: Channels
    values: dict[ir.Node, Array]
    """By the layer that sums over them: the constant of every channel (NaN: not constant)."""


def find_dead(way: Way) -> tuple[Dead | None, str | None]:
    """The channels that can go, one staying at least; and why constant ones cannot."""
    constants = _constants(way)
    gone = np.ones(way.channels, np.bool_)
    blocked = np.zeros(way.channels, np.bool_)
    reason = None
    for end in way.ends:
        values = constants[end.layer.node]
        silent = (values == 0) | _unread(end, way.channels)
        why = _why_not_fold(end)
        foldable = ~np.isnan(values)
        if why is not None and bool((foldable & ~silent).any()):
            blocked |= foldable & ~silent
            reason = why
        gone &= silent | (foldable if why is None else np.zeros_like(foldable))
    dead = np.flatnonzero(gone)
    if len(dead) == way.channels:
        dead = dead[1:]
    count = int(np.count_nonzero(blocked))
    text = None if reason is None else f"{count} of its channels are constant, but {reason}"
    return (Dead(dead, constants) if len(dead) else None), text


def _constants(way: Way) -> dict[ir.Node, Array]:
    """By end: what each channel is there, NaN where it is not constant."""
    layer = way.layer
    flat = np.moveaxis(layer.weight, _output_axis(layer), 0).reshape(way.channels, -1)
    start = np.where(np.any(flat != 0, axis=1), np.nan, layer.bias)
    known = {layer.node.outputs[0]: start}
    for step in way.steps:
        known[step.node.outputs[0]] = _behind(step, known, way.channels)
    return {e.layer.node: known[e.layer.node.inputs[0]] for e in way.ends}  # type: ignore[index]


def _behind(step: Step, known: dict[ir.Value, Array], channels: int) -> Array:
    node = step.node
    first = next(known[v] for v in node.inputs if v in known)
    if node.op_type in UNARY:
        numbers = {a.name: a.value for a in node.attributes.values() if _is_number(a)}
        return unary(node.op_type, first, numbers)
    if node.op_type in BINARY:
        pair = [_operand(step, i, known, channels) for i in range(2)]
        return binary(node.op_type, pair[0], pair[1])
    if node.op_type == "Clip":
        bounds = [constant_array(value) for value in node.inputs[1:]] + [None, None]
        low, high = (None if b is None else b.reshape(-1)[0] for b in bounds[:2])
        for limit, take in ((low, np.maximum), (high, np.minimum)):
            first = first if limit is None else take(first, limit)
        return first
    if node.op_type == "BatchNormalization":
        rows = tuple(_row(step, i, channels) for i in range(1, 5))
        epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
        return normalized(first, rows, epsilon)  # type: ignore[arg-type]
    if node.op_type == "AveragePool" and _pads_count(node):
        return np.where(first == 0, first, np.nan)
    return first  # MaxPool pads with nothing; means of what is constant; and what moves data


def _is_number(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.INT)


def _operand(step: Step, index: int, known: dict[ir.Value, Array], channels: int) -> Array:
    value = step.node.inputs[index]
    return known[value] if value in known else _row(step, index, channels)


def _row(step: Step, index: int, channels: int) -> Array:
    """What a constant has for each channel; NaN where a channel's entries differ."""
    array = constant_array(step.node.inputs[index])
    assert array is not None, "checked when the way was followed"
    if array.size == 1:
        return np.full(channels, array.reshape(-1)[0])
    # A constant with more than one entry has them along the channels' axis.
    entries = array.reshape(-1)[step.place.positions(np.arange(channels))]
    parts = entries.reshape(channels, step.place.block)
    return np.where((parts == parts[:, :1]).all(axis=1), parts[:, 0], np.nan)


def _pads_count(node: ir.Node) -> bool:
    """Whether zeros of the padding count in a mean."""
    return bool(node.attributes.get_int("count_include_pad", 0)) and _pads(node)


def _pads(node: ir.Node) -> bool:
    pads = node.attributes.get("pads")
    given = pads is not None and any(pads.as_ints())
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    return given or ceil or auto not in ("NOTSET", "VALID")


def _unread(end: End, channels: int) -> Bools:
    """Where all weights for a channel are zero."""
    columns = _columns(end, np.arange(channels))
    return np.asarray(~np.any(columns != 0, axis=(1, 2)))


def _columns(end: End, channels: Channels) -> Array:
    """The weights for these channels: [channels, block, everything else]."""
    axis = _input_axis(end.layer)
    taken = np.take(end.layer.weight, end.place.positions(channels), axis=axis)
    return np.moveaxis(taken, axis, 0).reshape(len(channels), end.place.block, -1)


def _why_not_fold(end: End) -> str | None:
    """Why a constant input cannot go into the bias, or None."""
    node = end.layer.node
    if node.op_type == "Conv" and _pads(node):
        return f"`{where(node)}` pads its input with zeros: its borders would differ"
    if node.op_type == "MatMul":
        return f"the MatMul `{where(node)}` has no bias that could take them"
    return None


def why_not_fit(way: Way, dead: Dead) -> str | None:
    """Why the new constants cannot be written, or None."""
    for end in way.ends:
        reason = fits(end.layer, end.layer.weight, _folded_bias(end, dead))
        if reason is not None:
            return reason
    return None


def remove(way: Way, dead: Dead, names: NameTable) -> None:
    """Takes the channels out of the layer, of all that carries them, and of the layers behind."""
    layer, gone = way.layer, dead.channels
    for end in way.ends:
        kept = np.delete(end.layer.weight, end.place.positions(gone), axis=_input_axis(end.layer))
        put_constants(end.layer, kept, _folded_bias(end, dead), names)
    rows = np.delete(layer.weight, gone, axis=_output_axis(layer))
    put_constants(layer, rows, np.delete(layer.bias, gone), names)
    _shrink(layer.node.outputs[0], way.place, gone)
    for step in way.steps:
        _shrink_constants(step, gone, names)
        _shrink(step.node.outputs[0], step.place, gone)


def _folded_bias(end: End, dead: Dead) -> Array:
    """The bias, with what the constant channels add to each output."""
    layer, values = end.layer, dead.values[end.layer.node][dead.channels]
    added = np.where(np.isnan(values), 0.0, values)
    axis = _input_axis(layer)
    moved = np.moveaxis(layer.weight, axis, 0)
    taken = moved[end.place.positions(dead.channels)]
    factors = np.repeat(added, end.place.block)
    # What is left behind the axis of channels is [outputs, space...].
    total = np.tensordot(factors, taken, axes=1).reshape(len(layer.bias), -1).sum(axis=1)
    alpha = layer.node.attributes.get_float("alpha", 1.0) if layer.node.op_type == "Gemm" else 1.0
    return np.asarray(layer.bias + alpha * total)


def _shrink_constants(step: Step, gone: Channels, names: NameTable) -> None:
    node = step.node
    if node.op_type == "Reshape":
        _shrink_target(step, gone, names)
        return
    if node.op_type not in BINARY and node.op_type != "BatchNormalization":
        return
    for index, value in enumerate(node.inputs):
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if index in step.carried or tensor is None or tensor.size == 1:
            continue
        array = tensor.numpy()
        axis = next(i for i, size in enumerate(array.shape) if size != 1)
        _put(node, index, np.delete(array, step.place.positions(gone), axis=axis), names)


def _shrink_target(step: Step, gone: Channels, names: NameTable) -> None:
    value = step.node.inputs[1]
    assert value is not None
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    target = tensor.numpy().copy()
    if target[1] > 0:
        target[1] -= len(gone) * step.place.block
        _put(step.node, 1, target, names)


def _put(node: ir.Node, index: int, array: NDArray[np.generic], names: NameTable) -> None:
    old = node.inputs[index]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    name = names.unique(f"{where(node)}_{index}")
    tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape),
        const_value=tensor,
    )  # fmt: skip
    node.graph.register_initializer(value)
    node.replace_input_with(index, value)
    drop_unused(old)


def _shrink(value: ir.Value, place: Place, gone: Channels) -> None:
    """The shape of a value that lost channels; it is no value of the source any more."""
    value.meta.pop(SOURCE_KEY, None)
    if value.shape is not None:
        dims = list(value.shape)
        size = dims[place.axis]
        if isinstance(size, int):
            dims[place.axis] = size - len(gone) * place.block
        value.shape = ir.Shape(dims)


def _output_axis(layer: Layer) -> int:
    return 1 if inputs_first(layer.node) else 0


def _input_axis(layer: Layer) -> int:
    return 0 if inputs_first(layer.node) else 1


def dead_rows(layer: Layer) -> int:
    """How many output channels have no weight at all."""
    flat = np.moveaxis(layer.weight, _output_axis(layer), 0).reshape(len(layer.bias), -1)
    return int(np.count_nonzero(~np.any(flat != 0, axis=1)))
