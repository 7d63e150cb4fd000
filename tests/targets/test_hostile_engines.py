"""What brings a runtime down ends one worker, with the documented error, and leaves nothing."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from optimc.core.errors import (
    WorkerCrashedError,
    WorkerError,
    WorkerMemoryError,
    WorkerTimeoutError,
)
from optimc.core.registry import target_class
from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.targets.client import EngineWorker, build_engine
from optimc.testing.hostile_models import Trap, folding_trap, run_trap
from optimc.testing.runs import run_model

LIMITS = Limits(memory_mb=2000, seconds=120)
SHORT = Limits(memory_mb=2000, seconds=4)
ERRORS: dict[Trap, tuple[type[WorkerError], str]] = {
    "crash": (WorkerCrashedError, "SIGFPE"),
    "memory": (WorkerMemoryError, "memory limit of 2,000 MB"),
    "hang": (WorkerTimeoutError, "time limit of 4 s"),
}
# A hang costs its whole limit, and what ends it is the same for both runtimes.
HANG = pytest.param("openvino", "hang", marks=pytest.mark.slow)
BUILDS: list[Any] = [
    ("onnxruntime", "crash"),
    ("onnxruntime", "hang"),
    ("openvino", "crash"),
    ("openvino", "memory"),
    HANG,
]
RUNS: list[Any] = [
    ("onnxruntime", "crash"),
    ("onnxruntime", "memory"),
    ("onnxruntime", "hang"),
    ("openvino", "memory"),
    HANG,
]


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no temporary file of a worker is left behind."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) == before
    assert list(place.iterdir()) == []


def _build(runtime: str, model_folder: Path, out: Path, limits: Limits) -> Engine:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"needs {runtime}")
    out.mkdir()
    return build_engine(
        target_class(runtime).model_validate({}),
        model_folder,
        out,
        name=f"building {runtime}",
        limits=limits,
    )


@pytest.mark.parametrize(("runtime", "trap"), BUILDS)
def test_trap_in_a_build(runtime: str, trap: Trap, tmp_path: Path) -> None:
    model = folding_trap(trap)
    model.save(tmp_path / "model")
    kind, words = ERRORS[trap]
    limits = SHORT if trap == "hang" else LIMITS
    with pytest.raises(kind) as caught:
        _build(runtime, tmp_path / "model", tmp_path / "engine", limits)
    assert caught.value.what.startswith(f"building {runtime} ")
    assert words in caught.value.what
    assert caught.value.fix
    # A build that fails writes no manifest: nobody can take what is there for an engine.
    assert not (tmp_path / "engine" / Engine.MANIFEST).exists()


@pytest.mark.parametrize(("runtime", "trap"), RUNS)
def test_trap_in_a_run(runtime: str, trap: Trap, tmp_path: Path) -> None:
    run_trap(trap).save(tmp_path / "model")
    kind, words = ERRORS[trap]
    engine = _build(runtime, tmp_path / "model", tmp_path / "engine", LIMITS)
    limits = SHORT if trap == "hang" else LIMITS
    with EngineWorker(engine, name="the engine", limits=limits) as worker:
        harmless = worker.run({"x": np.zeros((2, 3), np.float32)})
        assert harmless["y"].shape == (2, 3)
        with pytest.raises(kind) as caught:
            worker.run({"x": np.zeros((3, 3), np.float32)})
        assert not psutil.pid_exists(worker.pid)
    assert words in caught.value.what


@pytest.mark.parametrize("trap", ["crash", "memory", "hang"])
def test_traps_are_valid_models(trap: Trap) -> None:
    feeds = [{"x": np.full((2, 3), -1.0, np.float32)}]
    np.testing.assert_array_equal(run_model(folding_trap(trap), feeds)[0]["y"], np.zeros((2, 3)))
    assert np.isfinite(run_model(run_trap(trap), feeds)[0]["y"]).all()
