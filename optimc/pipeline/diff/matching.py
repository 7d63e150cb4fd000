"""Which value of one model stands for which of the other: by provenance, name, then structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec
from optimc.pipeline.diff.sides import Side, ValueInfo


@dataclass(frozen=True, slots=True)
class Pair:
    """Two values that stand for each other, and how that is known."""

    a: ValueInfo
    b: ValueInfo
    how: str


def match_values(a: Side, b: Side, inputs: dict[str, str]) -> list[Pair]:
    """Pairs in the order of A; no value stands in two.

    `inputs` gives B's name of each of A's inputs. First values with one source name, then values
    of one name (the models' outputs by their place, too), then those that one operator computes
    from matched values, and last the nth of an operator where both models have equally many left.
    """
    found = _Found(a, b)
    for value in a.values:
        other = found.by_source.get(value.source or value.name)
        if other is not None and (value.source or other.source):
            found.add(value, other, "provenance")
    for value in a.values:
        other = next((found.by_name[n] for n in value.names if n in found.by_name), None)
        if other is not None and value.source == other.source:
            found.add(value, other, "name")
    outputs = list(zip(a.signature.outputs, b.signature.outputs, strict=False))
    if len(a.signature.outputs) == len(b.signature.outputs):
        for mine, theirs in outputs:
            found.add(found.of_a.get(mine.name), found.by_name.get(theirs.name), "position")
    _by_structure(found, inputs)
    _by_position(found)
    return [found.pairs[value.name] for value in a.values if value.name in found.pairs]


class _Found:
    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        self.of_a = {name: value for value in a.values for name in value.names}
        self.by_name = {name: value for value in b.values for name in value.names}
        self.by_source: dict[str, ValueInfo] = {}
        for value in b.values:
            self.by_source.setdefault(value.source or value.name, value)
        self.pairs: dict[str, Pair] = {}
        self.taken: set[str] = set()

    def add(self, value: ValueInfo | None, other: ValueInfo | None, how: str) -> None:
        if value is None or other is None:
            return
        if value.name in self.pairs or other.name in self.taken:
            return
        self.pairs[value.name] = Pair(value, other, how)
        self.taken.add(other.name)

    def left(self) -> tuple[list[ValueInfo], list[ValueInfo]]:
        """What is not matched yet."""
        mine = [value for value in self.a.values if value.name not in self.pairs]
        theirs = [value for value in self.b.values if value.name not in self.taken]
        return mine, theirs


def _by_structure(found: _Found, inputs: dict[str, str]) -> None:
    """One operator on the same things computes the same; in one sweep, as A is in order."""
    mine, theirs = found.left()
    waiting: dict[tuple[str, tuple[str, ...]], list[ValueInfo]] = defaultdict(list)
    for value in theirs:
        names = tuple(_canonical(found.by_name, name) for name in value.inputs)
        waiting[value.operator, names].append(value)
    for value in mine:
        key = tuple(_counterpart(found, inputs, name) for name in value.inputs)
        if value.inputs and None not in key:
            others = waiting.get((value.operator, tuple(str(name) for name in key)), [])
            if others:
                found.add(value, others.pop(0), "structure")


def _canonical(values: dict[str, ValueInfo], name: str) -> str:
    return values[name].name if name in values else name


def _counterpart(found: _Found, inputs: dict[str, str], name: str) -> str | None:
    """B's name of what A calls `name`."""
    if name in inputs:
        return inputs[name]
    pair = found.pairs.get(_canonical(found.of_a, name))
    return pair.b.name if pair else None


def _by_position(found: _Found) -> None:
    mine, theirs = found.left()
    for operator in {value.operator for value in mine}:
        left = [value for value in mine if value.operator == operator]
        right = [value for value in theirs if value.operator == operator]
        if len(left) == len(right):
            for value, other in zip(left, right, strict=True):
                found.add(value, other, "position")


def match_inputs(a: Side, b: Side) -> dict[str, str]:
    """B's name of each of A's inputs: the same, or by place where types and ranks agree.

    Raises InputError where the two do not take the same inputs.
    """
    mine, theirs = a.signature.inputs, b.signature.inputs
    named = {spec.name: spec for spec in theirs}
    if {spec.name for spec in mine} == set(named):
        pairs = [(spec, named[spec.name]) for spec in mine]
    else:
        pairs = list(zip(mine, theirs, strict=False))
    if len(mine) != len(theirs) or not all(_alike(x, y) for x, y in pairs):
        raise InputError(
            f"the two models take other inputs: {_shown(a.signature)} and {_shown(b.signature)}",
            where=f"{a.label} and {b.label}",
            fix="compare models of one interface; one that holds its preprocessing takes other "
            "inputs than its source",
        )
    return {x.name: y.name for x, y in pairs}


def _alike(x: TensorSpec, y: TensorSpec) -> bool:
    if x.dtype != y.dtype:
        return False
    if x.shape is None or y.shape is None:
        return True
    return len(x.shape) == len(y.shape) and all(
        isinstance(p, str) or isinstance(q, str) or p == q
        for p, q in zip(x.shape, y.shape, strict=True)
    )


def _shown(signature: Signature) -> str:
    return ", ".join(str(spec) for spec in signature.inputs) or "none"


def ancestors(side: Side, wanted: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """For each value: the nearest values before it that are `wanted` (by first names)."""
    by_name = {name: value for value in side.values for name in value.names}
    before: dict[str, dict[str, None]] = {}
    for value in side.values:
        found: dict[str, None] = {}
        for name in value.inputs:
            other = by_name.get(name)
            if other is None:
                continue  # an input of the model
            if other.name in wanted:
                found[other.name] = None
            else:
                found |= before.get(other.name, {})
        before[value.name] = found
        yield value.name, tuple(found)
