"""Samples as arrays on disk, to be mapped by whoever needs them again and again: training.

A data set is swept once and written to a folder:

    samples.json                   what there is
    <group>/inputs/<input>.npy     [n, ...] for each input; a group's samples have one shape
    <group>/labels.npy             [n, ...], where the labels are numbers or arrays of one shape

Memory is bounded by a batch while writing. While reading, files are mapped: what is in memory is
what the system keeps of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from optimc.calibration.dataset import SCAN_BATCH
from optimc.core.errors import InputError
from optimc.core.files import atomic_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Batch, Dataset, Labels

    Array = NDArray[np.generic]
    Feeds: TypeAlias = Mapping[str, Array]
    Augment: TypeAlias = Callable[[Feeds, np.random.Generator], Feeds]
    """From a batch's feeds to those that take their place; it draws from the generator alone."""

INDEX = "samples.json"
_SCHEMA = 1
_KINDS = "biufUS"
_MOST_MAPPED = 64
"""Files that are mapped at once: each takes one of the process's open files, and a data set may
have hundreds of shapes."""


def store_samples(
    dataset: Dataset,
    folder: Path,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> None:
    """Writes all samples of `dataset` to `folder`, which is there only when it is whole.

    Labels that are no numbers and no arrays of one shape (boxes by name), and those that belong to
    two samples, are left out: `StoredSamples.unlabelled` then says why. Raises InputError for a
    data set without samples, for feeds that are no arrays of numbers or text with an axis for
    samples, where the first samples say that the disk is too small, and where it refuses.
    """
    total, done = len(dataset), 0
    with atomic_folder(folder) as temporary:
        writer = _Writer(temporary, dataset)
        for batch in dataset.batches(SCAN_BATCH):
            writer.check(batch.feeds, batch.size)
            if not done:
                _check_space(batch, total, folder)
            writer.add(batch.feeds, batch.labels)
            done += batch.size
            progress(done / max(total, 1), f"storing sample {done:,} of {total:,}")
        writer.close()


def _check_space(batch: Batch, total: int, folder: Path) -> None:
    """Raises InputError where `total` samples like those of `batch` do not fit on the disk."""
    arrays = [*batch.feeds.values(), batch.labels]
    stored = sum(getattr(array, "nbytes", 0) for array in arrays)
    needed = stored * total // max(1, batch.size)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise InputError(
            f"the samples take about {needed:,} bytes, and {free:,} are free on the disk",
            where=str(folder),
            fix="free some space there, or train on fewer samples or smaller ones",
        )


@dataclass(frozen=True)
class StoredBatch:
    """Samples of one group, in the order of `numbers`."""

    feeds: Feeds
    """By input name, each [n, ...]."""
    labels: Array | None
    """[n, ...], or None."""
    numbers: NDArray[np.int64]
    """[n]: the number of each sample in the store, from 0, group by group."""

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.numbers)


@dataclass(frozen=True)
class Group:
    """Samples of one shape; its arrays are mapped when they are asked for, and never loaded."""

    paths: Mapping[str, Path]
    """The file of each input."""
    labels_path: Path | None
    first: int
    """The number of its first sample in the store."""
    count: int
    """How many samples it has."""
    mapped: Callable[[Path], Array]
    """Maps a file, or gives what it mapped lately."""

    def __len__(self) -> int:
        return self.count

    @property
    def feeds(self) -> Feeds:
        """By input name, each [n, ...]."""
        return {name: self.mapped(path) for name, path in self.paths.items()}

    @property
    def labels(self) -> Array | None:
        """[n, ...]; None where there are none."""
        return None if self.labels_path is None else self.mapped(self.labels_path)

    def rows(self, numbers: NDArray[np.int64]) -> StoredBatch:
        """The samples with these numbers (of the store), copied into memory."""
        import numpy as np

        rows = numbers - self.first
        feeds = {name: np.asarray(array[rows]) for name, array in self.feeds.items()}
        labels = self.labels
        labels = None if labels is None else np.asarray(labels[rows])
        return StoredBatch(feeds, labels, numbers)


