"""Spoilt inputs: one message at most, never a traceback; the rest by `bench/fuzz.py --inputs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.cli import main
from optimc.testing.input_fuzzing import KINDS, PROGRAMS, fuzz_input

FOUND = [10, 112, 129, 141]
"""Seeds that once showed a traceback."""

FOUND_AMONG_PROGRAMS = [2200075, 2200482, 2200682]
"""Seeds of `bench/fuzz.py --programs`: an npy header, text for numbers, a node without inputs."""


@pytest.mark.parametrize("seed", FOUND_AMONG_PROGRAMS)
def test_a_spoilt_input_found_later_is_no_traceback(seed: int, repository: Path) -> None:
    outcome = fuzz_input(seed, repository / "recipes", main, {**KINDS, **PROGRAMS})
    assert outcome.finds == []


@pytest.mark.parametrize("seed", [*range(24), *FOUND])
def test_a_spoilt_input_is_no_traceback(seed: int, repository: Path) -> None:
    outcome = fuzz_input(seed, repository / "recipes", main)
    assert outcome.finds == []


def test_every_kind_of_input_is_met(repository: Path) -> None:
    met = set()
    for seed in range(24):
        met |= set(fuzz_input(seed, repository / "recipes", main).operators)
    assert met == set(KINDS)
