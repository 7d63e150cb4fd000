"""Parts of a transformer layer, as today's exporters write them."""

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


def gelu_alone(width: int = 16) -> OnnxModel:
    """Linear with bias and GELU (by Erf), without a norm: ``x`` [batch, length, width]."""
    b = GraphBuilder()
    x = b.input("x", ["batch", "length", width])
    inner = b.node("Add", b.node("MatMul", x, b.weight(width, 32, scale=0.2)), b.weight(32))
    erf = b.node("Erf", b.node("Div", inner, b.constant(2.0**0.5)))
    b.node(
        "Mul", b.node("Mul", inner, b.node("Add", erf, b.constant(1.0))), b.constant(0.5), to="y"
    )
    b.output("y", ["batch", "length", 32])
    return b.model()


def attention(
    *,
    masked: bool = True,
    guarded: bool = True,
    swap: str = "dance",
    infinite: bool = False,
    queries: int = 6,
) -> OnnxModel:
    """Two heads of 16 over ``x`` [2, 6, 32], and a linear layer behind.

    ``keep`` [2, 1, queries, 6] says which keys count.

    `swap` says how the keys' last axes change places: `dance` is torch's Reshape, Transpose and
    Reshape, `transpose` a second Transpose, `once` a single one.
    """
    import numpy as np

    b = GraphBuilder()
    x = b.input("x", [2, 6, 32])
    keep = b.input("keep", [2, 1, queries, 6], "bool") if masked else ""

    def heads(perm: list[int]) -> str:
        linear = b.node("Add", b.node("MatMul", x, b.weight(32, 32, scale=0.2)), b.weight(32))
        split = b.node("Reshape", linear, b.constant([2, 6, -1, 16]))
        return b.node("Transpose", split, perm=perm)

    query = b.node("Mul", heads([0, 2, 1, 3]), b.constant(0.5))
    key = heads([0, 2, 3, 1] if swap == "once" else [0, 2, 1, 3])
    if swap == "dance":
        flat = b.node("Reshape", key, b.constant([-1, 6, 16]))
        turned = b.node("Transpose", flat, perm=[0, 2, 1])
        key = b.node("Reshape", turned, b.constant([2, 2, 16, 6]))
    elif swap == "transpose":
        key = b.node("Transpose", key, perm=[0, 1, 3, 2])
    scores = b.node("MatMul", query, b.node("Mul", key, b.constant(0.5)))
    if masked:
        least = -np.inf if infinite else np.finfo(np.float32).min
        scores = b.node("Add", scores, b.node("Where", keep, b.constant(0.0), b.constant(least)))
    weights = b.node("Softmax", scores, axis=-1)
    if guarded:
        weights = b.node("Where", b.node("IsNaN", weights), b.constant(0.0), weights)
    mixed = b.node("Transpose", b.node("MatMul", weights, heads([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    joined = b.node("Reshape", mixed, b.constant([2, 6, -1]))
    b.node("Add", b.node("MatMul", joined, b.weight(32, 32, scale=0.2)), b.weight(32), to="y")
    b.output("y", [2, 6, 32])
    return b.model()
