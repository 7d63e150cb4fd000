"""`correct_bias`: the contract, and that each channel's mean is the float model's afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration, PassContext, RewriteLog, UndeclaredInputError
from optimc.passes.correct_bias import CorrectBias
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import tensorrt
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.recoverable import depthwise_chain, origin_of, quantized, quantized_models
from optimc.testing.runs import run_model, run_pass, seeded_feeds

PASS = CorrectBias(samples=32)


class TestCorrectBias(PassContract):
    passes = (PASS,)

    def models(self) -> Mapping[str, OnnxModel]:
        return quantized_models()

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)

    def quantized_from(self, model: OnnxModel) -> OnnxModel | None:
        return origin_of(model)


def test_the_mean_error_of_the_outputs_goes_away() -> None:
    model = depthwise_chain()
    before = quantized(model, per_channel=False)
    after = run_pass(
        CorrectBias(), before, calibration=random_calibration(model), quantized_from=model
    ).model
    assert isinstance(after, OnnxModel)
    feeds = seeded_feeds(model, sizes=(400,), seed=1)  # not the samples of the calibration
    wanted, plain, corrected = (run_model(m, feeds)[0]["logits"] for m in (model, before, after))
    error, left = np.abs((plain - wanted).mean(0)), np.abs((corrected - wanted).mean(0))
    assert left.max() < 0.5 * error.max()
    assert np.square(corrected - wanted).mean() < 0.5 * np.square(plain - wanted).mean()


def test_only_biases_change() -> None:
    model = depthwise_chain()
    before = quantized(model)
    after = run_pass(
        PASS, before, calibration=random_calibration(model), quantized_from=model
    ).model
    assert isinstance(after, OnnxModel)
    assert [n.op_type for n in after.ir.graph] == [n.op_type for n in before.ir.graph]
    kept, new = before.ir.graph.initializers, after.ir.graph.initializers
    changed = [name for name in new if name not in kept]
    assert changed
    assert all(new[name].dtype == onnx_ir.DataType.INT32 for name in changed)
    for name in kept.keys() & new.keys():
        assert np.array_equal(kept[name].const_value.numpy(), new[name].const_value.numpy())  # type: ignore[union-attr]


def test_a_float_bias_is_corrected_too() -> None:
    model = depthwise_chain()
    calibration = random_calibration(model)
    before = run_pass(
        QuantizeInt8(), model, spec=target_spec(tensorrt()), calibration=calibration
    ).model
    assert isinstance(before, OnnxModel)
    result = run_pass(PASS, before, calibration=calibration, quantized_from=model)
    assert result.rewrites
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model, sizes=(400,), seed=1)
    wanted, plain, corrected = (
        run_model(m, feeds)[0]["logits"] for m in (model, before, result.model)
    )
    assert np.square(corrected - wanted).mean() < np.square(plain - wanted).mean()


def test_a_float_model_is_refused_with_the_way_out() -> None:
    model = depthwise_chain()
    with pytest.raises(PreconditionError) as caught:
        run_pass(PASS, model, calibration=random_calibration(model))
    assert "no pass before it quantized" in caught.value.what
    assert caught.value.fix == "put correct_bias behind quantize_int8"


def test_layers_without_a_bias_are_refused() -> None:
    model = quantized_models()["matmul"]
    result = run_pass(
        PASS, model, calibration=random_calibration(model), quantized_from=origin_of(model)
    )
    assert not result.modified
    assert {refusal.reason for refusal in result.refusals} == {"it has no constant bias to correct"}


def test_samples_is_at_least_one() -> None:
    with pytest.raises(ValidationError, match="samples"):
        CorrectBias(samples=0)


def test_only_passes_that_declare_it_see_the_float_model(tmp_path: Path) -> None:
    context = PassContext(frozenset(), RewriteLog(), 0, tmp_path, quantized_from=depthwise_chain())
    with pytest.raises(UndeclaredInputError, match="FLOAT"):
        _ = context.float_model
