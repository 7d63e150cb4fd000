"""`optimc check`: everything a build checks before any work, quickly."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.cli.run import printable
from optimc.core.errors import ExitCode
from optimc.pipeline.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset

GLANCE = 2_000
"""Samples of a function of the user's that stand for all, so that a check takes seconds."""


def run_check(recipe_path: Path, *, explain: bool, settings: list[str], untrusted: bool) -> int:
    """Checks the recipe, the model's interface, the data and the plan; prints one line or the plan.

    Exit 3 where a cell that is not optional cannot be built on this machine.
    """
    from optimc.pipeline.plan import make_plan

    recipe = load_recipe(recipe_path, settings, untrusted)
    _check_model_and_data(recipe)
    plan = make_plan(recipe)
    if explain:
        print(printable(plan.explain()))
    missing = [cell for cell in plan.cells if cell.name in plan.unavailable]
    needed = [cell for cell in missing if not cell.target.optional]
    refused = _lint(recipe)
    for cell in needed:
        print(printable(f"error: {plan.unavailable[cell.name]}"), file=sys.stderr)
    if needed or refused:
        return int(ExitCode.CELL)
    skipped = f", of which {len(missing)} cannot be built here" if missing else ""
    print(f"{recipe_path}: fine, {len(plan.cells)} cells{skipped}", file=sys.stderr)
    return int(ExitCode.OK)


def _lint(recipe: Recipe) -> bool:
    """Prints what targets know to go wrong; whether a cell that was asked for cannot be built."""
    from optimc.pipeline.lint import lint_source

    found = lint_source(recipe)
    for line in (line for one in found for line in one.lines()):
        print(printable(line), file=sys.stderr)
    return any(one.fails for one in found)


def _check_model_and_data(recipe: Recipe) -> None:
    from optimc.calibration.checks import check_disjoint
    from optimc.pipeline.data import open_data
    from optimc.pipeline.evaluation import check_metrics
    from optimc.pipeline.preprocess import check_embedding
    from optimc.pipeline.signatures import checked_signature
    from optimc.pipeline.target_checks import check_targets
    from optimc.pipeline.tuning import check_tuning

    recipe, signature = checked_signature(recipe)
    data = open_data(recipe, signature, glance=GLANCE)
    check_embedding(recipe, signature, data)
    check_metrics(recipe, data.evaluation, signature)
    check_tuning(recipe, data)
    check_targets(recipe, signature, data.sizes)
    if recipe.data is not None:
        splits = {name: data.splits[name] for name in recipe.data.splits}
        check_disjoint(splits, recipe.data.allow_overlap)
        _say_what_was_looked_at(splits)


def _say_what_was_looked_at(splits: Mapping[str, Dataset]) -> None:
    for name, dataset in splits.items():
        count = getattr(dataset, "looked_at", None)
        if count is not None:
            print(
                printable(
                    f"note: data.{name}: the first {count:,} samples of {dataset.where} were looked"
                    " at; a build looks at all"
                ),
                file=sys.stderr,
            )
