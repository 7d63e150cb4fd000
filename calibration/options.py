"""What all data sources take in a recipe, and the choice of samples that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from optimc.core.descriptions import wanted
from optimc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

Share = Annotated[float, Field(ge=0, le=1)]


class Options(BaseModel):
    """Base of everything that a recipe says about data."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=wanted()
    )


class SourceOptions(Options):
    """Base of all data sources."""

    take: Annotated[int, Field(ge=1)] | None = None
    """Use only this many samples: the first ones, or drawn by the seed where `shuffle` is set."""

    @property
    def has_labels(self) -> bool:
        """Whether there is something for metrics to compare with, as far as the recipe says it."""
        return getattr(self, "labels", True) is not None

    def files(self, base: Path) -> list[Path]:
        """The files that the recipe names, which have to be there."""
        return []

    def folders(self, base: Path) -> list[Path]:
        """The folders that the recipe names, which have to be there."""
        return []

    def for_inputs(self, names: Sequence[str]) -> Self:
        """This source for a model with the inputs `names`: what the recipe leaves open is set."""
        return self


class Selection(SourceOptions):
    """The choice among samples that can be read in any order."""

    shuffle: bool = False
    """Put the samples into a random order, drawn by the recipe's seed, before `take`."""
    split: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    """Use only the part from one share of the samples to another, in an order that the recipe's
    seed draws: `[0, 0.2]` and `[0.2, 1]` of the same file have no sample in common."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.split is not None and self.split[0] >= self.split[1]:
            raise ValueError(
                "the part is empty: the first share must be below the second"
                "\nwrite two shares from 0 to 1, such as `split: [0, 0.2]`"
            )
        return self

    def count(self, stored: int, where: str) -> int:
        """How many of `stored` samples are used. Raises InputError where `take` asks for more."""
        first, last = self._bounds(stored)
        if first == last:
            raise InputError(
                f"the part {self.split} of {stored} samples is empty",
                where=where,
                fix="make `split` wider, or take more data",
            )
        there = last - first
        if self.take is not None and self.take > there:
            raise InputError(
                f"`take: {self.take}` asks for more samples than the {there} there are",
                where=where,
                fix="take fewer, or leave `take` out to use all",
            )
        return self.take or there

    def chosen(self, stored: int, seed: int, where: str) -> NDArray[np.intp]:
        """The numbers of the samples that are used, in their order."""
        import numpy as np

        count = self.count(stored, where)
        numbers = np.arange(stored)
        if self.split is not None:
            first, last = self._bounds(stored)
            # Another stream than that of `shuffle`; equal for all parts, which makes them disjoint.
            drawn = np.random.default_rng([seed, 1]).permutation(stored)
            numbers = np.sort(drawn[first:last])
        if self.shuffle:
            numbers = numbers[np.random.default_rng(seed).permutation(len(numbers))]
        return numbers[:count]

    def _bounds(self, stored: int) -> tuple[int, int]:
        first, last = self.split or (0.0, 1.0)
        return round(first * stored), round(last * stored)
