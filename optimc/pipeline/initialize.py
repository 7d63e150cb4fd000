"""``optimc init``: looks at a model and writes a commented recipe that builds as it is.

What the model does not say (sizes of dynamic dims, values of inputs) is guessed so that the model
most likely runs, and a comment beside each guess says what to change.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimc.core.errors import InputError
from optimc.core.files import atomic_write
from optimc.core.model import Signature, TensorSpec

_QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_PLAIN = re.compile(r"(?:\.{0,2}/)*[A-Za-z_][A-Za-z0-9_./-]*")
_READ_AS_OTHER = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_PIXELS = (1, 3, 4)
"""Numbers of channels that images have."""


def write_initial_recipe(model_path: Path, to: Path, *, force: bool = False) -> str:
    """Writes the recipe for the model at `model_path` into the file `to`; returns its text.

    Raises InputError where the model cannot be read, or `to` exists and `force` is not set.
    """
    if to.exists() and not force:
        fix = "name another file (-o), or overwrite it with --force"
        raise InputError("exists already", where=str(to), fix=fix)
    text = initial_recipe(model_path, to=to)
    with atomic_write(to) as file:
        file.write(text)
    return text


def initial_recipe(model_path: Path, *, to: Path) -> str:
    """The text of a recipe for the model at `model_path`; paths are as seen from `to`.

    Reads no weights of ONNX models. Raises InputError where the model cannot be read.
    """
    look = _look_at(model_path)
    signature = look.signature
    parts = [
        _head(model_path, to, look),
        _inputs(signature, look.known),
        _dims(signature, look.known),
        _data(signature, _relative(model_path, to) if model_path.is_dir() else None),
        _variants(look.operators, text=_is_text(signature)),
        _targets(),
        _benchmark_and_gate(signature),
    ]
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Look:
    """What is known of the model: its interface, and the types of all operators."""

    signature: Signature
    operators: frozenset[str]
    kind: str = "onnx"
    fields: str = ""
    known: Mapping[str, Any] = field(default_factory=dict)


def _look_at(path: Path) -> _Look:
    from optimc.pipeline.torch_looks import is_torch, look_at_torch

    if is_torch(path):
        found = look_at_torch(path)
        # Its operators are known once it is exported; networks without a matrix product are rare.
        operators = frozenset({"MatMul"})
        return _Look(found.signature, operators, found.kind, found.fields, found.known)
    from optimc.core.onnx_protos import all_protos
    from optimc.frontends.onnx import read_signature
    from optimc.frontends.onnx_files import parse

    signature = read_signature(path)
    proto = parse(path)
    nodes = [node for graph in all_protos(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    return _Look(signature, frozenset(node.op_type for node in nodes))


def _head(model_path: Path, to: Path, look: _Look) -> str:
    model = f"{{{look.kind}: {_text(_relative(model_path, to))}{look.fields}}}"
    return (
        f"# Written by `optimc init`. It builds as it is: optimc build {_one_line(to.name)}\n"
        "# Until data are named below, inputs are drawn at random, and the report says so.\n\n"
        f"model: {model}\n\n"
        "# Where every random choice of the build starts from.\n"
        "seed: 0\n"
    )


def _relative(path: Path, to: Path) -> str:
    """The path as a recipe at `to` writes it."""
    return Path(os.path.relpath(path.absolute(), to.absolute().parent)).as_posix()


def _inputs(signature: Signature, known: Mapping[str, Any]) -> str:
    lines = ["# Shapes and dtypes are the model's. Set the values to what your data have."]
    lines.append("inputs:" if signature.inputs else "inputs: {}")
    for spec in signature.inputs:
        values, hint = _known_values(spec.name, known) or _values(spec)
        fields = [f"dtype: {spec.dtype}", *([values] if values else [])]
        if spec.shape is not None:
            fields.insert(0, f"shape: [{', '.join(_text(dim) for dim in spec.shape)}]")
        else:
            hint = "the model does not say the shape: add shape: [...]"
        comment = f" # {hint}" if hint else ""
        lines.append(f"  {_key(spec.name)}: {{{', '.join(fields)}}}{comment}")
    return "\n".join(lines) + "\n"


def _known_values(name: str, known: Mapping[str, Any]) -> tuple[str, str] | None:
    """The range that the model itself gives, where it does."""
    for kind in ("values", "range"):
        if name in known.get(kind, {}):
            low, high = known[kind][name]
            return f"{kind}: [{low}, {high}]", "as the model's configuration says"
    return None


def _values(spec: TensorSpec) -> tuple[str, str]:
    """The guessed range of an input's values, and what to change."""
    if spec.dtype == "bool":
        return "", ""
    if spec.dtype == "uint8":
        return "values: [0, 255]", "all values of a byte"
    if "int" in spec.dtype:
        return "values: [0, 1]", "ids: [0, size of the vocabulary - 1]; masks: [0, 1]"
    if _is_image(spec):
        return "range: [-3, 3]", "normalized pixels; [0, 1] where they are only divided by 255"
    return "range: [-3, 3]", "the least and the greatest value that your data have"


