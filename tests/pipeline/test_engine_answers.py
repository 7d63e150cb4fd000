"""Engines answer in the process that built them, from their files; else in one of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import CellError
from optimc.core.targets import Engine, Target
from optimc.core.worker import Limits
from optimc.pipeline import engine_answers
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.cache import Cache
from optimc.pipeline.engine_answers import Asking
from optimc.pipeline.engines import EngineBuilder
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.observer import Silent
from optimc.pipeline.probes import Probe
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import Cell
from optimc.targets import openvino_ir
from optimc.targets.client import EngineWorker, OpenEngine
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.targets.openvino import OpenVino
from optimc.targets.service import BuildService
from optimc.testing.graphs import GraphBuilder
from optimc.testing.inline_workers import inline_workers

TARGETS: list[Target] = [OnnxRuntime(), OpenVino()]
BY_RUNTIME = pytest.mark.parametrize("target", TARGETS, ids=[t.runtime for t in TARGETS])
RECIPE = """
model: {{onnx: model.onnx}}
dims: {{batch: {{min: 1, typical: 2, max: 4}}}}
variants: {{fp32: []}}
targets: {{it: {{runtime: {runtime}}}}}
"""


def product() -> GraphBuilder:
    b = GraphBuilder()
    b.output(b.node("MatMul", b.input("x", ["batch", 64]), b.weight(64, 32), to="y"), ["batch", 32])
    return b


PROBES = tuple(
    Probe(f"batch={n}", {"x": np.random.default_rng(n).normal(size=(n, 64)).astype(np.float32)})
    for n in (1, 2, 5)
)


@pytest.fixture
def builder(tmp_path: Path) -> EngineBuilder:
    work = tmp_path / "work"
    work.mkdir()
    cache = Cache(tmp_path / "cache")
    return EngineBuilder(cache, Limits(seconds=120), work, 0, InnerValues({}, work), {})


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that processes of their own were started for."""
    started: list[str] = []

    class Noted(EngineWorker):
        def __init__(self, engine: Engine, *, name: str, limits: Limits | None = None) -> None:
            started.append(name)
            super().__init__(engine, name=name, limits=limits)

    monkeypatch.setattr(engine_answers, "EngineWorker", Noted)
    return started


@pytest.mark.slow
@BY_RUNTIME
def test_the_process_that_built_says_what_a_fresh_one_says(
    target: Target, builder: EngineBuilder, workers: list[str]
) -> None:
    engine = builder.build("it", target, product().model(), PROBES)
    there = builder.answers.of("it", engine, PROBES)
    assert workers == []
    fresh = builder.answers.of("it", engine, PROBES)
    assert workers == ["the engine it"]
    assert there.taken == fresh.taken
    for a, b in zip(there.runs, fresh.runs, strict=True):
        assert a["y"].tobytes() == b["y"].tobytes()


def test_answers_are_of_these_probes_and_used_once(
    builder: EngineBuilder, workers: list[str]
) -> None:
    with inline_workers():
        model = product().model()
        engine = builder.build("it", OnnxRuntime(), model, PROBES)
        assert len(builder.answers.of("it", engine, PROBES[:1]).runs) == 1
        assert workers == ["the engine it"]
        assert builder.build("it", OnnxRuntime(), model, PROBES).folder == engine.folder
        builder.answers.of("it", engine, PROBES)
        assert len(workers) == 2, "what stands in the cache is asked anew"
        other = builder.build("other", OnnxRuntime(optimized=True), model, PROBES)
        builder.answers.of("other", other, PROBES)
        assert len(workers) == 3, "what is delivered was not opened by the build"


@pytest.mark.parametrize("method", ["run", "precisions"])
def test_what_breaks_there_is_asked_of_a_process_of_its_own(
    method: str, builder: EngineBuilder, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise CellError("not today")

    monkeypatch.setattr(BuildService, method, broken)
    with inline_workers():
        engine = builder.build("it", OnnxRuntime(), product().model(), PROBES)
        assert len(builder.answers.of("it", engine, PROBES).runs) == len(PROBES)
    assert workers == ["the engine it"]


@pytest.mark.slow
def test_a_crash_there_costs_nothing_but_the_answers(
    builder: EngineBuilder, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OpenEngine.run

    def killed(self: OpenEngine, feeds: Any) -> Any:
        os.kill(self.worker.pid, signal.SIGKILL)
        return right(self, feeds)

    monkeypatch.setattr(OpenEngine, "run", killed)
    engine = builder.build("it", OnnxRuntime(), product().model(), PROBES)
    assert builder.cache.is_whole(engine.folder)
    assert len(builder.answers.of("it", engine, PROBES).runs) == len(PROBES)
    assert workers == ["the engine it"]


def test_other_files_in_the_cache_are_not_taken_for_those_asked(
    builder: EngineBuilder, workers: list[str]
) -> None:
    with inline_workers():
        engine = builder.build("it", OnnxRuntime(), product().model())
        asking = Asking("it", PROBES)
        asking.found = builder.answers.of("it", engine, PROBES)
        asking.files = {**engine.manifest["files"], "model.onnx": {"sha256": "0", "bytes": 1}}
        builder.answers.keep(engine, asking)
        builder.answers.of("it", engine, PROBES)
    assert len(workers) == 2


def built(folder: Path, runtime: str) -> Cell:
    product().model().write_onnx(folder / "model.onnx")
    (folder / "recipe.yaml").write_text(RECIPE.format(runtime=runtime))
    options = BuildOptions(
        out=folder / "out", command="optimc build", use_cache=False, measure=False
    )
    with inline_workers():
        report = Build(load_recipe(folder / "recipe.yaml"), options, Silent()).run()
    return report.results[0]


@BY_RUNTIME
def test_a_build_starts_no_process_to_prove_an_engine(
    target: Target, workers: list[str], tmp_path: Path
) -> None:
    cell = built(tmp_path, target.runtime)
    assert cell.engine.verdict in ("equivalent", "within_tolerance")  # type: ignore[union-attr]
    assert workers == []


def test_the_files_are_proved_not_what_they_were_made_from(
    workers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong while the files are written is caught, whatever the converter holds."""
    right = openvino_ir.number_names

    def damaged(xml: Path, known: frozenset[str]) -> None:
        right(xml, known)
        weights = np.fromfile(xml.with_suffix(".bin"), np.float32)
        (weights * np.float32(1.01)).tofile(xml.with_suffix(".bin"))

    monkeypatch.setattr(openvino_ir, "number_names", damaged)
    cell = built(tmp_path, "openvino")
    assert cell.status == "failed"
    assert "did not prove itself" in str(cell.reason)
    assert not (tmp_path / "out" / "artifacts" / "fp32" / "it").exists()
