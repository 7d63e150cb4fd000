"""What killed processes leave is removed; what running ones have is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from optimc.core.files import atomic_folder, atomic_write
from optimc.core.leftovers import TEMPORARY_PREFIX, is_alive, remove_leftovers, temporary_prefix

KILLED = """
import os, signal, sys
from pathlib import Path
from optimc.core.files import atomic_folder, atomic_write
with atomic_write(Path(sys.argv[1]) / "report.json") as file:
    file.write("half")
    file.flush()
    with atomic_folder(Path(sys.argv[1]) / "artifacts") as folder:
        (folder / "model.onnx").write_bytes(b"half")
        {end}
"""


def test_a_killed_process_s_files_are_removed(tmp_path: Path) -> None:
    program = KILLED.format(end="os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "mine").write_text("the user's own")
    assert remove_leftovers(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_running_process_s_files_stay(tmp_path: Path) -> None:
    program = KILLED.format(end="print('there', flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"there\n"
        assert remove_leftovers(tmp_path) == 0
        assert len(list(tmp_path.iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "report.json"]


def test_another_process_with_the_same_number_does_not_keep_them(tmp_path: Path) -> None:
    place, pid, start, _ = temporary_prefix().removeprefix(TEMPORARY_PREFIX).split("-")
    assert int(pid) == os.getpid()
    (tmp_path / f"{TEMPORARY_PREFIX}{place}-{pid}-{int(start) - 1}-x").touch()
    (tmp_path / f"{temporary_prefix()}x").touch()
    (tmp_path / f"{TEMPORARY_PREFIX}00000000-1-1-x").touch()  # of another machine
    (tmp_path / f"{TEMPORARY_PREFIX}old-name").touch()
    assert [path.name for path in tmp_path.iterdir() if is_alive(path.name)] == [
        f"{temporary_prefix()}x"
    ]
    assert remove_leftovers(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    place = temporary_prefix().removeprefix(TEMPORARY_PREFIX).split("-")[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"{TEMPORARY_PREFIX}{place}-999999999-1-x").symlink_to(outside)
    assert remove_leftovers(folder) == 1
    assert (outside / "kept").exists()
    assert list(folder.iterdir()) == []


def test_nothing_stays_after_a_write_that_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as file:
        file.write("x")
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "d").touch()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "d"]


def test_two_processes_replacing_one_folder_leave_one_whole(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from optimc.core.files import atomic_folder
for number in range(60):
    with atomic_folder(Path(sys.argv[1]) / "artifacts") as folder:
        for name in "abc":
            (folder / name).write_text(sys.argv[2])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len({(tmp_path / "artifacts" / name).read_text() for name in "abc"}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["artifacts"]
