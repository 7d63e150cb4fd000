"""Outputs that are renamed, dropped, or come from a choice, in whole builds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from optimc.core.passes import lossy, tolerance
from optimc.pipeline.choices import mismatch
from optimc.pipeline.verification import Finding, Verdict, held_to_bound
from optimc.testing.choosing import classifier, detector
from optimc.testing.commands import run_optimc

PASSES = ["simplify", "fuse", "quantize_int8"]


def build(folder: Path, model: onnx.ModelProto, outputs=None, passes=None, options=(), **sections):
    """Builds the model for ONNX Runtime without measuring; how it ended, and the report's cell."""
    onnx.save(model, folder / "model.onnx")
    shape = [d.dim_value or 24 for d in model.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(1).normal(size=(24, *shape[1:])).astype(np.float32)
    np.savez(folder / "data.npz", images=images)
    recipe = {
        "model": {"onnx": "model.onnx"},
        "outputs": outputs or {},
        "data": {"calibration": {"npz": "data.npz", "inputs": {"image": "images"}}},
        "variants": {"v": PASSES if passes is None else passes},
        **sections,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = run_optimc("build", "recipe.yaml", "-o", "out", "--no-measure", *options, cwd=folder)
    report = folder / "out" / "report.json"
    cell = json.loads(report.read_text("utf-8"))["results"][0] if report.is_file() else None
    return done, cell


def names_of(folder: Path) -> list[str]:
    """The outputs of what was delivered."""
    delivered = onnx.load(folder / "out" / "artifacts" / "v" / "ort" / "model.onnx")
    return [output.name for output in delivered.graph.output]


def verdicts(cell) -> dict[str, str]:
    return {step["pass"]: step["verdict"] for step in cell["passes"]}


RAW = {"verify": ["raw_boxes", "raw_scores"]}


@pytest.mark.slow
def test_a_detector_is_judged_by_what_its_boxes_are_chosen_by(tmp_path):
    outputs = {"boxes": RAW, "scores": {**RAW, "rename": "confidence"}, "classes": RAW}
    done, cell = build(tmp_path, detector(), outputs)
    assert done.code == 0, done.err
    assert cell["status"] == "built"
    assert cell["unverified"] == []
    assert verdicts(cell)["quantize_int8"] == "lossy"
    assert cell["engine"]["verdict"] == "lossy"
    assert cell["engine"]["verification"]["against_source"]["sqnr_db"] > 20
    assert "was compared in its place" in cell["passes"][-1]["reason"]
    assert names_of(tmp_path) == ["boxes", "confidence", "classes"]
    notes = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["notes"]
    assert any("`raw_scores` compared on a variant of the engine" in note for note in notes)


@pytest.mark.slow
def test_a_detector_without_inner_values_is_neither_failed_nor_passed(tmp_path):
    done, cell = build(tmp_path, detector())
    assert done.code == 0, done.err
    assert verdicts(cell)["quantize_int8"] == "unverified"
    assert cell["engine"]["verdict"] == "unverified"
    told = cell["passes"][-1]["reason"]
    assert "`boxes` differs on" in told
    assert "NonMaxSuppression chooses by `raw_boxes, raw_scores`" in told
    assert "boxes: {verify: [raw_boxes, raw_scores]}" in told


def test_a_choice_of_classes_says_how_often_it_differs(tmp_path):
    _, cell = build(tmp_path, classifier())
    assert verdicts(cell)["quantize_int8"] == "unverified"
    assert "% of its elements): TopK chooses by `logits`" in cell["passes"][-1]["reason"]


def test_a_label_is_judged_by_scores_that_are_outputs(tmp_path):
    _, cell = build(tmp_path, classifier(scores=True))
    assert verdicts(cell)["quantize_int8"] == "lossy"
    assert cell["engine"]["verdict"] == "lossy"
    assert "TopK chooses by `logits`, which is compared" in cell["passes"][-1]["reason"]


def test_a_label_is_judged_by_inner_scores(tmp_path):
    by_scores = {"verify": ["logits"]}
    _, cell = build(tmp_path, classifier(), {"label": by_scores, "top": by_scores})
    assert verdicts(cell)["quantize_int8"] == "lossy"
    assert cell["engine"]["verdict"] == "lossy"
    assert cell["engine"]["verification"]["against_onnx"]["samples"] > 4
    assert names_of(tmp_path) == ["label", "top"]
    assert "`logits` was compared in its place" in cell["passes"][-1]["reason"]


def test_inner_values_are_held_to_the_default_bound_where_another_output_is_unverified():
    finding = Finding(Verdict.UNVERIFIED, "`top` differs", sqnr_db=5.0)
    judged = held_to_bound(finding, lossy(20.0))
    assert judged.verdict is Verdict.FAILED
    assert held_to_bound(replace(finding, sqnr_db=25.0), lossy(20.0)).verdict is Verdict.UNVERIFIED
    assert held_to_bound(finding, tolerance()).verdict is Verdict.UNVERIFIED


def test_an_inner_value_that_passes_merged_away_is_unverified(tmp_path):
    """The sum before the bias is gone once the bias is folded in: it is never called compared."""
    model = classifier()
    helper = onnx.helper
    nodes = {node.name: node for node in model.graph.node}
    nodes["c"].input.pop()  # the bias becomes an Add of its own
    nodes["c"].output[0] = "sum"
    for tensor in model.graph.initializer:
        if tensor.name == "b":
            bias = onnx.numpy_helper.to_array(tensor).reshape(1, 8, 1, 1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias.copy(), "b"))
    model.graph.node.insert(1, helper.make_node("Add", ["sum", "b"], ["c"], name="add"))
    _, cell = build(tmp_path, model, {"label": {"verify": ["sum"]}, "top": "drop"}, ["fuse"])
    assert verdicts(cell) == {"fuse": "unverified"}
    assert "its inner value `sum` was not compared" in cell["passes"][0]["reason"]
    assert cell["engine"]["verdict"] == "unverified"


def test_outputs_are_dropped_and_renamed_also_to_the_names_of_inner_values(tmp_path):
    outputs = {"label": {"rename": "r"}, "top": "drop", "logits": {"rename": "label"}}
    done, cell = build(tmp_path, classifier(scores=True), outputs, ["simplify"])
    assert done.code == 0, done.err
    assert names_of(tmp_path) == ["r", "label"]
    delivered = onnx.load(tmp_path / "out" / "artifacts" / "v" / "ort" / "model.onnx")
    assert "TopK" not in {node.op_type for node in delivered.graph.node}
    assert cell["engine"]["verdict"] in ("equivalent", "within_tolerance")


@pytest.mark.parametrize(
    ("outputs", "what"),
    [
        ({"label": {"verify": ["logitz"]}}, "no inner value `logitz`"),
        ({"label": {"verify": ["logitz"]}}, "did you mean `logits`"),
        ({"label": {"verify": ["top_values"]}}, "`top_values` has no part in the output `label`"),
        ({"label": {"verify": []}}, "needs at least 1 entry"),
        ({"label": {"rename": "top"}}, "gets the name of the output"),
        ({"label": {"rename": "image"}}, "the name of the input `image`"),
        ({"labl": {"rename": "x"}}, "did you mean `label`"),
        ({"label": {"renam": "x"}}, "did you mean `rename`"),
    ],
)
def test_outputs_that_cannot_be_are_one_message(tmp_path, outputs, what):
    done, _ = build(tmp_path, classifier(), outputs)
    assert done.code == 2
    assert what in done.err
    assert "recipe.yaml:" in done.err
    assert not done.traceback


def test_an_output_that_differs_by_rounding_is_not_said_to_differ_nowhere() -> None:
    one = [{"boxes": np.array([1.0, 2.0, 3.0, 4.0], np.float32)}]
    rounded = [{"boxes": one[0]["boxes"] * np.float32(1 + 1e-6)}]
    far = [{"boxes": one[0]["boxes"] + np.array([0, 0, 0, 1], np.float32)}]
    told = mismatch("boxes", one, rounded)
    assert told == "differs on 1 of 1 probes (by no more than 1 % of its scale)"
    assert mismatch("boxes", one, far) == "differs on 1 of 1 probes (25 % of its elements)"
