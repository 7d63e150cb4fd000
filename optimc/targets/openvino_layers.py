"""Reads back what OpenVINO's CPU plugin really runs: from the compiled model's execution graph."""

from __future__ import annotations

from typing import Any

from optimc.core.targets import Layer

HEAVY = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "DeformableConvolution",
        "FullyConnected",
        "MatMul",
        "RNNCell",
        "RNNSeq",
        "ScaledDotProductAttention",
    }
)
_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f64": "float64",
    "i8": "int8",
    "u8": "int8",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}
_ENDS = ("Const", "Input", "Output")


def read_layers(compiled: Any) -> tuple[Layer, ...]:
    """The layers of an `openvino.CompiledModel`, in the order that they run in."""
    nodes = [(node, _info(node)) for node in compiled.get_runtime_model().get_ordered_ops()]
    nodes = [(node, info) for node, info in nodes if "layerType" in info]
    quantized = any(
        info["layerType"] == "FakeQuantize"
        or (info["layerType"] in HEAVY and _dtype(info["runtimePrecision"]) == "int8")
        for _, info in nodes
    )
    return tuple(
        _layer(node, info, quantized) for node, info in nodes if info["layerType"] not in _ENDS
    )


def _layer(node: Any, info: dict[str, str], quantized: bool) -> Layer:
    dtype = _dtype(info["runtimePrecision"])
    heavy = info["layerType"] in HEAVY
    return Layer(
        name=info.get("originalLayersNames", "").split(",")[0].removesuffix("/WithoutBiases")
        or node.get_friendly_name(),
        operator=info["layerType"],
        dtype=dtype,
        heavy=heavy,
        reason=_reason(node) if heavy and quantized and dtype != "int8" else None,
    )


def _reason(node: Any) -> str:
    inputs = [
        _dtype(_info(value.get_source_output().get_node()).get("outputPrecisions", "?"))
        for value in node.inputs()[:2]
    ]
    if all(dtype == "int8" for dtype in inputs):
        return "its inputs are int8, but the plugin has no int8 kernel for it as it stands"
    return f"its inputs arrive as {' and '.join(inputs)}: no quantization reaches all of them"


def _dtype(precision: str) -> str:
    first = precision.split(",")[0]
    return _DTYPES.get(first, first)


def _info(node: Any) -> dict[str, str]:
    return {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
