"""Linear layers as `fuse` sees them: their constants in float64, and how new ones are put in.

Imports onnx_ir at the top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_names import NameTable
from optimc.passes._simplify_work import where

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with constants: y = weight * x + bias, by channel.

    `weight` is laid out as the operator wants it; `bias` is [channels], with Gemm's beta in it, and
    zero for a MatMul.
    """

    node: ir.Node
    weight: Array
    bias: Array

    def scaled(self, factor: Array) -> Array:
        """The weight with each output channel times its number in `factor` [channels]."""
        weight = self.weight
        if self.node.op_type == "Gemm":
            return weight * (factor[:, None] if _is_transposed(self.node) else factor)
        if self.node.op_type == "MatMul":
            return weight * factor
        if self.node.op_type == "Conv":
            return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        # ConvTranspose: [in, out / group, ...]; the inputs of one group share its output channels.
        group = _group(self.node)
        rows = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
        return weight * rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def layer_of(node: ir.Node) -> Layer | str:
    """The layer, or the reason why its constants cannot be changed."""
    if len(node.inputs) < 2:
        return f"{where(node)} has no weight"
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    tensor = constant(weight)
    if tensor is None:
        return f"the weight of {where(node)} is not a constant"
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return f"{tensor.dtype.name} weights round too coarsely: fuse before the conversion to it"
    array = _float64(tensor)
    if node.op_type == "ConvTranspose" and array.shape[0] % _group(node):
        return f"the groups of {where(node)} do not divide its channels"
    if node.op_type == "MatMul" and array.ndim != 2:
        return f"the weight of {where(node)} has {array.ndim} dims"
    channels = _channels(node, array)
    if bias is None:
        return Layer(node, array, np.zeros(channels))
    tensor = constant(bias)
    if tensor is None:
        return f"the bias of {where(node)} is not a constant"
    row = per_channel(_float64(tensor), 2, channels) if node.op_type == "Gemm" else _float64(tensor)
    if row is None or row.shape != (channels,):
        return f"the bias of {where(node)} is not one number for each channel"
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return Layer(node, array, row * beta)


def per_channel(array: Array, rank: int, channels: int) -> Array | None:
    """What broadcasting `array` adds to each channel (axis 1) of a tensor of `rank`, or None.

    None where it would add different numbers inside a channel or to another rank.
    """
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(dim != 1 for axis, dim in enumerate(shape) if axis != 1) or shape[1] not in (
        1,
        channels,
    ):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for all that a feed may decide."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def constant_array(value: ir.Value | None) -> Array | None:
    """The constant in float64, or None."""
    tensor = constant(value)
    return None if tensor is None else _float64(tensor)


def fits(layer: Layer, weight: Array, bias: Array) -> str | None:
    """Why new constants cannot be written in the layer's dtype, or None."""
    dtype = _dtype(layer.node)
    with np.errstate(over="ignore"):
        arrays = [array.astype(dtype.numpy()) for array in (weight, bias)]
    if all(bool(np.isfinite(array).all()) for array in arrays):
        return None
    return f"the fused constants would not be finite in {dtype.name}"


def put_constants(layer: Layer, weight: Array | None, bias: Array, names: NameTable) -> None:
    """Gives the layer a new weight (None: the old one stays) and a new bias [channels]."""
    node, dtype = layer.node, _dtype(layer.node)
    if weight is not None:
        _put(node, 1, weight, dtype, names.unique(f"{where(node)}_weight"))
    if np.any(bias) or (len(node.inputs) > 2 and node.inputs[2] is not None):
        _put(node, 2, bias, dtype, names.unique(f"{where(node)}_bias"))
    if "beta" in node.attributes:
        del node.attributes["beta"]


def _put(node: ir.Node, index: int, array: Array, dtype: ir.DataType, name: str) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, None)
    if old is not None and old.name and drop_unused(old):
        name = old.name
    tensor = ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy())), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    assert node.graph is not None
    node.graph.register_initializer(value)
    node.replace_input_with(index, value)


def drop_unused(value: ir.Value) -> bool:
    """Removes an initializer, or the producer of this one output, where nothing reads it.

    True where it was removed.
    """
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return False
    producer = value.producer()
    if producer is not None and producer.graph is not None:
        producer.graph.remove(producer, safe=True)
        return True
    if value.graph is None or not value.is_initializer():
        return False
    assert value.name is not None
    del value.graph.initializers[value.name]
    return True


def absorb(node: ir.Node, following: ir.Node) -> None:
    """Removes `following`; the output of `node` becomes its output: name, type and source name."""
    value, output = node.outputs[0], following.outputs[0]
    inputs, name = following.inputs, output.name
    value.type = output.type if output.type is not None else value.type
    value.shape = output.shape if output.shape is not None else value.shape
    value.meta.pop(SOURCE_KEY, None)
    if SOURCE_KEY in output.meta:
        value.meta[SOURCE_KEY] = output.meta[SOURCE_KEY]
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    assert following.graph is not None
    following.graph.remove(following, safe=True)
    output.name, value.name = None, name
    for old in dict.fromkeys(inputs):
        if old is not None and old is not value:
            drop_unused(old)


def _dtype(node: ir.Node) -> ir.DataType:
    tensor = constant(node.inputs[1])
    assert tensor is not None
    return tensor.dtype


def _float64(tensor: ir.TensorProtocol) -> Array:
    return tensor.numpy().astype(np.float64)


def _channels(node: ir.Node, weight: Array) -> int:
    if node.op_type == "Gemm":
        return int(weight.shape[0 if _is_transposed(node) else 1])
    if node.op_type == "MatMul":
        return int(weight.shape[1])
    return int(weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * _group(node))


def _group(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) or 1


def _is_transposed(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0))
