"""`quantize_dynamic`: the contract, what is placed for each target, and what ONNX Runtime fuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import PassResult
from optimc.core.targets import QuantizationSpec, TargetSpec
from optimc.passes.quantize_dynamic import QuantizeDynamic
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import PassContract, run_pass, seeded_feeds
from optimc.testing.calibrated import target_spec
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.quantizable import quantizable_models
from optimc.testing.runs import run_model

ORT = onnxruntime_cpu({"avx512_vnni"})
OPENVINO = openvino_cpu({"avx512_vnni"})


def encoder(rows: int = 512) -> OnnxModel:
    """An embedding, three products of one activation, a Gemm with factors, and a 3-D weight."""
    b = GraphBuilder()
    ids = b.input("ids", ["batch", 7], "int64")
    table = b.constant(b.rng.normal(0, 1, (rows, 32)) * b.rng.uniform(0.1, 9, (rows, 1)), "table")
    wrapped = b.node("Mod", ids, b.constant(rows))
    h = b.node("Gather", table, wrapped, name="embed")
    query = b.node("Add", b.node("MatMul", h, b.weight(32, 32), name="q"), b.weight(32))
    key = b.node("MatMul", h, b.weight(32, 32), name="k")
    value = b.node("MatMul", h, b.weight(32, 32), name="v")
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1]), name="scores")
    h = b.node("MatMul", b.node("Softmax", b.node("Mul", scores, b.constant(0.02))), value)
    b.node("MatMul", h, b.weight(1, 32, 16, scale=0.3), name="stacked", to="tokens")
    h = b.node("ReduceMean", h, b.constant([1]), keepdims=0)
    shared = b.weight(24, 32)
    one = b.node("Gemm", h, shared, b.weight(24), transB=1, alpha=0.5, beta=3.0, name="gemm")
    two = b.node("Gemm", h, shared, transB=1, name="plain")
    b.node("Concat", one, two, axis=1, to="features")
    b.output("tokens", ["batch", 7, 16])
    b.output("features", ["batch", 48])
    return b.model()


def quantized(
    model: OnnxModel, spec: QuantizationSpec = ORT, limit: int | None = None, **options: Any
) -> PassResult:
    return run_pass(QuantizeDynamic(**options), model, spec=target_spec(spec), limit=limit)


def graph_of(result: PassResult, folder: Path) -> onnx.GraphProto:
    assert isinstance(result.model, OnnxModel)
    result.model.write_onnx(folder / "placed.onnx")
    return onnx.load(folder / "placed.onnx").graph


def refusals(result: PassResult) -> dict[str, str]:
    return {refusal.where: refusal.reason for refusal in result.refusals}


class DynamicContract(PassContract):
    __test__ = False

    def models(self) -> Mapping[str, OnnxModel]:
        some = {**quantizable_models(), **small_models()}
        return {"encoder": encoder()} | {
            name: some[name] for name in ("matmul", "residual", "shared weights", "nothing to do")
        }


class TestWithIntegerProducts(DynamicContract):
    __test__ = True
    passes = (QuantizeDynamic(),)

    def spec(self) -> TargetSpec:
        return target_spec(ORT)


class TestWithWeightsAlone(DynamicContract):
    __test__ = True
    passes = (QuantizeDynamic(),)

    def spec(self) -> TargetSpec:
        return target_spec(OPENVINO)


def test_one_scale_for_a_weight_holds_on_even_ones() -> None:
    model = quantizable_models()["matmul"]
    result = quantized(model, per_channel=False)
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model)
    for one, two in zip(run_model(model, feeds), run_model(result.model, feeds), strict=True):
        error = np.sum((one["output"] - two["output"]) ** 2)
        assert 10 * np.log10(np.sum(one["output"] ** 2) / error) > 20


def test_products_become_integer_and_share_what_is_quantized(tmp_path: Path) -> None:
    result = quantized(encoder())
    graph = graph_of(result, tmp_path)
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["MatMulInteger"] == 5
    # One for q, k and v together, one for both Gemms.
    assert kinds["DynamicQuantizeLinear"] == 2
    assert kinds["Gemm"] == 0
    assert [r.where for r in result.rewrites] == ["embed", "q", "k", "v", "gemm", "plain"]
    float_elements = sum(
        np.prod(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT
    )
    assert float_elements < 1600  # the stacked weight, biases and scales


def test_gemm_keeps_its_factors() -> None:
    model = encoder()
    result = quantized(model, keep_float=["q", "k", "v", "embed"])
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model)
    for one, two in zip(run_model(model, feeds), run_model(result.model, feeds), strict=True):
        np.testing.assert_array_equal(one["tokens"], two["tokens"])
        scale = np.abs(one["features"]).max()
        assert 0 < np.abs(one["features"] - two["features"]).max() < 0.03 * scale


def test_embeddings_have_a_scale_for_each_row(tmp_path: Path) -> None:
    model = encoder()
    result = quantized(model, keep_float=["MatMul", "Gemm"])
    assert isinstance(result.model, OnnxModel)
    feeds = seeded_feeds(model)
    for one, two in zip(run_model(model, feeds), run_model(result.model, feeds), strict=True):
        assert np.abs(one["tokens"] - two["tokens"]).max() < 0.01 * np.abs(one["tokens"]).max()
    shapes = {t.name: (list(t.dims), t.data_type) for t in graph_of(result, tmp_path).initializer}
    assert shapes["table_quantized"] == ([512, 32], onnx.TensorProto.INT8)
    assert shapes["table_scale"] == ([512, 1], onnx.TensorProto.FLOAT)
    assert "table" not in shapes


def test_onnx_runtime_fuses_what_is_placed(tmp_path: Path) -> None:
    import onnxruntime

    model = encoder()
    result = quantized(model)
    graph_of(result, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(tmp_path / "placed.onnx"), options, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] + kinds["DynamicQuantizeMatMul"] == 5, kinds
    assert not kinds["MatMulInteger"]
    assert isinstance(result.model, OnnxModel)
    for feed in seeded_feeds(model):
        found = session.run(["features"], dict(feed))[0]
        expected = run_model(result.model, [feed])[0]["features"]
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_weights_alone_are_stored_where_the_target_says_so(tmp_path: Path) -> None:
    graph = graph_of(quantized(encoder(), OPENVINO), tmp_path)
    kinds = Counter(node.op_type for node in graph.node)
    assert not kinds["MatMulInteger"]
    assert not kinds["DynamicQuantizeLinear"]
    # The table, q, k, v, and one weight that both Gemms read as it stands.
    assert kinds["DequantizeLinear"] == 5
    assert kinds["Gemm"] == 2


def test_weights_are_those_of_onnx_runtime_s_own_tool(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = quantizable_models()["matmul"]
    model.write_onnx(tmp_path / "float.onnx")
    quantization.quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "peer.onnx",
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    peer = integers_of(onnx.load(tmp_path / "peer.onnx").graph)
    ours = integers_of(graph_of(quantized(model), tmp_path))
    assert len(ours) == len(peer) == 4
    for one, two in zip(ours, peer, strict=True):
        assert np.abs(one.astype(int) - two.astype(int)).max() <= 1
        assert np.mean(one != two) < 0.01


def integers_of(graph: onnx.GraphProto) -> list[Any]:
    """The int8 weights in the order of the products that read them."""
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return [arrays[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]


def test_reduced_range_without_vnni(tmp_path: Path) -> None:
    graph = graph_of(quantized(encoder(), onnxruntime_cpu({"avx2"})), tmp_path)
    assert max(np.abs(array.astype(int)).max() for array in integers_of(graph)) == 64


def test_refusals_say_why() -> None:
    found = refusals(quantized(encoder(), keep_float=["k"]))
    assert found["k"] == "kept in float by `k`"
    assert "neither operand is a constant" in found["scores"]
    assert "3 dims" in found["stacked"]
    assert "embeddings: false" in refusals(quantized(encoder(), embeddings=False))["embed"]
    assert "under 4096" in refusals(quantized(encoder(rows=32)))["embed"]
    depthwise = refusals(quantized(quantizable_models()["depthwise"]))
    assert any("use quantize_int8" in reason for reason in depthwise.values())


def odd_products() -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", ["batch", 32])
    inf = np.full((32, 32), np.inf, np.float32)
    b.node("MatMul", x, b.weight(32, 4), name="narrow", to="narrow_out")
    b.node("MatMul", x, b.constant(inf), name="infinite", to="infinite_out")
    b.node("Gemm", b.weight(8, 32), x, transB=1, name="first", to="first_out")
    b.node("Gemm", x, b.weight(1, 32), transB=1, name="one", to="one_out")
    scaled = b.node("ReduceSum", x, b.constant([0]), keepdims=0)
    b.node("Gemm", x, b.weight(32, 32), scaled, beta=2.0, name="beta", to="beta_out")
    square = b.node("Expand", x, b.constant([32, 32]))
    b.node("Gemm", square, b.weight(32, 32), transA=1, name="turned", to="turned_out")
    b.node("MatMul", x, b.weight(32, 16), name="fine", to="fine_out")
    for name, columns in (("narrow", 4), ("infinite", 32), ("beta", 32), ("fine", 16), ("one", 1)):
        b.output(f"{name}_out", ["batch", columns])
    b.output("first_out", [8, "batch"])
    b.output("turned_out", [32, 32])
    return b.model()


def test_products_that_do_not_fit_are_refused() -> None:
    result = quantized(odd_products())
    assert [r.where for r in result.rewrites] == ["fine"]
    found = refusals(result)
    assert "side of 4" in found["narrow"]
    assert "infinities" in found["infinite"]
    assert "first operand" in found["first"]
    assert "side of 1" in found["one"]
    assert "has a factor" in found["beta"]
    assert "transposed" in found["turned"]


@pytest.mark.parametrize(
    ("model", "spec", "options", "what", "fix"),
    [
        (encoder(), tensorrt(), {}, "no INT8 weights without calibration", "quantize_int8 there"),
        (small_models()["quantized"], ORT, {}, "quantized already", "take quantize_dynamic out"),
        (encoder(), ORT, {"keep_float": ["nobody"]}, "names no node", "optimc inspect"),
        (encoder(), ORT, {"keep_float": ["*"]}, "nothing in this model", "keep less in float"),
    ],
)
def test_preconditions(
    model: OnnxModel, spec: QuantizationSpec, options: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(PreconditionError, match=what) as error:
        quantized(model, spec, **options)
    assert fix in str(error.value)
