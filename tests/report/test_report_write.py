from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from optimc.core.errors import InputError
from optimc.report.canonical import load_report
from optimc.report.write import write_report
from optimc.testing.example_report import example_report, undecided_report

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["junit.xml", "report.html", "report.json", "report.md"]


def test_it_writes_the_report_and_its_views_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    paths = write_report(example_report(), folder)
    assert sorted(path.name for path in paths) == NAMES
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    assert load_report(folder) == example_report()


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_report(example_report(), tmp_path / folder)
    for name in NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_second_build_replaces_the_first(tmp_path: Path) -> None:
    write_report(example_report(), tmp_path)
    write_report(undecided_report(), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["gate"]["verdict"] == "undecided"
    assert "Gate undecided" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_refuses_gives_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_report(example_report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
