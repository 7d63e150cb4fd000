"""Reads the quantized layers of an ONNX graph: Q/DQ, QOperator and dynamic form. Imports onnx_ir.

Q/DQ is QuantizeLinear and DequantizeLinear around float operators, as optimc, ONNX Runtime's tool
and NNCF write it; QOperator is integer operators (QLinearConv, QGemm of com.microsoft and so on);
in the dynamic form, activations get their range at run time (DynamicQuantizeLinear, MatMulInteger).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Form = Literal["Q/DQ", "QOperator", "dynamic"]
Role = Literal["input", "weight", "bias", "output"]

_PAIRS: Mapping[str, tuple[tuple[Role, int, int, int], ...]] = {
    # operator: role, and where the integers, their scale and their zero point stand
    "QLinearConv": (("input", 0, 1, 2), ("weight", 3, 4, 5), ("output", -1, 6, 7)),
    "QLinearMatMul": (("input", 0, 1, 2), ("input", 3, 4, 5), ("output", -1, 6, 7)),
    "QGemm": (("input", 0, 1, 2), ("weight", 3, 4, 5), ("output", -1, 7, 8)),
    "QLinearAdd": (("input", 0, 1, 2), ("input", 3, 4, 5), ("output", -1, 6, 7)),
    "QLinearMul": (("input", 0, 1, 2), ("input", 3, 4, 5), ("output", -1, 6, 7)),
    "QLinearSigmoid": (("input", 0, 1, 2), ("output", -1, 3, 4)),
    "QLinearLeakyRelu": (("input", 0, 1, 2), ("output", -1, 3, 4)),
    "QLinearSoftmax": (("input", 0, 1, 2), ("output", -1, 3, 4)),
    "QLinearAveragePool": (("input", 0, 1, 2), ("output", -1, 3, 4)),
    "QLinearGlobalAveragePool": (("input", 0, 1, 2), ("output", -1, 3, 4)),
    "MatMulIntegerToFloat": (("input", 0, 2, 4), ("weight", 1, 3, 5)),
    "DynamicQuantizeMatMul": (("weight", 1, 2, 3),),
    "MatMulInteger": (("input", 0, -1, 2), ("weight", 1, -1, 3)),
    "ConvInteger": (("input", 0, -1, 2), ("weight", 1, -1, 3)),
}
_DYNAMIC = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"})
Q, DQ = "QuantizeLinear", "DequantizeLinear"
_PLUMBING = frozenset({Q, DQ, "DynamicQuantizeLinear"})


@dataclass(frozen=True, eq=False)
class Quantized:
    """One tensor of a layer as integers."""

    role: Role
    name: str
    """The float value where there is one, else the integers'."""
    dtype: str
    scale: NDArray[np.float64] | None
    """[] or [channels]; None where it is made at run time."""
    zero_point: NDArray[np.int64]
    axis: int | None
    """Of the channels; None for one scale."""
    integers: ir.Value | None = None
    """The constant integers of a weight or bias."""
    floats: ir.Value | None = None
    """The value in front of the Q: what calibration can observe, or a float constant."""

    @property
    def granularity(self) -> str:
        """`tensor`, `channel` or `run time`."""
        if self.scale is None:
            return "run time"
        return "channel" if self.scale.size > 1 else "tensor"

    @property
    def limits(self) -> tuple[float, float] | None:
        """The floats that the integers span, over all channels."""
        if self.scale is None or not self.scale.size:
            return None
        info = np.iinfo(self.dtype)
        low, high = ((end - self.zero_point) * self.scale for end in (info.min, info.max))
        return float(low.min()), float(high.max())


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """An operator with the tensors that reach it, or leave it, as integers."""

    node: ir.Node
    form: Form
    tensors: tuple[Quantized, ...]

    @cached_property
    def name(self) -> str:
        """The node's name, or its first output's."""
        return self.node.name or str(self.node.outputs[0].name)

    def of(self, role: Role) -> list[Quantized]:
        """The tensors in one role."""
        return [tensor for tensor in self.tensors if tensor.role == role]


