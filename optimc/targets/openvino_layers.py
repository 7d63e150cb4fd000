"""Reads back what OpenVINO's CPU plugin really runs: from the compiled model's execution graph."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from optimc.core.targets import Layer, TimedLayer

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
_BARE = "/WithoutBiases"
"""What the plugin appends to the name of a node whose bias it split off."""
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


def timed_layers(compiled: Any, runs: Sequence[Any]) -> tuple[TimedLayer, ...]:
    """The layers that ran, in their order, with their times.

    `runs` are what `openvino.InferRequest.get_profiling_info` said after each run of `compiled`.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for info in run:
            if info.status == info.Status.EXECUTED:
                times[info.node_name].append(info.real_time.total_seconds() * 1e3)
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info, samples = _info(node), times.get(node.get_friendly_name())
        if not samples or "layerType" not in info or info["layerType"] in _ENDS:
            continue
        layer = _layer(node, info, quantized=False)
        originals = info.get("originalLayersNames", "").split(",")
        parts = tuple(dict.fromkeys(n.removesuffix(_BARE) for n in originals if n))
        median = statistics.median(samples)
        found.append(TimedLayer(layer.name, layer.operator, layer.dtype, median, parts))
    return tuple(found)


def _layer(node: Any, info: dict[str, str], quantized: bool) -> Layer:
    dtype = _dtype(info["runtimePrecision"])
    heavy = info["layerType"] in HEAVY
    return Layer(
        name=info.get("originalLayersNames", "").split(",")[0].removesuffix(_BARE)
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
