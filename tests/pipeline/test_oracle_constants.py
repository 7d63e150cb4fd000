"""Weights are dequantized once a session, and the model's outputs stay the same to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from optimc.core.errors import VerificationError
from optimc.pipeline import oracle_constants
from optimc.pipeline.oracle_constants import split
from optimc.pipeline.oracle_service import OracleService
from optimc.testing.graphs import GraphBuilder


def layer(b: GraphBuilder, value: str, inner: int, outer: int, kind: str = "float32") -> str:
    """A product with an int8 weight, dequantized a column at a time."""
    weight = b.rng.integers(-127, 128, (inner, outer)).astype(np.int8)
    scales = b.constant(b.rng.uniform(1e-3, 2e-3, outer).astype(kind))
    zeros = b.constant(np.zeros(outer, np.int8))
    dequantized = b.node("DequantizeLinear", b.constant(weight), scales, zeros, axis=1)
    return b.node("MatMul", value, dequantized)


def two_layers() -> GraphBuilder:
    """Two products; Q and DQ of an activation between them."""
    b = GraphBuilder(opset=21)
    hidden = layer(b, b.input("x", ["batch", 64]), 64, 96)
    step, zero = b.constant(0.01, dtype="float32"), b.constant(np.uint8(128))
    levels = b.node("QuantizeLinear", hidden, step, zero)
    b.node("Identity", layer(b, b.node("DequantizeLinear", levels, step, zero), 96, 32), to="y")
    b.output("y", ["batch", 32])
    return b


def plain(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime says of the whole model, nothing optimized."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "weights apart"])
def test_outputs_are_the_same_to_the_bit(tmp_path: Path, apart: bool) -> None:
    path = tmp_path / "model.onnx"
    options: dict[str, Any] = {"location": "model.data", "size_threshold": 64} if apart else {}
    onnx.save(two_layers().proto(), path, save_as_external_data=apart, **options)
    parts = split(path)
    assert parts is not None
    assert len(parts.names) == 2
    rest = onnx.load_from_string(parts.rest)
    assert [node.op_type for node in rest.graph.node if "DequantizeLinear" in node.op_type] == [
        "DequantizeLinear"
    ]
    service = OracleService(threads=1)
    for size in (1, 2, 7, 33):
        feeds = {"x": np.random.default_rng(size).normal(size=(size, 64)).astype(np.float32)}
        found = service.run(feeds, str(path))[1]
        expected = plain(path, feeds)
        assert found.keys() == expected.keys()
        assert found["y"].tobytes() == expected["y"].tobytes()


def test_a_wrong_scale_still_shows(tmp_path: Path) -> None:
    path, wrong = tmp_path / "model.onnx", tmp_path / "wrong.onnx"
    model = two_layers().proto()
    onnx.save(model, path)
    scale = next(t for t in model.graph.initializer if t.dims == [32] and t.data_type == 1)
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    onnx.save(model, wrong)
    service, feeds = OracleService(threads=1), {"x": np.ones((2, 64), np.float32)}
    right, doubled = (service.run(feeds, str(p))[1]["y"] for p in (path, wrong))
    np.testing.assert_allclose(doubled, 2 * right, rtol=1e-5)


def test_half_floats_and_bodies_that_read_the_weight(tmp_path: Path) -> None:
    b = GraphBuilder(opset=21)
    x, take = b.input("x", ["batch", 8], "float16"), b.input("take", [], "bool")
    weight = b.constant(b.rng.integers(-9, 9, (8, 8)).astype(np.int8))
    made = b.node("DequantizeLinear", weight, b.constant(np.float16(0.5)))
    branches = {}
    for side, kind in (("then_branch", "MatMul"), ("else_branch", "Gemm")):
        inner = b.inner()
        inner.output(inner.node(kind, x, made), ["batch", 8], "float16")
        branches[side] = inner.graph(side)
    b.output(b.node("If", take, to="y", **branches), ["batch", 8], "float16")
    path = tmp_path / "model.onnx"
    onnx.save(b.proto(), path)
    parts = split(path)
    assert parts is not None
    assert parts.names == (made,)
    service = OracleService(threads=1)
    for taken in (True, False):
        feeds = {"x": np.ones((3, 8), np.float16), "take": np.array(taken)}
        found = service.run(feeds, str(path))[1]["y"]
        assert found.tobytes() == plain(path, feeds)["y"].tobytes()


def test_what_is_no_constant_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    b = GraphBuilder()
    b.output(b.node("Relu", b.input("x", [2])), [2])
    onnx.save(b.proto(), path)
    assert split(path) is None
    model = two_layers().proto()
    for tensor in model.graph.initializer:  # who runs the model may override these
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    onnx.save(model, path)
    assert split(path) is None
    model = two_layers().proto()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            kind = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
            model.graph.output.append(kind)
    onnx.save(model, path)
    assert split(path) is None
    onnx.save(two_layers().proto(), path)
    monkeypatch.setattr(oracle_constants, "_MOST_BYTES", 64 * 96 * 4)
    parts = split(path)
    assert parts is not None
    assert len(parts.names) == 1


def test_a_model_that_the_runtime_refuses_is_refused(tmp_path: Path) -> None:
    model = two_layers().proto()
    scale = next(t for t in model.graph.initializer if t.dims == [32] and t.data_type == 1)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(31, np.float32), scale.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match=r"ONNX Runtime refuses model\.onnx"):
        OracleService(threads=1).run({"x": np.ones((2, 64), np.float32)}, f"{tmp_path}/model.onnx")
