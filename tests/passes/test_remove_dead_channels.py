"""`remove_dead_channels`: the contract, what goes and what stays, and generated graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings

from optimc.core.model import OnnxModel
from optimc.passes.prune_magnitude import PruneMagnitude
from optimc.passes.remove_dead_channels import RemoveDeadChannels
from optimc.pipeline.compare import compare_outputs
from optimc.testing import PassContract
from optimc.testing.dead_strategies import dead_bouquet, dead_models, weight
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.runs import run_model, run_pass, seeded_feeds

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


class TestRemoveDeadChannels(PassContract):
    passes = (RemoveDeadChannels(),)

    def models(self) -> Mapping[str, OnnxModel]:
        models = small_models()
        names = ("aliased outputs", "branches", "convolutions", "quantized", "shared weights")
        return {**{name: models[name] for name in names}, "bouquet": dead_bouquet()}


def widths(model: OnnxModel) -> dict[str, int]:
    """The output channels of each layer, by its name."""
    found = {}
    for node in model.ir.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            shape = node.inputs[1].shape  # type: ignore[union-attr]
            rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0)
            found[str(node.name)] = int(shape[0 if rows else 1])  # type: ignore[index,arg-type]
    return found


def removed(model: OnnxModel) -> tuple[OnnxModel, dict[str, str]]:
    """The result, proved to compute the same; refusals by place."""
    result = run_pass(RemoveDeadChannels(), model)
    assert isinstance(result.model, OnnxModel)
    onnx.checker.check_model(onnx_ir.to_proto(result.model.ir), full_check=True)
    feeds = seeded_feeds(model)
    names = [output.name for output in model.signature.outputs]
    difference = compare_outputs(run_model(model, feeds), run_model(result.model, feeds), names)
    assert difference.broken is None
    assert difference.max_rel <= 1e-5
    return result.model, {refusal.where: refusal.reason for refusal in result.refusals}


def test_each_kind_of_dead_channel_goes() -> None:
    model, refused = removed(dead_bouquet())
    assert widths(model) == {
        "first": 5,  # one is zero behind the Relu
        "padded": 5,  # a factor of zero
        "right": 3,
        "end": 4,
        "counted": 6,  # its constant would count the padding
        "flattened": 2,
        "hidden": 6,
        "head": 5,
    }
    assert "2 of its channels are constant" in refused["first"]
    assert "its borders would differ" in refused["first"]


def test_dead_layers_are_followed_to_the_start() -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("image", ["batch", 3, 5, 5]), b.weight(6, 3, 3, 3), name="one")
    second = b.rng.normal(0, 0.4, (6, 6, 1, 1)).astype(np.float32)
    second[:3, 3:] = 0.0  # what the last layer does not read, alone reads channels 3 to 5
    h = b.node("Conv", h, b.constant(second), name="two")
    last = b.rng.normal(0, 0.4, (2, 6, 1, 1)).astype(np.float32)
    last[:, 3:] = 0.0
    b.node("Conv", h, b.constant(last), name="three", to="map")
    b.output("map", ["batch", 2, 3, 3])
    model, _ = removed(b.model())
    assert widths(model) == {"one": 3, "two": 3, "three": 2}


def test_one_channel_stays_where_all_are_dead() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    dead = b.constant(np.zeros((3, 4), np.float32))
    h = b.node("Gemm", x, dead, b.weight(3), transB=1, name="dead")
    b.node("Gemm", b.node("Tanh", h), b.weight(2, 3), b.weight(2), transB=1, to="y", name="end")
    b.output("y", ["batch", 2])
    model, _ = removed(b.model())
    assert widths(model) == {"dead": 1, "end": 2}


def tail(kind: str) -> OnnxModel:
    """A Conv with a dead channel, and something behind it that keeps it."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 4, 6, 6])
    h = b.node("Conv", x, weight(b, 4, 4, 1, 1, dead=(1,)), b.weight(4), name="dead")
    output = h
    if kind == "residual":
        h = b.node("Add", h, x)
    elif kind == "depthwise":
        h = b.node("Conv", h, b.weight(4, 1, 1, 1), group=4)
    elif kind == "transposed":
        h = b.node("ConvTranspose", h, b.weight(4, 4, 1, 1))
    elif kind == "softmax":
        h = b.node("Softmax", h, axis=1)
    elif kind == "space":
        h = b.node("Mul", h, b.weight(1, 1, 1, 6))
    h = b.node("Conv", h, b.weight(2, 4, 1, 1))
    if kind == "output":
        b.node("Identity", output, to="also")
        b.output("also", ["batch", 4, 6, 6])
    b.node("Identity", h, to="map")
    b.output("map", ["batch", 2, 6, 6])
    return b.model()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("residual", "the other operand would have to lose the same channels"),
        ("depthwise", "a grouped convolution ties its channels to others"),
        ("transposed", "it does not treat each channel by itself"),
        ("softmax", "it does not treat each channel by itself"),
        ("space", "its constant is not one number for each channel"),
        ("output", "is an output of the model"),
    ],
)
def test_what_ties_channels_keeps_them(kind: str, reason: str) -> None:
    model, refused = removed(tail(kind))
    assert widths(model)["dead"] == 4
    assert refused["dead"].startswith("1 of its channels have no weights, but ")
    assert reason in refused["dead"]


def test_a_product_without_a_bias_keeps_constants() -> None:
    b = GraphBuilder()
    dead = weight(b, 4, 4, dead=(1,))
    h = b.node("Gemm", b.input("x", ["batch", 4]), dead, b.weight(4), transB=1, name="dead")
    b.node("MatMul", h, b.weight(4, 2), to="y")
    b.output("y", ["batch", 2])
    model, refused = removed(b.model())
    assert widths(model)["dead"] == 4
    assert "has no bias that could take them" in refused["dead"]


def test_what_pruning_emptied_goes() -> None:
    b = GraphBuilder()
    first = b.rng.normal(0, 0.4, (8, 3, 3, 3)).astype(np.float32)
    first[[2, 5, 6]] *= 1e-3
    h = b.node("Relu", b.node("Conv", b.input("image", ["batch", 3, 6, 6]), b.constant(first)))
    b.node("Conv", h, b.weight(4, 8, 3, 3), pads=[1, 1, 1, 1], to="map", name="end")
    b.output("map", ["batch", 4, 4, 4])
    pruned = run_pass(PruneMagnitude(share=0.375, keep=["end"]), b.model()).model
    assert isinstance(pruned, OnnxModel)
    model, _ = removed(pruned)
    assert sorted(widths(model).values()) == [4, 5]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(model=dead_models())
def test_generated_graphs_stay_the_same_function(model: OnnxModel) -> None:
    result = run_pass(RemoveDeadChannels(), model)
    after = result.model
    assert isinstance(after, OnnxModel)
    onnx.checker.check_model(onnx_ir.to_proto(after.ir), full_check=True)
    assert after.signature == model.signature
    assert result.modified == (after.digest != model.digest) == bool(result.rewrites)
    assert not run_pass(RemoveDeadChannels(), after).rewrites
    feeds = seeded_feeds(model)
    names = [output.name for output in model.signature.outputs]
    difference = compare_outputs(run_model(model, feeds), run_model(after, feeds), names)
    assert difference.broken is None
    assert difference.max_rel <= 1e-5
