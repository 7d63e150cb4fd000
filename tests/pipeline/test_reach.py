"""What probes reach: branches, loops, random operators; and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import onnx
import pytest

from optimc.core.model import Level, OnnxModel
from optimc.core.passes import EXACT, Effect, Pass, PassContext, PassResult
from optimc.core.worker import Limits
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.probes import ProbeSource
from optimc.pipeline.reach import Reach, reach_code, reach_of
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.recipe.schema import DimRange, InputSpec
from optimc.pipeline.verification import Finding, PassVerifier, Segment, Verdict
from optimc.report.schema import Probes, Report
from optimc.report.values import Skipped
from optimc.testing.calibrated import FolderStore
from optimc.testing.graphs import GraphBuilder, branches
from optimc.testing.inline_workers import inline_workers


def _branch(op_type: str, source: str, *, twice: bool = False) -> onnx.GraphProto:
    b = GraphBuilder()
    result = b.node(op_type, source, to=f"{op_type}_inner")
    if twice:
        result = b.node(op_type, result, to=f"{op_type}_again")
    b.node("Identity", result, to=f"{op_type}_result")
    b.output(f"{op_type}_result", ["batch", 3])
    return b.graph("branch")


def _steered(threshold: float) -> OnnxModel:
    """An If that the greatest input decides."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    flag = b.node("Greater", b.node("ReduceMax", x, keepdims=0), b.constant(threshold))
    then_branch = _branch("Relu", x, twice=True)
    b.node("If", flag, to="y", name="rare", then_branch=then_branch, else_branch=_branch("Neg", x))
    b.output("y", ["batch", 3])
    return b.model()


def _counted() -> OnnxModel:
    """A Loop whose rounds an input counts."""
    body = GraphBuilder()
    body.input("round", [], "int64")
    body.input("going", [], "bool")
    body.input("carried", ["batch", 3])
    body.output(body.node("Identity", "going", to="goes"), [], "bool")
    body.output(body.node("Tanh", "carried", to="next"), ["batch", 3])
    b = GraphBuilder()
    trips, x = b.input("trips", [], "int64"), b.input("x", ["batch", 3])
    b.nodes("Loop", trips, "", x, to=["y"], name="turns", body=body.graph("body"))
    b.output("y", ["batch", 3])
    return b.model()


def _source(model: OnnxModel, **inputs: InputSpec) -> ProbeSource:
    return ProbeSource(
        model.signature, {"batch": DimRange(min=1, typical=2, max=3)}, inputs, seed=0
    )


def _reached(model: OnnxModel, folder: Path, **inputs: InputSpec) -> tuple[Reach, list[str]]:
    source = _source(model, **inputs)
    store = FolderStore(folder)
    with inline_workers(), Oracle(source.for_passes("fast"), Limits()) as oracle:
        found = reach_of(model, oracle, source, store, reach_code())
        assert reach_of(model, oracle, source, store, reach_code()) == found
    candidates = source.steering()
    return found, [candidates[index].label for index in found.steering]


def test_a_constant_condition_leaves_its_other_branch_out_of_reach(tmp_path: Path) -> None:
    reach, _ = _reached(branches(), tmp_path)
    assert list(reach.unreached) == ["else_branch of If `if_3`"]
    assert reach.reached == reach.nodes - reach.unreached["else_branch of If `if_3`"]


def test_inputs_that_steer_are_found_and_kept(tmp_path: Path) -> None:
    reach, steering = _reached(_steered(5.0), tmp_path)
    assert not reach.unreached
    assert steering == ["steering, large"]


def test_steering_keeps_to_the_declared_range(tmp_path: Path) -> None:
    reach, steering = _reached(_steered(5.0), tmp_path, x=InputSpec(range=(-1.0, 1.0)))
    assert list(reach.unreached) == ["then_branch of If `rare`"]
    assert steering == []


def test_loops_are_run_for_several_numbers_of_rounds(tmp_path: Path) -> None:
    reach, _ = _reached(_counted(), tmp_path)
    assert reach.rounds == {"body of Loop `turns`": [0, 1, 2, 3]}
    declared, _ = _reached(_counted(), tmp_path / "declared", trips=InputSpec(values=(2, 9)))
    seen = declared.rounds["body of Loop `turns`"]
    assert len(seen) == 4
    assert 2 <= min(seen) < max(seen) <= 9


class SpoilBranch(Pass):
    """Changes an operator in a branch: a bug that only an input which takes the branch shows."""

    level: ClassVar[Level] = Level.ONNX
    operator: str

    @property
    def effect(self) -> Effect:
        return EXACT

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        for node in model.ir.graph.all_nodes():
            if node.op_type == self.operator:
                node.op_type = "Abs"
        return PassResult(model, True)


def _judged(model: OnnxModel, operator: str, folder: Path) -> Finding:
    spoilt = OnnxModel(model.clone().ir)
    SpoilBranch(operator=operator).run(spoilt, None)  # type: ignore[arg-type]
    paths = [folder / name / "model.onnx" for name in ("before", "after")]
    for path, each in zip(paths, (model, spoilt.sealed()), strict=True):
        each.save(path.parent)
    with inline_workers(), Oracle(_source(model).for_passes("fast"), Limits()) as oracle:
        return PassVerifier(oracle).judge(
            EXACT, model, paths[0], spoilt.sealed(), paths[1], Segment(model.digest, paths[0])
        )


