"""Where INT8 is placed for each runtime, as data that `quantize_int8` reads."""

from __future__ import annotations

from collections.abc import Collection

from optimc.core.targets import OperatorRule, QuantizationSpec

_ACTIVATIONS = ("Relu", "Clip")
_MOVES = (
    "Expand",
    "Flatten",
    "Gather",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""CPU features with an INT8 multiply-add that accumulates in 32 bits."""


def onnxruntime_cpu(features: Collection[str]) -> QuantizationSpec:
    """ONNX Runtime's CPU provider on x86, for a CPU with `features` (`core.cpu.RELEVANT`).

    Its optimizer fuses what stands between DQ and Q into QLinear operators; activations have to be
    uint8 (int8 has slow kernels or none), an output Q has to be the only consumer.
    """
    follows = OperatorRule(only_with_quantized_input=True)
    return QuantizationSpec(
        activation_dtype="uint8",
        activation_symmetric=False,
        reduce_range=not VNNI & set(features),
        bias="int32",
        rules={
            "Conv": OperatorRule(weight=1, weight_axis=0, bias=2, absorbs=_ACTIVATIONS),
            "Gemm": OperatorRule(weight=1, weight_axis=1, bias=2, output=False),
            "MatMul": OperatorRule(weight=1, weight_axis=1, dynamic_weight=True, output=False),
            "Add": follows.model_copy(update={"absorbs": _ACTIVATIONS}),
            "Mul": follows,
            "AveragePool": follows,
            "GlobalAveragePool": follows,
            "LeakyRelu": follows,
            "Concat": follows,
            "MaxPool": OperatorRule(inputs="first", same_scale=True),
            "Pad": OperatorRule(inputs="first", same_scale=True, on_integers=True),
            **{name: OperatorRule(inputs="first", same_scale=True) for name in _MOVES},
        },
    )


def openvino_cpu(features: Collection[str]) -> QuantizationSpec:
    """OpenVINO's CPU plugin, whose low-precision transformations carry scales through the graph."""
    follows = OperatorRule(only_with_quantized_input=True, output=False)
    return QuantizationSpec(
        activation_dtype="sign",
        activation_symmetric=True,
        reduce_range=not VNNI & set(features),
        bias="float",
        rules={
            "Conv": OperatorRule(
                weight=1, weight_axis=0, bias=2, output=False, absorbs=_ACTIVATIONS
            ),
            "ConvTranspose": OperatorRule(
                weight=1, weight_axis=1, bias=2, output=False, absorbs=_ACTIVATIONS
            ),
            "Gemm": OperatorRule(weight=1, weight_axis=1, bias=2, output=False),
            "MatMul": OperatorRule(weight=1, weight_axis=1, dynamic_weight=True, output=False),
            "Add": follows.model_copy(update={"absorbs": _ACTIVATIONS, "inputs": "skip"}),
            "AveragePool": follows,
            "GlobalAveragePool": follows,
            "Concat": OperatorRule(same_scale=True),
            "MaxPool": OperatorRule(inputs="first", same_scale=True),
        },
    )


def tensorrt() -> QuantizationSpec:
    """TensorRT 10 and newer: explicit quantization, int8 with zero point 0."""
    return QuantizationSpec(
        activation_dtype="int8",
        activation_symmetric=True,
        bias="float",
        rules={
            "Conv": OperatorRule(
                weight=1, weight_axis=0, bias=2, output=False, absorbs=_ACTIVATIONS
            ),
            "ConvTranspose": OperatorRule(
                weight=1, weight_axis=1, bias=2, output=False, absorbs=_ACTIVATIONS
            ),
            "Gemm": OperatorRule(weight=1, weight_axis=1, bias=2, output=False, least_size=16),
            "MatMul": OperatorRule(
                weight=1, weight_axis=1, dynamic_weight=True, output=False, least_size=16
            ),
            "Add": OperatorRule(
                inputs="skip", output=False, absorbs=_ACTIVATIONS, only_with_quantized_input=True
            ),
            "AveragePool": OperatorRule(output=False, only_with_quantized_input=True),
            "GlobalAveragePool": OperatorRule(output=False, only_with_quantized_input=True),
            "MaxPool": OperatorRule(inputs="first", same_scale=True),
        },
    )
