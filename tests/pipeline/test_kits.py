"""What a build leaves for a target that cannot be built here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimc.core.errors import ExitCode
from optimc.testing.commands import run_optimc
from optimc.testing.graphs import convolutions

RECIPE = """
model: {{onnx: model.onnx}}
dims: {{batch: {{min: 1, typical: 2, max: 4}}}}
variants: {{int8: {{passes: [simplify, fuse, quantize_int8]}}}}
targets:
  ort: {{runtime: onnxruntime}}
  trt: {{runtime: tensorrt, optional: {optional}, workspace_mb: 64}}
"""
KIT = "out/artifacts/int8/trt"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    convolutions().write_onnx(tmp_path / "model.onnx")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(optional="true"))
    return path
