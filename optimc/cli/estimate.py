"""How long a build still takes: from the times of the stages of the recipe's last build.

The times lie in the cache's folder. Where there is no last build, only the stage that runs can be
estimated, from the share of it that is done. Nothing else uses these times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from optimc.core.errors import InputError
from optimc.core.files import atomic_write

FILE = "stage-times.json"
_MOST_RECIPES = 200
_LEAST_SHARE = 0.05
"""Of a stage's work that has to be done before its end is guessed from it."""
_LEAST_S = 2.0
"""A stage has to have run this long before its end is guessed from the share."""


class Estimate:
    """The stages of one build as they come, and what is left of them."""

    def __init__(self, last: dict[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        """`last` has the seconds of each stage of the last build, in their order."""
        self._last = last
        self._clock = clock
        self.took: dict[str, float] = {}
        self._stage: str | None = None
        self._since = clock()
        self._share = 0.0

    def stage(self, text: str) -> None:
        """A stage begins; the one before has ended."""
        self.end()
        self._stage, self._since, self._share = text, self._clock(), 0.0

    def share(self, done: float) -> None:
        """How much of the stage is done, 0 to 1."""
        self._share = done

    def end(self) -> None:
        """The last stage has ended."""
        if self._stage is not None:
            seconds = self._clock() - self._since
            self.took[self._stage] = self.took.get(self._stage, 0.0) + seconds
        self._stage = None

    def left_s(self) -> float | None:
        """Seconds until the build ends, as far as the last one tells; None where it does not."""
        if self._stage is None or self._stage not in self._last:
            return None
        names = list(self._last)
        later = names[names.index(self._stage) + 1 :]
        elapsed = self._clock() - self._since
        of_stage = max(0.0, self._last[self._stage] - elapsed)
        return of_stage + sum(self._last[name] for name in later)

    def stage_left_s(self) -> float | None:
        """Seconds until the stage ends, by the share that is done; None while that says little."""
        elapsed = self._clock() - self._since
        if self._share < _LEAST_SHARE or elapsed < _LEAST_S:
            return None
        return elapsed * (1.0 - self._share) / self._share

    def text(self) -> str:
        """``about 20 s left``, of the stage alone where only that is known; may be empty."""
        whole = self.left_s()
        if whole is not None:
            return f"about {_rounded(whole)} left" if whole >= 1.0 else ""
        part = self.stage_left_s()
        return f"about {_rounded(part)} left of this stage" if part is not None else ""


def _rounded(seconds: float) -> str:
    """No more digits than an estimate has."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def remembered(folder: Path, recipe: Path) -> dict[str, float]:
    """The stages of the recipe's last build with their seconds; empty where nothing is known."""
    known = _read(folder / FILE).get(_key(recipe), {})
    if not isinstance(known, dict):
        return {}
    return {str(k): float(v) for k, v in known.items() if isinstance(v, int | float)}


def remember(folder: Path, recipe: Path, took: dict[str, float]) -> None:
    """Keeps the stages of a build that went through; nothing happens where that cannot be."""
    known = _read(folder / FILE)
    known.pop(_key(recipe), None)
    known[_key(recipe)] = {name: round(seconds, 2) for name, seconds in took.items()}
    kept = dict(list(known.items())[-_MOST_RECIPES:])
    try:
        with atomic_write(folder / FILE) as file:
            file.write(json.dumps(kept, indent=1))
    except (InputError, OSError):
        return  # an estimate is not worth an error: the cache may be read-only


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(recipe: Path) -> str:
    return str(recipe.resolve())
