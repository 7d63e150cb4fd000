"""``--set address=value``: changes a recipe by names.

An address is keys with dots between them: ``gate.drop.top1=0.01``. In a list, a name is the entry
of that name (``variants.int8.quantize_int8.ranges=mse`` goes into a variant's passes, whether or
not they stand under `passes`), a number is an index from 0 (``benchmark.cases.0.batch=8``). A key
with dots is quoted: ``inputs."input.1".range=[0, 1]``. The value is YAML on one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from optimc.pipeline.recipe.locate import Node, Place, Problems, RecipeStop, quoted
from optimc.pipeline.recipe.named import default_targets
from optimc.pipeline.recipe.validation import known_names
from optimc.pipeline.recipe.yaml_reader import parse

_SEGMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^."]+)')
_NAMED = {"variants": "variant", "targets": "target", "metrics": "metric"}
"""Sections whose entries must be there before something inside of them is set."""


def apply_overrides(root: Node, overrides: Sequence[str], problems: Problems) -> None:
    """Changes the document below `root`; what is wrong with an override is noted."""
    for text in overrides:
        try:
            address, value = _parse(text)
            _Setter(text, root).set(address, value)
        except RecipeStop as stop:
            problems.extend([stop.problem])


def _parse(text: str) -> tuple[list[str], Node]:
    place = Place(override=text)
    address, equals, value = text.partition("=")
    if '"' in address and address.count('"') % 2:  # the `=` stands in a quoted key
        match = re.match(r'(?:[^"=]|"[^"]*")*', text)
        end = match.end() if match else 0
        address, equals, value = text[:end], text[end : end + 1], text[end + 1 :]
    names = _segments(address.strip())
    if not equals or not names:
        what = "is not of the form `address=value`"
        raise RecipeStop(place, what, "for example --set gate.drop.top1=0.01")
    if not value.strip():  # an unset shell variable must not switch a limit off
        raise RecipeStop(place, "the value is empty", "write `null` to take a setting away")
    try:
        node, found = parse(value)
    except RecipeStop as stop:
        problem = stop.problem
        raise RecipeStop(place, f"the value: {problem.what}", problem.fix) from stop
    if found:
        raise RecipeStop(place, f"the value: {found[0].what}", found[0].fix)
    if node is None:
        node = Node(None, place)
    for child in node.walk():
        child.place = place
        child.key = place
    return names, node


def _segments(address: str) -> list[str] | None:
    names, at = [], 0
    while match := _SEGMENT.match(address, at):
        names.append(match[2] if match[1] is None else re.sub(r"\\(.)", r"\1", match[1]))
        at = match.end()
        if at == len(address):
            return names
        if address[at] != ".":
            return None
        at += 1
    return None


class _Setter:
    """Sets one value."""

    def __init__(self, text: str, root: Node) -> None:
        self._place = Place(override=text)
        self._root = root

    def set(self, address: list[str], value: Node) -> None:
        """Puts `value` at `address`, making the mappings that are missing on the way."""
        if address[0] == "targets" and len(address) > 1:
            self._default_targets()
        node = self._root
        for depth, name in enumerate(address[:-1]):
            node = self._step(node, address[:depth], name)
        self._put(node, address[:-1], address[-1], value)

    def _default_targets(self) -> None:
        assert isinstance(self._root.value, dict)
        if "targets" not in self._root.value:
            self._root.value["targets"] = default_targets(self._place)

    def _step(self, node: Node, before: list[str], name: str) -> Node:
        """The node below `name`, made where a new key may stand."""
        node = self._inside(node, before, name)
        if isinstance(node.value, list):
            index = self._index(node, before, name)
            entry = node.value[index]
            return entry if name.isdecimal() else self._options(entry, name)
        mapping = self._mapping(node, before, name)
        child = mapping.get(name)
        if child is None:
            if len(before) == 1 and before[0] in _NAMED:
                raise self._unknown(_NAMED[before[0]], name, before, list(mapping))
            child = mapping[name] = Node({}, self._place, self._place)
        elif child.value is None:
            child.value = {}
        return child

    def _put(self, node: Node, before: list[str], name: str, value: Node) -> None:
        node = self._inside(node, before, name)
        if not isinstance(node.value, list):
            self._mapping(node, before, name)[name] = value
            return
        index = self._index(node, before, name)
        if name.isdecimal():
            node.value[index] = value
        else:
            node.value[index] = Node({name: value}, self._place)

    def _inside(self, node: Node, before: list[str], name: str) -> Node:
        """A variant written as a mapping keeps its list under `passes`."""
        is_variant = len(before) == 2 and before[0] == "variants"
        if is_variant and isinstance(node.value, dict) and name not in ("passes", "targets"):
            passes = node.value.get("passes")
            return passes if passes is not None and isinstance(passes.value, list) else node
        return node

    def _mapping(self, node: Node, before: list[str], name: str) -> dict[str, Node]:
        if node.value == name:  # an entry without options, addressed by its number
            node.value = {name: Node({}, node.place, node.place)}
        if isinstance(node.value, dict):
            return node.value
        what = f"{'.'.join(before)} is {quoted(node.data())}: nothing can be set inside of it"
        raise RecipeStop(self._place, what)

    def _index(self, node: Node, before: list[str], name: str) -> int:
        """The entry of a list that `name` means."""
        assert isinstance(node.value, list)
        names = [_entry_name(entry) for entry in node.value]
        if name.isdecimal():
            if int(name) < len(names):
                return int(name)
            what = f"{'.'.join(before)} has no entry {name}: it has {len(names)}"
            raise RecipeStop(self._place, what)
        found = [index for index, entry in enumerate(names) if entry == name]
        if not found:
            raise self._unknown("entry", name, before, [entry for entry in names if entry])
        if len(found) > 1:
            what = f"{'.'.join(before)} has {len(found)} entries named `{name}`"
            listed = " or ".join(map(str, found))
            raise RecipeStop(self._place, what, f"write the number {listed} in place of the name")
        return found[0]

    def _options(self, entry: Node, name: str) -> Node:
        """What stands behind the name of a list's entry."""
        if isinstance(entry.value, str):
            entry.value = {name: Node({}, entry.place, entry.place)}
        assert isinstance(entry.value, dict)
        options = entry.value[name]
        if options.value is None:
            options.value = {}
        return options

    def _unknown(self, kind: str, name: str, before: list[str], known: list[str]) -> RecipeStop:
        what = f"unknown {kind} {quoted(name)} in {'.'.join(before)}"
        return RecipeStop(self._place, what, known_names(name, known) or "there is nothing in it")


def _entry_name(entry: Node) -> str | None:
    """The name of a list's entry: the text itself, or the one key of a mapping."""
    if isinstance(entry.value, str):
        return entry.value
    if isinstance(entry.value, dict) and len(entry.value) == 1:
        return next(iter(entry.value))
    return None
