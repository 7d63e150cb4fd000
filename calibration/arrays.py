"""Data sets of stored arrays: what is common to npz archives and npy files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Discriminator, Field, Tag

from optimc.calibration.dataset import Batch, Dataset, array_digest
from optimc.calibration.options import Selection
from optimc.calibration.transforms import Steps, apply, per_input
from optimc.core.digest import digest_of
from optimc.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Labels
    from optimc.core.model import TensorSpec

    Array = NDArray[np.generic]


def _shape_of_transform(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "all"
    return "each" if isinstance(value, Mapping) else None


Transform: TypeAlias = Annotated[
    Annotated[Steps, Tag("all")] | Annotated[dict[str, Steps], Tag("each")],
    Discriminator(
        _shape_of_transform,
        custom_error_type="transform",
        custom_error_message="must be a list of steps, or a mapping from an input to its list",
    ),
]


class ArrayOptions(Selection):
    """What all sources of stored arrays take."""

    transform: Transform = Field(default=[])
    """Steps from the stored arrays to the model's inputs: a list for all, or one for each input."""


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, known by its header; `read` gives the contents."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]


class ArrayDataset(Dataset):
    """Samples along axis 0 of stored arrays. Raises InputError where they do not fit together.

    The arrays are read at the first use and kept in their stored type; the transformed form exists
    for one batch at a time.
    """

    def __init__(
        self,
        where: str,
        inputs: Mapping[str, StoredArray],
        labels: StoredArray | None,
        options: ArrayOptions,
        seed: int,
    ) -> None:
        self.where = where
        self._inputs = dict(inputs)
        self._labels = labels
        self._options = options
        self._seed = seed
        self._steps = per_input(options.transform, list(inputs))
        self._stored = _common_length(where, [*inputs.values(), *([labels] if labels else [])])
        self._length = options.count(self._stored, where)

    def __len__(self) -> int:
        return self._length

    @property
    def steps(self) -> Mapping[str, Steps]:
        """The transform of each input."""
        return self._steps

    def name_of(self, index: int) -> str:
        return str(self._rows[index])

    @property
    def has_labels(self) -> bool:
        return self._labels is not None

    @cached_property
    def digest(self) -> str:
        arrays = {name: array_digest(array) for name, array in self._arrays.items()}
        labels = None if self._label_array is None else array_digest(self._label_array)
        return digest_of("arrays", arrays, labels, self._steps)

    @cached_property
    def _arrays(self) -> dict[str, Array]:
        return {name: self._chosen(array.read()) for name, array in self._inputs.items()}

    @cached_property
    def _label_array(self) -> Array | None:
        return self._chosen(self._labels.read()) if self._labels else None

    def _chosen(self, array: Array) -> Array:
        """The samples that are used, in their order; a copy where most of the rest can be freed."""
        import numpy as np

        if self._options.shuffle or self._options.split is not None:
            return array[self._rows]
        if len(self) == len(array) or isinstance(array, np.memmap):
            return array[: len(self)]
        return array[: len(self)].copy()

    @cached_property
    def _rows(self) -> NDArray[np.intp]:
        """The number in the file of each sample that is used."""
        return self._options.chosen(self._stored, self._seed, self.where)

    def batches(self, size: int) -> Iterator[Batch]:
        labels = self._label_array
        for first in range(0, len(self), size):
            rows = slice(first, min(first + size, len(self)))
            feeds = {
                name: self._transformed(name, array[rows]) for name, array in self._arrays.items()
            }
            yield Batch(feeds, None if labels is None else labels[rows], first)

    def labels(self) -> Iterator[Labels]:
        labels = self._label_array
        for first in range(0, 0 if labels is None else len(self), 1024):
            assert labels is not None
            yield labels[first : first + 1024]

    def _transformed(self, name: str, batch: Array) -> Array:
        try:
            return apply(self._steps[name], batch)
        except InputError as error:
            where = f"{self.where}: input `{name}`: {error.where}"
            raise InputError(error.what, where=where, fix=error.fix) from error

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        import numpy as np

        from optimc.core.model import TensorSpec

        specs = {}
        for name, stored in self._inputs.items():
            sample = self._transformed(name, np.zeros((1, *stored.shape[1:]), stored.dtype))
            dtype = "string" if sample.dtype.kind in "US" else sample.dtype.name
            specs[name] = TensorSpec(name, dtype, sample.shape[1:])
        return specs

    def sample_specs(self) -> Mapping[str, TensorSpec]:
        return self._specs


def _common_length(where: str, arrays: list[StoredArray]) -> int:
    """The number of samples; raises InputError where arrays differ in it or have none."""
    for array in arrays:
        if not array.shape:
            raise InputError("is a single number, not an array of samples", where=array.where)
    lengths = {array.where: array.shape[0] for array in arrays}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name.rpartition(': ')[2]} has {n}" for name, n in lengths.items())
        raise InputError(
            f"the arrays differ in their number of samples: {listed}",
            where=where,
            fix="every input and the labels need one entry for each sample",
        )
    length = arrays[0].shape[0]
    if length == 0:
        raise InputError(
            "holds no samples", where=where, fix="name a file with at least one sample"
        )
    return length
