"""What only one runtime knows: kept where it verifies and is faster, recorded, replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimc.core.errors import InputError
from optimc.core.model import OnnxModel
from optimc.pipeline import legalization, trials
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.trials import Trial
from optimc.report.schema import Report
from optimc.targets import onnxruntime_fusions
from optimc.testing.transformer import gelu_alone

RECIPE = """
model: {{onnx: model.onnx}}
inputs: {{x: {{range: [-1, 1]}}}}
dims: {{batch: {{min: 1, typical: 1, max: 4}}, length: {{min: 1, typical: 8, max: 16}}}}
variants: {{fp32: []}}
targets: {{ort: {{runtime: onnxruntime, fusions: {fusions}}}}}
benchmark: {{at_most: 1 s}}
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    gelu_alone().write_onnx(tmp_path / "model.onnx")
    return tmp_path


def built(folder: Path, fusions: str, **options: Any) -> tuple[Report, dict[str, Any]]:
    """The report and the lock."""
    (folder / "recipe.yaml").write_text(RECIPE.format(fusions=fusions))
    recipe = load_recipe(folder / "recipe.yaml")
    report = Build(
        recipe, BuildOptions(out=folder / "out", command="optimc build", **options), Silent()
    ).run()
    assert report.results[0].status == "built", report.results[0].reason
    return report, json.loads((folder / "recipe.lock").read_text())


def own_operators(folder: Path) -> Counter[str]:
    model = onnx.load(folder / "out" / "artifacts" / "fp32" / "ort" / "model.onnx")
    return Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")


def test_true_keeps_what_verifies_and_the_lock_replays_it(workshop: Path) -> None:
    report, lock = built(workshop, "true", measure=False)
    assert own_operators(workshop) == {"BiasGelu": 1}
    assert lock["choices"]["legalized"] == {"fp32/ort": True}
    assert any("kept, asked for by the recipe" in note for note in report.notes)
    engine = report.results[0].engine
    assert engine.verdict == "within_tolerance"  # type: ignore[union-attr]
    folder = workshop / "out" / "artifacts" / "fp32" / "ort"
    load = json.loads((folder / "manifest.json").read_text())["load"]
    script = f"import numpy as np\nfeeds = {{'x': np.ones((1, 3, 16), np.float32)}}\n{load}"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True)
    built(workshop, "true", measure=False, locked=True)


def test_false_tries_nothing(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_fusions, "fused", None)  # would break if it were called
    report, lock = built(workshop, "false", measure=False)
    assert not own_operators(workshop)
    assert "legalized" not in lock["choices"]
    assert not any("fused" in note for note in report.notes)


def test_auto_is_off_where_nothing_is_measured(workshop: Path) -> None:
    report, lock = built(workshop, "auto", measure=False)
    assert not own_operators(workshop)
    assert "legalized" not in lock["choices"]
    assert any("not tried, as measuring is off" in note for note in report.notes)


@pytest.mark.slow
def test_auto_keeps_what_the_trial_says(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def trial(build: Build, name: str, *_: Any) -> Trial:
        tried.append(name)
        return Trial("legalized", {"legalized": "2.00 [1.90, 2.10] times as fast"})

    monkeypatch.setattr(trials, "_trial", trial)
    report, lock = built(workshop, "auto")
    assert lock["choices"]["legalized"] == {"fp32/ort": True}
    assert own_operators(workshop)["BiasGelu"] == 1
    assert any("kept, 2.00 [1.90, 2.10] times" in note for note in report.notes)
    # The choice stays as long as nothing changes: the same recipe gives the same result.
    again, _ = built(workshop, "auto")
    assert tried == ["fp32/ort"]
    # Measuring on another machine may say otherwise: the lock decides, without a trial.
    monkeypatch.setattr(legalization, "_measured", None)
    replayed, _ = built(workshop, "auto", locked=True, measure=False, use_cache=False)
    assert any("kept, as the lock says" in note for note in replayed.notes)
    assert own_operators(workshop)["BiasGelu"] == 1
    assert again.results[0].engine.sha256 == replayed.results[0].engine.sha256  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_tie_is_not_kept_and_the_lock_says_so(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tie = Trial("plain", {"legalized": "1.00 [0.99, 1.01] times as fast"})
    monkeypatch.setattr(trials, "_trial", lambda *_: tie)
    report, lock = built(workshop, "auto")
    assert lock["choices"]["legalized"] == {"fp32/ort": False}
    assert not own_operators(workshop)
    assert any(
        "not kept, 1.00 [0.99, 1.01] times as fast as without" in note for note in report.notes
    )
    built(workshop, "auto", locked=True, measure=False)
    assert not own_operators(workshop)


@pytest.mark.slow
def test_a_real_trial_gives_its_interval(workshop: Path) -> None:
    report, lock = built(workshop, "auto")
    note = next(note for note in report.notes if "BiasGelu" in note)
    # On a busy machine one second is too short for two rounds: then it stays as it is.
    assert "times as fast as without" in note or "not kept, needs 2 rounds" in note
    kept = lock["choices"]["legalized"]["fp32/ort"]
    assert kept == (": kept" in note) == bool(own_operators(workshop))


def test_a_wrong_fusion_is_rolled_back(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = onnxruntime_fusions.fused

    def wrong(model: OnnxModel) -> Any:
        found = fused(model)
        assert found is not None
        legal, added = found
        graph = legal.ir.graph
        value = next(v for v in graph.initializers.values() if v.shape == [32])
        import onnx_ir as ir

        assert value.const_value is not None
        changed = value.const_value.numpy() + np.float32(0.01)
        value.const_value = ir.tensor(changed, name=value.name)
        return legal, added

    monkeypatch.setattr(onnxruntime_fusions, "fused", wrong)
    report, lock = built(workshop, "true", measure=False)
    assert any("rolled back: against its ONNX model" in note for note in report.notes)
    assert not own_operators(workshop)
    assert "legalized" not in lock["choices"]


def test_a_fusion_that_breaks_is_reported(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript.rewriter import ort_fusions

    def broken(model: Any) -> Any:
        raise IndexError("no third input")

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", broken)
    report, _ = built(workshop, "true", measure=False)
    assert any("the fusions broke: IndexError: no third input" in note for note in report.notes)
    assert not own_operators(workshop)


@pytest.mark.slow
def test_unverified_fusions_are_kept_only_where_they_are_asked_for(workshop: Path) -> None:
    report, _ = built(workshop, "auto", verify="off")
    assert any("not kept: verification is off" in note for note in report.notes)
    assert not own_operators(workshop)
    built(workshop, "true", verify="off", measure=False)
    assert own_operators(workshop)


def test_another_word_is_refused(workshop: Path) -> None:
    with pytest.raises(InputError, match="fusions"):
        built(workshop, "maybe")
