"""`fuse`: constants behind layers and BatchNormalizations, straight or through a Reshape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from optimc.core.model import OnnxModel
from optimc.passes.fuse import Fuse
from optimc.testing import PassContract
from optimc.testing.graphs import GraphBuilder
from optimc.testing.runs import run_model, run_pass, seeded_feeds

BOUND = 1e-5
"""What the pass promises, relative to each output's scale."""

Step = tuple[str, tuple[int, ...], bool]
"""An operator, the shape of its constant, and whether the constant comes first."""

LAYERS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "Conv": ((4, 3, 1, 1), 4),
    "ConvTranspose": ((3, 4, 1, 1), 4),
    "Gemm": ((3, 4), 2),
}
"""By operator: the weight from 3 to 4 channels, and the rank."""
ALL: Sequence[Step] = (
    ("Mul", (4,), False),
    ("Add", (1,), True),
    ("Div", (1, 4), False),
    ("Sub", (4,), False),
    ("Sub", (4,), True),
    ("Mul", (), True),
)


def put(b: GraphBuilder, value: str, steps: Sequence[Step], rank: int = 2) -> str:
    """The steps behind `value`, to `y`; shapes are those of the last axes for a rank of 2."""
    for index, (op_type, shape, first) in enumerate(steps):
        # A row for each channel, which is axis 1.
        whole = (*shape, *[1] * (rank - 2)) if shape else ()
        row = b.constant(b.rng.uniform(0.5, 2.0, whole))
        inputs = (row, value) if first else (value, row)
        to = "y" if index == len(steps) - 1 else None
        value = b.node(op_type, *inputs, name=f"step{index}", to=to)
    return value


def layer(op_type: str, steps: Sequence[Step] = ALL, *, bias: bool = False) -> OnnxModel:
    """A layer of 3 to 4 channels with `steps` behind it."""
    b = GraphBuilder()
    weight, rank = LAYERS[op_type]
    space = [5] * (rank - 2)
    x = b.input("x", ["n", 3, *space])
    h = b.node(op_type, x, b.weight(*weight), *([b.weight(4)] if bias else []), name="layer")
    put(b, h, steps, rank)
    b.output("y", ["n", 4, *space])
    return b.model()


def norm(steps: Sequence[Step] = ALL, **attributes: Any) -> OnnxModel:
    """A BatchNormalization that no layer precedes, with `steps` behind it."""
    b = GraphBuilder()
    x = b.node("Relu", b.input("x", ["n", 4, 5, 5]))
    rows = [b.constant(b.rng.uniform(0.5, 2.0, 4)) for _ in range(4)]
    put(b, b.node("BatchNormalization", x, *rows, name="norm", **attributes), steps, 4)
    b.output("y", ["n", 4, 5, 5])
    return b.model()


def matmul(steps: Sequence[Step]) -> OnnxModel:
    """A product of three dims by a constant matrix, with factors for each column."""
    b = GraphBuilder()
    put(b, b.node("MatMul", b.input("x", ["n", 5, 3]), b.weight(3, 4), name="product"), steps)
    b.output("y", ["n", 5, 4])
    return b.model()


