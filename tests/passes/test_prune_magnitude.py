"""`prune_magnitude` on ONNX graphs: the contract, shares, schedules, shared weights, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.onnx_sparsity import sparsity_of
from optimc.core.passes import PassResult
from optimc.passes.prune_magnitude import PruneMagnitude
from optimc.testing import PassContract
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.runs import run_pass
from optimc.testing.sparse import sparse_contract_models


class TestPruneMagnitude(PassContract):
    passes = (PruneMagnitude(share=0.5), PruneMagnitude(share=0.4, scope="global"))

    def models(self) -> Mapping[str, OnnxModel]:
        return sparse_contract_models()


def two_layers() -> OnnxModel:
    """A Conv with large weights and a Gemm with small ones."""
    b = GraphBuilder()
    h = b.node("Conv", b.input("image", ["batch", 3, 6, 6]), b.weight(8, 3, 3, 3), name="stem")
    h = b.node("Flatten", b.node("GlobalAveragePool", h))
    b.node("Gemm", h, b.weight(10, 8, scale=0.01), transB=1, name="head", to="logits")
    b.output("logits", ["batch", 10])
    return b.model()


def weights(result: PassResult) -> dict[str, NDArray[Any]]:
    assert isinstance(result.model, OnnxModel)
    return {
        str(node.name): node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        for node in result.model.ir.graph
        if node.op_type in ("Conv", "Gemm", "MatMul")
    }


def shares(result: PassResult) -> dict[str, float]:
    assert isinstance(result.model, OnnxModel)
    return {found.layer: found.share for found in sparsity_of(result.model.ir)}


def test_each_layer_loses_its_smallest_weights() -> None:
    model = two_layers()
    before = weights(run_pass(PruneMagnitude(share=0.75), model, limit=0))
    result = run_pass(PruneMagnitude(share=0.75), model)
    for name, after in weights(result).items():
        cut = after == 0
        assert cut.mean() == 0.75
        assert np.abs(before[name][cut]).max() < np.abs(before[name][~cut]).min()
        assert np.array_equal(after[~cut], before[name][~cut])
    assert result.stats == {"zeros": 222, "weights": 296}


def test_over_all_layers_small_weights_go_first() -> None:
    result = run_pass(PruneMagnitude(share=0.25, scope="global"), two_layers())
    found = shares(result)
    assert found["head"] > 0.8
    assert found["stem"] < 0.1
    assert result.stats["zeros"] == 74


def test_the_schedule_is_the_cubic_of_zhu_and_gupta() -> None:
    steps = [PruneMagnitude(share=0.8, step=i, steps=4).share_now for i in (1, 2, 3, 4)]
    assert steps == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    model: Any = two_layers()
    for step, share in enumerate(steps, 1):
        result = run_pass(PruneMagnitude(share=0.8, step=step, steps=4), model)
        assert shares(result)["stem"] == pytest.approx(share, abs=0.005)
        model = result.model
    assert model.digest == run_pass(PruneMagnitude(share=0.8), two_layers()).model.digest


def test_a_weight_of_two_layers_is_cut_once() -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    shared = b.weight(4, 4)
    h = b.node("MatMul", b.node("Relu", b.node("MatMul", x, shared)), shared)
    turned = b.node("Transpose", shared, perm=[1, 0])
    b.node("MatMul", h, turned, to="y")
    b.output("y", ["batch", 4])
    result = run_pass(PruneMagnitude(share=0.5), b.model())
    assert len(result.rewrites) == 1
    assert list(shares(result).values()) == [0.5] * 3


def test_a_table_of_embeddings_stays() -> None:
    b = GraphBuilder()
    table = b.weight(12, 4)
    h = b.node("Gather", table, b.input("ids", ["batch"], "int64"), axis=0)
    h = b.node("Relu", b.node("MatMul", h, b.weight(4, 4)))
    b.node("Gemm", h, table, transB=1, to="scores", name="tied")
    b.output("scores", ["batch", 12])
    result = run_pass(PruneMagnitude(share=0.5), b.model())
    assert shares(result)["tied"] == 0.0
    (refusal,) = result.refusals
    assert "read by other operators" in refusal.reason


def test_constants_of_nodes_are_cut_too() -> None:
    from onnx import numpy_helper

    b = GraphBuilder()
    x = b.input("x", ["batch", 8])
    array = b.rng.normal(size=(8, 4)).astype(np.float32)
    weight = b.node("Constant", value=numpy_helper.from_array(array))
    b.node("MatMul", x, weight, to="y")
    b.output("y", ["batch", 4])
    result = run_pass(PruneMagnitude(share=0.5), b.model())
    assert list(shares(result).values()) == [0.5]


def test_values_behind_a_cut_lose_their_source_names() -> None:
    model = two_layers()
    result = run_pass(PruneMagnitude(share=0.5, keep=["stem"]), model)
    kept = set(result.model.provenance)
    graph = model.ir.graph
    before_head = {str(node.outputs[0].name) for node in graph if node.name != "head"}
    assert before_head <= kept
    whole = run_pass(PruneMagnitude(share=0.5), model).model.provenance
    assert not before_head & set(whole)
    assert {"image", "logits"} <= set(whole)


def test_kept_layers_are_said() -> None:
    result = run_pass(PruneMagnitude(share=0.5, keep=["Gemm"]), two_layers())
    assert shares(result) == {"stem": 0.5, "head": 0.0}
    assert [r.reason for r in result.refusals] == ["kept as it is by `Gemm`"]


def test_a_pattern_that_names_nothing_is_an_error() -> None:
    with pytest.raises(PreconditionError, match="keep: `nowhere` names no node"):
        run_pass(PruneMagnitude(share=0.5, keep=["nowhere"]), two_layers())


def test_nothing_to_cut_is_an_error() -> None:
    with pytest.raises(PreconditionError, match=r"no layer .* can be pruned; stem: kept"):
        run_pass(PruneMagnitude(share=0.5, keep=["*"]), two_layers())


def test_a_quantized_model_is_an_error() -> None:
    with pytest.raises(PreconditionError, match="is quantized") as caught:
        run_pass(PruneMagnitude(share=0.5), small_models()["quantized"])
    assert "before the quantization" in str(caught.value.fix)


@pytest.mark.parametrize("array", [np.full((2, 2), np.inf), np.zeros((1, 1))])
def test_weights_that_cannot_be_cut_are_refused(array: NDArray[Any]) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", array.shape[0]])
    h = b.node("MatMul", x, b.constant(array.astype(np.float32)), name="odd")
    b.node("MatMul", h, b.weight(array.shape[1], 4), to="y")
    b.output("y", ["batch", 4])
    result = run_pass(PruneMagnitude(share=0.4), b.model())
    (refusal,) = result.refusals
    assert refusal.where == "odd"
    assert "infinities" in refusal.reason or "too small: 1 elements" in refusal.reason


@pytest.mark.parametrize(
    "options", [{}, {"share": 0.0}, {"share": 1.0}, {"share": 0.5, "step": 3, "steps": 2}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneMagnitude.model_validate(options)
