"""`optimc diff`: where two models part, how values were matched, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.pipeline.diff.comparing import Limit
from optimc.pipeline.diff.job import DiffOptions, compare_models
from optimc.pipeline.observer import Silent
from optimc.report.diff import DiffReport, Trend
from optimc.targets.client import build_engine
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.testing.commands import run_optimc
from optimc.testing.graphs import GraphBuilder, branches


@pytest.fixture
def digits(repository: Path) -> Path:
    return repository / "recipes" / "quickstart" / "digits.onnx"


def _changed(model: Path, out: Path, name: str, factor: float) -> Path:
    """A copy of `model` whose initializer `name` is scaled."""
    proto = onnx.load(str(model))
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, name))
    onnx.save(proto, str(out))
    return out


def _compared(a: Path, b: Path, folder: Path, **options: object) -> DiffReport:
    folder.mkdir()
    wanted = DiffOptions(a, b, **{"limit": Limit(), **options})  # type: ignore[arg-type]
    return compare_models(wanted, folder, Limits(), Silent())


def _by_name(report: DiffReport) -> dict[str, Trend]:
    return {row.name: row.trend for row in report.rows}


def test_a_model_is_the_same_as_itself(digits: Path, tmp_path: Path) -> None:
    report = _compared(digits, digits, tmp_path / "w")
    assert report.same
    assert {row.matched for row in report.rows} == {"name"}
    assert {row.trend for row in report.rows} == {Trend.SAME}
    assert report.unmatched_a == report.unmatched_b == ()


def test_it_names_where_the_error_starts(digits: Path, tmp_path: Path) -> None:
    other = _changed(digits, tmp_path / "b.onnx", "down.0.weight", 2.0)
    report = _compared(digits, other, tmp_path / "w")
    assert not report.same
    nodes = onnx.load(str(digits)).graph.node
    weighted = next(n for n in nodes if n.op_type == "Conv" and "down.0.weight" in n.input)
    (start,) = report.with_trend(Trend.STARTS)
    assert start.name == weighted.output[0]
    assert start.noise == pytest.approx(1.0)
    assert start.sqnr_db == pytest.approx(0.0, abs=1e-6)


def _staged(path: Path, first: float, second: float) -> Path:
    """A chain whose second step is scaled by `first`, whose fourth by `second`."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    h = b.node("Mul", x, b.constant(first, "first"), to="scaled")
    h = b.node("Tanh", h, to="bent")
    h = b.node("Add", h, b.constant(second, "second"), to="moved")
    b.node("Mul", h, b.constant(0.5, "half"), to="y")
    b.output("y", ["batch", 4])
    onnx.save(b.proto(), str(path))
    return path


def test_it_starts_grows_and_heals(tmp_path: Path) -> None:
    a = _staged(tmp_path / "a.onnx", 1.0, 1000.0)
    b = _staged(tmp_path / "b.onnx", 1.01, 1000.0)
    trends = _by_name(_compared(a, b, tmp_path / "w"))
    assert trends["scaled"] is Trend.STARTS
    assert trends["moved"] is Trend.HEALS
    limit = Limit(tolerance=1e-9)
    c = _staged(tmp_path / "c.onnx", 1.0001, 1.0)
    d = _staged(tmp_path / "d.onnx", 1.0, 1.5)
    grown = _by_name(_compared(d, c, tmp_path / "v", limit=limit))
    assert grown["moved"] is Trend.GROWS


def test_renamed_values_are_matched_by_structure(digits: Path, tmp_path: Path) -> None:
    proto = onnx.load(str(digits))
    kept = {v.name for v in (*proto.graph.input, *proto.graph.output)}
    kept |= {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else f"other_{name}" for name in names]
    del proto.graph.value_info[:]
    onnx.save(proto, str(tmp_path / "b.onnx"))
    report = _compared(digits, tmp_path / "b.onnx", tmp_path / "w")
    assert report.same
    matched = {row.matched for row in report.rows if not row.output}
    assert matched <= {"structure", "position"}
    assert "structure" in matched
    assert all(row.other == f"other_{row.name}" for row in report.rows if not row.output)


