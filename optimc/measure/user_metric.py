"""A metric of the user's own: a class that is named in the recipe.

The class is made without arguments and has

- ``update(outputs: Mapping[str, ndarray], labels) -> None`` for each batch,
- ``compute() -> float`` for the value over all batches,
- ``better``: ``"higher"`` or ``"lower"``, unless the recipe says it; ``unit``: a word, or nothing.

Its value can be computed, not resampled. So that its drop has an interval, more instances are made,
and each misses one twentieth of the samples: `update` is called on parts of batches.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field

from optimc.core.errors import InputError, OptimcError
from optimc.measure.metric import Direction, MetricOptions, Recorder
from optimc.measure.paired import group_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.measure.metric import Outputs, Records

GROUPS = 20


class Computed(Protocol):
    """What a user's class gives."""

    def update(self, outputs: Mapping[str, NDArray[Any]], labels: Any) -> None:
        """Takes one batch."""

    def compute(self) -> float:
        """The value over all batches so far."""


class UserMetricOptions(MetricOptions):
    """A metric of the user's own: a class named by ``call``."""

    call: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """``package.module:Class``; importing it runs its code."""
    better: Direction | None = None
    """Which way is better, where the class does not say it."""
    unit: str | None = None
    """The unit of its value, where the class does not say it."""


@dataclass(frozen=True)
class UserMetric:
    """A user's metric, not yet imported: `load` runs the user's code."""

    name: str
    options: UserMetricOptions

    @property
    def where(self) -> str:
        """The place in the recipe, for messages."""
        return f"metrics.{self.name}"

    def load(self, folder: Path | None = None) -> LoadedMetric:
        """Imports the class, also from `folder`, where the recipe lies.

        Raises InputError where that fails or the class does not fit.
        """
        module, _, attribute = self.options.call.partition(":")
        try:
            with _importable(folder):
                made = getattr(importlib.import_module(module), attribute)
        except OptimcError:
            raise
        except Exception as error:
            raise InputError(
                f"cannot import `{self.options.call}`: {type(error).__name__}: {error}",
                where=f"{self.where}.call",
                fix="put it beside the recipe or on PYTHONPATH, or install its package",
            ) from error
        better = self.options.better or getattr(made, "better", None)
        if better not in ("higher", "lower"):
            raise InputError(
                "nothing says which way the metric is better",
                where=self.where,
                fix="write `better: higher` or `better: lower`",
            )
        missing = [m for m in ("update", "compute") if not callable(getattr(made, m, None))]
        if missing:
            raise InputError(
                f"`{self.options.call}` has no method {' and '.join(missing)}",
                where=f"{self.where}.call",
                fix="a metric is a class with update(outputs, labels) and compute()",
            )
        unit = self.options.unit or str(getattr(made, "unit", ""))
        return LoadedMetric(self.name, self.options.call, better, unit, made)


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Modules of `folder` can be imported, behind those that are installed."""
    if folder is None:
        yield
        return
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@dataclass(frozen=True)
class LoadedMetric:
    """A user's metric, imported; a `Metric`."""

    name: str
    call: str
    better: Direction
    unit: str
    make: Callable[[], Computed]
    needs_labels: bool = False
    needs_source: bool = False

    def recorder(self) -> Recorder:
        """See `Metric`."""
        return _GroupRecorder(self)

    def value(self, records: Records) -> float:
        """See `Metric`."""
        return float(records["value"][0])

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`; nothing is drawn, `seed` is not used."""
        import numpy as np

        if not np.array_equal(source["sizes"], candidate["sizes"]):
            raise ValueError("source and candidate have seen different samples")
        sign = 1 if self.better == "higher" else -1
        drops = sign * (source["value"] - candidate["value"])
        sizes = source["sizes"]
        return group_drop(float(drops[0]), drops[1:], sizes, int(sizes.sum()))

    def run(self, action: Callable[[], Any]) -> Any:
        """Runs the user's code; what it raises becomes one message."""
        try:
            return action()
        except OptimcError:
            raise
        except Exception as error:
            raise InputError(
                f"`{self.call}` raised {type(error).__name__}: {error}",
                where=f"metrics.{self.name}",
                fix="run the metric alone on one batch to see where",
            ) from error


class _GroupRecorder:
    """One instance that sees all samples, and one for each group, that does not see the group.

    Sample i is in group ``i mod 20``. Where outputs or labels do not have one entry a sample first
    (detections, say), a whole batch counts as one sample.
    """

    def __init__(self, metric: LoadedMetric) -> None:
        import numpy as np

        self._metric = metric
        self._all: Computed = metric.run(metric.make)
        self._without: list[Computed] = [metric.run(metric.make) for _ in range(GROUPS)]
        self._sizes = np.zeros(GROUPS, dtype=np.int64)

    def update(self, outputs: Outputs, labels: Any, source: Outputs | None = None) -> None:
        import numpy as np

        self._metric.run(lambda: self._all.update(outputs, labels))
        samples = _samples(outputs, labels)
        start = int(self._sizes.sum())
        group = (start + np.arange(samples or 1)) % GROUPS
        for number, instance in enumerate(self._without):
            keep = np.flatnonzero(group != number)
            if len(keep) == len(group):
                self._call(instance, outputs, labels)
            elif len(keep):
                part = {name: array[keep] for name, array in outputs.items()}
                self._call(instance, part, _take(labels, keep))
        self._sizes += np.bincount(group, minlength=GROUPS)

    def _call(self, instance: Computed, outputs: Outputs, labels: Any) -> None:
        self._metric.run(lambda: instance.update(outputs, labels))

    def records(self) -> Records:
        import numpy as np

        seen = np.flatnonzero(self._sizes)
        if len(seen) < 2:
            raise InputError(
                f"an interval needs 2 samples, the evaluation data hold {len(seen)}",
                where=f"metrics.{self._metric.name}",
                fix="add samples, or make batches smaller where outputs belong to whole batches",
            )
        instances = [self._all, *(self._without[number] for number in seen)]
        value = np.array([self._compute(instance) for instance in instances])
        return {"value": value, "sizes": self._sizes[seen]}

    def _compute(self, instance: Computed) -> float:
        value = self._metric.run(lambda: float(instance.compute()))
        if not math.isfinite(value):
            raise InputError(
                f"`{self._metric.call}` computed {value}",
                where=f"metrics.{self._metric.name}",
                fix="give a finite number for any part of the samples",
            )
        return float(value)


def _samples(outputs: Outputs, labels: Any) -> int | None:
    """How many samples a batch holds, or None where its arrays do not agree on it."""
    counts = {array.shape[0] if array.ndim else None for array in outputs.values()}
    if isinstance(labels, Mapping):
        counts |= {len(part) for part in labels.values()}
    elif labels is not None:
        counts.add(len(labels))
    return counts.pop() if len(counts) == 1 else None


def _take(labels: Any, keep: NDArray[np.intp]) -> Any:
    import numpy as np

    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return {name: _take(part, keep) for name, part in labels.items()}
    if isinstance(labels, Sequence):
        return [labels[index] for index in keep]
    return np.asarray(labels)[keep]
