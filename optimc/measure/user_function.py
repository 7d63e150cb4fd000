"""A metric that is a function of the user's: a number for each sample. See `user_metric`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, OptimcError
from optimc.measure.metric import Direction, Recorder
from optimc.measure.paired import mean_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Outputs, Records


def run_users(name: str, call: str, action: Callable[[], Any]) -> Any:
    """Runs the user's code; what it raises becomes one message."""
    try:
        return action()
    except OptimcError:
        raise
    except Exception as error:
        raise InputError(
            f"`{call}` raised {type(error).__name__}: {error}",
            where=f"metrics.{name}",
            fix="run the metric alone on one batch to see where",
        ) from error


def takes_batch(made: Any) -> bool:
    """Whether this is a function of outputs and labels."""
    if isinstance(made, type) or not callable(made):
        return False
    try:
        inspect.signature(made).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def samples_of(outputs: Outputs, labels: Any) -> int | None:
    """How many samples a batch holds, or None where its arrays do not agree on it."""
    counts = {array.shape[0] if array.ndim else None for array in outputs.values()}
    if isinstance(labels, Mapping):
        counts |= {len(part) for part in labels.values()}
    elif labels is not None:
        counts.add(len(labels))
    return counts.pop() if len(counts) == 1 else None


@dataclass(frozen=True)
class FunctionMetric:
    """A user's function of a batch, imported; a `Metric`, the mean of what it gives."""

    name: str
    call: str
    better: Direction
    unit: str
    function: Callable[[Mapping[str, Array], Any], Any]
    needs_labels: bool = False
    needs_source: bool = False

    def recorder(self) -> Recorder:
        """See `Metric`."""
        return _FunctionRecorder(self)

    def value(self, records: Records) -> float:
        """See `Metric`."""
        return float(records["score"].mean())

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`; nothing is drawn, `seed` is not used."""
        if source["score"].shape != candidate["score"].shape:
            raise ValueError("source and candidate have seen different samples")
        sign = 1 if self.better == "higher" else -1
        return mean_drop(sign * (source["score"] - candidate["score"]))

    def scores(self, outputs: Outputs, labels: Any) -> Array:
        """The function's numbers [n] for one batch; raises InputError."""
        import numpy as np

        given = run_users(self.name, self.call, lambda: self.function(outputs, labels))
        try:
            scores = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            scores = np.zeros(())
        samples = samples_of(outputs, labels)
        if scores.ndim != 1 or (samples is not None and len(scores) != samples):
            count = f"{samples} samples" if samples is not None else "samples of the batch"
            raise self._fail(
                f"gave {type(given).__name__} of shape {list(scores.shape)}, not one number for "
                f"each of the {count}",
                "return an array with one number for each sample, or write a class with update "
                "and compute; see `optimc metrics call`",
            )
        if not np.isfinite(scores).all():
            index = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise self._fail(
                f"gave {scores[index]} for sample {index} of a batch",
                "give a finite number for each sample",
            )
        return scores

    def _fail(self, what: str, fix: str) -> InputError:
        return InputError(f"`{self.call}` {what}", where=f"metrics.{self.name}", fix=fix)


class _FunctionRecorder:
    """Gathers the samples' numbers."""

    def __init__(self, metric: FunctionMetric) -> None:
        self._metric = metric
        self._batches: list[Array] = []

    def update(self, outputs: Outputs, labels: Any, source: Outputs | None = None) -> None:
        self._batches.append(self._metric.scores(outputs, labels))

    def records(self) -> Records:
        import numpy as np

        scores = np.concatenate([np.zeros(0), *self._batches])
        if len(scores) < 2:
            raise InputError(
                f"an interval needs 2 samples, the evaluation data hold {len(scores)}",
                where=f"metrics.{self._metric.name}",
                fix="add samples to data.evaluation",
            )
        return {"score": scores}
