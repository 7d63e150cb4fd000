"""`gptq` and `quantize_weights` in whole builds: they compose, and leave nothing behind."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.testing.commands import run_optimc

pytest.importorskip("torch", reason="the extra `torch` is not installed")

pytestmark = [
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("neural_compressor", "accelerate")),
        reason="the extra `inc` is not installed",
    ),
    pytest.mark.timeout(900),
]

NET = """
import torch

def net():
    torch.manual_seed(0)
    n = torch.nn
    return n.Sequential(
        n.Linear(64, 96), n.ReLU(), n.LayerNorm(96), n.Linear(96, 64), n.ReLU(), n.Linear(64, 10)
    )
"""
RECIPE = """
model: {factory: "net_of_test:net"}
inputs: {input: {shape: [batch, 64], dtype: float32}}
dims: {batch: {min: 1, typical: 1, max: 4}}
data: {training: {npz: rows.npz, inputs: {input: x}}}
variants:
  w4: [{gptq: {samples: 256}}, simplify, fuse, quantize_weights]
targets: {ort: {runtime: onnxruntime, threads: 1}}
"""
BERT = """
model: {hf: ./m, task: embedding}
dims: {batch: {min: 1, typical: 1, max: 2}, length: {min: 2, typical: 4, max: 8}}
data: {training: {npz: ids.npz, inputs: {input_ids: x, attention_mask: m, token_type_ids: t}}}
variants: {w4: [{gptq: {}}, simplify, fuse, quantize_weights]}
targets: {ort: {runtime: onnxruntime, threads: 1}}
"""


def built(folder: Path, out: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The passes by name, and the engine, of the report's only cell."""
    command = ("build", "recipe.yaml", "-o", out, "--no-measure", *options)
    done = run_optimc(*command, cwd=folder, timeout=800)
    assert done.code == 0, done.err
    report = json.loads((folder / out / "report.json").read_text(encoding="utf-8"))
    (cell,) = report["results"]
    return {entry["pass"]: entry for entry in cell["passes"]}, cell["engine"]


@pytest.mark.slow
def test_the_artifact_holds_the_integers_of_gptq(tmp_path: Path) -> None:
    (tmp_path / "net_of_test.py").write_text(NET, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(512, 16)) @ rng.normal(size=(16, 64))
    np.savez(tmp_path / "rows.npz", x=rows.astype(np.float32))
    before = {path.name for path in tmp_path.iterdir()}
    passes, engine = built(tmp_path, "one", "--no-cache")
    assert passes["gptq"]["verdict"] == "lossy"
    assert 10 < passes["gptq"]["sqnr_db"] < 40
    # What was put on the grid before is stored as it is.
    assert passes["quantize_weights"]["rewrites"] == 3
    assert float(passes["quantize_weights"]["sqnr_db"]) > 100  # or "Infinity"
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left <= {"one", "recipe.lock", "__pycache__"}
    _, again = built(tmp_path, "two", "--no-cache")
    assert again["sha256"] == engine["sha256"]


@pytest.mark.long
def test_a_folder_of_hugging_face_under_untrusted(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "m")
    for name in ("intel_extension_for_pytorch", "habana_frameworks", "deepspeed", "auto_round"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w').close()\n", encoding="utf-8"
        )
    (tmp_path / "recipe.yaml").write_text(BERT, encoding="utf-8")
    ids = np.random.default_rng(0).integers(0, 32, (64, 4))
    np.savez(tmp_path / "ids.npz", x=ids, m=np.ones_like(ids), t=np.zeros_like(ids))
    passes, _ = built(tmp_path, "out", "--untrusted", "--offline")
    assert passes["gptq"]["rewrites"] == 13  # six in each layer, and the pooler
    assert float(passes["quantize_weights"]["sqnr_db"]) > 100  # or "Infinity"
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("nc_*"))
