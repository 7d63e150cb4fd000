"""`smooth_quant`: the contract, what it gains on outlier channels, and where it refuses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration, PassResult
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.smooth_quant import SmoothQuant
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import matmul
from optimc.testing.recoverable import depthwise_chain, quantized
from optimc.testing.runs import run_model, run_pass, seeded_feeds
from optimc.testing.transformer import feed_forward

SPEC = target_spec(onnxruntime_cpu({"avx512_vnni"}))


def outliers(*, residual: bool = False, scale_only: bool = False) -> OnnxModel:
    """A normalization with three channels that are 50 times larger, and two products behind it."""
    b = GraphBuilder()
    x = b.input("tokens", ["batch", 5, 32])
    gain = np.ones(32, np.float32)
    gain[[3, 17, 20]] = 50.0
    if scale_only:
        h = b.node("Mul", x, b.constant(gain))
    else:
        shift = b.constant(b.rng.normal(0, 0.1, 32).astype(np.float32) * gain)
        h = b.node("LayerNormalization", x, b.constant(gain), shift, axis=-1)
    one = b.rng.normal(0, 0.2, (32, 32)).astype(np.float32) / gain[:, None]
    two = b.rng.normal(0, 0.2, (32, 32)).astype(np.float32) / gain[:, None]
    out = b.node("Mul", b.node("MatMul", h, b.constant(one)), b.node("MatMul", h, b.constant(two)))
    if residual:
        out = b.node("Add", out, h)
    b.node("Identity", out, to="output")
    b.output("output", ["batch", 5, 32])
    return b.model()


class TestSmoothQuant(PassContract):
    passes = (SmoothQuant(samples=32), SmoothQuant(alpha=0.5, samples=32))

    def models(self) -> Mapping[str, OnnxModel]:
        return {
            "feed forward": feed_forward(),
            "matmul": matmul(),
            "outliers": outliers(),
            "residual": outliers(residual=True),
            "scale only": outliers(scale_only=True),
        }

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)


def _smooth(model: OnnxModel, pass_: SmoothQuant | None = None) -> PassResult:
    return run_pass(pass_ or SmoothQuant(), model, calibration=random_calibration(model))


def _error(model: OnnxModel, wanted: np.ndarray, feeds: list[Mapping[str, np.ndarray]]) -> float:
    result = run_pass(
        QuantizeInt8(ranges="minmax"), model, spec=SPEC, calibration=random_calibration(model)
    )
    assert isinstance(result.model, OnnxModel)
    return float(np.square(run_model(result.model, feeds)[0]["output"] - wanted).mean())


@pytest.mark.parametrize("alpha", ["auto", 0.5])
@pytest.mark.parametrize("residual", [False, True])
def test_outliers_cost_less_afterwards(alpha: str | float, residual: bool) -> None:
    model = outliers(residual=residual)
    result = _smooth(model, SmoothQuant.model_validate({"alpha": alpha}))
    assert [rewrite.rule for rewrite in result.rewrites] == ["smooth"]
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model, sizes=(200,), seed=1)
    wanted = run_model(model, feeds)[0]["output"]
    assert _error(result.model, wanted, feeds) < 0.1 * _error(model, wanted, feeds)


def test_a_norm_with_products_alone_takes_the_factors_in() -> None:
    model = outliers()
    result = _smooth(model)
    assert [n.op_type for n in result.model.ir.graph] == [n.op_type for n in model.ir.graph]  # type: ignore[attr-defined]
    norm = next(n for n in model.ir.graph if n.op_type == "LayerNormalization")
    source = model.provenance[str(norm.outputs[0].name)]
    assert source not in result.model.provenance.values()


def test_a_residual_gets_a_mul_before_the_products() -> None:
    model = outliers(residual=True)
    result = _smooth(model)
    kinds = [n.op_type for n in result.model.ir.graph]  # type: ignore[attr-defined]
    assert kinds.count("Mul") == 2
    norm = next(n for n in model.ir.graph if n.op_type == "LayerNormalization")
    name = str(norm.outputs[0].name)
    assert result.model.provenance[name] == model.provenance[name]


def test_without_multiply_a_residual_is_refused() -> None:
    result = _smooth(outliers(residual=True), SmoothQuant(multiply=False))
    assert not result.modified
    assert "is read by other nodes than products" in result.refusals[0].reason


def test_even_channels_are_left_alone_by_auto() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2])  # of two numbers, normalized, one is 1 and one is -1
    h = b.node("LayerNormalization", x, b.constant(np.ones(2)), axis=-1)
    b.node("MatMul", h, b.constant([[0.1, -0.1, 0.1], [-0.1, -0.1, 0.1]]), to="y")
    b.output("y", ["batch", 3])
    result = _smooth(b.model())
    assert not result.modified
    assert [r.reason for r in result.refusals] == [
        "smoothing promises no error that is 10 % smaller"
    ]


def test_a_shared_weight_is_refused() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 16])
    h = b.node("LayerNormalization", x, b.constant(np.ones(16)), axis=-1)
    weight = b.weight(16, 16)
    b.node("Add", b.node("MatMul", h, weight), b.node("MatMul", x, weight), to="y")
    b.output("y", ["batch", 16])
    result = _smooth(b.model())
    assert not result.modified
    assert "its weight is read by other nodes too" in result.refusals[0].reason


def test_a_quantized_graph_stays_as_it_is() -> None:
    result = _smooth(quantized(depthwise_chain()))
    assert not result.modified
    assert "stays in a quantized graph" in result.refusals[0].reason


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "best"])
def test_alpha_out_of_range_is_refused(alpha: object) -> None:
    with pytest.raises(ValidationError, match="alpha"):
        SmoothQuant.model_validate({"alpha": alpha})
