"""A calibration table in place of calibration data: what an earlier build observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from optimc.calibration.table import HISTOGRAMS, read_table_file, write_table
from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.core.files import atomic_folder, file_sha256
from optimc.core.statistics import TensorStatistics

if TYPE_CHECKING:
    from optimc.core.model import Model

_SHOWN = 3


class StoredCalibration:
    """The statistics of a table by source name; a `core.passes.Calibration`.

    Raises InputError for a file that is no table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table, self.about = read_table_file(path)

    @property
    def files(self) -> tuple[Path, Path]:
        """The table and its histograms."""
        return self.path, self.path.with_name(HISTOGRAMS)

    @property
    def digest(self) -> str:
        """Names the contents of both files."""
        return digest_of("calibration table", [file_sha256(file) for file in self.files])

    def statistics(self, model: Model, values: Sequence[str]) -> Mapping[str, TensorStatistics]:
        """What the table says of `values`, by the source names that the provenance knows.

        Raises InputError for values that the table does not know: nothing can be observed here.
        """
        provenance = model.provenance
        changed = [value for value in values if value not in provenance]
        if changed:
            raise InputError(
                f"a pass changed the numbers of {_listed(changed)}: a table of the source says"
                " nothing of them",
                where=str(self.path),
                fix="name data under data.calibration in place of the table",
            )
        known = set(self._table) | set(self.about.get("left_out", ()))
        missing = sorted({provenance[value] for value in values} - known)
        if missing:
            raise InputError(
                f"the table is of another model, or of other passes: it lacks {_listed(missing)}",
                where=str(self.path),
                fix="name data under data.calibration, build once, and take the table it leaves",
            )
        names = {value: provenance[value] for value in values}
        return {value: self._table[name] for value, name in names.items() if name in self._table}

    def reader(self, samples: int | None = None, service: str | None = None) -> NoReturn:
        """Raises InputError: passes that look at the samples themselves need data."""
        raise self._no_samples()

    def feeds(self, size: int, samples: int | None = None) -> NoReturn:
        """Raises InputError, as `reader` does."""
        raise self._no_samples()

    def _no_samples(self) -> InputError:
        return InputError(
            "a calibration table holds ranges alone, and a pass asks for the samples",
            where=str(self.path),
            fix="name data under data.calibration in place of the table",
        )


def write_calibration(
    folder: Path, statistics: Mapping[str, TensorStatistics], about: Mapping[str, Any]
) -> None:
    """Writes a table into `folder`, in place of what was there (atomic)."""
    with atomic_folder(folder) as temporary:
        write_table(temporary, dict(sorted(statistics.items())), about)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
