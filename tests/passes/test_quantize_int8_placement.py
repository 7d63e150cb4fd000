"""What `quantize_int8` writes: scales, zero points, axes, what stays float and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimc.core.errors import PreconditionError
from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.core.passes import PassResult
from optimc.core.targets import QuantizationSpec
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import quantizable, run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder, quantized
from optimc.testing.runs import run_model, seeded_feeds

ORT = onnxruntime_cpu({"avx512_vnni"})
OV = openvino_cpu({"avx512_vnni"})
TRT = tensorrt()
MODELS = quantizable.quantizable_models()
EVERYWHERE = pytest.mark.parametrize("spec", [ORT, OV, TRT], ids=["ort", "ov", "trt"])
EVERY_MODEL = pytest.mark.parametrize("name", sorted(MODELS))


def quantize(model: OnnxModel, spec: QuantizationSpec = ORT, **options: Any) -> PassResult:
    samples = options.pop("samples", 64)
    return run_pass(
        QuantizeInt8(**options),
        model,
        spec=target_spec(spec),
        calibration=random_calibration(model, samples),
    )


def graph_of(result: PassResult) -> ir.Graph:
    assert isinstance(result.model, OnnxModel)
    return result.model.ir.graph


def array(value: ir.Value | None) -> np.ndarray[Any, Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def nodes(graph: ir.Graph, op_type: str) -> list[ir.Node]:
    return [node for node in graph if node.op_type == op_type]


def dequantized(node: ir.Node, index: int) -> ir.Node:
    """The DQ that feeds an input of the node."""
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    assert producer is not None
    assert producer.op_type == "DequantizeLinear"
    return producer


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.where: refusal.reason for refusal in result.refusals}


@EVERYWHERE
@EVERY_MODEL
def test_scales_are_normal_and_zero_points_of_their_type(name: str, spec: QuantizationSpec) -> None:
    graph = graph_of(quantize(MODELS[name], spec))
    for node in [*nodes(graph, "QuantizeLinear"), *nodes(graph, "DequantizeLinear")]:
        scale = array(node.inputs[1])
        assert scale.dtype == np.float32
        assert (scale >= np.finfo(np.float32).tiny).all()
        assert np.isfinite(scale).all()
        zero = array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.int32)
        if scale.ndim or spec.activation_symmetric:
            assert not zero.any()
        assert zero.dtype == (np.int32 if len(node.inputs) == 2 else spec_dtype(node, spec))


def spec_dtype(node: ir.Node, spec: QuantizationSpec) -> Any:
    source = node.inputs[0]
    assert source is not None
    if source.const_value is not None and array(node.inputs[1]).ndim:
        return np.int8  # a weight
    dtypes = {np.dtype(spec.activation_dtype), np.dtype(np.int8)}
    found = array(node.inputs[2]).dtype
    return found if found in dtypes else None


@EVERYWHERE
def test_weights_have_one_scale_for_each_output_channel(spec: QuantizationSpec) -> None:
    model = MODELS["transposed"]
    original = {n.name: n for n in model.ir.graph}
    for node in graph_of(quantize(model, spec)):
        if node.op_type not in ("Conv", "ConvTranspose") or node.op_type not in spec.rules:
            continue
        axis = 0 if node.op_type == "Conv" else 1
        dq = dequantized(node, 1)
        integers, scale = array(dq.inputs[0]), array(dq.inputs[1])
        weight = array(original[node.name].inputs[1])
        assert dq.attributes["axis"].as_int() == axis
        others = tuple(i for i in range(weight.ndim) if i != axis)
        np.testing.assert_allclose(scale, np.abs(weight).max(others) / 127, rtol=1e-6)
        assert np.abs(integers).max() == 127
        assert integers.min() >= -127
        shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        assert (np.abs(integers * shaped - weight) <= shaped * 0.5001).all()


def test_the_axis_of_a_gemm_follows_transb() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 32])
    h = b.node("Gemm", x, b.weight(32, 16), name="plain")
    b.node("Gemm", h, b.weight(24, 16), b.weight(24), transB=1, name="transposed", to="y")
    b.output("y", ["batch", 24])
    by_name = {node.name: node for node in graph_of(quantize(b.model()))}
    for name, axis, channels in (("plain", 1, 16), ("transposed", 0, 24)):
        dq = dequantized(by_name[name], 1)
        assert dq.attributes["axis"].as_int() == axis
        assert array(dq.inputs[1]).shape == (channels,)


def test_factors_of_a_gemm_go_into_weight_and_bias() -> None:
    (gemm,) = nodes(graph_of(quantize(MODELS["residual"])), "Gemm")
    assert gemm.attributes["alpha"].as_float() == 1.0
    assert gemm.attributes["beta"].as_float() == 1.0
    (original,) = nodes(MODELS["residual"].ir.graph, "Gemm")
    bias = dequantized(gemm, 2)
    np.testing.assert_allclose(
        array(bias.inputs[0]) * array(bias.inputs[1]),
        2.0 * array(original.inputs[2]),
        atol=float(array(bias.inputs[1]).max()),
    )


@pytest.mark.parametrize("name", ["residual", "depthwise", "uneven channels"])
def test_an_integer_bias_has_the_scale_of_the_accumulator(name: str) -> None:
    found = 0
    for node in nodes(graph_of(quantize(MODELS[name])), "Conv"):
        if len(node.inputs) < 3:
            continue
        bias, weight, source = (dequantized(node, index) for index in (2, 1, 0))
        expected = array(source.inputs[1]) * array(weight.inputs[1])
        np.testing.assert_array_equal(array(bias.inputs[1]), expected)
        assert array(bias.inputs[0]).dtype == np.int32
        assert np.abs(array(bias.inputs[0]).astype(np.int64)).max() <= 2**30 + 1
        found += 1
    assert found


def test_a_float_bias_stays_as_it_is() -> None:
    model = MODELS["depthwise"]
    original = {node.name: node for node in model.ir.graph}
    for node in nodes(graph_of(quantize(model, TRT)), "Conv"):
        if len(node.inputs) > 2:
            np.testing.assert_array_equal(
                array(node.inputs[2]), array(original[node.name].inputs[2])
            )


def test_without_vnni_weights_have_seven_bits() -> None:
    graph = graph_of(quantize(MODELS["residual"], onnxruntime_cpu({"avx2"})))
    for node in nodes(graph, "Conv"):
        assert np.abs(array(dequantized(node, 1).inputs[0])).max() == 64


def test_moved_data_keeps_its_scale() -> None:
    graph = graph_of(quantize(MODELS["option a"]))
    moved = nodes(graph, "Slice") + nodes(graph, "Pad") + nodes(graph, "MaxPool")
    assert len(moved) == 2
    for node in moved:
        (q_or_dq,) = node.outputs[0].consumers()
        source = node.inputs[0]
        assert source is not None
        producer = source.producer()
        assert producer is not None
        for index in (1, 2):
            before, after = array(producer.inputs[index]), array(q_or_dq.inputs[index])
            np.testing.assert_array_equal(before, after)


def test_padding_fills_with_the_zero_point() -> None:
    (pad,) = nodes(graph_of(quantize(MODELS["option a"])), "Pad")
    assert pad.outputs[0].dtype == ir.DataType.UINT8
    (dq,) = pad.outputs[0].consumers()
    assert array(pad.inputs[2]) == array(dq.inputs[2])


def test_a_pad_value_widens_the_range() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 6, 6])
    h = b.node("Relu", quantizable.conv(b, x, 2, 4))
    h = b.node("Pad", h, b.constant([0, 0, 1, 1, 0, 0, 1, 1]), b.constant(-9.0))
    b.node("Relu", quantizable.conv(b, h, 4, 4), to="y")
    b.output("y", ["batch", 4, 4, 4])
    (pad,) = nodes(graph_of(quantize(b.model())), "Pad")
    (dq,) = pad.outputs[0].consumers()
    scale, zero = array(dq.inputs[1]), array(dq.inputs[2])
    assert (float(array(pad.inputs[2])) - float(zero)) * scale == pytest.approx(-9.0, rel=0.02)


def test_activations_are_taken_into_the_kernel_before_them() -> None:
    graph = graph_of(quantize(MODELS["depthwise"]))
    for node in nodes(graph, "Clip"):
        source = node.inputs[0]
        assert source is not None
        producer = source.producer()
        assert producer is not None
        assert producer.op_type == "Conv"
        assert [consumer.op_type for consumer in node.outputs[0].consumers()] == ["QuantizeLinear"]


@pytest.mark.parametrize("name", ["residual", "middle outputs", "depthwise"])
def test_on_a_cpu_the_q_is_the_only_reader_of_a_convolution(name: str) -> None:
    for node in nodes(graph_of(quantize(MODELS[name])), "Conv"):
        value = node.outputs[0]
        while value.consumers()[0].op_type in ("Relu", "Clip"):
            value = value.consumers()[0].outputs[0]
        assert [consumer.op_type for consumer in value.consumers()] == ["QuantizeLinear"]
        assert not value.is_graph_output()


def test_on_tensorrt_only_the_shortcut_of_an_add_is_quantized() -> None:
    (add,) = nodes(graph_of(quantize(MODELS["residual"], TRT)), "Add")
    producers = [value.producer().op_type for value in add.inputs]  # type: ignore[union-attr]
    assert producers == ["Conv", "DequantizeLinear"]


def test_a_mean_over_space_becomes_a_pool() -> None:
    for keepdims, name in ((0, "residual"), (1, "option a")):
        graph = graph_of(quantize(MODELS[name]))
        types = Counter(node.op_type for node in graph)
        assert types["ReduceMean"] == 0
        assert types["GlobalAveragePool"] == 1
        assert types["Flatten"] == 1 - keepdims
        assert "ReduceMean" in {n.op_type for n in graph_of(quantize(MODELS[name], TRT))}


def test_pools_that_average_their_padding_get_a_pad_for_openvino() -> None:
    model = MODELS["branches and pools"]
    (pool,) = nodes(graph_of(quantize(model, OV)), "AveragePool")
    assert not any(pool.attributes["pads"].as_ints())
    (pad,) = nodes(graph_of(quantize(model, OV)), "Pad")
    assert array(pad.inputs[2]) != 0
    (pool,) = nodes(graph_of(quantize(model, ORT)), "AveragePool")
    assert any(pool.attributes["pads"].as_ints())


def test_transposed_convolutions_get_symmetric_inputs_for_openvino() -> None:
    for node in nodes(graph_of(quantize(MODELS["transposed"], OV)), "ConvTranspose"):
        assert array(dequantized(node, 0).inputs[2]) == 0


def test_constants_are_stored_as_integers() -> None:
    graph = graph_of(quantize(MODELS["constants"]))
    for op_type in ("Mul", "Add"):
        for node in nodes(graph, op_type):
            kinds = [dequantized(node, index).inputs[0] for index in (0, 1)]
            assert sorted(v.const_value is not None for v in kinds if v) == [False, True]
    floats = {v.name for v in graph.initializers.values() if v.dtype == ir.DataType.FLOAT}
    assert all(array(graph.initializers[name]).ndim <= 1 for name in floats if name)


def test_one_weight_in_two_operators_is_stored_once() -> None:
    graph = graph_of(quantize(MODELS["middle outputs"]))
    stored = [v for v in graph.initializers.values() if array(v).shape == (4, 4, 3, 3)]
    assert len(stored) == 1
    assert len(stored[0].consumers()) == 1


def test_what_holds_infinities_stays_float() -> None:
    result = quantize(MODELS["matmul"])
    softmax = nodes(graph_of(result), "Softmax")
    assert len(softmax) == 1
    assert "infinities" in reasons(result)["add_6"]
    assert "no INT8 rule" in reasons(result)["softmax_7"]


def test_values_with_infinities_on_the_data_stay_float() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 6, 6])
    endless = b.node("Log", b.node("Relu", x))
    h = quantizable.conv(b, endless, 2, 4, name="fed_infinities")
    b.node("Relu", h, to="z")
    b.node("Relu", quantizable.conv(b, x, 2, 4, name="fine"), to="y")
    b.output("y", ["batch", 4, 4, 4])
    b.output("z", ["batch", 4, 4, 4])
    result = quantize(b.model())
    assert "holds infinities or NaNs" in reasons(result)["fed_infinities"]
    assert "fine" in {rewrite.where for rewrite in result.rewrites}


@pytest.mark.parametrize(
    ("model", "where", "reason"),
    [
        ("weight", "conv", "its weight is not a constant"),
        ("bias", "conv", "its bias is not a constant"),
        ("nan", "conv", "its weight holds infinities or NaNs"),
        ("small", "gemm", "its weight has a side of 8; under 16 INT8 does not pay"),
        ("alone", "add", "does not come from an INT8 operator"),
    ],
)
def test_refusals_say_why(model: str, where: str, reason: str) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 6, 6])
    good = b.node("Relu", quantizable.conv(b, x, 2, 4, name="good"))
    weight: Callable[..., str] = b.weight
    if model == "weight":
        b.node("Conv", good, b.node("Abs", weight(3, 4, 1, 1)), name=where, to="y")
    elif model == "bias":
        b.node("Conv", good, weight(3, 4, 1, 1), b.node("Abs", weight(3)), name=where, to="y")
    elif model == "nan":
        array = np.full((3, 4, 1, 1), np.nan, np.float32)
        b.node("Conv", good, b.constant(array), name=where, to="y")
    elif model == "alone":
        b.node("Add", good, b.node("Abs", good), name=where, to="y")
    else:
        flat = b.node("Flatten", good, axis=1)
        b.node("Gemm", flat, weight(64, 8), weight(8), name=where, to="y")
    b.output("y", ["batch", *[None] * (1 if where == "gemm" else 3)])  # type: ignore[list-item]
    assert reason in reasons(quantize(b.model()))[where]


def test_a_bias_that_differs_from_row_to_row_is_refused() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 16])
    b.node("Gemm", x, b.weight(16, 16), b.weight(3, 16), name="gemm", to="y")
    b.output("y", ["batch", 16])
    with pytest.raises(PreconditionError, match="its bias differs from row to row"):
        quantize(b.model(), samples=3)


@pytest.mark.parametrize("pattern", ["conv_3", "conv_*", "Conv", "v8", "relu_4"])
def test_keep_float_takes_names_types_and_source_names(pattern: str) -> None:
    model = MODELS["residual"]
    named = {n.name for n in model.ir.graph if n.op_type == "Conv"}
    result = quantize(model, keep_float=[pattern])
    kept = {where for where, why in reasons(result).items() if "kept in float by" in why}
    assert kept
    assert kept <= named
    if pattern in ("Conv", "conv_*"):
        assert kept == named
        assert not nodes(graph_of(result), "Add")[0].inputs[0].producer().op_type.startswith("De")  # type: ignore[union-attr]


def test_keep_float_must_name_something() -> None:
    with pytest.raises(PreconditionError, match="`convolution_2` names no node"):
        quantize(MODELS["residual"], keep_float=["convolution_2"])


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(PreconditionError, match="quantized already") as caught:
        quantize(quantized())
    assert "float model" in (caught.value.fix or "")


def test_a_model_without_anything_to_quantize_is_an_error() -> None:
    b = GraphBuilder()
    b.node("Tanh", b.node("MatMul", b.input("x", ["n", 4]), b.weight(4, 4)), to="y")
    b.output("y", ["n", 4])
    with pytest.raises(PreconditionError, match="nothing in this model can be quantized") as caught:
        quantize(b.model())
    assert "under 16 INT8 does not pay" in caught.value.what


def test_an_old_opset_is_an_error() -> None:
    b = GraphBuilder(opset=12)
    b.node("MatMul", b.input("x", ["n", 16]), b.weight(16, 16), to="y")
    b.output("y", ["n", 16])
    with pytest.raises(PreconditionError, match="opset 12, quantization needs 13"):
        quantize(b.model())


def test_every_float_operator_has_its_reason() -> None:
    silent = {"Relu", "Clip", "Constant"}
    for name, model in MODELS.items():
        result = quantize(model)
        told = {rewrite.where for rewrite in result.rewrites} | set(reasons(result))
        missing = {n.name for n in model.ir.graph if n.op_type not in silent} - told
        assert not missing, f"{name}: nothing is said of {missing}"


def test_outputs_and_inner_values_keep_their_source_names() -> None:
    result = quantize(MODELS["middle outputs"])
    graph = graph_of(result)
    assert [v.meta[SOURCE_KEY] for v in graph.outputs] == ["first", "last"]
    by_source = Counter(v.meta.get(SOURCE_KEY) for n in graph for v in n.outputs)
    original = {v.name for n in MODELS["middle outputs"].ir.graph for v in n.outputs}
    assert original <= set(by_source)
    integers = [v for n in graph for v in n.outputs if v.dtype == ir.DataType.UINT8]
    assert integers
    assert not any(SOURCE_KEY in v.meta for v in integers)


def test_no_dead_nodes_or_weights_stay_behind() -> None:
    for model in MODELS.values():
        graph = graph_of(quantize(model))
        for node in graph:
            assert any(v.uses() or v.is_graph_output() for v in node.outputs), node
        assert all(value.uses() for value in graph.initializers.values())


def test_better_ranges_give_less_noise() -> None:
    """Outliers in the data: clipping them pays."""
    model = MODELS["residual"]
    feeds = seeded_feeds(model, sizes=(64,))
    (expected,) = run_model(model, feeds)

    def noise(**options: Any) -> float:
        result = quantize(model, **options)
        assert isinstance(result.model, OnnxModel)
        (found,) = run_model(result.model, feeds)
        return float(np.square(found["logits"] - expected["logits"]).mean())

    assert noise(ranges="mse") < noise(ranges="percentile", percentile=95.0)


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 4, 4])
    h = b.node("Conv", x, b.weight(3, 2, 1, 1), to="x_quantized", name="x_dequantized")
    b.node("Conv", h, b.constant(b.rng.normal(size=(3, 3, 1, 1)), "x_scale"), to="y")
    b.output("y", ["batch", 3, 4, 4])
    graph = graph_of(quantize(b.model()))
    names = [v.name for n in graph for v in n.outputs] + list(graph.initializers)
    assert len(names) == len(set(names))
    labels = [node.name for node in graph]
    assert len(labels) == len(set(labels))