class StoredSamples:
    """What `store_samples` left in a folder. Raises InputError where nothing of the kind is there.

    Batches have samples of one group. Their order depends on the store and the generator alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            known = index["schema"] == _SCHEMA
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"no stored samples: {error}", where=str(folder)) from error
        if not known:
            raise InputError("samples stored by another release of optimc", where=str(folder))
        self._index: dict[str, Any] = index
        self.unlabelled: str | None = index["unlabelled"]
        """Why there are no labels; None where there are."""
        self._mapped = lru_cache(maxsize=_MOST_MAPPED)(_mapped)

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order in which their shapes came."""
        made: list[Group] = []
        first = 0
        for number in range(self._index["groups"]):
            folder = self.folder / str(number)
            paths = {name: _input(folder, name) for name in self._index["inputs"]}
            labels = None if self.unlabelled is not None else folder / "labels.npy"
            count = len(_mapped(next(iter(paths.values()))))
            made.append(Group(paths, labels, first, count, self._mapped))
            first += count
        return tuple(made)

    def batches(
        self,
        size: int,
        rng: np.random.Generator,
        augment: Augment | None = None,
        *,
        whole: bool = False,
    ) -> Iterator[StoredBatch]:
        """One epoch: every sample once, in random batches of at most `size`.

        A group that `size` does not divide gives batches that are as equal as can be, so that none
        is left with one sample. With `whole` all batches have `size` samples, and each epoch leaves
        other ones out. The order is drawn at the first step, before `augment` draws.
        """
        yield from self._read(self._parts(size, rng, whole=whole), rng, augment)

    def in_order(self, size: int, *, whole: bool = False) -> Iterator[StoredBatch]:
        """Every sample once, by number, in batches of at most `size`.

        With `whole` all batches have `size` samples; a group's last ones may be left out.
        """
        yield from self._read(self._parts(size, None, whole=whole), None, None)

    def count(self, size: int, *, whole: bool = False) -> int:
        """How many batches one epoch has."""
        return sum(_batches(len(group), size, whole=whole) for group in self.groups)

    def _read(
        self,
        parts: Sequence[tuple[Group, NDArray[np.int64]]],
        rng: np.random.Generator | None,
        augment: Augment | None,
    ) -> Iterator[StoredBatch]:
        for group, numbers in parts:
            batch = group.rows(numbers)
            if augment is not None and rng is not None:
                batch = StoredBatch(augment(batch.feeds, rng), batch.labels, numbers)
            yield batch

    def _parts(
        self, size: int, rng: np.random.Generator | None, *, whole: bool
    ) -> list[tuple[Group, NDArray[np.int64]]]:
        """The groups' numbers in batches; shuffled within groups and over all if `rng` is given."""
        import numpy as np

        parts: list[tuple[Group, NDArray[np.int64]]] = []
        for group in self.groups:
            count = len(group)
            order = np.arange(count) if rng is None else rng.permutation(count)
            numbers = group.first + order.astype(np.int64)
            made = _batches(count, size, whole=whole)
            if whole:
                numbers = numbers[: made * size]
            parts += [(group, part) for part in np.array_split(numbers, made)] if made else []
        if rng is None:
            return parts
        return [parts[index] for index in rng.permutation(len(parts))]


def _batches(count: int, size: int, *, whole: bool) -> int:
    return count // size if whole else -(-count // size)


def _input(folder: Path, name: str) -> Path:
    """The file of an input: its name may hold any character."""
    return folder / "inputs" / f"{quote(name, safe='')}.npy"


def _mapped(path: Path) -> Array:
    import numpy as np

    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    return array


Shape: TypeAlias = "tuple[tuple[str, str, tuple[int, ...]], ...]"


