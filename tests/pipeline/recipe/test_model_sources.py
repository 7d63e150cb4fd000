"""What a recipe says under `model`: the kinds, their options, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.pipeline.recipe import Recipe, RecipeError, load_recipe
from optimc.pipeline.recipe.json_schema import recipe_schema
from optimc.pipeline.recipe.model_sources import (
    ExportedSource,
    FactorySource,
    HuggingFaceSource,
    OnnxSource,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("m.onnx", "m.pt2", "m.pth", "w.safetensors", "w.npz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(model: str, *, untrusted: bool = False) -> Recipe:
    Path("recipe.yaml").write_text(f"model: {model}\nvariants: {{fp32: []}}\n", encoding="utf-8")
    return load_recipe(Path("recipe.yaml"), untrusted=untrusted)


def refusal(model: str, *, untrusted: bool = False) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(model, untrusted=untrusted)
    return caught.value


def test_every_kind_is_read_with_absolute_paths(folder: Path) -> None:
    assert load("{onnx: m.onnx}").model == OnnxSource(onnx=folder / "m.onnx")
    assert load("{exported: m.pt2}").model == ExportedSource(exported=folder / "m.pt2")
    made = load(
        '{factory: "a.b:make", weights: {file: m.pth, key: state_dict, prefix: module.}, '
        "arguments: {depth: 20, sizes: [1, 2]}}"
    ).model
    assert isinstance(made, FactorySource)
    assert made.weights is not None
    assert made.weights.file == folder / "m.pth"
    assert (made.weights.key, made.weights.prefix) == ("state_dict", "module.")
    assert dict(made.arguments) == {"depth": 20, "sizes": [1, 2]}
    bert = load("{hf: bert, task: embedding, pooling: cls, normalize: true}").model
    assert isinstance(bert, HuggingFaceSource)
    assert (bert.hf, bert.task, bert.pooling, bert.normalize) == (
        folder / "bert",
        "embedding",
        "cls",
        True,
    )


@pytest.mark.parametrize(
    ("model", "message", "fix"),
    [
        ("{onnx: m.onnx, hf: bert}", "1:23: model: `onnx` and `hf` are two kinds", "name one"),
        ("{}", "1:1: model names no model", "{exported: FILE.pt2}"),
        ("{task: embedding}", "1:1: missing key `hf` in model", "{hf: FOLDER}"),
        ("{weights: {file: m.pth}}", "1:1: missing key `factory` in model", "{factory:"),
        ("{onx: m.onnx}", "1:9: unknown key `onx` in model", "did you mean `onnx`?"),
        ("{onnx: m.onnx, task: embedding}", "1:23: unknown key `task` in model", "known: onnx"),
        ("{hf: bert}", "1:1: missing key `task` in model", "needed: hf, task"),
        ("{hf: bert, task: embeding}", "1:25: model.task: expected `text-cl", "`embedding`?"),
        ("{hf: nowhere, task: embedding}", "1:13: `nowhere`: there is no such folder", "nothing"),
        ("{hf: m.onnx, task: embedding}", "1:13: `m.onnx`: is a file", "save_pretrained"),
        (
            "{hf: bert, task: embedding, pooling: average}",
            "model.pooling: expected `mean`, `cls`, `max` or `last`",
            None,
        ),
        (
            "{hf: bert, task: text-classification, pooling: mean}",
            "`pooling` belongs to the task `embedding`",
            "leave `pooling` out",
        ),
        (
            "{hf: bert, task: text-classification, normalize: false}",
            "`normalize` belongs to the task `embedding`",
            "leave `normalize` out",
        ),
        ("{exported: m.pth}", "1:9: `m.pth` is no .pt2 file", "torch.export.save"),
        ("{exported: n.pt2}", "1:19: `n.pt2`: there is no such file", "`m.pt2`?"),
        ("{factory: a.b}", "1:18: model.factory: `a.b` is not of the form", None),
        ('{factory: "a:b", weights: {file: w.npz}}', "of the kind `.npz`", ".safetensors"),
        ('{factory: "a:b", weights: {file: gone.pt}}', "`gone.pt`: there is no such", None),
        ('{factory: "a:b", weights: {key: x}}', "missing key `file` in model.weights", "file"),
        (
            '{factory: "a:b", weights: {file: w.safetensors, key: x}}',
            "1:56: a safetensors file holds tensors only",
            "leave `key` out",
        ),
        (
            '{factory: "a:b", weights: {file: m.pth, perfix: x}}',
            "unknown key `perfix` in model.weights",
            "`prefix`?",
        ),
    ],
)
def test_what_is_wrong_with_a_model(model: str, message: str, fix: str | None) -> None:
    error = refusal(model)
    assert message in str(error)
    assert len(error.problems) == 1
    assert fix is None or fix in str(error.fix)


@pytest.mark.parametrize("model", ["{exported: m.pt2}", '{factory: "a:b"}'])
def test_untrusted_recipes_may_not_run_code(model: str) -> None:
    assert load(model)
    error = refusal(model, untrusted=True)
    assert "which --untrusted refuses" in str(error)
    assert "leave out --untrusted" in str(error.fix)


def test_untrusted_recipes_may_name_data(folder: Path) -> None:
    assert load("{hf: bert, task: embedding}", untrusted=True)
    assert load("{onnx: m.onnx}", untrusted=True)


def test_every_kind_is_in_the_json_schema() -> None:
    schema = recipe_schema()
    kinds = [
        schema["$defs"][entry["$ref"].rpartition("/")[2]]
        for entry in schema["properties"]["model"]["oneOf"]
    ]
    assert [set(kind["required"]) for kind in kinds] == [
        {"onnx"},
        {"exported"},
        {"factory"},
        {"hf", "task"},
    ]
    described = [entry for kind in kinds for entry in kind["properties"].values()]
    assert all("description" in entry or "$ref" in str(entry) for entry in described)
    assert not any(kind["additionalProperties"] for kind in kinds)
