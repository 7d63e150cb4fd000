"""`fit_rounding`: the contract, that outputs get nearer, and what it does not touch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration
from optimc.passes._rounding import Problem, fitted
from optimc.passes.fit_rounding import FitRounding
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import openvino_cpu
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.quantizable import transposed
from optimc.testing.recoverable import depthwise_chain, origin_of, quantized, quantized_models
from optimc.testing.runs import run_model, run_pass, seeded_feeds

FLIPS = FitRounding(samples=32, iterations=0)


class TestFitRounding(PassContract):
    passes = (FLIPS,)

    def models(self) -> Mapping[str, OnnxModel]:
        return quantized_models()

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)

    def quantized_from(self, model: OnnxModel) -> OnnxModel | None:
        return origin_of(model)


@pytest.mark.parametrize("iterations", [0, 200])
def test_outputs_get_nearer_to_the_float_model(iterations: int) -> None:
    model = depthwise_chain()
    before = quantized(model, per_channel=False)
    result = run_pass(
        FitRounding(iterations=iterations),
        before,
        calibration=random_calibration(model),
        quantized_from=model,
    )
    assert isinstance(result.model, OnnxModel)
    assert float(result.stats["gain_db"]) > 1.0
    feeds = seeded_feeds(model, sizes=(400,), seed=1)  # not the samples of the calibration
    wanted, plain, better = (
        run_model(m, feeds)[0]["logits"] for m in (model, before, result.model)
    )
    assert np.square(better - wanted).mean() < 0.5 * np.square(plain - wanted).mean()


def test_weights_move_by_one_at_most_and_nothing_else_changes() -> None:
    model = depthwise_chain()
    before = quantized(model)
    after = run_pass(
        FLIPS, before, calibration=random_calibration(model), quantized_from=model
    ).model
    assert isinstance(after, OnnxModel)
    old, new = before.ir.graph.initializers, after.ir.graph.initializers
    moved = 0
    for name, value in new.items():
        array = value.const_value.numpy()  # type: ignore[union-attr]
        kept = old[name.removesuffix("_fitted")].const_value.numpy()  # type: ignore[union-attr]
        if name in old:
            assert np.array_equal(array, kept)
        else:
            moved += int((array != kept).sum())
            assert np.abs(array.astype(int) - kept).max() == 1
            assert np.abs(array.astype(int)).max() <= 127
    assert moved > 0


def test_the_best_of_all_roundings_is_found_where_they_can_be_counted() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))
    weight = rng.normal(size=(1, 8, 12))
    gram = (rows.T @ rows / len(rows))[None]
    problem = Problem(weight, np.full_like(weight, 0.3), 127, gram, gram @ weight)
    low = np.floor(weight / 0.3)
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    every = np.stack([problem.error(low + bit[None, :, None])[0] for bit in bits])
    best, nearest = every.min(0), problem.error(problem.nearest())[0]
    found = problem.error(fitted(problem, 500))[0]
    exact = problem.error(weight / 0.3)[0]
    assert (found <= nearest).all()
    gap, gained = (found - best).sum(), (nearest - best).sum()
    assert gap < 0.15 * gained, f"{gap:.3g} of {gained:.3g} left"
    assert (best >= exact).all()


def test_when_the_time_is_up_the_layers_left_are_named() -> None:
    model = quantized_models()["residual"]
    result = run_pass(
        FitRounding(at_most=1e-9),
        model,
        calibration=random_calibration(model),
        quantized_from=origin_of(model),
    )
    assert not result.modified
    assert {refusal.reason for refusal in result.refusals} == {
        "the 1e-09 s that at_most gives were over before its turn"
    }


def test_a_transposed_convolution_is_refused() -> None:
    origin = transposed()
    calibration = random_calibration(origin)
    spec = target_spec(openvino_cpu({"avx512_vnni"}))
    model = run_pass(QuantizeInt8(), origin, spec=spec, calibration=calibration).model
    assert isinstance(model, OnnxModel)
    result = run_pass(FLIPS, model, calibration=calibration, quantized_from=origin)
    reasons = [refusal.reason for refusal in result.refusals]
    assert any("ConvTranspose adds windows up" in reason for reason in reasons)


def test_a_float_model_is_refused_with_the_way_out() -> None:
    model = depthwise_chain()
    with pytest.raises(PreconditionError) as caught:
        run_pass(FLIPS, model, calibration=random_calibration(model))
    assert caught.value.fix == "put fit_rounding behind quantize_int8"


@pytest.mark.parametrize(
    ("option", "value"), [("samples", 0), ("positions", 0), ("iterations", -1), ("at_most", 0.0)]
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValidationError, match=option):
        FitRounding.model_validate({option: value})
