"""What targets share about engine folders: placing the ONNX file, reading session settings."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optimc.core.errors import unknown_name
from optimc.core.model import OnnxModel, TensorSpec
from optimc.core.targets import Engine


def place_onnx(model: OnnxModel, path: Path) -> None:
    """Writes `model` to `path`, with its external data; a stored model is copied, not loaded."""
    if model.path is None:
        model.write_onnx(path)
        return
    shutil.copyfile(model.path, path)
    data = model.path.with_name(f"{model.path.name}.data")
    if data.exists():
        shutil.copyfile(data, path.with_name(data.name))


def feeds_as_text(inputs: Iterable[TensorSpec]) -> str:
    """What `feeds` holds in a manifest's `load`: ``{'x': 'float32[batch, 3]'}``."""
    return repr({spec.name: str(spec).removeprefix(f"{spec.name}: ") for spec in inputs})


def session_settings(engine: Engine, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's `session` with `overrides` on top. Raises InputError for unknown ones."""
    settings = dict(engine.manifest["session"])
    for name in overrides:
        if name not in settings:
            raise unknown_name("session setting", name, settings)
    return settings | dict(overrides)
