"""`correct_bias: {method: analytic}`: the formulas against samples, the contract, the refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from optimc.calibration.observe import ActivationCalibration
from optimc.calibration.stored import StoredCalibration, write_calibration
from optimc.calibration.table import TABLE
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration, PassResult
from optimc.passes._bias_analytic import NO_MEANS, clipped_mean
from optimc.passes.correct_bias import CorrectBias
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import openvino_cpu, tensorrt
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import transposed
from optimc.testing.recoverable import depthwise_chain, origin_of, quantized, quantized_models
from optimc.testing.runs import run_model, run_pass, seeded_feeds

PASS = CorrectBias(method="analytic", samples=32)


@pytest.mark.slow
class TestAnalyticBias(PassContract):
    passes = (PASS,)

    def models(self) -> Mapping[str, OnnxModel]:
        every = quantized_models()
        return {name: every[name] for name in ("depthwise chain", "residual", "transposed")}

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)

    def quantized_from(self, model: OnnxModel) -> OnnxModel | None:
        return origin_of(model)


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-np.inf, np.inf), (-1.0, 2)])
def test_the_mean_of_a_clipped_normal(low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    mean, deviation = np.array([-2.0, 0.3, 5.0, 0.7]), np.array([1.0, 2.0, 3.0, 0.0])
    drawn = np.clip(mean + deviation * rng.standard_normal((400_000, 4)), low, high)
    assert np.allclose(clipped_mean(mean, deviation, low, high), drawn.mean(axis=0), atol=0.02)


def preactivated() -> OnnxModel:
    """BatchNormalization and Relu in front of a convolution, as in a pre-activation ResNet."""
    b = GraphBuilder()
    x = b.input("image", [40, 6, 5, 5])
    rng = np.random.default_rng(3)
    scale, shift = rng.uniform(0.5, 2.0, 6), rng.normal(0.5, 1.0, 6)
    norm = [b.constant(a) for a in (scale, shift, np.zeros(6), np.ones(6))]
    h = b.node("Relu", b.node("BatchNormalization", x, *norm, epsilon=1e-12))
    weight, bias = b.weight(8, 6, 3, 3, scale=0.2), b.weight(8)
    b.node("Conv", h, weight, bias, pads=[1] * 4, strides=[2, 2], to="map")
    b.output("map", [40, 8, 3, 3])
    return b.model()


def coarse(model: OnnxModel) -> OnnxModel:
    """Quantized with one weight scale for all, so that rounding moves the means."""
    spec = tensorrt()
    rules = {
        name: rule.model_copy(update={"weight_axis": None}) for name, rule in spec.rules.items()
    }
    spec = spec.model_copy(update={"rules": rules})
    calibration = random_calibration(model, samples=80)
    result = run_pass(QuantizeInt8(), model, spec=target_spec(spec), calibration=calibration)
    assert isinstance(result.model, OnnxModel)
    return result.model


def bias_of(result: PassResult) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert isinstance(result.model, OnnxModel)
    node = next(n for n in result.model.ir.graph if n.op_type == "Conv")
    value = node.inputs[2]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float64)


def rounding_errors(
    model: OnnxModel, before: OnnxModel
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """By hand: the quantized weight less the float one, [outputs, inputs, 3, 3]."""
    conv = next(n for n in before.ir.graph if n.op_type == "Conv")
    dq = conv.inputs[1].producer()  # type: ignore[union-attr]
    assert dq is not None
    integers, scale = (value.const_value.numpy() for value in dq.inputs[:2])  # type: ignore[union-attr]
    wanted = next(n for n in model.ir.graph if n.op_type == "Conv").inputs[1]
    return np.asarray(integers * scale.astype(np.float64) - wanted.const_value.numpy())  # type: ignore[union-attr]


def test_behind_batch_normalization_no_data_are_asked() -> None:
    model = preactivated()
    before = coarse(model)
    result = run_pass(PASS, before, calibration=random_calibration(model), quantized_from=model)
    assert result.stats == {"corrected": 1, "by_batchnorm": 1}
    norm = next(n for n in model.ir.graph if n.op_type == "BatchNormalization")
    scale, shift = (v.const_value.numpy().astype(np.float64) for v in norm.inputs[1:3])  # type: ignore[union-attr]
    means = clipped_mean(shift, scale, 0.0, np.inf)
    # 5 wide, 3 outputs, stride 2, a pixel of padding: the outer taps lie outside once.
    share = np.array([2 / 3, 1.0, 2 / 3])
    error = rounding_errors(model, before) * share[:, None] * share[None, :]
    expected = np.einsum("oikl,i->o", error, means)
    given = next(n for n in model.ir.graph if n.op_type == "Conv").inputs[2]
    assert np.allclose(bias_of(result), given.const_value.numpy() - expected, atol=1e-6)  # type: ignore[union-attr]


def test_the_mean_error_goes_away_and_a_second_run_finds_nothing() -> None:
    model = preactivated()
    before = coarse(model)
    calibration = random_calibration(model)
    after = run_pass(PASS, before, calibration=calibration, quantized_from=model).model
    assert isinstance(after, OnnxModel)
    rng = np.random.default_rng(9)
    feeds = [{"image": rng.standard_normal((40, 6, 5, 5)).astype(np.float32)} for _ in range(30)]

    def mean(one: OnnxModel) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        maps = np.concatenate([run["map"] for run in run_model(one, feeds)])
        return np.asarray(maps.mean(axis=(0, 2, 3)))

    error, left = np.abs(mean(before) - mean(model)), np.abs(mean(after) - mean(model))
    assert left.mean() < 0.5 * error.mean()
    again = run_pass(PASS, after, calibration=calibration, quantized_from=model)
    assert not again.modified
    assert [r.reason for r in again.refusals] == ["its bias is right already, to half a step"]


def test_without_batch_normalization_the_means_are_those_of_the_data() -> None:
    model = depthwise_chain()
    before = quantized(model, per_channel=False)
    result = run_pass(PASS, before, calibration=random_calibration(model), quantized_from=model)
    assert result.stats["by_batchnorm"] == 0
    assert result.stats["corrected"] >= 4
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model, sizes=(400,), seed=1)  # not the samples of the calibration
    wanted, plain, corrected = (
        run_model(m, feeds)[0]["logits"] for m in (model, before, result.model)
    )
    error, left = np.abs((plain - wanted).mean(0)), np.abs((corrected - wanted).mean(0))
    assert left.mean() < 0.7 * error.mean()


def test_a_table_of_ranges_tells_no_means(tmp_path: Path) -> None:
    model, norm = depthwise_chain(), preactivated()
    seen = random_calibration(model)
    before = quantized(model)
    assert isinstance(seen, ActivationCalibration)
    exported = seen.exported()
    assert exported is not None
    write_calibration(tmp_path / "calibration", *exported)
    table = StoredCalibration(tmp_path / "calibration" / TABLE)
    result = run_pass(PASS, before, calibration=table, quantized_from=model)
    assert not result.modified
    assert {r.reason for r in result.refusals} == {NO_MEANS}
    told = run_pass(PASS, coarse(norm), calibration=table, quantized_from=norm)
    assert told.stats == {"corrected": 1, "by_batchnorm": 1}


def test_transposed_convolutions_are_refused() -> None:
    model = transposed()
    calibration = random_calibration(model)
    spec = target_spec(openvino_cpu({"avx512_vnni"}))
    before = run_pass(QuantizeInt8(), model, spec=spec, calibration=calibration).model
    assert isinstance(before, OnnxModel)
    result = run_pass(PASS, before, calibration=calibration, quantized_from=model)
    reasons = {r.reason for r in result.refusals}
    assert "the analytic method knows no ConvTranspose" in reasons
