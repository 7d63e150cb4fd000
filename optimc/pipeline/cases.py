"""What engines are timed on: seeded inputs of the cases' sizes, or samples of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc.core.errors import InputError
from optimc.pipeline.probes import seeded_array
from optimc.pipeline.timing import Case

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.core.model import Signature
    from optimc.pipeline.build import Build
    from optimc.pipeline.recipe.schema import DimRange, InputSpec, Recipe

    Feeds = Mapping[str, NDArray[Any]]

DRAWN = 8
"""Feeds that are drawn from the evaluation data."""


def benchmark_cases(build: Build) -> list[Case]:
    """Every benchmark case of the recipe, with its inputs."""
    typical = {name: dim.typical for name, dim in build.data.dims.items()}
    asked = build.recipe.benchmark.cases
    if asked == "data":
        return [_drawn(build, typical)]
    found = [{**typical, **case} for case in asked or ({},)]
    signature = build.source.model.signature
    reference = seeded(signature, build.recipe.inputs, found, build.recipe.seed)
    feeds = seeded(build.start.model.signature, build.start.inputs, found, build.recipe.seed)
    return [
        Case(sizes, [own], [theirs], batch=samples_in(signature, theirs))
        for sizes, own, theirs in zip(found, feeds, reference, strict=True)
    ]


def check_data_cases(recipe: Recipe, evaluation: Dataset | None) -> None:
    """Raises InputError where inputs are to be drawn from evaluation data that are not there."""
    if recipe.benchmark.cases == "data" and evaluation is None:
        raise InputError(
            "`cases: data` draws inputs from the evaluation data, and there are none",
            where=recipe.where("benchmark", "cases"),
            fix="name data.evaluation, or give sizes: cases: [{batch: 1}]",
        )


def _drawn(build: Build, typical: Mapping[str, int]) -> Case:
    dataset, raw = build.data.evaluation, build.start.data.evaluation or build.data.evaluation
    assert dataset is not None
    assert raw is not None
    size = _batch(build.source.model.signature, build.data.dims)
    return Case(typical, drawn(raw, size), drawn(dataset, size), from_data=True, batch=size)


def drawn(dataset: Dataset, size: int, count: int = DRAWN) -> list[Feeds]:
    """`count` whole feeds of `size` samples (fewer where there are fewer), spread over the data.

    The same ones each time: sources and engines have to get the same samples.
    """
    wanted = set(np.linspace(0, max(len(dataset) // size - 1, 0), count).astype(int).tolist())
    found: list[Feeds] = []
    for number, batch in enumerate(dataset.batches(size)):
        if batch.size == size and (number in wanted or number > max(wanted)):
            found.append(dict(batch.feeds))
        if len(found) == len(wanted):
            return found
    if not found:
        raise InputError(
            f"no feed of {size} samples of one shape can be drawn",
            where=dataset.where,
            fix="give sizes in place of `cases: data`: cases: [{batch: 1}]",
        )
    return found


def _batch(signature: Signature, dims: Mapping[str, DimRange]) -> int:
    """Samples of one feed: what the model fixes, or the batch's typical size."""
    from optimc.calibration.checks import fixed_batch

    fixed = fixed_batch(signature)
    if fixed is not None:
        return fixed
    symbol = next(spec.shape[0] for spec in signature.inputs if spec.shape)
    return dims[str(symbol)].typical


def samples_in(signature: Signature, feeds: Feeds) -> int:
    """How many samples one run on `feeds` takes; 1 where the inputs share no first axis."""
    from optimc.calibration.checks import fixed_batch

    fixed = fixed_batch(signature)
    if fixed is not None:
        return fixed
    return len(next(iter(feeds.values())))


def seeded(
    signature: Signature,
    declared: Mapping[str, InputSpec],
    cases: Sequence[Mapping[str, int]],
    seed: int,
) -> list[dict[str, NDArray[Any]]]:
    """For each case the feeds of a model with this signature."""
    rng = np.random.default_rng(seed)
    return [
        {
            spec.name: seeded_array(spec, declared.get(spec.name), sizes, rng)
            for spec in signature.inputs
        }
        for sizes in cases
    ]
