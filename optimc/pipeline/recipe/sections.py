"""From nodes to the typed sections of a recipe, and the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimc.core.errors import did_you_mean
from optimc.pipeline.recipe.locate import Location, Node, Problems, quoted
from optimc.pipeline.recipe.model_reading import check_kind, resolved_model
from optimc.pipeline.recipe.named import NamedReader
from optimc.pipeline.recipe.reading import Reading
from optimc.pipeline.recipe.schema import Recipe, Sections
from optimc.pipeline.recipe.validation import known_names, validate

_META = ("path", "sha256")
SECTIONS = tuple(name for name in Recipe.model_fields if name not in _META)
"""The keys that a recipe may have."""


def read_sections(
    root: Node, folder: Path, problems: Problems, *, untrusted: bool
) -> dict[str, Any]:
    """The fields of a Recipe. What is wrong goes into `problems`, then fields may be missing."""
    return _SectionReader(Reading(folder, problems), untrusted).read(root)


class _SectionReader:
    """Reads one document."""

    def __init__(self, reading: Reading, untrusted: bool) -> None:
        self._reading = reading
        self._untrusted = untrusted

    def read(self, root: Node) -> dict[str, Any]:
        """The fields of a Recipe."""
        assert isinstance(root.value, dict)
        check_kind(root.get("model"), self._reading, untrusted=self._untrusted)
        if self._untrusted:
            self._refuse_code(root)
        for key, node in root.value.items():
            if key not in SECTIONS:
                self._reading.note(node, f"unknown key {quoted(key)}", known_names(key, SECTIONS))
        plain = {key: node for key, node in root.value.items() if key in Sections.model_fields}
        if "model" not in plain and did_you_mean("model", root.value):
            plain["model"] = Node(None, root.place, bad=True)  # misspelt, which is said already
        fields: dict[str, Any] = {}
        sections = validate(Sections, Node(plain, root.place), (), self._reading.problems)
        if sections is not None:
            fields |= {name: getattr(sections, name) for name in Sections.model_fields}
            fields |= self._files(sections, root)
        named = NamedReader(self._reading)
        fields["metrics"] = named.metrics(root)
        fields["variants"] = named.variants(root)
        fields["targets"] = named.targets(root)
        return fields

    def _refuse_code(self, root: Node) -> None:
        sections = {"data": ("call",), "metrics": ("call",), "variants": ("call", "factory")}
        for section, keys in sections.items():
            node = root.get(section)
            for below in node.walk() if node is not None else ():
                for key in keys:
                    code = below.get(key)
                    if code is not None:
                        what = f"`{key}: {code.data()}` runs code, which --untrusted refuses"
                        fix = "leave out --untrusted if you trust this recipe's code"
                        self._reading.note(code, what, fix)
        self._refuse_plugins(root.get("targets"))

    def _refuse_plugins(self, targets: Node | None) -> None:
        """Plugin libraries of runtimes are native code."""
        for target in targets.value.values() if targets and isinstance(targets.value, dict) else ():
            plugins = target.get("plugins")
            if plugins is not None and plugins.value:
                what = f"`plugins: {plugins.data()}` loads native code, which --untrusted refuses"
                fix = "leave out --untrusted if you trust these libraries"
                self._reading.note(plugins, what, fix)

    def _files(self, sections: Sections, root: Node) -> dict[str, Any]:
        """Sections with paths resolved, and what is missing on disk noted."""
        model = resolved_model(sections.model, _find(root, ("model",)), self._reading)
        splits = sections.data.splits if sections.data is not None else {}
        table = sections.data.calibration_table if sections.data is not None else None
        if table is not None:
            node = _find(root, ("data", "calibration_table"))
            self._reading.existing(self._reading.folder / table, node)
        for name, source in splits.items():
            node = _find(root, ("data", name))
            for file in source.files(self._reading.folder):
                self._reading.existing(file, _naming(node, file, self._reading.folder))
            for folder in source.folders(self._reading.folder):
                at_folder = _naming(node, folder, self._reading.folder)
                self._reading.existing(folder, at_folder, folder=True)
        return {"model": model}


def _find(root: Node, location: Location) -> Node:
    """The node at `location`, or the nearest above it."""
    for part in location:
        below = root.get(part)
        if below is None:
            return root
        root = below
    return root


def _naming(node: Node, file: Path, folder: Path) -> Node:
    """The text below `node` that names `file`, else the node."""
    for child in node.walk():
        if isinstance(child.value, str) and folder / child.value == file:
            return child
    return node
