"""Where the output channels of a layer go, for `remove_dead_channels`. Imports onnx_ir.

Channels are followed through everything that treats each by itself, up to the layers that sum over
them. Nodes are taken in the graph's order, so that a node whose inputs all carry the channels, as
in x * sigmoid(x), is seen with all of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.passes._dead_values import BINARY, UNARY
from optimc.passes._fuse_layer import Layer, constant_array, layer_of
from optimc.passes._simplify_work import where

POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the channels stand in a value: channel c is ``offset + c * block`` and the `block - 1`
    entries behind it, along `axis`."""

    axis: int
    offset: int = 0
    block: int = 1

    def positions(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The entries of these channels."""
        starts = self.offset + channels * self.block
        return (starts[:, None] + np.arange(self.block)).reshape(-1)


@dataclass(frozen=True)
class Step:
    """A node that treats each channel by itself."""

    node: ir.Node
    carried: Mapping[int, Place]
    """By input."""
    place: Place
    """In the output."""


@dataclass(frozen=True)
class End:
    """A layer that sums over the channels."""

    layer: Layer
    place: Place


@dataclass
class Way:
    """All that reads the channels of one layer."""

    layer: Layer
    place: Place
    steps: list[Step] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """How many channels the layer has."""
        return len(self.layer.bias)


def starting_layer(node: ir.Node) -> tuple[Layer, Place] | str:
    """A layer whose output channels can go, with their place in its output; or why they cannot."""
    layer = layer_of(node)
    if isinstance(layer, str):
        return layer
    if node.attributes.get_int("group", 1) != 1:
        return "a grouped convolution ties its channels to others"
    if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
        return "its weight or bias holds infinities or NaNs"
    if node.op_type != "MatMul":
        return layer, Place(1)
    shape = node.outputs[0].shape
    if shape is None or len(shape) < 2:
        return "the rank of its output is not known"
    return layer, Place(len(shape) - 1)


def follow(layer: Layer, place: Place, order: Mapping[ir.Node, int]) -> Way | str:
    """The way of a layer's channels, or why it cannot be followed to its ends."""
    way = Way(layer, place)
    carried = {layer.node.outputs[0]: place}
    queue: list[tuple[int, ir.Node]] = []
    value, done = layer.node.outputs[0], set[ir.Node]()
    while True:
        reason = _enqueue(value, queue, order, done)
        if reason is not None:
            return reason
        if not queue:
            return way
        node = heapq.heappop(queue)[1]
        inputs = {i: carried[v] for i, v in enumerate(node.inputs) if v in carried}
        found = _step(node, inputs, way.channels)
        if isinstance(found, str):
            return f"{node.op_type} `{where(node)}` reads it: {found}"
        if isinstance(found, End):
            way.ends.append(found)
            continue
        way.steps.append(found)
        value = node.outputs[0]
        carried[value] = found.place


def _enqueue(
    value: ir.Value,
    queue: list[tuple[int, ir.Node]],
    order: Mapping[ir.Node, int],
    done: set[ir.Node],
) -> str | None:
    """Adds the readers of a value in the graph's order; why that cannot be done, or None."""
    if value.is_graph_output():
        return f"`{value.name}` is an output of the model"
    for reader in value.consumers():
        if reader not in order:
            return f"`{value.name}` is read inside a subgraph"
        if reader not in done:
            done.add(reader)
            heapq.heappush(queue, (order[reader], reader))
    return None


def _step(node: ir.Node, carried: Mapping[int, Place], channels: int) -> Step | End | str:
    if node.domain not in ("", "ai.onnx"):
        return "it is of another domain"
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "it has several outputs"
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return _end(node, carried)
    if node.op_type in BINARY:
        return _binary(node, carried, channels)
    if node.op_type == "Concat":
        return _concat(node, carried)
    if set(carried) != {0}:
        return "it reads it as more than its first input"
    place = carried[0]
    if node.op_type in UNARY:
        return Step(node, carried, place)
    if node.op_type == "Clip":
        bounds = [constant_array(v) for v in node.inputs[1:] if v is not None]
        known = all(bound is not None and bound.size == 1 for bound in bounds)
        return Step(node, carried, place) if known else "its bounds are not constant"
    if node.op_type in POOLS and place.axis == 1:
        return Step(node, carried, place)
    if node.op_type == "BatchNormalization":
        return _batchnorm(node, carried)
    mover = _MOVERS.get(node.op_type)
    moved = mover(node, place) if mover else "it does not treat each channel by itself"
    return moved if isinstance(moved, str) else Step(node, carried, moved)


def _end(node: ir.Node, carried: Mapping[int, Place]) -> End | str:
    """A layer that sums over the channels, and nothing else."""
    if set(carried) != {0}:
        return "it reads it as more than its first input"
    place, source = carried[0], node.inputs[0]
    layer = layer_of(node)
    if isinstance(layer, str):
        return layer
    if node.attributes.get_int("group", 1) != 1:
        return "a grouped convolution ties its channels to others"
    if not np.isfinite(layer.weight).all():
        return "its weight holds infinities or NaNs"
    if node.attributes.get_int("transA", 0):
        return "its first operand is transposed"
    last = 1
    if node.op_type == "MatMul":
        if source is None or source.shape is None:
            return "the rank of its input is not known"
        last = len(source.shape) - 1
    return End(layer, place) if place.axis == last else "it does not sum over the channels"


def _binary(node: ir.Node, carried: Mapping[int, Place], channels: int) -> Step | str:
    """Arithmetic with a constant for each channel, or of two values with the same channels."""
    output = node.outputs[0]
    if output.shape is None:
        return "the rank of its output is not known"
    places = set(carried.values())
    if len(places) > 1:
        return "its operands have the channels in different places"
    (place,) = places
    for index, value in enumerate(node.inputs):
        if index in carried:
            if value is None or value.shape is None or len(value.shape) != len(output.shape):
                return "an operand has another rank than the result"
            continue
        array = constant_array(value)
        if array is None:
            return "the other operand would have to lose the same channels"
        if not _by_channel(array.shape, len(output.shape), place, output):
            return "its constant is not one number for each channel"
    return Step(node, carried, place)


def _by_channel(shape: tuple[int, ...], rank: int, place: Place, output: ir.Value) -> bool:
    """Whether a constant of `shape` has one number, or one for each entry of the channels' axis."""
    if len(shape) > rank:
        return False
    full = (1,) * (rank - len(shape)) + shape
    size = _size(output, place.axis)
    others = all(dim == 1 for axis, dim in enumerate(full) if axis != place.axis)
    return others and full[place.axis] in (1, size)


def _batchnorm(node: ir.Node, carried: Mapping[int, Place]) -> Step | str:
    if carried[0].axis != 1 or _flag(node, "training_mode"):
        return "it does not treat each channel by itself"
    rows = [constant_array(value) for value in node.inputs[1:5]]
    if len(rows) != 4 or any(row is None or row.ndim != 1 for row in rows):
        return "its statistics are not constant"
    return Step(node, carried, carried[0])


def _concat(node: ir.Node, carried: Mapping[int, Place]) -> Step | str:
    if len(carried) != 1:
        return "it joins the channels with themselves"
    ((index, place),) = carried.items()
    value = node.inputs[index]
    if value is None or value.shape is None:
        return "the rank of its inputs is not known"
    if (node.attributes.get_int("axis", 0) or 0) % len(value.shape) != place.axis:
        return "it joins along another axis, where all parts would have to lose the same channels"
    sizes = [None if v is None else _size(v, place.axis) for v in node.inputs[:index]]
    if any(size is None for size in sizes):
        return "the sizes of its inputs are not known"
    before = sum(size for size in sizes if size is not None)
    return Step(node, carried, Place(place.axis, place.offset + before, place.block))


def _transpose(node: ir.Node, place: Place) -> Place | str:
    order = node.attributes.get("perm")
    source = node.inputs[0]
    if order is not None:
        axes = list(order.as_ints())
    elif source is not None and source.shape is not None:
        axes = list(reversed(range(len(source.shape))))
    else:
        return "the rank of its input is not known"
    return Place(axes.index(place.axis), place.offset, place.block)


def _reduce_mean(node: ir.Node, place: Place) -> Place | str:
    source = node.inputs[0]
    given = node.attributes.get("axes")
    array = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or (given is None and array is None):
        return "its axes are not known"
    raw = given.as_ints() if given is not None else np.asarray(array).reshape(-1)
    axes = {int(axis) % len(source.shape) for axis in raw}
    if not axes or place.axis in axes:
        return "it takes the mean over the channels"
    before = sum(axis < place.axis for axis in axes)
    kept = node.attributes.get_int("keepdims", 1)
    return place if kept else Place(place.axis - before, place.offset, place.block)


def _flatten(node: ir.Node, place: Place) -> Place | str:
    axis = node.attributes.get_int("axis", 1)
    return _joined(node, place) if axis == 1 else "it joins the channels with what is before them"


def _reshape(node: ir.Node, place: Place) -> Place | str:
    target = constant_array(node.inputs[1])
    if target is None or target.size != 2 or _flag(node, "allowzero"):
        return "it is not a flattening"
    return _joined(node, place)


def _joined(node: ir.Node, place: Place) -> Place | str:
    """[n, channels, a, b] as [n, channels * a * b]."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or place.axis != 1 or place.block != 1:
        return "it is not a flattening behind the channels"
    sizes = [_size(source, axis) for axis in range(1, len(source.shape))]
    if any(size is None for size in sizes) or not all(sizes):
        return "the sizes of what it joins are not known"
    block = math.prod(size for size in sizes[1:] if size is not None)
    if output.shape is None or len(output.shape) != 2 or _size(output, 1) != sizes[0] * block:  # type: ignore[operator]
        return "it is not a flattening behind the channels"
    return Place(1, place.offset * block, block)


_MOVERS = {
    "Flatten": _flatten,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Transpose": _transpose,
}


def _flag(node: ir.Node, name: str) -> bool:
    return node.attributes.get_int(name, 0) != 0


def _size(value: ir.Value, axis: int) -> int | None:
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None
