"""`fuse`: the contract of every pass, each rewrite, and each refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.core.passes import PassResult
from optimc.passes.fuse import Fuse
from optimc.testing import PassContract
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.runs import run_model, run_pass, seeded_feeds

BOUND = 1e-5
"""What the pass promises, relative to each output's scale."""


def batchnorm(b: GraphBuilder, x: str, channels: int, **changes: Any) -> str:
    """A BatchNormalization; `changes` replaces parameters (arrays or values) or adds attributes."""
    parameters = {
        "scale": b.rng.uniform(0.5, 2.0, channels),
        "shift": b.rng.normal(0, 0.5, channels),
        "mean": b.rng.normal(0, 0.5, channels),
        "variance": b.rng.uniform(0.5, 2.0, channels),
    }
    to = changes.pop("to", None)
    dtype = changes.pop("dtype", "float32")
    given = [changes.pop(name, array) for name, array in parameters.items()]
    values = [v if isinstance(v, str) else b.constant(v, dtype=dtype) for v in given]
    return b.node("BatchNormalization", x, *values, to=to, name="norm", **changes)


def conv_batchnorm(opset: int = 18, **changes: Any) -> OnnxModel:
    """Conv without a bias, then BatchNormalization with `changes`."""
    b = GraphBuilder(opset)
    h = b.node("Conv", b.input("x", ["n", 3, 5, 5]), b.weight(4, 3, 3, 3), name="conv", to="h")
    batchnorm(b, h, 4, to="y", **changes)
    b.output("y", ["n", 4, 3, 3])
    return b.model()


