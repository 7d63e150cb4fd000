from __future__ import annotations

import numpy as np
import pytest

from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec
from optimc.targets.feeds import checked_feeds

SIGNATURE = Signature(
    inputs=(
        TensorSpec("ids", "int64", ("batch", "length")),
        TensorSpec("mask", "float32", ("batch", "length")),
        TensorSpec("any_rank", "float32", None),
    ),
    outputs=(),
)


def feeds(**changes: np.ndarray) -> dict[str, np.ndarray]:
    right: dict[str, np.ndarray] = {
        "any_rank": np.zeros(7, np.float32),
        "mask": np.zeros((2, 5), np.float32),
        "ids": np.zeros((2, 5), np.int64),
    }
    return {**right, **changes}


def test_feeds_come_in_order_contiguous_and_owned() -> None:
    given = feeds(mask=np.zeros((5, 2), np.float32).T)
    checked = checked_feeds(SIGNATURE, given)
    assert list(checked) == ["ids", "mask", "any_rank"]
    assert all(array.flags["C_CONTIGUOUS"] and array.flags["OWNDATA"] for array in checked.values())
    assert not np.shares_memory(checked["ids"], given["ids"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros((2, 4), np.float32)}, "dim `length` is 4 in the input `mask` but 5 in"),
        ({"ids": np.zeros((2, 5), np.int32)}, "`ids` is int32, the engine takes int64"),
        ({"ids": np.zeros(5, np.int64)}, r"`ids` has the shape \[5\]"),
        ({"id": np.zeros(5)}, "no input `id`"),
    ],
)
def test_wrong_feeds_are_named(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_feeds(SIGNATURE, feeds(**changes))


def test_near_name_is_suggested() -> None:
    with pytest.raises(InputError, match="did you mean `mask`"):
        checked_feeds(SIGNATURE, feeds(masks=np.zeros(1, np.float32)))
