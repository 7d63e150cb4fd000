"""Builds that leave a calibration table, and builds that take one in place of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.testing.planted_digits import write_digits

_DATA = """\
  calibration:
    npz: calibration.npz
    inputs: {input: images}
    transform: &t [nchw, {divide: 16}]
  tuning: {npz: tuning.npz, inputs: {input: images}, labels: labels, transform: *t}
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OPTIMC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def built(recipe: Path, out: str, **options: Any) -> Build:
    given = BuildOptions(out=recipe.parent / out, command="optimc build", measure=False, **options)
    build = Build(load_recipe(recipe), given, Silent())
    build.report = build.run()  # type: ignore[attr-defined]
    return build


def digits(folder: Path, repository: Path) -> Path:
    quickstart = repository / "recipes" / "quickstart"
    return write_digits(folder, "{ranges: mse}", quickstart=quickstart, planted=False)


def from_table(recipe: Path, line: str = "out/calibration/table.json") -> None:
    text = recipe.read_text().replace(_DATA, f"  calibration_table: {line}\n")
    recipe.write_text(text.replace("transform: *t", "transform: [nchw, {divide: 16}]"))


def test_a_table_builds_what_its_data_built(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository)
    first = built(recipe, "out")
    assert (tmp_path / "out" / "calibration" / "table.json").exists()
    table = (tmp_path / "out" / "calibration" / "table.json").read_bytes()
    built(recipe, "again")  # all from the cache
    assert (tmp_path / "again" / "calibration" / "table.json").read_bytes() == table
    from_table(recipe)
    second = built(recipe, "other")
    models = [b.results["int8/ort"].outcomes[-1].model for b in (first, second)]
    assert models[0].digest == models[1].digest
    report = second.report  # type: ignore[attr-defined]
    assert any("ranges are of a calibration table (samples: 200)" in note for note in report.notes)
    assert any("checks are of seeded random data" in warning for warning in report.warnings)
    assert not any("ranges and checks" in warning for warning in report.warnings)
    assert "calibration_table" in (tmp_path / "recipe.lock").read_text()
    assert not (tmp_path / "other" / "calibration").exists()


def test_a_table_that_changed_is_refused_by_the_lock(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository)
    built(recipe, "out")
    from_table(recipe)
    built(recipe, "other")
    table = tmp_path / "out" / "calibration" / "table.json"
    table.write_text(table.read_text().replace('"samples": 200', '"samples": 199'))
    with pytest.raises(InputError, match="calibration_table: locked"):
        built(recipe, "other", locked=True)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("nowhere.json", "there is no such file"),
        ("7", "expected text"),
        ('""', "must not be empty"),
        ("out", "is a folder"),
    ],
)
def test_a_table_that_is_not_there(tmp_path: Path, repository: Path, line: str, what: str) -> None:
    recipe = digits(tmp_path, repository)
    (tmp_path / "out").mkdir()
    from_table(recipe, line)
    with pytest.raises(InputError, match=what) as caught:
        load_recipe(recipe)
    assert "recipe.yaml:" in str(caught.value)


def test_data_and_a_table_together_are_refused(tmp_path: Path, repository: Path) -> None:
    recipe = digits(tmp_path, repository)
    (tmp_path / "table.json").write_text("{}")
    text = recipe.read_text().replace("data:\n", "data:\n  calibration_table: table.json\n")
    recipe.write_text(text)
    with pytest.raises(InputError, match="both `calibration` and `calibration_table`"):
        load_recipe(recipe)
