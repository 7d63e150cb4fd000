"""The source `npy`: one file for each input, mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from optimc.calibration.arrays import ArrayDataset, ArrayOptions


class NpySource(ArrayOptions):
    """``{npy: {input: images.npy}, labels: labels.npy, transform: [...]}``."""

    npy: Annotated[dict[str, str], Field(min_length=1)]
    """From each of the model's inputs to its file, relative to the recipe."""
    labels: str | None = None
    """The file of the labels, for metrics."""

    def open(self, base: Path, seed: int) -> ArrayDataset:
        """The data set; see `NpzSource.open`."""
        from optimc.calibration.npy_format import npy_array

        inputs = {name: npy_array(base / file) for name, file in self.npy.items()}
        labels = npy_array(base / self.labels) if self.labels is not None else None
        return ArrayDataset(", ".join(self.npy.values()), inputs, labels, self, seed)

    def files(self, base: Path) -> list[Path]:
        """The files that are read."""
        names = [*self.npy.values(), *([self.labels] if self.labels is not None else [])]
        return [base / name for name in names]
