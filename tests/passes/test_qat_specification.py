"""`qat` obeys what the placement of each target laid down, and starts from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from optimc.core.model import OnnxModel
from optimc.core.targets import QuantizationSpec
from optimc.passes._quantize_weights import FULL_RANGE, REDUCED_RANGE
from optimc.passes.qat import Qat
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets import quantization_specs as specs
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.inline_workers import InlineWorker
from optimc.testing.quantizable import matmul, residual, transposed
from optimc.testing.runs import run_pass
from optimc.testing.training_data import random_training

torch = pytest.importorskip("torch")

SPECS: Mapping[str, QuantizationSpec] = {
    "onnxruntime": specs.onnxruntime_cpu({"avx512_vnni"}),
    "onnxruntime without VNNI": specs.onnxruntime_cpu(set()),
    "openvino": specs.openvino_cpu({"avx512_vnni"}),
    "tensorrt": specs.tensorrt(),
}
MODELS = {"residual": residual, "matmul": matmul, "transposed": transposed}
FAR = Qat(epochs=1, batch=16, learning_rate=20.0, scale_learning_rate=0.1, keep="last")
"""Moves weights by tens of steps, scales by a tenth."""


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The training runs in this process."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    monkeypatch.setattr("optimc.core.worker.Worker", InlineWorker)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@cache
def placed(model: str, target: str) -> tuple[OnnxModel, OnnxModel]:
    """A float model, and what `quantize_int8` makes of it."""
    origin = MODELS[model]()
    result = run_pass(
        QuantizeInt8(),
        origin,
        spec=target_spec(SPECS[target]),
        calibration=random_calibration(origin),
    )
    assert isinstance(result.model, OnnxModel)
    return origin, result.model


def trained(origin: OnnxModel, before: OnnxModel, pass_: Qat) -> OnnxModel:
    training = random_training(origin, 64)
    result = run_pass(pass_, before, quantized_from=origin, training=training).model
    assert isinstance(result, OnnxModel)
    return result


def constants(model: OnnxModel) -> dict[str, Any]:
    return {
        name: value.const_value.numpy()  # type: ignore[union-attr]
        for name, value in model.ir.graph.initializers.items()
    }


def weights(model: OnnxModel) -> Iterator[tuple[Any, Any, Any]]:
    """Each layer with its DQ of an int8 weight, and the bias where it has one."""
    for node in model.ir.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        dq = node.inputs[1].producer()  # type: ignore[union-attr]
        if dq is not None and dq.inputs[0].is_initializer():  # type: ignore[union-attr]
            yield node, dq, node.inputs[2] if len(node.inputs) > 2 else None


@pytest.mark.parametrize("target", SPECS)
@pytest.mark.parametrize("model", MODELS)
def test_what_the_target_wants_stays_however_far_the_training_goes(model: str, target: str) -> None:
    origin, before = placed(model, target)
    after, spec = trained(origin, before, FAR), SPECS[target]
    old, new = constants(before), constants(after)
    assert [(n.name, n.op_type) for n in after.ir.graph] == [
        (n.name, n.op_type) for n in before.ir.graph
    ]
    assert {k: (a.dtype, a.shape) for k, a in new.items()} == {
        k: (a.dtype, a.shape) for k, a in old.items()
    }
    for name, array in new.items():
        if name.endswith("zero_point"):
            assert np.array_equal(array, old[name])
        if name.endswith("_scale"):
            assert (array > 0).all()
            assert np.isfinite(array).all()
    limit = REDUCED_RANGE if spec.reduce_range else FULL_RANGE
    seen = changed = 0
    for node, dq, bias in weights(after):
        name = str(dq.inputs[0].name)
        assert np.abs(new[name].astype(int)).max() <= limit, node.name
        changed += not np.array_equal(new[name], old[name])
        seen += 1
        if bias is None:
            continue
        maker = bias.producer()
        if spec.bias == "float":
            assert maker is None
            assert new[str(bias.name)].dtype == np.float32
        else:
            assert new[str(maker.inputs[0].name)].dtype == np.int32
            sources = [node.inputs[0].producer().inputs[1], dq.inputs[1]]
            x, w = (new[str(value.name)] for value in sources)
            found = new[str(maker.inputs[1].name)]
            assert np.array_equal(found, np.broadcast_to(x * w, found.shape))
    assert seen
    assert changed == seen


@pytest.mark.parametrize("target", SPECS)
def test_the_training_starts_from_the_static_quantization(target: str) -> None:
    """Steps that move nothing leave every integer and every scale of the calibration."""
    origin, before = placed("residual", target)
    still = Qat(epochs=1, batch=32, learning_rate=1e-12, scale_learning_rate=0.0)
    after = trained(origin, before, still)
    old, new = constants(before), constants(after)
    for name, array in new.items():
        if array.dtype.kind == "f":
            assert np.allclose(array, old[name], rtol=1e-6, atol=0), name
        else:
            assert np.array_equal(array, old[name]), name


def test_batch_normalization_that_was_not_folded_is_frozen() -> None:
    """Its running statistics are used and kept, as behind a folding."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    h = b.node("Conv", x, b.weight(8, 3, 3, 3, scale=0.3), b.weight(8))
    numbers = [abs(b.rng.normal(1, 0.3, 8)).astype(np.float32) for _ in range(4)]
    names = [b.constant(array, f"norm_{n}") for n, array in enumerate(numbers)]
    h = b.node("Relu", b.node("BatchNormalization", h, *names))
    b.node("Conv", h, b.weight(4, 8, 3, 3, scale=0.3), b.weight(4), to="y")
    b.output("y", ["batch", 4, 4, 4])
    origin = b.model()
    spec = target_spec(SPECS["onnxruntime"])
    calibration = random_calibration(origin)
    before = run_pass(QuantizeInt8(), origin, spec=spec, calibration=calibration).model
    assert isinstance(before, OnnxModel)
    new = constants(trained(origin, before, FAR))
    assert any(not np.array_equal(new[k], a) for k, a in constants(before).items())
    for name, array in zip(names, numbers, strict=True):
        assert np.array_equal(new[name], array)


def test_a_step_size_has_the_gradient_of_learned_step_size_quantization() -> None:
    """Esser et al. 2020, equation 3: ``round(x/s) - x/s`` within the range, its end outside."""
    from optimc.passes._onnx_torch import rounded

    low, high, zero = 0.0, 255.0, 100.0
    x = torch.tensor([-60.0, -0.3, 0.26, 7.7, 90.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    fake = (rounded(x, scale, zero, low, high) - zero) * scale
    ratio = x.detach() / 0.5
    inside = (ratio.round() + zero >= low) & (ratio.round() + zero <= high)
    assert inside.tolist() == [False, True, True, True, False]
    ends = torch.where(ratio < 0, low - zero, high - zero)
    for index in range(len(x)):
        of_x, of_scale = torch.autograd.grad(fake[index], (x, scale), retain_graph=True)
        assert of_x[index] == float(inside[index]), "straight through, and nothing outside"
        wanted = ratio.round() - ratio if inside[index] else ends
        assert float(of_scale) == pytest.approx(float(wanted[index]))
