"""`qat` in whole builds: on the digits, after a kill, and where it does not belong."""

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

import numpy as np
import pytest

from optimc.testing.commands import run_optimc

RECIPE = """\
model: {onnx: digits.onnx}
inputs: {input: {range: [0, 1]}}
dims: {batch: {min: 1, typical: 1, max: 4}}
data:
  calibration: &images
    npz: digits_calibration.npz
    inputs: {input: images}
    transform: [nchw, {divide: 16}]
  training: {<<: *images, npz: training.npz, labels: labels}
  tuning: {<<: *images, npz: tuning.npz, labels: labels}
  evaluation: {<<: *images, npz: evaluation.npz, labels: labels}
metrics: {top1: {}}
variants:
  int8: {passes: [simplify, fuse, quantize_int8, {qat: {epochs: 3, batch: 16}}]}
targets: {ort: {runtime: onnxruntime, threads: 1}}
gate: {drop: {top1: 0.05}}
"""


@pytest.fixture
def folder(tmp_path: Path, repository: Path) -> Path:
    """A recipe with the digits; what the quickstart evaluates on is cut into three splits."""
    source = repository / "recipes" / "quickstart"
    for name in ("digits.onnx", "digits_calibration.npz"):
        shutil.copy(source / name, tmp_path)
    with np.load(source / "digits_evaluation.npz", allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    splits = {"training": slice(0, 300), "tuning": slice(300, 400), "evaluation": slice(400, 600)}
    for name, part in splits.items():
        np.savez(tmp_path / f"{name}.npz", images=images[part], labels=labels[part])
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def build(folder: Path, cache: str) -> dict[str, Any]:
    """A whole build with a cache of its own; the report."""
    environment = {"OPTIMC_CACHE_DIR": str(folder / cache)}
    done = run_optimc(
        "build",
        "recipe.yaml",
        "-o",
        cache,
        cwd=folder,
        environment=environment,
        timeout=500,
    )
    assert done.code in (0, 4, 5), done.err
    report: dict[str, Any] = json.loads((folder / cache / "report.json").read_text())
    return report


def killed_build(folder: Path, cache: str, epoch: int) -> None:
    """Starts a build, and kills it when it has left the checkpoint of `epoch`."""
    environment = {**os.environ, "OPTIMC_CACHE_DIR": str(folder / cache)}
    command = [sys.executable, "-m", "optimc", "build", "recipe.yaml", "-o", cache]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while not list((folder / cache).rglob(f"epoch-{epoch:05d}/record.json")):
            assert process.poll() is None, "the build ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_build_goes_on_to_the_same_digest(folder: Path) -> None:
    pytest.importorskip("torch")
    whole = build(folder, "whole")
    (folder / "recipe.lock").unlink()
    killed_build(folder, "killed", epoch=1)
    resumed = build(folder, "killed")
    assert "went on after epoch" in json.dumps(resumed)
    assert "went on after epoch" not in json.dumps(whole)
    (one,), (other,) = whole["results"], resumed["results"]
    assert one["status"] == "built", one
    assert one["engine"]["sha256"] == other["engine"]["sha256"]
    assert one["metrics"] == other["metrics"]
    assert one["engine"]["int8_share"] > 0.5
    last = one["passes"][-1]
    assert (last["pass"], last["verdict"], last["modified"]) == ("qat", "lossy", True)
    assert not list((folder / "killed").rglob("epoch-*")), "checkpoints go with the result"


def test_before_quantize_int8_it_names_its_place(folder: Path) -> None:
    text = RECIPE.replace("quantize_int8, {qat: {epochs: 3, batch: 16}}", "qat, quantize_int8")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    done = run_optimc("check", "recipe.yaml", cwd=folder)
    assert done.code == 2
    assert "put qat behind quantize_int8" in done.err


def test_without_training_data_the_recipe_is_refused(folder: Path) -> None:
    lines = [line for line in RECIPE.splitlines() if "training:" not in line]
    (folder / "recipe.yaml").write_text("\n".join(lines), encoding="utf-8")
    done = run_optimc("check", "recipe.yaml", cwd=folder)
    assert done.code == 2
    assert "data.training" in done.err
