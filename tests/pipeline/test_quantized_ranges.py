from __future__ import annotations

import numpy as np
import pytest

from optimc.pipeline.quantized_ranges import quantized_ranges
from optimc.testing.graphs import GraphBuilder


def test_activations_and_weights_are_told_with_what_they_can_hold() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2])
    scale, zero = b.constant(np.float32(0.5)), b.constant(np.uint8(10))
    q = b.node("QuantizeLinear", x, scale, zero)
    d = b.node("DequantizeLinear", q, scale, zero)
    scales = b.constant(np.array([0.1, 0.2], np.float32))
    zeros = b.constant(np.zeros(2, np.int8))
    stored = b.constant(np.ones((2, 2), np.int8), name="weight")
    w = b.node("DequantizeLinear", stored, scales, zeros, axis=1)
    b.node("MatMul", d, w, to="y")
    b.output("y", ["batch", 2])
    activation, weight = quantized_ranges(b.model())
    assert (activation.tensor, activation.kind, activation.dtype) == ("x", "activation", "uint8")
    assert (activation.low, activation.high, activation.scales) == (-5.0, 122.5, 1)
    assert (weight.tensor, weight.kind, weight.dtype) == ("weight", "weight", "int8")
    assert (weight.low, weight.high) == pytest.approx((-25.6, 25.4))
    assert weight.scales == 2


def test_what_is_quantized_on_the_fly_has_no_range() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2])
    b.nodes("DynamicQuantizeLinear", x, to=["q", "s", "z"])
    b.node("DequantizeLinear", "q", "s", "z", to="y")
    b.output("y", ["batch", 2])
    assert quantized_ranges(b.model()) == ()
