"""The feed-forward half of a transformer layer, as today's exporters write it."""

from __future__ import annotations

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder


def feed_forward(width: int = 16) -> OnnxModel:
    """Two residual LayerNorms around Linear, GELU (by Erf), Linear; ``x`` [batch, length, width].

    ONNX Runtime has operators of its own for both norms and for the GELU with its bias.
    """
    b = GraphBuilder()
    x = b.input("x", ["batch", "length", width])
    h = _normalized(b, x, b.node("MatMul", x, b.weight(width, width, scale=0.2)), width)
    inner = b.node("Add", b.node("MatMul", h, b.weight(width, 32, scale=0.2)), b.weight(32))
    scaled = b.node("Div", inner, b.constant(2.0**0.5))
    erf = b.node("Add", b.node("Erf", scaled), b.constant(1.0))
    gelu = b.node("Mul", b.node("Mul", inner, erf), b.constant(0.5))
    out = b.node("Add", b.node("MatMul", gelu, b.weight(32, width, scale=0.2)), b.weight(width))
    _normalized(b, h, out, width, to="y")
    b.output("y", ["batch", "length", width])
    return b.model()


def _normalized(b: GraphBuilder, skip: str, value: str, width: int, to: str | None = None) -> str:
    total = b.node("Add", skip, value)
    return b.node("LayerNormalization", total, b.weight(width), b.weight(width), axis=-1, to=to)
