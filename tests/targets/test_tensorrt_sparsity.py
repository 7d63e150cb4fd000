"""Whether weights hold 2:4 where `sparse_weights` is set: along the axis that is summed over."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from optimc.core.lint import Finding
from optimc.core.model import OnnxModel
from optimc.targets.tensorrt import TensorRT
from optimc.testing.graphs import GraphBuilder

SHAPES = {"Conv": (8, 8, 3, 3), "MatMul": (16, 8), "Gemm": (16, 8), "transposed Gemm": (8, 16)}
AXES = {"Conv": 1, "MatMul": 0, "Gemm": 0, "transposed Gemm": 1}


def pruned(shape: tuple[int, ...], axis: int, keep: int = 2) -> NDArray[np.float32]:
    """The first `keep` of every four along `axis`; the others are 0."""
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 9
    lines = np.moveaxis(weight, axis, -1)
    lines[..., np.arange(shape[axis]) % 4 >= keep] = 0
    return weight


def model(kind: str, *weights: NDArray[np.float32], quantized: bool = False) -> OnnxModel:
    b = GraphBuilder(opset=20)
    x = b.input("x", (1, 8, 8, 8) if kind == "Conv" else (4, SHAPES[kind][AXES[kind]]))
    for index, weight in enumerate(weights):
        w = b.constant(weight)
        if quantized:
            integers = b.constant(np.clip(weight, -127, 127).astype(np.int8))
            w = b.node("DequantizeLinear", integers, b.constant(0.1), b.constant(np.int8(0)))
        options = {"transB": 1} if kind == "transposed Gemm" else {}
        b.node(kind.split()[-1], x, w, to=f"y{index}", **options)
        b.output(f"y{index}", (1, 8, 6, 6) if kind == "Conv" else (4, 8))
    return b.model()


def said(model: OnnxModel) -> Finding:
    """The one finding on sparsity."""
    findings = TensorRT(sparse_weights=True).lint(model)
    (found,) = (finding for finding in findings if finding.rule == "sparsity")
    return found


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_the_pattern_is_looked_for_along_the_summed_axis(kind: str, quantized: bool) -> None:
    shape, axis = SHAPES[kind], AXES[kind]
    along = model(kind, pruned(shape, axis), quantized=quantized)
    note = said(along)
    assert note.severity == "note"
    assert "in 1 of 1 weights" in note.reason
    across = model(kind, pruned(shape, 1 - axis), quantized=quantized)
    warning = said(across)
    assert warning.severity == "warning"
    assert "nothing is gained" in warning.reason
    assert "prune" in warning.fix


def test_three_of_four_are_too_many_and_the_others_are_counted() -> None:
    found = model("MatMul", *(pruned((16, 8), 0, keep) for keep in (1, 2, 3)))
    note = said(found)
    assert "in 2 of 3 weights" in note.reason


def test_nothing_is_said_where_nobody_asked() -> None:
    assert TensorRT().lint(model("MatMul", pruned((16, 8), 0))) == ()


def test_a_graph_without_weights() -> None:
    b = GraphBuilder()
    b.node("Relu", b.input("x", (1, 4)), to="y")
    b.output("y", (1, 4))
    warning = said(b.model())
    assert warning.severity == "warning"
    assert "no weights that it could be for" in warning.reason
