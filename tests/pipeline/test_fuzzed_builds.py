"""Generated graphs through the whole pipeline: a few seeds here, the rest by `bench/fuzz.py`."""

from __future__ import annotations

import json

import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings

from optimc.core.model import OnnxModel
from optimc.passes.fold_preprocess import FoldPreprocess
from optimc.passes.fuse import Fuse
from optimc.passes.simplify import Simplify
from optimc.pipeline.compare import compare_outputs
from optimc.testing import run_model, run_pass, seeded_feeds
from optimc.testing.fuzzing import Runtime, fuzz_seed, totals
from optimc.testing.wide_graphs import WIDE_OPSETS, wide_model, wide_models

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def test_a_seed_names_a_graph() -> None:
    assert wide_model(3).digest == wide_model(3).digest
    assert wide_model(3).digest != wide_model(4).digest


def test_generated_graphs_are_valid_and_wide() -> None:
    operators, opsets = set(), set()
    for seed in range(120):
        proto = onnx_ir.to_proto(wide_model(seed).ir)
        onnx.checker.check_model(proto, full_check=True)
        opsets.add(proto.opset_import[0].version)
        operators |= {node.op_type for node in proto.graph.node}
    assert opsets == set(WIDE_OPSETS)
    assert {"If", "Loop", "Scan", "Conv", "Gemm", "ArgMax", "Where", "QuantizeLinear"} <= operators
    assert len(operators) > 60


@pytest.mark.parametrize("seed", [*range(8), 1413])
def test_nothing_wrong_is_delivered(seed: int) -> None:
    outcome = fuzz_seed(seed, "onnxruntime")
    assert outcome.finds == []
    assert totals([json.loads(outcome.json())])["graphs"] == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_wrong_is_delivered_by_either_runtime() -> None:
    pytest.importorskip("openvino")
    finds = [
        (seed, runtime, find)
        for seed in range(100, 130)
        for runtime in RUNTIMES
        for find in fuzz_seed(seed, runtime).finds
    ]
    assert finds == []


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(model=wide_models())
def test_passes_keep_wide_graphs_the_same_function(model: OnnxModel) -> None:
    feeds = seeded_feeds(model)
    try:
        expected = run_model(model, feeds)
    except Exception:  # noqa: BLE001 (ONNX Runtime refuses some graphs with dims of zero)
        return
    current = model
    for pass_ in (FoldPreprocess(), Simplify(), Fuse()):
        result = run_pass(pass_, current)
        assert isinstance(result.model, OnnxModel)
        current = result.model
        assert current.signature == model.signature
        assert not run_pass(pass_, current).rewrites
    names = [output.name for output in model.signature.outputs]
    difference = compare_outputs(expected, run_model(current, feeds), names)
    assert difference.broken is None
    assert difference.max_rel <= 1e-4
