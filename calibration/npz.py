"""The source `npz`: arrays in one archive, as numpy.savez writes it."""

from __future__ import annotations

from pathlib import Path

from optimc.calibration.arrays import ArrayDataset, ArrayOptions
from optimc.core.errors import InputError


class NpzSource(ArrayOptions):
    """``{npz: calib.npz, inputs: {input: images}, labels: labels, transform: [...]}``."""

    npz: str
    """The archive, relative to the recipe."""
    inputs: dict[str, str] | None = None
    """From each of the model's inputs to the array that feeds it; without it, every array but the
    labels feeds the input of its own name."""
    labels: str | None = None
    """The array of labels, for metrics."""

    def open(self, base: Path, seed: int) -> ArrayDataset:
        """The data set, read from `base`; the seed orders it where `shuffle` is set.

        Raises InputError for a file that is missing, damaged, empty or does not fit together.
        """
        from optimc.calibration.npy_format import npz_arrays

        path = base / self.npz
        wanted = None if self.inputs is None else {*self.inputs.values(), *self._labels()}
        arrays = npz_arrays(path, wanted if wanted is None else sorted(wanted))
        if self.labels is not None and self.labels not in arrays:
            npz_arrays(path, [self.labels])  # raises, with the near names
        inputs = self.inputs or {name: name for name in arrays if name != self.labels}
        if not inputs:
            raise InputError(
                "names no array for any input",
                where=str(path),
                fix="inputs: {<the model's input>: <array>}",
            )
        return ArrayDataset(
            str(path),
            {name: arrays[array] for name, array in inputs.items()},
            arrays[self.labels] if self.labels is not None else None,
            self,
            seed,
        )

    def _labels(self) -> list[str]:
        return [] if self.labels is None else [self.labels]

    def files(self, base: Path) -> list[Path]:
        """The files that are read."""
        return [base / self.npz]
