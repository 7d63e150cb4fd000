"""What a build leaves for a target that cannot be built here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimc.core.errors import ExitCode
from optimc.testing.commands import run_optimc
from optimc.testing.graphs import convolutions

RECIPE = """
model: {{onnx: model.onnx}}
dims: {{batch: {{min: 1, typical: 2, max: 4}}}}
variants: {{int8: {{passes: [simplify, fuse, quantize_int8]}}}}
targets:
  ort: {{runtime: onnxruntime}}
  trt: {{runtime: tensorrt, optional: {optional}, workspace_mb: 64}}
"""
KIT = "out/artifacts/int8/trt"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    convolutions().write_onnx(tmp_path / "model.onnx")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(optional="true"))
    return path


def test_an_optional_target_is_deferred_and_the_rest_is_judged(recipe: Path) -> None:
    done = run_optimc("build", recipe, "-o", "out", "--no-measure", cwd=recipe.parent)
    assert done.code == ExitCode.OK, done.err
    report = json.loads((recipe.parent / "out/report.json").read_text())
    cells = {cell["target"]: cell for cell in report["results"]}
    assert cells["ort"]["status"] == "built"
    assert cells["trt"]["status"] == "deferred"
    assert "artifacts/int8/trt" in cells["trt"]["reason"]
    assert [p["pass"] for p in cells["trt"]["passes"]] == ["simplify", "fuse", "quantize_int8"]


def test_a_kit_holds_the_model_the_options_and_probes_that_agree_with_it(recipe: Path) -> None:
    done = run_optimc("build", recipe, "-o", "out", "--no-measure", cwd=recipe.parent)
    kit = recipe.parent / KIT
    assert done.code == ExitCode.OK, done.err
    told = json.loads((kit / "kit.json").read_text())
    options = json.loads((kit / "tensorrt.json").read_text())
    assert told["dims"] == {"batch": {"min": 1, "typical": 2, "max": 4, "multiple_of": 1}}
    assert options["workspace_mb"] == 64
    assert options["profiles"] == [{"image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}]
    line = (kit / "trtexec.sh").read_text()
    assert "--maxShapes=image:4x3x8x8" in line
    assert "--memPoolSize=workspace:64000000B" in line, "trtexec's M is 2 to the power of 20"
    check_probes(kit)


def check_probes(kit: Path) -> None:
    """The expected outputs are those of the placed model with optimizations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(kit / "model/model.onnx"), options)
    with np.load(kit / "probes.npz", allow_pickle=False) as probes:
        numbers = {key.split(".")[0] for key in probes.files}
        assert len(numbers) >= 3
        for number in numbers:
            (found,) = session.run(["logits"], {"image": probes[f"{number}.in.0"]})
            np.testing.assert_array_equal(found, probes[f"{number}.out.0"])
            assert not np.array_equal(found, probes[f"{number}.ref.0"]), "INT8 is not the source"


@pytest.mark.parametrize(("optional", "more"), [("true", ["--target", "trt"]), ("false", [])])
def test_who_asks_for_it_gets_exit_3_the_remedy_and_the_kit(
    recipe: Path, optional: str, more: list[str]
) -> None:
    recipe.write_text(RECIPE.format(optional=optional))
    done = run_optimc("build", recipe, "-o", "out", "--no-measure", *more, cwd=recipe.parent)
    assert done.code == ExitCode.CELL
    assert "pip install 'optimc[tensorrt]'" in " ".join(done.err.split())
    assert (recipe.parent / KIT / "kit.json").is_file()


def test_the_kits_script_needs_nothing_of_optimc(recipe: Path) -> None:
    done = run_optimc("build", recipe, "-o", "out", "--no-measure", cwd=recipe.parent)
    assert done.code == ExitCode.OK, done.err
    kit = shutil.copytree(recipe.parent / KIT, recipe.parent / "elsewhere")
    assert "optimc" not in "".join(
        line for line in (kit / "build_engine.py").read_text().splitlines() if "import" in line
    ).replace("nothing of optimc", "")
    ran = subprocess.run(
        [sys.executable, "-I", str(kit / "build_engine.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3
    assert "No module named 'tensorrt'" in ran.stderr
    assert "pip install tensorrt cuda-bindings numpy" in ran.stderr
