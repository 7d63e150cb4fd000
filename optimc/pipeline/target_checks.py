"""Whether targets' options fit the model's interface, found before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimc.core.errors import InputError

if TYPE_CHECKING:
    from optimc.core.model import Signature
    from optimc.core.targets import DimSizes
    from optimc.pipeline.recipe.schema import Recipe


def check_targets(recipe: Recipe, signature: Signature, dims: Mapping[str, DimSizes]) -> None:
    """Raises InputError where a target's options do not fit, with their place in the recipe."""
    for name in dict.fromkeys(target for _, target in recipe.cells):
        try:
            recipe.targets[name].check(signature, dims)
        except InputError as error:
            option = () if error.where is None else (error.where,)
            where = recipe.where("targets", name, *option)
            raise InputError(error.what, where=where, fix=error.fix) from error
