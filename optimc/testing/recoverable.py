"""Small models for the passes that recover accuracy: quantized ones, and what they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import depthwise, matmul, residual, transposed
from optimc.testing.runs import run_pass

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel


def depthwise_chain(shift: float = 0.1) -> OnnxModel:
    """Depthwise and pointwise convolutions with ReLU, whose channels differ by up to 100 times.

    `shift` is the standard deviation of the biases.
    """
    import numpy as np

    b = GraphBuilder()
    x, stem = b.input("image", ["batch", 3, 8, 8]), b.weight(8, 3, 3, 3, scale=0.2)
    h = b.node("Relu", b.node("Conv", x, stem, b.weight(8, scale=shift), pads=[1, 1, 1, 1]))
    for inside, outside in ((8, 16), (16, 16)):
        spread = np.exp(b.rng.uniform(-2.3, 2.3, inside)).astype(np.float32)
        filters = b.rng.normal(0, 0.3, (inside, 1, 3, 3)).astype(np.float32)
        weight = b.constant(filters * spread[:, None, None, None])
        bias = b.constant((b.rng.normal(0, shift, inside) * spread).astype(np.float32))
        h = b.node("Relu", b.node("Conv", h, weight, bias, pads=[1, 1, 1, 1], group=inside))
        mix = b.rng.normal(0, 0.5 / inside**0.5, (outside, inside, 1, 1)).astype(np.float32)
        weight = b.constant(mix / spread[:, None, None])
        h = b.node("Relu", b.node("Conv", h, weight, b.weight(outside, scale=shift)))
    h = b.node("Flatten", b.node("GlobalAveragePool", h), axis=1)
    b.node("Gemm", h, b.weight(20, 16, scale=0.3), b.weight(20), transB=1, to="logits")
    b.output("logits", ["batch", 20])
    return b.model()


def float_models() -> Mapping[str, OnnxModel]:
    """Models with layers of every kind that `quantize_int8` quantizes."""
    return {
        "depthwise": depthwise(),
        "depthwise chain": depthwise_chain(),
        "matmul": matmul(),
        "residual": residual(),
        "transposed": transposed(),
    }


def quantized(model: OnnxModel, *, per_channel: bool = True) -> OnnxModel:
    """`model` as `quantize_int8` leaves it for ONNX Runtime, named as a build names it."""
    from optimc.passes.quantize_int8 import QuantizeInt8
    from optimc.targets.quantization_specs import onnxruntime_cpu

    spec = onnxruntime_cpu({"avx512_vnni"})
    if not per_channel:
        rules = {
            name: rule.model_copy(update={"weight_axis": None}) for name, rule in spec.rules.items()
        }
        spec = spec.model_copy(update={"rules": rules})
    result = run_pass(
        QuantizeInt8(),
        model,
        spec=target_spec(spec),
        calibration=random_calibration(model),
    )
    assert result.modified
    return result.model  # type: ignore[return-value]


@cache
def _pairs() -> Mapping[str, tuple[OnnxModel, OnnxModel]]:
    return {name: (model, quantized(model)) for name, model in float_models().items()}


def quantized_models() -> Mapping[str, OnnxModel]:
    """`float_models`, quantized for ONNX Runtime; made once."""
    return {name: pair[1] for name, pair in _pairs().items()}


def origin_of(model: OnnxModel) -> OnnxModel:
    """The float model that one of `quantized_models` came from, or what a pass made of it."""
    return next(f for f, q in _pairs().values() if q.signature == model.signature)
