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
    """A fraction of 1 in per cent; it reads ``100 %`` only where it is all."""
    digits = 2 if fraction < 0.1 else 3
    while fraction < 1 and digits < 9 and float(f"{100 * fraction:.{digits}g}") >= 100:
        digits += 1
    return f"{number(100 * fraction, digits).removesuffix('.0')} %"


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
    """``0.004 ± 0.003``, or with both ends in brackets where that would not be the interval.

    The larger half stands after ``±``: the other end is off by one in the last digit at most.
    """
    if isinstance(interval, Skipped):
        return trimmed(value, 4) + unit
    below, above = value - interval[0], interval[1] - value
    half = max(below, above)
    if half - min(below, above) > 1.001 * 10.0 ** -_decimals(2 * half):
        return bracketed(value, interval, unit)
    return " ± ".join(_same_decimals((value, half), 2 * half)) + unit


def stacked(value: float, interval: Ends, unit: str = "") -> str:
    """`estimate` for narrow columns: brackets stand on a line of their own."""
    return estimate(value, interval, unit).replace(" [", "\n[")


def parts(value: float, interval: Ends, unit: str = "") -> tuple[str, str]:
    """`bracketed` in two: the value in as many digits as its interval supports, and the ends."""
    shown, bracket, ends = bracketed(value, interval, unit).partition(" [")
    return shown, bracket.strip() + ends


def bracketed(value: float, interval: Ends, unit: str = "") -> str:
    """``0.004 [0.001, 0.007]``."""
    if isinstance(interval, Skipped):
        return trimmed(value, 4) + unit
    shown, low, high = _same_decimals((value, *interval), interval[1] - interval[0])
    return f"{shown}{unit} [{low}, {high}]"


def _decimals(width: float) -> int:
    """Decimals that show two significant digits of half of `width`."""
    half = width / 2
    return 4 if half <= 0 else min(8, max(0, 1 - math.floor(math.log10(half))))


def _same_decimals(values: tuple[float, ...], width: float) -> list[str]:
    """`values` to two significant digits of half of `width`; common zeros at the end fall away."""
    decimals = _decimals(width)
    texts = [f"{value:.{decimals}f}" for value in values]
    while "." in texts[0] and all(text[-1] == "0" for text in texts):
        texts = [text[:-1].removesuffix(".") for text in texts]
    return [_signed(text) for text in texts]


def _signed(text: str) -> str:
    if text.startswith("-"):
        return text[1:] if set(text) <= set("-0.,") else MINUS + text[1:]
    return text
