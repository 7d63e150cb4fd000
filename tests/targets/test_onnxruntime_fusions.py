"""ONNX Runtime's own operators: found, equal, and loaded by the plain runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from optimc.core.errors import CellError
from optimc.core.model import OnnxModel
from optimc.core.targets import BuildContext
from optimc.passes.quantize_dynamic import QuantizeDynamic
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.simplify import Simplify
from optimc.targets._onnxruntime_attention import fuse_attention
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.targets.onnxruntime_fusions import ATTENTION, PRODUCT, RESIDUAL, fused
from optimc.testing import run_pass, seeded_feeds
from optimc.testing.calibrated import random_calibration
from optimc.testing.graphs import small_models
from optimc.testing.runs import run_model
from optimc.testing.transformer import attention, feed_forward, gelu_alone


def equal_to(model: OnnxModel, legal: OnnxModel, bound: float = 1e-4) -> None:
    """Holds both against each other on seeded inputs."""
    feeds = seeded_feeds(model)
    for one, two in zip(run_model(model, feeds), run_model(legal, feeds), strict=True):
        assert np.abs(one["y"] - two["y"]).max() <= bound * np.abs(one["y"]).max()


def test_residuals_in_front_of_norms_are_sums_that_are_not_fused(tmp_path: Path) -> None:
    model = feed_forward()
    digest = model.sealed().digest
    found = fused(model)
    assert found is not None
    legal, added = found
    assert added == Counter({RESIDUAL: 2})
    assert model.sealed().digest == digest
    assert legal.signature == model.signature
    equal_to(model, legal, bound=0.0)
    # What this is for: the runtime leaves its slow kernel alone.
    assert "SkipLayerNormalization" in optimized(model, tmp_path)
    kinds = optimized(legal, tmp_path)
    assert "SkipLayerNormalization" not in kinds
    assert kinds.count("LayerNormalization") == 2


def optimized(model: OnnxModel, folder: Path) -> list[str]:
    """The operators that the runtime makes of a model."""
    path = folder / "model.onnx"
    model.write_onnx(path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node]


def test_gelu_with_its_bias_becomes_one_operator() -> None:
    model = gelu_alone()
    found = fused(model)
    assert found is not None
    assert found[1] == Counter({"BiasGelu": 1})
    equal_to(model, found[0])


@pytest.mark.parametrize("swap", ["dance", "transpose", "once"])
@pytest.mark.parametrize(("masked", "guarded"), [(True, True), (True, False), (False, False)])
def test_attention_becomes_one_operator(swap: str, masked: bool, guarded: bool) -> None:
    model = attention(masked=masked, guarded=guarded, swap=swap).sealed()
    found = fused(infer(model))
    assert found is not None
    legal, added = found
    assert added == Counter({ATTENTION: 1})
    kinds = [node.op_type for node in legal.ir.graph]
    assert "Softmax" not in kinds
    assert "Transpose" not in kinds
    equal_to(model, legal)


def infer(model: OnnxModel) -> OnnxModel:
    """The model with its inner shapes, as `simplify` leaves it."""
    return run_pass(Simplify(), model).model  # type: ignore[return-value]


def test_attention_behind_masks_of_infinities_stays() -> None:
    model = infer(attention(infinite=True))
    found = fused(model)
    assert found is None or ATTENTION not in found[1]


def test_a_mask_that_is_the_same_for_all_queries_is_not_handed_over() -> None:
    model = infer(attention(queries=1))
    assert fuse_attention(model.clone().ir) == 0
    found = fused(model)
    assert found is not None  # by onnxscript, which spreads the mask
    equal_to(model, found[0])


def test_attention_around_integer_products() -> None:
    model = infer(attention())
    spec = OnnxRuntime().spec()
    dynamic = run_pass(QuantizeDynamic(), model, spec=spec).model
    found = fused(dynamic)
    assert found is not None
    assert found[1] == Counter({ATTENTION: 1})
    equal_to(dynamic, found[0])


def test_static_products_take_in_their_bias(tmp_path: Path) -> None:
    model = infer(attention())
    calibration = random_calibration(model)
    spec = OnnxRuntime().spec()
    static = run_pass(QuantizeInt8(), model, spec=spec, calibration=calibration).model
    found = fused(static)
    assert found is not None
    legal, added = found
    assert added == Counter({ATTENTION: 1, PRODUCT: 4})
    equal_to(static, legal)
    assert optimized(legal, tmp_path).count("MatMulIntegerToFloat") == 4


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
        fused(gelu_alone())


@pytest.mark.parametrize(
    ("fusions", "mode"), [("auto", "measured"), (True, "always"), (False, "never")]
)
def test_modes(fusions: Any, mode: str) -> None:
    assert OnnxRuntime(fusions=fusions).legalization == mode


def test_what_was_fused_is_said(tmp_path: Path) -> None:
    context = BuildContext(workspace=tmp_path)
    OnnxRuntime().legalize(feed_forward(), context)
    assert "wrote 2 Sum in front of LayerNormalization" in context.notes[0]
    legal = OnnxRuntime().legalize(gelu_alone(), context)
    folder = tmp_path / "engine"
    folder.mkdir()
    engine = OnnxRuntime().build(legal, folder, BuildContext(workspace=tmp_path))
    assert any("com.microsoft" in note for note in engine.manifest["notes"])
    plain = tmp_path / "plain"
    plain.mkdir()
    engine = OnnxRuntime().build(feed_forward(), plain, BuildContext(workspace=tmp_path))
    assert engine.manifest["notes"] == []
