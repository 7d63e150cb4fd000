"""`quantize_int8`: the contract of every pass, and what this one promises."""

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

VNNI = {"avx2", "avx512f", "avx512_vnni"}
SPECS = {
    "onnxruntime": onnxruntime_cpu(VNNI),
    "onnxruntime without vnni": onnxruntime_cpu({"avx2"}),
    "openvino": openvino_cpu(VNNI),
    "tensorrt": tensorrt(),
}


class QuantizeContract(PassContract):
    def models(self) -> Mapping[str, OnnxModel]:
        return {**small_models(), **quantizable_models()}

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)


class TestForOnnxRuntime(QuantizeContract):
    passes = (QuantizeInt8(), QuantizeInt8(ranges="minmax"))

    def spec(self) -> TargetSpec:
        return target_spec(SPECS["onnxruntime"])


class TestForOpenVino(QuantizeContract):
    passes = (QuantizeInt8(keep_float=["Gemm*"]),)

    def spec(self) -> TargetSpec:
        return target_spec(SPECS["openvino"])


class TestForTensorRT(QuantizeContract):
    passes = (QuantizeInt8(ranges="percentile"),)

    def spec(self) -> TargetSpec:
        return target_spec(SPECS["tensorrt"])
