"""`prune_n_m` on ONNX graphs: the contract, the axis, refusals, and the pattern behind others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.onnx_sparsity import layer_weights, nonzeros, sparsity_of
from optimc.core.passes import Pass
from optimc.core.patterns import holds_pattern
from optimc.passes.fit_rounding import FitRounding
from optimc.passes.float16 import Float16
from optimc.passes.fuse import Fuse
from optimc.passes.prune_n_m import PruneNM
from optimc.passes.qat import Qat
from optimc.passes.quantize_dynamic import QuantizeDynamic
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.simplify import Simplify
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.inline_workers import InlineWorker
from optimc.testing.runs import run_pass
from optimc.testing.sparse import sparse_contract_models
from optimc.testing.training_data import random_training


class TestPruneNM(PassContract):
    passes = (PruneNM(), PruneNM(n=3, m=4))

    def models(self) -> Mapping[str, OnnxModel]:
        return sparse_contract_models()


def pruned(model: OnnxModel, **options: Any) -> OnnxModel:
    result = run_pass(PruneNM(**options), model).model
    assert isinstance(result, OnnxModel)
    return result


def test_the_largest_of_each_four_stay() -> None:
    b = GraphBuilder()
    rows = np.array([[1.0, -3.0, 2.0, 0.5, 0.0, 0.0, 0.0, 1.0], [1.0] * 8], np.float32)
    b.node("Gemm", b.input("x", ["batch", 8]), b.constant(rows, "w"), transB=1, to="y")
    b.output("y", ["batch", 2])
    array = pruned(b.model()).ir.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    assert array.tolist() == [[0, -3, 2, 0, 0, 0, 0, 1], [1, 1, 0, 0] * 2]


def every_layout() -> OnnxModel:
    """A Conv, products with the weight on either side, stored as it is and transposed."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("image", ["batch", 8, 4, 4]), b.weight(12, 8, 3, 3), name="conv")
    h = b.node("Flatten", b.node("GlobalAveragePool", h))
    h = b.node("Gemm", h, b.weight(12, 8), name="gemm")
    h = b.node("Gemm", h, b.weight(16, 8), transB=1, name="gemm_transposed")
    h = b.node("MatMul", h, b.weight(16, 4), name="matmul")
    turned = b.node("Transpose", b.weight(12, 4), perm=[1, 0])
    h = b.node("MatMul", h, turned, name="matmul_turned")
    h = b.node("Unsqueeze", h, b.constant([2]))
    h = b.node("MatMul", b.weight(8, 12), h, name="matmul_left")
    b.node("Identity", h, to="y")
    b.output("y", ["batch", 8, 1])
    return b.model()


def test_neighbours_lie_along_the_axis_that_is_summed() -> None:
    model = pruned(every_layout())
    axes = {w.node.name: (w.axis, nonzeros(w)) for w in layer_weights(model.ir.graph)}
    wanted = {
        "conv": 1, "gemm": 0, "gemm_transposed": 1,
        "matmul": 0, "matmul_turned": 1, "matmul_left": 1,
    }  # fmt: skip
    assert {name: axis for name, (axis, _) in axes.items()} == wanted
    for axis, nonzero in axes.values():
        assert holds_pattern(nonzero, axis, 2, 4)
        assert nonzero.mean() == 0.5
    assert all(found.two_of_four for found in sparsity_of(model.ir))


def test_other_patterns_than_two_of_four() -> None:
    model = pruned(every_layout(), n=1, m=2, keep=["gemm"])
    for weight in layer_weights(model.ir.graph):
        assert holds_pattern(nonzeros(weight), weight.axis, 1, 2) == (weight.node.name != "gemm")


