from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optimc.core.errors import CellError
from optimc.core.model import OnnxModel
from optimc.core.targets import BuildContext, ClockedBound, Engine
from optimc.targets.layers import summary
from optimc.targets.openvino import OpenVino
from optimc.targets.openvino_ir import number_names
from optimc.testing.graphs import GraphBuilder, convolutions, quantized
from optimc.testing.target_models import many_types

pytest.importorskip("openvino", reason="needs the extra `openvino`")


def build(target: OpenVino, model: OnnxModel, tmp_path: Path) -> Engine:
    folder = tmp_path / "engine"
    folder.mkdir()
    return target.build(model, folder, BuildContext(workspace=tmp_path))


def test_float32_is_what_runs_by_default(tmp_path: Path) -> None:
    with OpenVino.open(build(OpenVino(), convolutions(), tmp_path)) as session:
        assert {layer.dtype for layer in session.layers() if layer.heavy} == {"float32"}
        read = summary(session.layers())
    assert (read["precision"], read["int8_share"], read["islands"]) == ("f32", 0.0, [])


def test_one_thread_gives_what_two_give(tmp_path: Path) -> None:
    engine = build(OpenVino(threads=1), convolutions(), tmp_path)
    feeds = {"image": np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)}
    outputs = []
    for threads in (1, 2):
        with OpenVino.open(engine, threads=threads) as session:
            bound = session.bind(feeds)
            bound.run()
            outputs.append(bound.outputs()["logits"])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_float32_weights_stay_float32(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 64])
    b.node("MatMul", x, b.weight(64, 64), to="y")
    b.output("y", ["batch", 64])
    engine = build(OpenVino(), b.model(), tmp_path)
    assert engine.manifest["files"]["model.bin"]["bytes"] >= 64 * 64 * 4


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_precision_is_taken_or_refused(precision: str, tmp_path: Path) -> None:
    import openvino

    OpenVino.preload()
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": precision}
    model = core.read_model(_onnx(convolutions(), tmp_path))
    compiled = core.compile_model(model, "CPU", config)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    target = OpenVino.model_validate({"precision": precision})
    if taken != precision:
        with pytest.raises(CellError, match=f"asked for {precision} but computes in {taken}"):
            build(target, convolutions(), tmp_path)
        # An engine that was made on another machine is checked where it is opened.
        place = tmp_path / "elsewhere"
        place.mkdir()
        engine = build(OpenVino(), convolutions(), place)
        with pytest.raises(CellError, match=f"asked for {precision} but computes in {taken}"):
            OpenVino.open(engine, precision=precision)
        return
    engine = build(target, convolutions(), tmp_path)
    with OpenVino.open(engine) as session:
        assert summary(session.layers())["precision"] == precision
    native = precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert any("emulates" in note for note in engine.manifest["notes"]) is not native


def _onnx(model: OnnxModel, tmp_path: Path) -> str:
    model.write_onnx(tmp_path / "plain.onnx")
    return str(tmp_path / "plain.onnx")


def test_int8_layers_and_islands_are_read_back(tmp_path: Path) -> None:
    model = quantized()
    with OpenVino.open(build(OpenVino(), model, tmp_path)) as session:
        read = summary(session.layers())
    assert read["int8_share"] == 1.0
    assert read["islands"] == []


def test_float_layer_of_a_quantized_model_is_an_island(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 16])
    scale, zero = b.constant(0.02), b.constant(128, dtype="uint8")
    levels = b.node("QuantizeLinear", x, scale, zero)
    h = b.node("DequantizeLinear", levels, scale, zero)
    weight = b.constant(b.rng.integers(-127, 128, (16, 16)), dtype="int8")
    h = b.node("MatMul", h, b.node("DequantizeLinear", weight, b.constant(0.01)), name="first")
    b.node("MatMul", b.node("Tanh", h), b.weight(16, 4), name="head", to="y")
    b.output("y", ["batch", 4])
    with OpenVino.open(build(OpenVino(), b.model(), tmp_path)) as session:
        read = summary(session.layers())
    assert read["int8_share"] == 0.5
    assert [island["node"] for island in read["islands"]] == ["y"]
    assert "float32" in read["islands"][0]["reason"]


def test_failed_run_is_told_and_the_session_is_done(tmp_path: Path) -> None:
    """With one thread, OpenVINO's `infer` would return what the memory holds."""
    b = GraphBuilder()
    x = b.input("x", ["batch"])
    b.node("Exp", b.node("Reshape", x, b.constant([2, 3])), to="y")
    b.output("y", [2, 3])
    engine = build(OpenVino(threads=1), b.model(), tmp_path)
    good, bad = np.zeros(6, np.float32), np.zeros(8, np.float32)
    with OpenVino.open(engine) as session:
        bound = session.bind({"x": good})
        bound.run()
        np.testing.assert_array_equal(bound.outputs()["y"], np.ones((2, 3)))
        wrong = session.bind({"x": bad})
        with pytest.raises(CellError, match="fails while running the engine"):
            wrong.run()
        with pytest.raises(CellError, match="fails while running the engine"):
            session.bind({"x": good})
    with OpenVino.open(engine) as session:
        fresh = session.bind({"x": good})
        fresh.run()
        np.testing.assert_array_equal(fresh.outputs()["y"], np.ones((2, 3)))


