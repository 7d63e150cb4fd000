"""Planted bugs of the passes, caught by verification alone: the contract suite plays no part."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import Report
from optimc.testing import mutants_quantize, mutants_simplify

# No gate and no labels: nothing but the default bounds can object.
RECIPE = """
model: {onnx: quickstart/digits.onnx}
inputs: {input: {range: [0, 1]}}
data:
  calibration:
    npz: quickstart/digits_calibration.npz
    inputs: {input: images}
    transform: [nchw, {divide: 16}]
variants: {int8: [simplify, fuse, quantize_int8]}
targets: {ort: {runtime: onnxruntime}}
"""


def _build(folder: Path, repository: Path) -> Report:
    shutil.copytree(repository / "recipes" / "quickstart", folder / "quickstart")
    (folder / "recipe.yaml").write_text(RECIPE)
    options = BuildOptions(
        out=folder / "out",
        command="optimc build",
        use_cache=False,
        measure=False,
        fail_on_rollback=True,
    )
    return Build(load_recipe(folder / "recipe.yaml"), options, Silent()).run()


def test_without_a_mutant_nothing_is_rolled_back(tmp_path: Path, repository: Path) -> None:
    report = _build(tmp_path, repository)
    assert [cell.status for cell in report.results] == ["built"]


@pytest.mark.parametrize("name", sorted(mutants_simplify.MUTANTS))
def test_a_mutant_of_simplify_is_caught(name: str, tmp_path: Path, repository: Path) -> None:
    with mutants_simplify.plant(name):
        report = _build(tmp_path, repository)
    first = report.results[0].passes[0]
    assert (first.name, first.verdict) == ("simplify", "failed")
    assert report.results[0].status == "failed"


@pytest.mark.parametrize("name", sorted(mutants_quantize.MUTANTS))
def test_a_mutant_of_quantize_int8_is_caught(name: str, tmp_path: Path, repository: Path) -> None:
    with mutants_quantize.plant(name):
        report = _build(tmp_path, repository)
    last = report.results[0].passes[-1]
    assert (last.name, last.verdict) == ("quantize_int8", "failed")
    assert report.results[0].status == "failed"
