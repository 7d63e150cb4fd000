"""2:4 from a module to the quantized artifact: the exact pattern in every layer that was cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from optimc.core.onnx_sparsity import sparsity_of
from optimc.testing.commands import run_optimc

pytest.importorskip("torch", reason="the extra `torch` is not installed")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

RECIPES = Path(__file__).parents[2] / "recipes"
NET = """
import torch

def net():
    torch.manual_seed(0)
    n = torch.nn
    return n.Sequential(
        n.Conv2d(3, 8, 3, padding=1, bias=False), n.BatchNorm2d(8), n.ReLU(),
        n.Conv2d(8, 16, 3, padding=1), n.BatchNorm2d(16), n.ReLU(),
        n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(16, 12),
    )
"""
RECIPE = """
model: {factory: "net_of_test:net"}
inputs: {input: {shape: [batch, 3, 8, 8], dtype: float32}}
dims: {batch: {min: 1, typical: 1, max: 4}}
data: {calibration: {npz: calibration.npz, inputs: {input: images}}}
variants:
  sparse: [{prune_n_m: {n: 2, m: 4}}, simplify, fuse, quantize_int8]
targets: {ort: {runtime: onnxruntime}}
"""


def test_the_pattern_reaches_the_artifact(tmp_path: Path) -> None:
    import onnx_ir as ir

    (tmp_path / "net_of_test.py").write_text(NET)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    images = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", images=images)
    done = run_optimc("build", "recipe.yaml", "-o", "out", "--no-measure", cwd=tmp_path)
    assert done.code == 0, done.err
    (file,) = (tmp_path / "out" / "artifacts" / "sparse" / "ort").glob("*.onnx")
    first, second, head = sparsity_of(ir.load(file))
    assert not first.two_of_four
    for layer in (second, head):
        assert layer.two_of_four
        assert layer.share >= 0.5


def test_training_keeps_the_pattern(tmp_path: Path) -> None:
    import onnx_ir as ir

    for name in ("prune_digits", "quickstart"):
        shutil.copytree(RECIPES / name, tmp_path / name)
    shutil.copy(RECIPES / "prune_digits.yaml", tmp_path)
    trained = "{prune_n_m: {n: 2, m: 4}}, {train: {epochs: 3, batch: 32, distill: {}}}"
    variants = f"variants={{sparse: [{trained}, simplify, fuse, quantize_int8]}}"
    done = run_optimc(
        *("build", "prune_digits.yaml", "-o", "out", "--no-measure", "--set", variants),
        cwd=tmp_path,
        timeout=500,
    )
    assert done.code == 5, done.err  # built; the gate has nothing that was measured
    (file,) = (tmp_path / "out" / "artifacts" / "sparse" / "ort").glob("*.onnx")
    first, *others = sparsity_of(ir.load(file))
    assert not first.two_of_four  # one channel of pixels: nothing to choose two of four from
    assert len(others) == 14
    assert all(layer.two_of_four for layer in others)
