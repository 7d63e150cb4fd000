"""`max_drop` in real builds: one spoiled layer stays in float, and the choice is locked."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import InputError
from optimc.core.passes import Budget, Drop
from optimc.measure.statistics import Interval
from optimc.pipeline.accuracy import _default_bound
from optimc.pipeline.assemble import CellResult
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.plan import make_plan
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import Report
from optimc.report.verdict import exit_code
from optimc.testing.planted_digits import write_digits


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OPTIMC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


class Listener(Silent):
    """Keeps what passes say while they run."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_progress(self, name: str, share: float, text: str) -> None:
        assert 0 <= share <= 1
        self.said.append(text)


def built(recipe: Path, **options: Any) -> tuple[Build, Report, Listener]:
    listener = Listener()
    given = BuildOptions(out=recipe.parent / "out", command="optimc build", **options)
    build = Build(load_recipe(recipe), given, listener)
    return build, build.run(), listener


def digits(folder: Path, repository: Path, options: str, more: str = "", **planted: bool) -> Path:
    quickstart = repository / "recipes" / "quickstart"
    return write_digits(folder, options, more, quickstart=quickstart, **planted)


@pytest.mark.slow
def test_the_spoiled_layer_alone_stays_in_float(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository, "{max_drop: 0.01}", "gate: {drop: {top1: 0.05}}")
    build, report, listener = built(recipe, measure=True)
    outcome = build.results["int8/ort"].outcomes[-1]
    assert len(outcome.choice["float"]) == 1
    kept = [r for r in outcome.refusals if "max_drop" in r["reason"]]
    assert [r["where"] for r in kept] == ["node_conv2d_4"]
    assert "ms (95 %:" in kept[0]["reason"]
    (note,) = [note for note in report.notes if "max_drop 0.01 of top1 met" in note]
    said = re.search(r"met with 1 of (\d+) layers in float", note)
    assert said is not None
    assert int(said[1]) >= 8
    assert any("alone in INT8" in text for text in listener.said)
    assert any("top1 drops by" in text for text in listener.said)
    checks = {check.name: check for check in report.gate.checks}
    assert checks["max_drop.top1"].verdict == "passed"
    lock = json.loads((tmp_path / "recipe.lock").read_text())
    assert lock["cells"]["int8/ort"]["passes"][-1]["choice"] == outcome.choice

    locked, _, quiet = built(recipe, measure=False, locked=True, use_cache=False)
    again = locked.results["int8/ort"].outcomes[-1]
    assert again.choice == outcome.choice
    assert again.model.digest == outcome.model.digest
    assert not any("alone in INT8" in text for text in quiet.said)


def test_a_sound_model_keeps_nothing(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository, "{max_drop: 0.02}", planted=False)
    build, report, _ = built(recipe, measure=False)
    assert build.results["int8/ort"].outcomes[-1].choice == {"float": []}
    assert report.gate.verdict == "none"


def test_a_limit_that_is_not_met_in_time_fails_the_gate(tmp_path: Path, repository: Path) -> None:
    """Without a gate of its own: the best found is delivered, and the exit code says no."""
    recipe = digits(tmp_path, repository, "{max_drop: 0.01, at_most: 1 ms}")
    build, report, _ = built(recipe, measure=False)
    outcome = build.results["int8/ort"].outcomes[-1]
    assert outcome.choice == {"float": []}
    assert not outcome.budget.met  # type: ignore[union-attr]
    assert report.gate.verdict == "failed"
    assert exit_code(report) == 4
    assert (tmp_path / "out" / "artifacts" / "int8" / "ort" / "manifest.json").exists()
    assert any("NOT met" in note and "the time was up" in note for note in report.notes)


def test_tuning_data_and_a_metric_are_asked_for(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository, "{max_drop: 0.01}")
    whole = recipe.read_text()
    lines = [line for line in whole.splitlines() if not line.startswith("  tuning:")]
    recipe.write_text("\n".join(lines))
    with pytest.raises(InputError, match="chooses on tuning data") as caught:
        make_plan(load_recipe(recipe))
    assert "recipe.yaml:" in str(caught.value.where)
    assert "data.tuning" in str(caught.value.fix)
    recipe.write_text(whole.replace("metrics: {top1: {}}\n", ""))
    with pytest.raises(InputError, match="first metric, and there is none"):
        make_plan(load_recipe(recipe))


def test_labels_of_the_tuning_split_are_asked_for(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository, "{max_drop: 0.01}")
    text = recipe.read_text().replace(
        "tuning.npz, inputs: {input: images}, labels: labels", "tuning.npz, inputs: {input: images}"
    )
    recipe.write_text(text)
    with pytest.raises(InputError, match="tuning data have none"):
        built(recipe, measure=False)


def test_the_plan_says_what_the_pass_reads(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository, "{max_drop: 0.01}")
    text = make_plan(load_recipe(recipe)).explain()
    assert "reads calibration, device, spec, tuning" in text


