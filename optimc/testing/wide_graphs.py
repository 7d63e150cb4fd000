"""Valid ONNX models of a seed, wide: control flow, many operators and dtypes, every opset.

What `graph_strategies` has, and `wide_steps`, Loop, Scan and nested If, dynamic dims, odd ranks,
dims of zero, initializers that several readers and subgraphs share, names that look dangerous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.model import OnnxModel
from optimc.testing.fuse_strategies import FUSE_STEPS
from optimc.testing.graph_strategies import STEPS, Choices, Dims, Drawn, Making, Seeded, Step, Value
from optimc.testing.graphs import GraphBuilder
from optimc.testing.wide_steps import HEAVY_STEPS, WIDE_STEPS

if TYPE_CHECKING:
    from hypothesis import strategies as st

WIDE_OPSETS = tuple(range(13, 25))
"""Up to the newest that ONNX Runtime has kernels for."""

_SHAPES: tuple[Dims, ...] = (
    *(("batch", 4), ("batch", 2, 5, 5), (3, 4), (2, 3, 4), (1, 4, 6, 6), (), (5,)),
    *(("batch", "length", 3), (2, 1, 3, 1, 2), (1, 2, 1, 2, 1, 2), (0, 4), (2, 3, 4, 4, 4)),
)
_INNER = ("Relu", "Neg", "Tanh", "Sigmoid", "Abs", "Identity")


def wide_model(seed: int, max_steps: int = 14) -> OnnxModel:
    """The model of this seed, with inferred shapes; the same seed makes the same model."""
    return wide_model_of(Seeded(seed), max_steps)


def wide_models(max_steps: int = 10) -> st.SearchStrategy[OnnxModel]:
    """The same for Hypothesis, which shrinks what fails (it needs the extra `dev`)."""
    from hypothesis import strategies as st

    return st.composite(lambda draw: wide_model_of(Drawn(draw), max_steps))()


def wide_model_of(choices: Choices, max_steps: int) -> OnnxModel:
    """A model that `choices` decide."""
    builder = GraphBuilder(choices.choose(WIDE_OPSETS), seed=choices.integer(0, 2**16))
    m = Making(choices, builder)
    _inputs(m)
    steps = (*STEPS, *FUSE_STEPS, *WIDE_STEPS, *CONTROL_STEPS)
    for _ in range(m.integer(0, 8)):
        # Precision passes find nothing to do without a product: the first values get some.
        source = m.pick()
        made = m.choose(HEAVY_STEPS)(m, source) if source else None
        m.values += [made] if made is not None else []
    for _ in range(m.integer(1, max_steps)):
        source = m.pick()
        assert source is not None
        made = m.choose(steps)(m, source)
        if made is not None:
            m.values.append(made)
    _outputs(m)
    return builder.model()


def _inputs(m: Making) -> None:
    for index in range(m.integer(1, 2)):
        dims = m.choose(_SHAPES)
        # One in eight has a name that a view of the report or a file name must not trip over.
        name = m.choose([*[f"in{index}"] * 7, f'in/{index}:<b> "&amp;"'])
        m.values.append(Value(m.builder.input(name, dims), dims, exact=True))
    if m.flag():
        m.flags.append(m.builder.input("flag", [], "bool"))
    if not m.integer(0, 3):
        m.trips.append(m.builder.input("trips", [], "int64"))
    if not m.integer(0, 3):
        dims = m.choose(_SHAPES)
        m.values.append(Value(m.builder.input("ids", dims, "int64"), dims, "int64", exact=True))


def _outputs(m: Making) -> None:
    for index in range(m.integer(1, 3)):
        value = m.choose(m.values[-4:] if m.flag() else m.values)
        m.builder.node("Identity", value.name, to=f"out{index}")
        m.builder.output(f"out{index}", value.dims, value.dtype)


def _inner(m: Making, builder: GraphBuilder, x: str, dims: Dims, depth: int = 0) -> str:
    """Some nodes in a subgraph that keep the dims, maybe a branch in it."""
    for _ in range(m.integer(1, 3)):
        if depth < 2 and m.flags and not m.integer(0, 4):
            sides = []
            for _ in range(2):
                side = builder.inner()
                result = side.node("Identity", _inner(m, side, x, dims, depth + 1))
                side.output(result, dims)
                sides.append(side.graph("side"))
            x = builder.node("If", m.choose(m.flags), then_branch=sides[0], else_branch=sides[1])
        elif m.flag():
            x = builder.node(m.choose(_INNER), x)
        else:
            number = builder.constant(m.choose([0.0, 1.0, 0.5, -1.0]))
            x = builder.node(m.choose(["Add", "Mul", "Sub"]), x, number)
    return x


def _nested_if(m: Making, x: Value) -> Value | None:
    if not m.flags:
        return None
    sides = []
    for _ in range(2):
        side = m.builder.inner()
        result = side.node("Identity", _inner(m, side, x.name, x.dims))
        side.output(result, x.dims)
        sides.append(side.graph("side"))
    flag = m.choose(m.flags)
    return m.node("If", flag, dims=x.dims, then_branch=sides[0], else_branch=sides[1])


def _loop(m: Making, x: Value) -> Value:
    """A value carried through rounds that a constant or an input counts; maybe all are kept."""
    trips = m.choose([*m.trips, "constant"])
    if trips == "constant":
        trips = m.builder.constant(m.integer(0, 3))
    body = m.builder.inner()
    number = body.input(body.unique("round"), [], "int64")
    going = body.input(body.unique("going"), [], "bool")
    carried = body.input(body.unique("carried"), x.dims)
    made = _inner(m, body, carried, x.dims)
    if m.flag():
        rounds = body.cast(number, "float32")
        made = body.node("Add", made, rounds)
    body.output(body.node("Identity", going), [], "bool")
    body.output(body.node("Identity", body.node("Tanh", made)), x.dims)
    names = [m.builder.unique("last")]
    keeps = m.flag()
    if keeps:
        body.output(body.node("Identity", made), x.dims)
        names.append(m.builder.unique("all"))
    m.builder.nodes("Loop", trips, "", x.name, to=names, body=body.graph("body"))
    if not keeps or m.flag():
        return Value(names[0], x.dims)
    axes = m.builder.constant([0])
    return m.node("ReduceSum", names[1], axes, dims=x.dims, keepdims=0)


def _scan(m: Making, x: Value) -> Value | None:
    """A running sum over the first axis."""
    if len(x.dims) < 2 or not isinstance(x.dims[0], int) or x.dims[0] == 0:
        return None
    if not all(isinstance(dim, int) for dim in x.dims[1:]):
        return None
    rest = x.dims[1:]
    body = m.builder.inner()
    state = body.input(body.unique("state"), rest)
    row = body.input(body.unique("row"), rest)
    total = body.node("Add", state, row)
    body.output(body.node("Identity", total), rest)
    body.output(body.node("Identity", _inner(m, body, total, rest, 2)), rest)
    start = m.builder.constant(m.builder.rng.normal(0, 1, [int(d) for d in rest]))
    names = [m.builder.unique("state"), m.builder.unique("rows")]
    m.builder.nodes("Scan", start, x.name, to=names, body=body.graph("body"), num_scan_inputs=1)
    side = m.integer(0, 1)
    return Value(names[side], x.dims if side else rest)


def _condition(m: Making, x: Value) -> Value | None:
    """A flag that the numbers of an input decide."""
    source = m.pick(lambda value: value.exact and 0 not in value.dims)
    if source is None:
        return None
    top = m.builder.node("ReduceMax", source.name, keepdims=0)
    m.flags.append(m.builder.node("Greater", top, m.number((0.0, 1.0, 3.0))))
    return None


CONTROL_STEPS: tuple[Step, ...] = (_nested_if, _loop, _scan, _condition)
