"""ONNX Runtime's own operators: found, equal, and loaded by the plain runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import CellError
from optimc.core.targets import BuildContext
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.targets.onnxruntime_fusions import fused
from optimc.testing import seeded_feeds
from optimc.testing.graphs import small_models
from optimc.testing.runs import run_model
from optimc.testing.transformer import feed_forward


def test_norms_and_gelu_become_operators_of_the_runtime() -> None:
    model = feed_forward()
    digest = model.sealed().digest
    found = fused(model)
    assert found is not None
    legal, added = found
    assert added == Counter({"SkipLayerNormalization": 2, "BiasGelu": 1})
    assert model.sealed().digest == digest
    assert legal.signature == model.signature
    feeds = seeded_feeds(model)
    for one, two in zip(run_model(model, feeds), run_model(legal, feeds), strict=True):
        assert np.abs(one["y"] - two["y"]).max() <= 1e-4 * np.abs(one["y"]).max()


@pytest.mark.parametrize("name", sorted(small_models()))
def test_other_graphs_stay_as_they_are(name: str, tmp_path: Path) -> None:
    model = small_models()[name]
    assert OnnxRuntime().legalize(model, BuildContext(workspace=tmp_path)) is model


def test_a_broken_fusion_is_the_cell_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript.rewriter import ort_fusions

    def broken(model: Any) -> Any:
        try:
            raise IndexError("the third input")
        except IndexError as error:
            raise RuntimeError("in some pass") from error

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", broken)
    with pytest.raises(CellError, match="the fusions broke: IndexError: the third input"):
        fused(feed_forward())


@pytest.mark.parametrize(
    ("fusions", "mode"), [("auto", "measured"), (True, "always"), (False, "never")]
)
def test_modes(fusions: Any, mode: str) -> None:
    assert OnnxRuntime(fusions=fusions).legalization == mode


def test_what_was_fused_is_said(tmp_path: Path) -> None:
    context = BuildContext(workspace=tmp_path)
    legal = OnnxRuntime().legalize(feed_forward(), context)
    assert "2 SkipLayerNormalization" in context.notes[0]
    folder = tmp_path / "engine"
    folder.mkdir()
    engine = OnnxRuntime().build(legal, folder, BuildContext(workspace=tmp_path))
    assert any("com.microsoft" in note for note in engine.manifest["notes"])
    plain = tmp_path / "plain"
    plain.mkdir()
    engine = OnnxRuntime().build(feed_forward(), plain, BuildContext(workspace=tmp_path))
    assert engine.manifest["notes"] == []
