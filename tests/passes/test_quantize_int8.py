"""`quantize_int8`: the contract of every pass, on four placements."""

from __future__ import annotations

from collections.abc import Mapping

from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration
from optimc.core.targets import TargetSpec
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import small_models
from optimc.testing.quantizable import quantizable_models


class QuantizeContract(PassContract):
    """Base of the suites below: without passes of its own it has no tests."""

    __test__ = False

    def models(self) -> Mapping[str, OnnxModel]:
        return quantizable_models()

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)


class TestForOnnxRuntime(QuantizeContract):
    __test__ = True
    passes = (QuantizeInt8(),)

    def models(self) -> Mapping[str, OnnxModel]:
        return {**small_models(), **quantizable_models()}

    def spec(self) -> TargetSpec:
        return target_spec(onnxruntime_cpu({"avx512_vnni"}))


class TestWithoutVnni(QuantizeContract):
    __test__ = True
    passes = (QuantizeInt8(ranges="minmax"),)

    def models(self) -> Mapping[str, OnnxModel]:
        models = quantizable_models()
        return {name: models[name] for name in ("residual", "matmul")}

    def spec(self) -> TargetSpec:
        return target_spec(onnxruntime_cpu({"avx2"}))


class TestForOpenVino(QuantizeContract):
    __test__ = True
    passes = (QuantizeInt8(),)

    def spec(self) -> TargetSpec:
        return target_spec(openvino_cpu({"avx512_vnni"}))


class TestForTensorRT(QuantizeContract):
    __test__ = True
    passes = (QuantizeInt8(ranges="percentile"),)

    def spec(self) -> TargetSpec:
        return target_spec(tensorrt())
