"""Parts of one file for several splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration.checks import check_disjoint
from optimc.calibration.dataset import Dataset
from optimc.calibration.sources import DataSource
from optimc.core.errors import InputError

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x=np.arange(100).reshape(50, 2), y=np.arange(50))
    return tmp_path


def opened(folder: Path, seed: int = 0, **written: Any) -> Dataset:
    source = {"npz": "data.npz", "inputs": {"x": "x"}, "labels": "y", **written}
    dataset = ADAPTER.validate_python(source).open(folder, seed)
    assert isinstance(dataset, Dataset)
    return dataset


def rows(dataset: Dataset) -> list[int]:
    return [int(label) for labels in dataset.labels() for label in np.asarray(labels)]


def test_parts_have_no_sample_in_common_and_together_hold_all(folder: Path) -> None:
    parts = [opened(folder, split=list(part)) for part in ((0, 0.2), (0.2, 0.7), (0.7, 1))]
    assert [len(part) for part in parts] == [10, 25, 15]
    assert sorted(row for part in parts for row in rows(part)) == list(range(50))
    assert rows(parts[0]) == sorted(rows(parts[0]))  # in the order of the file
    assert rows(parts[0]) != list(range(10))  # drawn
    check_disjoint({str(index): part for index, part in enumerate(parts)})


def test_the_part_is_drawn_by_the_recipes_seed(folder: Path) -> None:
    first = rows(opened(folder, split=[0, 0.2]))
    assert rows(opened(folder, split=[0, 0.2])) == first
    assert rows(opened(folder, seed=1, split=[0, 0.2])) != first
    assert opened(folder, split=[0, 0.2]).digest != opened(folder, split=[0.2, 0.4]).digest


def test_take_and_shuffle_work_inside_of_the_part(folder: Path) -> None:
    part = rows(opened(folder, split=[0, 0.2]))
    assert rows(opened(folder, split=[0, 0.2], take=4)) == part[:4]
    shuffled = rows(opened(folder, split=[0, 0.2], shuffle=True))
    assert shuffled != part
    assert sorted(shuffled) == part
    with pytest.raises(InputError, match="`take: 11` asks for more samples than the 10 there are"):
        opened(folder, split=[0, 0.2], take=11)
    with pytest.raises(InputError, match="of 50 samples is empty"):
        opened(folder, split=[0, 0.001])


def test_overlap_of_parts_is_named_by_the_place_in_the_file(folder: Path) -> None:
    one, two = opened(folder, split=[0, 0.2]), opened(folder, split=[0.18, 0.4])
    (common,) = set(rows(one)) & set(rows(two))
    with pytest.raises(InputError) as caught:
        check_disjoint({"calibration": one, "evaluation": two})
    assert f"({common} = {common})" in caught.value.what


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([0.5, 0.5], "the part is empty"),
        ([0.5, 0.2], "the part is empty"),
        ([0.5], "at least 2 items"),
        ([0, 1.5], "less than or equal to 1"),
        (0.5, "valid list"),
    ],
)
def test_wrong_parts_are_refused(split: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python({"npz": "data.npz", "split": split})
    assert message in str(caught.value)
