"""What a recipe means, as plain data for its digest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from optimc.pipeline.recipe.schema import Recipe


def meaning(recipe: Recipe) -> dict[str, Any]:
    """Plain data that two recipes share exactly where they ask for the same."""
    content = {
        name: plain(getattr(recipe, name), recipe.folder)
        for name in Recipe.model_fields
        if name not in ("path", "sha256", "metrics")
    }
    named = [[name, plain(metric, recipe.folder)] for name, metric in recipe.metrics.items()]
    return {**content, "metrics": named}


def plain(value: Any, folder: Path) -> Any:
    """Plain data for a digest; paths as they stand relative to `folder`."""
    if isinstance(value, BaseModel):
        fields = {name: plain(getattr(value, name), folder) for name in type(value).model_fields}
        return {"": type(value).__qualname__, **fields}
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name), folder)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Path):
        return value.relative_to(folder).as_posix() if value.is_relative_to(folder) else str(value)
    if isinstance(value, Mapping):
        return {key: plain(item, folder) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, folder) for item in value]
    return value
