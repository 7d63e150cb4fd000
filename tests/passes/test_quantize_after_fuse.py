"""`quantize_int8` behind `fuse`: what it asks of it, and what it gains from it."""

from __future__ import annotations

from optimc.core.model import OnnxModel
from optimc.passes.fuse import Fuse
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.spellings import shortcut


def quantized(model: OnnxModel) -> list[str]:
    """The operators of the quantized model."""
    spec = target_spec(onnxruntime_cpu({"avx512_vnni"}))
    result = run_pass(QuantizeInt8(), model, spec=spec, calibration=random_calibration(model))
    assert isinstance(result.model, OnnxModel)
    return [node.op_type for node in result.model.ir.graph]


def fused(model: OnnxModel) -> OnnxModel:
    result = run_pass(Fuse(), model).model
    assert isinstance(result, OnnxModel)
    return result


def test_batchnorm_that_fuse_would_take_in_is_told() -> None:
    """It runs in float between two quantized layers."""
    model = small_models()["convolutions"]
    spec = target_spec(onnxruntime_cpu({"avx512_vnni"}))
    result = run_pass(QuantizeInt8(), model, spec=spec, calibration=random_calibration(model))
    [told] = [r for r in result.refusals if r.where == "batchnormalization_1"]
    assert told.reason.endswith("put `fuse` before quantize_int8")
    assert "BatchNormalization" not in quantized(fused(model))


def test_batchnorm_that_fuse_refuses_is_no_hindrance() -> None:
    """Its convolution is read elsewhere: nobody could do better."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 8, 8]), b.weight(16, 3, 3, 3))
    ones, zeros = b.constant([1.0] * 16), b.constant([0.5] * 16)
    normed = b.node("BatchNormalization", h, ones, zeros, zeros, ones)
    b.node("Add", normed, h, to="y")
    b.output("y", ["n", 16, 6, 6])
    assert "BatchNormalization" in quantized(fused(b.model()))


def test_a_shortcut_is_quantized_as_a_convolution() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 3, 8, 8])
    h = b.node("Relu", b.node("Conv", x, b.weight(16, 3, 3, 3), b.weight(16), pads=[1] * 4))
    deep = b.node("Conv", h, b.weight(32, 16, 3, 3), b.weight(32), pads=[1] * 4, strides=[2, 2])
    b.node("Relu", b.node("Add", deep, shortcut(b, h, pads=(8, 8))), to="y")
    b.output("y", ["n", 32, 4, 4])
    operators = quantized(fused(b.model()))
    assert operators.count("Conv") == 3
    at = [i for i, name in enumerate(operators) if name == "Conv"]
    assert not {"Slice", "Pad"} & set(operators)
    # Each between DQ and Q, or with its Relu: QLinearConv in the runtime.
    assert all(set(operators[i + 1 : i + 3]) & {"QuantizeLinear"} for i in at)
