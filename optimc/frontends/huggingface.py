"""A folder of Hugging Face transformers, looked at without importing it: its config and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

from optimc.core.errors import InputError
from optimc.core.files import LFS_FIX, is_lfs_pointer

Task: TypeAlias = Literal[
    "text-classification",
    "embedding",
    "token-classification",
    "question-answering",
    "image-classification",
]

CONFIG = "config.json"
_MAX_JSON_BYTES = 50_000_000
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; `.index.json` names the shards of one."""

_ENDINGS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
}
"""By the end of a class's name: its task."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as plain data.

    Raises InputError where it is missing or damaged, and for a folder whose code lies in it:
    `trust_remote_code` is never set, and the built-in class might compute something else.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            "the folder holds no config.json",
            where=str(folder),
            fix="name a folder that save_pretrained wrote; nothing is downloaded",
        )
    config = _json(path)
    if config.get("auto_map"):
        raise InputError(
            "the model brings code of its own (`auto_map`), which is never run",
            where=str(path),
            fix="write a function that makes the module, and name it: model: {factory: ...}",
        )
    if (folder / "adapter_config.json").exists():
        raise InputError(
            "the folder holds an adapter, not a whole model",
            where=str(folder),
            fix="merge the adapter into its base model (merge_and_unload), and save that",
        )
    return config


def model_files(folder: Path) -> list[Path]:
    """config.json and the files with weights that transformers reads; raises InputError."""
    files = _model_files(folder)
    for path in files:
        if is_lfs_pointer(path):
            raise InputError("is a pointer of Git LFS, not the file", where=str(path), fix=LFS_FIX)
    return files


def _model_files(folder: Path) -> list[Path]:
    files = [folder / CONFIG]
    preprocessor = folder / "preprocessor_config.json"
    files += [preprocessor] if preprocessor.is_file() else []
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [*files, folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _json(index).get("weight_map")
            names = sorted({str(n) for n in shards.values()}) if isinstance(shards, dict) else []
            return [*files, index, *(_shard(folder, name, index) for name in names)]
    raise InputError(
        "the folder holds no weights",
        where=str(folder),
        fix=f"it needs {' or '.join(_WEIGHTS)}; nothing is downloaded",
    )


def _shard(folder: Path, name: str, index: Path) -> Path:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise InputError(
            f"the index names {name!r}, which is no file in the folder",
            where=str(index),
            fix="copy all files of the folder again",
        )
    return path


def image_preprocessing(folder: Path) -> dict[str, Any]:
    """preprocessor_config.json as plain data, empty where there is none."""
    path = folder / "preprocessor_config.json"
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has more than {_MAX_JSON_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot be read: {' '.join(str(error).split())[:200]}",
            where=str(path),
            fix="copy the folder again",
        ) from error
    if not isinstance(content, dict):
        raise InputError("is no JSON object", where=str(path), fix="copy the folder again")
    return content


def likely_task(config: dict[str, Any]) -> Task:
    """The task that the class in the config was made for, `embedding` where it says none."""
    named = config.get("architectures")
    classes = [str(name) for name in named] if isinstance(named, list) else []
    for ending, task in _ENDINGS.items():
        if any(name.endswith(ending) for name in classes):
            return task
    return "embedding"
