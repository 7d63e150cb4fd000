"""TensorRT's inspector in both of its JSON schemas. Tensors as in NVIDIA's guide from 10.x to 11.x,
layers as in its Engine Inspector page; no engine was at hand to print one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from optimc.core.errors import CellError
from optimc.targets.layers import summary
from optimc.targets.tensorrt_layers import UNKNOWN, read_layers, timed_layers


def tensor(name: str, words: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 3, 8, 8], key: words}


FP32 = "Row major linear FP32 format (kLINEAR)"
INT8 = "Four wide channel vectorized row major Int8 format"
LAYERS: list[Any] = [
    {
        "Name": "Reformatting CopyNode for Input Tensor 0 to /conv1/Conv",
        "LayerType": "Reformat",
        "ParameterType": "Reformat",
        "Inputs": [tensor("image", FP32)],
        "Outputs": [tensor("copy", INT8)],
    },
    {
        "Name": "/conv1/Conv + /relu1/Relu",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [tensor("copy", INT8)],
        "Outputs": [tensor("a", INT8)],
        "Metadata": "[ONNX Layer: /conv1/Conv]\x1e[ONNX Layer: /relu1/Relu]",
    },
    {
        "Name": "/head/MatMul",
        "LayerType": "MatrixMultiply",
        "Inputs": [tensor("a", "Half", "Datatype")],
        "Outputs": [tensor("y", "FP16", "Format")],
    },
]
TEN = {"Layers": LAYERS, "Bindings": ["image", "y"]}
ELEVEN = {
    "Layers": LAYERS,
    "I/O Tensors": [
        {
            "Name": name,
            "IOMode": mode,
            "DataType": "Float",
            "Dimensions": [1, 3, 8, 8],
            "Location": "Device",
            "IsShapeInferenceIO": False,
            "ProfileInfo": [{"Format": FP32}],
        }
        for name, mode in (("image", "Input"), ("y", "Output"))
    ],
}


@pytest.mark.parametrize("schema", [TEN, ELEVEN], ids=["10", "11"])
def test_both_schemas_give_the_same_layers_and_tensors(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    layers = read_layers(text)
    assert [layer.dtype for layer in layers] == ["float32", "int8", "float16"]
    assert [layer.heavy for layer in layers] == [False, True, True], "a reformat is no convolution"
    assert layers[1].name == "/conv1/Conv+/relu1/Relu", "the nodes of the model, from the metadata"
    assert layers[2].name == "/head/MatMul"
    assert summary(layers)["int8_share"] == 0.5


@pytest.mark.parametrize("schema", [TEN, ELEVEN], ids=["10", "11"])
def test_times_are_joined_to_layers_by_the_engines_names(schema: dict[str, Any]) -> None:
    times = {
        "/conv1/Conv + /relu1/Relu": [3.0, 1.0, 2.0],
        "/head/MatMul": [0.5],
        "a + b": [0.1],
    }
    conv, head, other = timed_layers(json.dumps(schema), times)
    assert (conv.name, conv.operator, conv.dtype) == (
        "/conv1/Conv+/relu1/Relu",
        "CaskConvolution",
        "int8",
    )
    assert conv.ms == 2.0
    assert conv.parts == ("/conv1/Conv", "/relu1/Relu")
    assert head.parts == ("/head/MatMul",)
    assert (other.operator, other.parts) == (UNKNOWN, ("a", "b")), "not in the inspector's list"


def test_names_alone_have_no_type() -> None:
    (layer,) = read_layers(json.dumps({"Layers": ["conv1 + relu1"], "Bindings": []}))
    assert layer.dtype == UNKNOWN
    assert layer.heavy


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"Layers": 3}'])
def test_what_is_no_such_json_is_said(text: str) -> None:
    with pytest.raises(CellError, match="inspector gave no layers"):
        read_layers(text)
