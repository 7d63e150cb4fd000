from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimc.cli.display import Display
from optimc.cli.estimate import FILE, Estimate, remember, remembered
from optimc.testing.terminals import lines_on_terminal, run_on_terminal


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


LAST = {"reading": 1.0, "running passes": 10.0, "measuring": 20.0}


def test_what_is_left_is_told_from_the_last_build() -> None:
    clock = Clock()
    estimate = Estimate(LAST, clock)
    estimate.stage("reading")
    clock.now = 1.0
    estimate.stage("running passes")
    clock.now = 4.0
    assert estimate.left_s() == 27.0
    assert estimate.text() == "about 25 s left"


def test_a_stage_that_takes_longer_than_last_time_leaves_the_later_ones() -> None:
    clock = Clock()
    estimate = Estimate(LAST, clock)
    estimate.stage("running passes")
    clock.now = 60.0
    assert estimate.left_s() == 20.0
    estimate.stage("measuring")
    clock.now = 100.0
    assert estimate.text() == ""


def test_without_a_last_build_only_the_stage_is_estimated_once_its_share_says_something() -> None:
    clock = Clock()
    estimate = Estimate({}, clock)
    estimate.stage("measuring")
    clock.now = 10.0
    assert estimate.text() == ""
    estimate.share(0.01)
    assert estimate.text() == ""
    estimate.share(0.25)
    assert estimate.text() == "about 30 s left of this stage"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (42.0, "40 s"), (200.0, "3 min"), (9000.0, "2.5 h")]
)
def test_estimates_have_no_more_digits_than_they_know(seconds: float, text: str) -> None:
    estimate = Estimate({"stage": seconds}, Clock())
    estimate.stage("stage")
    assert estimate.text() == f"about {text} left"


def test_the_times_of_a_build_are_kept_by_recipe(tmp_path: Path) -> None:
    remember(tmp_path, tmp_path / "a.yaml", {"reading": 1.234})
    remember(tmp_path, tmp_path / "b.yaml", {"reading": 2.0})
    assert remembered(tmp_path, tmp_path / "a.yaml") == {"reading": 1.23}
    assert remembered(tmp_path, tmp_path / "c.yaml") == {}


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"x": 1})])
def test_a_damaged_file_of_times_is_no_error(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert remembered(tmp_path, tmp_path / "a.yaml") == {}
    remember(tmp_path, tmp_path / "a.yaml", {"reading": 1.0})
    assert remembered(tmp_path, tmp_path / "a.yaml") == {"reading": 1.0}


def test_times_that_cannot_be_written_are_no_error(tmp_path: Path) -> None:
    remember(tmp_path / "no folder", tmp_path / "a.yaml", {"reading": 1.0})


def test_the_live_line_names_the_cells_that_are_worked_on() -> None:
    display = Display(Estimate({}, Clock()))
    display.on_stage("building")
    display.on_cells(7)
    for number in range(6):
        display.before_cell(f"v{number}/ort")
    display.after_cell("v0/ort")
    assert display.line().endswith(
        "building: 1 of 7 done, now v1/ort, v2/ort, v3/ort, v4/ort and 1 more"
    )


def test_elsewhere_than_on_a_terminal_there_is_one_plain_line_a_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Display() as display:
        display.on_stage("measuring")
        display.on_share(0.5, "x\x1b[31m")
        display.on_detail("name \x1b[31m")
    lines = capsys.readouterr().err.splitlines()
    said = [re.sub(r"^\[ *[\d.]+ s\] ", "", line) for line in lines]
    assert said == ["measuring", "  name \\x1b[31m"]  # shares come now and then only
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    "text",
    ["allowed 0.0001: rewrite 7 at /layer2/Mul, " * 8, "x" * 321, "::error::a " * 30, "a\n" * 30],
)
def test_no_plain_line_is_wider_than_100_columns_or_a_command_to_a_build_server(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    finding = SimpleNamespace(verdict="rolled_back", reason=text, sqnr_db=None, max_rel_error=0.31)
    outcome = SimpleNamespace(
        name="fuse", runtime="ort", nodes=(9, 9), seconds=0.5, cached=False, finding=finding
    )
    with Display() as display:
        display.after_pass(outcome)  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 100 for line in lines)
    assert not any(line.lstrip().startswith("::") for line in lines)
    words = "".join(lines[0].split("] ", 1)[1:] + lines[1:])
    said = f"fuse for ort rolled back: {text} (9 nodes, error 3.1e-01 of scale, 0.50 s)"
    assert "".join(words.split()).replace("\\", "") == "".join(said.split())


def _build(repository: Path, folder: Path, **environment: str) -> tuple[int, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-m", "optimc", "build", "quickstart.yaml", "--no-measure"]
    return run_on_terminal(
        [*command, "--target", "ort", "-o", str(folder)],
        cwd=repository / "recipes",
        environment={**inherited, "TERM": "xterm-256color", **environment},
    )


@pytest.mark.slow
def test_on_a_terminal_the_build_is_live_in_colour_and_within_its_width(
    repository: Path, tmp_path: Path
) -> None:
    code, written = _build(repository, tmp_path)
    assert code == 5  # the gate's limits were not measured
    lines = lines_on_terminal(written)
    assert any("building and verifying engines: 0 of 2 done, now" in line for line in lines)
    assert all(len(line) <= 100 for line in lines)
    assert "\x1b[?25l" in written  # the cursor is hidden while the line is live
    assert written.rstrip().rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", written)


@pytest.mark.slow
def test_no_color_is_honoured(repository: Path, tmp_path: Path) -> None:
    _, written = _build(repository, tmp_path, NO_COLOR="1")
    assert "running passes" in written
    assert not re.search(r"\x1b\[[0-9;]*[349][0-9]m", written)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"CI": "true"}, {"TERM": "dumb"}], ids=["ci", "dumb"])
def test_ci_and_dumb_terminals_get_plain_lines(
    repository: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    _, written = _build(repository, tmp_path, **environment)
    assert re.search(r"^\[ *[\d.]+ s\] running passes", written, re.MULTILINE)
    assert "\x1b[?25l" not in written
    assert "⠋" not in written