def test_later_runs_give_what_the_first_gave_and_the_runtime_times_them(tmp_path: Path) -> None:
    engine = build(OpenVino(), convolutions(), tmp_path)
    feeds = {"image": np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)}
    with OpenVino.open(engine) as session:
        bound = session.bind(feeds)
        assert isinstance(bound, ClockedBound)
        seen = []
        for _ in range(3):
            start = time.perf_counter_ns()
            ns = bound.run_ns()
            assert 0 < ns <= time.perf_counter_ns() - start
            seen.append(bound.outputs())
    for name in seen[0]:
        for later in seen[1:]:
            np.testing.assert_array_equal(later[name], seen[0][name])


def test_notes_tell_that_wide_types_are_narrowed(tmp_path: Path) -> None:
    engine = build(OpenVino(), many_types(), tmp_path)
    assert engine.manifest["notes"] == ["OpenVINO's CPU plugin computes float64, int64 in 32 bits"]


def test_strings_are_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    from optimc.testing.runs import as_model

    x, y = (helper.make_tensor_value_info(n, TensorProto.STRING, ["batch"]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = as_model(helper.make_model(graph, ir_version=10))
    with pytest.raises(CellError, match="cannot hand over the input `x`: it is string"):
        build(OpenVino(), model, tmp_path)


def test_operator_that_openvino_lacks_is_one_message(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    image = b.node("Reshape", x, b.constant([0, 2, 2]))
    b.node("Det", image, name="determinant", to="y")
    b.output("y", ["batch"])
    with pytest.raises(CellError) as caught:
        build(OpenVino(), b.model(), tmp_path)
    assert "OpenVINO fails while converting the model" in caught.value.what
    assert "Det" in caught.value.what
    assert "Exception from" not in caught.value.what


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "stored"])
def test_constants_without_elements_keep_their_shape(kept: bool, tmp_path: Path) -> None:
    """OpenVINO's front end takes them for scalars: x + [] then has as many elements as x."""
    from onnx import helper, numpy_helper

    def empty(*shape: int, dtype: str = "float32") -> np.ndarray:
        return np.zeros(shape, dtype)

    b = GraphBuilder()
    x, take = b.input("x", [1]), b.input("take", [], "bool")
    b.output(b.node("Add", x, b.constant(empty(0)), to="sum"), [0])
    b.output(b.node("Reshape", x, b.constant(empty(0, dtype="int64")), to="one"), [])
    b.output(b.node("Identity", b.constant(empty(0, 3, dtype="int64")), to="ids"), [0, 3], "int64")
    b.output(b.node("Concat", b.constant(empty(0)), x, axis=0, to="joined"), [1])
    branches = {}
    for side in ("then_branch", "else_branch"):
        inner = b.inner()
        held = numpy_helper.from_array(empty(2, 0))
        inner._nodes.append(helper.make_node("Constant", [], [inner.unique("k")], value=held))
        made = inner.node("Identity", inner._nodes[-1].output[0])
        branches[side] = (inner.output(made, [2, 0]), inner.graph(side))[1]
    b.output(b.node("If", take, to="wide", **branches), [2, 0])
    model = b.model()
    feeds = {"x": np.ones(1, np.float32), "take": np.array(True)}
    if kept:
        model.save(tmp_path / "stored")
        model = OnnxModel(folder=tmp_path / "stored")
    with OpenVino.open(build(OpenVino(), model, tmp_path)) as session:
        bound = session.bind(feeds)
        bound.run()
        shapes = {name: array.shape for name, array in bound.outputs().items()}
    assert shapes == {"sum": (0,), "one": (), "ids": (0, 3), "joined": (1,), "wide": (2, 0)}


def test_source_names_stay_and_generated_ones_are_numbered(tmp_path: Path) -> None:
    xml = tmp_path / "model.xml"
    names = ["relu_7", "Constant_1234", "relu_7/WithoutBiases", "Add_9", "x", "Add_9_99/sink"]
    layer = '<layer id="{}" name="{}" type="Add" version="opset1">\n'
    xml.write_text("".join(layer.format(i, n) for i, n in enumerate(names)), encoding="utf-8")
    number_names(xml, frozenset({"relu_7", "x"}))
    given = re.findall(r'name="([^"]*)"', xml.read_text(encoding="utf-8"))
    assert given == ["relu_7", "Add.1", "relu_7/WithoutBiases", "Add.2", "x", "Add.3"]


def test_telemetry_is_not_even_loaded() -> None:
    code = (
        "import sys\n"
        "from optimc.targets.openvino import OpenVino\n"
        "OpenVino.preload()\n"
        "import openvino, openvino.tools.ovc\n"
        "loaded = [n for n in sys.modules if n.startswith('openvino_telemetry')]\n"
        "assert [sys.modules[n] for n in loaded] == [None], loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
