"""`fuse`: what it finds by its pattern (GELU, LayerNormalization, shortcuts, products)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.passes.fuse import Fuse
from optimc.testing import PassContract, run_model, run_pass, seeded_feeds
from optimc.testing.graphs import GraphBuilder
from optimc.testing.spellings import GELUS, gelu, layer_norm, shortcut


def gelus(spelling: str, opset: int = 20) -> OnnxModel:
    b = GraphBuilder(opset)
    h = b.node("MatMul", b.input("x", ["n", 3, 4]), b.weight(4, 5))
    gelu(b, h, spelling, to="y")
    b.output("y", ["n", 3, 5])
    return b.model()


def norms(opset: int = 18, **options: Any) -> OnnxModel:
    b = GraphBuilder(opset)
    layer_norm(b, b.input("x", ["n", 3, 6]), 6, to="y", **options)
    b.output("y", ["n", 3, 6])
    return b.model()


def shortcuts(
    channels: int | str = 3, shape: tuple[int | str, ...] = (9, 8), **options: Any
) -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", ["n", channels, *shape])
    shortcut(b, x, rank=2 + len(shape), to="y", **options)
    b.output("y", ["m", "c", *["s", "t", "u"][: len(shape)]])
    return b.model()


def products(
    weight: str = "plain",
    added: tuple[int, ...] | None = (5,),
    dims: tuple[int | str, ...] = ("n", 4),
) -> OnnxModel:
    """A product of `dims` and a weight [4, 5], perhaps with an added constant."""
    b = GraphBuilder()
    x = b.input("x", dims)
    plain = (
        b.weight(4, 5) if weight == "plain" else b.node("Transpose", b.weight(5, 4), perm=[1, 0])
    )
    h = b.node("MatMul", x, plain, name="product", to="y" if added is None else None)
    if added is not None:
        b.node("Add", b.weight(*added), h, name="add", to="y")
    b.output("y", [*dims[:-1], 5])
    return b.model()


def turned_gemm() -> OnnxModel:
    """Gemm of two transposed matrices, one of which it transposes back."""
    b = GraphBuilder()
    left, right = b.input("left", [4, 2]), b.input("right", [4, 5])
    sides = [b.node("Transpose", side, perm=[1, 0]) for side in (left, right)]
    b.node("Gemm", *sides, b.weight(2, 5), alpha=0.5, beta=2.0, transB=1, to="y")
    b.output("y", [2, 5])
    return b.model()


def moved_bias(perm: tuple[int, ...] = (0, 2, 3, 1), shape: tuple[int, ...] = (5,)) -> OnnxModel:
    """Conv, Transpose, Add, as converters from channels-last write a convolution's bias."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 2, 3, 4]), b.weight(5, 2, 1, 1), name="conv")
    b.node("Add", b.node("Transpose", h, perm=list(perm)), b.weight(*shape), name="add", to="y")
    b.output("y", ["a", "b", "c", "d"])
    return b.model()


def added_to_gemm() -> OnnxModel:
    b = GraphBuilder()
    h = b.node("Gemm", b.input("x", ["n", 3]), b.weight(3, 5), b.weight(5), beta=2.0)
    b.node("Add", h, b.weight(1, 5), to="y")
    b.output("y", ["n", 5])
    return b.model()


