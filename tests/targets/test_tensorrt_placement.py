"""Our placement for TensorRT: no finding of the lint, and the accuracy of that for ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def table(repository: Path, *arguments: str) -> list[list[str]]:
    """The rows that the bench prints; it exits with 1 where one is not as it should be."""
    done = subprocess.run(
        [sys.executable, str(repository / "bench/tensorrt_placement.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]


def test_the_usual_architectures_are_placed_clean(repository: Path) -> None:
    pytest.importorskip("transformers")
    rows = {row[0]: row for row in table(repository, "ResNet", "ViT", "BERT") if row}
    for name in ("ResNet", "ViT", "BERT"):
        assert rows[name][2] == "none", rows[name]
        assert int(rows[name][1]) > 50, "Q and DQ"


def test_a_shared_model_is_placed_clean_and_loses_nothing(repository: Path, shared: Path) -> None:
    rows = table(repository, "--models", "resnet20", "--take", "2000")
    row = next(row for row in rows if row and row[0] == "resnet20")
    assert row[5] == "none"
    assert abs(float(row[4])) <= 0.002
