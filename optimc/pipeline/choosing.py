"""What a recipe has to name where passes choose by a metric. Checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.errors import InputError
from optimc.core.passes import Input

if TYPE_CHECKING:
    from optimc.pipeline.recipe.schema import Recipe


def check_choices(recipe: Recipe) -> None:
    """Raises InputError where a pass chooses by a metric and what it needs for it is missing."""
    for variant, name in choosing_passes(recipe):
        where = recipe.where("variants", variant)
        if recipe.data is None or recipe.data.tuning is None:
            raise InputError(
                f"{name} chooses on tuning data, and the recipe names none",
                where=where,
                fix="add data.tuning: samples that stand neither in calibration nor in evaluation,"
                " such as a part of the training data",
            )
        if not recipe.metrics:
            raise InputError(
                f"{name} goes by the recipe's first metric, and there is none",
                where=where,
                fix="name it, for example `metrics: {top1: {}}`",
            )


def check_training(recipe: Recipe) -> None:
    """Raises InputError where a pass trains and the recipe names no data for it."""
    for variant, one in recipe.variants.items():
        for entry in one.passes:
            trains = Input.TRAINING in entry.pass_.needs
            if trains and (recipe.data is None or recipe.data.training is None):
                raise InputError(
                    f"{entry.name} trains, and the recipe names no training data",
                    where=recipe.where("variants", variant),
                    fix="add data.training; its samples may not stand in tuning or evaluation",
                )


def check_files(recipe: Recipe) -> None:
    """Raises InputError where a file that a pass's options name is not there."""
    for variant, one in recipe.variants.items():
        for entry in one.passes:
            where = recipe.where("variants", variant)
            try:
                missing = [f for f in entry.pass_.files(recipe.folder) if not f.is_file()]
            except OSError as error:
                missing = [Path(str(error.filename))]
            if missing:
                raise InputError(
                    f"{entry.name} names {missing[0]}: there is no such file",
                    where=where,
                    fix=f"paths are relative to {recipe.folder}",
                )


def choosing_passes(recipe: Recipe) -> list[tuple[str, str]]:
    """Variants and the names of their passes that read the tuning split."""
    return [
        (variant, entry.name)
        for variant, one in recipe.variants.items()
        for entry in one.passes
        if Input.TUNING in entry.pass_.needs
    ]
