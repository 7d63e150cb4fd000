"""The user's own command: read without a shell, judged by its exit code, ended as a whole."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from optimc.core.errors import InputError, WorkerTimeoutError
from optimc.pipeline.minimizing import Verdict
from optimc.pipeline.user_command import UserCommand


def _python(code: str, **options: object) -> UserCommand:
    return UserCommand((sys.executable, "-c", code, "{}"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("pass", Verdict.GOOD),
        ("import sys; sys.exit(1)", Verdict.BAD),
        ("import sys; sys.exit(124)", Verdict.BAD),
        ("import sys; sys.exit(125)", Verdict.SKIPPED),
        ("import os; os.kill(os.getpid(), 11)", Verdict.BAD),
    ],
)
def test_the_exit_code_judges(code: str, verdict: Verdict, tmp_path: Path) -> None:
    assert _python(code).judge(tmp_path / "model.onnx") is verdict


def test_the_files_stand_in_the_words_and_the_environment(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.exit(3 if sys.argv[1] == os.environ['OPTIMC_MODEL'] == 'm x.onnx'"
        " and os.environ['OPTIMC_INPUTS'] == 'i.npz' else 0)"
    )
    assert _python(code).judge(Path("m x.onnx"), Path("i.npz")) is Verdict.BAD


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    command = UserCommand.parse(f"echo hello; touch {marker}")
    assert command.judge(tmp_path / "m.onnx") is Verdict.GOOD
    assert not marker.exists()


def test_a_failure_that_says_something_else_does_not_count(tmp_path: Path) -> None:
    code = "import sys; sys.exit('no such operator')"
    assert _python(code, saying="no such operator").judge(tmp_path) is Verdict.BAD
    assert _python(code, saying="wrong shape").judge(tmp_path) is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), ("'open", "quot"), ("/no/such/program {}", "cannot be run")],
)
def test_what_is_no_command_is_told(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        UserCommand.parse(text).judge(tmp_path)
    assert caught.value.where == "--command"
    assert caught.value.fix


def test_127_of_a_wrapper_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="127"):
        _python("import sys; sys.exit(127)").judge(tmp_path)


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import subprocess, sys, time;"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pids)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    with pytest.raises(WorkerTimeoutError, match="did not end within"):
        _python(code, seconds=4.0).judge(tmp_path)
    child = int(pids.read_text())
    deadline = time.monotonic() + 20  # the signal is sent, yet the kernel ends a process later
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether there is such a process and it is not a zombie that nobody has reaped."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
