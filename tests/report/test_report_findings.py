from __future__ import annotations

from optimc.report.findings import findings, refusal_groups, skipped_figures
from optimc.report.schema import Refusal
from optimc.report.values import Skipped
from optimc.testing.example_report import example_report, failed_report


def test_skipped_figures_name_their_place_and_reason() -> None:
    report = example_report()
    found = {figure.path: figure.reason for figure in skipped_figures(report)}
    assert found["results[int8/ort].latency[0].p99_ms"] == "needs 500 runs, 212 were made"
    assert found["results[int8/ort].engine.precision"] == "ONNX Runtime does not tell"
    assert found["source.latency[0].p99_ms"] == "needs 500 runs, 212 were made"
    assert found["results[int8/trt].engine"] == "the cell was not built"
    assert len(found) == len(skipped_figures(report))


def test_no_skipped_figure_is_missed() -> None:
    text = example_report().model_dump_json()
    assert text.count('"skipped":') == len(skipped_figures(example_report()))


def test_a_new_skip_is_found_wherever_it_stands() -> None:
    report = example_report().model_copy(update={"lock": Skipped(skipped="--no-lock")})
    assert ("lock", "--no-lock") in {(f.path, f.reason) for f in skipped_figures(report)}
    assert ("not measured", "lock") in {(f.kind, f.what) for f in findings(report)}


def test_the_gravest_comes_first_and_equal_ones_are_one() -> None:
    found = findings(failed_report())
    assert [finding.kind for finding in found][:3] == ["failed", "rolled back", "unverified"]
    assert found[0].cells == ("int8/trt",)
    assert found[1].what == "pass fuse"
    assert found[1].cells == ("fp32/ort", "fp32/ov", "fp16/ort", "int8/ort", "int8/ov")
    assert len({(f.kind, f.what, f.reason) for f in found}) == len(found)


def test_a_cell_that_was_not_built_is_told_once() -> None:
    about_trt = [f for f in findings(example_report()) if "int8/trt" in f.cells]
    assert [(f.kind, f.what) for f in about_trt] == [("deferred", "cell")]


def test_every_skip_of_a_built_cell_is_a_finding() -> None:
    found = {(f.what, f.reason) for f in findings(example_report()) if f.kind == "not measured"}
    assert found == {
        ("engine.precision", "ONNX Runtime does not tell"),
        ("latency.p99_ms", "needs 500 runs, 212 were made"),
        ("source.latency.p99_ms", "needs 500 runs, 212 were made"),
        ("speedup from pass to pass", "the sessions were too few"),
    }


def test_steps_do_not_repeat_what_is_said_of_the_report() -> None:
    report = example_report()
    why = Skipped(skipped="--no-measure")
    (one,) = report.steps
    steps = tuple(step.model_copy(update={"drop": why, "speedup": why}) for step in one.steps)
    report = report.model_copy(update={"steps": (one.model_copy(update={"steps": steps}),)})
    found = [f.what for f in findings(report) if f.reason == "--no-measure"]
    assert found == ["drop from pass to pass", "speedup from pass to pass"]
    report = report.model_copy(update={"noise_floor": why})
    assert [f.what for f in findings(report) if f.reason == "--no-measure"] == ["noise_floor"]


def test_a_pass_that_changed_nothing_misses_no_error() -> None:
    report = example_report()
    none = Skipped(skipped="nothing changed")
    step = (
        report.results[0]
        .passes[0]
        .model_copy(update={"verdict": "unchanged", "max_abs_error": none, "sqnr_db": none})
    )
    cell = report.results[0].model_copy(update={"passes": (step,)})
    changed = report.model_copy(update={"results": (cell, *report.results[1:])})
    paths = {figure.path for figure in skipped_figures(changed)}
    assert "results[fp32/ort].passes[simplify].sqnr_db" in paths
    assert "nothing changed" not in {finding.reason for finding in findings(changed)}


def test_refusals_are_grouped_by_reason_the_commonest_first() -> None:
    pairs = (("a", "x"), ("b", "y"), ("c", "y"))
    groups = refusal_groups(tuple(Refusal(node=node, reason=reason) for node, reason in pairs))
    assert [(group.reason, group.nodes) for group in groups] == [("y", ("b", "c")), ("x", ("a",))]
