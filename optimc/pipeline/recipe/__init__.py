"""Recipes: YAML in, typed and frozen objects out, errors that point at what is wrong."""

from __future__ import annotations

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
