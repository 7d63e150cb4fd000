"""Models with dead channels: one of everything, and a Hypothesis strategy (the extra `dev`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimc.core.model import OnnxModel
from optimc.testing.graph_strategies import OPSETS, Drawn, Making, Value
from optimc.testing.graphs import GraphBuilder

if TYPE_CHECKING:
    from hypothesis import strategies as st
    from numpy.typing import NDArray


def dead_rows(array: NDArray[Any], *rows: int) -> NDArray[Any]:
    """A copy with these entries of the first axis set to zero."""
    copy = array.astype("float32")
    copy[list(rows)] = 0.0
    return copy


def weight(b: GraphBuilder, *shape: int, dead: tuple[int, ...] = (), unread: int = -1) -> str:
    """A weight [outputs, inputs, ...] with output channels of zeros and one input of zeros."""
    array = dead_rows(b.rng.normal(0, 0.4, shape), *dead)
    if unread >= 0:
        array[:, unread] = 0.0
    return b.constant(array)


def dead_bouquet() -> OnnxModel:
    """Each way of being dead, and each operator between; constants differ from channel to channel.

    Layers that stand behind a constant other than 0 pad nothing, but for one whose constant has to
    stay.
    """
    b = GraphBuilder(20)
    x = b.input("image", ["batch", 4, 12, 12])
    # Padded: the constants 0.7 and 0.2 of its input have to stay, the zero may go.
    bias = b.constant([0.1, 0.7, -0.6, 0.2, 0.3, 0.0])
    h = b.node("Conv", x, weight(b, 6, 4, 3, 3, dead=(1, 2, 3)), bias, name="first")
    h = b.node("Relu", h)
    h = b.node("Conv", h, weight(b, 6, 6, 3, 3), pads=[1, 1, 1, 1], name="padded")
    # A factor of zero behind a living channel; a channel that the next layer does not read.
    rows = [b.constant(v) for v in ([1, 0, 1.5, 1, 0.7, 1.2], [0.2, 0.9, 0.1, 0, 0, 0.3])]
    rows += [b.weight(6), b.constant(b.rng.uniform(0.5, 2.0, 6))]
    h = b.node("BatchNormalization", h, *rows)
    h = b.node("Mul", h, b.node("Sigmoid", h))
    left = b.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    right = b.node("Conv", left, weight(b, 4, 6, 1, 1, dead=(0,)), b.weight(4), name="right")
    joined = b.node("Concat", left, b.node("LeakyRelu", right, alpha=0.2), axis=1)
    joined = b.node("Add", joined, b.weight(1, 10, 1, 1))
    h = b.node("Conv", joined, weight(b, 5, 10, 2, 2, dead=(3,), unread=4), b.weight(5), name="end")
    h = b.node("AveragePool", h, kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=0)
    h = b.node("Conv", h, weight(b, 6, 5, 1, 1, dead=(0,)), b.weight(6), name="counted")
    h = b.node("AveragePool", h, kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    h = b.node("Conv", h, weight(b, 3, 6, 1, 1, dead=(1,)),
               b.weight(3), name="flattened")  # fmt: skip
    h = b.node("Flatten", b.node("HardSwish", h), axis=1)
    inner = weight(b, 8, 3 * 6 * 6, dead=(0, 5))
    h = b.node("Gemm", h, inner, b.weight(8), transB=1, alpha=0.5, beta=2.0, name="hidden")
    h = b.node("Clip", h, b.constant(-0.5), b.constant(0.5))
    b.node("Gemm", h, weight(b, 5, 8), b.weight(5), transB=1, alpha=2.0, to="logits", name="head")
    b.output("logits", ["batch", 5])
    return b.model()


def _channels(m: Making, x: Value) -> int:
    return int(x.dims[1])


def _some(m: Making, count: int) -> tuple[int, ...]:
    return tuple(i for i in range(count) if m.integer(0, 2) == 0)


def _layer_weight(m: Making, outputs: int, inputs: int, *space: int) -> NDArray[Any]:
    array = dead_rows(m.builder.rng.normal(0, 0.4, (outputs, inputs, *space)), *_some(m, outputs))
    array[:, list(_some(m, inputs))] = 0.0
    return array


def _bias(m: Making, count: int) -> list[str]:
    kind = m.choose(["none", "zero", "some", "some"])
    if kind == "none":
        return []
    return [m.builder.weight(count) if kind == "some" else m.builder.constant([0.0] * count)]


def _conv(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 4 or int(x.dims[2]) < 3:
        return None
    outputs, size, pad = m.integer(1, 4), m.choose([1, 3]), m.choose([0, 0, 1])
    array = m.builder.constant(_layer_weight(m, outputs, _channels(m, x), size, size))
    space = int(x.dims[2]) + 2 * pad - size + 1
    dims = (x.dims[0], outputs, space, space)
    inputs = [x.name, array, *_bias(m, outputs)]
    return m.node("Conv", *inputs, dims=dims, pads=[pad] * 4)


def _product(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 2:
        return None
    outputs = m.integer(1, 4)
    array, dims = _layer_weight(m, outputs, _channels(m, x)), (x.dims[0], outputs)
    if m.flag():
        return m.node("MatMul", x.name, m.builder.constant(array.T.copy()), dims=dims)
    factors = {"alpha": m.choose([1.0, 0.5]), "beta": m.choose([1.0, 2.0])}
    inputs = [x.name, m.builder.constant(array), *_bias(m, outputs)]
    return m.node("Gemm", *inputs, dims=dims, transB=1, **factors)


def _batchnorm(m: Making, x: Value) -> Value:
    count = _channels(m, x)
    scale = dead_rows(m.builder.rng.uniform(0.5, 2.0, count), *_some(m, count))
    rows = [m.builder.constant(scale), m.builder.weight(count), m.builder.weight(count)]
    rows.append(m.builder.constant(m.builder.rng.uniform(0.5, 2.0, count)))
    return m.node("BatchNormalization", x.name, *rows, dims=x.dims)


def _unary(m: Making, x: Value) -> Value:
    names = ["Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Abs", "Neg"]
    return m.node(m.choose([*names, "Softplus", "Identity", "Erf"]), x.name, dims=x.dims)


def _clip(m: Making, x: Value) -> Value:
    return m.node("Clip", x.name, m.number((-1.0, 0.0)), m.number((0.5, 2.0)), dims=x.dims)


def _constant(m: Making, x: Value) -> Value:
    shape = [1, _channels(m, x), *[1] * (len(x.dims) - 2)]
    shape = m.choose([shape, shape[1:], [1]])
    array = m.builder.constant(m.builder.rng.uniform(0.5, 2.0, shape))
    op_type = m.choose(["Add", "Mul", "Sub", "Div", "Max", "Min"])
    return m.node(op_type, *m.shuffled([x.name, array]), dims=x.dims)


def _gated(m: Making, x: Value) -> Value:
    gate = m.builder.node(m.choose(["Sigmoid", "Tanh", "Relu"]), x.name)
    return m.node(m.choose(["Mul", "Add", "Max"]), *m.shuffled([x.name, gate]), dims=x.dims)


def _both(m: Making, x: Value) -> Value | None:
    y = m.pick(lambda value: value.dims == x.dims)
    return m.node("Add", x.name, y.name, dims=x.dims) if y else None


def _concat(m: Making, x: Value) -> Value | None:
    y = m.pick(lambda v: len(v.dims) == len(x.dims) and v.dims[2:] == x.dims[2:])
    if y is None or _channels(m, x) + _channels(m, y) > 12:
        return None
    dims = (x.dims[0], _channels(m, x) + _channels(m, y), *x.dims[2:])
    return m.node("Concat", x.name, y.name, dims=dims, axis=1)


def _pool(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 4 or int(x.dims[2]) < 2:
        return None
    pad, op_type = m.choose([0, 1]), m.choose(["MaxPool", "AveragePool"])
    space = int(x.dims[2]) + 2 * pad - 1
    counts = {"count_include_pad": m.choose([0, 1])} if op_type == "AveragePool" else {}
    dims = (*x.dims[:2], space, space)
    return m.node(op_type, x.name, dims=dims, kernel_shape=[2, 2], pads=[pad] * 4, **counts)


def _flat(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 4:
        return None
    kind = m.choose(["mean", "flatten", "reshape"])
    if kind == "mean":
        axes = m.builder.constant([2, 3])
        if m.builder.opset < 18:
            return m.node("ReduceMean", x.name, dims=x.dims[:2], axes=[2, 3], keepdims=0)
        return m.node("ReduceMean", x.name, axes, dims=x.dims[:2], keepdims=0)
    width = _channels(m, x) * int(x.dims[2]) ** 2
    if width > 200:
        return None
    if kind == "flatten":
        return m.node("Flatten", x.name, dims=(x.dims[0], width), axis=1)
    target = m.builder.constant([0, m.choose([width, -1])])
    return m.node("Reshape", x.name, target, dims=(x.dims[0], width))


STEPS = (
    _conv, _conv, _conv, _product, _product, _batchnorm, _unary, _unary, _clip, _constant, _gated,
    _both, _concat, _pool, _flat,
)  # fmt: skip


def dead_models(max_steps: int = 10) -> st.SearchStrategy[OnnxModel]:
    """Layers with zeros in rows, columns, biases and factors, and what may stand between them."""
    from hypothesis import strategies as st

    return st.composite(_model)(max_steps)


def _model(draw: st.DrawFn, max_steps: int) -> OnnxModel:
    choices = Drawn(draw)
    builder = GraphBuilder(choices.choose(OPSETS), seed=choices.integer(0, 2**16))
    making = Making(choices, builder)
    dims = ("batch", 3, 6, 6)
    making.values.append(Value(builder.input("in0", dims), dims))
    for _ in range(making.integer(2, max_steps)):
        # Chains rather than bushes: what ends in an output without a layer behind it never dies.
        source = making.values[-1] if making.integer(0, 3) else making.pick()
        assert source is not None
        made = making.choose(STEPS)(making, source)
        if made is not None:
            making.values.append(made)
    last = making.values[-1]
    last = _conv(making, last) or _product(making, last) or last
    builder.node("Identity", last.name, to="out0")
    builder.output("out0", last.dims)
    return builder.model()
