"""Reads TensorRT's layers from its engine inspector, in the JSON of 10 and in that of 11.

Engine information at DETAILED verbosity is one object: ``Layers``, and the inputs and outputs of
the engine as names under ``Bindings`` (10) or as objects under ``I/O Tensors`` (11). A tensor's
type stands in words in ``Format/Datatype`` or ``Format``, such as ``Row major linear FP32 format``,
or by itself in ``DataType``. Layers that a build with less verbosity left are names alone.
Source: NVIDIA TensorRT, Engine Inspector, and the migration guide from 10.x to 11.x.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from optimc.core.errors import CellError
from optimc.core.targets import Layer, TimedLayer

_TYPES = (
    (re.compile(r"\b(int8|i8|s8)\b", re.IGNORECASE), "int8"),
    (re.compile(r"\b(fp8|float8)", re.IGNORECASE), "float8"),
    (re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE), "bfloat16"),
    (re.compile(r"\b(fp16|half|float16|f16)\b", re.IGNORECASE), "float16"),
    (re.compile(r"\b(fp32|float|float32|f32)\b", re.IGNORECASE), "float32"),
    (re.compile(r"\b(int64|i64)\b", re.IGNORECASE), "int64"),
    (re.compile(r"\b(int32|i32)\b", re.IGNORECASE), "int32"),
    (re.compile(r"\bbool\b", re.IGNORECASE), "bool"),
)
_HEAVY = re.compile(r"conv|gemm|matrix_?multiply|matmul|fully_?connected|mha|attention", re.I)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
UNKNOWN = "unknown"
"""The type of a layer that the inspector knows by name alone."""


def read_layers(information: str) -> tuple[Layer, ...]:
    """The layers in `information`, what `get_engine_information` gave as JSON.

    A layer computes in the type of its first input that is a number. Raises CellError where the
    text is no such JSON.
    """
    return tuple(_layer(entry) for entry in _entries(information))


def _entries(information: str) -> list[Any]:
    try:
        return list(json.loads(information)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise CellError(f"TensorRT's inspector gave no layers: {error!r}") from error


def _name(entry: Any) -> str:
    """The layer's name in the engine."""
    return str(entry.get("Name", "") if isinstance(entry, Mapping) else entry)


def _source(entry: Any) -> list[str]:
    """The model's nodes that the layer stands for, where the engine keeps them."""
    text = str(entry.get("Metadata", "")) if isinstance(entry, Mapping) else ""
    return [name for name in _ONNX_LAYER.findall(text) if name]


def timed_layers(information: str, times: Mapping[str, Sequence[float]]) -> tuple[TimedLayer, ...]:
    """The layers that took `times` (milliseconds of each run, by the engine's names), each with the
    nodes of the model that it stands for. Raises CellError where `information` is no such JSON."""
    entries = {_name(entry): entry for entry in _entries(information)}
    found = []
    for name, spent in times.items():
        entry = entries.get(name, name)
        layer = _layer(entry)
        source = _source(entry)
        # Without metadata, a fused layer's name joins those of its nodes.
        parts = tuple(source or (part.strip() for part in name.split(" + ") if part.strip()))
        ms = max(median(spent), 0.0)
        found.append(TimedLayer(layer.name or UNKNOWN, layer.operator, layer.dtype, ms, parts))
    return tuple(found)


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, Mapping):
        return Layer(str(entry), UNKNOWN, UNKNOWN, heavy=bool(_HEAVY.search(str(entry))))
    name, kind = _name(entry), str(entry.get("LayerType", UNKNOWN))
    source = _source(entry)
    words = " ".join((kind, str(entry.get("ParameterType", "")), name))
    dtype = _computes_in(entry)
    heavy = bool(_HEAVY.search(words)) and not kind.lower().startswith(("reformat", "constant"))
    return Layer("+".join(source) or name, kind, dtype, heavy=heavy)


def _computes_in(entry: Mapping[str, Any]) -> str:
    for tensor in entry.get("Inputs", []) or entry.get("Outputs", []):
        dtype = _type_of(tensor)
        if dtype != UNKNOWN:
            return dtype
    return UNKNOWN


def _type_of(tensor: Any) -> str:
    if not isinstance(tensor, Mapping):
        return UNKNOWN
    fields = (tensor.get(key) for key in ("DataType", "Datatype", "Format/Datatype", "Format"))
    words = " ".join(str(field) for field in fields if field)
    return next((dtype for pattern, dtype in _TYPES if pattern.search(words)), UNKNOWN)
