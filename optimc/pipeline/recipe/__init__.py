"""Recipes: YAML in, typed and frozen objects out, errors that point at what is wrong.

The names below are imported when they are first asked for: reading a policy file takes the YAML
reader alone, not every pass and data source that recipes know.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimc.pipeline.recipe.load import load_recipe
    from optimc.pipeline.recipe.locate import RecipeError
    from optimc.pipeline.recipe.schema import (
        Benchmark,
        Data,
        DimRange,
        Gate,
        InputSpec,
        PassEntry,
        Recipe,
        Variant,
        WorkerLimits,
    )

__all__ = [
    "Benchmark",
    "Data",
    "DimRange",
    "Gate",
    "InputSpec",
    "PassEntry",
    "Recipe",
    "RecipeError",
    "Variant",
    "WorkerLimits",
    "load_recipe",
]

_ELSEWHERE = {"load_recipe": "load", "RecipeError": "locate"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'schema')}"), name)
