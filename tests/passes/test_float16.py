"""`float16`: the contract of every pass, what it converts, what stays, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import PassResult
from optimc.passes.float16 import Float16
from optimc.pipeline.compare import compare_outputs
from optimc.testing import PassContract, run_model, run_pass, seeded_feeds
from optimc.testing.fuse_strategies import fusible_models
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.spellings import layer_norm

HALF, FLOAT = onnx_ir.DataType.FLOAT16, onnx_ir.DataType.FLOAT


def network() -> OnnxModel:
    """Convolutions with a residual, a mean, a linear layer and Softmax; two outputs in the way."""
    b = GraphBuilder()
    x = b.input("x", ["n", 3, 8, 8])
    h = b.node("Relu", b.node("Conv", x, b.weight(16, 3, 3, 3), b.weight(16), pads=[1] * 4))
    h = b.node("Add", h, b.node("Conv", h, b.weight(16, 16, 1, 1), name="inner"), to="features")
    h = b.node("ReduceMean", b.node("Relu", h), b.constant([2, 3]), keepdims=0)
    h = b.node("Gemm", h, b.weight(10, 16), b.weight(10), transB=1, name="head")
    b.node("Softmax", h, to="scores")
    b.output("scores", ["n", 10])
    b.output("features", ["n", 16, 8, 8])
    return b.model()


def transformer() -> OnnxModel:
    """Embedding, attention with a mask of huge numbers, LayerNormalization in small operators."""
    b = GraphBuilder()
    ids, mask = b.input("ids", ["n", "t"], "int64"), b.input("mask", ["n", 1, "t"], "bool")
    h = b.node("Gather", b.weight(40, 32), ids)
    keys = b.node("Transpose", b.node("MatMul", h, b.weight(32, 32)), perm=[0, 2, 1])
    scores = b.node("Mul", b.node("MatMul", h, keys), b.constant(0.2))
    filler = b.node("Where", mask, b.constant(0.0), b.constant(float(np.finfo("f4").min)))
    attention = b.node("Softmax", b.node("Add", scores, filler, name="masked"), axis=-1)
    h = b.node("Add", b.node("MatMul", attention, h), h)
    h = layer_norm(b, h, 32)
    b.node("MatMul", h, b.weight(32, 8), to="y")
    b.output("y", ["n", "t", 8])
    return b.model()


def with_branch() -> OnnxModel:
    """An If whose branch reads a value that is computed in float16 outside of it."""
    b = GraphBuilder()
    h = b.node("MatMul", b.input("x", ["n", 4]), b.weight(4, 4), to="h")
    sides = {}
    for name in ("then_branch", "else_branch"):
        side = GraphBuilder()
        result = side.node("MatMul" if name == "then_branch" else "Add", h, side.weight(4, 4))
        if name == "else_branch":
            result = side.node("MatMul", h, result)
        side.output(result, ["n", 4])
        sides[name] = side.graph(name)
    chosen = b.node("If", b.input("flag", [], "bool"), name="if", **sides)
    b.node("MatMul", b.node("Add", chosen, h), b.weight(4, 2), to="y")
    b.output("y", ["n", 2])
    return b.model()


def stored() -> OnnxModel:
    """Weights that are large enough to store, one that is not, and one that is out of range."""
    b = GraphBuilder()
    x = b.input("x", ["n", 20])
    h = b.node("MatMul", x, b.constant(b.rng.normal(size=(20, 20)), "big"))
    h = b.node("Add", h, b.constant(b.rng.normal(size=20), "small"))
    tiny = b.node("MatMul", x, b.constant(b.rng.normal(size=(20, 20)) * 1e-7, "tiny"))
    huge = b.node("MatMul", x, b.constant(b.rng.normal(size=(20, 20)) * 1e6, "huge"))
    b.node("Add", h, b.node("Add", tiny, b.node("Tanh", huge)), to="y")
    b.output("y", ["n", 20])
    return b.model()


MODELS: Mapping[str, Callable[[], OnnxModel]] = {
    "network": network,
    "transformer": transformer,
    "with branch": with_branch,
    "stored": stored,
}


class TestFloat16(PassContract):
    passes = (
        Float16(),
        Float16(keep_float=["MatMul"]),
        Float16(storage_only=True),
        Float16(keep_interface=False),
        Float16(keep_interface=False, storage_only=True),
    )

    def models(self) -> Mapping[str, OnnxModel]:
        small = {n: m for n, m in small_models().items() if n in ("convolutions", "folded shapes")}
        return {**small, **{name: make() for name, make in MODELS.items()}}


def converted(model: OnnxModel, **options: Any) -> PassResult:
    return run_pass(Float16(**options), model)


def result_of(model: OnnxModel, **options: Any) -> OnnxModel:
    result = converted(model, **options).model
    assert isinstance(result, OnnxModel)
    return result


def dtypes(model: OnnxModel) -> dict[str, onnx_ir.DataType | None]:
    """From a node's name to the dtype of its result."""
    return {node.name or "": node.outputs[0].dtype for node in model.ir.graph}


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.where: refusal.reason for refusal in result.refusals}


