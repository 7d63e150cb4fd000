from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import CellError, InputError
from optimc.core.model import OnnxModel, load_model
from optimc.core.targets import BuildContext, Engine
from optimc.targets.layers import summary
from optimc.targets.onnxruntime import MODEL, OPTIMIZED, OnnxRuntime
from optimc.testing.graphs import GraphBuilder, convolutions, nothing_to_do, quantized
from optimc.testing.runs import as_model


def build(target: OnnxRuntime, model: OnnxModel, tmp_path: Path) -> Engine:
    folder = tmp_path / "engine"
    folder.mkdir()
    return target.build(model, folder, BuildContext(workspace=tmp_path))


def read_back(model: OnnxModel, tmp_path: Path) -> dict[str, Any]:
    with OnnxRuntime.open(build(OnnxRuntime(), model, tmp_path)) as session:
        return summary(session.layers())


def quantized_conv(
    b: GraphBuilder,
    x: str,
    *,
    activations: str = "uint8",
    source: bool = True,
    weights: bool = True,
    name: str = "conv",
) -> str:
    """A 3 x 3 convolution of two channels, called `name`, between pairs as the options say."""
    weight = b.weight(2, 2, 3, 3)
    if weights:
        levels = b.constant(b.rng.integers(-127, 128, (2, 2, 3, 3)), dtype="int8")
        zeros = b.constant([0, 0], dtype="int8")
        weight = b.node("DequantizeLinear", levels, b.constant([0.01, 0.02]), zeros, axis=0)
    if source:
        x = pair(b, x, activations)
    # The runtime names a layer by its node or by its output.
    return b.node("Conv", x, weight, name=name, to=name, pads=[1, 1, 1, 1])


def pair(b: GraphBuilder, x: str, dtype: str = "uint8") -> str:
    scale, zero = b.constant(0.05), b.constant(0, dtype=dtype)
    return b.node("DequantizeLinear", b.node("QuantizeLinear", x, scale, zero), scale, zero)


def finish(b: GraphBuilder, value: str) -> OnnxModel:
    b.node("Erf", value, to="y")
    b.output("y", ["batch", 2, 5, 5])
    return b.model()


def start() -> tuple[GraphBuilder, str]:
    b = GraphBuilder()
    return b, b.input("x", ["batch", 2, 5, 5])


def test_float_model_has_no_islands(tmp_path: Path) -> None:
    read = read_back(convolutions(), tmp_path)
    assert read["precision"] == "f32"
    assert read["int8_share"] == 0.0
    assert read["islands"] == []


def test_fused_convolution_counts_as_int8(tmp_path: Path) -> None:
    b, x = start()
    read = read_back(finish(b, pair(b, quantized_conv(b, x))), tmp_path)
    assert read["precision"] == "int8"
    assert read["int8_share"] == 1.0
    assert read["islands"] == []


def islands(model: OnnxModel, tmp_path: Path) -> tuple[float, dict[str, str]]:
    read = read_back(model, tmp_path)
    return read["int8_share"], {i["node"]: i["reason"] for i in read["islands"]}


def test_conv_left_in_float_beside_a_quantized_one_is_an_island(tmp_path: Path) -> None:
    b, x = start()
    h = pair(b, quantized_conv(b, x))
    h = b.node("Conv", b.node("Tanh", h), b.weight(2, 2, 3, 3), pads=[1, 1, 1, 1], to="head")
    share, found = islands(finish(b, h), tmp_path)
    assert share == 0.5
    assert found == {"head": "no DequantizeLinear stands on its inputs: it was left in float"}


def test_conv_without_a_quantized_output_is_an_island(tmp_path: Path) -> None:
    b, x = start()
    h = quantized_conv(b, x)
    share, found = islands(finish(b, b.node("Add", pair(b, h), h)), tmp_path)
    assert share == 0.0
    assert set(found) == {"conv"}
    assert found["conv"].startswith("its output goes to Add, QuantizeLinear")


def test_conv_with_a_float_weight_is_an_island(tmp_path: Path) -> None:
    b, x = start()
    _, found = islands(finish(b, quantized_conv(b, x, weights=False)), tmp_path)
    assert found == {"conv": "its weight is not quantized"}


def test_conv_with_a_float_input_is_an_island(tmp_path: Path) -> None:
    b, x = start()
    _, found = islands(finish(b, pair(b, quantized_conv(b, x, source=False))), tmp_path)
    assert found == {"conv": "its input `x` is not quantized"}


def test_int8_output_with_two_readers_is_an_island(tmp_path: Path) -> None:
    b, x = start()
    h = pair(b, quantized_conv(b, x, activations="int8"), "int8")
    first = b.node("Conv", h, b.weight(2, 2, 1, 1))
    _, found = islands(finish(b, b.node("Add", first, h)), tmp_path)
    assert found["conv"] == "its output is int8, and the fast kernels give uint8"


def test_int8_input_with_two_readers_is_an_island(tmp_path: Path) -> None:
    b, x = start()
    scale, zero = b.constant(0.05), b.constant(0, dtype="int8")
    levels = b.node("QuantizeLinear", x, scale, zero)
    h = b.node("DequantizeLinear", levels, scale, zero)
    h = pair(b, quantized_conv(b, h, source=False), "int8")
    other = b.node("CastLike", levels, h)
    _, found = islands(finish(b, b.node("Add", h, other)), tmp_path)
    assert found == {"conv": "its input is int8, and the fast kernels take uint8"}


