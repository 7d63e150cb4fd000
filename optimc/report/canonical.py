"""``report.json``: the canonical text of a report, its JSON Schema, and the way back.

Equal reports give equal bytes: ASCII, two spaces of indentation, fields in the order of the
types, keys sorted where their order has no meaning, the shortest decimal that reads back as the
same float64, one newline at the end. JSON has no infinity: the errors that may be infinite (the
SQNR of equal outputs is) are written as the strings of `values.NON_FINITE`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optimc.core.errors import InputError
from optimc.core.files import atomic_write
from optimc.report.schema import Report

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def to_json(report: Report) -> str:
    """The canonical text of `report`.

    ASCII, because the text may go to a standard output of any encoding, and because control
    characters in names must not reach a terminal.
    """
    return _dumps(writable(report.model_dump(mode="python")))


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of ``report.json``, made from the types."""
    schema = Report.model_json_schema(mode="serialization")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return _dumps({**head, **schema, "title": "optimc report, schema 1"})


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Writes `schema_text` to `path`, by default the file that ships in the package."""
    with atomic_write(path) as file:
        file.write(schema_text())


def load_report(path: Path) -> Report:
    """Reads and checks a ``report.json``.

    Raises `InputError`, which names the first thing that is wrong, where the file cannot be read
    or is not a report of schema 1.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    fix = "name a report.json that `optimc build` of this version wrote"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "the file is not UTF-8 text"
        raise InputError(f"cannot read the report: {what}", where=str(path), fix=fix) from error
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        what = _first_error(text, error)
        raise InputError(f"not a report: {what}", where=str(path), fix=fix) from error


def _first_error(text: str, error: ValidationError) -> str:
    data = _parsed(text)
    version = data.get("schema") if isinstance(data, dict) else None
    if version not in (None, 1):
        return f"it has schema {version!r}, this optimc reads schema 1"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = _place(data, first["loc"], missing=first["type"] == "missing")
    others = error.error_count() - 1
    more = f" (and {others} more)" if others else ""
    return f"`{place}`: {first['msg']}{more}" if place else f"{first['msg']}{more}"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _place(data: Any, path: tuple[int | str, ...], missing: bool) -> str:
    """The path of an error in the file: pydantic's own also names the branches of unions."""
    parts: list[str] = []
    for part in path:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            parts.append(str(part))
            data = data[part]  # type: ignore[index]
    if missing and path:
        parts.append(str(path[-1]))
    return ".".join(parts)


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def writable(value: Any) -> Any:
    """`value` with what JSON has no number for, and the sign of a zero, replaced."""
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value + 0.0  # -0.0 + 0.0 is 0.0
    if isinstance(value, dict):
        return {key: writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    return value