def test_regions_are_whole() -> None:
    """One Cast in, one before the Softmax, one for the output in the middle: none between."""
    result = result_of(network())
    operators = Counter(node.op_type for node in result.ir.graph)
    assert operators["Cast"] == 3
    found = dtypes(result)
    assert {found[name] for name in ("inner", "head")} == {HALF}
    weights = result.ir.graph.initializers.values()
    assert {v.dtype for v in weights} == {HALF, onnx_ir.DataType.INT64}
    assert all(value.uses() for value in weights), "the float32 weights are gone"


def test_half_the_bytes() -> None:
    assert result_of(network()).stats.bytes < 0.52 * network().stats.bytes


def test_weights_are_rounded_to_the_nearest() -> None:
    model = network()
    weight = next(n for n in model.ir.graph if n.name == "inner").inputs[1]
    after = next(n for n in result_of(model).ir.graph if n.name == "inner").inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    assert after is not None
    assert after.const_value is not None
    expected = weight.const_value.numpy().astype(np.float16)
    assert after.const_value.numpy().tobytes() == expected.tobytes()


def test_source_names_go_to_float32_values() -> None:
    result = result_of(network())
    named = [value for value, source in result.provenance.items() if source == "features"]
    assert named == ["features"]


def test_masks_of_huge_numbers_stay_huge() -> None:
    """In float16 they would be -inf, and a row of them alone would make NaN of Softmax."""
    model = transformer()
    result = converted(model)
    found = reasons(result)
    assert found["masked"] == "what it reads is beyond float16's 65504"
    assert "-3.4e+38 is beyond" in next(r for r in found.values() if "constant" in r)
    ids = np.zeros((2, 3), np.int64)
    feeds = [{"ids": ids, "mask": np.zeros((2, 1, 3), bool)}]
    after = result.model
    assert isinstance(after, OnnxModel)
    difference = compare_outputs(run_model(model, feeds), run_model(after, feeds), ["y"])
    assert difference.broken is None
    assert difference.max_rel <= 1e-2


def test_what_leaves_the_range_stays() -> None:
    found = reasons(converted(transformer()))
    by_type = {name.rstrip("_0123456789"): reason for name, reason in found.items()}
    assert "range of float16" in by_type["pow"]
    assert "range of float16" in by_type["sqrt"]
    assert "too small" in by_type["div"]


@pytest.mark.parametrize(("size", "kept"), [(8, False), (9, True)])
def test_means_of_many_elements_stay(size: int, kept: bool) -> None:
    b = GraphBuilder()
    h = b.node("Conv", b.input("x", ["n", 2, size, size]), b.weight(4, 2, 1, 1))
    b.node("GlobalAveragePool", h, name="pool", to="y")
    b.output("y", ["n", 4, 1, 1])
    found = reasons(converted(b.model()))
    assert found == ({"pool": "it sums 81 elements"} if kept else {})


def test_squares_stay() -> None:
    b = GraphBuilder()
    h = b.node("MatMul", b.input("x", ["n", 4]), b.weight(4, 4))
    b.node("Mul", h, h, name="square", to="y")
    b.output("y", ["n", 4])
    reason = "a square is beyond float16's 65504 from 256 on"
    assert reasons(converted(b.model())) == {"square": reason}


def test_small_constants_stay() -> None:
    """A floor of 1e-12 would be 0, and what is divided by it infinite."""
    b = GraphBuilder()
    h = b.node("MatMul", b.input("x", ["n", 4]), b.weight(4, 4))
    b.node("Clip", h, b.constant(1e-12), name="floor", to="y")
    b.output("y", ["n", 4])
    (reason,) = reasons(converted(b.model())).values()
    assert reason == "its constants are 1e-12 at most, where float16 loses digits"


