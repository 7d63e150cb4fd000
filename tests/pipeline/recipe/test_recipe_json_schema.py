from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from optimc.core.errors import InputError
from optimc.core.registry import pass_class, pass_names
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.recipe.json_schema import DIALECT, recipe_schema

RECIPES = Path(__file__).parents[3] / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))
COMPLETE = [path for path in FILES if "${" not in path.read_text(encoding="utf-8")]
"""The others name files by the environment; tests/recipes/ builds them."""

HEAD = "model: {onnx: model.onnx}\n"
FP32 = "variants: {fp32: []}\n"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "calibration.npz", "evaluation.npz"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for item in schema.values():
            yield from references(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from references(item)


def test_there_are_ready_recipes() -> None:
    assert RECIPES / "quickstart.yaml" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ready_recipes_obey_the_schema(validator: Draft202012Validator, path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.name)
def test_ready_recipes_with_files_of_their_own_load(path: Path) -> None:
    assert load_recipe(path).variants


def test_every_reference_leads_somewhere() -> None:
    schema = recipe_schema()
    assert schema["$schema"] == DIALECT
    known = {f"#/$defs/{name}" for name in schema["$defs"]}
    assert set(references(schema)) == known


def test_options_of_every_pass_are_described() -> None:
    schema = recipe_schema()
    for name in pass_names():
        cls = pass_class(name)
        options = schema["$defs"][cls.__name__]
        assert options["description"] == (cls.__doc__ or "").strip().splitlines()[0]
        assert options["additionalProperties"] is False
        for field, info in cls.model_fields.items():
            assert info.description, f"{name}.{field} has no docstring"
            assert options["properties"][field]["description"] == info.description
        assert options["properties"]["required"]["default"] == cls.required_by_default


@pytest.mark.parametrize(
    "text",
    [
        HEAD + FP32,
        HEAD + "variants: {a: [simplify, {simplify: {}}, {quantize_int8: {ranges: mse}}]}\n",
        HEAD + "variants: {a: {passes: [{simplify: {required: true}}], targets: [ort]}}\n",
        HEAD + FP32 + "targets: {ort: {runtime: onnxruntime, threads: 2, optional: true}}\n",
        HEAD + FP32 + "metrics: {cosine: {}, mse: {reference: source}, m: {call: a.b:C}}\n",
        HEAD + FP32 + "gate: {ship: [fp32/*], speedup: 1.5, latency_ms: {p50: 3}}\n",
        HEAD + FP32 + "benchmark: {until: time, at_most: 1.5 min, cases: [{batch: 1}]}\n",
        HEAD + FP32 + "inputs: {x: {shape: [n, 3], dtype: float32, range: [0, 1.5]}}\n",
        HEAD + FP32 + "outputs: {x: drop, y: {}}\n",
        HEAD
        + FP32
        + "data: {evaluation: {npz: evaluation.npz, transform: {x: [nchw, {divide: [1, 2]}]}}}\n",
    ],
)
def test_recipes_that_both_accept(validator: Draft202012Validator, folder: Path, text: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    assert load_recipe(folder / "recipe.yaml").variants
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        FP32,
        HEAD,
        HEAD + FP32 + "sed: 1\n",
        HEAD + FP32 + "seed: -1\n",
        HEAD + FP32 + "seed: x\n",
        HEAD + "variants: {}\n",
        HEAD + "variants: {a b: []}\n",
        HEAD + "variants: {a: simplify}\n",
        HEAD + "variants: {a: [simplfy]}\n",
        HEAD + "variants: {a: [{simplify: {engin: x}}]}\n",
        HEAD + "variants: {a: [{quantize_int8: {ranges: mean}}]}\n",
        HEAD + "variants: {a: [{quantize_int8: {required: 1}}]}\n",
        HEAD + "variants: {a: {passes: [], target: [ort]}}\n",
        HEAD + FP32 + "targets: {ort: {}}\n",
        HEAD + FP32 + "targets: {ort: {runtime: onnx}}\n",
        HEAD + FP32 + "targets: {ort: {runtime: onnxruntime, thread: 1}}\n",
        HEAD + FP32 + "targets: {ort: {runtime: onnxruntime, threads: two}}\n",
        HEAD + FP32 + "metrics: {top7: {}}\n",
        HEAD + FP32 + "metrics: {cosine: {outputs: x}}\n",
        HEAD + FP32 + "data: {evaluation: {npx: evaluation.npz}}\n",
        HEAD + FP32 + "data: {evaluation: {npz: evaluation.npz, take: 0}}\n",
        HEAD + FP32 + "data: {evaluation: {npz: evaluation.npz, transform: [nhcw]}}\n",
        HEAD + FP32 + "dims: {n: {min: 0, typical: 1, max: 2}}\n",
        HEAD + FP32 + "dims: {n: {min: 1, max: 2}}\n",
        HEAD + FP32 + "benchmark: {at_most: 60}\n",
        HEAD + FP32 + "benchmark: {at_most: 60 sec}\n",
        HEAD + FP32 + "benchmark: {cases: [{n: 0}]}\n",
        HEAD + FP32 + "gate: {speedup: 0}\n",
        HEAD + FP32 + "gate: {latency_ms: {p95: 1}}\n",
        HEAD + FP32 + "gate: {drop: {top1: -1}}\n",
        HEAD + FP32 + "inputs: {x: {range: [1]}}\n",
        HEAD + FP32 + "inputs: {x: {dtype: float}}\n",
        HEAD + FP32 + "outputs: {x: dorp}\n",
        HEAD + FP32 + "limits: {memory_mb: 4 GB}\n",
        "model: {onnx: model.onnx, hf: x}\n" + FP32,
        "model: model.onnx\n" + FP32,
        "[]\n",
    ],
)
def test_recipes_that_both_refuse(validator: Draft202012Validator, folder: Path, text: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(InputError):
        load_recipe(folder / "recipe.yaml")
    assert not validator.is_valid(yaml.safe_load(text))
