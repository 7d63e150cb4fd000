"""The pass manager: verification by data, roll-back, drift, cache and observers, on real graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from optimc.core.errors import CellError
from optimc.core.model import Level, OnnxModel
from optimc.core.passes import EXACT, Effect, Input, Pass, PassContext, PassResult, lossy, tolerance
from optimc.core.worker import Limits
from optimc.frontends.onnx import load_onnx
from optimc.pipeline.cache import Cache
from optimc.pipeline.manager import PassInputs, PassManager, PassOutcome
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.probes import ProbeSource
from optimc.pipeline.recipe.schema import DimRange
from optimc.pipeline.verification import PassVerifier, Segment, Verdict


def _mul_model(folder: Path, nodes: list[onnx.NodeProto] | None = None) -> Path:
    nodes = nodes or [helper.make_node("Mul", ["x", "w"], ["y"], name="mul")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


class ScaleWeights(Pass):
    """Multiplies the weights by a factor."""

    level: ClassVar[Level] = Level.ONNX
    factor: float = 1.0
    promise: float | None = None
    """None is EXACT, a negative number LOSSY, another a tolerance."""

    @property
    def effect(self) -> Effect:
        if self.promise is None:
            return EXACT
        return lossy() if self.promise < 0 else tolerance(self.promise)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        value = model.ir.graph.initializers["w"]
        assert value.const_value is not None
        scaled = value.const_value.numpy() * np.float32(self.factor)
        value.const_value = ir.tensor(scaled, name="w")
        return PassResult(model, self.factor != 1.0)


class Breaks(Pass):
    """Does what `how` says, which no pass may do."""

    level: ClassVar[Level] = Level.ONNX
    how: str

    @property
    def effect(self) -> Effect:
        return tolerance(1.0)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        graph = model.ir.graph
        if self.how == "raises":
            raise ZeroDivisionError("oops")
        if self.how == "reads the spec":
            assert context.spec
        if self.how == "renames":
            graph.outputs[0].name = "z"
        if self.how == "invalid":
            graph[0].op_type = "NoSuchOperator"
        if self.how == "nan":
            graph.initializers["w"].const_value = ir.tensor(
                np.full(4, np.nan, np.float32), name="w"
            )
        return PassResult(model, True)


Manage = Callable[..., PassOutcome]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[PassManager, OnnxModel, Segment]]]:
    """Makes a manager and the loaded model; closes the oracle at the end."""
    oracles: list[Oracle] = []

    def build(nodes: list[onnx.NodeProto] | None = None) -> tuple[PassManager, OnnxModel, Segment]:
        loaded = load_onnx(_mul_model(tmp_path, nodes), workspace=tmp_path).model
        loaded.save(tmp_path / "stored")
        model = OnnxModel(folder=tmp_path / "stored")
        probes = ProbeSource(
            model.signature, {"n": DimRange(min=1, typical=2, max=3)}, {}, seed=0
        ).for_passes("fast")
        oracle = Oracle(probes, Limits(seconds=60))
        oracles.append(oracle)
        manager = PassManager(
            cache=Cache(tmp_path / "cache"),
            verifier=PassVerifier(oracle),
            verifier_digest="probes",
            seed=0,
            workspace=tmp_path,
        )
        assert model.path is not None
        return manager, model, Segment(model.digest, model.path)

    yield build
    for oracle in oracles:
        oracle.close()


def _run(manager: PassManager, pass_: Pass, model: OnnxModel, segment: Segment, **options: Any):
    inputs = PassInputs(None, None)
    return manager.run(pass_, model, segment, inputs, required=options.get("required", False))


def test_a_pass_that_changes_nothing_is_unchanged(make) -> None:
    manager, model, segment = make()
    outcome = _run(manager, ScaleWeights(), model, segment)
    assert outcome.finding.verdict is Verdict.UNCHANGED
    assert outcome.model is model


def test_exact_means_bit_equal(make) -> None:
    manager, model, segment = make()
    outcome = _run(manager, ScaleWeights(factor=1.0000001), model, segment)
    assert outcome.finding.verdict is Verdict.ROLLED_BACK
    assert "not bit-equal" in str(outcome.finding.reason)
    assert outcome.model is model


def test_a_tolerance_is_held_to_its_bound(make) -> None:
    manager, model, segment = make()
    within = _run(manager, ScaleWeights(factor=1.0001, promise=1e-3), model, segment)
    assert within.finding.verdict is Verdict.WITHIN_TOLERANCE
    assert within.finding.max_rel_error == pytest.approx(1e-4, rel=0.01)
    assert within.model.digest != model.digest
    beyond = _run(manager, ScaleWeights(factor=1.01, promise=1e-3), model, segment)
    assert beyond.finding.verdict is Verdict.ROLLED_BACK


def test_drift_is_measured_from_the_start_of_the_segment(make) -> None:
    manager, model, segment = make()
    honest = ScaleWeights(factor=1.0009, promise=1e-3)
    first = _run(manager, honest, model, segment)
    assert first.segment.bound == pytest.approx(1e-3)
    second = _run(manager, honest, first.model, first.segment)
    assert second.finding.verdict is Verdict.WITHIN_TOLERANCE
    # Within its own tolerance, but together with the two before it beyond what all three allow.
    liar = Segment(first.segment.digest, first.segment.path, bound=0.0)
    third = _run(manager, honest, second.model, liar)
    assert third.finding.verdict is Verdict.ROLLED_BACK
    assert "drift" in str(third.finding.reason)


def test_a_lossy_pass_is_judged_by_sqnr_and_begins_a_new_segment(make) -> None:
    manager, model, segment = make()
    fine = _run(manager, ScaleWeights(factor=1.01, promise=-1), model, segment)
    assert fine.finding.verdict is Verdict.LOSSY
    assert fine.finding.sqnr_db == pytest.approx(40.0, abs=0.1)
    assert fine.segment.digest == fine.model.digest
    rough = _run(manager, ScaleWeights(factor=1.5, promise=-1), model, segment)
    assert rough.finding.verdict is Verdict.ROLLED_BACK
    assert "SQNR" in str(rough.finding.reason)


def test_a_required_pass_that_is_rolled_back_fails_what_builds_on_it(make) -> None:
    manager, model, segment = make()
    outcome = _run(manager, ScaleWeights(factor=2.0), model, segment, required=True)
    assert outcome.finding.verdict is Verdict.FAILED
    assert "scale_weights was rolled back" in str(outcome.failure)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("renames", "the outputs changed"),
        ("invalid", "does not run"),
        ("nan", "NaN or infinity"),
    ],
)
def test_what_no_pass_may_do_is_rolled_back(make, how: str, reason: str) -> None:
    manager, model, segment = make()
    outcome = _run(manager, Breaks(how=how), model, segment)
    assert outcome.finding.verdict is Verdict.ROLLED_BACK
    assert reason in str(outcome.finding.reason)


@pytest.mark.parametrize("how", ["raises", "reads the spec"])
def test_a_pass_that_breaks_is_one_message_with_its_name(make, how: str) -> None:
    manager, model, segment = make()
    with pytest.raises(CellError, match="pass breaks") as caught:
        _run(manager, Breaks(how=how), model, segment)
    assert caught.value.fix is not None


def test_outputs_of_random_operators_are_unverified(make) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "w"], ["y"]),
    ]
    manager, model, segment = make(nodes)
    outcome = _run(manager, ScaleWeights(factor=3.0), model, segment)
    assert outcome.finding.verdict is Verdict.UNVERIFIED
    assert "random" in str(outcome.finding.reason)


def test_the_second_run_is_a_cache_hit_with_the_same_verdict(make) -> None:
    manager, model, segment = make()
    pass_ = ScaleWeights(factor=1.0001, promise=1e-3)
    first = _run(manager, pass_, model, segment)
    second = _run(manager, pass_, model, segment)
    assert (first.cached, second.cached) == (False, True)
    assert second.finding == first.finding
    assert second.model.digest == first.model.digest
    assert manager.executions == {"scale_weights": 1}


def test_options_seed_limit_and_probes_are_part_of_the_key(make) -> None:
    manager, model, segment = make()
    _run(manager, ScaleWeights(factor=1.0001, promise=1e-3), model, segment)
    assert not _run(manager, ScaleWeights(factor=1.0002, promise=1e-3), model, segment).cached
    manager.verifier_digest = "other probes"
    assert not _run(manager, ScaleWeights(factor=1.0001, promise=1e-3), model, segment).cached
    manager.limits = {"scale_weights": 1}
    assert not _run(manager, ScaleWeights(factor=1.0001, promise=1e-3), model, segment).cached
    manager.seed = 1
    assert not _run(manager, ScaleWeights(factor=1.0001, promise=1e-3), model, segment).cached


def test_the_model_that_came_in_is_never_changed(make) -> None:
    manager, model, segment = make()
    before = model.ir.graph.initializers["w"].const_value.numpy().copy()  # type: ignore[union-attr]
    _run(manager, ScaleWeights(factor=2.0), model, segment)
    after = model.ir.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    assert np.array_equal(before, after)
    assert OnnxModel(model.ir).digest == model.digest


def test_reading_calibration_must_be_declared(tmp_path: Path) -> None:
    from optimc.core.passes import RewriteLog, UndeclaredInputError

    context = PassContext(frozenset({Input.SPEC}), RewriteLog(), 0, tmp_path)
    with pytest.raises(UndeclaredInputError, match="CALIBRATION"):
        _ = context.calibration
