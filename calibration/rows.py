"""Rows of text files: CSV, TSV, JSON lines and Parquet, read from strangers.

Every message names file and line. Only the columns that are asked for are kept, as they stand in
the file: text for CSV and TSV, JSON's or Parquet's own types else.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from optimc.core.errors import InputError, missing_extra, unknown_name

if TYPE_CHECKING:
    import pyarrow.parquet

RowFormat: TypeAlias = Literal["csv", "tsv", "jsonl", "parquet"]
Column: TypeAlias = str | int
"""A name (of the header, of a JSON key), or the number of a column from 0, without a header."""

MAX_BYTES = 1 << 30
"""Bytes of rows that are held in memory."""
MAX_LINE = 16 << 20
"""Characters of a line: a file without line ends must not be taken in whole."""


@dataclass(frozen=True)
class Row:
    """The values of the wanted columns, in the order in which they were asked for."""

    line: int
    """The line in the file, from 1; of a Parquet file the row, from 0."""
    values: tuple[Any, ...]


def read_rows(path: Path, kind: RowFormat, columns: Sequence[Column]) -> list[Row]:
    """The `columns` of every row. Columns by number mean that there is no header.

    Raises InputError for files that are missing, empty, not UTF-8 or damaged, for columns that are
    not there, and for more than `MAX_BYTES`.
    """
    if not path.is_file():
        fix = "correct the path (it is relative to the recipe)"
        raise InputError("no such file", where=str(path), fix=fix)
    if len({type(column) for column in columns}) > 1:
        raise InputError(
            "columns are named partly by name and partly by number",
            where=str(path),
            fix="use names where the file has a header, and numbers (from 0) where it has none",
        )
    readers = {"jsonl": _json_rows, "parquet": _parquet_rows}
    reader = readers.get(kind)
    try:
        found = (
            reader(path, columns)
            if reader is not None
            else _separated_rows(path, columns, "," if kind == "csv" else "\t")
        )
        rows = _bounded(found, path)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if not rows:
        raise InputError("holds no rows", where=str(path), fix="name a file with at least one row")
    return rows


def _bounded(found: Iterator[Row], path: Path) -> list[Row]:
    rows, held = [], 0
    for row in found:
        held += sum(len(value) if isinstance(value, str | list) else 8 for value in row.values)
        if held > MAX_BYTES:
            raise InputError(
                f"holds more than {MAX_BYTES / 1e9:.1f} GB in the columns that are used",
                where=str(path),
                fix="make a smaller file of the rows that calibration or evaluation needs",
            )
        rows.append(row)
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines with their ends, without a byte order mark."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) >= MAX_LINE:
                raise InputError(
                    f"the line is longer than {MAX_LINE:,} bytes",
                    where=f"{path}:{number}",
                    fix="name a text file with one sample a line",
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"the byte 0x{line[error.start]:02x} is not UTF-8",
                    where=f"{path}:{number}",
                    fix="save the file as UTF-8",
                ) from error


def _separated_rows(path: Path, columns: Sequence[Column], delimiter: str) -> Iterator[Row]:
    """Rows of CSV (RFC 4180, quotes may span lines) and of TSV (no quotes, as exports write it)."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    lines = (text for _, text in _lines(path))
    csv.field_size_limit(MAX_LINE)  # documents are longer than the module's 128 kB
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    numbers: list[int] | None = None
    line = 1
    try:
        for fields in reader:
            if not fields:
                pass  # an empty line
            elif numbers is None and columns and isinstance(columns[0], str):
                numbers = _places(columns, fields, f"{path}:{line}")
            else:
                numbers = numbers or [int(column) for column in columns]
                yield Row(line, _picked(fields, numbers, columns, f"{path}:{line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"is not well-formed: {error}",
            where=f"{path}:{max(line, reader.line_num)}",
            fix="close the quotes, and double those inside of a field",
        ) from error


def _places(columns: Sequence[Column], header: Sequence[str], where: str) -> list[int]:
    for column in columns:
        if column not in header:
            error = unknown_name("column", str(column), header, where=where)
            other = next((mark for mark in ";\t|," if mark in header[0]), None)
            fix = f"{error.fix}; where there is no header, number the columns from 0"
            if len(header) == 1 and other is not None:
                name = "tabs" if other == "\t" else f"`{other}`"
                fix = f"the line has {name} between its fields: `csv` takes `,` and `tsv` tabs"
            raise InputError(error.what, where=where, fix=fix)
        _check_once(str(column), header, where)
    return [header.index(str(column)) for column in columns]


def _check_once(column: str, names: Sequence[str], where: str) -> None:
    if names.count(column) > 1:
        raise InputError(
            f"has {names.count(column)} columns of the name `{column}`",
            where=where,
            fix="rename or remove all but one of them",
        )


def _picked(
    fields: Sequence[str], numbers: Sequence[int], columns: Sequence[Column], where: str
) -> tuple[str, ...]:
    if max(numbers) >= len(fields):
        missing = columns[numbers.index(max(numbers))]
        named = f"`{missing}`" if isinstance(missing, str) else f"{missing}"
        raise InputError(
            f"has {len(fields)} columns; column {named} is missing",
            where=where,
            fix="complete the line, or name another column (numbers start from 0)",
        )
    return tuple(fields[number] for number in numbers)


def _json_rows(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            content = json.loads(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            column = f":{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(
                f"is not JSON: {reason}",
                where=f"{where}{column}",
                fix="write one JSON object on each line",
            ) from error
        if isinstance(content, list) and all(isinstance(column, int) for column in columns):
            content = dict(enumerate(content))
        if not isinstance(content, dict):
            fix = "write one JSON object on each line"
            raise InputError("is not a JSON object", where=where, fix=fix)
        for wanted in columns:
            if wanted not in content:
                raise unknown_name("key", str(wanted), map(str, content), where=where)
        yield Row(number, tuple(content[wanted] for wanted in columns))


def _parquet_rows(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("text", "reading Parquet files") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _parquet_names(file, columns, str(path))
            first = 0
            for batch in file.iter_batches(1024, columns=list(dict.fromkeys(names))):
                lists = {name: batch.column(name).to_pylist() for name in set(names)}
                for index in range(batch.num_rows):
                    yield Row(first + index, tuple(lists[name][index] for name in names))
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"is not a Parquet file that can be read: {str(error)[:300]}",
            where=str(path),
            fix="write it again with pyarrow.parquet.write_table",
        ) from error


def _parquet_names(
    file: pyarrow.parquet.ParquetFile, columns: Sequence[Column], where: str
) -> list[str]:
    known = list(file.schema_arrow.names)
    names = []
    for column in columns:
        if isinstance(column, int) and column >= len(known):
            raise unknown_name("column", str(column), known, where=where)
        name = known[column] if isinstance(column, int) else column
        if name not in known:
            raise unknown_name("column", name, known, where=where)
        _check_once(name, known, where)
        names.append(name)
    return names
