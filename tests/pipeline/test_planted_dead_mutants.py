"""Planted bugs of `remove_dead_channels`, caught by verification alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import PassReport
from optimc.testing.dead_strategies import dead_bouquet
from optimc.testing.inline_workers import inline_workers
from optimc.testing.mutants_dead import MUTANTS, plant

RECIPE = """
model: {onnx: model.onnx}
variants: {v: [remove_dead_channels]}
targets: {ort: {runtime: onnxruntime}}
"""


def _built(folder: Path, mutant: str | None) -> PassReport:
    """The pass's line of a build without cache, labels or gate."""
    dead_bouquet().write_onnx(folder / "model.onnx")
    (folder / "recipe.yaml").write_text(RECIPE)
    options = BuildOptions(
        out=folder / "out",
        command="optimc build",
        use_cache=False,
        measure=False,
        fail_on_rollback=True,
    )
    with plant(mutant) if mutant else nullcontext(), inline_workers():
        report = Build(load_recipe(folder / "recipe.yaml"), options, Silent()).run()
    (line,) = report.results[0].passes
    return line


def test_without_a_mutant_the_pass_is_fine(tmp_path: Path) -> None:
    line = _built(tmp_path, None)
    assert line.verdict == "within_tolerance"
    assert line.rewrites


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_mutant_is_caught(mutant: str, tmp_path: Path) -> None:
    assert _built(tmp_path, mutant).verdict == "failed"
