"""`fuse` on generated graphs: whatever the graph, it computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
from hypothesis import HealthCheck, given, settings

from optimc.core.model import OnnxModel
from optimc.passes.fuse import Fuse
from optimc.pipeline.compare import compare_outputs
from optimc.testing import run_model, run_pass, seeded_feeds
from optimc.testing.fuse_strategies import fusible_models

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
        assert difference.max_rel <= 1e-5
