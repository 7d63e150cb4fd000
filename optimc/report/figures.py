"""How figures are written for people: digits, units and intervals, the same in every view."""

from __future__ import annotations

import math

from optimc.report.values import Skipped

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"

Ends = tuple[float, float] | Skipped


def number(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, as a plain decimal where that can be read."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{MINUS if value < 0 else ''}∞"
    if value and not 1e-4 <= abs(value) < 1e7:
        return _signed(f"{value:.{digits - 1}e}")
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    return _signed(f"{value:,.{max(0, digits - 1 - magnitude)}f}")


def count(value: int, noun: str = "", plural: str = "") -> str:
    """A whole number with separators of thousands: ``1 node``, ``1,200 nodes``."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}" if noun else f"{value:,}"


def metric(value: float) -> str:
    """A metric's value: four decimals, or four digits where those would show nothing."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e3
    return _signed(f"{value:.4f}") if plain else trimmed(value, 4)


def times(value: float) -> str:
    """A ratio of speeds."""
    return f"{number(value)}{TIMES}"


def percent(fraction: float) -> str:
    """A fraction of 1 in per cent."""
    return f"{number(100 * fraction, 2 if fraction < 0.1 else 3).removesuffix('.0')} %"


def milliseconds(value: float) -> str:
    """A time in ms."""
    return f"{number(value)} ms"


def seconds(value: float) -> str:
    """A time in s, in ms where it is short."""
    return f"{number(value, 2)} s" if value >= 0.1 else f"{number(value * 1000, 2)} ms"


def size(value: int) -> str:
    """Bytes in kB or MB (powers of ten)."""
    return f"{number(value / 1e6)} MB" if value >= 1e6 else f"{number(value / 1e3)} kB"


def trimmed(value: float, digits: int) -> str:
    """`number` without zeros at the end of its decimals."""
    text = number(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def estimate(value: float, interval: Ends, unit: str = "") -> str:
    """``0.004 ± 0.003``, or with both ends in brackets where the interval is lopsided."""
    if isinstance(interval, Skipped):
        return trimmed(value, 4) + unit
    below, above = value - interval[0], interval[1] - value
    if abs(above - below) > 0.1 * (above + below) or below < 0 or above < 0:
        return bracketed(value, interval, unit)
    return plus_minus(value, interval, unit)


def plus_minus(value: float, interval: Ends, unit: str = "") -> str:
    """``0.004 ± 0.003``: the larger half of the interval."""
    if isinstance(interval, Skipped):
        return trimmed(value, 4) + unit
    half = max(value - interval[0], interval[1] - value)
    return " ± ".join(_same_decimals((value, half), 2 * half)) + unit


def bracketed(value: float, interval: Ends, unit: str = "") -> str:
    """``0.004 [0.001, 0.007]``."""
    if isinstance(interval, Skipped):
        return trimmed(value, 4) + unit
    shown, low, high = _same_decimals((value, *interval), interval[1] - interval[0])
    return f"{shown}{unit} [{low}, {high}]"


def ends(interval: Ends) -> str:
    """``[0.001, 0.007]``; empty where there is no interval."""
    if isinstance(interval, Skipped):
        return ""
    low, high = _same_decimals(interval, interval[1] - interval[0])
    return f"[{low}, {high}]"


def _same_decimals(values: tuple[float, ...], width: float) -> list[str]:
    """`values` to two significant digits of half of `width`; common zeros at the end fall away."""
    half = width / 2
    decimals = 4 if half <= 0 else min(8, max(0, 1 - math.floor(math.log10(half))))
    texts = [f"{value:.{decimals}f}" for value in values]
    while "." in texts[0] and all(text[-1] == "0" for text in texts):
        texts = [text[:-1].removesuffix(".") for text in texts]
    return [_signed(text) for text in texts]


def _signed(text: str) -> str:
    if text.startswith("-"):
        return text[1:] if set(text) <= set("-0.,") else MINUS + text[1:]
    return text