def test_threads_can_be_overridden_and_unknown_settings_not(tmp_path: Path) -> None:
    engine = build(OnnxRuntime(), nothing_to_do(), tmp_path)
    with OnnxRuntime.open(engine, threads=2) as session:
        assert session.layers()
    with pytest.raises(InputError, match="unknown session setting `thread`"):
        OnnxRuntime.open(engine, thread=2)


def test_optimized_form_is_run_and_the_portable_one_lies_beside_it(tmp_path: Path) -> None:
    engine = build(OnnxRuntime(optimized=True), convolutions(), tmp_path)
    assert set(engine.manifest["files"]) == {MODEL, OPTIMIZED}
    assert engine.main.name == OPTIMIZED
    assert engine.digest == engine.manifest["model_sha256"]
    assert MODEL in engine.manifest["notes"][0]


def test_optimized_form_is_refused_on_another_cpu(tmp_path: Path) -> None:
    engine = build(OnnxRuntime(optimized=True), nothing_to_do(), tmp_path)
    path = engine.folder / Engine.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["session"]["cpu_features"] = ["avx9999"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CellError, match=r"a CPU with avx9999[\s\S]*model\.onnx"):
        OnnxRuntime.open(Engine.read(engine.folder))


def large() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", ["batch", 3000])
    b.node("MatMul", x, b.weight(3000, 3000), to="y")
    b.output("y", ["batch", 3000])
    return b.model()


def test_big_weights_lie_in_files_of_their_own(tmp_path: Path) -> None:
    large().save(tmp_path / "model")
    stored = load_model(tmp_path / "model")
    assert isinstance(stored, OnnxModel)
    engine = build(OnnxRuntime(optimized=True), stored, tmp_path)
    sizes = {name: facts["bytes"] for name, facts in engine.manifest["files"].items()}
    assert set(sizes) == {MODEL, f"{MODEL}.data", OPTIMIZED, f"{OPTIMIZED}.data"}
    assert all(size >= 36e6 for name, size in sizes.items() if name.endswith(".data"))
    assert all(size < 1e5 for name, size in sizes.items() if name.endswith(".onnx"))
    with OnnxRuntime.open(engine) as session:
        bound = session.bind({"x": np.zeros((1, 3000), np.float32)})
        bound.run()
        np.testing.assert_array_equal(bound.outputs()["y"], np.zeros((1, 3000)))


def strings() -> OnnxModel:
    from onnx import TensorProto, helper

    text = [helper.make_tensor_value_info(n, TensorProto.STRING, ["batch"]) for n in "aby"]
    node = helper.make_node("StringConcat", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "strings", text[:2], text[2:])
    opset = helper.make_opsetid("", 20)
    return as_model(helper.make_model(graph, opset_imports=[opset], ir_version=10))


def test_strings_come_through(tmp_path: Path) -> None:
    engine = build(OnnxRuntime(), strings(), tmp_path)
    with OnnxRuntime.open(engine) as session:
        bound = session.bind({"a": np.array(["x", "longer"]), "b": np.array(["1", "2"])})
        bound.run()
        assert bound.outputs()["y"].tolist() == ["x1", "longer2"]
        with pytest.raises(InputError, match="is float32, the engine takes string"):
            session.bind({"a": np.zeros(2, np.float32), "b": np.array(["1", "2"])})


def test_types_that_cannot_be_handed_over_are_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = as_model(helper.make_model(graph, ir_version=10))
    with pytest.raises(CellError, match="cannot hand over the input `x`: it is bfloat16"):
        build(OnnxRuntime(), model, tmp_path)


def test_refused_model_names_the_node_and_nothing_internal(tmp_path: Path) -> None:
    b = GraphBuilder()
    # There is no kernel for a Conv of float64.
    x = b.input("x", ["batch", 2, 5, 5], "float64")
    b.node("Conv", x, b.constant(np.ones((2, 2, 1, 1)), dtype="float64"), name="odd", to="y")
    b.output("y", ["batch", 2, 5, 5], "float64")
    proto = b.proto()
    kept = {i.name: i for i in proto.graph.initializer}
    assert kept  # GraphBuilder turns Python floats into float32, never arrays with a dtype
    with pytest.raises(CellError) as caught:
        build(OnnxRuntime(), b.model(), tmp_path)
    assert caught.value.where == "node `odd`"
    assert "Could not find an implementation for Conv" in caught.value.what
    assert "onnxruntime_src" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_failing_run_names_the_node(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch"])
    b.node("Reshape", x, b.constant([2, 3]), name="into pairs", to="y")
    b.output("y", [2, 3])
    with OnnxRuntime.open(build(OnnxRuntime(), b.model(), tmp_path)) as session:
        bound = session.bind({"x": np.zeros(8, np.float32)})
        with pytest.raises(CellError) as caught:
            bound.run()
        assert caught.value.where == "node `into pairs`"
        again = session.bind({"x": np.ones(6, np.float32)})
        again.run()
        np.testing.assert_array_equal(again.outputs()["y"], np.ones((2, 3)))


def test_layers_are_the_same_where_weights_lie_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized()
    found = []
    for name, threshold in (("inside", 10**9), ("beside", 0)):
        monkeypatch.setattr("optimc.core.model.EXTERNAL_DATA_THRESHOLD", threshold)
        folder = tmp_path / name
        folder.mkdir()
        engine = build(OnnxRuntime(), model, folder)
        assert (engine.folder / "model.onnx.data").exists() == (name == "beside")
        with OnnxRuntime.open(engine) as session:
            found.append(session.layers())
    assert found[0]
    assert found[0] == found[1]
