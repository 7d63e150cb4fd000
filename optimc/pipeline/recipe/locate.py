"""Where things stand: nodes of the document with their places, and problems that point at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from optimc.core.errors import InputError

Scalar: TypeAlias = str | int | float | bool | None
Location: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the root to a value."""

MAX_SHOWN = 20
"""How many problems of a recipe are shown at once."""
MAX_NOTED = 200
"""How many problems of a recipe are looked for."""
_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: 1-based line and column in the file, or the text of a ``--set``."""

    line: int = 1
    column: int = 1
    length: int = 1
    override: str | None = None

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts by position in the file; overrides come last."""
        return (self.override is not None, self.line, self.column)


@dataclass(slots=True)
class Node:
    """A value of the document with its place; `key` is the place of the key that leads to it."""

    value: Scalar | list[Node] | dict[str, Node]
    place: Place
    key: Place | None = None
    plain: bool = False
    """Whether it is a scalar without quotes."""
    bad: bool = False
    """Whether a problem with it is noted already, so that nothing more is said of it."""

    def data(self) -> Any:
        """The value as plain data."""
        if isinstance(self.value, dict):
            return {key: node.data() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.data() for node in self.value]
        return self.value

    def get(self, part: str | int) -> Node | None:
        """The node below a key or an index, or None."""
        if isinstance(self.value, dict) and isinstance(part, str):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int):
            return self.value[part] if 0 <= part < len(self.value) else None
        return None

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        children: Sequence[Node] = ()
        if isinstance(self.value, dict):
            children = list(self.value.values())
        elif isinstance(self.value, list):
            children = self.value
        for child in children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it stands, and what to do."""

    place: Place
    what: str
    fix: str | None = None


class RecipeStop(Exception):
    """A problem that leaves nothing to read on with. Internal: it ends in a `RecipeError`."""

    def __init__(self, place: Place, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.problem = Problem(place, what, fix)


class TooManyProblems(Exception):
    """`MAX_NOTED` is reached. Internal: it ends in a `RecipeError`."""


class RecipeError(InputError):
    """Everything that is wrong with a recipe, in the order of the file."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where=where, fix=fix)
        self.problems: tuple[Problem, ...] = ()


class Problems:
    """Collects the problems of one recipe, to report them together."""

    def __init__(self, name: str, text: str = "") -> None:
        self._name = name
        self._lines = text.splitlines()
        self._found: dict[Problem, None] = {}

    def add(self, place: Place, what: str, fix: str | None = None) -> None:
        """Notes a problem; the same one twice counts once. Raises TooManyProblems."""
        self._found[Problem(place, what, fix)] = None
        if len(self._found) >= MAX_NOTED:
            raise TooManyProblems

    def extend(self, problems: Sequence[Problem]) -> None:
        """Notes several problems."""
        for problem in problems:
            self.add(problem.place, problem.what, problem.fix)

    def raise_if_any(self) -> None:
        """Raises a RecipeError with all problems, by place."""
        if self._found:
            raise self.error()

    def error(self, last: Problem | None = None) -> RecipeError:
        """The RecipeError with all problems and the `last` one, by place."""
        noted = [*self._found, *([last] if last is not None else [])]
        found = sorted(noted, key=lambda problem: problem.place.order)
        shown = [self._describe(problem) for problem in found[:MAX_SHOWN]]
        if len(shown) == 1:
            where, what, fix = shown[0]
            error = RecipeError(what, where=where, fix=fix)
        else:
            texts = [str(RecipeError(what, where=where, fix=fix)) for where, what, fix in shown]
            rest = len(found) - len(shown)
            more = f", of which {len(shown)} are shown" if rest else ""
            least = "at least " if len(found) >= MAX_NOTED else ""
            error = RecipeError("\n".join([*texts, f"{least}{len(found)} problems{more}"]))
        error.problems = tuple(found)
        return error

    def _describe(self, problem: Problem) -> tuple[str, str, str | None]:
        place = problem.place
        if place.override is not None:
            return f"--set {place.override}", problem.what, problem.fix
        where = f"{self._name}:{place.line}:{place.column}"
        return where, "\n".join([problem.what, *self._excerpt(place)]), problem.fix

    def _excerpt(self, place: Place) -> list[str]:
        """The line of the file and a line of carets below the place."""
        if not 0 < place.line <= len(self._lines):
            return []
        line = self._lines[place.line - 1].replace("\t", " ")
        start = max(0, place.column - 1 - _WIDTH // 2)
        line, column = line[start : start + _WIDTH].rstrip(), place.column - 1 - start
        if not line:
            return []
        carets = "^" * max(1, min(place.length, len(line) - column))
        margin = " " * len(str(place.line))
        return [f"  {place.line} | {line}", f"  {margin} | {' ' * column}{carets}"]


def quoted(value: Any) -> str:
    """A value of the user's for a message: on one line, short, without control characters."""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, dict):
        text = "a mapping" if value else "an empty mapping"
        return text
    elif isinstance(value, list):
        return "a list" if value else "an empty list"
    else:
        text = str(value)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return f"`{shown if len(shown) <= 60 else shown[:57] + '...'}`"
