"""Builds that are stopped: Ctrl-C, SIGTERM, a closed terminal, and kill -9, at several moments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from optimc.report.canonical import load_report
from optimc.testing.bad_inputs import Workshop
from optimc.testing.commands import run_optimc, temporary_leftovers, workers_with

BUILD = ("build", "recipe.yaml", "-o", "out")
LONG = ("--set", "benchmark.until=time", "--set", "benchmark.at_most=60 s")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Workshop:
    """A workshop with a finished build in `out` and its cache in `cache`."""
    shop = Workshop.make(tmp_path_factory.mktemp("built") / "shop", repository / "recipes")
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    shop.replace("  fp32: []\n", "")  # one cell has every stage
    shop.replace("at_most: 1 s", "at_most: 200 ms")
    done = run_optimc(
        *BUILD, cwd=shop.folder, environment={"OPTIMC_CACHE_DIR": str(shop.folder / "cache")}
    )
    assert done.code == 0, done.err
    return shop


@pytest.fixture
def shop(built: Workshop, tmp_path: Path) -> Workshop:
    shutil.copytree(built.folder, tmp_path / "shop")
    (tmp_path / "tmp").mkdir()
    return Workshop(tmp_path / "shop")


@dataclass(frozen=True)
class Running:
    """A build in a process of its own; what it says goes into a file."""

    process: subprocess.Popen[bytes]
    words: Path
    cache: Path
    temporary: Path

    @classmethod
    def start(cls, shop: Workshop, cache: str, *options: str) -> Running:
        temporary, words = shop.folder.parent / "tmp", shop.folder.parent / "words"
        place = shop.folder / cache
        with open(words, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "optimc", *BUILD, *options],
                cwd=shop.folder,
                env={**os.environ, "OPTIMC_CACHE_DIR": str(place), "TMPDIR": str(temporary)},
                stdout=file,
                stderr=file,
            )
        return cls(process, words, place, temporary)

    def wait_for(self, text: str) -> None:
        """Until the build says `text`."""
        until = time.monotonic() + 120
        while text not in self.words.read_text():
            assert self.process.poll() is None, self.words.read_text()
            assert time.monotonic() < until, self.words.read_text()
            time.sleep(0.01)

    def workers(self) -> list[int]:
        """The build's worker processes."""
        return workers_with("OPTIMC_CACHE_DIR", str(self.cache))


def _finished(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _stop(running: Running, shop: Workshop, *signals: int) -> None:
    """Sends the signals; then nothing of the build is left, and what was there before is whole."""
    before = _finished(shop.folder / "out")
    for number in signals:
        running.process.send_signal(number)
        time.sleep(0.05)
    code = running.process.wait(timeout=60)
    words = running.words.read_text()
    assert code == 130, words
    assert words.count("interrupted: ") == 1, words
    assert words.rstrip().endswith("goes on from what is done"), words
    assert "Traceback" not in words
    assert "bug in optimc" not in words
    assert running.workers() == []
    assert temporary_leftovers(shop.folder) == []
    assert list(running.temporary.iterdir()) == []
    assert _finished(shop.folder / "out") == before
    load_report(shop.folder / "out" / "report.json")


FRESH = [
    ("reading digits.onnx", 0.3),
    ("building and verifying engines", 0.4),
    pytest.param("running passes", 0.0, marks=pytest.mark.slow),
    pytest.param("simplify", 0.1, marks=pytest.mark.slow),
]
MEASURING = [
    ("measuring latency", 0.5),
    pytest.param("measuring accuracy", 0.0, marks=pytest.mark.slow),
]
SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
KILLED = [
    "building and verifying engines",
    pytest.param("reading", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moment", "later"), FRESH)
def test_ctrl_c_while_building(moment: str, later: float, shop: Workshop) -> None:
    running = Running.start(shop, "fresh")
    running.wait_for(moment)
    time.sleep(later)
    _stop(running, shop, signal.SIGINT)


@pytest.mark.parametrize(("moment", "later"), MEASURING)
def test_ctrl_c_while_measuring(moment: str, later: float, shop: Workshop) -> None:
    running = Running.start(shop, "cache", *LONG)
    running.wait_for(moment)
    time.sleep(later)
    _stop(running, shop, signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_other_signals_end_it_as_well(number: int, shop: Workshop) -> None:
    running = Running.start(shop, "cache", *LONG)
    running.wait_for("measuring latency")
    _stop(running, shop, number)


def test_ctrl_c_again_and_again_does_not_cut_the_tidying_short(shop: Workshop) -> None:
    running = Running.start(shop, "fresh")
    running.wait_for("running passes")
    _stop(running, shop, *[signal.SIGINT] * 5)


@pytest.mark.slow
@pytest.mark.parametrize("later", [0.1 * n for n in range(1, 40, 2)])
def test_ctrl_c_at_any_time(later: float, shop: Workshop) -> None:
    running = Running.start(shop, "fresh", *LONG)
    running.wait_for("reading")
    time.sleep(later)
    _stop(running, shop, signal.SIGINT)


@pytest.mark.slow
def test_a_build_that_is_stopped_goes_on_from_what_is_done(shop: Workshop) -> None:
    running = Running.start(shop, "fresh")
    running.wait_for("building and verifying engines")
    _stop(running, shop, signal.SIGINT)
    done = run_optimc(
        *BUILD,
        "--no-measure",
        cwd=shop.folder,
        environment={"OPTIMC_CACHE_DIR": str(running.cache)},
    )
    assert done.code == 0, done.err
    report = load_report(shop.folder / "out" / "report.json")
    assert {p.cache for cell in report.results for p in cell.passes} == {"hit"}


@pytest.mark.parametrize("moment", KILLED)
def test_kill_leaves_no_workers_and_the_next_build_works(moment: str, shop: Workshop) -> None:
    running = Running.start(shop, "fresh")
    running.wait_for(moment)
    until = time.monotonic() + 60
    while not running.workers() and time.monotonic() < until:
        time.sleep(0.01)
    running.process.kill()
    assert running.process.wait(timeout=10) == -signal.SIGKILL
    until = time.monotonic() + 10
    while running.workers() and time.monotonic() < until:
        time.sleep(0.05)
    assert running.workers() == []
    load_report(shop.folder / "out" / "report.json")
    done = run_optimc(
        *BUILD,
        "--no-measure",
        cwd=shop.folder,
        environment={"OPTIMC_CACHE_DIR": str(running.cache)},
    )
    assert done.code == 0, done.err
    assert temporary_leftovers(shop.folder / "out") == []
