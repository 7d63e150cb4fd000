"""Data sets whose samples are made one by one and may differ in shape.

A batch has one shape. Samples are made for a window of bounded size, and those of one shape in it
are batched together; `Batch.indices` says which they are, so that whoever needs the results in the
order of the data can put them back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from optimc.calibration.dataset import Batch, Dataset, joined_labels, sample_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Label
    from optimc.core.model import TensorSpec

    Array = NDArray[np.generic]

WINDOW = 8
"""Batches that may wait until samples of their shape have filled them."""
WINDOW_BYTES = 256 << 20
"""Bytes of samples that may wait, where that is less."""

Shapes: TypeAlias = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of every input, for one sample."""


@dataclass(frozen=True)
class Sample:
    """One sample: `feeds` by input name, without the samples' axis."""

    feeds: Mapping[str, Array]
    label: Label | None = None

    @property
    def shapes(self) -> Shapes:
        """Names, dtypes and shapes of the feeds."""
        return tuple((name, str(feed.dtype), feed.shape) for name, feed in self.feeds.items())

    @property
    def bytes(self) -> int:
        """Of the feeds."""
        return sum(feed.nbytes for feed in self.feeds.values())


class GroupedDataset(Dataset):
    """Base of data sets whose samples are made one by one."""

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """All samples in order; every call starts anew."""

    def shape_counts(self) -> Counter[Shapes]:
        """How many samples have which shapes. Makes all samples, unless a source knows better."""
        return Counter(sample.shapes for sample in self.samples())

    def key(self, sample: Sample) -> Hashable:
        """Samples with equal keys can stand in one batch."""
        return sample.shapes

    def joined(self, samples: Sequence[Sample]) -> tuple[dict[str, Array], list[Label | None]]:
        """The feeds [n, ...] and the labels of n samples with equal keys."""
        import numpy as np

        feeds = {name: np.stack([s.feeds[name] for s in samples]) for name in samples[0].feeds}
        return feeds, [sample.label for sample in samples]

    def batches(self, size: int) -> Iterator[Batch]:
        groups: dict[Hashable, list[tuple[int, Sample]]] = {}
        waiting = held = 0
        for index, sample in enumerate(self.samples()):
            key = self.key(sample)
            groups.setdefault(key, []).append((index, sample))
            waiting, held = waiting + 1, held + sample.bytes
            full = len(groups[key]) == size
            if full or waiting >= WINDOW * size or held >= WINDOW_BYTES:
                # Without a full group, the one that has waited longest goes.
                group = groups.pop(key if full else next(iter(groups)))
                waiting -= len(group)
                held -= sum(each.bytes for _, each in group)
                yield self._batch(group)
        for group in groups.values():
            yield self._batch(group)

    def _batch(self, group: Sequence[tuple[int, Sample]]) -> Batch:
        indices = tuple(index for index, _ in group)
        feeds, found = self.joined([sample for _, sample in group])
        labels = [label for label in found if label is not None]
        return Batch(feeds, joined_labels(labels) if labels else None, indices[0], indices)

    def sample_digests(self) -> list[bytes]:
        return [
            sample_digest({name: feed[None] for name, feed in sample.feeds.items()}, 0)
            for sample in self.samples()
        ]

    def sample_specs(self) -> Mapping[str, TensorSpec]:
        return self._all_specs[0]

    def all_sample_specs(self) -> Sequence[Mapping[str, TensorSpec]]:
        return self._all_specs

    @cached_property
    def _all_specs(self) -> list[Mapping[str, TensorSpec]]:
        from optimc.core.model import TensorSpec

        def dtype(name: str) -> str:
            return "string" if name.startswith(("<U", ">U", "|S")) else name

        return [
            {name: TensorSpec(name, dtype(kind), shape) for name, kind, shape in shapes}
            for shapes, _ in self.shape_counts().most_common()
        ]
