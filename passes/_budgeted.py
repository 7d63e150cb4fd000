"""What quantizing passes with a budget have in common: its options."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Self

from pydantic import Field, model_validator

from optimc.core.passes import Pass
from optimc.core.units import Seconds

DEFAULT_SECONDS = 300.0


class Budgeted(Pass, ABC):
    """Passes that put operators back into float until the recipe's first metric holds."""

    max_drop: Annotated[float, Field(ge=0.0)] | None = None
    """How much worse than the source the recipe's first metric may get on `data.tuning`, in its own
    unit: operators stay in float until it is met."""
    at_most: Seconds | None = None
    """With `max_drop`: the time after which no further trial is begun, such as `5 min`, which is
    the default."""

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.at_most is not None and self.max_drop is None:
            raise ValueError("at_most limits the search of max_drop\nadd max_drop, or leave it out")
        return self

    @property
    def seconds(self) -> float:
        """How long the search may take."""
        return self.at_most or DEFAULT_SECONDS
