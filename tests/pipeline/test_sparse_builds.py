"""2:4 from a module to the quantized artifact: the exact pattern in every layer that was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimc.core.onnx_sparsity import sparsity_of
from optimc.testing.commands import run_optimc

pytest.importorskip("torch", reason="the extra `torch` is not installed")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

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
data:
  calibration: {npz: calibration.npz, inputs: {input: images}}
  training: {npz: training.npz, inputs: {input: images}}
variants:
  sparse: [{prune_n_m: {n: 2, m: 4}}, TRAINED simplify, fuse, quantize_int8]
targets: {ort: {runtime: onnxruntime}}
"""


@pytest.mark.parametrize("trained", ["", "{train: {epochs: 3, batch: 8, distill: {labels: 0}}},"])
def test_the_pattern_reaches_the_artifact(trained: str, tmp_path: Path) -> None:
    import onnx_ir as ir

    (tmp_path / "net_of_test.py").write_text(NET)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("TRAINED", trained))
    images = np.random.default_rng(0).normal(size=(96, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", images=images[:32])
    np.savez(tmp_path / "training.npz", images=images[32:])
    done = run_optimc("build", "recipe.yaml", "-o", "out", "--no-measure", cwd=tmp_path)
    assert done.code == 0, done.err
    (file,) = (tmp_path / "out" / "artifacts" / "sparse" / "ort").glob("*.onnx")
    first, second, head = sparsity_of(ir.load(file))
    assert not first.two_of_four
    for layer in (second, head):
        assert layer.two_of_four
        assert layer.share >= 0.5
