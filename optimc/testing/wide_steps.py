"""Steps of the wide graph generator: many operators, dtypes, odd ranks, dims of zero."""

from __future__ import annotations

import math

from optimc.testing.graph_strategies import Dims, Making, Step, Value
from optimc.testing.graph_strategies import conv as _conv
from optimc.testing.graph_strategies import product as _product

SINCE = {
    "Celu": 12,
    "Gelu": 20,
    "HardSwish": 14,
    "Mish": 18,
    "Swish": 24,
}
"""Opsets in which activations that are newer than 13 came."""

_SMOOTH = (
    *("Elu", "Selu", "Celu", "Softplus", "Softsign", "Erf", "Sin", "Cos", "Atan", "Exp"),
    *("HardSigmoid", "HardSwish", "Mish", "Gelu", "ThresholdedRelu", "Sigmoid", "Relu"),
)
_JUMPS = ("Floor", "Ceil", "Round", "Sign")
_INTEGER = ("int64", "int32")


def fixed(dims: Dims) -> bool:
    """Whether every dim is a number."""
    return all(isinstance(dim, int) for dim in dims)


def _activation(m: Making, x: Value) -> Value | None:
    op_type = m.choose([op for op in _SMOOTH if SINCE.get(op, 0) <= m.builder.opset])
    source = m.node("Tanh", x.name, dims=x.dims) if op_type == "Exp" else x
    return m.node(op_type, source.name, dims=x.dims)


def _positive(m: Making, x: Value) -> Value:
    op_type = m.choose(["Sqrt", "Log", "Reciprocal", "Pow"])
    above = m.builder.node("Add", m.builder.node("Abs", x.name), m.number((0.5, 1.0)))
    exponent = [m.number((2.0, 0.5, 1.0))] if op_type == "Pow" else []
    return m.node(op_type, above, *exponent, dims=x.dims)


def _jump(m: Making, x: Value) -> Value | None:
    source = m.pick(lambda value: value.exact)
    return m.node(m.choose(_JUMPS), source.name, dims=source.dims) if source else None


def _variadic(m: Making, x: Value) -> Value | None:
    others = [v for v in m.values if v.dims == x.dims and v.dtype == x.dtype]
    names = [m.choose(others).name for _ in range(m.integer(1, 3))]
    return m.node(m.choose(["Sum", "Mean", "Max", "Min"]), *names, dims=x.dims)


