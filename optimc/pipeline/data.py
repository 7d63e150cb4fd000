"""The data of a build: the recipe's splits, opened and checked, or seeded inputs in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.core.targets import DimSizes
from optimc.pipeline.inputs import check_cases, check_signature, resolved_dims

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.calibration.stored import StoredCalibration
    from optimc.core.model import Signature
    from optimc.core.store import Store
    from optimc.pipeline.recipe.schema import DimRange, Recipe

RANDOM_SAMPLES = 64
"""Seeded inputs that stand for calibration data where the recipe names none: at least so many."""


@dataclass(frozen=True)
class BuildData:
    """The splits of a build and the sizes of the dims."""

    splits: Mapping[str, Dataset]
    dims: Mapping[str, DimRange]
    random: bool
    """Whether calibration runs on seeded inputs because the recipe names no data for it."""
    feed: int
    """Samples in one feed where the model fixes it, else the least that its dim allows."""
    table: StoredCalibration | None = None
    """What ranges are taken from where the recipe names a table in place of calibration data."""

    @property
    def sizes(self) -> dict[str, DimSizes]:
        """Of each dim what a target may read."""
        return {name: DimSizes(d.min, d.typical, d.max) for name, d in self.dims.items()}

    @property
    def calibration(self) -> Dataset:
        """What ranges are observed on."""
        return self.splits["calibration"]

    @property
    def evaluation(self) -> Dataset | None:
        """What metrics are measured on."""
        return self.splits.get("evaluation")

    def samples(self, count: int) -> list[Mapping[str, NDArray[Any]]]:
        """The first calibration samples, each feed as small as the model takes it."""
        found: list[Mapping[str, NDArray[Any]]] = []
        for batch in self.calibration.batches(self.feed):
            if len(found) >= count:
                break
            if batch.size >= self.feed:
                found.append(batch.feeds)
        return found

    def digests(self) -> dict[str, str]:
        """By split, for the lock."""
        table = {"calibration_table": self.table.digest} if self.table is not None else {}
        return {name: d.digest for name, d in sorted(self.splits.items())} | table


def open_data(recipe: Recipe, signature: Signature, glance: int | None = None) -> BuildData:
    """Opens and checks the recipe's data against the model's signature.

    With `glance`, of a function's samples no more than that many are looked at.
    Raises InputError for what does not fit. Overlap of the splits is a check of its own.
    """
    from optimc.calibration.call_dataset import CallDataset
    from optimc.calibration.checks import check_against
    from optimc.calibration.random_data import RandomDataset

    check_signature(recipe, signature)
    splits: dict[str, Dataset] = {}
    if recipe.data is not None:
        inputs = [spec.name for spec in signature.inputs]
        for name, source in recipe.data.splits.items():
            opened = source.for_inputs(inputs).open(recipe.folder, recipe.seed)
            if glance is not None and isinstance(opened, CallDataset):
                opened.glance(glance)
            splits[name] = opened
    dims = resolved_dims(recipe, signature, splits)
    check_cases(recipe, dims)
    bounds = {name: (dim.min, dim.max, dim.multiple_of) for name, dim in dims.items()}
    for dataset in splits.values():
        check_against(dataset, signature, bounds)
    random, feed = "calibration" not in splits, _feed(signature, dims)
    if random:
        ranges = {
            name: bound
            for name, declared in recipe.inputs.items()
            if (bound := declared.range or declared.values)
        }
        sizes = {name: dim.typical for name, dim in dims.items()}
        samples = RANDOM_SAMPLES + -RANDOM_SAMPLES % feed
        splits["calibration"] = RandomDataset(signature, sizes, ranges, recipe.seed, samples)
    return BuildData(splits, dims, random, feed, _table(recipe))


def _feed(signature: Signature, dims: Mapping[str, DimRange]) -> int:
    """Samples in one feed: what the model fixes, else the least size of the dim that counts them,
    which is a multiple of `multiple_of`; 1 where that is 0."""
    from optimc.calibration.checks import fixed_batch

    fixed = fixed_batch(signature)
    if fixed is None:
        symbol = next(spec.shape[0] for spec in signature.inputs if spec.shape)
        fixed = dims[str(symbol)].min
    return max(1, fixed)


def _table(recipe: Recipe) -> StoredCalibration | None:
    from optimc.calibration.stored import StoredCalibration

    if recipe.data is None or recipe.data.calibration_table is None:
        return None
    return StoredCalibration(recipe.folder / recipe.data.calibration_table)


def check_overlap(recipe: Recipe, data: BuildData, store: Store) -> None:
    """Raises InputError where whole samples stand in two splits; remembered by digests."""
    from optimc.calibration.checks import check_disjoint
    from optimc.core.digest import digest_of

    named = {name: data.splits[name] for name in (recipe.data.splits if recipe.data else {})}
    if recipe.data is None or recipe.data.allow_overlap or len(named) < 2:
        return
    key = digest_of("disjoint", {name: dataset.digest for name, dataset in named.items()})
    if store.get("disjoint", key) is None:
        check_disjoint(named)
        store.put("disjoint", key, lambda folder: None)
