"""`fold_preprocess`: the contract, what is folded with and without padding, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from optimc.core.model import OnnxModel
from optimc.core.passes import PassResult
from optimc.passes.fold_preprocess import FoldPreprocess
from optimc.testing import PassContract, run_pass
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.runs import run_model

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def normalized(
    pads: int = 0, *, group: int = 1, bias: bool = True, turned: bool = False, **attributes: Any
) -> OnnxModel:
    """[batch, 8, 8, 3] in pixels to a normalized Conv; `turned` takes them from the mean."""
    b = GraphBuilder()
    image = b.input("image", ["batch", 8, 8, 3])
    x = b.node("Transpose", image, perm=[0, 3, 1, 2])
    x = b.node("Div", x, b.constant(255.0))
    mean = b.constant(np.reshape(MEAN, (3, 1, 1)))
    x = b.node("Sub", *((mean, x) if turned else (x, mean)), name="centre")
    x = b.node("Div", x, b.constant(np.reshape(STD, (1, 3, 1, 1))), name="scale")
    weight = b.weight(6, 3 // group, 3, 3, scale=0.3)
    inputs = (x, weight, b.weight(6)) if bias else (x, weight)
    if pads:
        attributes["pads"] = [pads] * 4
    b.node("Relu", b.node("Conv", *inputs, group=group, name="first", **attributes), to="map")
    side = 8 if pads or "auto_pad" in attributes else 6
    b.output("map", ["batch", 6, side, side])
    return b.model()


def folded(model: OnnxModel) -> tuple[OnnxModel, PassResult]:
    result = run_pass(FoldPreprocess(), model)
    assert isinstance(result.model, OnnxModel)
    return result.model, result


def kinds(model: OnnxModel) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


class TestContract(PassContract):
    passes = (FoldPreprocess(),)

    def models(self) -> Mapping[str, OnnxModel]:
        return {
            "no padding": normalized(),
            "padding": normalized(1),
            "groups": normalized(group=3),
            "groups and padding": normalized(1, group=3, bias=False),
            "turned": normalized(1, turned=True),
            "same": normalized(auto_pad="SAME_UPPER"),
            **{name: small_models()[name] for name in ("convolutions", "quantized")},
        }


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("options", [{}, {"group": 3}, {"bias": False}])
@pytest.mark.parametrize("pads", [0, 1])
def test_the_result_is_the_same_at_the_borders_too(
    pads: int, options: dict[str, Any], turned: bool
) -> None:
    model = normalized(pads, turned=turned, **options)
    after, result = folded(model)
    assert [r.where for r in result.rewrites] == ["first"]
    counts = kinds(after)
    assert counts["Div"] == counts["Mul"] == counts["Add"] == 0
    assert counts["Sub"] == (1 if pads else 0)
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.float32)
    one, two = (run_model(m, [{"image": image}])[0]["map"] for m in (model, after))
    assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()


def test_a_scale_alone_goes_in_whatever_the_padding_is() -> None:
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    scaled = b.node("Mul", x, b.constant(1 / 255))
    b.node("Conv", scaled, b.weight(4, 3, 3, 3), pads=[1, 1, 1, 1], to="map")
    b.output("map", ["batch", 4, 8, 8])
    after, _ = folded(b.model())
    assert kinds(after) == {"Conv": 1}


def refused(b: GraphBuilder, x: str, weight: str | None = None, **attributes: Any) -> str:
    """The reason of the one refusal for a Conv of `x`."""
    b.node("Conv", x, weight or b.weight(4, 3, 3, 3), to="map", **attributes)
    b.output("map", ["batch", 4, 6, 6])
    model = b.model()
    after, result = folded(model)
    assert not result.modified
    assert after.digest == model.sealed().digest
    return result.refusals[0].reason


def test_a_mean_before_padding_stays() -> None:
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 6, 6])
    centred = b.node("Sub", x, b.constant(np.reshape(MEAN, (3, 1, 1))))
    assert "stand for the mean" in refused(b, centred, pads=[1, 1, 1, 1])


def test_a_zero_factor_before_padding_stays() -> None:
    b = GraphBuilder()
    x = b.node("Mul", b.input("image", ["batch", 3, 6, 6]), b.constant(0.0))
    shifted = b.node("Add", x, b.constant(1.0))
    assert "multiplied by zero" in refused(b, shifted, pads=[1, 1, 1, 1])


def test_what_differs_inside_a_channel_stays() -> None:
    b = GraphBuilder()
    x = b.node("Sub", b.input("image", ["batch", 3, 8, 8]), b.weight(8, 8))
    assert "not one number for each channel" in refused(b, x)


def test_what_is_read_elsewhere_stays() -> None:
    b = GraphBuilder()
    x = b.node("Mul", b.input("image", ["batch", 3, 8, 8]), b.constant(2.0), to="doubled")
    b.output("doubled", ["batch", 3, 8, 8])
    assert "also read elsewhere" in refused(b, x)


def test_infinite_constants_stay() -> None:
    b = GraphBuilder()
    x = b.node("Div", b.input("image", ["batch", 3, 8, 8]), b.constant(0.0))
    assert "zero or not finite" in refused(b, x)


def test_a_weight_that_is_fed_stays() -> None:
    b = GraphBuilder()
    x = b.node("Mul", b.input("image", ["batch", 3, 8, 8]), b.constant(2.0))
    weight = b.input("weight", [4, 3, 3, 3])
    assert "not a constant" in refused(b, x, weight)


def test_a_quantized_graph_stays() -> None:
    _, result = folded(small_models()["quantized"])
    assert not result.modified
    assert "quantized graph" in result.refusals[0].reason


def test_arithmetic_inside_the_network_is_not_preprocessing() -> None:
    b = GraphBuilder()
    h = b.node("Relu", b.input("image", ["batch", 3, 8, 8]))
    b.node("Conv", b.node("Mul", h, b.constant(2.0)), b.weight(4, 3, 3, 3), to="map")
    b.output("map", ["batch", 4, 6, 6])
    _, result = folded(b.model())
    assert not result.modified
    assert not result.refusals
