"""What every data source gives: samples in order, in batches, named by their content."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.model import TensorSpec

    Array = NDArray[np.generic]
    Label: TypeAlias = int | float | Array | Mapping[str, Array]
    """Of one sample: a number (a class, a score), an array (a mask, token classes, a span), or
    arrays by name (boxes)."""
    Labels: TypeAlias = Array | Sequence[Label]
    """Of a batch: an array [n, ...] where all are alike, else a list."""

SCAN_BATCH = 64
"""Samples in memory at once where all of them are looked at."""


@dataclass(frozen=True)
class Batch:
    """Samples of one shape: `feeds` by input name, each [n, ...]; n labels or None."""

    feeds: Mapping[str, Array]
    labels: Labels | None
    first_index: int
    """The number of the first sample in the set."""
    indices: tuple[int, ...] | None = None
    """The numbers of the samples in the set, ascending, where they are not consecutive."""

    @property
    def size(self) -> int:
        """The number of samples."""
        return max((len(feed) for feed in self.feeds.values() if feed.ndim), default=1)

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each sample in the set."""
        return self.indices or range(self.first_index, self.first_index + self.size)


class Dataset(ABC):
    """Samples to feed a model with. Opening a set is cheap: contents are read at the first use."""

    where: str
    """What messages name it by, such as the file."""
    samples_per_label: int = 1
    """2 where two samples, one after the other, share a label (the members of a pair). In batches
    each sample has a label of its own even so: those of a pair are equal."""
    dtype_fix: str | None = None
    """What to do where the model wants another element type."""
    shape_fix = "correct `transform` (nchw, nhwc, expand_dims, squeeze) or name another array"
    """What to do where the model wants another shape."""
    tools: tuple[str, ...] = ()
    """The distributions whose version may change the samples (they are in the digest)."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples (after `take`)."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what the samples are made from: contents, transform, choice and order."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """All samples, `size` at a time; each batch has samples of one shape.

        In order where all samples have one shape: then only the last batch may be smaller. Where
        shapes differ, samples of one shape are brought together from a bounded window, so that
        batches are out of order within it and may be smaller. Memory is bounded by the window.
        """

    @abstractmethod
    def sample_specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of one sample of each input, without the samples' axis.

        Where shapes differ from sample to sample, of the most frequent one.
        """

    def all_sample_specs(self) -> Sequence[Mapping[str, TensorSpec]]:
        """Every combination of shapes that samples have; the most frequent one first."""
        return [self.sample_specs()]

    def name_of(self, index: int) -> str:
        """What messages call the sample with this number: where it stands in its file."""
        return str(index)

    def text_of(self, index: int) -> tuple[str, ...]:
        """The texts that the sample with this number was made from; empty where it is no text."""
        return ()

    @property
    def has_labels(self) -> bool:
        """Whether batches carry labels."""
        return False

    def labels(self) -> Iterator[Labels]:
        """The labels alone, in pieces; nothing where there are none."""
        for batch in self.batches(SCAN_BATCH):
            if batch.labels is not None:
                yield batch.labels

    def sample_digests(self) -> list[bytes]:
        """One 16-byte digest for each whole sample (each pair, where samples come in pairs), labels
        left out.

        Here of samples as the model sees them, so that equal ones have equal digests whatever the
        stored form is. Sources whose feeds depend on the batch, or cost much to make, take what
        the feeds are made from instead.
        """
        return [
            sample_digest(batch.feeds, index)
            for batch in self.batches(SCAN_BATCH)
            for index in range(batch.size)
        ]


def sample_digest(feeds: Mapping[str, Array], index: int) -> bytes:
    """16 bytes that name the sample `index` of `feeds` [n, ...]."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        sample = feeds[name][index : index + 1] if feeds[name].ndim else feeds[name]
        hasher.update(f"{name} {sample.dtype.str} {sample.shape}".encode())
        hasher.update(sample.tobytes())
    return hasher.digest()


def joined_labels(labels: Sequence[Label]) -> Labels:
    """An array [n, ...] where all `labels` are numbers or arrays of one shape and dtype, else the
    list."""
    import numpy as np

    first = labels[0]
    if isinstance(first, Mapping):
        return list(labels)
    kinds = {
        (label.dtype, label.shape) if isinstance(label, np.ndarray) else type(label)
        for label in labels
    }
    return np.array(labels) if len(kinds) == 1 else list(labels)


def array_digest(array: Any) -> str:
    """SHA-256 of dtype, shape and contents, read in pieces, so that a mapped file stays one."""
    import numpy as np

    hasher = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    step = max(1, (16 << 20) // max(1, array[:1].nbytes)) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 0, step):
        hasher.update(np.ascontiguousarray(array[start : start + step]).tobytes())
    return hasher.hexdigest()
