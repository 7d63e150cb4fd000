"""The calibration table: statistics by value name, as a JSON file that one can read and diff.

The JSON file holds the scalars, ``histograms.npz`` beside it the counts: one row of `bins` a value,
in the order of the names in the table. A build leaves the source's table, and a recipe may name it
in place of data, so what is read is checked as any foreign file is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimc.core.errors import InputError
from optimc.core.statistics import TensorStatistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TABLE = "table.json"
HISTOGRAMS = "histograms.npz"
_MOST_BYTES = 64 << 20
_MOST_BINS = 1 << 16
_FIX = "take calibration/table.json and histograms.npz beside it from a build, both unchanged"


class _Scalars(BaseModel):
    """What stands in the JSON file for one value."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    minimum: float
    maximum: float
    count: int = Field(ge=0)
    non_finite: int = Field(ge=0)
    limit: float = Field(gt=0)
    average_minimum: float
    average_maximum: float


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    about: dict[str, Any]
    values: dict[str, _Scalars]


def write_table(
    folder: Path, statistics: Mapping[str, TensorStatistics], about: Mapping[str, Any]
) -> None:
    """Writes both files into `folder`; `about` says what was observed (plain data)."""
    import numpy as np

    scalars = {
        name: {key: getattr(seen, key) for key in _Scalars.model_fields}
        for name, seen in statistics.items()
    }
    text = json.dumps({"about": dict(about), "values": scalars}, indent=1) + "\n"
    (folder / TABLE).write_text(text, encoding="utf-8")
    rows = [seen.histogram for seen in statistics.values()]
    counts = np.stack(rows) if rows else np.zeros((0, 0), np.int64)
    np.savez_compressed(folder / HISTOGRAMS, counts=counts)


def read_table(folder: Path) -> tuple[dict[str, TensorStatistics], dict[str, Any]]:
    """The statistics and `about` that `write_table` wrote into `folder`."""
    return read_table_file(folder / TABLE)


def read_table_file(path: Path) -> tuple[dict[str, TensorStatistics], dict[str, Any]]:
    """The statistics and `about` of a table, whatever its file is called.

    Raises InputError for what `write_table` does not write: another format, a histogram that is
    missing, too large, or does not count what the table says.
    """
    table = _parsed(path)
    counts = _counts(path.with_name(HISTOGRAMS), len(table.values))
    found = {}
    for (name, scalars), row in zip(table.values.items(), counts, strict=True):
        seen = TensorStatistics(histogram=row, **scalars.model_dump())
        if not _consistent(seen):
            raise _damaged(path, f"the histogram of `{name}` is not that of the table")
        found[name] = seen
    return found, table.about


def _parsed(path: Path) -> _Table:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _damaged(path, f"it is larger than {_MOST_BYTES >> 20} MiB")
        return _Table.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{place}: {first['msg']}" if place else str(first["msg"])) from error


def _counts(path: Path, values: int) -> NDArray[np.int64]:
    """The histograms [values, bins], looked at by their header before they are read."""
    from optimc.calibration.npy_format import npz_arrays

    stored = npz_arrays(path, ["counts"])["counts"]
    shape = stored.shape
    if len(shape) != 2 or shape[0] != values or shape[1] > _MOST_BINS or stored.dtype != "int64":
        raise _damaged(path, f"it does not hold a histogram for each of {values} values")
    return stored.read().astype("int64", copy=False)


def _consistent(seen: TensorStatistics) -> bool:
    bins, row = len(seen.histogram), seen.histogram
    return (
        bins >= 4
        and not bins & (bins - 1)
        and bool((row >= 0).all())
        and int(row.sum()) == seen.count - seen.non_finite
        and seen.minimum <= seen.maximum
        and max(-seen.minimum, seen.maximum) < seen.limit
    )


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"this is no calibration table: {what}", where=str(path), fix=_FIX)
