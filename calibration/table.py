"""The calibration table: statistics by value name, as a JSON file that one can read and diff.

``table.json`` holds the scalars, ``histograms.npz`` the counts: one row of `bins` a value, in the
order of the names in the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimc.core.statistics import TensorStatistics

TABLE = "table.json"
HISTOGRAMS = "histograms.npz"


def write_table(
    folder: Path, statistics: Mapping[str, TensorStatistics], about: Mapping[str, Any]
) -> None:
    """Writes both files into `folder`; `about` says what was observed (plain data)."""
    import numpy as np

    values = {
        name: {
            "minimum": seen.minimum,
            "maximum": seen.maximum,
            "count": seen.count,
            "non_finite": seen.non_finite,
            "limit": seen.limit,
            "average_minimum": seen.average_minimum,
            "average_maximum": seen.average_maximum,
        }
        for name, seen in statistics.items()
    }
    text = json.dumps({"about": dict(about), "values": values}, indent=1) + "\n"
    (folder / TABLE).write_text(text, encoding="utf-8")
    rows = [seen.histogram for seen in statistics.values()]
    counts = np.stack(rows) if rows else np.zeros((0, 0), np.int64)
    np.savez_compressed(folder / HISTOGRAMS, counts=counts)


def read_table(folder: Path) -> dict[str, TensorStatistics]:
    """The statistics that `write_table` wrote into `folder`."""
    import numpy as np

    values = json.loads((folder / TABLE).read_text(encoding="utf-8"))["values"]
    with np.load(folder / HISTOGRAMS, allow_pickle=False) as archive:
        counts = archive["counts"]
    return {
        name: TensorStatistics(histogram=row, **scalars)
        for (name, scalars), row in zip(values.items(), counts, strict=True)
    }
