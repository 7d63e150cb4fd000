"""Checks of the section `model` that its types cannot say, and the files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimc.core.errors import did_you_mean
from optimc.pipeline.recipe.locate import Node, quoted
from optimc.pipeline.recipe.model_sources import (
    KINDS,
    RUNS_CODE,
    FactorySource,
    HuggingFaceSource,
    ModelSource,
    OnnxSource,
    Weights,
)
from optimc.pipeline.recipe.reading import Reading

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_KEYS = {
    "onnx": ("custom_ops",),
    "exported": (),
    "factory": ("weights", "arguments"),
    "hf": ("task", "pooling", "normalize"),
}
"""By the key that tells a kind: the others that it may have."""


def check_kind(model: Node | None, reading: Reading, *, untrusted: bool) -> None:
    """Notes a model of no kind, of two, and of one that runs code where that is refused."""
    if model is None or not isinstance(model.value, dict):
        return
    named = [kind for kind in KINDS if kind in model.value]
    if len(named) > 1:
        what = f"model: {quoted(named[0])} and {quoted(named[1])} are two kinds of model"
        reading.note(model.value[named[1]], what, "name one model")
        model.bad = True
    if not named:
        _note_missing(model, reading)
    for kind in named if untrusted else ():
        node = model.value[kind]
        if kind in RUNS_CODE and isinstance(node.value, str):
            reason = RUNS_CODE[kind]
            what = f"`{kind}: {node.value}` runs code ({reason}), which --untrusted refuses"
            fix = "leave out --untrusted if you trust this code, or export the model to ONNX"
            reading.note(node, what, fix)
    libraries = model.value.get("custom_ops")
    if untrusted and libraries is not None:
        what = "`custom_ops` loads libraries, which are code, and --untrusted refuses that"
        reading.note(libraries, what, "leave out --untrusted if you trust these libraries")


def _note_missing(model: Node, reading: Reading) -> None:
    """No kind is named; where another key tells which is meant, its key is what is missing."""
    assert isinstance(model.value, dict)
    if any(did_you_mean(key, KINDS) for key in model.value):
        return  # an unknown key with a hint, which validation notes
    meant = [kind for kind, others in _KEYS.items() if set(others) & set(model.value)]
    shown = meant[0] if len(meant) == 1 else None
    what = f"missing key `{shown}` in model" if shown else "model names no model"
    kinds = "{onnx: FILE}, {exported: FILE.pt2}, {factory: package.module:function} or {hf: FOLDER}"
    reading.note(model, what, f"write {kinds}")
    model.bad = True


def resolved_model(source: ModelSource, node: Node, reading: Reading) -> ModelSource:
    """The source with absolute paths; what is not there is noted."""
    if isinstance(source, HuggingFaceSource):
        folder = _existing_folder(source.hf, node.get("hf") or node, reading)
        return source.model_copy(update={"hf": folder})
    if isinstance(source, FactorySource):
        weights = source.weights
        below = node.get("weights")
        if weights is None or below is None:
            return source
        resolved = reading.resolved(weights, below)
        _check_weights(resolved, below, reading)
        return source.model_copy(update={"weights": resolved})
    resolved_source: Any = reading.resolved(source, node)
    if isinstance(resolved_source, OnnxSource):
        libraries = _existing_libraries(resolved_source, node, reading)
        return resolved_source.model_copy(update={"custom_ops": libraries})
    if "exported" in type(source).model_fields and resolved_source.exported.suffix != ".pt2":
        at = node.get("exported") or node
        what = f"{quoted(at.data())} is no .pt2 file"
        fix = "write it with torch.export.save; a checkpoint (.pt, .pth) needs a `factory`"
        reading.note(at, what, fix)
    return resolved_source  # type: ignore[no-any-return]


def _check_weights(weights: Weights, node: Node, reading: Reading) -> None:
    at = node.get("file") or node
    suffix = weights.file.suffix
    if suffix not in WEIGHT_SUFFIXES:
        what = f"weights of the kind `{suffix}` cannot be read"
        reading.note(at, what, f"known: {', '.join(WEIGHT_SUFFIXES)}")
    if weights.key is not None and suffix == ".safetensors":
        what = "a safetensors file holds tensors only: `key` has no meaning for it"
        reading.note(node.get("key") or node, what, "leave `key` out")


def _existing_libraries(source: OnnxSource, node: Node, reading: Reading) -> tuple[Path, ...]:
    below = node.get("custom_ops") or node
    entries = below.value if isinstance(below.value, list) else [below] * len(source.custom_ops)
    found: dict[str, Path] = {}
    for path, entry in zip(source.custom_ops, entries, strict=True):
        full = reading.existing(path, entry)
        if full.name in found:
            what = f"two libraries are called {quoted(full.name)}"
            reading.note(entry, what, "rename one: they lie side by side in the engine's folder")
        found[full.name] = full
    return tuple(found.values())


def _existing_folder(path: Path, node: Node, reading: Reading) -> Path:
    full = reading.folder / path
    if full.is_dir() or node.bad:
        return full
    shown = node.value if isinstance(node.value, str) else str(path)
    if full.exists():
        what, fix = "is a file, not a folder", "name the folder that save_pretrained wrote"
    else:
        what = "there is no such folder"
        fix = f"nothing is downloaded: name a folder, relative to {reading.folder}"
    reading.problems.add(node.place, f"{quoted(shown)}: {what}", fix)
    return full
