"""What a target knows to refuse is told by `check`, and before a kit is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optimc.core.errors import ExitCode
from optimc.testing.commands import run_optimc
from optimc.testing.graphs import GraphBuilder

RECIPE = """
model: {{onnx: model.onnx}}
variants: {{cell: {{passes: [{passes}], targets: [{targets}]}}}}
targets:
  ort: {{runtime: onnxruntime}}
  trt: {{runtime: tensorrt, optional: true}}
"""


def write(folder: Path, *, dilation: int, passes: str = "", targets: str = "ort, trt") -> Path:
    """A recipe; TensorRT pools with a dilation of 1 alone, and learns NonZero's size late."""
    pytest.importorskip("onnxruntime")
    b = GraphBuilder(opset=20)
    x = b.input("x", (1, 2, 8, 8))
    side = 8 - dilation
    dilations = [dilation, dilation]
    b.node("MaxPool", x, kernel_shape=[2, 2], dilations=dilations, name="/pool", to="y")
    b.node("NonZero", x, name="/where", to="z")
    b.output("y", (1, 2, side, side))
    b.output("z", (4, "found"), "int64")
    b.model().write_onnx(folder / "model.onnx")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(passes=passes, targets=targets))
    return path


def test_check_names_the_node_the_reason_and_the_fix(tmp_path: Path) -> None:
    done = run_optimc("check", write(tmp_path, dilation=2), cwd=tmp_path)
    assert done.code == ExitCode.CELL, "no pass stands between the source and TensorRT"
    said = " ".join(done.err.split())
    assert "error: trt: /pool (MaxPool): its dilations must be 1 fix: drop the output" in said
    assert "warning: trt: /where (NonZero): the size of its output" in said


def test_check_leaves_to_passes_what_they_may_change(tmp_path: Path) -> None:
    done = run_optimc("check", write(tmp_path, dilation=2, passes="simplify"), cwd=tmp_path)
    assert done.code == ExitCode.OK, done.err
    assert "warning: trt: /pool (MaxPool)" in done.err
    assert "a pass may take it away" in done.err


def test_check_looks_at_no_model_for_other_targets(tmp_path: Path) -> None:
    path = write(tmp_path, dilation=2, targets="ort")
    heavy = "'onnx_ir', 'onnxruntime', 'torch'"
    code = (
        "import sys; from pathlib import Path; from optimc.cli.check import run_check;"
        f"code = run_check(Path({str(path)!r}), explain=False, settings=[], untrusted=False);"
        f"sys.exit(code or [m for m in ({heavy}) if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trt" not in done.stderr


def test_a_build_makes_no_kit_of_what_tensorrt_is_known_to_refuse(tmp_path: Path) -> None:
    recipe = write(tmp_path, dilation=2, passes="simplify")
    done = run_optimc("build", recipe, "-o", "out", "--no-measure", cwd=tmp_path)
    assert done.code == ExitCode.CELL
    cells = {
        cell["target"]: cell
        for cell in json.loads((tmp_path / "out/report.json").read_text())["results"]
    }
    assert cells["ort"]["status"] == "built"
    assert cells["trt"]["status"] == "failed"
    assert "/pool (MaxPool): its dilations must be 1 (fix: drop" in cells["trt"]["reason"]
    assert not (tmp_path / "out/artifacts/cell/trt").exists()


def test_warnings_become_notes(tmp_path: Path) -> None:
    recipe = write(tmp_path, dilation=1)
    done = run_optimc("build", recipe, "-o", "out", "--no-measure", cwd=tmp_path)
    assert done.code == ExitCode.OK, done.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert any("cell/trt: /where (NonZero): the size of its" in note for note in report["notes"])
    assert (tmp_path / "out/artifacts/cell/trt/kit.json").is_file()


def test_check_looks_for_what_the_named_release_takes(tmp_path: Path) -> None:
    b = GraphBuilder(opset=23)
    b.node("Relu", b.input("x", (1, 4)), to="y")
    b.output("y", (1, 4))
    b.model().write_onnx(tmp_path / "model.onnx")
    path, text = tmp_path / "recipe.yaml", RECIPE.format(passes="", targets="trt")
    for release, code, words in (
        ("", ExitCode.CELL, "TensorRT 10.12's parser reads up to opset 22"),
        (", release: '11.4'", ExitCode.OK, "fine"),
        (", release: '10.3'", ExitCode.INPUT, "TensorRT 10.3 is too old"),
        (", release: 11.4", ExitCode.INPUT, 'put the release in quotes: "11.4"'),
        (", optimization_level: auto", ExitCode.INPUT, "write a number, 0 to 5, or one target"),
    ):
        path.write_text(text.replace("optional: true", f"optional: true{release}"))
        done = run_optimc("check", path, cwd=tmp_path)
        assert done.code == code, done.err
        assert words in " ".join(done.err.split())


def test_a_profile_that_does_not_fit_the_dims_is_named_at_its_place(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    b = GraphBuilder(opset=20)
    b.node("Relu", b.input("x", ("batch", 4)), to="y")
    b.output("y", ("batch", 4))
    b.model().write_onnx(tmp_path / "model.onnx")
    path = tmp_path / "recipe.yaml"
    text = RECIPE.format(passes="", targets="trt")
    path.write_text(text.replace("optional: true", "profiles: [{batch: [1, 2, 4]}]"))
    for command in (["check"], ["build", "-o", "out"]):
        done = run_optimc(*command, path, cwd=tmp_path)
        assert done.code == ExitCode.INPUT, done.err
        assert "no profile holds batch=8, which the recipe's `dims` ask for" in done.err
        assert "recipe.yaml:6:" in done.err
