"""Rules for Q and DQ in graphs for TensorRT: explicit quantization with int8 and zero points of 0.

Source: NVIDIA TensorRT, "Working with quantized types": placement recommendations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimc.targets.tensorrt_lint import Rule, Setting, attribute, dtype_of, rank_of

if TYPE_CHECKING:
    import onnx_ir as ir

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1}
_LEAST_SIZE = 16
_FIRST_FP16_SCALES = 19
_LAST_FP16_SCALES = 22


def _is_qdq(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in (_Q, _DQ) and node.domain in ("", "ai.onnx")


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _zero(node: ir.Node, setting: Setting) -> str | None:
    zero = _zero_point(node) if _is_qdq(node) else None
    if zero is None:
        return None
    if zero.const_value is None:
        return "its zero point is not constant"
    return "its zero point is not 0" if np.any(zero.const_value.numpy()) else None


def _unsigned(node: ir.Node, setting: Setting) -> str | None:
    if not _is_qdq(node):
        return None
    quantized = node.outputs[0] if node.op_type == _Q else node.inputs[0]
    types = {dtype_of(quantized), dtype_of(_zero_point(node))}
    if "uint8" in types:
        return "it is uint8, which TensorRT takes for int8 with no more than a warning"
    return None


def _int32(node: ir.Node, setting: Setting) -> str | None:
    if _is_qdq(node) and node.op_type == _DQ and dtype_of(node.inputs[0]) == "int32":
        return "a DQ of an int32 bias does not parse"
    return None


def _scale(node: ir.Node, setting: Setting) -> str | None:
    if not _is_qdq(node):
        return None
    scale = node.inputs[1]
    if not setting.is_constant(scale):
        return "its scale is not constant"
    constant = scale.const_value if scale is not None else None
    if constant is not None and not np.all(constant.numpy().astype(np.float64) > 0):
        return "its scale is not above 0"
    return None


def _half_scale(node: ir.Node, setting: Setting) -> str | None:
    if not _is_qdq(node) or dtype_of(node.inputs[1]) != "float16":
        return None
    if setting.opset < _FIRST_FP16_SCALES:
        return f"scales are float16 from opset {_FIRST_FP16_SCALES} on, here {setting.opset}"
    if setting.opset > _LAST_FP16_SCALES:
        return (
            f"from opset {_LAST_FP16_SCALES + 1} on, ONNX Runtime refuses scales of mixed types, "
            "so the graph cannot be verified"
        )
    return None


def _alone(node: ir.Node, setting: Setting) -> str | None:
    if not _is_qdq(node) or node.op_type != _Q:
        return None
    uses = [use.node for use in node.outputs[0].uses()]
    others = [user.op_type for user in uses if user.op_type != _DQ]
    if others:
        return f"{others[0]} reads its integers; only a DQ may"
    return None


def _per_channel_activation(node: ir.Node, setting: Setting) -> str | None:
    if not _is_qdq(node) or setting.is_constant(_origin(node)):
        return None
    scale = node.inputs[1].const_value if node.inputs[1] is not None else None
    if scale is not None and int(np.prod(scale.shape.numpy())) > 1:
        return "an activation has one scale, not one a channel"
    return None


def _origin(node: ir.Node) -> ir.Value | None:
    """What a Q, or the Q before a DQ, reads."""
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if node.op_type == _DQ and producer is not None and producer.op_type == _Q:
        return producer.inputs[0]
    return value


def _weight_axis(node: ir.Node, setting: Setting) -> str | None:
    wanted = _WEIGHT_AXIS.get(node.op_type)
    weight = _dequantizer(node, 1) if wanted is not None else None
    if weight is None or wanted is None:
        return None
    scale = weight.inputs[1].const_value if weight.inputs[1] is not None else None
    rank = rank_of(weight.outputs[0])
    if scale is None or rank is None or int(np.prod(scale.shape.numpy())) == 1:
        return None
    axis = int(attribute(weight, "axis", 1)) % rank
    return f"its weight has scales along axis {axis}, not {wanted}" if axis != wanted else None


def _dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    return producer if _is_qdq(producer) and producer.op_type == _DQ else None  # type: ignore[union-attr]


def _half_quantized(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    sides = [_dequantizer(node, index) is not None for index in (0, 1)]
    if any(sides) and not all(sides):
        return "only one of its two operands is quantized: it runs in float"
    return None


def _tiny(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type not in ("Gemm", "MatMul") or _dequantizer(node, 1) is None:
        return None
    first = node.inputs[0]
    if first is not None and first.shape is not None and _rows(node, first.shape) == 1:
        return "it has one row: reading the weight takes all the time, INT8 or not"
    weight = node.inputs[1]
    if weight is None or weight.shape is None or len(weight.shape) < 2:
        return None
    small = [d for d in weight.shape[-2:] if isinstance(d, int) and d < _LEAST_SIZE]
    if small:
        return f"its weight has a side of {small[0]}: INT8 costs more than it saves under 16"
    return None


def _rows(node: ir.Node, shape: ir.Shape) -> object:
    """M of a product; anything but a number where it is not fixed."""
    if len(shape) < 2:
        return len(shape)
    return shape[-1 if attribute(node, "transA", 0) else -2]


def _before_add(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type != "Add" or any(_by_convolution(value) for value in node.inputs):
        return None
    if node.inputs[0] is node.inputs[1]:
        return None  # no kernel takes in the sum of a value with itself
    for index in (0, 1):
        dequantize = _dequantizer(node, index)
        source = _origin(dequantize) if dequantize is not None else None
        if _convolved(source):
            return "a Q/DQ between a Conv and its Add keeps the kernel from taking the Add in"
    return None


def _by_convolution(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type in ("Conv", "ConvTranspose")


def _convolved(value: ir.Value | None) -> bool:
    """Whether a convolution computes the value for one reader alone."""
    if value is None or value.is_graph_output() or len(value.uses()) > 1:
        return False
    return _by_convolution(value)


_REPLACE = "leave the placing to `quantize_int8` with this target in the variant"
QUANTIZED_RULES = (
    Rule("zero_point", "error", _zero, _REPLACE),
    Rule("unsigned", "error", _unsigned, _REPLACE),
    Rule("int32_bias", "error", _int32, _REPLACE),
    Rule("scale", "error", _scale, _REPLACE),
    Rule("half_scale", "error", _half_scale, "keep the scales in float32, or convert to opset 19"),
    Rule("integers_read", "error", _alone, _REPLACE),
    Rule("per_channel_activation", "error", _per_channel_activation, _REPLACE),
    Rule("weight_axis", "error", _weight_axis, _REPLACE),
    Rule("half_quantized", "warning", _half_quantized, _REPLACE),
    Rule("tiny_matmul", "warning", _tiny, "name it under `keep_float` of `quantize_int8`"),
    Rule("before_add", "warning", _before_add, _REPLACE),
)
