"""Models that take no single sample: probes are as many samples as the dim allows at least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimc.core.model import Signature, TensorSpec
from optimc.pipeline.data import open_data
from optimc.pipeline.recipe import load_recipe

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("batch", 3)),),
    outputs=(TensorSpec("y", "float32", ("batch", 3)),),
)


@pytest.mark.parametrize("data", ["", "data: {calibration: {npz: d.npz, inputs: {x: x}}}\n"])
@pytest.mark.parametrize(("dim", "least"), [("min: 1", 1), ("min: 4, multiple_of: 4", 4)])
def test_samples_come_in_the_least_batch(tmp_path: Path, data: str, dim: str, least: int) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((10, 3), np.float32))
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "r.yaml").write_text(
        f"model: {{onnx: m.onnx}}\ndims: {{batch: {{{dim}, typical: 8, max: 16}}}}\n{data}"
        "variants: {fp32: []}\ntargets: {ort: {runtime: onnxruntime}}\n"
    )
    opened = open_data(load_recipe(tmp_path / "r.yaml"), SIGNATURE)
    # Four of ten samples: the two that are left over are no feed.
    assert [feeds["x"].shape for feeds in opened.samples(2)] == [(least, 3)] * 2


def test_no_samples_at_all_are_no_batch(tmp_path: Path) -> None:
    """A model for 0 samples: inputs are drawn as for one, and what fits is its own shape."""
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "r.yaml").write_text(
        "model: {onnx: m.onnx}\nvariants: {fp32: []}\ntargets: {ort: {runtime: onnxruntime}}\n"
    )
    empty = Signature(
        inputs=(TensorSpec("x", "float32", (0, 3)),), outputs=(TensorSpec("y", "float32", (0, 3)),)
    )
    assert open_data(load_recipe(tmp_path / "r.yaml"), empty).feed == 1