def conv_transpose(group: int) -> OnnxModel:
    """ConvTranspose, 4 channels to 6, then BatchNormalization."""
    b = GraphBuilder()
    x = b.input("x", ["n", 4, 5, 5])
    h = b.node("ConvTranspose", x, b.weight(4, 6 // group, 2, 2), b.weight(6), group=group)
    batchnorm(b, h, 6, to="y", epsilon=1e-3)
    b.output("y", ["n", 6, 6, 6])
    return b.model()


def grouped_conv() -> OnnxModel:
    """Depthwise Conv over one spatial axis, BatchNormalization."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 4, 9]), b.weight(4, 1, 3), b.weight(4), group=4)
    batchnorm(b, h, 4, to="y")
    b.output("y", ["n", 4, 7])
    return b.model()


def gemm(transposed: int, bias: tuple[int, ...] | None) -> OnnxModel:
    """Gemm with alpha and beta, then BatchNormalization."""
    b = GraphBuilder()
    weight = b.weight(*((5, 3) if transposed else (3, 5)))
    inputs = [b.input("x", ["n", 3]), weight, *([b.weight(*bias)] if bias is not None else [])]
    h = b.node("Gemm", *inputs, transB=transposed, alpha=0.5, beta=2.0)
    batchnorm(b, h, 5, to="y")
    b.output("y", ["n", 5])
    return b.model()


def added_constant(
    shape: tuple[int, ...], op_type: str = "Conv", *, first: bool = False
) -> OnnxModel:
    """Conv or ConvTranspose, 3 channels to 3, with a constant added."""
    b = GraphBuilder()
    x = b.input("x", ["n", 3, 5, 5])
    h = b.node(op_type, x, b.weight(3, 3, 1, 1), b.weight(3), name="conv")
    constant = b.weight(*shape)
    b.node("Add", *((constant, h) if first else (h, constant)), name="add", to="y")
    b.output("y", [*(["m"] * (len(shape) - 4)), "n", 3, 5, 5])
    return b.model()


def padded(
    amounts: list[int],
    *,
    value: float | None = None,
    axes: list[int] | None = None,
    mode: str = "constant",
    **attributes: Any,
) -> OnnxModel:
    """Pad, then a 3x3 Conv with `attributes`."""
    b = GraphBuilder()
    x = b.input("x", ["n", 2, 6, 6])
    fill = b.constant(value) if value is not None else ""
    inputs = [x, b.constant(amounts), fill, *([b.constant(axes)] if axes is not None else [])]
    h = b.node("Pad", *inputs, mode=mode, name="pad")
    b.node("Conv", h, b.weight(3, 2, 3, 3), to="y", **attributes)
    b.output("y", ["n", 3, "height", "width"])
    return b.model()


def chain() -> OnnxModel:
    """All at once: two Pads, Conv, Add, BatchNormalization, Relu; a residual of another Conv."""
    b = GraphBuilder()
    x = b.input("x", ["n", 3, 5, 5])
    pads = b.constant([0, 0, 1, 0, 0, 0, 1, 0])
    h = b.node("Pad", b.node("Pad", x, pads), b.constant([1, 1]), "", b.constant([-1]))
    h = b.node("Conv", h, b.weight(4, 3, 3, 3), pads=[0, 1, 0, 1])
    h = b.node("Relu", batchnorm(b, b.node("Add", h, b.weight(4, 1, 1)), 4))
    b.node("Add", h, b.node("Conv", h, b.weight(4, 4, 1, 1)), to="y")
    b.output("y", ["n", 4, 5, 7])
    return b.model()


def tied() -> OnnxModel:
    """One weight and one bias in two convolutions; a BatchNormalization behind the first alone."""
    b = GraphBuilder()
    x, weight, bias = b.input("x", ["n", 3, 5, 5]), b.weight(3, 3, 1, 1), b.weight(3)
    h = batchnorm(b, b.node("Conv", x, weight, bias), 3)
    b.node("Conv", h, weight, bias, to="y")
    b.output("y", ["n", 3, 5, 5])
    return b.model()


MODELS: Mapping[str, Any] = {
    "batchnorm": conv_batchnorm,
    "chain": chain,
    "depthwise": grouped_conv,
    "tied": tied,
    "transposed in groups": lambda: conv_transpose(2),
    "transposed": lambda: conv_transpose(1),
    "gemm": lambda: gemm(0, (5,)),
    "gemm, transposed weight": lambda: gemm(1, (1, 5)),
    "gemm, scalar bias": lambda: gemm(1, ()),
    "gemm, no bias": lambda: gemm(0, None),
    "added": lambda: added_constant((3, 1, 1)),
    "added, transposed": lambda: added_constant((1, 3, 1, 1), "ConvTranspose"),
    "added scalar": lambda: added_constant((), first=True),
    "padded": lambda: padded(
        [0, 0, 1, 2, 0, 0, 0, 1], value=0.0, pads=[1, 0, 0, 1], strides=[2, 1]
    ),
    "padded on an axis": lambda: padded([2, 1], axes=[-2]),
    "padded, VALID": lambda: padded([0, 0, 1, 1, 0, 0, 1, 1], auto_pad="VALID"),
}
REST: Mapping[str, list[str]] = {
    **{name: ["Conv"] for name in MODELS},
    "chain": ["Conv", "Relu", "Conv", "Add"],
    "tied": ["Conv", "Conv"],
    **{name: ["ConvTranspose"] for name in MODELS if "transposed" in name},
    **{name: ["Gemm"] for name in MODELS if "gemm" in name},
}
"""The operators that remain of each of `MODELS`."""


class TestFuse(PassContract):
    passes = (Fuse(),)

    def models(self) -> Mapping[str, OnnxModel]:
        return {**small_models(), **{name: make() for name, make in MODELS.items()}}


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


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.ir.graph]


def constant(model: OnnxModel, node: int, index: int) -> np.ndarray:
    value = list(model.ir.graph)[node].inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_only_the_layers_remain(name: str) -> None:
    result = fused(MODELS[name]())
    assert operators(result) == REST[name]
    for value in result.ir.graph.initializers.values():
        assert value.uses(), f"{value.name} is left over"


def test_folds_by_the_formula() -> None:
    model = conv_batchnorm(epsilon=0.25)
    conv, norm = list(model.ir.graph)
    weight, gamma, beta, mean, variance = (
        v.const_value.numpy().astype(np.float64)
        for v in (conv.inputs[1], *norm.inputs[1:])
        if v is not None and v.const_value is not None
    )
    result = fused(model)
    factor = gamma / np.sqrt(variance + 0.25)
    expected = (weight * factor[:, None, None, None]).astype(np.float32)
    assert constant(result, 0, 1).tobytes() == expected.tobytes(), "computed in float64, cast once"
    np.testing.assert_allclose(constant(result, 0, 2), beta - mean * factor, rtol=1e-6)


def test_epsilon_is_the_specifications_where_none_is_given() -> None:
    small = dict.fromkeys(["variance"], [1e-6] * 4)
    assert operators(fused(conv_batchnorm(**small))) == ["Conv"]


def test_the_layer_takes_over_the_output() -> None:
    """Calibration goes by source names: the layer's own result is gone, and so is its name."""
    model = conv_batchnorm()
    next(iter(model.ir.graph)).outputs[0].meta[SOURCE_KEY] = "before"
    model.ir.graph.outputs[0].meta[SOURCE_KEY] = "after"
    (node,) = fused(model).ir.graph
    output = node.outputs[0]
    assert (node.name, output.name, output.meta[SOURCE_KEY]) == ("conv", "y", "after")
    assert str(output.shape) == "[n,4,3,3]"


def test_a_source_name_that_is_not_known_is_dropped() -> None:
    model = conv_batchnorm()
    model.ir.graph.outputs[0].meta.pop(SOURCE_KEY, None)
    assert "y" not in fused(model).provenance


def test_a_shared_weight_stays_with_its_other_reader() -> None:
    model = tied()
    before = constant(model, 2, 1)
    result = fused(model)
    assert constant(result, 1, 1).tobytes() == before.tobytes()
    assert not np.array_equal(constant(result, 0, 1), before)


def test_constant_nodes_are_constants() -> None:
    """As exporters leave them, before `simplify`."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 2, 4]), b.weight(2, 2, 1))
    b.node("Add", h, b.node("Constant", value_float=0.5), to="y")
    b.output("y", ["n", 2, 4])
    assert operators(fused(b.model())) == ["Conv"]


def test_float64_stays_float64() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 2], "float64")
    weight = b.constant(b.rng.normal(size=(2, 3)), dtype="float64")
    batchnorm(b, b.node("Gemm", x, weight), 3, dtype="float64", to="y")
    b.output("y", ["n", 3], "float64")
    result = fused(b.model())
    assert operators(result) == ["Gemm"]
    assert constant(result, 0, 1).dtype == constant(result, 0, 2).dtype == np.float64


def test_a_pad_with_two_readers_goes_into_each_convolution() -> None:
    b = GraphBuilder()
    h = b.node("Pad", b.input("x", ["n", 2, 4]), b.constant([0, 0, 1, 0, 0, 1]))
    left, right = (b.node("Conv", h, b.weight(2, 2, 3)) for _ in range(2))
    b.node("Add", left, right, to="y")
    b.output("y", ["n", 2, 4])
    result = fused(b.model())
    assert operators(result) == ["Conv", "Conv", "Add"]
    assert {str(node.attributes["pads"].value) for node in list(result.ir.graph)[:2]} == {"(1, 1)"}


def test_a_pad_stays_for_other_readers() -> None:
    b = GraphBuilder()
    h = b.node("Pad", b.input("x", ["n", 2, 4]), b.constant([0, 0, 1, 0, 0, 1]), to="padded")
    b.node("Conv", h, b.weight(2, 2, 3), to="y")
    b.output("padded", ["n", 2, 6])
    b.output("y", ["n", 2, 4])
    result = fused(b.model())
    assert operators(result) == ["Pad", "Conv"]
    assert list(result.ir.graph)[1].inputs[0] is result.ir.graph.inputs[0]


# Refusals: the model stays as it is, and the reason says why.


def refused(model: OnnxModel, rule: str, place: str, reason: str) -> None:
    result: PassResult = run_pass(Fuse(), model)
    assert not result.modified
    assert [(r.rule, r.where, r.reason) for r in result.refusals] == [(rule, place, reason)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"variance": [1.0, 0.0, 1.0, 1.0]}, "the variance of channel 1 is 0, not positive"),
        ({"variance": [1.0, 1.0, 1.0, -0.5]}, "the variance of channel 3 is -0.5, not positive"),
        ({"scale": [1.0, np.inf, 1.0, 1.0]}, "its parameters are not all finite"),
        ({"mean": [np.nan, 0.0, 0.0, 0.0]}, "its parameters are not all finite"),
        (
            {"scale": [3e38] * 4, "variance": [1e-4] * 4},
            "the fused constants would not be finite in FLOAT",
        ),
    ],
)
def test_refuses_parameters(changes: dict[str, Any], reason: str) -> None:
    refused(conv_batchnorm(**changes), "fuse_batchnorm", "norm", reason)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "reason"),
    [
        (18, ["y", "m", "v"], {"training_mode": 1}, "it is in training mode"),
        (
            13,
            ["y", "m", "v", "saved_m", "saved_v"],
            {},
            "it gives the statistics of the batch, as in training",
        ),
    ],
)
def test_refuses_training(
    opset: int, outputs: list[str], attributes: dict[str, int], reason: str
) -> None:
    b = GraphBuilder(opset)
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(4, 3, 1))
    parameters = [b.constant([1.0] * 4) for _ in range(4)]
    b.nodes("BatchNormalization", h, *parameters, to=outputs, name="norm", **attributes)
    b.output("y", ["n", 4, 5])
    refused(b.model(), "fuse_batchnorm", "norm", reason)


def test_takes_the_oldest_opset() -> None:
    assert operators(fused(conv_batchnorm(opset=13))) == ["Conv"]


def test_refuses_parameters_that_are_fed() -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(4, 3, 1), name="conv")
    batchnorm(b, h, 4, scale=b.input("scale", [4]), to="y")
    b.output("y", ["n", 4, 5])
    refused(b.model(), "fuse_batchnorm", "norm", "its parameters are not all constants")


@pytest.mark.parametrize("fed", ["weight", "bias"])
def test_refuses_constants_of_the_layer_that_are_fed(fed: str) -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 3, 5])
    given = {"weight": (4, 3, 1), "bias": (4,)}
    values = [b.input(n, s) if n == fed else b.weight(*s) for n, s in given.items()]
    batchnorm(b, b.node("Conv", x, *values, name="conv"), 4, to="y")
    b.output("y", ["n", 4, 5])
    refused(b.model(), "fuse_batchnorm", "norm", f"the {fed} of conv is not a constant")


def test_refuses_where_no_layer_is_before_it() -> None:
    b = GraphBuilder()
    batchnorm(b, b.node("Relu", b.input("x", ["n", 3, 5])), 3, to="y")
    b.output("y", ["n", 3, 5])
    reason = "it does not follow a Conv, ConvTranspose or Gemm"
    refused(b.model(), "fuse_batchnorm", "norm", reason)


def test_refuses_what_is_read_elsewhere() -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(3, 3, 1), name="conv")
    b.node("Add", batchnorm(b, h, 3), h, to="y")
    b.output("y", ["n", 3, 5])
    reason = "the result of conv is also read elsewhere"
    refused(b.model(), "fuse_batchnorm", "norm", reason)


def test_refuses_what_is_an_output() -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(3, 3, 1), name="conv", to="h")
    b.node("Add", h, b.weight(3, 1), name="add", to="y")
    b.output("h", ["n", 3, 5])
    b.output("y", ["n", 3, 5])
    refused(b.model(), "fuse_bias", "add", "the result of conv is an output of its own")


def test_refuses_another_graph() -> None:
    """Where a branch of an If normalizes what is computed outside of it."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 3, 5]), b.weight(3, 3, 1), name="conv", to="h")
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder()
        result = batchnorm(inner, h, 3) if name == "then_branch" else inner.node("Relu", "x")
        inner.output(inner.node("Identity", result), ["n", 3, 5])
        branches[name] = inner.graph(name)
    b.node("If", b.input("flag", [], "bool"), to="y", **branches)
    b.output("y", ["n", 3, 5])
    refused(b.model(), "fuse_batchnorm", "norm", "conv is in another graph")


def test_refuses_a_gemm_bias_that_differs_by_row() -> None:
    b = GraphBuilder()
    h = b.node("Gemm", b.input("x", [2, 3]), b.weight(3, 5), b.weight(2, 1), name="gemm")
    batchnorm(b, h, 5, to="y")
    b.output("y", [2, 5])
    reason = "the bias of gemm is not one number for each channel"
    refused(b.model(), "fuse_batchnorm", "norm", reason)


def test_refuses_half_precision() -> None:
    """Weights rounded anew to float16 differ by 5e-4: a hundred times what the pass promises."""
    b = GraphBuilder()
    weight = b.constant(b.rng.normal(size=(3, 2, 1)), dtype="float16")
    h = b.node("Conv", b.input("x", ["n", 2, 4], "float16"), weight)
    batchnorm(b, h, 3, dtype="float16", to="y")
    b.output("y", ["n", 3, 4], "float16")
    reason = "FLOAT16 weights round too coarsely: fuse before the conversion to it"
    refused(b.model(), "fuse_batchnorm", "norm", reason)


@pytest.mark.parametrize("shape", [(3,), (5, 5), (1, 3, 5, 5), (1, 1, 3, 1, 1)])
def test_refuses_constants_that_differ_inside_a_channel(shape: tuple[int, ...]) -> None:
    if shape == (3,):  # Broadcasts along the last axis, not along the channels.
        b = GraphBuilder()
        h = b.node("Conv", b.input("x", ["n", 3, 5, 3]), b.weight(3, 3, 1, 1), name="conv")
        b.node("Add", h, b.weight(3), name="add", to="y")
        b.output("y", ["n", 3, 5, 3])
        model = b.model()
    else:
        model = added_constant(shape)
    refused(model, "fuse_bias", "add", "the constant is not one number for each channel")


def test_a_residual_is_no_refusal() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 3, 5])
    b.node("Add", b.node("Conv", x, b.weight(3, 3, 1)), x, to="y")
    b.output("y", ["n", 3, 5])
    result = run_pass(Fuse(), b.model())
    assert (result.modified, result.refusals) == (False, ())


