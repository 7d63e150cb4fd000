"""Stored models stand on their own, whatever their weights were read from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from optimc.core.model import EXTERNAL_DATA_THRESHOLD, OnnxModel
from optimc.testing.graphs import GraphBuilder
from optimc.testing.runs import run_model


def test_a_model_that_shrank_keeps_no_tie_to_the_larger_one_s_file(tmp_path: Path) -> None:
    rows = EXTERNAL_DATA_THRESHOLD // (64 * 4) + 1
    b = GraphBuilder()
    x = b.input("x", ["batch", 64])
    h = b.node("MatMul", x, b.weight(64, 64), to="small")
    b.node("Gemm", h, b.constant(np.ones((rows, 64), np.float32)), transB=1, to="large")
    b.output("small", ["batch", 64])
    b.output("large", ["batch", rows])
    b.model().save(tmp_path / "before")
    assert (tmp_path / "before" / "model.onnx.data").exists()
    model = OnnxModel(folder=tmp_path / "before").clone()
    graph = model.ir.graph
    del graph.outputs[1]
    graph.remove(graph[1], safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    model.sealed().save(tmp_path / "after")
    shutil.rmtree(tmp_path / "before")
    after = OnnxModel(folder=tmp_path / "after")
    assert not (tmp_path / "after" / "model.onnx.data").exists()
    assert run_model(after, [{"x": np.zeros((1, 64), np.float32)}])[0]["small"].shape == (1, 64)
