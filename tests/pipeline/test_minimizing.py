"""Delta debugging and bisection, by themselves."""

from __future__ import annotations

import pytest

from optimc.pipeline.minimizing import Deadline, OutOfTimeError, Verdict, ddmin, first_bad


@pytest.mark.parametrize("culprits", [{0}, {41}, {99}, {3, 77}, {10, 11, 12}, {0, 50, 99}])
def test_ddmin_leaves_the_culprits_alone(culprits: set[int]) -> None:
    assert set(ddmin(range(100), lambda kept: culprits <= set(kept))) == culprits


def test_ddmin_keeps_the_order_and_leaves_no_item_that_can_go() -> None:
    def shows(kept: tuple[str, ...]) -> bool:
        return "b" in kept and ("d" in kept or "f" in kept)

    found = ddmin("abcdefgh", shows)
    assert found in (("b", "d"), ("b", "f"))
    assert all(not shows(tuple(x for x in found if x != gone)) for gone in found)


def test_ddmin_asks_for_no_subset_twice_and_finds_one_culprit_in_few_questions() -> None:
    asked: list[tuple[int, ...]] = []

    def shows(kept: tuple[int, ...]) -> bool:
        asked.append(kept)
        return 700 in kept

    assert ddmin(range(1000), shows) == (700,)
    assert len(asked) == len(set(asked)) <= 22


def test_ddmin_of_one_item_asks_nothing() -> None:
    assert ddmin([5], lambda kept: pytest.fail("asked")) == (5,)


@pytest.mark.parametrize("culprit", [1, 2, 5, 8])
def test_first_bad_is_the_number_that_turns_it(culprit: int) -> None:
    asked: list[int] = []

    def judge(number: int) -> Verdict:
        asked.append(number)
        return Verdict.BAD if number >= culprit else Verdict.GOOD

    assert first_bad(8, judge) == (culprit - 1, culprit)
    assert len(asked) <= 3


def test_first_bad_goes_around_what_cannot_be_judged() -> None:
    verdicts = {3: Verdict.SKIPPED, 4: Verdict.SKIPPED}

    def judge(number: int) -> Verdict:
        return verdicts.get(number, Verdict.BAD if number >= 5 else Verdict.GOOD)

    assert first_bad(8, judge) == (2, 5)


def test_a_deadline_ends_a_search() -> None:
    Deadline(None).check()
    Deadline(1000.0).check()
    with pytest.raises(OutOfTimeError):
        Deadline(-1.0).check()
