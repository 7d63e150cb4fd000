"""Generators of valid ONNX models: small graphs with what rewriters get wrong.

Operators that follow one another in ways that rules match, shared and equal constants, arithmetic
on constants, shapes computed from shapes, branches, outputs that are inputs or other outputs.
Hypothesis draws them (it needs the extra `dev`), or a seed does; `optimc.testing.wide_graphs` has
more operators, dtypes and control flow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder

if TYPE_CHECKING:
    from hypothesis import strategies as st

Dims = tuple[int | str, ...]
T = TypeVar("T")

OPSETS = (13, 14, 17, 18, 20, 21)


class Choices(Protocol):
    """Where the decisions come from."""

    def choose(self, options: Sequence[T]) -> T:
        """One of several."""

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in any order."""


@dataclass(frozen=True)
class Drawn:
    """Choices that Hypothesis draws, and shrinks."""

    draw: st.DrawFn

    def choose(self, options: Sequence[T]) -> T:
        """One of several."""
        from hypothesis import strategies as st

        return self.draw(st.sampled_from(options))

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        from hypothesis import strategies as st

        return self.draw(st.integers(low, high))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in any order."""
        from hypothesis import strategies as st

        return self.draw(st.permutations(items))


class Seeded:
    """Choices of a seed: the same seed makes the same graph."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, options: Sequence[T]) -> T:
        """One of several."""
        return options[self._random.randrange(len(options))]

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return self._random.randint(low, high)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in any order."""
        return self._random.sample(list(items), len(items))


@dataclass(frozen=True)
class Value:
    """A value of the graph in the making; a named dim is dynamic."""

    name: str
    dims: Dims
    dtype: str = "float32"
    exact: bool = False
    """Whether it is an input, moved at most: what jumps (Floor, a comparison) reads only these,
    because one ulp before a jump is no small difference behind it."""


@dataclass
class Making:
    """The graph in the making."""

    choices: Choices
    builder: GraphBuilder
    values: list[Value] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    trips: list[str] = field(default_factory=list)
    """Scalar int64 values that may count the rounds of a loop."""

    def choose(self, options: Sequence[T]) -> T:
        """One of several."""
        return self.choices.choose(options)

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return self.choices.integer(low, high)

    def flag(self) -> bool:
        """Yes or no."""
        return bool(self.integer(0, 1))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in any order."""
        return self.choices.shuffled(items)

    def pick(
        self, fits: Callable[[Value], bool] = lambda value: True, dtype: str | None = "float32"
    ) -> Value | None:
        """One of the values of `dtype` (None: any) that fit, or None."""
        found = [value for value in self.values if dtype in (None, value.dtype) and fits(value)]
        return self.choose(found) if found else None

    def node(self, op_type: str, *inputs: str, dims: Dims, **attributes: Any) -> Value:
        """Adds a node with one float output of `dims`."""
        return Value(self.builder.node(op_type, *inputs, **attributes), dims)

    def number(self, values: Sequence[float] = (0.0, 1.0, -1.0, 0.5, 2.0)) -> str:
        """A scalar constant."""
        return self.builder.constant(self.choose(values))


Step = Callable[[Making, Value], "Value | None"]


def _unary(m: Making, x: Value) -> Value:
    op_type = m.choose(["Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Identity"])
    return m.node(op_type, x.name, dims=x.dims)


def _leaky(m: Making, x: Value) -> Value:
    alpha = m.choose([0.0, 0.1, 0.2])
    return m.node("LeakyRelu", x.name, dims=x.dims, alpha=alpha)


def _scalar_arithmetic(m: Making, x: Value) -> Value:
    op_type = m.choose(["Add", "Sub", "Mul"])
    return m.node(op_type, x.name, m.number(), dims=x.dims)


def _division(m: Making, x: Value) -> Value:
    return m.node("Div", x.name, m.number((1.0, 2.0, -0.5)), dims=x.dims)


def _clip(m: Making, x: Value) -> Value:
    low, high = (m.choose([-2.0, -0.5, 0.0, 0.5, 2.0]) for _ in range(2))
    bounds = m.choose(["both", "low", "high"])
    inputs = [
        m.builder.constant(low) if bounds != "high" else "",
        *([m.builder.constant(high)] if bounds != "low" else []),
    ]
    return m.node("Clip", x.name, *inputs, dims=x.dims)


def _bounds(m: Making, x: Value) -> Value:
    op_type = m.choose(["Min", "Max"])
    return m.node(op_type, x.name, m.number(), dims=x.dims)