def test_a_region_without_products_stays() -> None:
    b = GraphBuilder()
    h = b.node("MatMul", b.input("x", ["n", 4]), b.weight(4, 4))
    h = b.node("Softmax", h, name="softmax")
    b.node("Mul", h, b.constant(2.0), name="alone", to="y")
    b.output("y", ["n", 4])
    reason = "no convolution or matrix product beside it computes in float16"
    assert reasons(converted(b.model()))["alone"] == reason


def test_subgraphs_stay_and_read_float32() -> None:
    result = converted(with_branch())
    assert reasons(result)["if"] == "its subgraphs stay in float32"
    model = result.model
    assert isinstance(model, OnnxModel)
    node = next(n for n in model.ir.graph if n.op_type == "If")
    inner = [
        v
        for g in ("then_branch", "else_branch")
        for n in node.attributes[g].as_graph()
        for v in n.inputs
    ]
    assert {value.dtype for value in inner if value is not None} == {FLOAT}


def test_keep_float_names_nodes_types_and_sources() -> None:
    for pattern in ("inner", "Conv", "in*r"):
        result = converted(network(), keep_float=[pattern])
        assert isinstance(result.model, OnnxModel)
        assert dtypes(result.model)["inner"] == FLOAT
        assert reasons(result)["inner"] == f"kept in float32 by `{pattern}`"


def test_other_domains_stay() -> None:
    """Of a custom operator nothing is known, and its float32 is what it gets."""
    b = GraphBuilder()
    h = b.node("MatMul", b.input("x", ["n", 4]), b.weight(4, 4))
    b.node("Gelu", h, domain="com.microsoft", name="custom", to="y")
    b.output("y", ["n", 4])
    proto = b.proto()
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    from optimc.testing import as_model

    result = converted(as_model(onnx.shape_inference.infer_shapes(proto)))
    assert reasons(result)["custom"] == "nothing is known of the domain com.microsoft"


# Only stored.


def test_stores_weights_and_computes_in_float32() -> None:
    result = converted(stored(), storage_only=True)
    model = result.model
    assert isinstance(model, OnnxModel)
    weights = {name: value.dtype for name, value in model.ir.graph.initializers.items()}
    assert weights == {"big_float16": HALF, "small": FLOAT, "tiny": FLOAT, "huge": FLOAT}
    others = [n for n in model.ir.graph if n.op_type != "Cast"]
    assert {v.dtype for n in others for v in (*n.inputs, *n.outputs) if v is not None} == {FLOAT}
    found = reasons(result)
    assert found["huge"].endswith("is beyond float16's 65504")
    assert found["tiny"].endswith("where float16 loses digits")


def test_keep_float_names_weights_where_only_stored() -> None:
    model = network()
    large = [
        n
        for n, v in model.ir.graph.initializers.items()
        if v.shape and v.shape.numpy() == (16, 3, 3, 3)
    ]
    result = converted(model, storage_only=True, keep_float=large)
    assert reasons(result)[large[0]] == f"kept in float32 by `{large[0]}`"
    assert result.rewrites


# What it cannot run on.


def cannot(model: OnnxModel, what: str, **options: Any) -> None:
    with pytest.raises(PreconditionError) as error:
        converted(model, **options)
    assert what in error.value.what
    assert error.value.fix


def test_quantized_models_are_refused() -> None:
    cannot(small_models()["quantized"], "the model is quantized: 5 nodes")
    cannot(small_models()["quantized"], "the model is quantized", storage_only=True)


def test_models_without_anything_to_convert_are_refused() -> None:
    cannot(small_models()["branches"], "nothing in this model can be converted")
    cannot(network(), "no weight of this model can be stored", storage_only=True, keep_float=["*"])


def test_patterns_without_effect_are_refused() -> None:
    cannot(network(), "`haed` names no node", keep_float=["haed"])
    cannot(stored(), "`haed` names no weight", keep_float=["haed"], storage_only=True)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(model=fusible_models())
def test_generated_graphs_stay_valid_and_near(model: OnnxModel) -> None:
    try:
        result = converted(model)
    except PreconditionError:
        return
    after = result.model
    assert isinstance(after, OnnxModel)
    onnx.checker.check_model(onnx_ir.to_proto(after.ir), full_check=True)
    assert after.signature == model.signature
    assert result.modified == (after.digest != model.digest) == bool(result.rewrites)
    assert not converted(after).rewrites
    feeds = seeded_feeds(model)
    run_model(after, feeds)
