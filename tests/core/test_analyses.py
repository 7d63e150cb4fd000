"""Analyses: computed once, kept by passes that change nothing, invalidated by those that do."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from optimc.core.analyses import Analyses, Analysis, QuantizationNodes
from optimc.core.model import OnnxModel
from optimc.frontends.onnx import load_onnx


@pytest.fixture
def model(repository: Path, tmp_path: Path) -> OnnxModel:
    path = repository / "recipes" / "quickstart" / "digits.onnx"
    return load_onnx(path, workspace=tmp_path).model


class CountNodes(Analysis[int]):
    """Counts how often it is computed."""

    computed = 0

    @staticmethod
    def compute(model: OnnxModel) -> int:
        CountNodes.computed += 1
        return model.stats.nodes


def test_an_analysis_is_computed_when_it_is_first_asked_and_then_kept(model: OnnxModel) -> None:
    CountNodes.computed = 0
    analyses = Analyses(model)
    assert CountNodes.computed == 0
    assert analyses.get(CountNodes) == analyses.get(CountNodes) == model.stats.nodes
    assert CountNodes.computed == 1


def test_only_what_a_pass_preserves_goes_on(model: OnnxModel) -> None:
    analyses = Analyses(model)
    analyses.get(CountNodes)
    analyses.get(QuantizationNodes)
    kept = analyses.preserved(frozenset({QuantizationNodes}))
    assert kept == {QuantizationNodes: ()}


def test_quantization_nodes_are_named(model: OnnxModel) -> None:
    assert Analyses(model).get(QuantizationNodes) == ()
    clone = model.clone()
    graph = clone.ir.graph
    scale = ir.val("scale", const_value=ir.tensor([0.1], name="scale"))
    graph.register_initializer(scale)
    graph.append(ir.node("QuantizeLinear", [graph.outputs[0], scale], name="q"))
    assert Analyses(clone).get(QuantizationNodes) == ("q",)
