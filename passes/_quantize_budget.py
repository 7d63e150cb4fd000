"""The search behind `max_drop`: the fewest layers in float with which a metric's drop is met.

1. Everything in INT8. Where that meets the limit, nothing is kept.
2. Sensitivity: each layer alone in INT8, by the SQNR that it leaves at the model's outputs. Errors
   of single layers are small and nearly independent, so they nearly add up: a layer that leaves
   little alone is the first to blame for the sum.
3. The k most sensitive layers in float, k = 1, 2, 4, ... until the limit is met, then bisection
   between the last k that failed and the first that met it.
4. Backward elimination: each of those k goes back to INT8 where the limit is met without it. What
   is left is minimal: no single layer of it can go back.

A limit is met where the drop on the tuning split is at most `max_drop`: the point, not an end of
its interval. Selection wants the model that is most likely the best; whether it may ship is for the
gate to say, on data that the search never saw. The order of the search depends on nothing but the
figures, the time limit decides only how far it gets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from optimc.core.errors import PreconditionError
from optimc.core.model import Model
from optimc.core.passes import Drop, Tuning

Kept = frozenset[str]

SENSITIVITY_SHARE = 0.5
"""The most of the time that sensitivities may take; layers not reached rank last."""


@dataclass(frozen=True)
class Found:
    """What the search came to."""

    kept: tuple[str, ...]
    """The layers that stay in float, the most sensitive first."""
    drop: Drop
    met: bool
    finished: bool
    """False where the time was up before the search came to its end."""
    sqnr_db: dict[str, float]
    """By layer: the SQNR that it leaves alone in INT8, as far as that was measured."""
    trials: int
    """How often the metric was measured."""
    seconds: float


@dataclass
class Search:
    """One search; see the module. `trial` quantizes all layers but those that are kept."""

    layers: Sequence[str]
    trial: Callable[[Kept], Model]
    original: Model
    tuning: Tuning
    max_drop: float
    seconds: float
    progress: Callable[[float, str], None]
    clock: Callable[[], float] = time.monotonic
    _drops: dict[Kept, Drop] = field(default_factory=dict)
    _started: float = 0.0
    _all_noise: float | None = None

    def run(self) -> Found:
        """Searches until it is done or the time is up; the first trial is made in any case."""
        self._started = self.clock()
        sqnr: dict[str, float] = {}
        kept: Kept = frozenset()
        finished = True
        if not self._meets(kept):
            finished = False
            sqnr = self._sensitivities()
            order = sorted(self.layers, key=lambda layer: sqnr.get(layer, math.inf))
            steps = self._steps(order)
            while not finished and not self._late():
                finished = next(steps)
        kept, met = self._best()
        ranked = sorted(kept, key=lambda layer: (sqnr.get(layer, math.inf), layer))
        spent = self.clock() - self._started
        return Found(tuple(ranked), self._drops[kept], met, finished, sqnr, len(self._drops), spent)

    def _steps(self, order: Sequence[str]) -> Iterator[bool]:
        """One trial a step; True after the last."""
        # With every layer kept, or all but one that needs company, nothing is left to quantize.
        most = len(order) - 1
        while most > 0 and not self._possible(self._first(order, most)):
            most -= 1
        low, high = 0, min(1, most)
        while high > low and not self._meets(self._first(order, high)):
            yield False
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            yield False
            if self._meets(self._first(order, middle)):
                high = middle
            else:
                low = middle
        # Nothing meets the limit where `high` came up to `low`.
        kept = self._first(order, high)
        for layer in reversed(order[:high] if high > low else ()):
            yield False
            fewer = kept - {layer}
            if fewer and self._meets(fewer):
                kept = fewer
        yield True

    @staticmethod
    def _first(order: Sequence[str], count: int) -> Kept:
        return frozenset(order[:count])

    def _meets(self, kept: Kept) -> bool:
        if kept not in self._drops:
            self._say(f"the drop of {self.tuning.metric} with {len(kept)} layers in float")
            self._drops[kept] = self.tuning.drop(self.trial(kept))
            drop = self._drops[kept].point
            self._say(f"{self.tuning.metric} drops by {drop:.4g} with {len(kept)} layers in float")
        return self._drops[kept].point <= self.max_drop

    def _possible(self, kept: Kept) -> bool:
        try:
            self.trial(kept)
        except PreconditionError:
            return False
        return True

    def _best(self) -> tuple[Kept, bool]:
        """The fewest layers that meet the limit; where none do, the ones with the least drop."""
        met = [kept for kept, drop in self._drops.items() if drop.point <= self.max_drop]
        if met:
            return min(met, key=lambda kept: (len(kept), self._drops[kept].point)), True
        return min(self._drops, key=lambda kept: (self._drops[kept].point, len(kept))), False

    def _sensitivities(self) -> dict[str, float]:
        everything = frozenset(self.layers)
        found: dict[str, float] = {}
        for number, layer in enumerate(self.layers, 1):
            if self._spent() > SENSITIVITY_SHARE:
                break
            self._say(f"layer {number} of {len(self.layers)} alone in INT8")
            try:
                alone = self.trial(everything - {layer})
            except PreconditionError:
                found[layer] = self._left_out(layer)
            else:
                found[layer] = self.tuning.sqnr_db(alone, self.original)
        return found

    def _left_out(self, layer: str) -> float:
        """For a layer that is quantized in company only: what its noise adds to that of all."""
        if self._all_noise is None:
            self._all_noise = self._noise(frozenset())
        added = self._all_noise - self._noise(frozenset({layer}))
        return -10.0 * math.log10(added) if added > 0.0 else math.inf

    def _noise(self, kept: Kept) -> float:
        """The noise at the outputs, as a share of the signal."""
        sqnr = self.tuning.sqnr_db(self.trial(kept), self.original)
        return float(10.0 ** (-sqnr / 10.0))

    def _spent(self) -> float:
        return (self.clock() - self._started) / self.seconds

    def _late(self) -> bool:
        return self._spent() >= 1.0

    def _say(self, text: str) -> None:
        self.progress(min(self._spent(), 1.0), text)
