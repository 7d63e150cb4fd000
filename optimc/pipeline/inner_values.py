"""Verification by inner values: copies of a model whose outputs they are.

The recipe names values of the source (`outputs: {boxes: {verify: [raw_boxes]}}`). In a model that
passes have changed, the value that stands for one is found by its source name, which passes carry
along. Such a copy is made for verification only and is never delivered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.digest import digest_of
from optimc.core.model import SOURCE_KEY, OnnxModel, load_model

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "optimc.inner."
"""Inner values go by this and their source name among the outputs of a copy."""


@dataclass(frozen=True)
class View:
    """A model as verification runs it: itself, or a copy with inner values as outputs."""

    model: OnnxModel
    digest: str
    path: Path
    carried: frozenset[str] = frozenset()
    """Source names of the values that were found in it."""


@dataclass
class InnerValues:
    """Makes views; `wanted` gives inner values by source name for each output that has some."""

    wanted: Mapping[str, Sequence[str]]
    workspace: Path
    _views: dict[str, View] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def view(self, model: OnnxModel, path: Path) -> View:
        """The view of `model`, stored at `path`."""
        if not self.wanted:
            return View(model, model.digest, path)
        with self._turn:
            key = digest_of("view", model.digest, model.names_digest)
            if key not in self._views:
                self._views[key] = self._made(model, key)
            return self._views[key]

    def stored_view(self, digest: str, path: Path) -> tuple[str, Path]:
        """Digest and file of the view of the model that is stored at `path` under `digest`."""
        if not self.wanted:
            return digest, path
        stored = load_model(path.parent)
        assert isinstance(stored, OnnxModel)
        view = self.view(stored, path)
        return view.digest, view.path

    def _made(self, model: OnnxModel, key: str) -> View:
        copy = model.clone()
        names = {name for values in self.wanted.values() for name in values}
        carried = _add_outputs(copy.ir, sorted(names))
        folder = self.workspace / key
        copy.sealed().save(folder)
        stored = load_model(folder)
        assert isinstance(stored, OnnxModel) and stored.path is not None
        return View(stored, key, stored.path, frozenset(carried))


def inner_name(source: str) -> str:
    """What the inner value `source` is called among a view's outputs."""
    return f"{PREFIX}{source}"


def _add_outputs(model: ir.Model, sources: Sequence[str]) -> list[str]:
    """Makes outputs of the values that stand for `sources`; those that were found."""
    import onnx_ir

    found = _standing_for(model, sources)
    if any(value.dtype is None for value in found.values()):
        from onnx_ir.passes.common import ShapeInferencePass

        ShapeInferencePass()(model)
    carried = []
    for source, value in found.items():
        if value.dtype is None:
            continue  # an output needs a type: the value counts as not carried
        node = onnx_ir.node("Identity", [value])
        node.name = f"{PREFIX}{source}"
        model.graph.append(node)
        output = node.outputs[0]
        output.name, output.type, output.shape = inner_name(source), value.type, value.shape
        model.graph.outputs.append(output)
        carried.append(source)
    return carried


def _standing_for(model: ir.Model, sources: Sequence[str]) -> dict[str, ir.Value]:
    """By source name: the value of the main graph that has its numbers."""
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        for value in node.outputs:
            source = value.meta.get(SOURCE_KEY)
            if source in sources and value.name:
                found.setdefault(str(source), value)
    return {source: found[source] for source in sources if source in found}
