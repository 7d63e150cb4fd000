"""Planted bugs of the other passes, caught by verification alone; thirty in all with those of
`simplify` and `quantize_int8` in test_planted_mutants.py."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from optimc.core.model import OnnxModel
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import PassReport
from optimc.testing import mutants_fuse, mutants_precision, mutants_quantize, mutants_simplify
from optimc.testing.inline_workers import inline_workers
from optimc.testing.mutants_fuse import FUSE_MUTANTS, PREPROCESS_MUTANTS, bouquet
from optimc.testing.mutants_precision import DYNAMIC_MUTANTS, FLOAT16_MUTANTS, products

RECIPE = """
model: {{onnx: model.onnx}}
variants: {{v: [{name}]}}
targets: {{ort: {{runtime: onnxruntime}}}}
"""
PLANTED = [
    *[("fuse", name) for name in FUSE_MUTANTS],
    *[("fold_preprocess", name) for name in PREPROCESS_MUTANTS],
    *[("float16", name) for name in FLOAT16_MUTANTS],
    *[("quantize_dynamic", name) for name in DYNAMIC_MUTANTS],
]


def _built(name: str, folder: Path) -> PassReport:
    """The pass's line of a build without cache, labels or gate."""
    model: OnnxModel = bouquet() if name.startswith("f") and name != "float16" else products()
    model.write_onnx(folder / "model.onnx")
    (folder / "recipe.yaml").write_text(RECIPE.format(name=name))
    options = BuildOptions(
        out=folder / "out",
        command="optimc build",
        use_cache=False,
        measure=False,
        fail_on_rollback=True,
    )
    with inline_workers():
        report = Build(load_recipe(folder / "recipe.yaml"), options, Silent()).run()
    (line,) = report.results[0].passes
    assert line.name == name
    return line


@pytest.mark.parametrize("name", sorted({name for name, _ in PLANTED}))
def test_without_a_mutant_the_pass_is_fine(name: str, tmp_path: Path) -> None:
    line = _built(name, tmp_path)
    assert line.verdict in ("within_tolerance", "lossy")
    assert line.rewrites


@pytest.mark.parametrize(("name", "mutant"), PLANTED)
def test_a_mutant_is_caught(name: str, mutant: str, tmp_path: Path) -> None:
    module = mutants_fuse if name.startswith("f") and name != "float16" else mutants_precision
    with module.plant(mutant) if mutant else nullcontext():
        assert _built(name, tmp_path).verdict == "failed"


def test_there_are_thirty_in_all() -> None:
    others = len(mutants_simplify.MUTANTS) + len(mutants_quantize.MUTANTS)
    assert len(PLANTED) + others >= 30
