"""Builds with the passes that recover accuracy: what they are given, and where they must stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.testing.recoverable import depthwise_chain

RECIPE = """
model: {onnx: model.onnx}
variants:
  recovered:
    - simplify
    - fuse
    - equalize
    - quantize_int8
    - {fit_rounding: {samples: 32, iterations: 0}}
    - {correct_bias: {samples: 32}}
targets: {ort: {runtime: onnxruntime, threads: 1}}
"""


def _built(tmp_path: Path, text: str) -> Any:
    if not (tmp_path / "model.onnx").exists():
        depthwise_chain().write_onnx(tmp_path / "model.onnx")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    options = BuildOptions(out=tmp_path / "out", command="optimc build", measure=False)
    return Build(load_recipe(tmp_path / "recipe.yaml"), options, Silent()).run().results[0]


def test_recovery_reads_the_float_model_and_is_remembered(tmp_path: Path) -> None:
    first = _built(tmp_path, RECIPE)
    assert first.status == "built", first.reason
    rounding, bias = first.passes[-2:]
    assert (rounding.name, bias.name) == ("fit_rounding", "correct_bias")
    assert rounding.rewrites > 0
    assert rounding.verdict == "lossy"
    again = _built(tmp_path, RECIPE)
    assert {one.cache for one in again.passes} == {"hit"}
    # The float model behind them counts: with another one, the same passes run anew.
    other = _built(tmp_path, RECIPE.replace("    - equalize\n", ""))
    assert [one.cache for one in other.passes[-3:]] == ["miss"] * 3


@pytest.mark.parametrize("name", ["fit_rounding", "correct_bias"])
def test_before_quantize_int8_they_name_their_place(tmp_path: Path, name: str) -> None:
    text = RECIPE[: RECIPE.index("    - simplify")] + f"    - {name}\n    - quantize_int8\n"
    text += "targets: {ort: {runtime: onnxruntime, threads: 1}}\n"
    with pytest.raises(InputError) as caught:
        _built(tmp_path, text)
    assert "no pass before it quantizes one" in caught.value.what
    assert caught.value.where == "variants.recovered"
    assert caught.value.fix == f"put {name} behind quantize_int8"
