"""Samples of several shapes in batches: all of them, one shape a batch, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimc.calibration import grouped
from optimc.calibration.dataset import joined_labels, sample_digest
from optimc.calibration.grouped import WINDOW, GroupedDataset, Sample


class OfLengths(GroupedDataset):
    """Sample i holds the number i as often as its length says; its label is i."""

    where = "lengths"

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self.made = 0

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def digest(self) -> str:
        raise AssertionError("not asked for")

    def samples(self) -> Iterator[Sample]:
        for index, length in enumerate(self._lengths):
            self.made += 1
            yield Sample({"x": np.full(length, index)}, index)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=200), st.integers(1, 9))
def test_every_sample_stands_in_one_batch_of_its_shape(lengths: list[int], size: int) -> None:
    seen = []
    for batch in OfLengths(lengths).batches(size):
        assert 1 <= batch.size <= size
        assert list(batch.numbers) == sorted(batch.numbers)
        for row, number in enumerate(batch.numbers):
            assert batch.feeds["x"][row].tolist() == [number] * lengths[number]
        np.testing.assert_array_equal(np.asarray(batch.labels), batch.numbers)
        seen += list(batch.numbers)
    assert sorted(seen) == list(range(len(lengths)))


def test_samples_of_one_shape_keep_their_order() -> None:
    batches = list(OfLengths([3] * 10).batches(4))
    assert [list(batch.numbers) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    mixed = list(OfLengths([1, 2, 3, 1]).batches(1))
    assert [list(batch.numbers) for batch in mixed] == [[0], [1], [2], [3]]


def test_no_more_than_the_window_waits() -> None:
    dataset = OfLengths(range(1, 200))  # no two alike
    done = 0
    for batch in dataset.batches(2):
        done += batch.size
        assert dataset.made - done < 2 * WINDOW
    assert done == 199


def test_large_samples_wait_in_smaller_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "WINDOW_BYTES", 8 * 300)
    dataset = OfLengths(range(100, 160))
    done = 0
    for batch in dataset.batches(8):
        done += batch.size
        assert dataset.made - done <= 3
    assert done == 60


def test_specs_and_digests_are_of_all_samples() -> None:
    dataset = OfLengths([2, 3, 3, 1])
    assert [specs["x"].shape for specs in dataset.all_sample_specs()] == [(3,), (2,), (1,)]
    assert dataset.sample_specs()["x"].shape == (3,)
    expected = [sample_digest({"x": np.full((1, n), i)}, 0) for i, n in enumerate([2, 3, 3, 1])]
    assert dataset.sample_digests() == expected


def test_labels_are_an_array_where_they_are_alike() -> None:
    joined = joined_labels([1, 2])
    assert isinstance(joined, np.ndarray)
    assert joined.dtype == np.int64
    assert np.shape(joined_labels([np.zeros((2, 3)), np.ones((2, 3))])) == (2, 2, 3)
    ragged = joined_labels([np.zeros(2), np.zeros(3)])
    assert [np.shape(label) for label in ragged] == [(2,), (3,)]
    boxes = joined_labels([{"boxes": np.zeros((1, 4))}])
    assert isinstance(boxes, list)
