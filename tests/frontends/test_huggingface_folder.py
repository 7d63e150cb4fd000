"""What is read of a Hugging Face folder before transformers is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import InputError
from optimc.frontends.huggingface import likely_task, model_files, read_config


def folder(path: Path, config: Any = None, *files: str) -> Path:
    if config is not None:
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in files:
        (path / name).write_bytes(b"x")
    return path


def test_safetensors_go_before_bin(tmp_path: Path) -> None:
    folder(tmp_path, {}, "pytorch_model.bin", "model.safetensors", "tokenizer.json")
    assert [file.name for file in model_files(tmp_path)] == ["config.json", "model.safetensors"]


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    folder(tmp_path, {}, "a.bin", "b.bin", "preprocessor_config.json")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "b.bin", "y": "a.bin", "z": "a.bin"}}))
    assert [file.name for file in model_files(tmp_path)] == [
        "config.json",
        "preprocessor_config.json",
        "pytorch_model.bin.index.json",
        "a.bin",
        "b.bin",
    ]
    index.write_text(json.dumps({"weight_map": {"x": "../secret"}}))
    with pytest.raises(InputError, match=r"names '../secret', which is no file in the folder"):
        model_files(tmp_path)


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        (None, (), "holds no config.json"),
        ({"auto_map": {"AutoModel": "own.Model"}}, (), "code of its own .*, which is never run"),
        ({}, ("adapter_config.json",), "an adapter, not a whole model"),
        ([], (), "is no JSON object"),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, config: Any, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_config(folder(tmp_path, config, *files))


def test_damaged_files_and_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="holds no weights"):
        model_files(tmp_path)


def test_weights_that_git_has_not_fetched_are_named(tmp_path: Path) -> None:
    folder(tmp_path, {}, "model.safetensors")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 90868376\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(InputError, match=r"model.safetensors: is a pointer of Git LFS") as caught:
        model_files(tmp_path)
    assert caught.value.fix == "fetch the file itself: git lfs pull"


def test_the_class_tells_the_task() -> None:
    assert likely_task({"architectures": ["BertForQuestionAnswering"]}) == "question-answering"
    assert likely_task({"architectures": ["BertModel"]}) == "embedding"
    assert likely_task({}) == "embedding"
