"""`train` in whole builds: of recipes as users write them, and after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.recipe import load_recipe
from optimc.testing.commands import run_optimc

RECIPES = Path(__file__).parents[2] / "recipes"

RECIPE = """\
model:
  factory: prune_digits.network:make
  weights: {file: prune_digits/weights.safetensors}
inputs: {image: {shape: [batch, 1, 8, 8], dtype: float32, range: [0, 1]}}
dims: {batch: {min: 1, typical: 1, max: 4}}
data:
  training: &images
    npz: prune_digits/training.npz
    inputs: {image: images}
    labels: labels
    transform: [nchw, {divide: 16}]
    split: [0.25, 1]
  tuning: {<<: *images, split: [0, 0.25]}
  evaluation: {<<: *images, npz: quickstart/digits_evaluation.npz, split: [0, 1], take: 100}
metrics: {top1: {}}
variants:
  trained:
    - train: OPTIONS
targets: {ort: {runtime: onnxruntime, threads: 1}}
"""
FOUR_EPOCHS = "{epochs: 4, batch: 16, augment: [{crop: 1}], distill: {}, threads: 1}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the recipe."""
    for name in ("prune_digits", "quickstart"):
        shutil.copytree(RECIPES / name, tmp_path / name)
    return tmp_path


def recipe(folder: Path, options: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("OPTIONS", options))
    return path


@pytest.mark.parametrize(
    "options",
    [
        "{loss: {call: 'a:b'}}",
        "{distill: {losses: [{call: 'a:b'}]}}",
        "{distill: {teacher: {factory: 'a:b'}}}",
    ],
)
def test_users_code_in_passes_is_refused_in_untrusted_recipes(folder: Path, options: str) -> None:
    path = recipe(folder, options)
    with pytest.raises(InputError, match=r"recipe\.yaml:18:\d+: `(call|factory): a:b` runs code"):
        load_recipe(path, untrusted=True)
    assert load_recipe(path).variants["trained"].passes[0].name == "train"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{epochs: many}", "epochs"),
        ("{optimiser: sgd}", "did you mean `optimizer`?"),
        ("{at_most: 20}", "not a duration"),
        ("{distill: {losses: [{logits: {}, features: {pairs: {a: b}}}]}}", "in one entry"),
        ("{distill: {losses: [{crd: {}}]}}", "crd"),
        ("{patience: 1, keep: last}", "waits for a better epoch"),
    ],
)
def test_bad_options_are_said_with_their_place(folder: Path, options: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(recipe(folder, options))
    assert message in str(caught.value)
    assert "recipe.yaml:18:" in str(caught.value)


def test_a_recipe_without_training_data_is_refused(folder: Path) -> None:
    path = recipe(folder, "{}")
    text = path.read_text().replace("  training: &images", "  calibration: &images")
    path.write_text(text)
    done = run_optimc("check", path.name, cwd=folder)
    assert done.code == 2
    assert "train trains, and the recipe names no training data" in done.err


def build(folder: Path, cache: str) -> dict[str, Any]:
    environment = {"OPTIMC_CACHE_DIR": str(folder / cache)}
    done = run_optimc(
        "build", "recipe.yaml", "-o", cache, "--no-measure", cwd=folder, environment=environment
    )
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads((folder / cache / "report.json").read_text())
    return report


def killed_build(folder: Path, cache: str, epoch: int) -> None:
    """Starts a build, and kills it when it has left the checkpoint of `epoch`."""
    environment = {**os.environ, "OPTIMC_CACHE_DIR": str(folder / cache)}
    command = [sys.executable, "-m", "optimc", "build", "recipe.yaml", "-o", cache, "--no-measure"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while not list((folder / cache).glob(f"unfinished/*/epoch-{epoch:05d}/record.json")):
            assert process.poll() is None, "the build ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_build_goes_on_to_the_same_digests(folder: Path) -> None:
    pytest.importorskip("torch")
    recipe(folder, FOUR_EPOCHS)
    whole = build(folder, "whole")
    lock = (folder / "recipe.lock").read_text()
    (folder / "recipe.lock").unlink()
    killed_build(folder, "killed", epoch=1)
    assert not (folder / "recipe.lock").exists()
    resumed = build(folder, "killed")
    assert "went on after epoch" in json.dumps(resumed)
    assert "went on after epoch" not in json.dumps(whole)
    (one,), (other,) = whole["results"], resumed["results"]
    assert one["engine"]["sha256"] == other["engine"]["sha256"]
    assert (folder / "recipe.lock").read_text() == lock
    assert not list((folder / "killed").rglob("epoch-*")), "checkpoints go with the result"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_lock_is_replayed(folder: Path) -> None:
    pytest.importorskip("torch")
    recipe(folder, FOUR_EPOCHS)
    build(folder, "first")
    environment = {"OPTIMC_CACHE_DIR": str(folder / "another")}
    done = run_optimc(
        "build", "recipe.yaml", "--locked", "--no-measure", cwd=folder, environment=environment
    )
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_prune_distill_quantize_on_digits_meets_its_gate(folder: Path) -> None:
    pytest.importorskip("torch")
    shutil.copy(RECIPES / "prune_digits.yaml", folder)
    done = run_optimc("build", "prune_digits.yaml", "-o", "out", cwd=folder, timeout=500)
    assert done.code == 0, done.out + done.err
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["gate"]["verdict"] == "passed"
    cells = {cell["variant"]: cell for cell in report["results"]}
    assert cells.keys() == {"small", "small_int8"}
    for cell in cells.values():
        assert cell["status"] == "built"
        assert cell["metrics"]["top1"]["drop"] <= 0.02
    assert cells["small_int8"]["engine"]["int8_share"] > 0.5


def test_the_recipe_for_digits_is_short_and_right_before_work() -> None:
    path = RECIPES / "prune_digits.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= 25
    files = [file for file in (RECIPES / "prune_digits").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_500_000
    done = run_optimc("check", path, cwd=RECIPES)
    assert done.code == 0, done.err
