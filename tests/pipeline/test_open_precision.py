"""`precision: auto` for OpenVINO: BF16 where the runtime has it, is faster with it, and holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimc.core.passes import Drop
from optimc.pipeline import finish, trials
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.timing import BuildTimings
from optimc.pipeline.trials import Trial
from optimc.pipeline.tuning import TuningMetric
from optimc.report.schema import Report
from optimc.targets import openvino as target
from optimc.targets.openvino import OpenVino
from optimc.testing.planted_digits import write_digits

openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


def taken_here(precision: str) -> bool:
    """Whether OpenVINO computes in it on this CPU when it is asked to, natively or emulated."""
    import numpy as np
    from openvino import opset13

    OpenVino.preload()
    x = opset13.parameter([1, 16], np.float32)
    product = opset13.matmul(x, opset13.constant(np.ones((16, 16), np.float32)), False, False)
    model = openvino.Model([product], [x])
    config = {"INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(model, "CPU", config)
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) == precision


@pytest.fixture(name="recipe")
def digits_for_openvino(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The quickstart's classifier as it is, its precision left open; only the choice is measured.

    The CPU is said to have BF16: where it has not, OpenVINO emulates it.
    """
    if not taken_here("bf16"):
        pytest.skip("OpenVINO does not compute in bf16 on this CPU")
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(target, "cpu_features", lambda: frozenset({"avx2", "avx512_bf16"}))

    def time_cells(build: Build) -> BuildTimings:
        for result in build.results.values():
            result.cases = result.load_ms = result.footprint = "left out"
        return BuildTimings(noise_floor="left out")

    monkeypatch.setattr(finish, "time_cells", time_cells)
    monkeypatch.setattr(finish, "with_details", lambda build, gate, report: report)
    quickstart = repository / "recipes" / "quickstart"
    recipe = write_digits(
        tmp_path, "{}", "gate: {drop: {top1: 0.01}}", quickstart=quickstart, planted=False
    )
    text = recipe.read_text().replace("ort: {runtime: onnxruntime, threads: 1}", "ov: TARGET")
    text = text.replace("TARGET", "{runtime: openvino, precision: auto}")
    recipe.write_text(text.replace("int8: [simplify, fuse, {quantize_int8: {}}]", "float: []"))
    return recipe


def says(value: str) -> Any:
    """A trial that ends with this value, where it is tried."""

    def trial(build: Build, name: str, engines: dict[str, Any], *_: Any) -> Trial:
        first, *others = engines
        best = value if value in engines else first
        return Trial(best, dict.fromkeys(others, "1.50 times as fast"))

    return trial


def built(recipe: Path, **options: Any) -> tuple[Report, dict[str, Any], str]:
    """The report, the lock's choices, and the precision of the engine that is delivered."""
    out = recipe.parent / "out"
    given = BuildOptions(out=out, command="optimc build", **options)
    report = Build(load_recipe(recipe), given, Silent()).run()
    lock = json.loads((recipe.parent / "recipe.lock").read_text())
    path = out / "artifacts" / "float" / "ov" / "manifest.json"
    return report, lock["choices"], json.loads(path.read_text())["session"]["precision"]


def test_bf16_is_tried_exactly_where_the_runtime_has_it() -> None:
    OpenVino.preload()
    named = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    tried = OpenVino(precision="auto").open_options()["precision"]
    assert tried == (("f32", "bf16") if "BF16" in named else ("f32",))
    assert OpenVino(precision="auto").settled() == OpenVino()
    assert not OpenVino(precision="bf16").open_options()


def test_the_precision_comes_before_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "cpu_features", lambda: frozenset({"amx_bf16"}))
    asked = OpenVino(precision="auto", threads="auto")
    assert list(asked.open_options()) == ["precision", "threads"]
    assert asked.open_options()["precision"] == ("f32", "bf16")
    monkeypatch.setattr(target, "cpu_features", lambda: frozenset({"avx512f", "avx512_vnni"}))
    assert asked.open_options()["precision"] == ("f32",)
    assert asked.not_tried() == {"precision": "this CPU has no bf16 instructions"}


@pytest.mark.slow
def test_auto_says_so_where_the_machine_has_none(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "cpu_features", lambda: frozenset({"avx2"}))
    report, choices, precision = built(recipe)
    assert precision == "f32"
    assert choices["options"] == {"float/ov": {"precision": "f32"}}
    assert "float/ov: precision: f32: this CPU has no bf16 instructions" in report.notes


@pytest.mark.slow
def test_bf16_that_is_faster_is_proved_delivered_locked_and_replayed(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_trial", says("bf16"))
    report, choices, precision = built(recipe)
    assert precision == "bf16"
    assert choices["options"] == {"float/ov": {"precision": "bf16"}}
    assert "float/ov: precision: bf16: bf16 is 1.50 times as fast as f32" in report.notes
    assert report.results[0].status == "built"

    monkeypatch.setattr(trials, "_trial", None)
    _, _, replayed = built(recipe, locked=True, measure=False)
    assert replayed == "bf16"
    _, choices, unmeasured = built(recipe, measure=False)
    assert unmeasured == "f32"
    assert "options" not in choices


@pytest.mark.long
def test_bf16_is_measured_by_real_engines(recipe: Path) -> None:
    """Which of the two is faster is the machine's to say; both are timed, and one is delivered."""
    report, choices, precision = built(recipe)
    assert choices["options"]["float/ov"]["precision"] == precision
    (note,) = [note for note in report.notes if note.startswith("float/ov: precision: ")]
    assert note.startswith(f"float/ov: precision: {precision}: bf16 is ")
    assert note.endswith(" times as fast as f32")


@pytest.mark.long
def test_bf16_that_is_not_accurate_enough_is_not_tried(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    measured = TuningMetric.drop_of_engine

    def drop_of_engine(self: TuningMetric, engine: Any) -> Drop:
        found = measured(self, engine)
        assert found.samples == 300
        assert found.point <= 0.01
        asked.append(engine.manifest["session"]["precision"])
        return Drop(found.point + 0.05, found.lower + 0.05, found.upper + 0.05, found.samples)

    monkeypatch.setattr(TuningMetric, "drop_of_engine", drop_of_engine)
    monkeypatch.setattr(trials, "_trial", says("bf16"))
    report, choices, precision = built(recipe)
    assert precision == "f32"
    assert choices["options"] == {"float/ov": {"precision": "f32"}}
    assert asked == ["bf16"]
    (note,) = [note for note in report.notes if "was not tried" in note]
    assert note.startswith("float/ov: precision: bf16 was not tried: top1 drops by 0.05")
    assert note.endswith("on the tuning data, limit 0.01")


@pytest.mark.slow
def test_who_asks_for_bf16_is_told_where_the_machine_has_none(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("precision: auto", "precision: bf16"))
    report, _, precision = built(recipe, measure=False)
    assert precision == "bf16"
    native = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    told = "float/ov: this CPU has no bf16 instructions: OpenVINO emulates them, which is slow"
    assert (told in report.notes) is not native