def quantized_layers(model: ir.Model) -> list[QuantizedLayer]:
    """The quantized layers of a model's main graph, in its order."""
    found = []
    for node in model.graph:
        if node.op_type in _PLUMBING:
            continue
        if node.op_type in _PAIRS:
            form: Form = "dynamic" if node.op_type in _DYNAMIC else "QOperator"
            tensors = tuple(_of_integer_operator(node))
        elif node.op_type == "QLinearConcat":
            form, tensors = "QOperator", tuple(_of_concat(node))
        else:
            form, tensors = "Q/DQ", tuple(_of_float_operator(node))
        if tensors and any(t.role != "output" for t in tensors):
            found.append(QuantizedLayer(node, form, tensors))
    return found


def array_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """A constant's array."""
    if value is None or (value.is_graph_input() and value.const_value is None):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DQ that makes a value."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == DQ else None


def sole_quantizer(value: ir.Value) -> ir.Node | None:
    """The Q that is the only reader of a value."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != Q:
        return None
    return uses[0].node


def behind(node: ir.Node, absorbed: tuple[str, ...] = ("Relu", "Clip")) -> ir.Value:
    """The result of a node, behind an activation that is its only reader."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type in absorbed:
        return uses[0].node.outputs[0]
    return output


def _of_float_operator(node: ir.Node) -> Iterator[Quantized]:
    for index, value in enumerate(node.inputs):
        dq = dequantizer(value)
        if dq is not None:
            yield _of_dq(dq, node, index)
    q = sole_quantizer(behind(node)) if node.outputs else None
    if q is not None:
        yield _parameters("output", q, q.inputs[0], None, q.inputs[0])


def _of_dq(dq: ir.Node, node: ir.Node, index: int) -> Quantized:
    integers = dq.inputs[0]
    q = integers.producer() if integers is not None else None
    q = q if q is not None and q.op_type == Q else None
    floats = q.inputs[0] if q is not None else None
    constant = integers if array_of(integers) is not None else None
    role: Role = "input"
    if constant is not None or array_of(floats) is not None:
        role = "bias" if index == 2 else "weight"
    return _parameters(role, dq, floats or dq.outputs[0], constant, floats)


def _parameters(
    role: Role,
    node: ir.Node,
    named: ir.Value | None,
    integers: ir.Value | None,
    floats: ir.Value | None,
) -> Quantized:
    """Of a Q or DQ node."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    attribute = node.attributes.get("axis")
    return _quantized(
        role,
        named,
        node.inputs[1],
        zero,
        _dtype(zero) or _dtype(node.inputs[0] if node.op_type == DQ else node.outputs[0]),
        attribute.as_int() if attribute is not None else 1,
        integers,
        floats,
    )


def _quantized(
    role: Role,
    named: ir.Value | None,
    scale: ir.Value | None,
    zero: ir.Value | None,
    dtype: str | None,
    axis: int | None,
    integers: ir.Value | None,
    floats: ir.Value | None = None,
) -> Quantized:
    scales, zeros = array_of(scale), array_of(zero)
    numbers = None if scales is None else scales.astype(np.float64)
    return Quantized(
        role,
        str(named.name) if named is not None else "?",
        dtype or "uint8",
        numbers,
        np.zeros((), np.int64) if zeros is None else zeros.astype(np.int64),
        axis if numbers is not None and numbers.size > 1 else None,
        integers,
        floats,
    )


def _dtype(value: ir.Value | None) -> str | None:
    if value is None or value.dtype is None or not value.dtype.is_integer():
        return None
    return str(value.dtype.numpy())


def _of_integer_operator(node: ir.Node) -> Iterator[Quantized]:
    for role, at, scale_at, zero_at in _PAIRS[node.op_type]:
        value = node.outputs[0] if at < 0 else _input(node, at)
        if value is None or (role == "output" and _input(node, scale_at) is None):
            continue
        zero = _input(node, zero_at)
        constant = value if array_of(value) is not None else None
        actual: Role = "weight" if role == "input" and constant is not None else role
        axis = 0 if node.op_type == "QLinearConv" else 1
        dtype = _dtype(value) or _dtype(zero)
        yield _quantized(actual, value, _input(node, scale_at), zero, dtype, axis, constant)


def _of_concat(node: ir.Node) -> Iterator[Quantized]:
    yield _quantized(
        "output",
        node.outputs[0],
        _input(node, 0),
        _input(node, 1),
        _dtype(_input(node, 1)),
        None,
        None,
    )
    for start in range(2, len(node.inputs) - 2, 3):
        value, scale, zero = (_input(node, start + i) for i in range(3))
        yield _quantized("input", value, scale, zero, _dtype(zero), None, None)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if 0 <= index < len(node.inputs) else None
