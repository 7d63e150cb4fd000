"""Figures of pairs of values, gathered over inputs, and where the error starts, grows and heals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimc.report.diff import Trend, ValueRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

TURN = 2.0
"""By what factor the noise has to change to count as growing or healing: 6 dB."""
_NUMBERS = "biuf"


@dataclass
class Gathered:
    """Sums over the inputs that were seen so far, of one pair."""

    max_abs: float = 0.0
    scale: float = 0.0
    signal: float = 0.0
    error: float = 0.0
    reason: str | None = None
    """What no tolerance excuses."""
    skipped: str | None = None
    """Why the pair cannot be compared."""
    seen: int = 0

    def add(self, a: NDArray[Any] | None, b: NDArray[Any] | None) -> None:
        """One more input."""
        import numpy as np

        if a is None or b is None:
            self.skipped = self.skipped or "the runtime gives no array for it"
            return
        if a.shape != b.shape:
            self.skipped = f"shape {list(b.shape)} in place of {list(a.shape)}"
            return
        if not (_is_number(a) and _is_number(b)):
            same = a.dtype.kind == b.dtype.kind and bool((a == b).all())
            self.seen += 1
            self.reason = self.reason or (None if same else "the elements differ")
            return
        if _is_float(a) != _is_float(b):
            self.skipped = f"{b.dtype} in place of {a.dtype}"
            return
        self.seen += 1
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(
            np.where(finite, 0.0, x), np.where(np.isfinite(y), 0.0, y), equal_nan=True
        ):
            self.reason = "NaN or infinity stands in other places"
        both = finite & np.isfinite(y)
        x, difference = x[both], x[both] - y[both]
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        self.scale = max(self.scale, float(np.abs(x).max(initial=0.0)))
        self.signal += float(np.square(x).sum())
        self.error += float(np.square(difference).sum())

    @property
    def max_rel(self) -> float:
        """The greatest difference by the greatest magnitude."""
        return _ratio(self.max_abs, self.scale)

    @property
    def noise(self) -> float:
        """The relative error in root mean square."""
        if self.reason is not None:
            return math.inf
        return math.sqrt(_ratio(self.error, self.signal))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else (math.inf if part > 0 else 0.0)


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind not in "biu"


def _is_number(array: NDArray[Any]) -> bool:
    return array.dtype.kind in _NUMBERS or array.dtype.name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
    )


@dataclass(frozen=True)
class Limit:
    """When two values count as the same: by the greatest difference, or by signal to noise."""

    tolerance: float | None = 1e-4
    min_sqnr: float | None = None

    @property
    def text(self) -> str:
        """In words."""
        parts = []
        if self.tolerance is not None:
            parts.append(f"at most {self.tolerance:g} of the value's scale")
        if self.min_sqnr is not None:
            parts.append(f"SQNR of at least {self.min_sqnr:g} dB")
        return " and ".join(parts)

    def exceeded(self, gathered: Gathered) -> bool:
        """Whether the two differ by more."""
        if gathered.reason is not None:
            return True
        if self.tolerance is not None and gathered.max_rel > self.tolerance:
            return True
        noise = gathered.noise
        sqnr = (
            math.inf if noise == 0 else -20 * math.log10(noise) if noise < math.inf else -math.inf
        )
        return self.min_sqnr is not None and sqnr < self.min_sqnr


@dataclass
class Trends:
    """Says of each value, in order, what happens to the error there."""

    limit: Limit
    before: Mapping[str, Sequence[str]]
    """The compared values that each value is computed from."""
    _noise: dict[str, float] = field(default_factory=dict)
    _beyond: set[str] = field(default_factory=set)

    def of(self, name: str, gathered: Gathered) -> Trend:
        """The trend at the value `name`; those before it were asked for already."""
        if gathered.skipped is not None or not gathered.seen:
            return Trend.NOT_COMPARED
        noise = gathered.noise
        beyond = self.limit.exceeded(gathered)
        earlier = [n for n in self.before.get(name, ()) if n in self._noise]
        worst = max((self._noise[n] for n in earlier), default=0.0)
        carried = any(n in self._beyond for n in earlier)
        self._noise[name] = noise
        if beyond:
            self._beyond.add(name)
        if beyond and not carried:
            return Trend.STARTS
        if carried and (not beyond or noise * TURN < worst):
            return Trend.HEALS
        if beyond and noise > worst * TURN:
            return Trend.GROWS
        return Trend.CARRIED if beyond else Trend.SAME


def row_of(
    number: int,
    names: tuple[str, str],
    operators: tuple[str, str],
    how: str,
    gathered: Gathered,
    trend: Trend,
    *,
    output: bool,
) -> ValueRow:
    """The row of a pair."""
    compared = gathered.skipped is None and gathered.seen > 0
    return ValueRow(
        number=number,
        name=names[0],
        other=names[1],
        matched=how,
        operator=operators[0],
        other_operator=operators[1],
        output=output,
        trend=trend,
        max_abs=gathered.max_abs if compared else None,
        max_rel=gathered.max_rel if compared else None,
        noise=gathered.noise if compared else None,
        reason=gathered.skipped or gathered.reason,
    )
