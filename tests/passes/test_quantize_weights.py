"""`quantize_weights`: the contract, blocks, grids, what ONNX Runtime makes of it, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.passes._weight_blocks import quantize_blocks
from optimc.passes.quantize_weights import QuantizeWeights
from optimc.testing import PassContract
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.runs import run_pass


def mlp(opset: int = 18, middle: int = 64) -> OnnxModel:
    """Products in each layout; one weight is shared."""
    b = GraphBuilder(opset)
    x = b.input("x", ["batch", 32])
    h = b.node("Relu", b.node("MatMul", x, b.weight(32, middle, scale=0.1), name="up"))
    h = b.node("Gemm", h, b.weight(32, middle, scale=0.1), b.weight(32), transB=1, name="down")
    shared = b.weight(32, 32, scale=0.1)
    h = b.node("MatMul", b.node("Tanh", b.node("MatMul", h, shared, name="one")), shared)
    b.node("Gemm", h, b.weight(32, 10, scale=0.1), name="head", to="logits")
    b.output("logits", ["batch", 10])
    return b.model()


class TestQuantizeWeights(PassContract):
    passes = (QuantizeWeights(), QuantizeWeights(bits=8, block=16))

    def models(self) -> Mapping[str, OnnxModel]:
        models = small_models()
        return {"mlp": mlp(), "mlp 21": mlp(21), "quantized": models["quantized"]}


def test_weights_are_stored_in_four_bits_with_a_scale_for_each_block() -> None:
    model = run_pass(QuantizeWeights(), mlp()).model
    assert isinstance(model, OnnxModel)
    assert model.ir.opset_imports[""] == 21
    nodes = [node for node in model.ir.graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) == 5
    shapes = set()
    for node in nodes:
        integers, scale = node.inputs[0], node.inputs[1]
        assert integers is not None
        assert scale is not None
        assert integers.dtype == ir.DataType.INT4
        (rows, columns), scales = (list(value.shape or ()) for value in (integers, scale))
        assert scales == [int(rows) // 32, columns]
        shapes.add((rows, columns))
    assert shapes == {(32, 64), (64, 32), (32, 32), (32, 10)}


def test_onnxruntime_has_kernels_that_take_the_integers(tmp_path: Path) -> None:
    import onnxruntime

    model = run_pass(QuantizeWeights(), mlp()).model
    assert isinstance(model, OnnxModel)
    model.write_onnx(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    types = [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]
    # The others stay as a DequantizeLinear, which ONNX Runtime does not fold either.
    assert types.count("MatMulNBits") >= 2, types


@pytest.mark.parametrize("greatest", [2, 5, 7, 8])
def test_weights_on_a_grid_keep_their_values(greatest: int) -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-greatest, min(greatest, 7) + 1, (4, 3, 16))
    integers[:, :, 0] = -greatest
    steps = rng.uniform(0.01, 1.0, (4, 3, 1))
    weight = (integers * steps).astype(np.float32).reshape(4, 48)
    found, scales = quantize_blocks(weight, 1, 16, 4)
    again = found.reshape(4, 3, 16) * scales[..., None]
    assert np.allclose(again.reshape(4, 48), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.1), (8, 0.006)])
def test_the_error_is_that_of_rounding(bits: int, bound: float) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    integers, scales = quantize_blocks(weight, 0, 32, bits)
    assert scales.shape == (2, 8)
    again = integers * np.repeat(scales, 32, axis=0)
    assert np.sqrt(np.square(again - weight).mean()) < bound
    assert integers.min() >= -(2 ** (bits - 1))


def test_zeros_stay_zeros() -> None:
    weight = np.zeros((32, 2), np.float32)
    weight[3, 0] = 1.5
    integers, scales = quantize_blocks(weight, 0, 32, 4)
    assert np.count_nonzero(integers) == 1
    assert np.isfinite(scales).all()


def test_what_does_not_fit_is_refused() -> None:
    result = run_pass(QuantizeWeights(keep_float=["head"]), mlp(middle=40))
    reasons = {refusal.where: refusal.reason for refusal in result.refusals}
    assert reasons == {
        "down": "its 40 inputs are no multiple of 32",
        "head": "kept in float by `head`",
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep_float": ["nowhere"]}, "`nowhere` names no node"),
        ({"block": 128}, "no weight of this model can be stored in blocks; up: its 32 inputs"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PreconditionError, match=text) as caught:
        run_pass(QuantizeWeights(**options), mlp())
    assert caught.value.fix


@pytest.mark.parametrize("options", [{"bits": 3}, {"block": 8}, {"block": 48}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        QuantizeWeights.model_validate(options)