def _both(m: Making, x: Value) -> Value | None:
    y = m.pick(lambda value: value.dims == x.dims)
    op_type = m.choose(["Add", "Mul", "Sub", "Max"])
    return m.node(op_type, x.name, y.name, dims=x.dims) if y else None


def _transpose(m: Making, x: Value) -> Value | None:
    if not x.dims:
        return None
    perm = m.shuffled(range(len(x.dims)))
    return m.node("Transpose", x.name, dims=tuple(x.dims[i] for i in perm), perm=list(perm))


def _reshape(m: Making, x: Value) -> Value | None:
    """To two dims, by a constant or by a shape that is computed from the input's shape."""
    rest = x.dims[1:]
    if not rest or not all(isinstance(dim, int) and dim > 0 for dim in rest):
        return None
    width = math.prod(int(dim) for dim in rest)
    kind = m.choose(["constant", "from shape", "flatten"])
    if kind == "flatten":
        return m.node("Flatten", x.name, dims=(x.dims[0], width), axis=1)
    if kind == "constant":
        first = 0 if isinstance(x.dims[0], str) or x.dims[0] == 0 else m.choose([0, -1])
        target = m.builder.constant([first, width])
    else:
        shape = m.builder.node("Shape", x.name)
        first_dim = m.builder.node("Gather", shape, m.builder.constant([0]), axis=0)
        target = m.builder.node("Concat", first_dim, m.builder.constant([width]), axis=0)
    return m.node("Reshape", x.name, target, dims=(x.dims[0], width))


def _unsqueeze(m: Making, x: Value) -> Value | None:
    if len(x.dims) > 4:
        return None
    axis = m.integer(0, len(x.dims))
    axes = m.builder.constant([axis])
    return m.node("Unsqueeze", x.name, axes, dims=(*x.dims[:axis], 1, *x.dims[axis:]))


def _squeeze(m: Making, x: Value) -> Value | None:
    ones = [axis for axis, dim in enumerate(x.dims) if dim == 1]
    if not ones or len(x.dims) == 1:
        return None
    axis = m.choose(ones)
    dims = tuple(dim for index, dim in enumerate(x.dims) if index != axis)
    return m.node("Squeeze", x.name, m.builder.constant([axis]), dims=dims)


def _concat(m: Making, x: Value) -> Value | None:
    y = m.pick(lambda value: value.dims == x.dims)
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int) and dim < 16]
    if y is None or not axes:
        return None
    axis = m.choose(axes)
    dims = (*x.dims[:axis], int(x.dims[axis]) * 2, *x.dims[axis + 1 :])
    return m.node("Concat", x.name, y.name, dims=dims, axis=axis)


def _slice(m: Making, x: Value) -> Value | None:
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int) and dim > 1]
    if not axes:
        return None
    axis = m.choose(axes)
    size = int(x.dims[axis])
    start = m.integer(0, size - 1)
    end = m.choose([size, start + 1, 2**63 - 1])
    parts = [m.builder.constant([part]) for part in (start, end, axis, 1)]
    dims = (*x.dims[:axis], min(end, size) - start, *x.dims[axis + 1 :])
    return m.node("Slice", x.name, *parts, dims=dims)


def _pad(m: Making, x: Value) -> Value | None:
    if len(x.dims) != 4 or any(isinstance(dim, str) or dim > 12 for dim in x.dims[2:]):
        return None
    pads = [0, 0, *(m.integer(0, 1), m.integer(0, 1))]
    widths = [*pads, *pads]
    value = m.number((0.0, 1.0))
    dims = tuple(d if isinstance(d, str) else d + 2 * p for d, p in zip(x.dims, pads, strict=True))
    return m.node("Pad", x.name, m.builder.constant(widths), value, dims=dims)


def conv(m: Making, x: Value) -> Value | None:
    """A Conv, maybe with a BatchNormalization behind it; None where `x` does not fit."""
    spatial = x.dims[2:]
    if len(x.dims) != 4 or any(isinstance(dim, str) or dim < 3 for dim in spatial):
        return None
    if isinstance(x.dims[1], str) or x.dims[1] > 8:
        return None
    filters = m.integer(1, 3)
    inputs = [x.name, m.builder.weight(filters, x.dims[1], 3, 3)]
    bias = m.choose(["none", "zero", "some"])
    if bias != "none":
        inputs.append(
            m.builder.weight(filters) if bias == "some" else m.builder.constant([0.0] * filters)
        )
    dims = (x.dims[0], filters, *(int(dim) - 2 for dim in spatial))
    result = m.node("Conv", *inputs, dims=dims)
    return _batchnorm(m, result) if m.flag() else result