def test_a_change_that_no_probe_reaches_is_not_called_equivalent(tmp_path: Path) -> None:
    finding = _judged(_steered(1e6), "Relu", tmp_path)
    assert finding.verdict is Verdict.UNVERIFIED
    assert "then_branch of If `rare`" in str(finding.reason)


def test_the_same_change_where_probes_do_reach_is_found(tmp_path: Path) -> None:
    assert _judged(_steered(1e6), "Neg", tmp_path).verdict is Verdict.FAILED


def _random_and_not(op_type: str, **attributes: Any) -> OnnxModel:
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    b.node("Relu", x, to="sure")
    b.node("Add", b.node(op_type, x, name="dice", **attributes), x, to="drawn")
    b.output("sure", ["batch", 3])
    b.output("drawn", ["batch", 3])
    return b.model()


def test_a_random_output_is_named_and_the_others_are_still_compared(tmp_path: Path) -> None:
    model = _random_and_not("RandomNormalLike", seed=1.0)
    spoilt = _judged(model, "Relu", tmp_path)
    assert spoilt.verdict is Verdict.FAILED
    finding = _judged(model, "Add", tmp_path / "2")
    assert finding.verdict is Verdict.FAILED  # an Abs takes one input: the result does not run


def test_a_random_output_is_unverified_with_its_operator(tmp_path: Path) -> None:
    model = _random_and_not("RandomUniformLike")
    finding = _judged(model, "NoSuchOperator", tmp_path)
    assert finding.verdict is Verdict.UNVERIFIED
    assert "`drawn` is random (RandomUniformLike `dice`)" in str(finding.reason)
    assert "only its dtype and shape were compared" in str(finding.reason)
    assert finding.max_abs_error == 0.0


def test_dropout_in_training_mode_is_random_even_where_it_drops_nothing_by_chance(
    tmp_path: Path,
) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    b.node("Dropout", x, b.constant(1e-6), b.constant(True), to="y", name="drop")
    b.output("y", ["batch", 3])
    finding = _judged(b.model(), "NoSuchOperator", tmp_path)
    assert finding.verdict is Verdict.UNVERIFIED
    assert "Dropout `drop`" in str(finding.reason)


def _built(folder: Path, model: OnnxModel, verify: str, cache: Path) -> Report:
    folder.mkdir(exist_ok=True)
    model.write_onnx(folder / "model.onnx")
    (folder / "recipe.yaml").write_text(
        "model: {onnx: model.onnx}\nvariants: {fp32: [simplify]}\n"
        "targets: {ort: {runtime: onnxruntime}}\n"
    )
    options = BuildOptions(
        out=folder / "out",
        command="optimc build",
        measure=False,
        verify=verify,  # type: ignore[arg-type]
    )
    with inline_workers(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTIMC_CACHE_DIR", str(cache))
        return Build(load_recipe(folder / "recipe.yaml"), options, Silent()).run()


def test_the_report_says_what_was_reached_and_what_was_not(tmp_path: Path) -> None:
    report = _built(tmp_path / "a", branches(), "fast", tmp_path / "cache")
    assert isinstance(report.probes, Probes)
    assert report.probes.effort == "fast"
    assert report.probes.unreached == ("else_branch of If `if_3`",)
    assert report.probes.reached < report.probes.nodes
    told = [line for line in report.results[0].unverified if "no probe reaches" in line]
    assert told == ["no probe reaches the else_branch of If `if_3` (3 nodes)"]


def test_full_takes_more_probes_than_fast(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fast = _built(tmp_path / "a", branches(), "fast", cache).probes
    full = _built(tmp_path / "a", branches(), "full", cache).probes
    assert isinstance(fast, Probes)
    assert isinstance(full, Probes)
    assert full.passes > fast.passes
    assert full.engines > fast.engines


def test_off_compares_nothing_says_so_and_is_never_reused_as_verified(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    off = _built(tmp_path / "a", _steered(0.0), "off", cache)
    (cell,) = off.results
    assert isinstance(off.probes, Skipped)
    assert "--verify=off" in off.probes.skipped
    assert [line.verdict for line in cell.passes if line.modified] == ["unverified"]
    assert not isinstance(cell.engine, Skipped)
    assert cell.engine.verdict == "unverified"
    assert any("verification is off" in line for line in cell.unverified)
    assert any("verification is off" in warning for warning in off.warnings)
    fast = _built(tmp_path / "a", _steered(0.0), "fast", cache)
    (cell,) = fast.results
    assert [line.verdict for line in cell.passes if line.modified] == ["equivalent"]
    assert not isinstance(cell.engine, Skipped)
    assert cell.engine.verdict == "equivalent"
    again = _built(tmp_path / "a", _steered(0.0), "off", cache)
    assert [line.verdict for line in again.results[0].passes if line.modified] == ["unverified"]
