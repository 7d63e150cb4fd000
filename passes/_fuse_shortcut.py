"""The shortcut of CIFAR's ResNets as one convolution, for `fuse`. Imports onnx_ir at the top.

He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 3.3,
option A: take every s-th pixel and put channels of zeros beside those that are there. That is a
pointwise convolution of stride s,

    y[o] = sum_i w[o, i] * x[i]        w[o, i] = 1 where o = i + before, else 0

which is exact for finite values: a sum of x and zeros. (An infinity would become NaN in the other
channels, because 0 * inf is NaN.) One kernel, which has an INT8 form, replaces Slices and a Pad,
and runtimes take the Add and the Relu behind it into that kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.passes._fuse_job import Job, producer, read_outside, replace
from optimc.passes._fuse_layer import constant
from optimc.passes._simplify_work import where

_LARGEST = 2**16
"""Elements of the weight beyond which multiplying by zeros costs more than copying."""


@dataclass(frozen=True, eq=False)
class _Shortcut:
    source: ir.Value
    slices: tuple[ir.Node, ...]
    strides: tuple[int, ...]
    channels: int
    before: int
    after: int

    @property
    def shape(self) -> tuple[int, ...]:
        filters = self.before + self.channels + self.after
        return (filters, self.channels, *[1] * len(self.strides))

    def weight(self) -> np.ndarray:
        weight = np.zeros(self.shape, np.float32)
        index = np.arange(self.channels)
        weight[self.before + index, index] = 1
        return weight


def fuse_shortcut(node: ir.Node, job: Job) -> None:
    """Slices with strides over space and a Pad with channels of zeros into one 1x1 Conv."""
    rule = "fuse_shortcut"
    if producer(node.inputs[0], "Slice") is None:
        return
    found = _shortcut(node)
    if isinstance(found, str):
        job.log.refuse(rule, where(node), found)
    elif job.allow(rule, node):
        assert isinstance(node.graph, ir.Graph)
        weight = job.new_constant(node.graph, found.weight(), f"{where(node)}_weight")
        attributes = [ir.AttrInt64s("strides", found.strides)]
        attributes.append(ir.AttrInt64s("kernel_shape", [1] * len(found.strides)))
        replace(node, found.slices, ir.Node("", "Conv", [found.source, weight], attributes))


def _shortcut(pad: ir.Node) -> _Shortcut | str:
    slices: list[ir.Node] = []
    strides: dict[int, int] = {}
    value = pad.inputs[0]
    while (node := producer(value, "Slice")) is not None:
        steps = _steps(node)
        if isinstance(steps, str):
            return steps
        if strides.keys() & steps.keys():
            return "one axis is sliced twice"
        strides |= steps
        slices.append(node)
        value = node.inputs[0]
    if value is None or value.shape is None or len(value.shape) < 3:
        return "it is no image: its rank is not known, or less than 3"
    if value.dtype != ir.DataType.FLOAT:
        return "it does not work on float32"
    rank, channels = len(value.shape), value.shape[1]
    if any(axis < 2 for axis in strides):
        return "the batch or the channels are sliced"
    if not isinstance(channels, int):
        return "the number of channels is not known"
    padded = _channel_pads(pad, rank)
    if isinstance(padded, str):
        return padded
    by_axis = tuple(strides.get(axis, 1) for axis in range(2, rank))
    found = _Shortcut(value, tuple(slices), by_axis, channels, *padded)
    if (size := int(np.prod(found.shape, dtype=np.int64))) > _LARGEST:
        return f"a weight of {size:,} elements, nearly all zero, would be slower"
    return read_outside(pad, slices) or found


def _steps(node: ir.Node) -> dict[int, int] | str:
    """The step of each axis of a Slice that takes whole axes, or why it is none."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return f"the rank of what {where(node)} slices is not known"
    rank = len(value.shape)
    tensors = [constant(given) for given in node.inputs[1:5]]
    if len(tensors) < 4 or any(tensor is None for tensor in tensors):
        return f"{where(node)} has no steps, or they are not constants"
    arrays = [tensor.numpy().reshape(-1).tolist() for tensor in tensors if tensor is not None]
    if any(len(array) != len(arrays[0]) for array in arrays):
        return f"the inputs of {where(node)} differ in length"
    found: dict[int, int] = {}
    for start, end, axis, step in zip(*arrays, strict=True):
        size = value.shape[axis]
        # A dim that is not known may be as large as the greatest int32, which exporters write.
        whole = end >= (size if isinstance(size, int) else 2**31 - 1)
        if start != 0 or step < 1 or not whole:
            return f"{where(node)} does not take a whole axis from its start"
        found[axis % rank] = step
    return {axis: step for axis, step in found.items() if step > 1}


def _channel_pads(pad: ir.Node, rank: int) -> tuple[int, int] | str:
    """How many channels of zeros a Pad puts before and behind, where it pads nothing else."""
    if pad.attributes.get_string("mode", "constant") != "constant":
        return f"its mode is {pad.attributes.get_string('mode')}"
    inputs = [*pad.inputs, None, None, None][1:4]
    amounts, value, axes = (constant(given) for given in inputs)
    if amounts is None or any(v is not None and constant(v) is None for v in inputs):
        return "its pads, value or axes are not constants"
    if value is not None and np.any(value.numpy() != 0):
        return f"it pads with {value.numpy().item():g}, not with zero"
    places = list(range(rank)) if axes is None else [int(a) % rank for a in axes.numpy()]
    if amounts.size != 2 * len(places):
        return "its pads do not fit its axes"
    whole = np.zeros((2, rank), np.int64)
    whole[:, places] = amounts.numpy().reshape(2, -1)
    before, after = (int(n) for n in whole[:, 1])
    whole[:, 1] = 0
    if np.any(whole) or before < 0 or after < 0:
        return "it pads more than the channels, or takes some away"
    return before, after
