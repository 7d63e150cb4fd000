"""`optimc check`: everything a build checks before any work, quickly."""

from __future__ import annotations

import sys
from pathlib import Path

from optimc.core.errors import ExitCode
from optimc.pipeline.recipe import Recipe, load_recipe


def run_check(recipe_path: Path, *, explain: bool, settings: list[str], untrusted: bool) -> int:
    """Checks the recipe, the model's interface, the data and the plan; prints one line or the plan.

    Exit 3 where a cell that is not optional cannot be built on this machine.
    """
    from optimc.pipeline.plan import make_plan

    recipe = load_recipe(recipe_path, settings, untrusted)
    _check_model_and_data(recipe)
    plan = make_plan(recipe)
    if explain:
        print(plan.explain())
    missing = [
        error
        for cell in plan.cells
        if (error := plan.unavailable.get(cell.name)) and not cell.target.optional
    ]
    for error in missing:
        print(f"error: {error}", file=sys.stderr)
    if missing:
        return int(ExitCode.CELL)
    print(f"{recipe_path}: fine, {len(plan.cells)} cells", file=sys.stderr)
    return int(ExitCode.OK)


def _check_model_and_data(recipe: Recipe) -> None:
    from optimc.calibration.checks import check_disjoint
    from optimc.frontends.onnx import read_signature
    from optimc.pipeline.data import open_data
    from optimc.pipeline.inputs import declared_signature

    signature = declared_signature(recipe, read_signature(recipe.model.onnx))
    data = open_data(recipe, signature)
    if recipe.data is not None:
        splits = {name: data.splits[name] for name in recipe.data.splits}
        check_disjoint(splits, recipe.data.allow_overlap)
