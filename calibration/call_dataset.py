"""Samples that a function of the user's own yields."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optimc.calibration.dataset import sample_digest
from optimc.calibration.grouped import GroupedDataset, Sample, Shapes
from optimc.calibration.transforms import apply, per_input
from optimc.core.digest import digest_of
from optimc.core.errors import InputError, OptimcError
from optimc.core.user_code import importable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.call import CallSource
    from optimc.calibration.dataset import Label

    Array = NDArray[np.generic]

MAX_SAMPLES = 1_000_000
"""Samples of a function that ends by itself; one that does not end needs `take`."""
MAX_SAMPLE_BYTES = 1 << 30

_KINDS = "biufUS"
_FORM = "yield {<input>: array}, or ({<input>: array}, label), one sample at a time"


@dataclass
class _Survey:
    """What one whole sweep over the samples found."""

    shapes: Counter[Shapes] = field(default_factory=Counter)
    digests: list[bytes] = field(default_factory=list)
    labels: bool = False
    content: str = ""


class CallDataset(GroupedDataset):
    """Samples of a function, which is called anew for each sweep. Raises InputError."""

    shape_fix = "correct what the function yields (one sample, without an axis for samples)"

    def __init__(self, source: CallSource, base: Path) -> None:
        self.where = f"`{source.call}`"
        self._source = source
        self._base = base
        self._function = _imported(source.call, base)
        self._glance: int | None = None
        self.looked_at: int | None = None
        """How many samples stand for all after `glance`; None where all were looked at."""

    def __len__(self) -> int:
        return len(self._survey.digests)

    def glance(self, most: int) -> None:
        """From now on the first `most` samples stand for all, for a check that has to be quick."""
        self._glance = most

    @property
    def has_labels(self) -> bool:
        return self._survey.labels

    @property
    def digest(self) -> str:
        return digest_of("call", self._survey.content)

    def sample_digests(self) -> list[bytes]:
        return self._survey.digests

    def shape_counts(self) -> Counter[Shapes]:
        return self._survey.shapes

    @cached_property
    def _survey(self) -> _Survey:
        """Of one sweep: the function alone knows how many samples there are."""
        survey, hasher = _Survey(), hashlib.sha256()
        for index, sample in enumerate(self._yielded()):
            if index == self._glance:
                self.looked_at = index
                break
            if index and (sample.label is not None) != survey.labels:
                raise self._wrong(index, "samples with and without a label are mixed", _FORM)
            survey.labels = sample.label is not None
            survey.shapes[sample.shapes] += 1
            survey.digests.append(sample_digest({n: a[None] for n, a in sample.feeds.items()}, 0))
            hasher.update(survey.digests[-1] + _label_bytes(sample.label))
        if not survey.digests:
            raise InputError("yields no samples", where=self.where, fix=_FORM)
        few = self._source.take is not None and len(survey.digests) < self._source.take
        if few and self.looked_at is None:
            raise InputError(
                f"`take: {self._source.take}` asks for more samples than the "
                f"{len(survey.digests)} there are",
                where=self.where,
                fix="take fewer, or leave `take` out to use all",
            )
        survey.content = hasher.hexdigest()
        return survey

    def samples(self) -> Iterator[Sample]:
        known = self._survey.digests
        count = 0
        for index, sample in enumerate(self._yielded()):
            if index == self.looked_at:
                return
            digest = sample_digest({n: a[None] for n, a in sample.feeds.items()}, 0)
            if index >= len(known) or digest != known[index]:
                raise self._wrong(index, "is not what it was in the sweep before", _SEEDED)
            count += 1
            yield sample
        if count < len(known):
            raise self._wrong(count, "is not there any more in another sweep", _SEEDED)

    def _yielded(self) -> Iterator[Sample]:
        """One sweep: the function's samples, checked and transformed, `take` of them at most."""
        take = self._source.take
        with importable(self._base):
            try:
                made = iter(cast("Iterable[Any]", self._function()))
            except Exception as error:
                raise self._raised(error, None) from error
            index = 0
            while take is None or index < take:
                try:
                    item = next(made)
                except StopIteration:
                    return
                except Exception as error:
                    raise self._raised(error, index) from error
                if index >= MAX_SAMPLES:
                    fix = "say how many are used: take: 1000"
                    raise self._wrong(index, f"more than {MAX_SAMPLES:,} samples come", fix)
                yield self._sample(index, item)
                index += 1

    def _sample(self, index: int, item: Any) -> Sample:
        pair = isinstance(item, tuple) and len(item) == 2
        feeds, label = item if pair else (item, None)
        if not isinstance(feeds, Mapping) or not feeds:
            raise self._wrong(index, f"is {type(feeds).__name__}, not a mapping of arrays", _FORM)
        arrays = {str(name): self._array(index, name, value) for name, value in feeds.items()}
        steps = per_input(self._source.transform, list(arrays))
        try:
            made = {name: apply(steps[name], array[None])[0] for name, array in arrays.items()}
        except InputError as error:
            where = f"{self.where}: sample {index}: {error.where}"
            raise InputError(error.what, where=where, fix=error.fix) from error
        return Sample(made, self._label(index, label))

    def _array(self, index: int, name: Any, value: Any) -> Array:
        import numpy as np

        if not isinstance(value, np.ndarray | np.generic):
            kind = type(value).__name__
            fix = "convert it: numpy.asarray(value, dtype=...)"
            raise self._wrong(index, f"the input `{name}` is {kind}, not an array", fix)
        array = np.asarray(value)
        if array.dtype.kind not in _KINDS:
            what = f"the input `{name}` is {array.dtype}, not numbers or text"
            raise self._wrong(index, what, "convert it: numpy.asarray(value, dtype=...)")
        if array.nbytes > MAX_SAMPLE_BYTES:
            what = f"the input `{name}` has {array.nbytes / 1e9:.1f} GB"
            raise self._wrong(index, what, _FORM)
        return array

    def _label(self, index: int, label: Any) -> Label | None:
        """The label as numbers and arrays."""
        import numpy as np

        if label is None:
            return None
        if isinstance(label, Mapping):
            return {str(n): self._array(index, f"label {n}", v) for n, v in label.items()}
        if isinstance(label, np.generic | bool):
            label = np.asarray(label).item() if not isinstance(label, bool) else int(label)
        if isinstance(label, int | float):
            return int(label) if isinstance(label, int) else label
        if isinstance(label, np.ndarray) and label.dtype.kind in "biuf":
            return label if label.ndim else label.item()
        fix = "give a number, an array, or a mapping of arrays"
        raise self._wrong(index, f"the label is {type(label).__name__}", fix)

    def _wrong(self, index: int, what: str, fix: str) -> InputError:
        return InputError(what, where=f"{self.where}: sample {index}", fix=fix)

    def _raised(self, error: Exception, index: int | None) -> OptimcError:
        if isinstance(error, OptimcError):
            return error
        where = self.where if index is None else f"{self.where}: sample {index}"
        return InputError(
            f"raised {type(error).__name__}: {error}",
            where=where,
            fix="run the function alone to see where",
        )


_SEEDED = "the function has to give the same samples each time: seed what it draws"


def _label_bytes(label: Label | None) -> bytes:
    import numpy as np

    parts = label if isinstance(label, Mapping) else {"": label}
    return b"".join(
        sample_digest({name: np.asarray(part)[None]}, 0)
        for name, part in parts.items()
        if part is not None
    )


def _imported(call: str, base: Path) -> Callable[[], object]:
    module, _, attribute = call.partition(":")
    try:
        with importable(base):
            made = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise InputError(
            f"cannot be imported: {type(error).__name__}: {error}",
            where=f"`{call}`",
            fix="put it beside the recipe or on PYTHONPATH, or install its package",
        ) from error
    if not callable(made):
        raise InputError("is no function", where=f"`{call}`", fix=_FORM)
    return cast("Callable[[], object]", made)