MODELS: Mapping[str, tuple[Callable[[], OnnxModel], list[str]]] = {
    **{name: (lambda name=name: gelus(name), ["MatMul", "Gelu"]) for name in GELUS},  # type: ignore[misc]
    "norm": (norms, ["LayerNormalization"]),
    "norm, Mul": (lambda: norms(17, square="Mul", axis=2), ["LayerNormalization"]),
    "norm, two differences": (lambda: norms(twice=True), ["LayerNormalization"]),
    "norm, no bias": (lambda: norms(affine="scale"), ["LayerNormalization"]),
    "norm, no scale": (lambda: norms(affine="bias"), ["LayerNormalization"]),
    "norm, bare": (lambda: norms(affine="none"), ["LayerNormalization"]),
    "norm, scalars": (lambda: norms(scalars=True, epsilon=0.1), ["LayerNormalization"]),
    "shortcut": (shortcuts, ["Conv"]),
    "shortcut, one axis": (lambda: shortcuts(strides={3: 3}, pads=(0, 3)), ["Conv"]),
    "shortcut of sounds": (lambda: shortcuts(shape=(7,), strides={2: 2}), ["Conv"]),
    "shortcut, axes": (lambda: shortcuts(axes_of_pad=True), ["Conv"]),
    "shortcut, unknown size": (lambda: shortcuts(shape=("h", "w")), ["Conv"]),
    "product": (products, ["Gemm"]),
    "product, transposed weight": (lambda: products("transposed", (1, 5)), ["Gemm"]),
    "product, no constant": (lambda: products("transposed", None), ["Gemm"]),
    "product, scalar": (lambda: products("plain", ()), ["Gemm"]),
    "turned gemm": (turned_gemm, ["Gemm"]),
    "moved bias": (moved_bias, ["Conv", "Transpose"]),
    "moved bias, other axes": (
        lambda: moved_bias((1, 0, 3, 2), (5, 1, 1, 1)),
        ["Conv", "Transpose"],
    ),
    "added to gemm": (added_to_gemm, ["Gemm"]),
}
"""Models, and the operators that remain of each."""


class TestFusePatterns(PassContract):
    passes = (Fuse(),)

    def models(self) -> Mapping[str, OnnxModel]:
        return {name: make() for name, (make, _) in MODELS.items()}


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.ir.graph]


def fused(model: OnnxModel) -> OnnxModel:
    result = run_pass(Fuse(), model).model
    assert isinstance(result, OnnxModel)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_only_these_operators_remain(name: str) -> None:
    make, rest = MODELS[name]
    result = fused(make())
    assert operators(result) == rest
    for value in result.ir.graph.initializers.values():
        assert value.uses(), f"{value.name} is left over"


def test_a_shortcut_is_exact() -> None:
    """For finite inputs: each result is one of them plus zeros."""
    model = shortcuts()
    feeds = seeded_feeds(model)
    for before, after in zip(run_model(model, feeds), run_model(fused(model), feeds), strict=True):
        np.testing.assert_array_equal(before["y"], after["y"])


def test_gelu_tells_which_form() -> None:
    for name in GELUS:
        node = list(fused(gelus(name)).ir.graph)[-1]
        assert node.attributes.get_string("approximate") == ("none" if "erf" in name else "tanh")


def test_a_norm_keeps_its_numbers() -> None:
    (node,) = fused(norms(epsilon=0.25, affine="scale")).ir.graph
    assert node.attributes.get_float("epsilon") == 0.25
    assert node.attributes.get_int("axis") == -1
    assert len(node.inputs) == 2, "no bias"


def test_the_result_keeps_name_and_source_name() -> None:
    model = gelus(GELUS[0])
    model.ir.graph.outputs[0].meta[SOURCE_KEY] = "source of y"
    result = fused(model)
    assert result.ir.graph.outputs[0].name == "y"
    assert result.provenance["y"] == "source of y"


def test_what_changed_under_a_transpose_loses_its_source_name() -> None:
    """The Conv now gives the sum: calibration must not take it for what it was."""
    model = moved_bias()
    conv = next(iter(model.ir.graph)).outputs[0]
    conv.meta[SOURCE_KEY] = "conv of the source"
    assert "conv of the source" not in fused(model).provenance.values()


def test_tied_weights_are_read_as_they_are() -> None:
    """An embedding that is also the last layer: no transposed copy."""
    b = GraphBuilder()
    table = b.weight(7, 4)
    h = b.node("Gather", table, b.input("ids", ["n"], "int64"))
    b.node("MatMul", h, b.node("Transpose", table, perm=[1, 0]), to="y")
    b.output("y", ["n", 7])
    result = fused(b.model())
    assert operators(result) == ["Gather", "Gemm"]
    assert len(result.ir.graph.initializers) == 1


# Refusals, each with its reason; and what is none of the patterns.


def refused(model: OnnxModel, rule: str, reason: str) -> None:
    result = run_pass(Fuse(), model)
    assert not result.modified
    assert [(r.rule, r.reason) for r in result.refusals] == [(rule, reason)]


def test_refuses_operators_that_the_opset_lacks() -> None:
    reason = "Gelu is in opset 20 and newer, the model has 19: export it with 20"
    refused(gelus(GELUS[0], opset=19), "fuse_gelu", reason)
    reason = "LayerNormalization is in opset 17 and newer, the model has 16"
    refused(norms(16), "fuse_layer_norm", reason)


