"""Hypothesis strategies for what `fuse` looks for, between other operators and shared at random.

They need hypothesis (the extra `dev`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optimc.core.model import OnnxModel
from optimc.testing.graph_strategies import OPSETS, STEPS, Dims, Drawn, Making, Step, Value
from optimc.testing.graphs import GraphBuilder
from optimc.testing.spellings import GELUS, gelu, layer_norm, shortcut

if TYPE_CHECKING:
    from hypothesis import strategies as st


def _gelu(m: Making, x: Value) -> Value:
    return Value(gelu(m.builder, x.name, m.choose(GELUS)), x.dims)


def _layer_norm(m: Making, x: Value) -> Value | None:
    if not x.dims or isinstance(x.dims[-1], str) or 0 in x.dims:
        return None
    # A small epsilon makes numbers of mere rounding where a row is constant.
    name = layer_norm(
        m.builder,
        x.name,
        int(x.dims[-1]),
        square=m.choose(["Pow", "Mul"]),
        affine=m.choose(["both", "scale", "bias", "none"]),
        twice=m.flag(),
        axis=m.choose([-1, len(x.dims) - 1]),
        scalars=m.flag(),
        epsilon=0.5,
    )
    return Value(name, x.dims)


def _shortcut(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 4 or isinstance(x.dims[1], str) or x.dims[1] > 8:
        return None
    if any(isinstance(dim, str) for dim in x.dims[2:]):
        return None
    steps = {axis: m.integer(1, 3) for axis in (3, 2)}
    before, after = m.integer(0, 2), m.integer(0, 2)
    name = shortcut(
        m.builder,
        x.name,
        strides=steps,
        pads=(before, after),
        value=m.choose([0.0, 0.0, 1.0]),
        axes_of_pad=m.builder.opset >= 18 and m.flag(),
    )
    space = [math.ceil(int(x.dims[axis]) / steps[axis]) for axis in (2, 3)]
    return Value(name, (x.dims[0], x.dims[1] + before + after, *space))


def _linear(m: Making, x: Value) -> Value | None:
    """A product with a weight that may be transposed in the graph, and what is added to it."""
    if len(x.dims) < 2 or isinstance(x.dims[-1], str):
        return None
    rows, columns = int(x.dims[-1]), m.integer(1, 4)
    weight = m.builder.weight(rows, columns)
    if m.flag():
        weight = m.builder.node("Transpose", m.builder.weight(columns, rows), perm=[1, 0])
    dims: Dims = (*x.dims[:-1], columns)
    is_gemm = len(x.dims) == 2 and m.flag()
    result = m.node("Gemm" if is_gemm else "MatMul", x.name, weight, dims=dims)
    shape = m.choose([(columns,), (1, columns), (1,), ()])
    inputs = [result.name, m.builder.weight(*shape)]
    return m.node("Add", *m.shuffled(inputs), dims=dims)


def _moved_bias(m: Making, x: Value) -> Value | None:
    """A 1x1 Conv, a Transpose, and a constant for each channel where the channels now are."""
    if len(x.dims) != 4 or isinstance(x.dims[1], str) or x.dims[1] > 8:
        return None
    h = m.builder.node("Conv", x.name, m.builder.weight(3, int(x.dims[1]), 1, 1))
    perm = m.shuffled(range(4))
    h = m.builder.node("Transpose", h, perm=list(perm))
    dims = tuple((x.dims[0], 3, *x.dims[2:])[axis] for axis in perm)
    shape = [3 if axis == 1 else 1 for axis in perm]
    return m.node("Add", h, m.builder.weight(*shape), dims=dims)


def _scaled(m: Making, x: Value) -> Value | None:
    """A layer or BatchNormalization, perhaps a Reshape, and up to three constants behind it."""
    if len(x.dims) != 4 or isinstance(x.dims[1], str) or x.dims[1] > 8:
        return None
    if isinstance(x.dims[3], str):
        return None
    channels, kind = int(x.dims[1]), m.choose(["Conv", "ConvTranspose", "BatchNormalization"])
    if kind == "BatchNormalization":
        rows = [m.builder.constant(m.builder.rng.uniform(0.5, 2.0, channels)) for _ in range(4)]
        name = m.builder.node(kind, x.name, *rows)
    else:
        bias = [m.builder.weight(4)] if m.flag() else []
        shape = (4, channels) if kind == "Conv" else (channels, 4)
        name = m.builder.node(kind, x.name, m.builder.weight(*shape, 1, 1), *bias)
        channels = 4
    dims: Dims = (x.dims[0], channels, *x.dims[2:])
    shapes = [(channels, 1, 1), (1, channels, 1, 1), (1, 1, 1), (), (1,), (int(dims[-1]),)]
    if channels == 4 and not any(isinstance(dim, str) for dim in dims[2:]) and m.flag():
        dims = (x.dims[0], 2, 2, int(dims[2]) * int(dims[3]))
        name = m.builder.node("Reshape", name, m.builder.constant([0, *dims[1:]]))
        shapes = [(2, 2, 1), (1, 2, 2, 1), (2, 1, 1), (2, 1), (), (int(dims[-1]),)]
    for _ in range(m.integer(1, 3)):
        row = m.builder.constant(m.builder.rng.uniform(0.5, 2.0, m.choose(shapes)))
        name = m.builder.node(m.choose(["Mul", "Add", "Div", "Sub"]), *m.shuffled([name, row]))
    return Value(name, dims)


FUSE_STEPS: tuple[Step, ...] = (_gelu, _layer_norm, _shortcut, _linear, _moved_bias, _scaled)


def fusible_models(max_steps: int = 8) -> st.SearchStrategy[OnnxModel]:
    """Models with what `fuse` looks for; every value may be read elsewhere or be an output."""
    from hypothesis import strategies as st

    return st.composite(_model)(max_steps)


def _model(draw: st.DrawFn, max_steps: int) -> OnnxModel:
    choices = Drawn(draw)
    builder = GraphBuilder(choices.choose(OPSETS), seed=choices.integer(0, 2**16))
    making = Making(choices, builder)
    shapes: list[Dims] = [("batch", 4), ("batch", 2, 5, 5), (3, 4), (2, 3, 4)]
    dims = making.choose(shapes)
    making.values.append(Value(builder.input("in0", dims), dims))
    for _ in range(making.integer(1, max_steps)):
        source = making.pick()
        assert source is not None
        made = making.choose(FUSE_STEPS if making.flag() else STEPS)(making, source)
        if made is not None:
            making.values.append(made)
    for index in range(making.integer(1, 3)):
        value = making.choose(making.values[-3:])
        builder.node("Identity", value.name, to=f"out{index}")
        builder.output(f"out{index}", value.dims)
    return builder.model()
