"""Reads YAML into nodes with their places, event by event, so that all of it stays bounded.

Depth, number of values (aliases counted as often as they are used) and length of numbers have
limits, so that a hostile file costs no more than a long one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from optimc.pipeline.recipe.locate import Node, Place, Problem, RecipeStop, quoted
from optimc.pipeline.recipe.scalars import resolve

MAX_DEPTH = 40
MAX_VALUES = 5_000


def parse(text: str) -> tuple[Node | None, list[Problem]]:
    """The one document in `text` (None where there is none), and the problems that did not stop it.

    Raises RecipeStop where the text cannot be read to its end.
    """
    odd = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if odd is not None:
        before = text[: odd.start()].splitlines() or [""]
        place = Place(len(before), len(before[-1]) + 1)
        raise RecipeStop(place, f"the character {odd[0]!a} cannot stand in YAML", "remove it")
    reader = _Reader(text)
    try:
        return reader.document(), reader.problems
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(error, text.splitlines())
        raise RecipeStop(problem.place, problem.what, problem.fix) from error
    except ValueError as error:  # an escape beyond the last code point, a huge version number
        raise RecipeStop(Place(), f"not YAML: {error}") from error


def _text(text: str, place: Place) -> str:
    if re.search("[\0\ud800-\udfff]", text):
        what = "the text holds a character that no name and no path can hold"
        raise RecipeStop(place, what, "remove the escape")
    return text


class _Reader:
    """Makes nodes of events."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._lines = text.splitlines()
        self._events: Iterator[Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._anchors: dict[str, Node | None] = {}
        self._values = 0

    def document(self) -> Node | None:
        """The first document; a second one is a problem."""
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, StreamEndEvent):
            return None
        root = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, StreamEndEvent):
            what = "a second document begins here: a recipe is one document"
            raise RecipeStop(self._place(event), what, "remove the `---` and what follows")
        return root

    def _place(self, event: Event) -> Place:
        start, end = event.start_mark, event.end_mark
        assert start is not None and end is not None
        line = self._lines[start.line] if start.line < len(self._lines) else ""
        last = end.column if end.line == start.line else len(line.rstrip())
        return Place(start.line + 1, start.column + 1, max(1, last - start.column))

    def _count(self, place: Place, depth: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            what = f"more than {MAX_VALUES:,} values, aliases counted as often as they are used"
            raise RecipeStop(place, what, "make the recipe smaller")
        if depth > MAX_DEPTH:
            raise RecipeStop(place, f"nested deeper than {MAX_DEPTH} levels", "flatten it")

    def _node(self, event: Event, depth: int) -> Node:
        place = self._place(event)
        if isinstance(event, AliasEvent):
            assert event.anchor is not None
            return self._alias(event.anchor, place, depth)
        self._count(place, depth)
        assert isinstance(event, NodeEvent)
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            what = f"the tag `{tag.replace('tag:yaml.org,2002:', '!!')}` is not supported"
            self.problems.append(Problem(place, what, "remove it"))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = self._content(event, place, depth)
        node.bad = node.bad or tag not in (None, "!")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _content(self, event: NodeEvent, place: Place, depth: int) -> Node:
        if isinstance(event, CollectionStartEvent) and not event.flow_style:
            place = replace(place, length=1)
        if isinstance(event, SequenceStartEvent):
            items = []
            while not isinstance(item := next(self._events), SequenceEndEvent):
                items.append(self._node(item, depth + 1))
            return Node(items, place)
        if isinstance(event, MappingStartEvent):
            return Node(self._mapping(depth), place)
        assert isinstance(event, ScalarEvent)
        return self._scalar(event, place)

    def _scalar(self, event: ScalarEvent, place: Place) -> Node:
        plain = bool(event.implicit[0])
        try:
            value = resolve(event.value, place) if plain else _text(event.value, place)
        except RecipeStop as stop:
            self.problems.append(stop.problem)
            return Node(None, place, plain=plain, bad=True)
        return Node(value, place, plain=plain)

    def _mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self._events), MappingEndEvent):
            place = self._place(event)
            key = self._key(event, depth)
            node = self._node(next(self._events), depth + 1)
            if key == "<<" and isinstance(event, ScalarEvent) and event.implicit[0]:
                merged += node.value if isinstance(node.value, list) else [node]
            elif key is not None and (first := found.get(key)) is not None:
                line = first.key.line if first.key else first.place.line
                what = f"the key `{key}` stands here twice; first in line {line}"
                self.problems.append(Problem(place, what, "remove or rename one of them"))
            elif key is not None:
                found[key] = replace(node, key=place)
        for source in merged:
            self._merge(source, found)
        return found

    def _merge(self, source: Node, found: dict[str, Node]) -> None:
        if not isinstance(source.value, dict):
            what = "`<<` merges mappings, and this is none"
            self.problems.append(Problem(source.place, what))
            return
        for key, node in source.value.items():
            found.setdefault(key, node)

    def _key(self, event: Event, depth: int) -> str | None:
        """The key as text, or None (with a problem noted) where it is none."""
        place = self._place(event)
        if isinstance(event, ScalarEvent):
            self._count(place, depth)
            found = len(self.problems)
            value = self._scalar(event, place).value
            del self.problems[found:]
        else:
            value = self._node(event, depth + 1).value
        if isinstance(value, str):
            return value
        if isinstance(event, ScalarEvent):
            what = f"the key {quoted(event.value)} is not read as text by YAML"
            self.problems.append(Problem(place, what, f'quote it: "{event.value}":'))
        else:
            self.problems.append(Problem(place, "a key must be text, not a list or a mapping"))
        return None

    def _alias(self, anchor: str, place: Place, depth: int) -> Node:
        if anchor not in self._anchors:
            raise RecipeStop(place, f"the alias `*{anchor}` has no anchor `&{anchor}` before it")
        node = self._anchors[anchor]
        if node is None:
            raise RecipeStop(place, f"the alias `*{anchor}` stands inside of what it names")
        return self._copy(node, depth)

    def _copy(self, node: Node, depth: int) -> Node:
        self._count(node.place, depth)
        if isinstance(node.value, dict):
            items = {key: self._copy(item, depth + 1) for key, item in node.value.items()}
            return replace(node, value=items)
        if isinstance(node.value, list):
            return replace(node, value=[self._copy(item, depth + 1) for item in node.value])
        return replace(node)


