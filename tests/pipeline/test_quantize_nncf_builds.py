"""`quantize_nncf` in real builds, with NNCF in its worker: cached, locked, the same again."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.testing.planted_digits import write_digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("nncf") is None, reason="the extra `openvino` is not installed"),
]


@pytest.fixture(name="recipe")
def digits_for_openvino(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    quickstart = repository / "recipes" / "quickstart"
    recipe = write_digits(tmp_path, "{samples: 32, max_drop: 0.02}", quickstart=quickstart)
    text = recipe.read_text().replace("quantize_int8", "quantize_nncf")
    recipe.write_text(text.replace("ort: {runtime: onnxruntime", "ov: {runtime: openvino"))
    return recipe


def built(recipe: Path, **options: Any) -> Any:
    given = BuildOptions(
        out=recipe.parent / "out", command="optimc build", measure=False, **options
    )
    build = Build(load_recipe(recipe), given, Silent())
    build.run()
    return build.results["int8/ov"]


def test_it_is_cached_locked_and_the_same_again(recipe: Path) -> None:
    first = built(recipe)
    assert first.status == "built", first.reason
    outcome = first.outcomes[-1]
    assert outcome.budget.met, "the spoiled layer went back into float"
    assert outcome.choice["float"]
    lock = json.loads((recipe.parent / "recipe.lock").read_text())
    assert lock["cells"]["int8/ov"]["passes"][-1]["choice"] == outcome.choice
    assert "nncf" in json.dumps(lock)

    again = built(recipe)
    assert again.outcomes[-1].cached
    locked = built(recipe, locked=True, use_cache=False)
    assert locked.outcomes[-1].model.digest == outcome.model.digest


def test_on_a_target_without_it_the_cell_fails_with_the_way_out(recipe: Path) -> None:
    text = recipe.read_text().replace("ov: {runtime: openvino", "ov: {runtime: onnxruntime")
    recipe.write_text(text)
    result = built(recipe)
    assert result.status == "failed"
    assert "does not place for the target `onnxruntime`" in str(result.reason)
