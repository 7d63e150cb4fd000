"""A metric of your own: a class, a factory or a function that the recipe names.

``metrics: {wer: {call: "my_metrics:WordErrors", better: lower}}``; the module lies beside the
recipe or on PYTHONPATH. What is named is one of:

- a class, or a function without arguments that makes an object, with
  ``update(outputs: Mapping[str, ndarray], labels) -> None`` for each batch and
  ``compute() -> float`` for the value over all batches so far,
- a function ``(outputs, labels) -> array [n]`` with one number for each of the n samples of a
  batch; the metric is their mean.

``better`` (``"higher"`` or ``"lower"``) and ``unit`` (a word, or nothing) are attributes of it, or
options in the recipe, which go first.

``outputs`` are the model's, by name. ``labels`` are the batch's: an array where samples are alike
in shape, else a list with one entry a sample (a number, an array, or a mapping of arrays: a
detector's ``boxes``, ``classes``, ``image_size``, ``crowd``); None where the data have none.

A value that is computed cannot be resampled. So that its drop has an interval, 21 objects are made,
and 20 of them miss one twentieth of the samples each: `update` is called on parts of batches, and
has to keep what it needs in the object. `compute` is called once, and must give a finite number
for any part of the samples. Whatever the code raises ends the build in one message that names it.

Values on the evaluation data are computed anew in every build. What passes choose on the tuning
data is kept, and a training that was killed goes on, as long as the module's file stays as it is,
with the files beside it that it imports. What else the code reads (a word list, a service) is not
seen: after a change there, build once with ``--no-cache``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field

from optimc.core.errors import InputError, OptimcError
from optimc.core.user_code import importable
from optimc.measure.metric import Direction, MetricOptions, Recorder
from optimc.measure.paired import group_drop
from optimc.measure.statistics import Interval
from optimc.measure.user_function import FunctionMetric, run_users, samples_of, takes_batch

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
    """A metric of the user's own: what ``call`` names, see `optimc metrics call`."""

    call: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """``package.module:Class`` (or a function); importing it runs its code."""
    better: Direction | None = None
    """Which way is better, where the code does not say it."""
    unit: str | None = None
    """The unit of its value, where the code does not say it."""


@dataclass(frozen=True)
class UserMetric:
    """A user's metric, not yet imported: `load` runs the user's code."""

    name: str
    options: UserMetricOptions

    @property
    def where(self) -> str:
        """The place in the recipe, for messages."""
        return f"metrics.{self.name}"

    def load(self, folder: Path | None = None) -> LoadedMetric | FunctionMetric:
        """Imports it, also from `folder`, where the recipe lies.

        Raises InputError where that fails or it does not fit.
        """
        module, _, attribute = self.options.call.partition(":")
        try:
            with importable(folder):
                made = getattr(importlib.import_module(module), attribute)
        except OptimcError:
            raise
        except Exception as error:
            raise InputError(
                f"cannot import `{self.options.call}`: {type(error).__name__}: {error}",
                where=f"{self.where}.call",
                fix="put it beside the recipe or on PYTHONPATH, or install its package",
            ) from error
        if not hasattr(made, "update") and takes_batch(made):
            better, unit = self._about(made)
            return FunctionMetric(self.name, self.options.call, better, unit, made)
        return self._computed(made)

    def _computed(self, made: Any) -> LoadedMetric:
        """A class, or a factory, which is called once to see what it makes."""
        kind = made
        if not isinstance(made, type) and not hasattr(made, "update") and callable(made):
            kind = run_users(self.name, self.options.call, made)
        missing = [m for m in ("update", "compute") if not callable(getattr(kind, m, None))]
        if missing or not callable(made):
            what = f"has no method {' and '.join(missing)}" if missing else "is made already"
            raise InputError(
                f"`{self.options.call}` {what}",
                where=f"{self.where}.call",
                fix="name a class with update(outputs, labels) and compute(), a function that "
                "makes such an object, or a function (outputs, labels) that gives a number for "
                "each sample; see `optimc metrics call`",
            )
        better, unit = self._about(kind, made)
        return LoadedMetric(self.name, self.options.call, better, unit, made)

    def _about(self, *sources: Any) -> tuple[Direction, str]:
        """What the recipe, or else the code, says of `better` and `unit`."""
        stated = [getattr(source, "better", None) for source in sources]
        better = self.options.better or next((word for word in stated if word), None)
        if better not in ("higher", "lower"):
            raise InputError(
                "nothing says which way the metric is better",
                where=self.where,
                fix="write `better: higher` or `better: lower`",
            )
        units = [str(getattr(source, "unit", "") or "") for source in sources]
        return better, self.options.unit or next((unit for unit in units if unit), "")


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
        return run_users(self.name, self.call, action)


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
        samples = samples_of(outputs, labels)
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


def _take(labels: Any, keep: NDArray[np.intp]) -> Any:
    import numpy as np

    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return {name: _take(part, keep) for name, part in labels.items()}
    if isinstance(labels, Sequence):
        return [labels[index] for index in keep]
    return np.asarray(labels)[keep]
