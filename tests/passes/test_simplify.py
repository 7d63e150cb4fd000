"""`simplify`: the contract of every pass, and what this one does and refuses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir
import pytest
from onnx import TensorProto, helper

from optimc.core.errors import UnavailableError
from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.core.passes import PassResult
from optimc.passes import _simplify_onnxsim
from optimc.passes.fuse import Fuse
from optimc.passes.simplify import Simplify
from optimc.pipeline.compare import compare_outputs
from optimc.testing import PassContract, as_model, run_model, run_pass, seeded_feeds
from optimc.testing.graphs import GraphBuilder, small_models


class TestSimplify(PassContract):
    passes = (Simplify(), Simplify(fold_limit=0))


@pytest.mark.slow
class TestSimplifyByOnnxsim(PassContract):
    passes = (Simplify(engine="onnxsim"),)

    def models(self) -> Mapping[str, OnnxModel]:
        pytest.importorskip("onnxsim", reason="the extra `onnxsim` is not installed")
        models = small_models()
        return {name: models[name] for name in ("convolutions", "quantized", "shared weights")}


def simplified(model: OnnxModel, **options: object) -> PassResult:
    """The result, after the check that it computes the same on seeded inputs."""
    result = run_pass(Simplify(**options), model)  # type: ignore[arg-type]
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model)
    names = [output.name for output in model.signature.outputs]
    difference = compare_outputs(run_model(model, feeds), run_model(result.model, feeds), names)
    assert difference.broken is None
    assert difference.max_rel <= 1e-5
    return result


def operators(result: PassResult) -> list[str]:
    assert isinstance(result.model, OnnxModel)
    return [node.op_type for node in result.model.ir.graph]


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.rule: refusal.reason for refusal in result.refusals}


# What it does.


def test_shape_arithmetic_folds_to_a_constant() -> None:
    result = simplified(small_models()["folded shapes"])
    counts = Counter(operators(result))
    assert counts["Div"] == 1, "the head count is folded, the division by the scale stays"
    assert not {"Sqrt", "Mul", "Cast", "Identity"} & set(counts)


@pytest.mark.parametrize(("before", "left"), [(0, []), (1, ["Pad"])])
def test_a_pad_by_nothing_goes_and_others_stay(before: int, left: list[str]) -> None:
    b = GraphBuilder()
    padded = b.node("Pad", b.input("x", ["n", 4]), b.constant([0, before, 0, 0]), b.constant(0.0))
    b.node("Relu", padded, to="y")
    b.output("y", ["n", 4 + before])
    assert operators(simplified(b.model())) == [*left, "Relu"]


def test_shapes_fold_away_altogether_where_dims_are_fixed() -> None:
    b = GraphBuilder()
    x = b.input("x", [2, 6, 4])
    batch = b.node("Gather", b.node("Shape", x), b.constant([0]), axis=0)
    target = b.node("Concat", batch, b.constant([24]), axis=0)
    b.node("Relu", b.node("Reshape", x, target), to="y")
    b.output("y", [2, 24])
    assert operators(simplified(b.model())) == ["Reshape", "Relu"]


def test_known_branch_is_taken_and_the_open_one_stays() -> None:
    result = simplified(small_models()["branches"])
    assert operators(result).count("If") == 1
    assert "take_known_branch" in [rewrite.rule for rewrite in result.rewrites]


def test_equal_nodes_merge_across_a_subgraph_border() -> None:
    b = GraphBuilder()
    x, flag = b.input("x", ["n", 3]), b.input("flag", [], "bool")
    outer = b.node("Tanh", x, name="outer")
    sides = []
    for op_type in ("Relu", "Neg"):
        side = GraphBuilder()
        same = side.node("Tanh", x, to=f"same_{op_type}", name=f"inner_{op_type}")
        side.node(op_type, same, to=f"result_{op_type}")
        side.output(f"result_{op_type}", ["n", 3])
        sides.append(side.graph())
    h = b.node("If", flag, then_branch=sides[0], else_branch=sides[1])
    b.node("Add", h, outer, to="y")
    b.output("y", ["n", 3])
    result = simplified(b.model())
    merged = [rewrite.where for rewrite in result.rewrites if rewrite.rule == "merge_equal_nodes"]
    assert sorted(merged) == ["inner_Neg", "inner_Relu"]


def test_equal_nodes_with_different_attributes_stay_apart() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 3])
    slopes = [b.node("LeakyRelu", x, alpha=alpha) for alpha in (0.1, 0.2, 0.1)]
    b.node("Sum", *slopes, to="y")
    b.output("y", ["n", 3])
    assert operators(simplified(b.model())) == ["LeakyRelu", "LeakyRelu", "Sum"]


def test_outputs_keep_their_names_whatever_they_are() -> None:
    model = small_models()["aliased outputs"]
    result = simplified(model)
    assert result.model.signature == model.signature
    assert operators(result).count("Relu") == 1


def test_whole_pipeline_of_a_convolution_block() -> None:
    result = simplified(small_models()["convolutions"])
    assert operators(result).count("Relu") == 2


def test_layers_are_left_to_fuse() -> None:
    """Folded here too, BatchNormalization would be computed in two places, once in float32."""
    result = simplified(small_models()["convolutions"])
    assert {"BatchNormalization", "Pad"} <= set(operators(result))
    assert isinstance(result.model, OnnxModel)
    fused = run_pass(Fuse(), result.model)
    assert not {"BatchNormalization", "Pad"} & set(operators(fused))


def test_source_names_go_where_the_numbers_go() -> None:
    b = GraphBuilder()
    h = b.node("Transpose", b.input("x", [2, 3, 4]), perm=[1, 0, 2], to="first")
    model = finished(b, b.node("Transpose", h, perm=[0, 2, 1], to="second"), [3, 4, 2])
    result = simplified(model)
    assert operators(result) == ["Transpose", "Neg"]
    assert isinstance(result.model, OnnxModel)
    fused = result.model.ir.graph[0].outputs[0]
    assert fused.meta[SOURCE_KEY] == "second", "it has the numbers of the second"


# What it refuses: each of these is a case in which the library alone computes something else.


def clip(b: GraphBuilder, x: str, low: float, high: float) -> str:
    return b.node("Clip", x, b.constant(low), b.constant(high))


def clips_that_do_not_meet() -> OnnxModel:
    b = GraphBuilder()
    h = clip(b, clip(b, b.input("x", ["n", 4]), 0.0, 1.0), 2.0, 3.0)
    return finished(b, h, ["n", 4])


def relu_of_a_negative_clip() -> OnnxModel:
    b = GraphBuilder()
    return finished(b, b.node("Relu", clip(b, b.input("x", ["n", 4]), -2.0, -1.0)), ["n", 4])


def scatter_that_adds() -> OnnxModel:
    b = GraphBuilder()
    data, updates = b.input("data", [3, 2]), b.input("updates", [3, 2])
    indices = b.constant([[0], [1], [2]])
    h = b.node("ScatterND", data, indices, updates, reduction="add")
    return finished(b, h, [3, 2])


def reshapes_that_regroup_a_product() -> OnnxModel:
    """Four products of numbers become one product of matrices: the same shapes, other sums."""
    b = GraphBuilder()
    x, y = b.input("x", [4, 1, 1]), b.input("y", [4, 1, 1])
    sides = [b.node("Reshape", side, b.constant([2, 2])) for side in (x, y)]
    return finished(
        b, b.node("Reshape", b.node("MatMul", *sides), b.constant([4, 1, 1])), [4, 1, 1]
    )


def nearly_neutral_operand() -> OnnxModel:
    b = GraphBuilder()
    h = b.node("Mul", b.input("x", ["n", 4]), b.constant(1.000001))
    return finished(b, b.node("Sub", h, b.node("Identity", "x")), ["n", 4])


def finished(b: GraphBuilder, value: str, shape: list[int | str]) -> OnnxModel:
    b.node("Neg", value, to="result")
    b.output("result", shape)
    return b.model()


GUARDED: dict[str, tuple[Callable[[], OnnxModel], str, str]] = {
    "clips that do not meet": (clips_that_do_not_meet, "fuse_clips", "do not meet"),
    "relu of a negative clip": (relu_of_a_negative_clip, "fuse_clips", "do not meet"),
    "scatter that adds": (scatter_that_adds, "drop_whole_scatter", "reduces by `add`"),
    "regrouping reshapes": (
        reshapes_that_regroup_a_product,
        "drop_reshapes_of_product",
        "regroups what the product sums over",
    ),
    "nearly neutral operand": (nearly_neutral_operand, "drop_times_one", "only near 1"),
}


@pytest.mark.parametrize("case", GUARDED)
def test_rules_of_the_library_are_guarded(case: str) -> None:
    build, rule, reason = GUARDED[case]
    assert reason in reasons(simplified(build()))[rule]


def test_dilated_same_padding_stays() -> None:
    """onnxscript forgets the dilation. ONNX Runtime does not run this one, others do."""
    b = GraphBuilder()
    x = b.input("x", [1, 1, 9, 9])
    h = b.node("Conv", x, b.weight(1, 1, 3, 3), auto_pad="SAME_UPPER", dilations=[2, 2])
    result = run_pass(Simplify(), finished(b, h, [1, 1, 9, 9]))
    assert "dilated" in reasons(result)["explicit_padding"]


def test_rules_do_not_write_attributes_that_the_opset_lacks() -> None:
    """onnxscript fixes a shape with allowzero, which Reshape has from opset 14 on."""

    def build(opset: int) -> OnnxModel:
        b = GraphBuilder(opset)
        x = b.input("x", ["n", 4, 2])
        size = b.node("Gather", b.node("Shape", x), b.constant([0]), axis=0)
        target = b.node("Concat", size, b.constant([8]), axis=0)
        return finished(b, b.node("Reshape", x, target), ["n", 8])

    assert "allowzero" in reasons(simplified(build(13)))["fix_reshape"]
    assert operators(simplified(build(14))) == ["Reshape", "Neg"]


def test_two_clips_of_one_value_keep_their_own_bounds() -> None:
    """onnxscript names both fused bounds after the value that is clipped."""
    b = GraphBuilder()
    x = b.input("x", ["n", 4])
    sides = [clip(b, clip(b, x, low - 1.0, 3.0), low, 2.0) for low in (-0.5, 0.5)]
    result = simplified(finished(b, b.node("Add", *sides), ["n", 4]))
    assert operators(result).count("Clip") == 2


def test_quantized_graphs_keep_their_float_arithmetic() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 2, 4, 4])
    h = b.node("Conv", x, b.weight(2, 2, 3, 3))
    ones, zeros = b.constant([1.0, 2.0]), b.constant([0.0, 0.5])
    h = b.node("BatchNormalization", h, ones, zeros, zeros, ones)
    h = b.node("Mul", h, b.node("Sqrt", b.constant([2.0])))
    step, zero = b.constant(0.1), b.constant(128, dtype="uint8")
    h = b.node("DequantizeLinear", b.node("QuantizeLinear", h, step, zero), step, zero)
    result = simplified(finished(b, h, ["n", 2, 2, 2]))
    assert operators(result) == operators(PassResult(b.model(), False))
    assert "quantized graph" in reasons(result)["fold_constant"]


def test_quantized_weights_stay_quantized() -> None:
    result = simplified(small_models()["quantized"])
    assert operators(result).count("DequantizeLinear") == 3
    assert "quantized values stay" in reasons(result)["fold_constant"]


def test_random_operators_are_neither_folded_nor_merged() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 4])
    noise = [b.node("RandomNormal", shape=[4], seed=1.0) for _ in range(2)]
    drawn = b.node("Bernoulli", b.constant([0.5] * 4))
    b.node("Sum", x, *noise, drawn, to="y")
    b.output("y", ["n", 4])
    result = run_pass(Simplify(), b.model())
    assert Counter(operators(result)) == {"RandomNormal": 2, "Bernoulli": 1, "Sum": 1}
    assert "another result at each run" in reasons(result)["fold_constant"]


def test_half_precision_arithmetic_is_not_folded() -> None:
    b = GraphBuilder()
    x = b.input("x", ["n", 2], "float16")
    h = b.node("Add", b.constant([0.1, 0.2], dtype="float16"), b.constant([0.3], dtype="float16"))
    b.node("Mul", x, h, to="y")
    b.output("y", ["n", 2], "float16")
    assert operators(simplified(b.model())) == ["Add", "Mul"]


# Folding bombs: small files that ask for gigabytes or minutes at build time.


def _bomb(op_type: str, *inputs: object, **attributes: object) -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", [1])
    constants = [b.constant(value) for value in inputs]
    huge = b.node(op_type, *constants, **attributes)
    first = b.node("Slice", b.node("Reshape", huge, b.constant([-1])), b.constant([0]),
                   b.constant([1]))  # fmt: skip
    b.node("Add", x, first, to="y")
    b.output("y", [1])
    return b.model()


def _range_bomb() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", [1])
    steps = b.node("Range", b.constant(0.0), b.constant(1e9), b.constant(0.1))
    b.node("Add", x, b.node("Slice", steps, b.constant([0]), b.constant([1])), to="y")
    b.output("y", [1])
    return b.model()


def _doubling_bomb() -> OnnxModel:
    """40 nodes, each twice as long as the one before: 2^40 elements."""
    b = GraphBuilder()
    x = b.input("x", [1])
    h = b.constant([1.0])
    for _ in range(40):
        h = b.node("Concat", h, h, axis=0)
    b.node("Add", x, b.node("Slice", h, b.constant([0]), b.constant([1])), to="y")
    b.output("y", [1])
    return b.model()


def _product_bomb() -> OnnxModel:
    """Small results, but 10^13 operations: a chain of products of long vectors."""
    b = GraphBuilder()
    x = b.input("x", [1])
    wide = b.node("Expand", b.constant([[1.0]]), b.constant([1, 250_000]))
    h = b.node("MatMul", b.node("Transpose", wide), wide)
    b.node("Add", x, b.node("ReduceMax", h, keepdims=0), to="y")
    b.output("y", [1])
    return b.model()


HUGE = 2**33
BOMBS: dict[str, Callable[[], OnnxModel]] = {
    "chain of Concat": _doubling_bomb,
    "ConstantOfShape": lambda: _bomb("ConstantOfShape", [2**17, 2**16]),
    "Expand": lambda: _bomb("Expand", 1.0, [HUGE]),
    "Pad": lambda: _bomb("Pad", [1.0], [0, HUGE]),
    "product": _product_bomb,
    "Range": _range_bomb,
    "Tile": lambda: _bomb("Tile", [1.0, 2.0], [HUGE]),
}


@pytest.mark.parametrize("name", BOMBS)
def test_folding_bombs_are_refused_before_they_go_off(name: str) -> None:
    model = BOMBS[name]()
    started = time.perf_counter()
    result = run_pass(Simplify(), model)
    assert time.perf_counter() - started < 10
    assert isinstance(result.model, OnnxModel)
    assert result.model.stats.bytes < 8 * 1024 * 1024
    assert result.refusals


def test_fold_limit_counts_only_growth() -> None:
    """A transposed weight is as large as the weight that it replaces, whatever the limit is."""
    b = GraphBuilder()
    x = b.input("x", ["n", 300])
    h = b.node("MatMul", x, b.node("Transpose", b.weight(200, 300), perm=[1, 0]))
    grown = b.node("Expand", b.constant([1.0]), b.constant([200]))
    model = finished(b, b.node("Add", h, grown), ["n", 200])
    assert operators(simplified(model, fold_limit=0)) == ["MatMul", "Expand", "Add", "Neg"]
    assert operators(simplified(model)) == ["MatMul", "Add", "Neg"]
    refusal = reasons(simplified(model, fold_limit=0))["fold_constant"]
    assert refusal == "the result would have 800 bytes, fold_limit is 0"


# The other engine.


def test_missing_onnxsim_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="needs the extra `onnxsim`") as caught:
        run_pass(Simplify(engine="onnxsim"), small_models()["convolutions"])
    assert caught.value.fix == "pip install 'optimc[onnxsim]'"


def test_onnxsim_is_one_rewrite_with_proven_sources() -> None:
    pytest.importorskip("onnxsim", reason="the extra `onnxsim` is not installed")
    result = simplified(small_models()["convolutions"], engine="onnxsim")
    assert [rewrite.rule for rewrite in result.rewrites] == ["onnxsim"]
    assert "BatchNormalization" not in operators(result)


def test_a_crash_of_onnxsim_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxsim", reason="the extra `onnxsim` is not installed")
    monkeypatch.setattr(_simplify_onnxsim, "_SECONDS", 0.001)
    model = small_models()["convolutions"]
    result = run_pass(Simplify(engine="onnxsim"), model)
    assert not result.modified
    assert "time limit" in reasons(result)["onnxsim"]


# Real models.


def test_resnets_lose_nothing_but_their_duplicates(shared: Path) -> None:
    from optimc.frontends.onnx_normal import finish, read

    graph = read(shared / "models" / "resnet20.onnx")
    finish(graph)
    model = OnnxModel(graph)
    result = simplified(model)
    assert isinstance(result.model, OnnxModel)
    assert result.model.stats.nodes <= model.stats.nodes
    assert result.model.stats.parameters <= model.stats.parameters


def test_opsets_and_functions_of_other_domains_are_left_alone() -> None:
    graph = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = as_model(helper.make_model(graph, opset_imports=domains, ir_version=10))
    result = simplified(model)
    assert not result.modified
    assert onnx_ir.to_proto(result.model.ir).opset_import[1].domain == "com.microsoft"  # type: ignore[attr-defined]
