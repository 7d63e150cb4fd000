"""`fuse` on generated graphs: whatever the graph, it computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
from hypothesis import HealthCheck, given, settings

from optimc.core.model import OnnxModel
from optimc.passes.fuse import Fuse
from optimc.pipeline.compare import compare_outputs
from optimc.testing import run_model, run_pass, seeded_feeds
from optimc.testing.fuse_strategies import fusible_models

Feeds = Sequence[Mapping[str, np.ndarray[Any, Any]]]

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(model=fusible_models())
def test_generated_graphs_stay_the_same_function(model: OnnxModel) -> None:
    result = run_pass(Fuse(), model)
    after = result.model
    assert isinstance(after, OnnxModel)
    onnx.checker.check_model(onnx_ir.to_proto(after.ir), full_check=True)
    assert after.signature == model.signature
    assert result.modified == (after.digest != model.digest) == bool(result.rewrites)
    assert not run_pass(Fuse(), after).rewrites
    assert set(after.provenance.values()) <= set(model.provenance.values())
    feeds = seeded_feeds(model)
    names = [output.name for output in model.signature.outputs]
    before = run_model(model, feeds)
    if all(np.isfinite(array).all() for run in before for array in run.values()):
        difference = compare_outputs(before, run_model(after, feeds), names)
        assert difference.broken is None
        assert difference.max_rel <= max(1e-5, 2e-6 * magnification(model, feeds, before))


def magnification(model: OnnxModel, feeds: Feeds, outputs: Feeds) -> float:
    """How much greater an inner value is than the outputs: its rounding errors are theirs, too.

    Generated graphs take large values away from large ones, which no one computes exactly.
    """
    inner = model.clone()
    known = set(inner.ir.graph.outputs)
    values = [v for node in inner.ir.graph for v in node.outputs if v not in known]
    inner.ir.graph.outputs.extend(v for v in values if v.dtype == onnx_ir.DataType.FLOAT)
    runs = run_model(inner.sealed(), feeds)
    return largest(runs) / max(min(largest([{n: a}]) for r in outputs for n, a in r.items()), 1e-30)


def largest(runs: Feeds) -> float:
    arrays = [array for run in runs for array in run.values() if array.size]
    return max((float(np.abs(array).max()) for array in arrays), default=1.0)
