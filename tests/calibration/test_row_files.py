"""Rows of hostile files: each ends in one message with file and line."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from optimc.calibration import rows
from optimc.calibration.labels import number_of
from optimc.calibration.rows import Row, read_rows
from optimc.core.errors import InputError
from optimc.testing.data_files import write_lines


def failure(path: Path, kind: Any, columns: list[str | int]) -> InputError:
    with pytest.raises(InputError) as caught:
        read_rows(path, kind, columns)
    assert "\n  fix: " in str(caught.value) or caught.value.fix is None
    return caught.value


def test_rows_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfname,x\n\n"two\nlines",1\r\nlast,2')
    assert read_rows(path, "csv", ["x", "name"]) == [
        Row(3, ("1", "two\nlines")),
        Row(5, ("2", "last")),
    ]


@pytest.mark.parametrize(
    ("kind", "content", "columns", "where", "what"),
    [
        ("csv", b"", [0], "", "holds no rows"),
        ("csv", b"a,b\n", ["a"], "", "holds no rows"),
        ("csv", b"a,b\n1,2\n3\n", ["b"], ":3", "has 1 columns; column `b` is missing"),
        ("tsv", b"1\t2\n3\n", [1], ":2", "has 1 columns; column 1 is missing"),
        ("csv", b"a,b\n1,2\n", ["c"], ":1", "unknown column `c`"),
        ("csv", b"a\n\xff\xfe\n", ["a"], ":2", "the byte 0xff is not UTF-8"),
        ("csv", b'a\n"x\ny\n', ["a"], ":3", "is not well-formed"),
        ("csv", b'a\n"x"y\n', ["a"], ":2", "is not well-formed"),
        ("csv", b"a,b\n1,2\n", ["a", 1], "", "partly by name and partly by number"),
        ("jsonl", b'{"a": 1}\n{"a": \n', ["a"], ":2:7", "is not JSON"),
        ("jsonl", b'{"a": 1}\n\n[1]\n', ["a"], ":3", "is not a JSON object"),
        ("jsonl", b'{"a": 1}\n{"b": 1}\n', ["a"], ":2", "unknown key `a`"),
        ("jsonl", b"[" * 200_000, ["a"], ":1", "nested too deeply"),
        ("jsonl", b'{"a": "\xff"}\n', ["a"], ":1", "is not UTF-8"),
        ("parquet", b"PAR1 not really", ["a"], "", "is not a Parquet file"),
    ],
)
def test_hostile_files_are_named_with_their_line(
    tmp_path: Path, kind: str, content: bytes, columns: list[str | int], where: str, what: str
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="the extra `text` is not installed")
    path = tmp_path / f"data.{kind}"
    path.write_bytes(content)
    error = failure(path, kind, columns)
    assert what in error.what
    assert error.where == f"{path}{where}"


def test_parquet_names_its_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra `text` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["x"] * 2000, "label": list(range(2000))}), path)
    found = read_rows(path, "parquet", ["label", "text"])
    assert found[1500] == Row(1500, (1500, "x"))
    assert "did you mean `text`?" in str(failure(path, "parquet", ["texts"]).fix)
    assert "unknown column `7`" in failure(path, "parquet", [7]).what
    path.write_bytes(path.read_bytes()[:-40])
    assert "is not a Parquet file" in failure(path, "parquet", ["text"]).what


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.csv", "text,label,text", "a,1,b")
    with pytest.raises(InputError, match=r"d.csv:1: has 2 columns of the name `text`"):
        read_rows(path, "csv", ["text"])
    assert read_rows(path, "csv", ["label"])[0].values == ("1",)
    arrow = pytest.importorskip("pyarrow", reason="the extra `text` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table([["a"], ["b"], ["c"]], names=["text", "text", "label"])
    parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d.parquet: has 2 columns of the name `text`"):
        read_rows(tmp_path / "d.parquet", "parquet", ["text"])
    assert read_rows(tmp_path / "d.parquet", "parquet", ["label"])[0].values == ("c",)


def test_a_field_may_be_a_long_document(tmp_path: Path) -> None:
    text = "word " * 40_000
    path = write_lines(tmp_path / "d.csv", "text", f'"{text}"')
    assert read_rows(path, "csv", ["text"])[0].values == (text,)


@pytest.mark.parametrize(("mark", "name"), [(";", "`;`"), ("\t", "tabs"), ("|", "`|`")])
def test_another_separator_is_named(tmp_path: Path, mark: str, name: str) -> None:
    path = write_lines(tmp_path / "d.csv", f"text{mark}label", f"a{mark}1")
    with pytest.raises(InputError, match=r"unknown column `text`") as caught:
        read_rows(path, "csv", ["text"])
    assert f"the line has {name} between its fields" in str(caught.value.fix)


def test_what_is_held_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x" * 90 + ",1\n")
    assert len(read_rows(path, "csv", [0])) == 1
    monkeypatch.setattr(rows, "MAX_BYTES", 50)
    assert "holds more than" in failure(path, "csv", [0]).what
    assert len(read_rows(path, "csv", [1])) == 1
    monkeypatch.setattr(rows, "MAX_LINE", 80)
    assert "longer than 80 bytes" in failure(path, "csv", [1]).what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert failure(tmp_path / "no.csv", "csv", [0]).what == "no such file"


def test_labels_are_numbers_or_names_of_the_map() -> None:
    assert [number_of(text, None, "f:1") for text in ("3", "-1", "0.5", "1e3")] == [3, -1, 0.5, 1e3]
    assert isinstance(number_of("3", None, "f:1"), int)
    assert number_of(7, {"7": 2}, "f:1") == 2
    assert number_of("", {"": 4}, "f:1") == 4
    exact = number_of(Decimal("3"), None, "f:1")
    assert (exact, type(exact), number_of(Decimal("0.5"), None, "f:1")) == (3, int, 0.5)
    wrong: list[tuple[Any, dict[str, int] | None, str]] = [
        ("good", None, "the label `good` is no number"),
        ("nan", None, "is no number"),
        ("9" * 30, None, "is no number"),
        (json.loads("null"), None, "has no label"),
        ("", {"good": 1}, "has no label"),
        ("godo", {"good": 1}, "unknown label `godo`"),
        (1.5, {"good": 1}, "is no name"),
    ]
    for value, label_map, what in wrong:
        with pytest.raises(InputError, match="f:1: ") as caught:
            number_of(value, label_map, "f:1")
        assert what in caught.value.what
