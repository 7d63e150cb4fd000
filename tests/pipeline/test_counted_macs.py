"""Multiply-accumulates: shapes that inference alone does not find, and integer operators."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from optimc.pipeline.inspection import inspect_onnx, macs_of

SIZES = {"batch": 2, "length": 5}


def behind_a_reshape(path: Path, declared: list[int | str] | None) -> Path:
    """[batch, length, 6] -> Reshape to sizes that a node computes -> a product with [6, 7]."""
    nodes = [
        helper.make_node("Abs", ["sizes"], ["shape"]),
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 7])],
        [
            helper.make_tensor("sizes", TensorProto.INT64, [3], [0, -1, 6]),
            helper.make_tensor("w", TensorProto.FLOAT, [6, 7], [0.5] * 42),
        ],
    )
    if declared is not None:
        graph.value_info.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, declared))
    return saved(path, graph)


def saved(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("declared", "macs"),
    [
        (None, None),
        (["batch", "length", 6], 2 * 5 * 6 * 7),
        (["batch * length", "length", 6], None),  # what the sizes do not tell is not known
    ],
)
def test_what_the_file_declares_of_inner_values_is_taken(
    tmp_path: Path, declared: list[int | str] | None, macs: int | None
) -> None:
    assert macs_of(behind_a_reshape(tmp_path / "m.onnx", declared), SIZES) == macs


def test_inspect_takes_symbolic_dims_as_1(tmp_path: Path) -> None:
    found = inspect_onnx(behind_a_reshape(tmp_path / "m.onnx", ["batch", "length", 6]))
    assert found.macs == 6 * 7
    assert found.unknown_macs == ()


def test_a_wrong_declaration_breaks_nothing(tmp_path: Path) -> None:
    path = behind_a_reshape(tmp_path / "m.onnx", [3, 3, 3, 3])
    assert macs_of(path, SIZES) in (None, 2 * 5 * 7 * 3)


def test_integer_products_are_counted(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["batch", 7])],
        [helper.make_tensor("w", TensorProto.INT8, [6, 7], [1] * 42)],
    )
    assert macs_of(saved(tmp_path / "m.onnx", graph), SIZES) == 2 * 6 * 7


def test_an_integer_convolution_is_counted_by_its_weights(tmp_path: Path) -> None:
    scalars = {"xs": 0.1, "ws": 0.1, "ys": 0.1}
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["batch", 8, 2, 2])],
        [
            *(helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in scalars.items()),
            *(helper.make_tensor(n, TensorProto.UINT8, [], [0]) for n in ("xz", "yz")),
            helper.make_tensor("wz", TensorProto.INT8, [], [0]),
            helper.make_tensor("w", TensorProto.INT8, [8, 3, 3, 3], [1] * 216),
        ],
    )
    assert macs_of(saved(tmp_path / "m.onnx", graph), SIZES) == 2 * 8 * 2 * 2 * 27
