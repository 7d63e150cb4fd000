"""`quantize_mixed`: the contract, and which products take their range at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration, Pass, PassResult
from optimc.core.targets import QuantizationSpec, TargetSpec
from optimc.passes.quantize_dynamic import QuantizeDynamic
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.quantize_mixed import QuantizeMixed
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import PassContract, run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import quantizable_models

ORT = onnxruntime_cpu({"avx512_vnni"})
OPENVINO = openvino_cpu({"avx512_vnni"})


def heavy_tailed() -> OnnxModel:
    """Two products: the second one's input is the ninth power of what the first one gives."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 6, 32])
    h = b.node("MatMul", x, b.weight(32, 32, scale=0.3), name="tame")
    for _ in range(2):
        h = b.node("Mul", h, b.node("Mul", h, h))
    b.node("MatMul", h, b.weight(32, 16, scale=0.3), name="wild", to="y")
    b.output("y", ["batch", 6, 16])
    return b.model()


BETWEEN = 35.0
"""dB: the first input keeps 41 with a calibrated range, the second one 31."""


def mixed(model: OnnxModel, spec: QuantizationSpec = ORT, **options: Any) -> PassResult:
    calibration = random_calibration(model)
    return run_pass(
        QuantizeMixed(**options), model, spec=target_spec(spec), calibration=calibration
    )


def kinds(result: PassResult) -> Counter[str]:
    assert isinstance(result.model, OnnxModel)
    return Counter(node.op_type for node in result.model.ir.graph)


class TestMixedForOnnxRuntime(PassContract):
    passes: ClassVar[list[Pass]] = [
        QuantizeMixed(least_sqnr=BETWEEN),
        QuantizeMixed(least_sqnr=100.0),
    ]

    def models(self) -> Mapping[str, OnnxModel]:
        return {"heavy tailed": heavy_tailed(), **quantizable_models()}

    def spec(self) -> TargetSpec:
        return target_spec(ORT)

    def calibration(self, model: OnnxModel) -> Calibration:
        return random_calibration(model)


def test_the_heavy_tail_takes_its_range_at_run_time() -> None:
    result = mixed(heavy_tailed(), least_sqnr=BETWEEN)
    found = kinds(result)
    assert found["MatMulInteger"] == 1
    assert found["QuantizeLinear"] == 1
    assert [r.where for r in result.rewrites if "run time" in r.rule] == ["wild"]
    assert not any("kept in float" in refusal.reason for refusal in result.refusals)


def test_without_kernels_for_it_only_weights_are_stored() -> None:
    found = kinds(mixed(heavy_tailed(), OPENVINO, least_sqnr=BETWEEN))
    assert found["MatMulInteger"] == 0
    assert found["DequantizeLinear"] == 3
    assert found["QuantizeLinear"] == 1


def test_a_target_without_either_is_static() -> None:
    found = kinds(mixed(heavy_tailed(), tensorrt(), least_sqnr=BETWEEN))
    assert found["MatMulInteger"] == 0
    assert found["QuantizeLinear"] == 2


@pytest.mark.parametrize(("least", "same_as"), [(0.0, QuantizeInt8()), (100.0, QuantizeDynamic())])
def test_the_ends_are_the_other_passes(least: float, same_as: Pass) -> None:
    model = heavy_tailed()
    other = run_pass(
        same_as, model, spec=target_spec(ORT), calibration=random_calibration(model)
    ).model
    assert mixed(model, least_sqnr=least).model.digest == other.digest


def test_what_stays_in_float() -> None:
    found = kinds(mixed(heavy_tailed(), least_sqnr=BETWEEN, keep_float=["wild"]))
    assert found["MatMulInteger"] == 0
    assert found["QuantizeLinear"] == 1
    with pytest.raises(PreconditionError, match="keep_float: `nothing` names no node"):
        mixed(heavy_tailed(), keep_float=["nothing"])


def test_the_limit_counts_both_kinds() -> None:
    model = heavy_tailed()
    result = run_pass(
        QuantizeMixed(least_sqnr=BETWEEN),
        model,
        spec=target_spec(ORT),
        calibration=random_calibration(model),
        limit=1,
    )
    assert len(result.rewrites) == 1
    assert kinds(result)["MatMulInteger"] == 0
