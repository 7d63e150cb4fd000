"""The ready recipes build from their files as they stand, and their gates pass."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.testing.commands import run_optimc

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class Ready:
    """A recipe, what it needs, and what it has to reach."""

    name: str
    modules: tuple[str, ...]
    metric: str
    floor: float


READY = [
    Ready("segmentation", ("torch", "safetensors", "PIL", "openvino"), "miou", 0.85),
    Ready("detector", ("PIL", "pycocotools", "openvino"), "map50", 0.9),
]
by_name = pytest.mark.parametrize("ready", READY, ids=lambda ready: ready.name)
# The segmentation network is a torch factory, which a check exports; its build does so as well.
checked = [pytest.param(r, marks=[pytest.mark.slow] * ("torch" in r.modules)) for r in READY]


@by_name
def test_recipe_is_short_and_its_files_are_small(ready: Ready) -> None:
    lines = (RECIPES / f"{ready.name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    files = [path for path in (RECIPES / ready.name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000


@pytest.mark.parametrize("ready", checked, ids=lambda ready: ready.name)
def test_recipe_is_right_before_work(ready: Ready) -> None:
    done = run_optimc("check", RECIPES / f"{ready.name}.yaml", cwd=RECIPES)
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.timeout(900)
@by_name
def test_recipe_builds_and_its_gate_passes(ready: Ready, tmp_path: Path) -> None:
    for module in ready.modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{ready.name} needs {module}")
    recipe = tmp_path / f"{ready.name}.yaml"  # the lock is written beside it
    shutil.copy(RECIPES / recipe.name, recipe)
    shutil.copytree(RECIPES / ready.name, tmp_path / ready.name)
    done = run_optimc("build", recipe.name, "-o", "out", cwd=tmp_path, timeout=800)
    assert done.code == 0, done.out + done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["gate"]["verdict"] == "passed"
    cells: dict[str, dict[str, Any]] = {
        f"{cell['variant']}/{cell['target']}": cell for cell in report["results"]
    }
    assert set(cells) == {"fp32/ort", "fp32/ov", "int8/ort", "int8/ov"}
    for cell in cells.values():
        assert cell["status"] == "built"
        figures = cell["metrics"][ready.metric]
        assert figures["samples"] == 200
        assert figures["source"] >= ready.floor
    limits = [c for c in report["gate"]["checks"] if c["name"] == f"drop.{ready.metric}"]
    int8 = [check for check in limits if check["variant"] == "int8"]
    assert {check["target"] for check in int8} == {"ort", "ov"}
    assert all(check["ci95"][1] <= check["limit"] for check in int8)
    for cell in (cells["int8/ort"], cells["int8/ov"]):
        assert cell["engine"]["int8_share"] > 0.5
        assert cell["engine"]["verdict"] == "lossy"


@pytest.mark.slow
@by_name
def test_files_are_what_the_training_script_draws(ready: Ready) -> None:
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    folder = RECIPES / ready.name
    script = runpy.run_path(str(folder / "train.py"))
    for name, count in (("calibration", 60), ("evaluation", 200)):
        files = sorted((folder / name).iterdir())
        drawn = script["split"](name, count)
        images = [one.image for one in drawn] if ready.name == "detector" else drawn[0]
        assert len(files) == count
        for file, pixels in zip(files, images, strict=True):
            with image.open(file) as opened:
                np.testing.assert_array_equal(np.asarray(opened), pixels)