SIDES = [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: padded(SIDES, value=1.0), "it pads with 1, not with zero"),
        (lambda: padded(SIDES, mode="reflect"), "its mode is reflect"),
        (lambda: padded([0, 0, -1, 1, 0, 0, 1, 1]), "it takes elements away"),
        (lambda: padded([1, 0, 1, 1, 0, 0, 1, 1]), "it pads the batch or the channels"),
        (
            lambda: padded(SIDES, auto_pad="SAME_UPPER", name="conv"),
            "conv has SAME_UPPER padding, which goes by the padded size",
        ),
    ],
)
def test_refuses_pads(model: Any, reason: str) -> None:
    refused(model(), "fuse_pad", "pad", reason)


def test_refuses_pads_that_are_fed() -> None:
    b = GraphBuilder()
    h = b.node("Pad", b.input("x", ["n", 2, 4]), b.input("pads", [6], "int64"), name="pad")
    b.node("Conv", h, b.weight(2, 2, 1), to="y")
    b.output("y", ["m", 2, "width"])
    refused(b.model(), "fuse_pad", "pad", "its pads, value or axes are not constants")


def test_leaves_quantized_graphs_alone() -> None:
    """One ulp more or less before a QuantizeLinear flips a rounding."""
    b = GraphBuilder()
    x, step, zero = b.input("x", ["n", 3, 5]), b.constant(0.1), b.constant(0, dtype="uint8")
    h = b.node("DequantizeLinear", b.node("QuantizeLinear", x, step, zero), step, zero)
    batchnorm(b, b.node("Conv", h, b.weight(4, 3, 1)), 4, to="y")
    b.output("y", ["n", 4, 5])
    reason = "float arithmetic stays as it is in a quantized graph"
    refused(b.model(), "fuse", "the whole graph", reason)


def test_leaves_old_opsets_alone() -> None:
    reason = "the model has opset 12, fusing needs 13 or newer"
    refused(conv_batchnorm(opset=12), "fuse", "the whole graph", reason)