def _batchnorm(m: Making, x: Value) -> Value | None:
    if len(x.dims) < 2 or isinstance(x.dims[1], str):
        return None
    channels = int(x.dims[1])
    scale, variance = (
        m.builder.constant(m.builder.rng.uniform(0.5, 2.0, channels)) for _ in range(2)
    )
    shift, mean = m.builder.weight(channels), m.builder.weight(channels)
    return m.node("BatchNormalization", x.name, scale, shift, mean, variance, dims=x.dims)


def product(m: Making, x: Value) -> Value | None:
    """A product with a weight that is transposed in the graph; None where `x` does not fit."""
    if len(x.dims) < 2 or isinstance(x.dims[-1], str):
        return None
    width = m.integer(1, 4)
    weight = m.builder.weight(width, int(x.dims[-1]))
    turned = m.builder.node("Transpose", weight, perm=[1, 0])
    return m.node("MatMul", x.name, turned, dims=(*x.dims[:-1], width))


def _constant_arithmetic(m: Making, x: Value) -> Value:
    """Adds what only depends on constants, equal ones among them."""
    one, two = m.number(), m.number()
    op_type = m.choose(["Add", "Mul", "Max"])
    folded = m.builder.node("Sqrt", m.builder.node("Abs", m.builder.node(op_type, one, two)))
    return m.node("Add", x.name, folded, dims=x.dims)


def _branch(m: Making, x: Value) -> Value:
    """An If that an input or a constant decides; both branches read the value from outside."""
    flag = m.choose([*m.flags, "constant"])
    if flag == "constant":
        flag = m.builder.node("Greater", m.number(), m.number())
    sides = []
    for index in range(2):
        side = GraphBuilder(m.builder.opset)
        op_type = m.choose(["Relu", "Neg", "Tanh", "Identity"])
        inner = side.node(op_type, x.name, to=f"{x.name}_inner")
        if m.flag():
            # A name of its own: the builder of a branch does not know the names around it.
            two = side.constant(2.0, f"{x.name}_two")
            inner = side.node("Mul", inner, two, to=f"{x.name}_product")
        result = side.node("Identity", inner, to=f"{x.name}_result{index}")
        side.output(result, x.dims)
        sides.append(side.graph(f"side{index}"))
    return m.node("If", flag, dims=x.dims, then_branch=sides[0], else_branch=sides[1])


def _dropout(m: Making, x: Value) -> Value:
    return m.node("Dropout", x.name, dims=x.dims)


def _expand(m: Making, x: Value) -> Value | None:
    if not all(isinstance(dim, int) for dim in x.dims):
        return None
    shape = m.builder.constant(list(x.dims), dtype="int64")
    return m.node("Expand", x.name, shape, dims=x.dims)


STEPS: tuple[Step, ...] = (
    _unary,
    _leaky,
    _scalar_arithmetic,
    _division,
    _clip,
    _bounds,
    _both,
    _transpose,
    _reshape,
    _unsqueeze,
    _squeeze,
    _concat,
    _slice,
    _pad,
    conv,
    _batchnorm,
    product,
    _constant_arithmetic,
    _branch,
    _dropout,
    _expand,
)


def models(max_steps: int = 12) -> st.SearchStrategy[OnnxModel]:
    """Models with one or two float inputs, perhaps a bool one, and one to three outputs."""
    from hypothesis import strategies as st

    return st.composite(_model)(max_steps)


def _model(draw: st.DrawFn, max_steps: int) -> OnnxModel:
    choices = Drawn(draw)
    builder = GraphBuilder(choices.choose(OPSETS), seed=choices.integer(0, 2**16))
    making = Making(choices, builder)
    shapes: list[Dims] = [("batch", 4), ("batch", 2, 5, 5), (3, 4), (2, 3, 4)]
    for index in range(making.integer(1, 2)):
        dims = making.choose(shapes)
        making.values.append(Value(builder.input(f"in{index}", dims), dims))
    if making.flag():
        making.flags.append(builder.input("flag", [], "bool"))
    for _ in range(making.integer(1, max_steps)):
        source = making.pick()
        assert source is not None
        made = making.choose(STEPS)(making, source)
        if made is not None:
            making.values.append(made)
    for index in range(making.integer(1, 3)):
        # Late values more often, so that most of the graph is alive.
        value = making.choose(making.values[-4:] if making.flag() else making.values)
        builder.node("Identity", value.name, to=f"out{index}")
        builder.output(f"out{index}", value.dims)
    return builder.model()
