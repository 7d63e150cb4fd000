"""Builds with `float16`: both runtimes are held to float16's tolerance, however they compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe

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
