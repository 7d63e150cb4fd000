from __future__ import annotations

import re

import pytest

from optimc.core.units import DURATION_PATTERN, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60 s", 60.0),
        ("60s", 60.0),
        ("1.5 min", 90.0),
        ("250 ms", 0.25),
        ("2 h", 7200.0),
        ("0 s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize("text", ["60", "s", "", "60 sec", "-1 s", "1e3 s", "60 S", "1 s 2", "∞ s"])
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and a unit"):
        parse_duration(text)
    assert not re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1 B", 1), ("2 kB", 2000), ("1.5 MB", 1_500_000), ("1GB", 10**9), ("2 GiB", 2**31)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["1", "1 mb", "1 TB", "x", "-1 MB"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size: .* `512 MB`"):
        parse_size(text)