def reshaped(
    target: Sequence[int], row: Sequence[int], op_type: str = "Mul", *, batch: int | str = "n"
) -> OnnxModel:
    """A Conv of 6 channels, a Reshape to `target`, and a constant of the shape `row`."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", [batch, 3, 2, 2]), b.weight(6, 3, 1, 1), b.weight(6))
    h = b.node("Reshape", h, b.constant(list(target)), name="reshape", to="h")
    constant = b.constant(b.rng.uniform(0.5, 2.0, tuple(row)))
    b.node(op_type, h, constant, name="step", to="y")
    b.output("y", [batch, *target[1:]])
    return b.model()


def inferred(model: OnnxModel) -> OnnxModel:
    from optimc.passes.simplify import Simplify

    result = run_pass(Simplify(), model).model
    assert isinstance(result, OnnxModel)
    return result


MODELS: Mapping[str, Any] = {
    **{name: lambda name=name: layer(name) for name in LAYERS},
    "with a bias": lambda: layer("Conv", bias=True),
    "norm": norm,
    "product": lambda: matmul([("Mul", (4,), False), ("Div", (1,), False), ("Mul", (), True)]),
    "split channels": lambda: inferred(reshaped([0, 2, 3, 4], [2, 3, 1])),
    "split, one number a group": lambda: inferred(reshaped([0, 2, 12], [2, 1], "Add")),
    "flat": lambda: inferred(reshaped([0, 6, 4], [6, 1], "Sub")),
    "batch by its size": lambda: inferred(reshaped([-1, 3, 2, 4], [1, 3, 2, 1], "Div")),
}


class TestFuseAffine(PassContract):
    passes = (Fuse(),)

    def models(self) -> Mapping[str, OnnxModel]:
        return {name: make() for name, make in MODELS.items()}


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.ir.graph]


def fused(model: OnnxModel) -> OnnxModel:
    """The result, after a look at whether it computes the same."""
    result = run_pass(Fuse(), model).model
    assert isinstance(result, OnnxModel)
    feeds = seeded_feeds(model)
    for before, after in zip(run_model(model, feeds), run_model(result, feeds), strict=True):
        for name, expected in before.items():
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(after[name], expected, rtol=0, atol=BOUND * scale)
    return result


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("step", [*ALL, ("Div", (4,), False), ("Sub", (), True)], ids=str)
def test_each_operator_goes_into_each_layer(name: str, step: Step) -> None:
    assert operators(fused(layer(name, [step]))) == [name]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_layer_remains(name: str) -> None:
    left = [op for op in operators(fused(MODELS[name]())) if op not in ("Relu", "Reshape")]
    assert len(left) == 1, left


def test_a_factor_alone_makes_no_bias() -> None:
    (conv,) = fused(layer("Conv", [("Mul", (4,), False)])).ir.graph
    assert len(conv.inputs) == 2


def test_by_the_formula() -> None:
    """(c - (W x + b)) / d, computed in float64 and rounded once."""
    model = layer("Gemm", [("Sub", (4,), True), ("Div", (4,), False)], bias=True)
    gemm, sub, div = list(model.ir.graph)
    weight, bias, c, d = (
        value.const_value.numpy().astype(np.float64)
        for value in (gemm.inputs[1], gemm.inputs[2], sub.inputs[0], div.inputs[1])
        if value is not None and value.const_value is not None
    )
    (node,) = fused(model).ir.graph
    found = [v.const_value.numpy() for v in node.inputs[1:] if v is not None and v.const_value]
    np.testing.assert_allclose(found[0], -weight / d, rtol=3e-7)
    np.testing.assert_allclose(found[1], (c - bias) / d, rtol=3e-7)


def test_added_constants_of_a_product_with_more_dims_stay() -> None:
    """MatMul has no bias, and -MatMul + c has one."""
    for step in [("Add", (4,), False), ("Sub", (4,), True)]:
        model = matmul([step])
        assert operators(fused(model)) == ["MatMul", step[0]]


def reasons(model: OnnxModel) -> set[str]:
    result = run_pass(Fuse(), model)
    assert not result.modified
    return {refusal.reason for refusal in result.refusals if refusal.where == "step"}


def test_refuses_what_is_no_row_of_channels() -> None:
    for model in (
        inferred(reshaped([0, 6, 2, 2], [2])),  # along the width
        inferred(reshaped([0, 4, 6], [4, 1])),  # channels are mixed with space
        inferred(reshaped([0, 2, 12], [2, 12])),  # a group's number for each element
        inferred(reshaped([2, 6, 2], [6, 1], batch=1)),  # the first axis is another one
    ):
        assert reasons(model) == {"the constant is not one number for each channel"}


def with_constant(op_type: str, array: Any) -> OnnxModel:
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(2, 3, 1))
    b.node(op_type, h, b.constant(np.asarray(array, np.float32)), name="step", to="y")
    b.output("y", ["n", 2, 5])
    return b.model()


@pytest.mark.parametrize(
    ("op_type", "array", "reason"),
    [
        ("Div", [[1.0], [0.0]], "the constant is zero or not finite"),
        ("Mul", [[1.0], [np.inf]], "the constant is zero or not finite"),
        ("Add", [[np.nan], [1.0]], "the constant is zero or not finite"),
        ("Mul", [[3e38], [3e38]], "the fused constants would not be finite in FLOAT"),
        ("Mul", [1.0, 2.0, 3.0, 4.0, 5.0], "the constant is not one number for each channel"),
    ],
)
def test_refuses_constants(op_type: str, array: Any, reason: str) -> None:
    model = with_constant(op_type, array)
    if "fused" in reason:
        weight = next(iter(model.ir.graph)).inputs[1]
        assert weight is not None
        import onnx_ir

        weight.const_value = onnx_ir.tensor(np.full((2, 3, 1), 10, np.float32), name=weight.name)
    assert reasons(model) == {reason}


def test_refuses_what_is_read_elsewhere() -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(2, 3, 1), name="conv")
    b.node("Add", b.node("Mul", h, b.weight(2, 1), name="step"), h, to="y")
    b.output("y", ["n", 2, 5])
    assert reasons(b.model()) == {"the result of conv is also read elsewhere"}


def test_refuses_a_norm_in_training_mode() -> None:
    b = GraphBuilder()
    rows = [b.constant([1.0] * 2) for _ in range(4)]
    x = b.node("Relu", b.input("x", ["n", 2, 5]))
    b.nodes("BatchNormalization", x, *rows, to=["h", "m", "v"], name="norm", training_mode=1)
    b.node("Mul", "h", b.weight(2, 1), name="step", to="y")
    b.output("y", ["n", 2, 5])
    assert reasons(b.model()) == {"the BatchNormalization before it is in training mode"}


def test_a_shared_row_stays_with_its_other_reader() -> None:
    b = GraphBuilder()
    rows = [b.constant(b.rng.uniform(0.5, 2.0, 2)) for _ in range(4)]
    x = b.input("x", ["n", 2, 5])
    h = b.node("Mul", b.node("BatchNormalization", x, *rows), b.weight(2, 1))
    b.node("BatchNormalization", b.node("Relu", h), *rows, to="y")
    b.output("y", ["n", 2, 5])
    result = fused(b.model())
    assert operators(result) == ["BatchNormalization", "Relu", "BatchNormalization"]
