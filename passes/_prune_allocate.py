"""How many units each group keeps: levels of pruning, from the least to the most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEPS = 512
"""How many shares are looked at: levels that come out equal count once."""


@dataclass(frozen=True)
class Units:
    """A group as the worker told of it."""

    name: str
    kind: str
    unit: int
    """Channels in a unit."""
    scores: tuple[float, ...]
    """The importance of each unit."""

    def allowed(self, align: int, floor: float) -> list[int]:
        """How many units may be left: channel counts are multiples of `align`, or all there are."""
        count = len(self.scores)
        least = max(1, math.ceil(floor * count))
        return [n for n in range(least, count) if n * self.unit % align == 0] + [count]

    def removed(self, kept: int) -> list[int]:
        """The least important units, if `kept` are left; the later ones of equal ones."""
        order = sorted(range(len(self.scores)), key=lambda unit: (-self.scores[unit], unit))
        return sorted(order[kept:])


Level = tuple[int, ...]
"""By group: how many units are kept."""


def levels(groups: Sequence[Units], align: int, floor: float, *, whole: bool) -> list[Level]:
    """All levels, each of which removes more than the one before; the first removes least.

    With `whole` all units are ranked together by their importance relative to their group's mean
    (global pruning), else each group loses the same share.
    """
    allowed = [group.allowed(align, floor) for group in groups]
    full = tuple(len(group.scores) for group in groups)
    found: list[Level] = [full]
    ranked = _ranked(groups) if whole else []
    for step in range(1, STEPS + 1):
        share = step / STEPS
        wanted = _left(full, ranked, share) if whole else [(1 - share) * n for n in full]
        level = tuple(
            min(counts, key=lambda n, want=want: (abs(n - want), -n))  # type: ignore[misc]
            for counts, want in zip(allowed, wanted, strict=True)
        )
        if level != found[-1]:
            found.append(level)
    return found[1:]


def nearest(groups: Sequence[Units], among: Sequence[Level], share: float) -> Level:
    """The level that keeps about `share` of all channels."""
    whole = sum(group.unit * len(group.scores) for group in groups)

    def kept(level: Level) -> float:
        return sum(g.unit * n for g, n in zip(groups, level, strict=True)) / whole

    return min(among, key=lambda level: (abs(kept(level) - share), kept(level)))


def _ranked(groups: Sequence[Units]) -> list[int]:
    """The group of each unit, the least important unit first."""
    ranks = []
    for number, group in enumerate(groups):
        mean = sum(group.scores) / len(group.scores) or 1.0
        ranks += [(score / mean, number) for score in group.scores]
    return [number for _, number in sorted(ranks)]


def _left(full: Sequence[int], ranked: Sequence[int], share: float) -> list[float]:
    left = [float(count) for count in full]
    for number in ranked[: round(share * len(ranked))]:
        left[number] -= 1
    return left


def widths(groups: Sequence[Units], level: Level) -> Mapping[str, str]:
    """By group: its width before and after."""
    return {
        group.name: f"{group.unit * len(group.scores)} to {group.unit * kept}"
        for group, kept in zip(groups, level, strict=True)
        if kept < len(group.scores)
    }
