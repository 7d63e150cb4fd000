"""A transform inside the model does what it does outside, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pydantic import TypeAdapter

from optimc.calibration.transforms import Steps, apply
from optimc.core.errors import InputError
from optimc.core.model import OnnxModel
from optimc.frontends.embedding import embed, is_embeddable, shape_before
from optimc.testing.graphs import GraphBuilder
from optimc.testing.runs import run_model

ADAPTER: TypeAdapter[Steps] = TypeAdapter(Steps)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
NORMAL = {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}


def steps(*written: Any) -> Steps:
    return ADAPTER.validate_python(list(written))


def model_of(shape: tuple[int | str, ...]) -> OnnxModel:
    """Two readers of one input, which is an output too."""
    b = GraphBuilder()
    x = b.input("x", ["batch", *shape[1:]])
    b.node("Relu", x, to="relu")
    b.node("Neg", x, to="neg")
    b.output("relu", ["batch", *shape[1:]])
    b.output("neg", ["batch", *shape[1:]])
    return b.model()


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (["nchw", {"divide": 255}, NORMAL], IMAGES),
        ([{"divide": 255}, "nchw"], IMAGES),
        (["nchw", {"multiply": [1, 2, 3]}, "nhwc"], IMAGES),
        (["nchw", {"cast": "float32"}], IMAGES),
        (["nchw"], IMAGES.astype(np.float32)),
        (["nchw", {"divide": 3}], IMAGES.astype(np.int64)),
        ([{"expand_dims": 1}, {"divide": 16}], IMAGES[..., 0]),
        ([{"squeeze": 3}, {"divide": 16}], IMAGES[..., :1]),
        ([{"divide": [1.0, 3.0, 7.0, 9.0]}], IMAGES[:, :, 0, 0]),
    ],
)
def test_inside_and_outside_are_bit_equal(written: list[Any], stored: np.ndarray) -> None:
    chain = steps(*written)
    outside = apply(chain, stored)
    model = model_of(outside.shape)
    digest = model.sealed().digest
    inside = embed(model, {"x": chain}, {"x": stored.dtype.name})
    onnx.checker.check_model(ir.to_proto(inside.ir), full_check=True)
    assert model.sealed().digest == digest
    assert inside.signature.outputs == model.signature.outputs
    (spec,) = inside.signature.inputs
    assert (spec.name, spec.dtype) == ("x", stored.dtype.name)
    assert spec.shape is not None
    assert spec.shape == ("batch", *stored.shape[1:])
    # A model that takes integers would have no arithmetic to compare.
    expected = run_model(model, [{"x": outside.astype(np.float32)}])[0]
    found = run_model(inside, [{"x": stored}])[0]
    for name in ("relu", "neg"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_shapes_go_backwards_through_every_step() -> None:
    chain = steps({"squeeze": 3}, {"expand_dims": 1}, {"divide": 255}, "nhwc", "nchw")
    assert shape_before(chain, ("n", 1, "h", 8)) == ("n", "h", 8, 1)


def test_other_inputs_stay_and_keep_their_place() -> None:
    b = GraphBuilder()
    first, second = b.input("a", ["n", 2]), b.input("b", ["n", 2])
    b.node("Sub", first, second, to="y")
    b.output("y", ["n", 2])
    model = embed(b.model(), {"b": steps({"divide": 2})}, {"b": "uint8"})
    assert [(s.name, s.dtype) for s in model.signature.inputs] == [
        ("a", "float32"),
        ("b", "uint8"),
    ]


def test_an_unknown_rank_is_refused() -> None:
    model = model_of((1, 2))
    model.ir.graph.inputs[0].shape = None
    with pytest.raises(InputError, match="rank of input `x` is not known"):
        embed(model, {"x": steps("nchw")}, {"x": "uint8"})


def test_casts_to_other_types_stay_outside() -> None:
    assert [is_embeddable(step) for step in steps({"cast": "int64"}, {"cast": "float32"})] == [
        False,
        True,
    ]