def _syntax_problem(error: yaml.MarkedYAMLError, lines: list[str]) -> Problem:
    mark, problem = error.problem_mark, error.problem or "not YAML"
    place = Place(mark.line + 1, mark.column + 1) if mark else Place()
    opened = error.context_mark
    at = opened if opened is not None and "parsing a flow" in (error.context or "") else None
    if "'\\t'" in problem:
        return Problem(place, "a tab stands where YAML takes only spaces", "indent with spaces")
    if "quoted scalar" in (error.context or "") and "end of stream" in problem and opened:
        place = Place(opened.line + 1, opened.column + 1)
        return Problem(place, "the text that begins here has no closing quote", "close the quote")
    if at is not None and mark is not None:
        line = lines[mark.line] if mark.line < len(lines) else ""
        if line[mark.column - 1 : mark.column + 1] == "${":
            what = "`${NAME}` inside of { } or [ ] must be quoted"
            return Problem(place, what, 'write "${NAME}"')
        if at.line >= len(lines):  # where the text ends right behind the bracket
            return Problem(place, "a bracket is not closed before the end", "close it")
        bracket = lines[at.line][at.column : at.column + 1]
        what = f"the `{bracket}` that stands here is not closed before line {mark.line + 1}"
        fix = "close it, or add the missing comma"
        return Problem(Place(at.line + 1, at.column + 1), f"{what} ({problem})", fix)
    if "mapping values are not allowed" in problem:
        fix = "check the indentation; quote a text that holds `: `"
        return Problem(place, "a second `:` where no key can stand", fix)
    if "cannot start any token" in problem:
        return Problem(place, problem, "quote the text")
    return Problem(place, f"not YAML: {problem}", "check indentation, brackets and quotes")
