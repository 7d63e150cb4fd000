"""Builds that are killed at random moments, and two at once on one cache and one output."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimc.core.files import file_sha256
from optimc.pipeline.cache import Cache
from optimc.report.canonical import load_report
from optimc.testing.bad_inputs import Workshop
from optimc.testing.commands import run_optimc, temporary_leftovers, workers_with

BUILD = ("build", "recipe.yaml", "-o", "out", "--no-measure")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Workshop, float]:
    """A workshop without cache or output, and how long its build takes in seconds."""
    shop = Workshop.make(tmp_path_factory.mktemp("fresh") / "shop", repository / "recipes")
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    shop.replace("  int8: [simplify, fuse, quantize_int8]\n", "  small: [simplify]\n")
    started = time.monotonic()
    assert run_optimc(*BUILD, cwd=shop.folder, environment=_environment(shop)).code == 0
    seconds = time.monotonic() - started
    for name in ("cache", "out", "tmp"):
        shutil.rmtree(shop.folder / name)
    (shop.folder / "recipe.lock").unlink()
    return shop, seconds


def _environment(shop: Workshop) -> dict[str, str]:
    (shop.folder / "tmp").mkdir(exist_ok=True)
    return {
        "OPTIMC_CACHE_DIR": str(shop.folder / "cache"),
        "TMPDIR": str(shop.folder / "tmp"),
    }


def _start(shop: Workshop) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "optimc", *BUILD],
        cwd=shop.folder,
        env={**os.environ, **_environment(shop)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _whole_or_absent(shop: Workshop) -> None:
    cache = Cache(shop.folder / "cache")
    entries = (path for path in cache.root.glob("*/*/*") if ".optimc-tmp-" not in str(path))
    for folder in entries:
        assert cache.is_whole(folder), folder
    out = shop.folder / "out"
    if (out / "report.json").exists():
        load_report(out / "report.json")
    for manifest in out.glob("artifacts/*/*/manifest.json"):
        for name, file in json.loads(manifest.read_text())["files"].items():
            assert file_sha256(manifest.parent / name) == file["sha256"]
    lock = shop.folder / "recipe.lock"
    assert not lock.exists() or json.loads(lock.read_text())["schema"] == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=pytest.mark.long if part % 2 else pytest.mark.slow)
        for part in range(6)
    ],
)
def test_kill_at_random_moments(part: int, fresh: tuple[Workshop, float], tmp_path: Path) -> None:
    """Five moments a part, 30 in all: then no worker is left, and the next build goes on."""
    original, seconds = fresh
    moments = random.Random(part)
    for number in range(5):
        shop = Workshop(tmp_path / f"shop{number}")
        shutil.copytree(original.folder, shop.folder)
        process = _start(shop)
        time.sleep(moments.uniform(0.05, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        until = time.monotonic() + 10
        while workers_with("OPTIMC_CACHE_DIR", str(shop.folder / "cache")):
            assert time.monotonic() < until
            time.sleep(0.05)
        _whole_or_absent(shop)
        done = run_optimc(*BUILD, cwd=shop.folder, environment=_environment(shop))
        assert done.code == 0, done.err
        _whole_or_absent(shop)
        assert temporary_leftovers(shop.folder) == []
        assert list((shop.folder / "tmp").iterdir()) == []


@pytest.mark.slow
def test_two_builds_at_once_on_one_cache_and_one_output(
    fresh: tuple[Workshop, float], tmp_path: Path
) -> None:
    shop = Workshop(tmp_path / "shop")
    shutil.copytree(fresh[0].folder, shop.folder)
    processes = [_start(shop), _start(shop)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    _whole_or_absent(shop)
    report = load_report(shop.folder / "out" / "report.json")
    assert {cell.status for cell in report.results} == {"built"}
    assert temporary_leftovers(shop.folder) == []
    assert run_optimc(*BUILD, "--locked", cwd=shop.folder, environment=_environment(shop)).code == 0
