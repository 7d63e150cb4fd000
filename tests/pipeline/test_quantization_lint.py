"""The lint of quantized graphs: ours obey their spec, graphs that break a rule are found."""

from __future__ import annotations

from typing import Any

import pytest

from optimc.core.model import OnnxModel
from optimc.core.targets import QuantizationSpec
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.pipeline.quantized.onnx_lint import Finding, lint
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.quantizable import quantizable_models

VNNI = frozenset({"avx512_vnni"})
SPECS = {
    "ort": onnxruntime_cpu(VNNI),
    "ort without VNNI": onnxruntime_cpu(frozenset()),
    "ov": openvino_cpu(VNNI),
    "trt": tensorrt(),
}


def placed(model: OnnxModel, spec: QuantizationSpec) -> Any:
    """The model as quantize_int8 places it."""
    target = target_spec(spec)
    calibration = random_calibration(model)
    return run_pass(QuantizeInt8(), model, spec=target, calibration=calibration).model


def found(model: Any, spec: QuantizationSpec) -> list[Finding]:
    return lint(model.ir, target_spec(spec))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", sorted(quantizable_models()))
def test_what_is_placed_obeys_its_spec(name: str, spec: str) -> None:
    model = placed(quantizable_models()[name], SPECS[spec])
    assert found(model, SPECS[spec]) == []


@pytest.mark.parametrize(
    ("made_for", "judged_by", "rules"),
    [
        ("ort", "trt", {"activation-dtype", "zero-point", "bias"}),
        ("trt", "ort", {"activation-dtype", "bias", "output"}),
        ("ort", "ort without VNNI", {"weight-range"}),
    ],
)
def test_a_graph_for_another_target_is_told(made_for: str, judged_by: str, rules: set[str]) -> None:
    model = placed(quantizable_models()["residual"], SPECS[made_for])
    told = {finding.rule for finding in found(model, SPECS[judged_by])}
    assert rules <= told


def _value(model: Any, name: str) -> Any:
    return next(v for v in model.ir.graph.initializers.values() if name in str(v.name))


def test_a_q_that_is_not_alone_is_told() -> None:
    model = placed(quantizable_models()["residual"], SPECS["ort"])
    node = next(n for n in model.ir.graph if n.op_type == "Conv")
    output = node.outputs[0]
    if output.uses()[0].node.op_type == "Relu":
        output = output.uses()[0].node.outputs[0]
    model.ir.graph.outputs.append(output)
    told = [f for f in found(model, SPECS["ort"]) if f.rule == "output"]
    assert [f.where for f in told] == [node.name]
    assert "an output of the model" in told[0].message


def test_a_weight_with_its_scales_along_another_axis_is_told() -> None:
    import onnx_ir as ir

    model = placed(quantizable_models()["residual"], SPECS["ort"])
    gemm = next(n for n in model.ir.graph if n.op_type == "Gemm")
    dequantize = gemm.inputs[1].producer()
    axis = dequantize.attributes["axis"].as_int()
    dequantize.attributes["axis"] = ir.AttrInt64("axis", 1 - axis)
    assert "weight-axis" in {f.rule for f in found(model, SPECS["ort"])}


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), 1e-40])
def test_scales_that_nothing_can_compute_with_are_told(scale: float) -> None:
    import numpy as np
    import onnx_ir as ir

    model = placed(quantizable_models()["residual"], SPECS["ort"])
    _value(model, "image_scale").const_value = ir.tensor(np.array(scale, np.float32))
    assert "scale" in {f.rule for f in found(model, SPECS["ort"])}