@pytest.mark.parametrize(
    ("met", "lower", "status"),
    [(True, 0.02, "failed"), (True, 0.001, "built"), (False, 0.5, "built")],
)
def test_evaluation_data_may_refute_a_budget(met: bool, lower: float, status: str) -> None:
    """Clearly worse there than `max_drop`, though it was met on the tuning data: a failed cell."""
    budget = Budget("max_drop.top1", 0.01, Drop(0.0, -0.01, 0.01, 100), met)
    drop = Interval(lower + 0.01, (lower, lower + 0.02), lower, lower + 0.02, 300, "made up")
    recipe = SimpleNamespace(gate=None)
    result = CellResult(cell=None)  # type: ignore[arg-type]
    outcome = SimpleNamespace(modified=True, lossy=True, budget=budget)
    result.outcomes = (outcome,)  # type: ignore[assignment]
    result.metrics = {"top1": SimpleNamespace(drop=drop)}  # type: ignore[dict-item]
    _default_bound(SimpleNamespace(recipe=recipe), result)  # type: ignore[arg-type]
    assert result.status == status
    assert (result.reason is None) == (status == "built")


_RESNET = """\
model: {{onnx: {model}}}
dims: {{batch: {{min: 1, typical: 1, max: 32}}}}
data:
  calibration:
    npz: calibration.npz
    inputs: {{input: images}}
    transform: &t
      - nchw
      - divide: 255
      - normalize: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
  tuning: {{npz: tuning.npz, inputs: {{input: images}}, labels: labels, transform: *t}}
  evaluation: {{npz: evaluation.npz, inputs: {{input: images}}, labels: labels, transform: *t}}
metrics: {{top1: {{}}}}
variants: {{int8: [simplify, fuse, {{quantize_int8: {options}}}]}}
targets: {{ort: {{runtime: onnxruntime, threads: 1}}}}
"""


@pytest.mark.slow
def test_ranges_that_cut_too_much_are_bought_back_with_float(tmp_path: Path, shared: Path) -> None:
    """A trained ResNet-20 whose every range is cut to 84 %: no single layer is to blame."""
    with np.load(shared / "data" / "cifar10_calib.npz", allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    np.savez(tmp_path / "calibration.npz", images=images[:100])
    np.savez(tmp_path / "tuning.npz", images=images[500:800], labels=labels[500:800])
    np.savez(tmp_path / "evaluation.npz", images=images[800:900], labels=labels[800:900])
    recipe = tmp_path / "recipe.yaml"
    options = "{ranges: percentile, percentile: 92.0, max_drop: 0.03, at_most: 3 min}"
    text = _RESNET.format(model=shared / "models" / "resnet20.onnx", options=options)
    recipe.write_text(text)
    build, report, _ = built(recipe, measure=False)
    outcome = build.results["int8/ort"].outcomes[-1]
    assert outcome.budget is not None
    assert outcome.budget.met
    assert outcome.budget.drop.point <= 0.03
    assert 1 <= len(outcome.choice["float"]) < 20
    assert any("layers in float" in note for note in report.notes)


_OWN_METRIC = """\
from own_words import SCALE


def right(outputs, labels):
    return SCALE * (next(iter(outputs.values())).argmax(-1) == labels)


right.better = "higher"
"""


@pytest.mark.slow
def test_choices_by_a_users_metric_are_kept_while_its_code_is(
    tmp_path: Path, repository: Path
) -> None:
    """Training that was killed goes on by the same key; see `Cache.unfinished`."""
    recipe = digits(tmp_path, repository, "{max_drop: 0.02}", planted=False)
    text = recipe.read_text()
    recipe.write_text(text.replace("{top1: {}}", "{own: {call: 'own_rights:right'}}"))
    (tmp_path / "own_rights.py").write_text(_OWN_METRIC)
    helper = tmp_path / "own_words.py"
    helper.write_text("SCALE = 1.0\n")
    first, _, _ = built(recipe, measure=False)
    assert not first.results["int8/ort"].outcomes[-1].cached
    again, report, _ = built(recipe, measure=False)
    assert again.results["int8/ort"].outcomes[-1].cached
    assert not any("has no file" in warning for warning in report.warnings)
    helper.write_text("SCALE = 2.0\n")
    changed, _, _ = built(recipe, measure=False)
    assert not changed.results["int8/ort"].outcomes[-1].cached


@pytest.mark.slow
def test_a_users_metric_without_a_file_is_said_to_keep_nothing(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("made_in_memory")
    exec(_OWN_METRIC.replace("from own_words import SCALE", "SCALE = 1.0"), module.__dict__)
    monkeypatch.setitem(sys.modules, "made_in_memory", module)
    recipe = digits(tmp_path, repository, "{max_drop: 0.02}", planted=False)
    text = recipe.read_text()
    recipe.write_text(text.replace("{top1: {}}", "{own: {call: 'made_in_memory:right'}}"))
    _, report, _ = built(recipe, measure=False)
    assert sum("`made_in_memory` has no file" in warning for warning in report.warnings) == 1
    again, _, _ = built(recipe, measure=False)
    assert not again.results["int8/ort"].outcomes[-1].cached