def _is_image(spec: TensorSpec) -> bool:
    shape = spec.shape or ()
    return len(shape) == 4 and (shape[1] in _PIXELS or shape[3] in _PIXELS)


def guessed_dims(signature: Signature) -> dict[str, tuple[tuple[int, int, int], str]]:
    """By dim: sizes (least, typical, greatest) that most likely run, and what to change."""
    found: dict[str, tuple[tuple[int, int, int], str]] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str) and dim not in found:
                found[dim] = _sizes(spec, axis)
    return found


def _dims(signature: Signature, known: Mapping[str, Any]) -> str:
    found = guessed_dims(signature)
    for name, (least, typical, most) in known.get("dims", {}).items():
        found[name] = ((least, typical, most), found[name][1])
    if not found:
        return ""
    lines = ["# The sizes that dynamic dims take: passes and engines are checked at the corners."]
    lines.append("dims:")
    for name, ((least, typical, most), hint) in found.items():
        bounds = f"{{min: {least}, typical: {typical}, max: {most}}}"
        lines.append(f"  {_key(name)}: {bounds} # {hint}")
    return "\n".join(lines) + "\n"


def _sizes(spec: TensorSpec, axis: int) -> tuple[tuple[int, int, int], str]:
    """Guessed sizes (least, typical, greatest) of a dynamic dim, and what to change."""
    if axis == 0:
        return (1, 1, 8), "samples at once: set `max` to the most that you serve"
    if len(spec.shape or ()) == 4 and "float" in spec.dtype:
        return (224, 224, 224), "one size until you widen it; add `multiple_of` where it is needed"
    if axis == 1 and "int" in spec.dtype:
        return (8, 32, 128), "length in tokens: set `typical` and `max` to those of your data"
    return (8, 8, 8), "a guess: set it to the sizes of your data"


def _is_text(signature: Signature) -> bool:
    """Whether tokens go in."""
    return any(spec.name == "input_ids" for spec in signature.inputs)


def _data(signature: Signature, tokenizer: str | None) -> str:
    return (
        _text_data(tokenizer or "tokenizer.json") if _is_text(signature) else _array_data(signature)
    )


def _text_data(tokenizer: str) -> str:
    tokenizer = f"{_text(tokenizer)} # a tokenizer.json, or a folder with one"
    return (
        "# Your data: rows of text for each split (csv, tsv, jsonl or parquet), columns by name.\n"
        "# With labels, metrics tell what the engines lost.\n"
        "# data:\n"
        "#   calibration: # some hundred samples, for the ranges of static INT8\n"
        "#     csv: calibration.csv\n"
        f"#     tokenizer: {tokenizer}\n"
        "#     text: text\n"
        "#   evaluation: # what every engine is judged by; no sample of it stands in calibration\n"
        "#     csv: evaluation.csv\n"
        f"#     tokenizer: {tokenizer}\n"
        "#     text: text\n"
        "#     labels: label\n"
        "# metrics: {top1: {}} # `optimc metrics` lists them\n"
    )


