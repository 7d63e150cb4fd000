"""From nodes to the typed sections of a recipe.

What depends on names that are looked up (passes, runtimes, metrics) is dispatched here by name, so
that errors speak of what the user wrote and not of the alternatives of a union.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from optimc.core.errors import OptimcError, did_you_mean
from optimc.core.passes import Pass
from optimc.core.registry import pass_class, target_class
from optimc.core.targets import Target
from optimc.pipeline.recipe.locate import Location, Node, Place, Problems, quoted
from optimc.pipeline.recipe.schema import PassEntry, Recipe, Sections, Variant, is_name
from optimc.pipeline.recipe.validation import dotted, known_names, validate

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

DEFAULT_TARGETS: Mapping[str, Mapping[str, str]] = {"ort": {"runtime": "onnxruntime"}}
"""What a recipe without `targets` builds for."""

_EXPORT = "export it to ONNX (torch.onnx.export, optimum) and write `model: {onnx: model.onnx}`"
LATER: Mapping[Location, str] = {
    ("model", "exported"): _EXPORT,
    ("model", "factory"): _EXPORT,
    ("model", "hf"): _EXPORT,
    ("outputs", "*", "verify"): "drop the output, or leave it to be compared as it is",
}
"""Keys that recipes will have and this version does not carry yet, with the way out."""
_BESIDE = {"factory": ("weights",), "hf": ("task",)}

_META = ("path", "sha256")
_LOOKED_UP = ("metrics", "variants", "targets")
SECTIONS = tuple(name for name in Recipe.model_fields if name not in _META)
"""The keys that a recipe may have."""


def default_targets(place: Place) -> Node:
    """`DEFAULT_TARGETS` as a node that stands at `place`."""
    targets = {
        name: Node({key: Node(text, place) for key, text in options.items()}, place)
        for name, options in DEFAULT_TARGETS.items()
    }
    return Node(targets, place)


def read_sections(
    root: Node, folder: Path, problems: Problems, *, untrusted: bool
) -> dict[str, Any]:
    """The fields of a Recipe. What is wrong goes into `problems`, then fields may be missing."""
    return _SectionReader(folder, problems, untrusted).read(root)


class _SectionReader:
    """Reads one document."""

    def __init__(self, folder: Path, problems: Problems, untrusted: bool) -> None:
        self._folder = folder
        self._problems = problems
        self._untrusted = untrusted

    def read(self, root: Node) -> dict[str, Any]:
        """The fields of a Recipe."""
        assert isinstance(root.value, dict)
        self._refuse_later(root)
        for key, node in root.value.items():
            if key not in SECTIONS:
                self._note(node, f"unknown key {quoted(key)}", known_names(key, SECTIONS))
        plain = {key: node for key, node in root.value.items() if key in Sections.model_fields}
        fields: dict[str, Any] = {}
        sections = validate(Sections, Node(plain, root.place), (), self._problems)
        if sections is not None:
            fields |= {name: getattr(sections, name) for name in Sections.model_fields}
            fields |= self._files(sections, root)
        fields["metrics"] = self._named(root, "metrics", self._metric)
        fields["variants"] = self._named(root, "variants", self._variant)
        fields["targets"] = self._targets(root)
        return fields

    def _note(self, node: Node, what: str, fix: str | None = None) -> None:
        if not node.bad:
            self._problems.add(node.key or node.place, what, fix)

    def _refuse_later(self, root: Node) -> None:
        """Notes keys that this version does not carry yet."""
        for location, fix in LATER.items():
            for parent, name in _matching(root, location):
                assert isinstance(parent.value, dict)
                node = parent.value.pop(name)
                shown = dotted((*location[:-1], name)).replace(".*", "")
                self._note(node, f"`{shown}` is not supported yet by this version", fix)
                for companion in _BESIDE.get(name, ()):
                    parent.value.pop(companion, None)
                parent.bad = parent.bad or location[0] == "model"

    def _files(self, sections: Sections, root: Node) -> dict[str, Any]:
        """Sections with paths resolved, and what is missing on disk noted."""
        at = _find(root, ("model", "onnx"))
        path = self._existing(sections.model.onnx, at)
        splits = sections.data.splits if sections.data is not None else {}
        for name, source in splits.items():
            node = _find(root, ("data", name))
            for file in source.files(self._folder):
                self._existing(file, _naming(node, file, self._folder))
        return {"model": sections.model.model_copy(update={"onnx": path})}

    def _existing(self, path: Path, node: Node) -> Path:
        full = self._folder / path
        try:
            if full.is_file():
                return full
            what = "is a folder, not a file" if full.is_dir() else "there is no such file"
        except OSError as error:  # a name that is too long, a folder that may not be entered
            what = error.strerror or str(error)
        hint = did_you_mean(full.name, _neighbours(full))
        fix = hint or f"paths are relative to the recipe's folder, {self._folder}"
        if not node.bad:
            self._problems.add(node.place, f"{quoted(str(path))}: {what}", fix)
        return full

    def _named(
        self, root: Node, section: str, read: Callable[[str, Node, Location], T | None]
    ) -> dict[str, T]:
        """The entries of a section whose keys are names."""
        node = root.get(section)
        if node is None or not self._is_mapping(node, section):
            return {}
        assert isinstance(node.value, dict)
        found = {}
        for name, entry in node.value.items():
            value = read(name, entry, (section, name))
            if value is not None:
                found[name] = value
        return found

    def _is_mapping(self, node: Node, section: str) -> bool:
        if not isinstance(node.value, dict):
            what = f"{section}: expected a mapping from names, got {quoted(node.data())}"
            self._note(node, what)
            return False
        return True

    def _check_name(self, kind: str, name: str, node: Node) -> None:
        if not is_name(name):
            what = f"the {kind} name {quoted(name)} cannot be a folder's name"
            fix = "use up to 64 of A-Z a-z 0-9 . _ - and begin with a letter or a digit"
            self._note(node, what, fix)

    def _variant(self, name: str, node: Node, location: Location) -> Variant | None:
        self._check_name("variant", name, node)
        value = node.value
        if value is None and not node.bad:
            self._note(node, f"{dotted(location)} is empty", "write [] for no passes")
            return None
        if isinstance(value, dict):
            return self._long_variant(node, value, location)
        return Variant(passes=self._passes(node, location))

    def _long_variant(
        self, node: Node, value: dict[str, Node], location: Location
    ) -> Variant | None:
        known = list(Variant.model_fields)
        for key, child in value.items():
            if key not in known:
                what = f"unknown key {quoted(key)} in {dotted(location)}"
                self._note(child, what, known_names(key, known))
        passes = value.get("passes")
        if passes is None:
            self._note(node, f"missing key `passes` in {dotted(location)}", "passes: [] for none")
            return None
        entries = self._passes(passes, (*location, "passes"))
        targets = value.get("targets")
        if targets is None:
            return Variant(passes=entries)
        names = [entry.value for entry in _items(targets) if isinstance(entry.value, str)]
        if not names or len(names) != len(_items(targets)):
            what = f"{dotted((*location, 'targets'))}: expected a list of names of targets"
            self._note(targets, f"{what}, got {quoted(targets.data())}")
        return Variant(passes=entries, targets=tuple(names))

    def _passes(self, node: Node, location: Location) -> tuple[PassEntry, ...]:
        if not isinstance(node.value, list):
            what = f"{dotted(location)}: expected a list of passes, got {quoted(node.data())}"
            self._note(node, what, "a list of names, or of {name: {options}}")
            return ()
        entries = (self._pass(n, (*location, i)) for i, n in enumerate(node.value))
        return tuple(entry for entry in entries if entry is not None)

    def _pass(self, node: Node, location: Location) -> PassEntry | None:
        """A pass from `name` or `{name: {options}}`."""
        if isinstance(node.value, dict) and len(node.value) == 1:
            name, options = next(iter(node.value.items()))
        elif isinstance(node.value, str):
            name, options = node.value, Node({}, node.place)
        else:
            what = f"{dotted(location)}: expected a pass, got {quoted(node.data())}"
            if not node.bad:
                self._problems.add(node.place, what, "write `name`, or `{name: {options}}`")
            return None
        cls: type[Pass] | None = self._look_up(pass_class, name, options, location)
        if cls is None:
            return None
        options = _options(options)
        required = None
        if isinstance(options.value, dict) and "required" not in cls.model_fields:
            required = options.value.pop("required", None)
        made = validate(cls, options, (*location, name), self._problems)
        if required is not None and not isinstance(required.value, bool):
            what = f"{dotted((*location, name, 'required'))}: expected true or false"
            self._note(required, f"{what}, got {quoted(required.data())}")
            return None
        if made is None:
            return None
        demanded = cls.required_by_default if required is None else bool(required.value)
        return PassEntry(name=name, pass_=self._resolved(made, options), required=demanded)

    def _targets(self, root: Node) -> dict[str, Target]:
        if root.get("targets") is None:
            root = Node({"targets": default_targets(root.place)}, root.place)
        return self._named(root, "targets", self._target)

    def _target(self, name: str, node: Node, location: Location) -> Target | None:
        self._check_name("target", name, node)
        if not isinstance(node.value, dict):
            what = f"{dotted(location)}: expected a mapping, got {quoted(node.data())}"
            self._note(node, what, "write {runtime: onnxruntime}")
            return None
        runtime = node.value.get("runtime")
        if runtime is None:
            what = f"missing key `runtime` in {dotted(location)}"
            self._note(node, what, "for example `runtime: onnxruntime`")
            return None
        if not isinstance(runtime.value, str):
            what = f"{dotted((*location, 'runtime'))}: expected text, got {quoted(runtime.data())}"
            self._note(runtime, what)
            return None
        cls: type[Target] | None = self._look_up(target_class, runtime.value, runtime, location)
        made = None if cls is None else validate(cls, node, location, self._problems)
        return None if made is None else self._resolved(made, node)

    def _metric(self, name: str, node: Node, location: Location) -> BaseModel | None:
        return None

    def _look_up(
        self, find: Callable[[str], T], name: str, node: Node, location: Location
    ) -> T | None:
        try:
            return find(name)
        except OptimcError as error:
            place = node.key if node.key is not None and node.value != name else node.place
            self._problems.add(place, f"{error.what} in {dotted(location)}", error.fix)
            return None

    def _resolved(self, made: M, node: Node) -> M:
        """The options with their paths made absolute; files that are not there are noted."""
        paths = {
            name: self._existing(value, node.get(name) or node)
            for name, value in made
            if isinstance(value, Path)
        }
        return made.model_copy(update=paths) if paths else made


def _options(node: Node) -> Node:
    """The options of an entry; nothing behind the colon means none."""
    return Node({}, node.place, node.key) if node.value is None and not node.bad else node


def _items(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else []


def _find(root: Node, location: Location) -> Node:
    """The node at `location`, or the nearest above it."""
    for part in location:
        below = root.get(part)
        if below is None:
            return root
        root = below
    return root


def _matching(node: Node, location: Location) -> Iterator[tuple[Node, str]]:
    """Every (mapping, key) at a location in which `*` stands for any key."""
    head, rest = location[0], location[1:]
    if not isinstance(node.value, dict):
        return
    names = list(node.value) if head == "*" else [head] if head in node.value else []
    for name in names:
        if rest:
            yield from _matching(node.value[str(name)], rest)
        else:
            yield node, str(name)


def _naming(node: Node, file: Path, folder: Path) -> Node:
    """The text below `node` that names `file`, else the node."""
    for child in node.walk():
        if isinstance(child.value, str) and folder / child.value == file:
            return child
    return node


def _neighbours(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
