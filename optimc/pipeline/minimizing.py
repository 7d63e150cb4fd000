"""Delta debugging: the smallest set of things that still shows a fault.

`ddmin` is the minimizing algorithm of A. Zeller and R. Hildebrandt, "Simplifying and isolating
failure-inducing input", IEEE Transactions on Software Engineering 28(2), 2002.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from enum import StrEnum
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


class Verdict(StrEnum):
    """What one test says."""

    GOOD = "good"
    """The fault does not show."""
    BAD = "bad"
    """The fault shows."""
    SKIPPED = "skipped"
    """Nothing can be said of this one."""


class OutOfTimeError(Exception):
    """The time is up: what was found so far stands."""


class Deadline:
    """Seconds that a search may take."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raises OutOfTimeError once the time is up."""
        if self._end is not None and time.monotonic() > self._end:
            raise OutOfTimeError

    def left(self, most: float) -> float:
        """Seconds that are left, `most` at most."""
        if self._end is None:
            return most
        return min(most, max(0.0, self._end - time.monotonic()))


def ddmin(items: Sequence[Item], shows: Callable[[tuple[Item, ...]], bool]) -> tuple[Item, ...]:
    """A subset of `items`, in their order, of which none can be left out.

    `shows` says whether a subset shows the fault, as all `items` together are known to. No subset
    is asked for twice. The result is 1-minimal, not always the least there is.
    """
    asked: dict[tuple[Item, ...], bool] = {}

    def test(subset: tuple[Item, ...]) -> bool:
        if subset not in asked:
            asked[subset] = shows(subset)
        return asked[subset]

    current, parts = tuple(items), 2
    while len(current) >= 2:
        chunks = _split(current, parts)
        found = next((chunk for chunk in chunks if test(chunk)), None)
        if found is not None:
            current, parts = found, 2
            continue
        rests = [tuple(i for i in current if i not in chunk) for chunk in map(set, chunks)]
        rest = next((rest for rest in rests if parts > 2 and test(rest)), None)
        if rest is not None:
            current, parts = rest, max(parts - 1, 2)
        elif parts < len(current):
            parts = min(len(current), 2 * parts)
        else:
            break
    return current


def _split(items: tuple[Item, ...], parts: int) -> list[tuple[Item, ...]]:
    """`items` in `parts` pieces of nearly one length."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges) if b > a]


def first_bad(count: int, judge: Callable[[int], Verdict]) -> tuple[int, int]:
    """The last good and the first bad number, where 0 is good and `count` is bad.

    Between them lie only numbers that were skipped. A binary search: about log2(count) questions.
    """
    good, bad = 0, count
    unclear: set[int] = set()
    while True:
        open_ = [n for n in range(good + 1, bad) if n not in unclear]
        if not open_:
            return good, bad
        middle = min(open_, key=lambda n: abs(2 * n - good - bad))
        verdict = judge(middle)
        if verdict is Verdict.SKIPPED:
            unclear.add(middle)
        elif verdict is Verdict.GOOD:
            good = middle
        else:
            bad = middle