def _array_data(signature: Signature) -> str:
    feeds = ", ".join(f"{_key(spec.name)}: {_array(spec)}" for spec in signature.inputs)
    image = any(_is_image(spec) for spec in signature.inputs)
    steps = "[nchw, {divide: 255}]" if image else "[]"
    return (
        "# Your data: an array file (npz) for each split, one entry a sample. `inputs` says which\n"
        "# array feeds which input, `transform` what happens on the way. With labels, metrics\n"
        "# tell what the engines lost.\n"
        "# data:\n"
        "#   calibration: # some hundred samples, for the ranges of INT8\n"
        "#     npz: calibration.npz\n"
        f"#     inputs: {{{feeds}}}\n"
        f"#     transform: {steps}\n"
        "#   evaluation: # what every engine is judged by; no sample of it stands in calibration\n"
        "#     npz: evaluation.npz\n"
        f"#     inputs: {{{feeds}}}\n"
        "#     labels: labels\n"
        f"#     transform: {steps}\n"
        "# metrics: {top1: {}}\n"
    )


def _array(spec: TensorSpec) -> str:
    return "images" if _is_image(spec) else _text(spec.name)


def _variants(operators: frozenset[str], *, text: bool) -> str:
    lines = ["# Each variant is a list of passes; `optimc passes` lists them."]
    lines += ["variants:", "  fp32: [simplify, fuse]"]
    if text and operators & _QUANTIZABLE and not operators & _QUANTIZED:
        # Transformers lose so much that without a metric no figure could pass.
        lines.append("  # Name data and a metric first: they say what INT8 costs.")
        lines.append("  # int8: [simplify, fuse, quantize_dynamic]")
    elif operators & _QUANTIZED:
        lines.append("  # No int8: the model is quantized already.")
    elif operators & _QUANTIZABLE:
        lines.append("  int8: [simplify, fuse, quantize_int8]")
    else:
        lines.append("  # No int8: the model has no convolution and no matrix product.")
    return "\n".join(lines) + "\n"


def _targets() -> str:
    from optimc.core.registry import target_class

    lines = ["# Every variant is built for each of these runtimes; `optimc targets` lists them."]
    lines += ["targets:", "  ort: {runtime: onnxruntime, threads: 1}"]
    missing = target_class("openvino").unavailable()
    ov = "ov: {runtime: openvino, threads: 1}"
    lines.append(f"  {ov}" if missing is None else f"  # {ov} # {_one_line(missing.remedy)}")
    return "\n".join(lines) + "\n"


def _benchmark_and_gate(signature: Signature) -> str:
    sizes = {dim: 1 for spec in signature.inputs for dim in (spec.shape or ())[:1]}
    batch = next((dim for dim in sizes if isinstance(dim, str)), None)
    case = "" if batch is None else f"cases: [{{{_key(batch)}: 1}}], "
    return (
        "# How long one cell may be measured; it stops earlier where the gate is decided. `cases`\n"
        "# may list sizes of the dims.\n"
        f"benchmark: {{{case}until: decided, at_most: 10 s}}\n\n"
        "# What has to hold for the build to end with exit code 0. `best` asks for one cell that\n"
        "# meets every limit; `int8/*` asks it of all cells that it names.\n"
        "# gate:\n"
        "#   ship: best\n"
        "#   drop: {top1: 0.003} # how much worse than the source, in the metric's own unit\n"
        "#   speedup: 1.5 # over the source on ONNX Runtime\n"
        "#   latency_ms: {p99: 100}\n"
        "#   size_mb: 50\n"
    )


def _text(value: str | int) -> str:
    """A size, or a text as a YAML value that is read back as the same text."""
    return str(value) if isinstance(value, int) else _key(value.replace("${", "$${"))


def _key(text: str) -> str:
    """A text as a YAML key: quoted where YAML would read it otherwise."""
    if _PLAIN.fullmatch(text) and text.lower() not in _READ_AS_OTHER:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
