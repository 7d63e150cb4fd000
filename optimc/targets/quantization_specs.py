"""Where INT8 is placed for each runtime, as data that `quantize_int8` reads."""

from __future__ import annotations

from collections.abc import Collection

from optimc.core.targets import OperatorRule, QuantizationSpec

VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""CPU features with an INT8 multiply-add that accumulates in 32 bits."""

_ABSORBED = ("Relu", "Clip")

_MOVES = (
    "Expand",
    "Flatten",
    "Gather",
    "MaxPool",
    "Reshape",
    "Resize",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)

_CPU = {
    "Conv": OperatorRule(weight=1, weight_axis=0, bias=2, absorbs=_ABSORBED),
    # Under 16 rows or columns the Q before and the DQ behind cost more than INT8 saves.
    "Gemm": OperatorRule(
        weight=1, weight_axis=1, bias=2, output=False, gives_floats=True, least_size=16
    ),
    "MatMul": OperatorRule(
        weight=1,
        weight_axis=1,
        dynamic_weight=True,
        output=False,
        gives_floats=True,
        least_size=16,
    ),
    # What only floats read is added up in float: the sum of a patch and its position in front of a
    # ViT, rounded to 8 bits, costs its outputs 15 dB.
    "Add": OperatorRule(only_with_quantized_input=True, only_if_read=True, absorbs=_ABSORBED),
    **{
        name: OperatorRule(only_with_quantized_input=True, only_if_read=True)
        for name in ("Concat", "LeakyRelu", "Mul", "Sigmoid")
    },
    **{
        name: OperatorRule(only_with_quantized_input=True)
        for name in ("AveragePool", "GlobalAveragePool")
    },
    **{name: OperatorRule(inputs="first", same_scale=True) for name in _MOVES},
    # Between a DQ and a Q, ONNX Runtime pads floats, and OpenVINO 2026.4 fails on a zero point.
    "Pad": OperatorRule(inputs="first", same_scale=True, on_integers=True),
}


def onnxruntime_cpu(features: Collection[str]) -> QuantizationSpec:
    """ONNX Runtime's CPU provider on x86, for a CPU with `features` (`core.cpu.RELEVANT`).

    Its optimizer fuses what stands between DQ and Q into QLinear operators. Activations have to be
    uint8 (int8 has slow kernels or none), and an output's Q has to be the only consumer.
    """
    return QuantizationSpec(
        activation_dtype="uint8",
        activation_symmetric=False,
        reduce_range=not VNNI & set(features),
        bias="int32",
        global_average_pool=True,
        dynamic="matmul_integer",
        # The core of attention is one float operator (see `_onnxruntime_attention`): faster than
        # its two products as integers between Q and DQ, and Softmax keeps its small numbers.
        rules={
            **_CPU,
            # Where shapes are fixed, its optimizer makes a Gemm of MatMul and Add before it looks
            # for INT8, and a Gemm with a float result has no kernel: half the speed of no INT8.
            "MatMul": _CPU["MatMul"].model_copy(
                update={"dynamic_weight": False, "bias_apart": True}
            ),
        },
    )


def openvino_cpu(features: Collection[str]) -> QuantizationSpec:
    """OpenVINO's CPU plugin.

    Its low-precision transformations find their way through the same placement, and with a Q behind
    every convolution they fuse all of a residual block into convolutions with INT8 outputs.
    """
    transposed = OperatorRule(
        weight=1,
        weight_axis=1,
        bias=2,
        absorbs=_ABSORBED,
        symmetric_input=True,
    )
    # A zero point at the product of two activations costs a pass over the result: ViT-tiny runs in
    # 38 ms with them and in 31 ms without, and is as accurate.
    product = _CPU["MatMul"].model_copy(update={"symmetric_product": True})
    # 2026.4 pads with the integer 0, whatever the zero point is.
    padded_pool = OperatorRule(only_with_quantized_input=True, explicit_padding=True)
    return QuantizationSpec(
        activation_dtype="uint8",
        activation_symmetric=False,
        reduce_range=not VNNI & set(features),
        bias="int32",
        global_average_pool=True,
        # DynamicQuantizeLinear falls apart into float operators there: half as fast as no INT8.
        dynamic="weights",
        nncf_device="CPU",
        rules={
            **_CPU,
            "AveragePool": padded_pool,
            "ConvTranspose": transposed,
            "MatMul": product,
        },
    )


def tensorrt() -> QuantizationSpec:
    """TensorRT 10 and newer: explicit quantization, int8 with zero points of 0, float bias."""
    convolution = OperatorRule(weight=1, weight_axis=0, bias=2, output=False, absorbs=_ABSORBED)
    pool = OperatorRule(output=False, only_with_quantized_input=True)
    product = OperatorRule(weight=1, weight_axis=1, output=False, least_size=16, least_rows=2)
    return QuantizationSpec(
        activation_dtype="int8",
        activation_symmetric=True,
        bias="float",
        rules={
            "Conv": convolution,
            "ConvTranspose": convolution.model_copy(update={"weight_axis": 1}),
            "Gemm": product.model_copy(update={"bias": 2}),
            "MatMul": product.model_copy(update={"dynamic_weight": True}),
            "Add": OperatorRule(
                inputs="skip", output=False, absorbs=_ABSORBED, only_with_quantized_input=True
            ),
            "AveragePool": pool,
            "GlobalAveragePool": pool,
            "MaxPool": OperatorRule(inputs="first", same_scale=True),
        },
    )
