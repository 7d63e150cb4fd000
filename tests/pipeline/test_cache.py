"""The cache: whole or absent, shared by processes, bounded, and checked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimc.core.errors import InputError
from optimc.core.leftovers import TEMPORARY_PREFIX, temporary_prefix
from optimc.pipeline.cache import Cache


def _write(text: str):
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text, encoding="utf-8")

    return write


def _age(cache: Cache, key: str, seconds: float) -> None:
    entry = cache.root / "pass" / key[:2] / key / "entry.json"
    then = time.time() - seconds
    os.utime(entry, (then, then))


def test_an_entry_is_found_again_by_its_kind_and_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get("pass", "k1") is None
    place = cache.put("pass", "k1", _write("x"))
    assert cache.get("pass", "k1") == place
    assert (place / "a.txt").read_text() == "x"
    assert cache.get("engine", "k1") is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        cache.put("pass", "k1", fail)
    assert cache.get("pass", "k1") is None
    assert not list(cache.root.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_truncated_entry_counts_as_absent_and_can_be_written_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place = cache.put("pass", "k1", _write("long text"))
    (place / "a.txt").write_text("lo")
    assert cache.get("pass", "k1") is None
    cache.put("pass", "k1", _write("long text"))
    found = cache.get("pass", "k1")
    assert found is not None
    assert (found / "a.txt").read_text() == "long text"


def test_verify_finds_a_flipped_byte_that_sizes_do_not_show(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place = cache.put("pass", "k1", _write("abc"))
    cache.put("pass", "k2", _write("abc"))
    (place / "a.txt").write_text("abd")
    assert [entry.key for entry in cache.verify()] == ["k1"]
    assert cache.get("pass", "k1") is None
    assert cache.get("pass", "k2") is not None


def test_prune_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number, key in enumerate(["k1", "k2", "k3"]):
        cache.put("pass", key, _write("x" * 1000))
        _age(cache, key, 10_000 - number)
    cache.get("pass", "k1")
    freed = cache.prune(2000)
    assert freed == 1000
    assert [cache.get("pass", key) is not None for key in ("k1", "k2", "k3")] == [True, False, True]


def test_prune_leaves_what_was_just_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("pass", "k1", _write("x" * 1000))
    assert cache.prune(0) == 0
    assert cache.get("pass", "k1") is not None


def test_two_processes_writing_the_same_entry_both_succeed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from optimc.pipeline.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "for n in range(50):\n"
        "    def write(folder):\n"
        "        (folder / 'a.txt').write_text('x' * 1000)\n"
        "    place = cache.put('pass', f'k{n}', write)\n"
        "    assert (place / 'a.txt').read_text() == 'x' * 1000\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(list(Cache(tmp_path).entries())) == 50


def test_a_cache_that_is_off_finds_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    cache = Cache(enabled=False)
    cache.put("pass", "k1", _write("x"))
    folder = cache.folder
    cache.close()
    assert not folder.exists()
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_that_is_a_file_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(InputError, match="OPTIMC_CACHE_DIR"):
        Cache(tmp_path / "cache")


def test_a_size_that_is_no_number_is_one_clear_message(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTIMC_CACHE_SIZE_GB", "much")
    with pytest.raises(InputError, match="`much` is not a size"):
        Cache(tmp_path)


def test_unfinished_work_is_there_again_after_a_kill(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def killed() -> None:
        with cache.unfinished("a") as folder:
            assert folder is not None
            (folder / "checkpoint").write_text("1", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with Cache(tmp_path).unfinished("a") as again:
        assert again is not None
        assert (again / "checkpoint").read_text(encoding="utf-8") == "1"
    assert not again.exists()


def test_unfinished_work_belongs_to_one_build_at_a_time(tmp_path: Path) -> None:
    with Cache(tmp_path).unfinished("a") as first, Cache(tmp_path).unfinished("a") as second:
        assert first is not None
        assert second is None
        with Cache(tmp_path).unfinished("b") as other:
            assert other is not None


def test_without_a_cache_nothing_outlives_the_build() -> None:
    cache = Cache(enabled=False)
    with cache.unfinished("a") as folder:
        assert folder is None
    cache.close()


def test_checkpoints_nobody_came_back_to_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("old", "new"):
        with pytest.raises(KeyboardInterrupt), cache.unfinished(key):
            raise KeyboardInterrupt
    long_ago = time.time() - 30 * 86400
    for path in (tmp_path / "unfinished").glob("old*"):
        os.utime(path, (long_ago, long_ago))
    cache.prune()
    assert {path.stem for path in (tmp_path / "unfinished").iterdir()} == {"new"}


BUSY = """
import os, sys, time
from pathlib import Path
from optimc.pipeline.cache import Cache
cache = Cache(Path(sys.argv[1]))
def write(folder):
    (folder / "half").touch()
    long_ago = time.time() - 3700
    for path in (folder, workspace):
        os.utime(path, (long_ago, long_ago))
    print("there", flush=True)
    sys.stdin.read()
with cache.workspace() as workspace:
    cache.put("pass", "k1", write)
    (workspace / "still there").touch()
"""


def test_what_a_running_process_has_stays_however_old_it_is(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"there\n"
        long_ago = time.time() - 3700
        others = tmp_path / temporary_prefix().replace("tmp-", "tmp-0", 1)  # of another machine
        others.mkdir()
        os.utime(others, (long_ago, long_ago))
        Cache(tmp_path).prune()
        assert len(list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))) == 1
    assert not others.exists()
    assert running.returncode == 0
    assert Cache(tmp_path).get("pass", "k1") is not None
