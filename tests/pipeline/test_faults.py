"""A fault at every write of a build: afterwards all is whole or absent, and the next one works."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from optimc.cli import main
from optimc.core.files import file_sha256
from optimc.pipeline.cache import Cache
from optimc.report.canonical import load_report
from optimc.testing.bad_inputs import Workshop, run_here
from optimc.testing.commands import Finished, temporary_leftovers
from optimc.testing.faults import Faults, injected
from optimc.testing.inline_workers import inline_workers

BUILD = "build recipe.yaml -o out --no-measure"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Workshop:
    """A workshop with an older build in `out`, of the plain variant alone, and no cache."""
    shop = Workshop.make(tmp_path_factory.mktemp("fresh") / "shop", repository / "recipes")
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    shop.replace("  int8: [simplify, fuse, quantize_int8]\n", "  small: [simplify]\n")
    done = _run(shop, Faults([]), f"{BUILD} --variant fp32")
    assert done.code == 0, done.err
    shutil.rmtree(shop.folder / "cache")
    return shop


def _run(shop: Workshop, faults: Faults, command: str = BUILD) -> Finished:
    with pytest.MonkeyPatch.context() as patch, inline_workers():
        patch.setenv("OPTIMC_CACHE_DIR", str(shop.folder / "cache"))
        with injected(faults):
            return run_here(main, command, shop.folder)


def _whole(shop: Workshop) -> None:
    """What is there is whole: the cache's entries, the report, the engines."""
    cache = Cache(shop.folder / "cache")
    for folder in cache.root.glob("*/*/*"):
        assert cache.is_whole(folder), folder
    out = shop.folder / "out"
    report = load_report(out / "report.json")
    assert all((out / name).stat().st_size for name in ("report.html", "report.md", "junit.xml"))
    for manifest in out.glob("artifacts/*/*/manifest.json"):
        for name, file in json.loads(manifest.read_text())["files"].items():
            assert file_sha256(manifest.parent / name) == file["sha256"]
    assert report.results
    lock = shop.folder / "recipe.lock"
    assert not lock.exists() or json.loads(lock.read_text())["schema"] == 1


def _counted(shop: Workshop, tmp_path: Path) -> list[str]:
    copy = Workshop(tmp_path / "counting")
    shutil.copytree(shop.folder, copy.folder)
    faults = Faults([copy.folder])
    assert _run(copy, faults).code == 0
    return faults.seen


def _check(fresh: Workshop, folder: Path, at: int, short: bool) -> None:
    shutil.copytree(fresh.folder, folder)
    shop = Workshop(folder)
    faults = Faults([shop.folder], at, short)
    done = _run(shop, faults)
    told = f"fault at {at} ({faults.seen[-1] if faults.seen else None}), short {short}: {done.err}"
    assert faults.injected, told
    assert not done.traceback, told
    assert done.code in (0, 2), told
    if done.code == 2:
        assert done.err.count("error: ") == 1, told
        assert "\n  fix: " in done.err, told
    _whole(shop)
    again = _run(shop, Faults([]))
    assert again.code == 0, f"{told}\nthen: {again.err}"
    _whole(shop)
    assert temporary_leftovers(shop.folder) == [], told
    shutil.rmtree(folder)


def test_faults_at_some_writes(fresh: Workshop, tmp_path: Path) -> None:
    """A seeded choice of what the slow test does everywhere."""
    seen = _counted(fresh, tmp_path)
    chosen = random.Random(0)
    for at in sorted(chosen.sample(range(len(seen)), 6)):
        _check(fresh, tmp_path / "shop", at, seen[at].startswith("open") and chosen.random() < 0.5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fault_at_every_write(fresh: Workshop, tmp_path: Path) -> None:
    seen = _counted(fresh, tmp_path)
    assert len(seen) > 60
    for at, call in enumerate(seen):
        _check(fresh, tmp_path / "shop", at, short=False)
        if call.startswith("open"):
            _check(fresh, tmp_path / "shop", at, short=True)
