"""Disks that are full or read-only, and a damaged cache: one message, exit 2, nothing half-written.

Small tmpfs mounts stand for the disks, because permissions do not stop the root user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from optimc.cli import main
from optimc.report.canonical import load_report
from optimc.testing.bad_inputs import Workshop, run_here
from optimc.testing.commands import Finished, run_optimc, temporary_leftovers

BUILD = "build recipe.yaml -o {out} --no-measure"
FULL = "No space left on device"
READ_ONLY = "Read-only file system"

Disk = Callable[[str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Workshop:
    """A workshop with a finished build in `out` and its cache in `cache`."""
    shop = Workshop.make(tmp_path_factory.mktemp("built") / "shop", repository / "recipes")
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTIMC_CACHE_DIR", str(shop.folder / "cache"))
        done = run_here(main, BUILD.format(out="out"), shop.folder)
    assert done.code == 0, done.err
    return shop


@pytest.fixture
def shop(built: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shutil.copytree(built.folder, tmp_path / "shop")
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "shop" / "cache"))
    return Workshop(tmp_path / "shop")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a tmpfs of a size, such as ``300k``; its folder."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        place.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def _mount(*arguments: str) -> None:
    if shutil.which("mount") is None:
        pytest.skip("needs `mount`")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs here: {done.stderr.strip()}")


def _make_read_only(place: Path) -> None:
    _mount("-o", "remount,ro", str(place))


def _fill(folder: Path) -> None:
    """Leaves no byte free."""
    with open(folder / "filler", "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(folder).free == 0


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _refused(done: Finished, *says: str) -> None:
    assert done.code == 2, done.err
    assert done.out == ""
    assert not done.traceback
    errors = done.err[done.err.index("error: ") :]
    assert errors.count("error: ") == 1
    for fragment in (*says, "\n  fix: "):
        assert fragment in errors


@pytest.mark.parametrize("size", ["4k", "20k", "700k", "1200k", "1800k"])
def test_a_full_disk_for_the_cache(
    size: str, shop: Workshop, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = disk(size)
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(place))
    before = _files(shop.folder)
    done = run_here(main, BUILD.format(out="out"), shop.folder)
    _refused(done, f"{place}: cannot write to the cache: {FULL}", "OPTIMC_CACHE_DIR", "--no-cache")
    assert _files(shop.folder) == before
    assert temporary_leftovers(place) == []


@pytest.mark.parametrize("size", ["4k", "20k", "300k", "620k"])
def test_a_full_disk_for_the_output(size: str, shop: Workshop, disk: Disk) -> None:
    out = disk(size) / "out"
    _refused(run_here(main, BUILD.format(out=out), shop.folder), str(out), FULL, "(-o DIR)")
    assert temporary_leftovers(out) == []
    for name in ("report.json", "report.html", "report.md", "junit.xml"):
        text = (out / name).read_text() if (out / name).exists() else "whole}>\n"
        assert text.endswith(("\n", ">"))


def test_an_earlier_build_stays_whole_when_the_disk_is_full(shop: Workshop, disk: Disk) -> None:
    out = disk("2m") / "out"
    shutil.copytree(shop.folder / "out", out)
    _fill(out.parent)
    before = _files(out)
    _refused(run_here(main, BUILD.format(out=out), shop.folder), str(out), FULL, "(-o DIR)")
    assert _files(out) == before
    load_report(out / "report.json")


def test_a_read_only_output(shop: Workshop, disk: Disk) -> None:
    out = disk("2m") / "out"
    shutil.copytree(shop.folder / "out", out)
    _make_read_only(out.parent)
    before = _files(out)
    done = run_optimc(*BUILD.format(out=out).split(), cwd=shop.folder)
    _refused(done, f"{out}: nothing can be written here: {READ_ONLY}", "(-o DIR)")
    assert "reading" not in done.err  # found before any work
    assert _files(out) == before


def test_a_read_only_dump(shop: Workshop, disk: Disk) -> None:
    place = disk("2m")
    _make_read_only(place)
    done = run_here(main, f"{BUILD.format(out='out')} --dump {place}/dump", shop.folder)
    _refused(done, READ_ONLY, "(--dump DIR)")


@pytest.mark.parametrize("filled", [False, True])
def test_a_read_only_cache(
    filled: bool, shop: Workshop, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = disk("20m")
    if filled:
        shutil.copytree(shop.folder / "cache", place, dirs_exist_ok=True)
    _make_read_only(place)
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(place))
    says = f"{place}: cannot write to the cache: {READ_ONLY}"
    _refused(run_here(main, BUILD.format(out="out"), shop.folder), says, "--no-cache")
    if filled:
        assert run_here(main, "cache info", shop.folder).code == 0
        _refused(run_here(main, "cache clear", shop.folder), says)
        _refused(run_here(main, "cache prune", shop.folder), says)


def test_a_read_only_recipe_folder_costs_the_lock_only(shop: Workshop, disk: Disk) -> None:
    place = disk("20m")
    shutil.copytree(shop.folder, place, dirs_exist_ok=True)
    (place / "recipe.lock").unlink()
    _make_read_only(place)
    out = shop.folder / "elsewhere"
    done = run_here(main, BUILD.format(out=out), place)
    assert done.code == 0, done.err
    report = load_report(out / "report.json")
    assert any("lock was not written" in warning for warning in report.warnings)


def test_a_full_disk_for_temporary_files(shop: Workshop, disk: Disk) -> None:
    place = disk("4k")
    done = run_optimc(
        *f"{BUILD.format(out='out')} --no-cache".split(),
        cwd=shop.folder,
        environment={"TMPDIR": str(place)},
    )
    _refused(done, FULL, "TMPDIR")
    assert list(place.iterdir()) == []


def test_a_full_disk_for_what_is_printed(shop: Workshop) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "optimc", "schema", "recipe"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=shop.folder,
            check=False,
        )
    _refused(Finished(done.returncode, "", done.stderr), FULL)


def test_a_cache_with_entries_cut_off_heals(shop: Workshop) -> None:
    cut = 0
    for path in (shop.folder / "cache" / "v1").rglob("*"):
        if path.is_file() and path.stat().st_size > 1:
            os.truncate(path, path.stat().st_size // 2)
            cut += 1
    assert cut > 20
    done = run_here(main, BUILD.format(out="out"), shop.folder)
    assert done.code == 0, done.err
    report = load_report(shop.folder / "out" / "report.json")
    assert {cell.status for cell in report.results} == {"built"}
    assert run_here(main, "cache verify", shop.folder).out.endswith("0 damaged\n")


def _flip_a_bit(path: Path) -> None:
    """The size stays: only the digest tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_cache_with_flipped_bits_heals(shop: Workshop) -> None:
    for path in (shop.folder / "cache" / "v1").rglob("*"):
        if path.is_file() and path.stat().st_size > 1 and path.name != "entry.json":
            _flip_a_bit(path)
    artifacts = shop.folder / "out" / "artifacts"
    before = {name: data for name, data in _files(artifacts).items() if name.endswith(".onnx")}
    done = run_here(main, BUILD.format(out="out"), shop.folder)
    assert done.code == 0, done.err
    assert {name: _files(artifacts)[name] for name in before} == before


def test_a_big_engine_that_changed_in_the_cache_is_not_delivered(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimc.pipeline.cache._READ_BYTES", 0)  # any file is a big one
    engines = list((shop.folder / "cache" / "v1" / "engine").glob("*/*/model.onnx"))
    assert engines
    for path in engines:
        _flip_a_bit(path)
    before = _files(shop.folder / "out")
    _refused(
        run_here(main, BUILD.format(out="out"), shop.folder),
        "this file of the cache changed after it was built",
        "optimc cache verify",
    )
    assert _files(shop.folder / "out") == before
    assert run_here(main, "cache verify", shop.folder).out.endswith(f"{len(engines)} damaged\n")
    assert run_here(main, BUILD.format(out="out"), shop.folder).code == 0
