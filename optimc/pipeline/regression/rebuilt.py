"""A metric again from what a build noted of it: enough to compare records, without user code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.measure.metric import Direction, SampleMetric
from optimc.measure.paired import group_drop, mean_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Recorder, Records


def rebuilt_metric(name: str, about: Mapping[str, Any]) -> SampleMetric | NotedMetric:
    """The metric of `about`, as `optimc.pipeline.records` wrote it.

    Raises InputError where the built-in metric is none of this version, or its options are not.
    """
    from optimc.measure.metrics import METRICS, metric_for

    kind = about.get("kind")
    if kind in METRICS:
        found = metric_for(str(kind), dict(about.get("options") or {}))
        assert isinstance(found, SampleMetric)
        return found
    better: Direction = "lower" if about.get("better") == "lower" else "higher"
    return NotedMetric(name, better)


@dataclass(frozen=True)
class NotedMetric:
    """A user's metric, as far as records can be compared without its code."""

    name: str
    better: Direction
    unit: str = ""
    needs_labels: bool = False
    needs_source: bool = False

    def recorder(self) -> Recorder:
        """Not without the user's code."""
        raise ValueError(f"{self.name} is known by its records only")

    def value(self, records: Records) -> float:
        """See `Metric`."""
        return float(records["score"].mean() if "score" in records else records["value"][0])

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`; nothing is drawn, `seed` is not used."""
        import numpy as np

        sign = 1 if self.better == "higher" else -1
        if "score" in source:
            if source["score"].shape != candidate["score"].shape:
                raise ValueError("they are of different samples")
            return mean_drop(sign * (source["score"] - candidate["score"]))
        if not np.array_equal(source["sizes"], candidate["sizes"]):
            raise ValueError("they are of different samples")
        drops = sign * (source["value"] - candidate["value"])
        sizes = source["sizes"]
        return group_drop(float(drops[0]), drops[1:], sizes, int(sizes.sum()))
