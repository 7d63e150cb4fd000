"""Passes of the torch level in builds: in workers, judged, exported, kept, and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.testing.commands import Finished, run_optimc

pytest.importorskip("torch")

NETS = """
import torch

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(width, width, 3, padding=1)
    def forward(self, x):
        return (x + self.conv2(self.conv1(x).relu())).relu()

def net(width=16):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, width, 3, padding=1), Block(width), Block(width), Block(width),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10),
    )
"""
RECIPE = """
model: {{factory: "nets:net"}}
inputs: {{input: {{shape: [batch, 1, 8, 8], dtype: float32, range: [0, 1]}}}}
dims: {{batch: {{min: 1, typical: 1, max: 8}}}}
data:
  calibration: {{npz: digits.npz, inputs: {{input: x}}, split: [0, 0.1]}}
  tuning: {{npz: digits.npz, inputs: {{input: x}}, labels: y, split: [0.1, 0.3]}}
  training: {{npz: digits.npz, inputs: {{input: x}}, labels: y, split: [0.3, 0.8]}}
  evaluation: {{npz: digits.npz, inputs: {{input: x}}, labels: y, split: [0.8, 1]}}
metrics: {{top1: {{}}}}
variants:
{variants}
targets: {{ort: {{runtime: onnxruntime, threads: 1}}}}
benchmark: {{at_most: 4 s}}
gate: {{ship: {ship}, drop: {{top1: 0.2}}}}
"""
CUT = "[{prune_depth: {blocks: 1}}, simplify, fuse]"
CUT8 = "[{prune_depth: {blocks: 1}}, simplify, fuse, quantize_int8]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    np.savez(tmp_path / "digits.npz", x=x, y=digits.target.astype(np.int64))
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    return tmp_path


def write(folder: Path, *, ship: str = "best", **variants: str) -> None:
    lines = "\n".join(f"  {name}: {passes}" for name, passes in variants.items())
    (folder / "recipe.yaml").write_text(RECIPE.format(variants=lines, ship=ship), encoding="utf-8")


def optimc(folder: Path, *arguments: str) -> Finished:
    environment = {"OPTIMC_CACHE_DIR": str(folder / "cache")}
    return run_optimc(*arguments, cwd=folder, environment=environment, timeout=600)


def report(folder: Path) -> Any:
    return json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_module_is_pruned_exported_quantized_followed_and_replayed(folder: Path) -> None:
    write(folder, ship="cut8/ort", fp32="[]", cut=CUT, cut8=CUT8)
    built = optimc(folder, "build", "recipe.yaml", "-o", "out", "--dump", "dump")
    assert built.code == 0, built.err
    found = report(folder)
    cells = {cell["variant"]: cell for cell in found["results"]}
    assert [p["pass"] for p in cells["cut"]["passes"]] == [
        "prune_depth",
        "export",
        "simplify",
        "fuse",
    ]
    pruned, export = cells["cut8"]["passes"][:2]
    assert pruned["verdict"] == "lossy"
    assert export["verdict"] in ("within_tolerance", "equivalent")
    assert pruned["bytes"][1] < pruned["bytes"][0]
    assert cells["cut"]["engine"]["verdict"] in ("within_tolerance", "equivalent")
    assert cells["cut8"]["engine"]["verdict"] == "lossy"

    (steps,) = found["steps"]
    assert steps["cell"] == "cut8/ort"
    names = [step["name"].partition(". ")[2] or step["name"] for step in steps["steps"]]
    assert names[0] == "source"
    assert names[1] == "prune_depth"
    assert names[-1] == "quantize_int8"
    macs = [step["macs"] for step in steps["steps"]]
    assert macs[0] > macs[1] == macs[-1]
    assert steps["steps"][-1]["bytes"] < steps["steps"][1]["bytes"]
    assert all("speedup" in step and "drop" in step for step in steps["steps"])

    assert (folder / "dump" / "001-prune_depth" / "weights.safetensors").is_file()

    lock = json.loads((folder / "recipe.lock").read_text(encoding="utf-8"))
    assert [p["pass"] for p in lock["cells"]["cut8/ort"]["passes"]][:2] == ["prune_depth", "export"]
    again = optimc(folder, "build", "recipe.yaml", "-o", "out", "--locked")
    assert again.code == 0, again.err
    assert all(p["cache"] == "hit" for p in report(folder)["results"][1]["passes"])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_from_scratch_with_the_lock_the_same_digests_come(folder: Path) -> None:
    write(folder, cut8=CUT8)
    first = optimc(folder, "build", "recipe.yaml", "-o", "out", "--no-measure")
    assert first.code in (0, 4, 5), first.err
    digests = (folder / "recipe.lock").read_text(encoding="utf-8")
    again = optimc(folder, "build", "recipe.yaml", "-o", "out", "--no-measure", "--no-cache")
    assert again.code == first.code, again.err
    assert (folder / "recipe.lock").read_text(encoding="utf-8") == digests

    recipe = folder / "recipe.yaml"
    renamed = "outputs: {output: {rename: scores}}\n" + recipe.read_text(encoding="utf-8")
    recipe.write_text(renamed, encoding="utf-8")
    other = optimc(folder, "build", "recipe.yaml", "-o", "out", "--no-measure")
    assert other.code == first.code, other.err
    (manifest,) = (folder / "out").glob("artifacts/cut8/ort/manifest.json")
    assert "scores" in manifest.read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_untrusted_runs_no_code_that_lies_beside_the_recipe(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder / "m")
    for name in ("triton", "torchvision", "pandas"):
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'ran')!r}, 'w').close()\n", encoding="utf-8"
        )
    (folder / "recipe.yaml").write_text(
        "model: {hf: ./m, task: embedding}\n"
        "dims: {batch: {min: 1, typical: 1, max: 2}, length: {min: 2, typical: 4, max: 8}}\n"
        "variants: {cut: [{prune_depth: {blocks: 1}}]}\n"
        "data: {training: {npz: ids.npz,"
        " inputs: {input_ids: x, attention_mask: m, token_type_ids: t}}}\n"
        "targets: {ort: {runtime: onnxruntime, threads: 1}}\n",
        encoding="utf-8",
    )
    ids = np.random.default_rng(0).integers(0, 32, (64, 4))
    np.savez(folder / "ids.npz", x=ids, m=np.ones_like(ids), t=np.zeros_like(ids))
    built = optimc(folder, "build", "recipe.yaml", "-o", "out", "--no-measure", "--untrusted")
    assert "prune_depth" in built.err
    assert not (folder / "ran").exists()


def test_a_pass_of_the_torch_level_needs_modules(folder: Path) -> None:
    write(folder, late="[simplify, {prune_depth: {blocks: 1}}]")
    checked = optimc(folder, "check", "recipe.yaml")
    assert checked.code == 2
    assert "pass prune_depth works on torch models, here the model is onnx" in checked.err
    assert "put it before simplify" in checked.err


def test_a_teacher_that_is_not_there_is_said_before_work(folder: Path) -> None:
    write(folder, taught="[{train: {distill: {teacher: {onnx: teacher.onnx}}}}]")
    checked = optimc(folder, "check", "recipe.yaml")
    assert checked.code == 2
    assert "teacher.onnx: there is no such file" in checked.err


@pytest.mark.slow
def test_names_of_modules_are_checked_before_work(folder: Path) -> None:
    hint = "{train: {distill: {losses: [{features: {pairs: {'2': '%s'}}}]}}}"
    write(folder, fine=f"[{{prune_depth: {{blocks: 1, keep: ['3']}}}}, {hint % 2}]")
    checked = optimc(folder, "check", "recipe.yaml")
    assert checked.code == 0, checked.err
    for wrong, said in (
        ("{prune_depth: {blocks: 1, keep: ['8']}}", "prune_depth: keep: `8` names no module"),
        ("{prune_width: {macs: 0.5, keep: ['1.conv3']}}", "did you mean `1.conv"),
        ("{prune_n_m: {keep: [conv1]}}", "prune_n_m: keep: `conv1` names no module"),
        (hint % 9, "train: distill.losses: `9` names no module"),
    ):
        write(folder, wrong=f"[{wrong}]")
        checked = optimc(folder, "check", "recipe.yaml")
        assert checked.code == 2, checked.err
        assert said in checked.err
        assert "recipe.yaml:" in checked.err
    # Behind the export names are those of nodes, which no check knows.
    write(folder, later="[simplify, {prune_n_m: {keep: [conv1]}}]")
    assert optimc(folder, "check", "recipe.yaml").code == 0


@pytest.mark.slow
def test_without_a_metric_what_is_left_is_held_to_the_source(folder: Path) -> None:
    write(folder, cut="[{prune_depth: {blocks: 3}}]")
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if not line.startswith(("metrics:", "gate:"))]
    recipe.write_text("\n".join(kept), encoding="utf-8")
    built = optimc(folder, "build", "recipe.yaml", "-o", "out", "--no-measure")
    assert built.code == 3, built.err
    assert "behind prune_depth the outputs have an SQNR of" in built.err
    assert "name a metric and data.evaluation" in built.err


def test_training_needs_training_data(folder: Path) -> None:
    write(folder, trained="[{train: {epochs: 1}}]")
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("  training:")]
    recipe.write_text("\n".join(lines), encoding="utf-8")
    checked = optimc(folder, "check", "recipe.yaml")
    assert checked.code == 2
    assert "train trains, and the recipe names no training data" in checked.err
    assert "add data.training" in checked.err


@pytest.mark.slow
def test_bisecting_refuses_what_it_cannot_repeat(folder: Path) -> None:
    write(folder, cut=CUT)
    bisected = optimc(folder, "bisect", "recipe.yaml", "--drop", "0.1")
    assert bisected.code == 2, bisected.err
    assert "prune_depth works on the module or trains" in bisected.err


def test_numbers_to_choose_from_are_named(folder: Path) -> None:
    write(folder, small="[{quantize_weights: {bits: 5}}]")
    checked = optimc(folder, "check", "recipe.yaml")
    assert checked.code == 2
    assert "bits: expected `4` or `8`, got `5`" in checked.err