class _Writer:
    """Sorts batches into groups; each file grows as batches come."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder = folder
        self._where = dataset.where
        self._groups: dict[Shape, dict[str, _GrowingArray]] = {}
        self._labels: list[_GrowingArray] = []
        self._unlabelled: str | None = None
        if not dataset.has_labels:
            self._unlabelled = "the data have none"
        elif dataset.samples_per_label != 1:
            self._unlabelled = f"each belongs to {dataset.samples_per_label} samples"

    def check(self, feeds: Feeds, size: int) -> None:
        """Raises InputError for a batch that is not [size, ...] in all inputs."""
        for name, feed in feeds.items():
            if feed.dtype.kind not in _KINDS or not feed.ndim or len(feed) != size:
                raise InputError(
                    f"the input `{name}` is {feed.dtype}{list(feed.shape)} in a batch of {size}:"
                    " there is no row for each sample",
                    where=self._where,
                    fix="only inputs with an axis for samples can be trained on",
                )

    def add(self, feeds: Feeds, labels: Labels | None) -> None:
        """Appends a batch to the group of its shape."""
        shape = tuple((name, feed.dtype.str, feed.shape[1:]) for name, feed in feeds.items())
        number = list(self._groups).index(shape) if shape in self._groups else len(self._groups)
        folder = self._folder / str(number)
        group = self._groups.setdefault(
            shape, {name: _GrowingArray(_input(folder, name)) for name in feeds}
        )
        for name, feed in feeds.items():
            group[name].append(feed)
        self._add_labels(labels, number)

    def _add_labels(self, labels: Labels | None, group: int) -> None:
        """Appends a batch's labels, as long as all there were so far are alike."""
        import numpy as np

        if self._unlabelled is not None:
            return
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biuf":
            self._unlabelled = "they are no numbers, and no arrays of one shape"
            return
        if group == len(self._labels):
            self._labels.append(_GrowingArray(self._folder / str(group) / "labels.npy"))
        kinds = {array.form for array in self._labels if array.count}
        if kinds - {(labels.dtype.newbyteorder("="), labels.shape[1:])}:
            self._unlabelled = "they differ in shape or element type from sample to sample"
            return
        self._labels[group].append(labels)

    def close(self) -> None:
        """Completes the files and writes the index. Raises InputError where nothing was added."""
        if not self._groups:
            raise InputError("there are no samples", where=self._where)
        for group in self._groups.values():
            for array in group.values():
                array.close()
        for array in self._labels:
            array.close() if self._unlabelled is None else array.path.unlink(missing_ok=True)
        names = [name for name, _, _ in next(iter(self._groups))]
        index = {
            "schema": _SCHEMA,
            "inputs": names,
            "groups": len(self._groups),
            "unlabelled": self._unlabelled,
        }
        (self._folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


@dataclass
class _GrowingArray:
    """An npy file that rows are appended to; it is not held open, as there may be many.

    numpy leaves room in the header for the first dim to grow
    (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, since 1.23).
    """

    path: Path
    count: int = 0
    form: tuple[Any, tuple[int, ...]] | None = field(default=None)
    """Dtype in the machine's byte order, and shape of a row."""

    def append(self, rows: Array) -> None:
        """Writes rows [n, ...], which all have one dtype and shape."""
        import numpy as np

        with ExitStack() as stack:
            if self.form is None:
                self.form = (rows.dtype.newbyteorder("="), rows.shape[1:])
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(self.path, "wb"))
                self._write_header(file)
            else:
                file = stack.enter_context(open(self.path, "ab"))
            file.write(np.ascontiguousarray(rows, dtype=self.form[0]).tobytes())
        self.count += len(rows)

    def close(self) -> None:
        """Says in the header how many rows there are."""
        with open(self.path, "r+b") as file:
            self._write_header(file)

    def _write_header(self, file: Any) -> None:
        from numpy.lib import format as npy_format

        assert self.form is not None
        dtype, shape = self.form
        header = {
            "descr": npy_format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self.count, *shape),
        }
        npy_format.write_array_header_1_0(file, header)
