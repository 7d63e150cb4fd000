"""All kinds of data sources. A recipe's entry under `data` is told by its key: `npz`, `csv`, ...

A new kind is one file with an options class that has that key as a field and the methods
``open(base, seed) -> Dataset`` and ``files(base)``, and its line in `DataSource` below.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Discriminator, Tag

from optimc.calibration.call import CallSource
from optimc.calibration.images import ImageSource
from optimc.calibration.npy import NpySource
from optimc.calibration.npz import NpzSource
from optimc.calibration.text import CsvSource, JsonLinesSource, ParquetSource, TsvSource
from optimc.calibration.transforms import keys_of, unknown_choice

KINDS = ("npz", "npy", "csv", "tsv", "jsonl", "parquet", "images", "call")


def source_kind(value: Any) -> str | None:
    """The key that tells the kind of a data source, None where there is none."""
    return next((kind for kind in KINDS if kind in keys_of(value)), None)


def _known_kind(value: Any) -> Any:
    if source_kind(value) is None:
        raise unknown_choice("kind of data", keys_of(value), KINDS)
    return value


DataSource: TypeAlias = Annotated[
    Annotated[NpzSource, Tag("npz")]
    | Annotated[NpySource, Tag("npy")]
    | Annotated[CsvSource, Tag("csv")]
    | Annotated[TsvSource, Tag("tsv")]
    | Annotated[JsonLinesSource, Tag("jsonl")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[ImageSource, Tag("images")]
    | Annotated[CallSource, Tag("call")],
    Discriminator(source_kind),
    BeforeValidator(_known_kind),
]
"""What stands under ``data.calibration`` and its like."""
