"""A third party's target, by entry point, is built and run in workers as ours are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from optimc.core import registry
from optimc.core.errors import WorkerCrashedError
from optimc.targets.client import EngineWorker, build_engine
from optimc.testing.graphs import nothing_to_do

PLUGIN = """
from __future__ import annotations

import os
from typing import Any, Literal

from optimc.core.targets import Engine
from optimc.targets.onnxruntime import OnnxRuntime, OnnxRuntimeSession


class Aborting(OnnxRuntime):
    runtime: Literal["aborting"] = "aborting"
    rows: int = 2

    @classmethod
    def open(cls, engine: Engine, **overrides: Any) -> AbortingSession:
        return AbortingSession(engine, dict(engine.manifest["session"]))


class AbortingSession(OnnxRuntimeSession):
    def bind(self, feeds: Any) -> Any:
        if len(feeds["x"]) > 2:
            os.abort()
        return super().bind(feeds)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    info = site / "aborting-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "aborting_target.py").write_text(PLUGIN, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aborting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[optimc.targets]\naborting = aborting_target:Aborting\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    caches = (registry._plugins, registry._load)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_engine_of_a_plugin_runs_and_its_crash_ends_its_worker(tmp_path: Path) -> None:
    assert "aborting" in registry.target_names()
    target = registry.target_class("aborting").model_validate({"rows": 3})
    nothing_to_do().save(tmp_path / "model")
    (tmp_path / "engine").mkdir()
    engine = build_engine(target, tmp_path / "model", tmp_path / "engine", name="building")
    with EngineWorker(engine, name="the engine y/aborting") as worker:
        assert worker.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 2)
        with pytest.raises(WorkerCrashedError, match="the engine y/aborting died by SIGABRT"):
            worker.run({"x": np.ones((3, 4), np.float32)})
        assert not psutil.pid_exists(worker.pid)
