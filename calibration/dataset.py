"""What every data source gives: samples in order, in batches, named by their content."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.model import TensorSpec

    Array = NDArray[np.generic]

SCAN_BATCH = 64
"""Samples in memory at once where all of them are looked at."""


@dataclass(frozen=True)
class Batch:
    """Consecutive samples: `feeds` by input name, each [n, ...]; `labels` [n, ...] or None."""

    feeds: Mapping[str, Array]
    labels: Array | None
    first_index: int
    """The number of the first sample in the set."""

    @property
    def size(self) -> int:
        """The number of samples."""
        return max((len(feed) for feed in self.feeds.values() if feed.ndim), default=1)


class Dataset(ABC):
    """Samples to feed a model with. Opening a set is cheap: contents are read at the first use."""

    where: str
    """What messages name it by, such as the file."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples (after `take`)."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what the samples are made from: contents, transform, choice and order."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in order, `size` at a time; the last batch may be smaller.

        Holds no more than one batch in the form that the model takes.
        """

    @abstractmethod
    def sample_specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of one sample of each input, without the samples' axis."""

    @property
    def has_labels(self) -> bool:
        """Whether batches carry labels."""
        return False

    def sample_digests(self) -> list[bytes]:
        """One 16-byte digest for each sample as the model sees it, labels left out.

        Equal samples have equal digests, whatever the source or the stored form is.
        """
        return [
            _sample_digest(batch.feeds, index)
            for batch in self.batches(SCAN_BATCH)
            for index in range(batch.size)
        ]


def _sample_digest(feeds: Mapping[str, Array], index: int) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        sample = feeds[name][index : index + 1] if feeds[name].ndim else feeds[name]
        hasher.update(f"{name} {sample.dtype.str} {sample.shape}".encode())
        hasher.update(sample.tobytes())
    return hasher.digest()


def array_digest(array: Any) -> str:
    """SHA-256 of dtype, shape and contents, read in pieces, so that a mapped file stays one."""
    import numpy as np

    hasher = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    step = max(1, (16 << 20) // max(1, array[:1].nbytes)) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 0, step):
        hasher.update(np.ascontiguousarray(array[start : start + step]).tobytes())
    return hasher.hexdigest()