def test_refuses_what_is_read_in_the_middle() -> None:
    b = GraphBuilder(20)
    gelu(b, b.input("x", ["n", 3]), GELUS[0], to="y")
    b.output("y", ["n", 3])
    model = b.model()
    add = next(node for node in model.ir.graph if node.op_type == "Add")
    model.ir.graph.outputs.append(add.outputs[0])
    refused(model, "fuse_gelu", f"the result of {add.name} is an output of its own")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: shortcuts(value=1.0), "it pads with 1, not with zero"),
        (lambda: shortcuts(starts=1), "slice_3 does not take a whole axis from its start"),
        (lambda: shortcuts(strides={1: 2}), "the batch or the channels are sliced"),
        (lambda: shortcuts("c"), "the number of channels is not known"),
        (lambda: shortcuts(pads=(-1, 2)), "it pads more than the channels, or takes some away"),
        (
            lambda: shortcuts(300),
            "a weight of 90,900 elements, nearly all zero, would be slower",
        ),
    ],
)
def test_refuses_shortcuts(model: Callable[[], OnnxModel], reason: str) -> None:
    refused(model(), "fuse_shortcut", reason)


def test_refuses_products_of_more_dims() -> None:
    reason = "an input of product has 3 dims, Gemm takes matrices"
    refused(products(dims=("n", 3, 4)), "fuse_gemm", reason)


def test_refuses_constants_that_differ_by_row() -> None:
    reason = "the constant is not one number for each column"
    refused(products(added=(2, 5), dims=(2, 4)), "fuse_gemm", reason)


def test_refuses_a_moved_constant_beside_the_channels() -> None:
    reason = "the constant is not one number for each channel"
    refused(moved_bias((0, 2, 1, 3), (4,)), "fuse_bias", reason)


def not_gelu(change: str) -> OnnxModel:
    """x (1 + erf(x / sqrt(2))) / 2 with one thing that is not so."""
    b = GraphBuilder(20)
    x, z = b.input("x", ["n", 3]), b.input("z", ["n", 3])
    root, half = 1.4 if change == "root" else 2**0.5, 0.4 if change == "half" else 0.5
    curve = b.node("Erf", b.node("Div", z if change == "other input" else x, b.constant(root)))
    gate = b.node("Sub" if change == "Sub" else "Add", curve, b.constant(1.0))
    h = b.node("Mul", x, b.node("Mul", gate, b.constant(half)))
    b.node("Add", h, z, to="y")
    b.output("y", ["n", 3])
    return b.model()


@pytest.mark.parametrize("change", ["root", "half", "other input", "Sub"])
def test_other_products_are_no_gelu(change: str) -> None:
    result = run_pass(Fuse(), not_gelu(change))
    assert (result.modified, result.refusals) == (False, ())


def not_norm(change: str) -> OnnxModel:
    b = GraphBuilder()
    x, z = b.input("x", ["n", 3, 4]), b.input("z", ["n", 3, 4])
    keep = {"keepdims": 1}
    axis = b.constant([1 if change == "axis" else -1])
    difference = b.node("Sub", x, b.node("ReduceMean", x, axis, **keep))
    if change == "spread":
        squared = b.node("Mul", difference, z)
    else:
        squared = b.node("Pow", difference, b.constant(3.0 if change == "power" else 2.0))
    variance = b.node("ReduceMean", squared, b.constant([-1]), **keep)
    root = b.node("Sqrt", b.node("Add", variance, b.constant(0.1)))
    b.node("Div", z if change == "divided" else difference, root, name="div", to="y")
    b.output("y", ["n", 3, 4])
    return b.model()


@pytest.mark.parametrize("change", ["power", "spread", "divided"])
def test_other_quotients_are_no_norm(change: str) -> None:
    assert not run_pass(Fuse(), not_norm(change)).rewrites


def test_refuses_norms_over_other_axes() -> None:
    assert not run_pass(Fuse(), not_norm("axis")).rewrites
    b = GraphBuilder()
    layer_norm(b, b.input("x", ["n", 3, 4]), 1, axis=1, affine="none", twice=True, to="y")
    b.output("y", ["n", 3, 4])
    assert not run_pass(Fuse(), b.model()).rewrites
