"""`equalize`: the contract, that ranges come out even, and where it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from optimc.core.model import OnnxModel
from optimc.passes.equalize import Equalize
from optimc.testing import PassContract
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.quantizable import conv, quantizable_models
from optimc.testing.recoverable import depthwise_chain, quantized
from optimc.testing.runs import run_model, run_pass, seeded_feeds


class TestEqualize(PassContract):
    passes = (Equalize(),)

    def models(self) -> Mapping[str, OnnxModel]:
        return {**small_models(), **quantizable_models(), "chain": depthwise_chain()}


def _weights(model: OnnxModel) -> list[NDArray[np.float32]]:
    nodes = [node for node in model.ir.graph if node.op_type in ("Conv", "Gemm")]
    return [node.inputs[1].const_value.numpy() for node in nodes]  # type: ignore[union-attr]


def test_both_sides_of_each_pair_get_equal_ranges() -> None:
    result = run_pass(Equalize(), depthwise_chain(shift=0.0))
    assert isinstance(result.model, OnnxModel)
    assert len(result.rewrites) == 5
    weights = _weights(result.model)
    for first, second in itertools.pairwise(weights):
        outputs = np.abs(first).reshape(len(first), -1).max(1)
        depthwise = second.shape[1] == 1
        inputs = np.abs(second.reshape(len(second), second.shape[1], -1)).max(2)
        inputs = inputs[:, 0] if depthwise else inputs.max(0)
        assert np.allclose(outputs, inputs, rtol=1e-3)


def test_one_scale_a_tensor_loses_less_afterwards() -> None:
    model = depthwise_chain()
    even = run_pass(Equalize(), model).model
    assert isinstance(even, OnnxModel)
    feeds = seeded_feeds(model, sizes=(400,), seed=1)
    wanted = run_model(model, feeds)[0]["logits"]
    errors = [
        np.square(run_model(quantized(m, per_channel=False), feeds)[0]["logits"] - wanted).mean()
        for m in (model, even)
    ]
    assert errors[1] < 0.25 * errors[0]


def test_values_between_the_layers_lose_their_source_names() -> None:
    model = depthwise_chain()
    even = run_pass(Equalize(), model).model
    lost = set(model.provenance.values()) - set(even.provenance.values())
    conv_outputs = [n.outputs[0].name for n in model.ir.graph if n.op_type == "Conv"]
    assert {model.provenance[str(name)] for name in conv_outputs} <= lost
    assert even.provenance["logits"] == model.provenance["logits"]


def _pair(middle: str, *, limits: bool = False, twice: bool = False) -> OnnxModel:
    """Two convolutions with one operator between them."""
    b = GraphBuilder()
    h = conv(b, b.input("image", ["batch", 3, 6, 6]), 3, 8)
    more = [b.constant(0.0), b.constant(6.0)] if limits else []
    h = b.node(middle, h, *more)
    out = conv(b, h, 8, 4, kernel_shape=[1, 1])
    if twice:
        out = b.node("Add", out, conv(b, h, 8, 4, kernel_shape=[1, 1]))
    b.node("Identity", out, to="map")
    b.output("map", ["batch", 4, 4, 4])
    return b.model()


def _reasons(model: OnnxModel) -> str:
    result = run_pass(Equalize(), model)
    assert not result.modified
    return "; ".join(refusal.reason for refusal in result.refusals)


def test_a_clip_is_refused() -> None:
    assert "Clip behind it does not scale with its input" in _reasons(_pair("Clip", limits=True))


def test_a_sigmoid_is_refused() -> None:
    assert "Sigmoid behind it does not scale" in _reasons(_pair("Sigmoid"))


def test_a_value_with_two_readers_is_refused() -> None:
    assert "is read by 2 nodes" in _reasons(_pair("Relu", twice=True))


def test_a_shared_weight_is_refused() -> None:
    b = GraphBuilder()
    x = b.input("image", ["batch", 4, 6, 6])
    shared = b.weight(4, 4, 3, 3, scale=0.2)
    h = b.node("Relu", b.node("Conv", x, shared, pads=[1, 1, 1, 1]))
    b.node("Conv", h, shared, pads=[1, 1, 1, 1], to="map")
    b.output("map", ["batch", 4, 6, 6])
    assert "its weight is read by other nodes too" in _reasons(b.model())


def test_a_quantized_graph_stays_as_it_is() -> None:
    assert "stays in a quantized graph" in _reasons(quantized(depthwise_chain()))


def test_a_dead_channel_keeps_its_factor() -> None:
    b = GraphBuilder()
    first = b.rng.normal(0, 0.2, (4, 3, 1, 1)).astype(np.float32)
    first[1] = 0.0
    second = b.rng.normal(0, 0.2, (2, 4, 1, 1)).astype(np.float32)
    second[:, 2] = 0.0
    first[0] *= 100
    h = b.node("Conv", b.input("image", ["batch", 3, 4, 4]), b.constant(first))
    b.node("Conv", b.node("Relu", h), b.constant(second), to="map")
    b.output("map", ["batch", 2, 4, 4])
    model = b.model()
    result = run_pass(Equalize(), model)
    assert isinstance(result.model, OnnxModel)
    one, two = _weights(result.model)
    assert np.array_equal(one[1:3], first[1:3])
    assert np.array_equal(two[:, 1:3], second[:, 1:3])
    assert np.isclose(np.abs(one[0]).max(), np.abs(two[:, 0]).max(), rtol=1e-3)


def test_a_constant_channel_does_not_take_the_range_of_the_activations() -> None:
    b = GraphBuilder()
    first = b.rng.normal(0, 0.2, (6, 3, 1, 1)).astype(np.float32)
    first[2] *= 1e-5
    shift = b.constant([0.1, -0.2, 0.5, 0.0, 0.3, -20.0])
    h = b.node(
        "Relu", b.node("Conv", b.input("image", ["batch", 3, 4, 4]), b.constant(first), shift)
    )
    b.node("Conv", h, b.weight(2, 6, 1, 1), to="map")
    b.output("map", ["batch", 2, 4, 4])
    result = run_pass(Equalize(), b.model())
    assert isinstance(result.model, OnnxModel)
    node = next(node for node in result.model.ir.graph if node.op_type == "Conv")
    bias = node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
    assert bias.max() < 4.0, "by its weights alone it would be some hundred times larger"
