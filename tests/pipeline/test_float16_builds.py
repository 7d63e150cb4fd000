"""Builds with `float16`: both runtimes are held to float16's tolerance, however they compute."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.testing.commands import run_optimc

RECIPE = """
model: {onnx: quickstart/digits.onnx}
inputs: {input: {range: [0, 1]}}
variants:
  half: [simplify, fuse, float16]
  stored: [simplify, fuse, {float16: {storage_only: true}}]
targets:
  ort: {runtime: onnxruntime, threads: 1}
  ov: {runtime: openvino, threads: 1}
"""


def test_half_the_size_on_both_runtimes(tmp_path: Path, repository: Path) -> None:
    """OpenVINO computes these graphs in float32, and is as far from the source as float16 is."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    shutil.copytree(repository / "recipes" / "quickstart", tmp_path / "quickstart")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    options = BuildOptions(
        out=tmp_path / "out", command="optimc build", use_cache=False, measure=False
    )
    report = Build(load_recipe(tmp_path / "recipe.yaml"), options, Silent()).run()
    for cell in report.results:
        assert cell.status == "built", cell.reason
        last = cell.passes[-1]
        assert (last.name, last.verdict) == ("float16", "within_tolerance")
        assert last.bytes[1] < 0.6 * last.bytes[0]
        assert cell.engine is not None
        assert cell.engine.verdict == "within_tolerance"
        assert cell.engine.sqnr_db > 50


INTERFACE = """
model: {onnx: quickstart/digits.onnx}
inputs: {input: {range: [0, 1]}}
data:
  evaluation:
    npz: quickstart/digits_evaluation.npz
    inputs: {input: images}
    labels: labels
    take: 200
    transform: [nchw, {divide: 16}]
metrics: {top1: {}}
variants:
  half: [simplify, fuse, {float16: {keep_interface: false}}]
targets:
  ort: {runtime: onnxruntime, threads: 1}
  ov: {runtime: openvino, threads: 1}
benchmark: {until: time, at_most: 1 s}
gate: {ship: half/ort, drop: {top1: 0.5}}
"""


@pytest.mark.slow
def test_a_float16_interface_is_verified_judged_timed_and_bundled(
    tmp_path: Path, repository: Path
) -> None:
    """The same samples reach source and engine, each in its own type."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    shutil.copytree(repository / "recipes" / "quickstart", tmp_path / "quickstart")
    (tmp_path / "recipe.yaml").write_text(INTERFACE, encoding="utf-8")
    options = BuildOptions(out=tmp_path / "out", command="optimc build", use_cache=False)
    report = Build(load_recipe(tmp_path / "recipe.yaml"), options, Silent()).run()
    for cell in report.results:
        assert cell.status == "built", cell.reason
        assert cell.passes[-1].verdict == "within_tolerance"
        assert cell.engine.verdict == "within_tolerance"
        assert cell.metrics["top1"].value > 0.9
        folder = tmp_path / "out" / "artifacts" / "half" / cell.target
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sides = manifest["signature"]
        assert {spec[1] for spec in (*sides["inputs"], *sides["outputs"])} == {"float16"}
        assert "float16[" in manifest["load"]
        bundle = ("bundle", "out", "--cell", f"half/{cell.target}", "--format", "plain")
        done = run_optimc(*bundle, "-o", cell.target, cwd=tmp_path)
        assert done.code == 0, done.err
        checked = subprocess.run(
            [sys.executable, f"{cell.target}/check.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
