"""The metrics that a recipe may name, and the comparison of a candidate with the source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from optimc.core.errors import InputError, did_you_mean, unknown_name
from optimc.measure.answers import AnswerF1, ExactMatch
from optimc.measure.classification import F1, Top1, Top5
from optimc.measure.detection import Map, Map50
from optimc.measure.metric import Metric, MetricOptions, SampleMetric
from optimc.measure.pairs import Pearson, Spearman
from optimc.measure.segmentation import Miou
from optimc.measure.similarity import Cosine, Mse
from optimc.measure.statistics import Interval
from optimc.measure.tokens import Perplexity, SpanF1, TokenF1
from optimc.measure.user_metric import UserMetric, UserMetricOptions

if TYPE_CHECKING:
    from optimc.measure.metric import Records

Options = TypeVar("Options", bound=MetricOptions)

_CLASSIFIERS = (Top1, Top5, F1)
_TEXT = (TokenF1, SpanF1, ExactMatch, AnswerF1, Perplexity)
_IMAGES = (Map, Map50, Miou)
_VALUES = (Cosine, Mse, Spearman, Pearson)

METRICS: Mapping[str, type[SampleMetric]] = {
    kind.name: kind for kind in (*_CLASSIFIERS, *_TEXT, *_IMAGES, *_VALUES)
}
"""The built-in metrics by name; their fields are their options."""


def metric_for(name: str, options: Mapping[str, Any] | None = None) -> SampleMetric | UserMetric:
    """The metric `name` with its options, checked; no code of the user runs.

    With ``call`` among the options it is a `UserMetric`, whose `load` imports it: only a recipe
    that is trusted may get there. Raises InputError for unknown names and wrong options.
    """
    given = dict(options or {})
    if "call" in given:
        return UserMetric(name, _validated(UserMetricOptions, name, given))
    if name not in METRICS:
        error = unknown_name("metric", name, METRICS, where=f"metrics.{name}")
        raise InputError(
            error.what, where=error.where, fix=f"{error.fix}; your own: {{call: module:Class}}"
        )
    return _validated(METRICS[name], name, given)


def _validated(kind: type[Options], name: str, given: Mapping[str, Any]) -> Options:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["metrics", name, *map(str, first["loc"])])
        known = ", ".join(kind.model_fields)
        if first["type"] == "extra_forbidden":
            option = str(first["loc"][0])
            hint = did_you_mean(option, kind.model_fields)
            raise InputError(
                f"unknown option `{option}`",
                where=place,
                fix=f"{hint} known: {known}" if hint else f"known: {known}",
            ) from error
        raise InputError(
            f"{first['msg']}, not {first['input']!r}", where=place, fix=f"known: {known}"
        ) from error


def compare(metric: Metric, source: Records, candidate: Records, *, seed: int = 0) -> Interval:
    """The drop from `source` to `candidate` in the metric's own unit, with its intervals.

    Positive where the candidate is worse, whichever way the metric points. Both records come from
    the same samples in the same order. `seed` draws resamples where the metric needs them.
    Raises InputError for fewer than 2 samples.
    """
    if isinstance(metric, SampleMetric):
        counts = {metric.samples(records) for records in (source, candidate)}
        if len(counts) != 1:
            raise ValueError(f"source and candidate have seen different samples: {counts}")
        if counts.pop() < 2:
            raise InputError(
                "an interval needs 2 samples, the evaluation data hold 1",
                where=f"metrics.{metric.name}",
                fix="add samples to data.evaluation",
            )
    return metric.drop(source, candidate, seed)
