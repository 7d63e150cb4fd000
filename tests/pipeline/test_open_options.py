"""What a recipe leaves open of its targets: tried in each cell, proved, recorded, replayed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import CellError, InputError
from optimc.measure.latency import SamplingPlan, measure
from optimc.pipeline import finish, open_options, trials
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.engines import EngineBuilder
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.references import reference_target
from optimc.pipeline.timing import BuildTimings
from optimc.pipeline.trials import Trial, taken
from optimc.pipeline.verification import Verdict
from optimc.report.schema import Report
from optimc.targets import threads
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.targets.openvino import OpenVino
from optimc.testing.simulated import Clock, Engine
from optimc.testing.timed import chain

RECIPE = """
model: {onnx: model.onnx}
inputs: {x: {range: [-1, 1]}}
variants: {fp32: []}
targets: {ort: {runtime: onnxruntime, threads: auto, graph_optimization: auto, fusions: false}}
benchmark: {at_most: 1 s}
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that leaves both options of ONNX Runtime open, on a machine of four cores."""
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(threads, "physical_cores", lambda: 4)
    chain(1).write_onnx(tmp_path / "model.onnx")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured after the choice is left out."""

    def time_cells(build: Build) -> BuildTimings:
        for result in build.results.values():
            result.cases = result.load_ms = result.footprint = "left out"
        return BuildTimings(noise_floor="left out")

    monkeypatch.setattr(finish, "time_cells", time_cells)
    monkeypatch.setattr(finish, "with_details", lambda build, gate, report: report)


class Trials:
    """Answers trials from a table: by option, the value that is the fastest."""

    def __init__(self, threads: str, level: str) -> None:
        self.fastest = {"1": threads, "all": level}
        self.tried: list[tuple[str, ...]] = []

    def __call__(self, build: Build, name: str, engines: dict[str, Any], *_: Any) -> Trial:
        first, *others = engines
        self.tried.append((first, *others))
        best = self.fastest[first]
        told = {one: f"{'2.00' if one == best else '0.50'} times as fast" for one in others}
        return Trial(best, told)


def built(folder: Path, **options: Any) -> tuple[Report, dict[str, Any]]:
    """The report and the lock."""
    recipe = load_recipe(folder / "recipe.yaml")
    report = Build(
        recipe, BuildOptions(out=folder / "out", command="optimc build", **options), Silent()
    ).run()
    return report, json.loads((folder / "recipe.lock").read_text())


def manifest(folder: Path) -> dict[str, Any]:
    """The delivered engine's."""
    path = folder / "out" / "artifacts" / "fp32" / "ort" / "manifest.json"
    return dict(json.loads(path.read_text()))


def session(folder: Path) -> tuple[int, str]:
    """How the delivered engine is opened: threads and level."""
    found = manifest(folder)["session"]
    return found["threads"], found["graph_optimization"]


