"""What `quantize_int8` places is what the runtimes run: fused, in INT8, with the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from optimc.core.model import OnnxModel
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu
from optimc.testing import run_pass, seeded_feeds
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.quantizable import quantizable_models
from optimc.testing.runs import run_model

MODELS = quantizable_models()
EVERY_MODEL = pytest.mark.parametrize("name", sorted(MODELS))
Outputs = Sequence[Mapping[str, Any]]

FUSED = {
    "residual": {"QLinearConv": 4, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "option a": {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1},
    "depthwise": {"QLinearConv": 5, "QLinearAdd": 2, "MatMulIntegerToFloat": 1},
    "branches and pools": {"QLinearConv": 3, "QLinearConcat": 1, "QLinearAveragePool": 1},
    "matmul": {"MatMulIntegerToFloat": 4},
    "constants": {"QLinearConv": 2, "QLinearAdd": 2, "QLinearMul": 1},
    "middle outputs": {"QLinearConv": 3},
    "uneven channels": {"QLinearConv": 2},
}
FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Relu", "Clip"}


def quantized(model: OnnxModel, spec: Any, limit: int | None = None) -> OnnxModel:
    result = run_pass(
        QuantizeInt8(),
        model,
        spec=target_spec(spec),
        calibration=random_calibration(model),
        limit=limit,
    ).model
    assert isinstance(result, OnnxModel)
    return result


def sqnr_db(expected: Outputs, found: Outputs) -> float:
    """The least over the outputs."""
    figures = []
    for name in expected[0]:
        one = np.concatenate([run[name].ravel() for run in expected]).astype(np.float64)
        two = np.concatenate([run[name].ravel() for run in found]).astype(np.float64)
        figures.append(10 * np.log10(np.sum(one**2) / max(np.sum((one - two) ** 2), 1e-30)))
    return float(min(figures))


@EVERY_MODEL
def test_onnx_runtime_runs_the_graph_s_numbers_in_fused_kernels(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    placed = quantized(model, onnxruntime_cpu({"avx512_vnni"}))
    placed.write_onnx(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    feeds = seeded_feeds(model, sizes=(1, 16))
    names = [output.name for output in session.get_outputs()]
    found = [dict(zip(names, session.run(names, dict(f)), strict=True)) for f in feeds]
    # 45 dB: a rounding may fall the other way here and there, no more.
    assert sqnr_db(run_model(placed, feeds), found) > 45
    assert sqnr_db(run_model(model, feeds), found) > 22
    kernels = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    for op_type, count in FUSED.get(name, {}).items():
        assert kernels[op_type] == count, kernels
    if name in FUSED:
        # The two products of attention stay in float on this runtime.
        attention = {"MatMul"} if name == "matmul" else set()
        assert FLOAT_KERNELS & set(kernels) == attention, kernels


@pytest.mark.parametrize("name", ["residual", "branches and pools", "middle outputs"])
def test_onnx_runtime_runs_every_prefix(name: str, tmp_path: Path) -> None:
    """`--limit` leaves graphs that are half quantized."""
    model = MODELS[name]
    feeds = seeded_feeds(model, sizes=(4,))
    expected = run_model(model, feeds)
    for limit in range(1, 8, 2):
        part = quantized(model, onnxruntime_cpu({"avx512_vnni"}), limit)
        part.write_onnx(tmp_path / f"{limit}.onnx")
        session = onnxruntime.InferenceSession(
            str(tmp_path / f"{limit}.onnx"), providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        found = [dict(zip(names, session.run(names, dict(f)), strict=True)) for f in feeds]
        assert sqnr_db(expected, found) > 22


@EVERY_MODEL
def test_openvino_runs_the_graph_s_numbers(name: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = MODELS[name]
    placed = quantized(model, openvino_cpu({"avx512_vnni"}))
    placed.write_onnx(tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(
        tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    feeds = seeded_feeds(model, sizes=(1, 16))
    found = []
    for feed in feeds:
        results = compiled.create_infer_request().infer(dict(feed))
        found.append({port.get_any_name(): array.copy() for port, array in results.items()})
    expected = run_model(placed, feeds)
    renamed = [dict(zip(expected[0], run.values(), strict=True)) for run in found]
    assert sqnr_db(expected, renamed) > 45
    kernels = Counter(
        (
            op.get_rt_info()["layerType"].astype(str),
            op.get_rt_info()["runtimePrecision"].astype(str),
        )
        for op in compiled.get_runtime_model().get_ordered_ops()
    )
    assert not kernels["Convolution", "f32"], kernels
    assert not kernels["FullyConnected", "f32"], kernels
