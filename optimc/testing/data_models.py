"""Small ONNX models that take what data sources give: ids of any length, images of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import NodeProto, ValueInfoProto

_FLOAT, _INT64 = 1, 7
"""Of onnx.TensorProto.DataType."""

SIZE = 8
"""The size of an embedding."""


def word_vectors(words: int = 12) -> NDArray[np.float32]:
    """The embeddings of `write_sentence_model`, float32 [words, SIZE]."""
    return np.random.default_rng(0).standard_normal((words, SIZE)).astype(np.float32)


def write_sentence_model(path: Path, *, outputs: Sequence[str] = ("sentence",)) -> Path:
    """input_ids and attention_mask [batch, length] to `sentence` [batch, SIZE], the mean of the
    words' vectors, and `words` [batch, length, SIZE]."""
    from onnx import helper

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], axis=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=_FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["words", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["sentence"]),
    ]
    shapes: dict[str, list[int | str]] = {
        "sentence": ["batch", SIZE],
        "words": ["batch", "length", SIZE],
    }
    constants = {"table": word_vectors(), "last": np.array([2]), "one": np.array([1])}
    inputs = [_value(n, _INT64, ["batch", "length"]) for n in _IDS]
    made = [_value(name, _FLOAT, shapes[name]) for name in outputs]
    return _write(path, nodes, inputs, made, constants)


_IDS = ("input_ids", "attention_mask")


def write_image_model(path: Path, *, classes: int = 4) -> Path:
    """x float32 [batch, 3, height, width] to y [batch, classes], for images of any size."""
    from onnx import helper

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "weight"], ["y"]),
    ]
    constants = {
        "kernel": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "weight": rng.standard_normal((8, classes)).astype(np.float32),
    }
    inputs = [_value("x", _FLOAT, ["batch", 3, "height", "width"])]
    outputs = [_value("y", _FLOAT, ["batch", classes])]
    return _write(path, nodes, inputs, outputs, constants)


def _value(name: str, dtype: int, shape: Sequence[int | str]) -> ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(name, dtype, shape)


def _write(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Mapping[str, NDArray[np.generic]],
) -> Path:
    from onnx import helper, numpy_helper, save

    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path
