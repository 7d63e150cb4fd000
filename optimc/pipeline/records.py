"""What every engine answered, sample by sample, beside the report: ``records.npz``.

A later gate compares two builds by it, pairing the samples, which reports alone cannot: of two
drops from the source that are each known to a quarter of a point, nobody can tell the difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.core.files import atomic_write
from optimc.measure.metric import Metric, SampleMetric

if TYPE_CHECKING:
    from optimc.measure.metric import Records

FILE = "records.npz"
MOST_BYTES = 64_000_000
"""Records of more bytes are left out: per pixel or per box, they can outgrow the engines."""

_ABOUT = "about"


@dataclass(frozen=True)
class RecordsOfBuild:
    """By cell (``source`` is the source) and metric the records; the options of each metric."""

    data: str
    """Digest of the evaluation data."""
    metrics: Mapping[str, Mapping[str, Any]]
    """By metric: ``kind`` (the built-in metric, or null), ``options``, ``better``."""
    cells: Mapping[str, Mapping[str, Records]]


def write_records(
    folder: Path,
    data: str,
    metrics: Mapping[str, Metric],
    cells: Mapping[str, Mapping[str, Records]],
) -> bool:
    """Writes the file; False where it would be too large, and none is left then."""
    import numpy as np

    arrays: dict[str, Any] = {}
    index: list[list[str]] = []
    for cell, found in cells.items():
        for metric, records in found.items():
            for name, array in records.items():
                arrays[f"a{len(index)}"] = array
                index.append([cell, metric, name])
    path = folder / FILE
    if not index or sum(array.nbytes for array in arrays.values()) > MOST_BYTES:
        path.unlink(missing_ok=True)
        return False
    about = {"data": data, "index": index, "metrics": {n: _about(m) for n, m in metrics.items()}}
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return True


def _about(metric: Metric) -> dict[str, Any]:
    built_in = isinstance(metric, SampleMetric)
    return {
        "kind": metric.name if built_in else None,
        "options": metric.model_dump(mode="json") if isinstance(metric, SampleMetric) else {},
        "better": metric.better,
    }


def read_records(path: Path) -> RecordsOfBuild:
    """Raises InputError where the file cannot be read or holds more than it may."""
    import zipfile

    import numpy as np

    fix = f"leave {FILE} as `optimc build` wrote it, beside report.json, or remove it"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 2 * MOST_BYTES:
                raise ValueError("it unpacks to more than records may take")
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(bytes(file[_ABOUT]).decode())
            cells: dict[str, dict[str, dict[str, Any]]] = {}
            for number, (cell, metric, name) in enumerate(about["index"]):
                array = file[f"a{number}"]
                cells.setdefault(cell, {}).setdefault(metric, {})[name] = array
            return RecordsOfBuild(str(about["data"]), dict(about["metrics"]), cells)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), fix=fix) from error
