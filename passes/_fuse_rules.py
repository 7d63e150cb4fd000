"""The rules of `fuse`, each at the node that it ends at. Imports onnx_ir at the top."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from optimc.passes._fuse_affine import fuse_bias, fuse_scale
from optimc.passes._fuse_gelu import fuse_gelu
from optimc.passes._fuse_job import Job, only_reader, producer, rewrite_layer
from optimc.passes._fuse_layer import (
    Array,
    Layer,
    constant,
    constant_array,
    drop_unused,
    layer_of,
)
from optimc.passes._fuse_norm import fuse_layer_norm
from optimc.passes._fuse_product import fuse_gemm, fuse_transpose
from optimc.passes._fuse_shortcut import fuse_shortcut
from optimc.passes._simplify_work import where

_EPSILON = 1e-5
"""BatchNormalization's epsilon where the node has none, by the ONNX specification."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LAYERS = (*_CONVOLUTIONS, "Gemm")


def fuse_batchnorm(node: ir.Node, job: Job) -> None:
    """BatchNormalization into the layer before it."""
    rule, found = "fuse_batchnorm", _batchnorm(node)
    if isinstance(found, str):
        job.log.refuse(rule, where(node), found)
        return
    layer, factor, shift = found
    rewrite_layer(rule, node, layer, layer.scaled(factor), layer.bias * factor + shift, job)


def fusible_batchnorms(graph: ir.Graph) -> list[ir.Node]:
    """The BatchNormalizations that `fuse` would put into a layer."""
    nodes = (n for n in graph if n.op_type == "BatchNormalization" and n.domain == "")
    return [node for node in nodes if not isinstance(_batchnorm(node), str)]


def _batchnorm(node: ir.Node) -> tuple[Layer, Array, Array] | str:
    """The layer before a BatchNormalization with factor and shift, or why there is none."""
    before = producer(node.inputs[0], *_LAYERS)
    if before is None:
        return "it does not follow a Conv, ConvTranspose or Gemm"
    layer = only_reader(before, node) or layer_of(before)
    affine = layer if isinstance(layer, str) else _affine(node, len(layer.bias))
    if isinstance(layer, str) or isinstance(affine, str):
        return str(affine)
    return layer, *affine


def fuse_pad(node: ir.Node, job: Job) -> None:
    """Pads with zeros into the Conv after them; other readers keep their Pad."""
    while not job.stopped:
        value = node.inputs[0]
        pad = producer(value, "Pad")
        if value is None or pad is None:
            return
        pads = _pads_together(pad, node)
        if isinstance(pads, str):
            job.log.refuse("fuse_pad", where(pad), pads)
            return
        if not job.allow("fuse_pad", pad):
            return
        node.replace_input_with(0, pad.inputs[0])
        node.attributes.pop("auto_pad", None)
        node.attributes.add(ir.AttrInt64s("pads", pads))
        constants = pad.inputs[1:]
        if drop_unused(value):
            for old in dict.fromkeys(constants):
                if old is not None:
                    drop_unused(old)


RULES: Mapping[str, tuple[Callable[[ir.Node, Job], None], ...]] = {
    "Add": (fuse_bias, fuse_gemm),
    "BatchNormalization": (fuse_batchnorm,),
    "Conv": (fuse_pad,),
    "Div": (fuse_layer_norm, fuse_gelu, fuse_scale),
    "Gemm": (fuse_transpose,),
    "MatMul": (fuse_transpose,),
    "Mul": (fuse_gelu, fuse_scale),
    "Pad": (fuse_shortcut,),
    "Sub": (fuse_bias,),
}
"""The rules by the operator at which each looks."""


def _affine(node: ir.Node, channels: int) -> tuple[Array, Array] | str:
    """Factor and shift for each channel of a BatchNormalization, or why there are none."""
    if node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if any(output.name for output in node.outputs[1:]):
        return "it gives the statistics of the batch, as in training"
    arrays = [constant_array(value) for value in node.inputs[1:5]]
    found = [array for array in arrays if array is not None]
    if len(found) < 4:
        return "its parameters are not all constants"
    if any(array.shape != (channels,) for array in found):
        return "its parameters are not one number for each channel"
    if not all(bool(np.isfinite(array).all()) for array in found):
        return "its parameters are not all finite"
    gamma, beta, mean, variance = found
    if np.any(variance <= 0):
        channel = int(np.flatnonzero(variance <= 0)[0])
        return f"the variance of channel {channel} is {variance[channel]:g}, not positive"
    epsilon = node.attributes.get_float("epsilon", _EPSILON)
    factor = gamma / np.sqrt(variance + np.float64(np.float32(epsilon)))
    return factor, beta - mean * factor


def _pads_together(pad: ir.Node, conv: ir.Node) -> list[int] | str:
    """The pads of both nodes for the spatial axes, begins then ends, or why it does not work."""
    if pad.attributes.get_string("mode", "constant") != "constant":
        return f"its mode is {pad.attributes.get_string('mode')}"
    inputs = [*pad.inputs, None, None, None][1:4]
    amounts, value, axes = (constant_array(v) for v in inputs)
    if amounts is None or any(v is not None and constant(v) is None for v in inputs):
        return "its pads, value or axes are not constants"
    if value is not None and np.any(value != 0):
        return f"it pads with {value.item():g}, not with zero"
    weight = conv.inputs[1]
    if weight is None or weight.shape is None:
        return f"the rank of {where(conv)} is not known"
    auto_pad = conv.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return f"{where(conv)} has {auto_pad} padding, which goes by the padded size"
    rank = len(weight.shape)
    whole = np.zeros((2, rank), dtype=np.int64)
    places = range(rank) if axes is None else (axes.astype(np.int64) % rank).tolist()
    if amounts.size != 2 * len(places):
        return f"its pads do not fit the rank of {where(conv)}"
    whole[:, list(places)] = amounts.astype(np.int64).reshape(2, -1)
    if np.any(whole < 0):
        return "it takes elements away"
    if np.any(whole[:, :2]):
        return "it pads the batch or the channels"
    own = conv.attributes.get_ints("pads", None) if auto_pad == "NOTSET" else None
    spatial = whole[:, 2:].reshape(-1)
    return [int(n) for n in (spatial if own is None else spatial + np.asarray(own))]