def with_batchnorm() -> OnnxModel:
    """Two convolutions with BatchNormalization, a residual, a head: what all passes work on."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 4, 6, 6])
    h = x
    for filters in (8, 8):
        channels = 4 if h == x else 8
        h = b.node("Conv", h, b.weight(filters, channels, 3, 3, scale=0.2), pads=[1, 1, 1, 1])
        rows = [b.constant(b.rng.uniform(0.5, 2.0, filters)) for _ in range(4)]
        h = b.node("Relu", b.node("BatchNormalization", h, *rows))
    h = b.node("Flatten", b.node("GlobalAveragePool", h))
    turned = b.node("Transpose", b.weight(32, 8), perm=[1, 0])
    h = b.node("Relu", b.node("MatMul", h, turned))
    b.node("Gemm", h, b.weight(16, 32), b.weight(16), transB=1, to="logits")
    b.output("logits", ["batch", 16])
    return b.model()


FOLLOWERS: Mapping[str, Pass] = {
    "float16": Float16(),
    "stored as float16": Float16(storage_only=True),
    "int8": QuantizeInt8(),
    "dynamic": QuantizeDynamic(),
}


@pytest.mark.parametrize("last", ["qat", "fit_rounding"])
def test_the_pattern_survives_what_trains_integers(
    last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: OnnxModel = pruned(with_batchnorm())
    for pass_ in (Simplify(), Fuse()):
        model = run_pass(pass_, model).model  # type: ignore[assignment]
    spec, calibration = target_spec(onnxruntime_cpu({"avx512_vnni"})), random_calibration(model)
    quantized = run_pass(QuantizeInt8(), model, spec=spec, calibration=calibration).model
    assert isinstance(quantized, OnnxModel)
    if last == "qat":
        torch = pytest.importorskip("torch")
        monkeypatch.setattr("optimc.core.worker.Worker", InlineWorker)
        deterministic = torch.are_deterministic_algorithms_enabled()
        pass_ = Qat(epochs=1, batch=16, learning_rate=5.0, scale_learning_rate=0.05, keep="last")
        training = random_training(model, 64)
        result = run_pass(pass_, quantized, quantized_from=model, training=training)
        torch.use_deterministic_algorithms(deterministic)
    else:
        fit = FitRounding(iterations=50)
        result = run_pass(fit, quantized, quantized_from=model, calibration=calibration)
    assert isinstance(result.model, OnnxModel)
    assert result.model.digest != quantized.digest
    found = sparsity_of(result.model.ir)
    assert len(found) == 4
    assert all(layer.two_of_four for layer in found), found


@pytest.mark.parametrize("last", FOLLOWERS)
def test_the_pattern_survives_what_comes_behind(last: str) -> None:
    model = pruned(with_batchnorm())
    for pass_ in (Simplify(), Fuse()):
        model = run_pass(pass_, model).model  # type: ignore[assignment]
    spec = target_spec(onnxruntime_cpu({"avx512_vnni"}))
    result = run_pass(FOLLOWERS[last], model, spec=spec, calibration=random_calibration(model))
    assert isinstance(result.model, OnnxModel)
    assert result.rewrites
    found = sparsity_of(result.model.ir)
    assert len(found) == 4
    assert all(layer.two_of_four and layer.share >= 0.5 for layer in found), found


def test_a_zero_point_is_the_zero_of_integers() -> None:
    b = GraphBuilder()
    integers = b.constant([[130, 130, 7, 8], [130, 130, 130, 130]], dtype="uint8")
    zeros = b.constant([130, 130], dtype="uint8")
    weight = b.node("DequantizeLinear", integers, b.constant([0.1, 0.2]), zeros, axis=0)
    b.node("Gemm", b.input("x", ["batch", 4]), weight, transB=1, to="y")
    b.output("y", ["batch", 2])
    (found,) = sparsity_of(b.model().ir)
    assert (found.zeros, found.two_of_four) == (6, True)


def refusals(model: OnnxModel, **options: Any) -> dict[str, str]:
    result = run_pass(PruneNM(**options), model)
    return {refusal.where: refusal.reason for refusal in result.refusals}


def test_layers_that_have_no_groups_are_refused() -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("image", ["batch", 3, 8, 8]), b.weight(6, 3, 3, 3), name="stem")
    h = b.node("Conv", h, b.weight(6, 1, 3, 3), group=6, name="depthwise")
    h = b.node("Conv", h, b.weight(8, 6, 1, 1), name="six")
    h = b.node("ConvTranspose", h, b.weight(8, 8, 2, 2), name="transposed")
    b.node("Conv", h, b.weight(4, 8, 1, 1), name="fits", to="y")
    b.output("y", ["batch", 4, 5, 5])
    found = refusals(b.model())
    assert found == {
        "stem": "its 3 input channels are fewer than a group of 4",
        "depthwise": "each output channel reads one input channel: there are no neighbours",
        "six": "its 6 input channels are no multiple of 4",
        "transposed": "transposed convolutions have no sparse kernels",
    }


def test_a_weight_that_is_summed_over_two_axes_is_refused() -> None:
    b = GraphBuilder()
    weight = b.weight(4, 4)
    h = b.node("Gemm", b.input("x", ["batch", 4]), weight, name="one")
    h = b.node("Gemm", h, weight, transB=1)
    b.node("Gemm", h, b.weight(4, 4), to="y")
    b.output("y", ["batch", 4])
    assert "sum over different axes" in refusals(b.model())["one"]


def test_no_group_at_all_is_an_error() -> None:
    b = GraphBuilder()
    b.node("MatMul", b.input("x", ["batch", 3]), b.weight(3, 4), to="y")
    b.output("y", ["batch", 4])
    with pytest.raises(PreconditionError, match="fewer than a group of 4"):
        run_pass(PruneNM(), b.model())


def test_a_pattern_that_is_there_changes_nothing() -> None:
    model = pruned(every_layout())
    again = run_pass(PruneNM(), model)
    assert not again.modified


@pytest.mark.parametrize("options", [{"n": 4}, {"n": 0}, {"m": 1}, {"n": 8, "m": 4}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        PruneNM.model_validate(options)


def test_arrays_without_groups_hold_no_pattern() -> None:
    ones: NDArray[np.bool_] = np.zeros((4, 6), np.bool_)
    assert not holds_pattern(ones, 1, 2, 4)
    assert holds_pattern(ones, 0, 2, 4)
