"""Spoilt inputs: one message at most, never a traceback; the rest by `bench/fuzz.py --inputs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.cli import main
from optimc.testing.input_fuzzing import KINDS, fuzz_input

FOUND = [10, 112, 129, 141]
"""Seeds that once showed a traceback."""


@pytest.mark.parametrize("seed", [*range(24), *FOUND])
def test_a_spoilt_input_is_no_traceback(seed: int, repository: Path) -> None:
    outcome = fuzz_input(seed, repository / "recipes", main)
    assert outcome.finds == []


def test_every_kind_of_input_is_met(repository: Path) -> None:
    met = set()
    for seed in range(24):
        met |= set(fuzz_input(seed, repository / "recipes", main).operators)
    assert met == set(KINDS)
