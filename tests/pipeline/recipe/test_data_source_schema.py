"""Sources of data in the JSON Schema: what it takes, a recipe takes, and the other way round."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from optimc.calibration.sources import KINDS, DataSource
from optimc.pipeline.recipe.json_schema import recipe_schema

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
TEXT = {"csv": "a.csv", "tokenizer": "tok", "text": 0}
IMAGES = {"images": "val", "inputs": {"x": "image"}}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(recipe_schema())


def recipe(source: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"onnx": "m.onnx"}, "variants": {"fp32": []}, "data": {"evaluation": source}}


RIGHT: list[dict[str, Any]] = [
    TEXT,
    {**TEXT, "labels": "mood", "label_map": {"bad": 0}, "padding": [16, 32], "split": [0, 0.5]},
    {"tsv": "a.tsv", "tokenizer": "tok", "pairs": [1, 2], "labels": 0, "padding": "max", "take": 5},
    {"jsonl": "a.jsonl", "tokenizer": "tok", "text": "q", "pair": "c", "labels": ["start", "end"]},
    {"parquet": "a.parquet", "tokenizer": "tok", "text": "words", "words": True, "dtype": "int32"},
    IMAGES,
    {**IMAGES, "labels": "classes", "color": "gray", "orient": False, "shuffle": True},
    {**IMAGES, "labels": {"csv": "l.csv", "image": 0, "label": 1}, "label_map": {"a": 1}},
    {**IMAGES, "labels": {"coco": "c.json"}, "transform": [{"letterbox": {"size": 640}}, "nchw"]},
    {**IMAGES, "masks": "m", "transform": {"x": [{"resize": {"size": [8, 9]}}]}},
    {"call": "package.module:function", "take": 5, "transform": [{"pad": {"multiple_of": 32}}]},
]
WRONG: list[dict[str, Any]] = [
    {"csv": "a.csv", "text": 0},
    {**TEXT, "text": 1.5},
    {**TEXT, "padding": "least"},
    {**TEXT, "padding": [0]},
    {**TEXT, "inputs": {"x": "image"}},
    {**TEXT, "split": [0, 2]},
    {"images": "val"},
    {**IMAGES, "labels": "folders"},
    {**IMAGES, "labels": {"csv": "l.csv"}},
    {**IMAGES, "transform": [{"resize": {"size": [1, 2, 3]}}]},
    {**IMAGES, "transform": [{"resize": {"size": 8, "interpolation": "cubic"}}]},
    {"call": "no colon"},
    {"call": "a:b", "shuffle": True},
]


@pytest.mark.parametrize("source", RIGHT, ids=str)
def test_right_sources_pass_both(validator: Draft202012Validator, source: dict[str, Any]) -> None:
    assert [error.message for error in validator.iter_errors(recipe(source))] == []
    ADAPTER.validate_python(source)


@pytest.mark.parametrize("source", WRONG, ids=str)
def test_wrong_sources_pass_neither(
    validator: Draft202012Validator, source: dict[str, Any]
) -> None:
    assert list(validator.iter_errors(recipe(source)))
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(source)


def test_every_kind_stands_in_the_schema_with_its_description() -> None:
    definitions = recipe_schema()["$defs"]
    for kind in KINDS:
        (found,) = [d for d in definitions.values() if kind in d.get("required", ())
                    and kind in d.get("properties", {}) and "take" in d["properties"]]  # fmt: skip
        assert all(field.get("description") for field in found["properties"].values())
