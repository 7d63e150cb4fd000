"""An empty ``--set`` value is refused: an unset shell variable must not switch a limit off."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.recipe import load_recipe


def test_an_empty_value_is_refused(repository: Path) -> None:
    with pytest.raises(InputError, match="the value is empty") as caught:
        load_recipe(repository / "recipes" / "quickstart.yaml", ["gate.speedup="])
    assert "--set" in str(caught.value)


def test_null_takes_a_limit_away(repository: Path) -> None:
    recipe = load_recipe(repository / "recipes" / "quickstart.yaml", ["gate.speedup=null"])
    assert recipe.gate is not None
    assert recipe.gate.speedup is None