def _reduction(m: Making, x: Value) -> Value | None:
    if not x.dims:
        return None
    op_type = m.choose(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"])
    axis, keep = m.integer(0, len(x.dims) - 1), m.integer(0, 1)
    if x.dims[axis] == 0 and op_type != "ReduceSum":
        return None
    written = axis - len(x.dims) if m.flag() else axis
    rest = (*x.dims[:axis], *((1,) if keep else ()), *x.dims[axis + 1 :])
    if op_type == "ReduceSum" or m.builder.opset >= 18:
        axes = m.builder.constant([written])
        return m.node(op_type, x.name, axes, dims=rest, keepdims=keep)
    return m.node(op_type, x.name, dims=rest, keepdims=keep, axes=[written])


def _softmax(m: Making, x: Value) -> Value | None:
    if not x.dims or 0 in x.dims:
        return None
    op_type = m.choose(["Softmax", "LogSoftmax"])
    return m.node(op_type, x.name, dims=x.dims, axis=m.integer(-len(x.dims), len(x.dims) - 1))


def _norm(m: Making, x: Value) -> Value | None:
    """A normalization that comes as one operator."""
    if len(x.dims) < 2 or not fixed(x.dims[1:]) or 0 in x.dims:
        return None
    options = ["LayerNormalization"] if m.builder.opset >= 17 else []
    options += ["InstanceNormalization", "LpNormalization"] if len(x.dims) > 2 else []
    if not options:
        return None
    op_type = m.choose(options)
    if op_type == "LpNormalization":
        shifted = m.builder.node("Add", m.builder.node("Abs", x.name), m.number((0.5,)))
        return m.node(op_type, shifted, dims=x.dims, axis=1)
    size = int(x.dims[-1] if op_type == "LayerNormalization" else x.dims[1])
    affine = [m.builder.weight(size) for _ in range(2)]
    return m.node(op_type, x.name, *affine, dims=x.dims, epsilon=0.5)


def _pool(m: Making, x: Value) -> Value | None:
    if len(x.dims) not in (3, 4, 5) or any(isinstance(d, str) or d < 2 for d in x.dims[1:]):
        return None
    space = [int(dim) for dim in x.dims[2:]]
    op_type = m.choose(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if op_type.startswith("Global"):
        return m.node(op_type, x.name, dims=(*x.dims[:2], *[1] * len(space)))
    kernel = [m.integer(1, 2) for _ in space]
    steps = [m.integer(1, 2) for _ in space]
    out = [(dim - k) // step + 1 for dim, k, step in zip(space, kernel, steps, strict=True)]
    return m.node(op_type, x.name, dims=(*x.dims[:2], *out), kernel_shape=kernel, strides=steps)


def _grouped_conv(m: Making, x: Value) -> Value | None:
    """Convolutions of one to three dims: depthwise, dilated, with pads on one side."""
    if len(x.dims) not in (3, 4, 5) or any(isinstance(d, str) or d < 2 for d in x.dims[1:]):
        return None
    channels, space = int(x.dims[1]), [int(dim) for dim in x.dims[2:]]
    if channels > 8 or math.prod(space) > 400:
        return None
    group = m.choose([1, channels])
    before, after = m.integer(0, 1), m.integer(0, 1)
    filters = channels * m.integer(1, 2) if group > 1 else m.integer(1, 4)
    weight = m.builder.weight(filters, channels // group, *[2] * len(space))
    bias = [m.builder.weight(filters)] if m.flag() else []
    out = [dim + before + after - 1 for dim in space]
    pads = [*[before] * len(space), *[after] * len(space)]
    dims: Dims = (x.dims[0], filters, *out)
    return m.node("Conv", x.name, weight, *bias, dims=dims, group=group, pads=pads)


def _conv_transpose(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 4 or any(isinstance(d, str) or not 1 <= d <= 8 for d in x.dims[1:]):
        return None
    weight = m.builder.weight(int(x.dims[1]), 2, 2, 2)
    out = [2 * int(dim) for dim in x.dims[2:]]
    return m.node("ConvTranspose", x.name, weight, dims=(x.dims[0], 2, *out), strides=[2, 2])


def _gemm(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 2 or isinstance(x.dims[1], str) or x.dims[1] == 0:
        return None
    rows, columns, turned = int(x.dims[1]), m.integer(1, 4), m.integer(0, 1)
    weight = m.builder.weight(columns, rows) if turned else m.builder.weight(rows, columns)
    bias = [m.builder.weight(*m.choose([(columns,), (1, columns), (1,), ()]))] if m.flag() else []
    scales = {"alpha": m.choose([1.0, 0.5]), "beta": m.choose([1.0, 0.5])}
    return m.node("Gemm", x.name, weight, *bias, dims=(x.dims[0], columns), transB=turned, **scales)


def _einsum(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 3 or isinstance(x.dims[2], str):
        return None
    weight = m.builder.weight(int(x.dims[2]), 2)
    return m.node("Einsum", x.name, weight, dims=(*x.dims[:2], 2), equation="abc,cd->abd")


def _broadcast(m: Making, x: Value) -> Value | None:
    """Arithmetic with a constant that has fewer dims, or more, or a 1 where the value has not."""
    if not fixed(x.dims) or len(x.dims) > 5:
        return None
    shape = [int(dim) if m.flag() else 1 for dim in x.dims][m.integer(0, len(x.dims)) :]
    inner = m.flag()
    if not inner:
        shape = [m.integer(1, 2), *[1] * (len(x.dims) - len(shape)), *shape]
    other = m.builder.weight(*shape)
    inputs = [x.name, other] if inner else m.shuffled([x.name, other])
    op_type = m.choose(["Add", "Sub", "Mul", *(["PRelu"] if inner else [])])
    dims = (*shape[: -len(x.dims) or None], *x.dims) if not inner else x.dims
    return m.node(op_type, *inputs, dims=dims)


def _moved(m: Making, x: Value) -> Value | None:
    """Data moved: exact stays exact, of any dtype."""
    source = m.pick(dtype=None)
    if source is None or source.dtype == "float16":
        return None
    move = m.choose([_turn, _tile, _gather, _split, _stack, _flip, _depth])
    made = move(m, source)
    return None if made is None else Value(made[0], made[1], source.dtype, source.exact)


Moved = tuple[str, Dims] | None


def _turn(m: Making, x: Value) -> Moved:
    if not x.dims:
        return None
    perm = m.shuffled(range(len(x.dims)))
    dims = tuple(x.dims[axis] for axis in perm)
    return m.builder.node("Transpose", x.name, perm=list(perm)), dims


def _tile(m: Making, x: Value) -> Moved:
    if x.dtype == "bool" or not x.dims or math.prod(d for d in x.dims if isinstance(d, int)) > 500:
        return None
    repeats = [m.integer(1, 2) if isinstance(dim, int) else 1 for dim in x.dims]
    dims = tuple(
        dim * n if isinstance(dim, int) else dim for dim, n in zip(x.dims, repeats, strict=True)
    )
    return m.builder.node("Tile", x.name, m.builder.constant(repeats)), dims


def _gather(m: Making, x: Value) -> Moved:
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int) and dim > 0]
    if not axes:
        return None
    axis = m.choose(axes)
    size = int(x.dims[axis])
    shape = m.choose([(), (1,), (3,), (2, 1), (0,)])
    if len(x.dims) + len(shape) > 6:
        return None
    indices = m.builder.constant(m.builder.rng.integers(-size, size, shape), dtype="int64")
    dims = (*x.dims[:axis], *shape, *x.dims[axis + 1 :])
    return m.builder.node("Gather", x.name, indices, axis=axis), dims


def _split(m: Making, x: Value) -> Moved:
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int) and dim > 1]
    if not axes or x.dtype == "bool":
        return None
    axis = m.choose(axes)
    first = m.integer(1, int(x.dims[axis]) - 1)
    sizes = [first, int(x.dims[axis]) - first]
    names = [m.builder.unique("part") for _ in sizes]
    m.builder.nodes("Split", x.name, m.builder.constant(sizes), to=names, axis=axis)
    side = m.integer(0, 1)
    return names[side], (*x.dims[:axis], sizes[side], *x.dims[axis + 1 :])


def _stack(m: Making, x: Value) -> Moved:
    if not x.dims or not isinstance(x.dims[-1], int) or x.dims[-1] > 32:
        return None
    name = m.builder.node("Concat", x.name, x.name, axis=-1)
    return name, (*x.dims[:-1], 2 * x.dims[-1])


def _flip(m: Making, x: Value) -> Moved:
    """A Slice backwards."""
    if not x.dims:
        return None
    parts = [m.builder.constant([number]) for number in (-1, -(2**62), len(x.dims) - 1, -1)]
    return m.builder.node("Slice", x.name, *parts), x.dims


def _depth(m: Making, x: Value) -> Moved:
    if x.dtype != "float32" or len(x.dims) != 4 or any(isinstance(d, str) for d in x.dims[1:]):
        return None
    n, c, h, w = x.dims
    if isinstance(c, str) or c % 4 or c == 0:
        return None
    name = m.builder.node("DepthToSpace", x.name, blocksize=2, mode=m.choose(["DCR", "CRD"]))
    return name, (n, c // 4, int(h) * 2, int(w) * 2)


def _cast(m: Making, x: Value) -> Value | None:
    """To another float type and back, with a little arithmetic between."""
    kind = m.choose(["float64", "float16"]) if x.exact else "float64"
    inner = m.builder.cast(x.name, kind)
    if kind == "float64":
        inner = m.builder.node(m.choose(["Neg", "Abs", "Relu"]), inner)
    return Value(m.builder.cast(inner, "float32"), x.dims)


def _integers(m: Making, x: Value) -> Value | None:
    """Integers: of inputs, of shapes, of choices; arithmetic on them."""
    source = m.pick(lambda value: value.exact, dtype=None)
    if source is None:
        return None
    kind = m.choose(["shape", "cast", "argmax", "arithmetic"])
    if kind == "shape":
        name = m.builder.node("Shape", source.name)
        return Value(name, (len(source.dims),), "int64", exact=True)
    if kind == "argmax" and source.dims and source.dims[-1] != 0 and source.dtype == "float32":
        name = m.builder.node("ArgMax", source.name, axis=-1, keepdims=0)
        return Value(name, source.dims[:-1], "int64", exact=True)
    if source.dtype not in _INTEGER:
        to = m.choose(["int64", "int32"])
        return Value(m.builder.cast(source.name, to), source.dims, to, exact=True)
    op_type, number = m.choose([("Add", 1), ("Mul", 2), ("Sub", 3), ("Div", 2), ("Mod", 3)])
    other = m.builder.constant(number, dtype=source.dtype)
    return Value(m.builder.node(op_type, source.name, other), source.dims, source.dtype, exact=True)


def _logic(m: Making, x: Value) -> Value | None:
    """A comparison of exact values, or logic on booleans."""
    source = m.pick(lambda value: value.exact, dtype=None)
    if source is None or source.dtype == "float16":
        return None
    if source.dtype == "bool":
        name = m.builder.node("Not", source.name)
    else:
        zero = m.builder.constant(m.choose([0, 1]), dtype=source.dtype)
        op_type = m.choose(["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"])
        name = m.builder.node(op_type, source.name, zero)
    return Value(name, source.dims, "bool", exact=True)


def _where(m: Making, x: Value) -> Value | None:
    source = m.pick(lambda value: value.exact and value.dims == x.dims)
    if source is None:
        return None
    mask = m.builder.node("Greater", source.name, m.number((0.0, 1.0)))
    sides = m.shuffled([x.name, m.number()])
    return m.node("Where", mask, *sides, dims=x.dims)


def _lookup(m: Making, x: Value) -> Value | None:
    """An embedding by integers, which are clipped into its table."""
    ids = m.pick(lambda value: len(value.dims) < 5, dtype="int64")
    if ids is None:
        return None
    bounds = [m.builder.constant(number) for number in (0, 4)]
    clipped = m.builder.node("Clip", ids.name, *bounds)
    return m.node("Gather", m.builder.weight(5, 3), clipped, dims=(*ids.dims, 3))


def _quantized(m: Making, x: Value) -> Value | None:
    if m.integer(0, 3) or 0 in x.dims:
        return None
    kind, zero = m.choose([("uint8", 128), ("int8", 0), ("int8", -5)])
    parameters = [m.builder.constant(0.05), m.builder.constant(zero, dtype=kind)]
    levels = m.builder.node("QuantizeLinear", x.name, *parameters)
    return m.node("DequantizeLinear", levels, *parameters, dims=x.dims)


def _to_scalar(m: Making, x: Value) -> Value | None:
    """A value of rank 0."""
    if 0 in x.dims:
        return None
    return m.node("ReduceMean", x.name, dims=(), keepdims=0)


def _empty(m: Making, x: Value) -> Value | None:
    """A dim of zero, and its concatenation with what is not empty."""
    if not x.dims or not isinstance(x.dims[0], int):
        return None
    parts = [m.builder.constant([number]) for number in (0, 0, 0)]
    name = m.builder.node("Slice", x.name, *parts)
    if m.flag():
        return Value(name, (0, *x.dims[1:]))
    return m.node("Concat", *m.shuffled([name, x.name]), dims=x.dims, axis=0)


HEAVY_STEPS: tuple[Step, ...] = (_grouped_conv, _conv, _gemm, _product, _einsum, _conv_transpose)
"""What precision passes look for."""

WIDE_STEPS: tuple[Step, ...] = (
    *(_activation, _positive, _jump, _variadic, _reduction, _softmax, _norm, _pool),
    *(_grouped_conv, _conv_transpose, _gemm, _einsum, _broadcast, _moved, _moved, _cast),
    *(_integers, _logic, _where, _lookup, _quantized, _to_scalar, _empty),
)