def test_runtimes_and_engines(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    report = _compared(digits, digits, tmp_path / "w", runtime="openvino")
    assert report.same
    assert report.b_run == "OpenVINO, f32"
    assert any("does not fuse" in note for note in report.notes)
    optimized = _compared(digits, digits, tmp_path / "v", optimized=True, outputs_only=True)
    assert optimized.b_run.endswith("optimizations on")
    assert [row.name for row in optimized.rows] == ["logits"]


def test_an_engines_folder(digits: Path, tmp_path: Path) -> None:
    from optimc.frontends.onnx import load_onnx

    model = load_onnx(digits, workspace=tmp_path).model
    model.save(tmp_path / "stored")
    (tmp_path / "engine").mkdir()
    target = OnnxRuntime(runtime="onnxruntime")
    engine = build_engine(target, tmp_path / "stored", tmp_path / "engine", name="test")
    assert isinstance(engine, Engine)
    report = _compared(digits, tmp_path / "engine", tmp_path / "w")
    assert report.same
    assert report.b_run == "ONNX Runtime, graph optimizations on"


def test_subgraphs_are_said_to_be_left_out(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    branches().write_onnx(model)
    report = _compared(model, model, tmp_path / "w")
    assert report.same
    assert any("inside of subgraphs" in note for note in report.notes)


def test_memory_is_bounded_by_chunks() -> None:
    from optimc.pipeline.values import Chunks

    chunks = Chunks([str(n) for n in range(100)], most_bytes=1000)
    sizes, seen = [], []
    for chunk in chunks:
        sizes.append(len(chunk))
        seen += chunk
        chunks.seen(100)
    assert seen == [str(n) for n in range(100)]
    assert set(sizes[1:]) == {10} | {sizes[-1]}


def test_a_value_that_cannot_be_had_is_told_alone() -> None:
    from optimc.core.errors import CellError
    from optimc.pipeline.values import Chunks

    chunks = Chunks(list("abcdefgh"))
    got = []
    for chunk in chunks:
        if "f" in chunk:
            chunks.failed(chunk, CellError("a sequence"))
        else:
            got += chunk
    assert sorted(got) == list("abcdegh")
    assert chunks.refused == {"f": "a sequence"}


def test_the_command_answers_by_its_exit_code(digits: Path, tmp_path: Path) -> None:
    other = _changed(digits, tmp_path / "b.onnx", "head.weight", 1.01)
    page = tmp_path / "page.html"
    done = run_optimc("diff", digits, other, "--html", page, cwd=tmp_path)
    assert done.code == 4, done.err
    assert "The models differ: output logits" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert "\x1b" not in done.out
    assert "<svg" in page.read_text()
    same = run_optimc("diff", digits, other, "--min-sqnr", "30", "--json", cwd=tmp_path)
    assert same.code == 0, same.err
    assert json.loads(same.out)["same"] is True


def test_a_recipe_gives_its_source_and_its_data(repository: Path, tmp_path: Path) -> None:
    recipe = repository / "recipes" / "quickstart.yaml"
    model = repository / "recipes" / "quickstart" / "digits.onnx"
    report = _compared(recipe, model, tmp_path / "w", outputs_only=True)
    assert report.same
    assert report.inputs[0] == "calibration sample 0"


def test_inputs_from_a_file(digits: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.savez(tmp_path / "in.npz", input=image)
    report = _compared(digits, digits, tmp_path / "w", inputs=tmp_path / "in.npz")
    assert report.inputs == ("in.npz",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "none.onnx"], "cannot read the model"),
        (["digits", "other"], "take other inputs"),
        (["digits", "digits", "--inputs", "wrong.npz"], "unknown array `input`"),
        (["digits", "digits", "--inputs", "float64.npz"], "the model takes float32"),
        (["digits", "digits", "--inputs", "a.npz", "--recipe", "r.yaml"], "two kinds of inputs"),
        (["digits", "digits", "--runtime", "openvino", "--optimized"], "always optimizes"),
        (["digits", "program.pt2", "--untrusted"], "--untrusted refuses"),
        (["digits", "digits", "--tolerance", "-1"], "--tolerance"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], words: str, digits: Path, tmp_path: Path
) -> None:
    _staged(tmp_path / "other.onnx", 1.0, 1.0)
    (tmp_path / "program.pt2").write_bytes(b"PK")
    np.savez(tmp_path / "wrong.npz", images=np.zeros(3, np.float32))
    np.savez(tmp_path / "float64.npz", input=np.zeros((1, 1, 8, 8)))
    files = {"digits": digits, "other": tmp_path / "other.onnx"}
    done = run_optimc("diff", *(files.get(a, a) for a in arguments), cwd=tmp_path)
    assert done.code == 2, done.out
    assert words in done.err
    assert not done.traceback
