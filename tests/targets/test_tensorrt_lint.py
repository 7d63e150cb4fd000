"""What the lint for TensorRT finds: planted faults, each by its rule, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu, tensorrt
from optimc.targets.tensorrt_lint import RULES, lint
from optimc.targets.tensorrt_lint_quantized import QUANTIZED_RULES
from optimc.targets.tensorrt_support import PARSERS
from optimc.testing import quantizable, run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.runs import as_model

Plant = Callable[[], OnnxModel]


def one(
    op_type: str, *shape: int, dtype: str = "float32", out: str = "float32", **attrs: object
) -> Plant:
    """A model of one node on one input."""

    def build() -> OnnxModel:
        b = GraphBuilder(opset=20)
        x = b.input("x", shape or (1, 4, 8, 8), dtype)
        b.node(op_type, x, to="y", **attrs)
        b.output("y", shape or (1, 4, 8, 8), out)
        return b.model()

    return build


def unique() -> OnnxModel:
    return one("Unique", 8)()


def contrib() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (1, 4))
    b.node("FusedGelu", x, to="y", domain="com.microsoft")
    b.output("y", (1, 4))
    return as_model(b.proto())


def new_opset() -> OnnxModel:
    b = GraphBuilder(opset=24)
    b.node("Relu", b.input("x", (1, 4)), to="y")
    b.output("y", (1, 4))
    return b.model()


def new_operator() -> OnnxModel:
    b = GraphBuilder(opset=23)
    x = b.input("x", (1, 4, 8))
    b.node("RMSNormalization", x, b.weight(8), to="y")
    b.output("y", (1, 4, 8))
    return b.model()


def whole_products() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (4, 8), "int64")
    b.node("MatMul", x, b.constant(np.ones((8, 8), np.int64)), to="y")
    b.output("y", (4, 8), "int64")
    return b.model()


def bytes_inside() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (1, 4), "uint8")
    same = b.node("Reshape", x, b.constant([4]))
    b.node("Reshape", same, b.constant([1, 4]), to="y")
    b.output("y", (1, 4), "uint8")
    return b.model()


def moving_axes() -> OnnxModel:
    b = GraphBuilder()
    x, axes = b.input("x", (1, 4, 8)), b.input("axes", (1,), "int64")
    b.node("ReduceMean", x, axes, to="y")
    b.output("y", (1, 1, 8))
    return b.model()


def nonzero() -> OnnxModel:
    b = GraphBuilder()
    b.node("NonZero", b.input("x", (4, 4)), to="y")
    b.output("y", (2, "found"), "int64")
    return b.model()


def layer_mean() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (2, 8))
    b.nodes("LayerNormalization", x, b.weight(8), b.weight(8), to=["n", "mean"])
    b.node("Add", "n", "mean", to="y")
    b.output("y", (2, 8))
    return b.model()


def cubic() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (1, 1, 4, 4))
    b.node("Resize", x, "", b.constant([1.0, 1.0, 2.0, 2.0]), mode="cubic", to="y")
    b.output("y", (1, 1, 8, 8))
    return b.model()


def large_topk() -> OnnxModel:
    b = GraphBuilder()
    b.nodes("TopK", b.input("x", (1, 5000)), b.constant([4000]), to=["y", "at"])
    b.output("y", (1, 4000))
    return b.model()


def adding_scatter() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (4, 4))
    b.node("ScatterND", x, b.constant([[0]]), b.weight(1, 4), reduction="add", to="y")
    b.output("y", (4, 4))
    return b.model()


def pool_indices() -> OnnxModel:
    b = GraphBuilder()
    b.nodes("MaxPool", b.input("x", (1, 1, 4, 4)), to=["y", "at"], kernel_shape=[2, 2])
    b.output("y", (1, 1, 3, 3))
    b.output("at", (1, 1, 3, 3), "int64")
    return b.model()


def qdq(
    zero: int = 0,
    dtype: str = "int8",
    scale: float | list[float] = 0.1,
    opset: int = 20,
    scale_dtype: str = "float32",
    read: str | None = None,
) -> Plant:
    """A Q and a DQ of an activation."""

    def build() -> OnnxModel:
        b = GraphBuilder(opset=opset)
        x = b.input("x", (1, 4), scale_dtype)
        steps = b.constant(np.array(scale, scale_dtype))
        zeros = b.constant(np.full(np.shape(scale), zero, dtype))
        quantized = b.node("QuantizeLinear", x, steps, zeros)
        b.node("DequantizeLinear", quantized, steps, zeros, to="y")
        b.output("y", (1, 4), scale_dtype)
        if read:
            b.node(read, quantized, to="z")
            b.output("z", (1, 4), dtype)
        return b.model()

    return build


def moving_scale() -> OnnxModel:
    b = GraphBuilder()
    x, scale = b.input("x", (1, 4)), b.input("scale", ())
    zero = b.constant(np.array(0, np.int8))
    b.node("DequantizeLinear", b.node("QuantizeLinear", x, scale, zero), scale, zero, to="y")
    b.output("y", (1, 4))
    return b.model()


def product(
    weight: tuple[int, int] = (32, 32),
    axis: int = 1,
    both: bool = True,
    bias: bool = False,
    rows: int = 8,
) -> Plant:
    """A MatMul or, with an int32 bias, a Gemm, quantized by hand."""

    def build() -> OnnxModel:
        b = GraphBuilder()
        x = b.input("x", (rows, weight[0]))
        step, zero = b.constant(0.1), b.constant(np.array(0, np.int8))
        if both:
            x = b.node("DequantizeLinear", b.node("QuantizeLinear", x, step, zero), step, zero)
        integers = b.constant(np.ones(weight, np.int8))
        scales = b.constant(np.full(weight[axis], 0.1, np.float32))
        w = b.node("DequantizeLinear", integers, scales, axis=axis)
        if bias:
            whole = b.constant(np.ones(weight[1], np.int32))
            c = b.node("DequantizeLinear", whole, scales, axis=0)
            b.node("Gemm", x, w, c, to="y")
        else:
            b.node("MatMul", x, w, to="y")
        b.output("y", (rows, weight[1]))
        return b.model()

    return build


def convolution(axis: int = 0, add: bool = False) -> Plant:
    """A quantized Conv; with `add` a Q/DQ between it and a residual Add."""

    def build() -> OnnxModel:
        b = GraphBuilder()
        x = b.input("x", (1, 4, 8, 8))
        step, zero = b.constant(0.1), b.constant(np.array(0, np.int8))
        q = b.node("DequantizeLinear", b.node("QuantizeLinear", x, step, zero), step, zero)
        scales = b.constant(np.full(4, 0.1, np.float32))
        w = b.node(
            "DequantizeLinear", b.constant(np.ones((4, 4, 1, 1), np.int8)), scales, axis=axis
        )
        y = b.node("Conv", q, w, to="conv")
        if add:
            y = b.node("DequantizeLinear", b.node("QuantizeLinear", y, step, zero), step, zero)
            y = b.node("Add", y, q, to="sum")
        b.output(y, (1, 4, 8, 8))
        return b.model()

    return build


def shape_as_input() -> OnnxModel:
    b = GraphBuilder()
    x, sizes = b.input("x", (4, 4)), b.input("sizes", (1,), "int64")
    shape = b.node("Concat", sizes, b.constant([2]), axis=0)
    b.node("Reshape", x, shape, to="y")
    b.output("y", ("rows", 2))
    return b.model()


def unknown_cast() -> OnnxModel:
    b = GraphBuilder(opset=20)
    small = b.cast(b.input("x", (4,)), "uint16")
    b.output(b.cast(small, "float32"), (4,))
    return b.model()


def unknown_rank() -> OnnxModel:
    b = GraphBuilder()
    b.node("Relu", b.input("x", None), to="y")
    b.output("y", None)
    return as_model(b.proto())


def loop_of_unknown_length() -> OnnxModel:
    import onnx.helper as make
    from onnx import TensorProto

    one, value = TensorProto.FLOAT, make.make_tensor_value_info
    body = make.make_graph(
        [
            make.make_node("Identity", ["c"], ["go"]),
            make.make_node("Identity", ["v"], ["same"]),
            make.make_node("Identity", ["v"], ["scanned"]),
        ],
        "body",
        [value("i", 7, []), value("c", TensorProto.BOOL, []), value("v", one, [2])],
        [value("go", TensorProto.BOOL, []), value("same", one, [2]), value("scanned", one, [2])],
    )
    b = GraphBuilder()
    times, x = b.input("times", (), "int64"), b.input("x", (2,))
    b.nodes("Loop", times, b.constant(np.array(True)), x, to=["last", "all"], body=body)
    b.output("last", (2,))
    b.output("all", ("times", 2))
    return b.model()


def branches_of_two_ranks() -> OnnxModel:
    import onnx.helper as make

    def branch(name: str, shape: list[int]) -> object:
        constant = make.make_tensor("", 1, shape, np.zeros(shape).ravel())
        node = make.make_node("Constant", [], [name], value=constant)
        return make.make_graph([node], name, [], [make.make_tensor_value_info(name, 1, shape)])

    b = GraphBuilder()
    which = b.input("which", (), "bool")
    branches = {"then_branch": branch("yes", [2]), "else_branch": branch("no", [1, 2])}
    b.node("If", which, to="y", **branches)
    b.output("y", None)
    return as_model(b.proto())


def batch_first() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (2, 3, 4))
    b.nodes("GRU", x, b.weight(1, 15, 4), b.weight(1, 15, 5), to=["y"], hidden_size=5, layout=1)
    b.output("y", (2, 3, 1, 5))
    return b.model()


def training() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", (2, 3))
    b.node("Dropout", x, b.constant(0.5), b.constant(np.array(True)), to="y")
    b.output("y", (2, 3))
    return b.model()


def volumes() -> OnnxModel:
    b = GraphBuilder(opset=20)
    x, grid = b.input("x", (1, 2, 4, 4, 4)), b.input("grid", (1, 3, 3, 3, 3))
    b.node("GridSample", x, grid, to="y")
    b.output("y", (1, 2, 3, 3, 3))
    return b.model()


PLANTED: Mapping[str, tuple[str, Plant]] = {
    "an operator without importer": ("operator", unique),
    "a contrib operator": ("domain", contrib),
    "an opset that is too new": ("opset", new_opset),
    "an operator that is too new": ("operator", new_operator),
    "complex types": ("dtype", one("Abs", 4, dtype="uint16", out="uint16")),
    "a shape from an input's values": ("shape_input", shape_as_input),
    "a cast to a type that is not there": ("dtype", unknown_cast),
    "doubles": ("double", one("Relu", 4, dtype="float64", out="float64")),
    "a product of int64": ("floats_only", whole_products),
    "uint8 inside": ("uint8_inside", bytes_inside),
    "axes that are an input": ("constant_input", moving_axes),
    "an output of unknown size": ("data_dependent", nonzero),
    "a second output of LayerNormalization": ("normalization", layer_mean),
    "indices of a MaxPool": ("pooling", pool_indices),
    "cubic interpolation": ("resize", cubic),
    "a large TopK": ("topk", large_topk),
    "a scatter that adds": ("scatter", adding_scatter),
    "random numbers": ("random", one("RandomNormalLike", 4, seed=1.0)),
    "an input of unknown rank": ("rank", unknown_rank),
    "a loop whose length is an input": ("loop", loop_of_unknown_length),
    "branches of two ranks": ("branches", branches_of_two_ranks),
    "a recurrent layer with the batch first": ("recurrent", batch_first),
    "a dropout that trains": ("training", training),
    "a grid over volumes": ("grid", volumes),
    "a zero point": ("zero_point", qdq(zero=3)),
    "uint8 zero points": ("unsigned", qdq(dtype="uint8")),
    "a negative scale": ("scale", qdq(scale=-0.1)),
    "a scale that is an input": ("scale", moving_scale),
    "scales in float16 at opset 18": ("half_scale", qdq(scale_dtype="float16", opset=18)),
    "scales in float16 at opset 23": ("half_scale", qdq(scale_dtype="float16", opset=23)),
    "integers that an operator reads": ("integers_read", qdq(read="Identity")),
    "an activation by channel": ("per_channel_activation", qdq(scale=[0.1, 0.2, 0.3, 0.4])),
    "a weight along the wrong axis": ("weight_axis", convolution(axis=1)),
    "a bias in int32": ("int32_bias", product(bias=True)),
    "half a quantized product": ("half_quantized", product(both=False)),
    "a tiny product": ("tiny_matmul", product(weight=(32, 8))),
    "a product of one row": ("tiny_matmul", product(rows=1)),
    "a Q/DQ before a residual Add": ("before_add", convolution(add=True)),
}


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_planted_faults_are_found_by_their_rule(name: str) -> None:
    rule, plant = PLANTED[name]
    findings = lint(plant())
    assert rule in {finding.rule for finding in findings}
    for finding in findings:
        assert finding.node
        assert finding.reason
        assert finding.fix


def test_every_rule_has_a_planted_fault() -> None:
    of_model = {"opset", "rank", "shape_input"}
    rules = {rule.name for rule in (*RULES, *QUANTIZED_RULES)} | of_model
    assert rules == {rule for rule, _ in PLANTED.values()}
    assert len(PLANTED) >= 20


@pytest.mark.parametrize("plant", [product(), convolution(), qdq(), qdq(scale_dtype="float16")])
def test_the_same_graphs_without_the_fault_are_clean(plant: Plant) -> None:
    assert lint(plant()) == ()


@pytest.mark.parametrize("name", sorted(quantizable.quantizable_models()))
def test_what_our_own_placement_leaves_is_clean(name: str) -> None:
    model = quantizable.quantizable_models()[name]
    result = run_pass(
        QuantizeInt8(),
        model,
        spec=target_spec(tensorrt()),
        calibration=random_calibration(model),
    )
    assert isinstance(result.model, OnnxModel)
    assert [str(finding) for finding in lint(result.model)] == []


def test_a_placement_for_another_runtime_is_not() -> None:
    model = quantizable.residual()
    spec = target_spec(onnxruntime_cpu({"avx512_vnni"}))
    result = run_pass(QuantizeInt8(), model, spec=spec, calibration=random_calibration(model))
    assert isinstance(result.model, OnnxModel)
    assert {"unsigned", "int32_bias"} <= {finding.rule for finding in lint(result.model)}


def test_newer_releases_take_more() -> None:
    oldest, *_, newest = PARSERS
    assert lint(new_opset(), oldest)
    assert lint(new_opset(), newest) == ()
    assert lint(new_operator(), newest) == ()


@pytest.mark.parametrize("name", sorted(small_models()))
def test_ordinary_graphs_have_no_errors_but_quantized_ones_for_other_runtimes(name: str) -> None:
    errors = [f for f in lint(small_models()[name]) if f.severity == "error"]
    assert not errors or name == "quantized"


@pytest.mark.parametrize("rows", [1, 8])
def test_our_placement_leaves_products_of_one_row_in_float(rows: int) -> None:
    b = GraphBuilder()
    b.node("MatMul", b.input("x", (rows, 32)), b.weight(32, 32), to="y")
    b.output("y", (rows, 32))
    model = b.model()
    spec, data = target_spec(tensorrt()), random_calibration(model)
    if rows == 1:
        with pytest.raises(PreconditionError, match="has 1 row; under 2 INT8 does not pay"):
            run_pass(QuantizeInt8(), model, spec=spec, calibration=data)
        return
    placed = run_pass(QuantizeInt8(), model, spec=spec, calibration=data).model
    assert isinstance(placed, OnnxModel)
    assert lint(placed) == ()
    assert any(node.op_type == "QuantizeLinear" for node in placed.ir.graph)


def test_ids_are_no_shapes() -> None:
    b = GraphBuilder()
    ids = b.input("ids", (1, 4), "int64")
    b.node("Gather", b.weight(10, 8), ids, to="y")
    b.output("y", (1, 4, 8))
    assert lint(b.model()) == ()