@pytest.mark.usefixtures("untimed")
def test_the_fastest_values_are_proved_delivered_recorded_and_replayed(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Trials(threads="2", level="extended")
    monkeypatch.setattr(trials, "_trial", answers)
    proved: list[tuple[int, str]] = []
    prove = EngineBuilder._prove

    def noted(self: EngineBuilder, name: str, engine: Any, *rest: Any) -> Any:
        settings = engine.manifest["session"]
        proved.append((settings["threads"], settings["graph_optimization"]))
        return prove(self, name, engine, *rest)

    monkeypatch.setattr(EngineBuilder, "_prove", noted)
    report, lock = built(workshop)
    assert answers.tried == [("1", "2", "4"), ("all", "extended", "basic")]
    # The engine's file is the same with both settings: it is proved with those that ship, too.
    assert proved == [(1, "all"), (2, "extended")]
    assert session(workshop) == (2, "extended")
    assert "intra_op_num_threads = 2" in manifest(workshop)["load"]
    chosen = {"threads": 2, "graph_optimization": "extended"}
    assert lock["choices"]["options"] == {"fp32/ort": chosen}
    assert {n: one.value for n, one in report.results[0].options.items()} == chosen
    note = "fp32/ort: threads: 2: 2 is 2.00 times as fast as 1; 4 is 0.50 times as fast as 1"
    assert note in report.notes
    # The lock replays it, and nothing is tried.
    monkeypatch.setattr(trials, "_trial", None)
    built(workshop, locked=True, measure=False)
    assert session(workshop) == (2, "extended")


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_the_lock_decides_and_without_measuring_the_usual_values_stay(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_trial", Trials(threads="4", level="all"))
    built(workshop)
    assert session(workshop) == (4, "all")
    # The same recipe gives the same result: what was measured is kept.
    monkeypatch.setattr(trials, "_trial", None)
    built(workshop)
    assert session(workshop) == (4, "all")
    # Elsewhere another value may be faster: the lock decides, and nothing is tried.
    replayed, _ = built(workshop, locked=True, measure=False, use_cache=False)
    assert session(workshop) == (4, "all")
    assert replayed.results[0].options["threads"].why == "as the lock says"
    # Without measuring the usual values are taken, and the lock no longer says otherwise.
    usual, lock = built(workshop, measure=False)
    assert session(workshop) == (1, "all")
    assert "options" not in lock["choices"]
    assert not usual.results[0].options
    said = "ort: threads: 1, graph_optimization: all: nothing else was tried, as measuring is off"
    assert said in usual.notes
    replayed, _ = built(workshop, measure=False, locked=True)
    assert session(workshop) == (1, "all")
    assert any("the lock holds no other choice" in note for note in replayed.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_what_breaks_is_left_out_or_rolled_back(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_trial", Trials(threads="4", level="all"))
    build_engine, proved = EngineBuilder.build, Build.proved

    def build(self: EngineBuilder, name: str, target: Any, *rest: Any) -> Any:
        if target.graph_optimization == "basic":
            raise CellError("the runtime refuses this level")
        return build_engine(self, name, target, *rest)

    def prove(self: Build, result: Any, *rest: Any) -> Any:
        engine, proof = proved(self, result, *rest)
        if result.cell.target.threads == 4:
            wrong = replace(proof.finding, verdict=Verdict.FAILED, reason="another result")
            proof = replace(proof, finding=wrong)
        return engine, proof

    monkeypatch.setattr(EngineBuilder, "build", build)
    monkeypatch.setattr(Build, "proved", prove)
    report, lock = built(workshop)
    assert report.results[0].status == "built"
    assert session(workshop) == (1, "all")
    assert "options" not in lock["choices"]
    refused = "fp32/ort: graph_optimization: basic was not tried: the runtime refuses this level"
    assert refused in report.notes
    rolled = "fp32/ort: threads: 4, graph_optimization: all: rolled back: another result"
    assert rolled in report.notes
    # The lock of a machine where it proved itself: it fails here, and says which values.
    lock["choices"]["options"] = {"fp32/ort": {"threads": 4, "graph_optimization": "all"}}
    (workshop / "recipe.lock").write_text(json.dumps(lock))
    report, _ = built(workshop, locked=True, measure=False)
    assert report.results[0].status == "failed"
    assert "threads: 4, graph_optimization: all, as the lock says" in str(report.results[0].reason)


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_trial_that_fails_keeps_the_usual_and_is_not_remembered(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Trial:
        raise CellError("the worker died")

    monkeypatch.setattr(trials, "_trial", fails)
    report, lock = built(workshop)
    assert session(workshop) == (1, "all")
    assert lock["choices"]["options"]["fp32/ort"] == {"threads": 1, "graph_optimization": "all"}
    assert any("4 is not known: the worker died" in note for note in report.notes)
    monkeypatch.setattr(trials, "_trial", Trials(threads="4", level="all"))
    built(workshop)
    assert session(workshop) == (4, "all")


@pytest.mark.parametrize(
    "wrong",
    [
        {"fp32/ort": {"threads": -1}},
        {"fp32/ort": {"threads": "auto"}},
        {"fp32/ort": {"fusions": True}},
        {"fp32/ort": 3},
        [],
    ],
)
def test_a_lock_that_cannot_be_replayed_is_refused(workshop: Path, wrong: Any) -> None:
    recipe = load_recipe(workshop / "recipe.yaml")
    build: Any = Build(recipe, BuildOptions(out=workshop / "out", command=""), Silent())
    build.locked = {"choices": {"options": wrong}}
    result: Any = type("Result", (), {"cell": type("Named", (), {"name": "fp32/ort"})})
    with pytest.raises(InputError, match=r"choices.options of fp32/ort cannot be replayed") as said:
        open_options._locked(build, result, recipe.targets["ort"])
    assert "without --locked" in str(said.value.fix)
    assert str(said.value.where).endswith("recipe.lock")


def test_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, counts in ((1, (1,)), (2, (1, 2)), (6, (1, 3, 6)), (64, (1, 32, 64))):
        monkeypatch.setattr(threads, "physical_cores", lambda cores=cores: cores)
        assert threads.thread_counts() == counts
    assert OnnxRuntime(threads="auto").open_options() == {"threads": (1, 32, 64)}
    levels = OnnxRuntime(graph_optimization="auto").open_options()
    assert levels == {"graph_optimization": ("all", "extended", "basic")}
    assert OpenVino(threads="auto").open_options() == {"threads": (1, 32, 64)}
    # What the recipe says is not tried, and what has a fixed default is not open.
    assert not OnnxRuntime(threads=4).open_options()
    assert not OpenVino().open_options()


def test_settled_targets_leave_nothing_open_and_keep_the_rest() -> None:
    asked = OnnxRuntime(threads="auto", graph_optimization="auto", fusions=False, optional=True)
    usual = asked.settled()
    assert usual == OnnxRuntime(threads=1, fusions=False, optional=True)
    assert asked.settled({"threads": 8}).threads == 8
    assert not asked.settled({"threads": 8}).open_options()
    assert OpenVino(threads=2).settled() == OpenVino(threads=2)
    with pytest.raises(ValueError, match="threads"):
        asked.settled({"threads": "many"})
    # Sources run with the threads that the cell came to: a speed-up is not one of more cores.
    assert reference_target(asked.settled({"threads": 8})) == OnnxRuntime(threads=8)


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "true", "2000"])
def test_other_values_are_refused(workshop: Path, value: str) -> None:
    path = workshop / "recipe.yaml"
    path.write_text(RECIPE.replace("threads: auto", f"threads: {value}"))
    with pytest.raises(InputError, match="threads"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("milliseconds", "winner"),
    [
        ({"1": 4.0, "2": 2.0, "4": 1.0}, "4"),
        ({"1": 4.0, "2": 2.0, "4": 3.0}, "2"),
        ({"1": 1.0, "2": 2.0, "4": 3.0}, "1"),
        # As fast with all cores as with half of them: the rest is left to others.
        ({"1": 4.0, "2": 2.0, "4": 2.0}, "2"),
    ],
)
def test_more_is_taken_only_where_it_is_clearly_faster(
    milliseconds: dict[str, float], winner: str
) -> None:
    clock = Clock()
    engines = {
        name: Engine(clock, cost, seed=number)
        for number, (name, cost) in enumerate(milliseconds.items())
    }
    names = tuple(engines)
    timings = measure(
        engines,
        SamplingPlan(at_most_s=30.0),
        decided=lambda sampled: taken(sampled, names)[1],
        clock=clock,
    )
    found, clear = taken(timings, names)
    assert found == winner
    assert timings.stopped == ("decided" if clear else "time is up")


def test_one_round_decides_nothing() -> None:
    clock = Clock()
    engines = {"1": Engine(clock, 400.0), "2": Engine(clock, 100.0)}
    timings = measure(engines, SamplingPlan(at_most_s=0.1), clock=clock)
    assert taken(timings, ("1", "2")) == ("1", False)
    reason = timings.ratio("2", "1")
    assert isinstance(reason, str)
    assert Trial("1", {"2": reason}).told_against("2", "1") == reason


@pytest.mark.slow
def test_a_real_trial_is_of_this_machine(workshop: Path) -> None:
    report, lock = built(workshop)
    chosen = lock["choices"]["options"]["fp32/ort"]
    assert chosen["threads"] in (1, 2, 4)
    assert chosen["graph_optimization"] in ("all", "extended", "basic")
    assert session(workshop) == (chosen["threads"], chosen["graph_optimization"])
    cell = report.results[0]
    assert cell.latency[0].threads == chosen["threads"]  # type: ignore[union-attr]
    assert report.source.latency[0].threads == chosen["threads"]  # type: ignore[union-attr]
    assert cell.options["threads"].value == chosen["threads"]
    html = (workshop / "out" / "report.html").read_text()
    assert f"fp32/ort: threads {chosen['threads']}" in html
    shutil.rmtree(workshop / "out")
    replayed, _ = built(workshop, locked=True, measure=False)
    assert session(workshop) == (chosen["threads"], chosen["graph_optimization"])
    again = replayed.results[0]
    assert again.engine.sha256 == cell.engine.sha256  # type: ignore[union-attr]
