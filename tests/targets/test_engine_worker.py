"""Engines in workers: what measuring and verification rely on beyond the contract suite."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest

from optimc.core.errors import CellError, InputError, WorkerError
from optimc.core.registry import target_class
from optimc.core.targets import BuildContext, Engine
from optimc.measure.latency import SamplingPlan, measure
from optimc.targets.client import EngineWorker, build_engine, exchange_processes
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.testing.graphs import GraphBuilder, nothing_to_do

WEIGHT_MB = 16.8


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2048])
    b.node("MatMul", x, b.weight(2048, 2048), to="y")
    b.output("y", ["batch", 2048])
    folder = tmp_path / "engine"
    folder.mkdir()
    return OnnxRuntime().build(b.model(), folder, BuildContext(workspace=tmp_path))


def test_closed_sessions_give_their_memory_back(engine: Engine) -> None:
    with EngineWorker(engine, name="the engine") as worker:
        baseline = worker.memory()["baseline_mb"] or 0.0
        worker.bind({"x": np.zeros((1, 2048), np.float32)})
        for _ in range(12):
            worker.reopen()
            worker.time_block(1)
        # A session takes two to three times its weight, and the allocator keeps a piece of it.
        assert (worker.memory()["current_mb"] or 0.0) < baseline + 5 * WEIGHT_MB


def test_memory_counts_the_engine_above_the_baseline(engine: Engine) -> None:
    with EngineWorker(engine, name="the engine") as worker:
        worker.reopen()
        memory = worker.memory()
    assert memory["peak_mb"] is not None
    assert memory["baseline_mb"] is not None
    assert memory["peak_mb"] - memory["baseline_mb"] > WEIGHT_MB


def test_worker_says_what_is_wrong_with_feeds_and_lives_on(engine: Engine) -> None:
    with EngineWorker(engine, name="the engine") as worker:
        with pytest.raises(InputError, match="the input `x` is missing"):
            worker.run({})
        assert worker.run({"x": np.zeros((2, 2048), np.float32)})["y"].shape == (2, 2048)


def test_overrides_reach_the_session(engine: Engine) -> None:
    with EngineWorker(engine, name="the engine", overrides={"threads": 2}) as worker:
        assert worker.reopen() > 0
    with (
        EngineWorker(engine, name="the engine", overrides={"bogus": 2}) as worker,
        pytest.raises(InputError, match="unknown session setting `bogus`"),
    ):
        worker.reopen()


def test_worker_whose_service_cannot_be_made_is_gone(engine: Engine) -> None:
    (engine.folder / Engine.MANIFEST).write_text("not a manifest", encoding="utf-8")
    before = psutil.Process().children()
    # The traceback holds the half-made worker: without being closed it would live on.
    with pytest.raises(InputError) as caught:
        EngineWorker(engine, name="the engine")
    assert psutil.Process().children() == before
    assert caught.value.__traceback__ is not None


def test_first_result_holds_loading_and_running(engine: Engine) -> None:
    with EngineWorker(engine, name="the engine") as worker:
        feeds = {"x": np.zeros((1, 2048), np.float32)}
        assert worker.first_result_ms(feeds) > 0
        with pytest.raises(RuntimeError, match="nothing is bound"):
            worker.time_block(1)


def test_refused_build_comes_across_as_a_cell_error(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 5, 5], "float64")
    b.node("Conv", x, b.constant(np.ones((2, 2, 1, 1)), dtype="float64"), name="odd", to="y")
    b.output("y", ["batch", 2, 5, 5], "float64")
    b.model().save(tmp_path / "model")
    (tmp_path / "engine").mkdir()
    with pytest.raises(CellError) as caught:
        build_engine(OnnxRuntime(), tmp_path / "model", tmp_path / "engine", name="building")
    assert caught.value.where == "node `odd`"
    assert caught.value.fix


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_full_disk_is_one_message(runtime: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"needs {runtime}")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    try:
        b = GraphBuilder()
        x = b.input("x", ["batch", 256])
        b.node("MatMul", x, b.weight(256, 256), to="y")
        b.output("y", ["batch", 256])
        b.model().save(tmp_path / "model")
        target = target_class(runtime).model_validate({})
        with pytest.raises(InputError, match="cannot write the engine: No space left on device"):
            build_engine(target, tmp_path / "model", disk, name="building")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_workers_are_what_latency_is_measured_on(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    engine = OnnxRuntime().build(nothing_to_do(), folder, BuildContext(workspace=tmp_path))
    plan = SamplingPlan(at_most_s=0.5, block_ms=2.0, warm_up_ms=5.0, min_rounds=2)
    with EngineWorker(engine, name="one") as one, EngineWorker(engine, name="two") as two:
        for worker in (one, two):
            worker.bind({"x": np.zeros((1, 4), np.float32)})
        timings = measure({"one": one, "two": two}, plan)
    assert timings.latency("one").runs > 0
    assert min(timings.latency("two").load_ms) > 0


def scaled(factor: float, folder: Path) -> Engine:
    b = GraphBuilder()
    b.node("Mul", b.input("x", ["batch"]), b.constant(np.float32(factor)), to="y")
    b.output("y", ["batch"])
    place = folder / f"times {factor:g}"
    place.mkdir()
    return OnnxRuntime().build(b.model(), place, BuildContext(workspace=folder))


def test_engines_keep_their_outputs_and_names_when_processes_are_exchanged(tmp_path: Path) -> None:
    feeds = {"x": np.array([1, 2], np.float32)}
    two, three = (scaled(factor, tmp_path) for factor in (2.0, 3.0))
    rng = np.random.default_rng(0)
    with EngineWorker(two, name="two") as a, EngineWorker(three, name="three") as b:
        for worker in (a, b):
            worker.bind(feeds)
        before = (a.pid, b.pid)
        while (a.pid, b.pid) == before:
            exchange_processes((a, b), rng)
        assert {a.pid, b.pid} == set(before)
        for worker, factor in ((a, 2), (b, 3)):
            worker.reopen()
            assert len(worker.time_block(3)) == 3
            np.testing.assert_array_equal(worker.run(feeds)["y"], factor * feeds["x"])
        # Feeds of their own come along, and no call finds the other's engine.
        a.bind({"x": np.ones(5, np.float32)})
        b.bind({"x": np.ones(6, np.float32)})
        for _ in range(4):
            exchange_processes((a, b), rng)
            np.testing.assert_array_equal(a.run(feeds)["y"], 2 * feeds["x"])
            assert len(b.time_block(3)) == 3
            assert len(a.time_block(3)) == 3
        psutil.Process(b.pid).kill()
        with pytest.raises(WorkerError, match="three died"):
            b.run(feeds)
        np.testing.assert_array_equal(a.run(feeds)["y"], 2 * feeds["x"])
