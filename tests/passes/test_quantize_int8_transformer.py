"""`quantize_int8` on transformers: what is summed up stays in float, products are INT8."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from optimc.core.model import OnnxModel
from optimc.core.passes import PassResult
from optimc.core.targets import QuantizationSpec
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu
from optimc.testing import run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import matmul

ORT = onnxruntime_cpu({"avx512_vnni"})
OV = openvino_cpu({"avx512_vnni"})
BOTH = pytest.mark.parametrize("spec", [ORT, OV], ids=["ort", "ov"])


def patches() -> OnnxModel:
    """The beginning of a ViT: patches, positions, a norm, a product with bias, the residual."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 16, 16])
    kernel, bias = b.weight(32, 3, 4, 4, scale=0.1), b.weight(32)
    h = b.node("Conv", x, kernel, bias, strides=[4, 4], name="patch")
    h = b.node("Reshape", h, b.constant([0, 32, 16]))
    h = b.node("Transpose", h, perm=[0, 2, 1])
    h = b.node("Add", h, b.weight(1, 16, 32), name="position")
    norm = b.node("LayerNormalization", h, b.weight(32), b.weight(32), axis=-1)
    out = b.node("MatMul", norm, b.weight(32, 32, scale=0.2), name="product")
    out = b.node("Add", out, b.weight(32), name="bias")
    b.node("Add", out, h, name="residual", to="y")
    b.output("y", ["batch", 16, 32])
    return b.model()


def placed(model: OnnxModel, spec: QuantizationSpec) -> tuple[PassResult, dict[str, ir.Node]]:
    result = run_pass(
        QuantizeInt8(), model, spec=target_spec(spec), calibration=random_calibration(model)
    )
    assert isinstance(result.model, OnnxModel)
    return result, {str(node.name): node for node in result.model.ir.graph}


def kinds(node: ir.Node) -> list[str]:
    """What makes the inputs of a node."""
    made = [value.producer() if value is not None else None for value in node.inputs]
    return ["constant" if maker is None else maker.op_type for maker in made]


@BOTH
def test_sums_around_products_stay_in_float(spec: QuantizationSpec) -> None:
    result, nodes = placed(patches(), spec)
    assert nodes["bias"].op_type == ("Sum" if spec is ORT else "Add")
    assert kinds(nodes["product"]) == ["DequantizeLinear", "DequantizeLinear"]
    assert kinds(nodes["bias"]) == ["MatMul", "constant"]
    for name in ("position", "bias", "residual"):
        assert "QuantizeLinear" not in [use.node.op_type for use in nodes[name].outputs[0].uses()]
    reasons = {refusal.where: refusal.reason for refusal in result.refusals}
    assert "does not come from an INT8 operator" in reasons["bias"]


@BOTH
def test_a_convolution_has_its_q_even_where_floats_follow(spec: QuantizationSpec) -> None:
    # OpenVINO 2026.4 computes something else without it where the input has a zero point.
    _, nodes = placed(patches(), spec)
    readers = [use.node.op_type for use in nodes["patch"].outputs[0].uses()]
    assert readers == ["QuantizeLinear"]


def test_products_of_two_activations_are_float_on_onnxruntime() -> None:
    result, _ = placed(matmul(), ORT)
    told = [refusal.reason for refusal in result.refusals if "MatMul" in refusal.rule]
    assert told == ["the target runs products of two activations faster in float"] * 2


def test_products_of_two_activations_have_no_zero_points_on_openvino() -> None:
    result, _ = placed(matmul(), OV)
    assert isinstance(result.model, OnnxModel)
    zeros = {True: [], False: []}  # by whether the second operand is a weight
    for node in result.model.ir.graph:
        if node.op_type == "MatMul":
            pairs = [value.producer() for value in node.inputs if value is not None]
            constant = pairs[1] is not None and pairs[1].inputs[0].const_value is not None
            sources = pairs[:1] if constant else pairs
            zeros[constant] += [int(pair.inputs[2].const_value.numpy()) for pair in sources]
    assert zeros[False] == [0, 0, 0, 0]
    assert any(zeros[True])
