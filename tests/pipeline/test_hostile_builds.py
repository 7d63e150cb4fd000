"""A native crash, memory without end and a hang in a real engine, through `optimc build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from optimc.testing.commands import run_optimc, temporary_leftovers, workers_with
from optimc.testing.hostile_models import Trap, folding_trap, run_trap

RECIPE = """
model: {{onnx: model.onnx}}
dims: {{batch: {{min: 1, typical: 1, max: {largest}}}}}
variants: {{fp32: []}}
targets: {{engine: {{runtime: {runtime}}}}}
limits: {{memory_mb: 2000, seconds: {seconds}}}
"""
WORDS: dict[Trap, str] = {
    "crash": "SIGFPE",
    "memory": "memory limit of 2,000 MB",
    "hang": "time limit of 5 s",
}
CASES: list[Any] = [
    ("build", "onnxruntime", "crash"),
    ("build", "onnxruntime", "hang"),
    ("build", "openvino", "memory"),
    ("run", "onnxruntime", "crash"),
    ("run", "onnxruntime", "memory"),
    # Waits for its limit more than once; a hanging engine and a hanging build are looked at always.
    pytest.param("run", "onnxruntime", "hang", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moment", "runtime", "trap"), CASES)
def test_it_is_a_failed_cell_with_a_message(
    moment: str, runtime: str, trap: Trap, tmp_path: Path
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model = folding_trap(trap) if moment == "build" else run_trap(trap)
    ir.save(model.ir, tmp_path / "model.onnx")
    seconds = 5 if trap == "hang" else 120
    largest = 1 if moment == "build" else 3
    text = RECIPE.format(runtime=runtime, seconds=seconds, largest=largest)
    (tmp_path / "recipe.yaml").write_text(text)
    done = run_optimc(
        *["build", "recipe.yaml", "-o", "out", "--no-measure"],
        cwd=tmp_path,
        environment={"OPTIMC_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.code == 3, done.err
    assert not done.traceback
    assert WORDS[trap] in " ".join(done.err.split())
    assert workers_with("OPTIMC_CACHE_DIR", str(tmp_path / "cache")) == []
    assert temporary_leftovers(tmp_path) == []
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    cell = report["results"][0]
    assert cell["status"] == "failed"
    assert WORDS[trap] in cell["reason"]
    assert list((tmp_path / "out" / "artifacts").rglob("*")) == []
