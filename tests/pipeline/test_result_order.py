"""Results of batches come back in the order of the data, whole pairs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec
from optimc.pipeline.ordering import Result, has_rows, in_order


def result(numbers: Sequence[int], labels: Any = None, width: int = 1) -> Result:
    """Outputs that hold the number of their sample."""
    output = np.repeat(np.array(numbers)[:, None], width, axis=1)
    return Result(numbers, {"y": output}, {"y": output * 10}, labels)


def numbers(results: Sequence[Result]) -> list[list[int]]:
    return [list(r.outputs["y"][:, 0]) for r in results]


def test_results_that_are_in_order_pass_as_they_are() -> None:
    given = [result(range(3), np.arange(3)), result(range(3, 5), np.arange(2))]
    assert list(in_order(given, 1, rows=True)) == given


def test_others_are_put_back_with_labels_and_the_sources_outputs() -> None:
    given = [result((0, 3), np.array([0, 3])), result((1, 2), np.array([1, 2])), result((4,), [4])]
    made = list(in_order(given, 1, rows=True))
    assert [n for part in numbers(made) for n in part] == [0, 1, 2, 3, 4]
    for part in made:
        assert part.source is not None
        assert part.labels is not None
        np.testing.assert_array_equal(part.source["y"], part.outputs["y"] * 10)
        np.testing.assert_array_equal(part.labels, part.outputs["y"][:, 0])


def test_outputs_of_several_shapes_are_not_joined() -> None:
    given = [result((1, 2), width=2), result((0, 3), width=5)]
    made = list(in_order(given, 1, rows=True))
    assert [part.outputs["y"].shape for part in made] == [(1, 5), (2, 2), (1, 5)]
    assert numbers(made) == [[0], [1, 2], [3]]


def test_pairs_are_whole_and_have_one_label() -> None:
    given = [
        result((0, 2, 5), np.array([7.0, 8.0, 9.0])),
        result((1, 4), np.array([7.0, 9.0])),
        result((3,), np.array([8.0])),
    ]
    made = list(in_order(given, 2, rows=True))
    assert [n for part in numbers(made) for n in part] == [0, 1, 2, 3, 4, 5]
    assert all(len(part.outputs["y"]) % 2 == 0 for part in made)
    assert [x for part in made for x in np.asarray(part.labels)] == [7.0, 8.0, 9.0]


def test_pairs_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(InputError, match="no row for each sample"):
        list(in_order([result((0, 1))], 2, rows=False))
    assert numbers(list(in_order([result((0,)), result((1,))], 2, rows=False))) == [[0, 1]]
    with pytest.raises(InputError, match=r"the output `y` has the shapes \[1, 2\] and \[1, 3\]"):
        list(in_order([result((0,), width=2), result((1,), width=3)], 2, rows=True))


def test_without_rows_batches_stay_whole() -> None:
    given = [result((1, 2)), result((0, 3))]
    assert list(in_order(given, 1, rows=False)) == given


def test_rows_are_known_by_the_first_dim() -> None:
    def signature(*firsts: tuple[int | str, ...] | None) -> Signature:
        inputs = (TensorSpec("x", "float32", ("batch", 3)),)
        outputs = [TensorSpec(f"y{i}", "float32", s) for i, s in enumerate(firsts)]
        return Signature(inputs, tuple(outputs))

    assert has_rows(signature(("batch", 2), ("batch",)))
    assert not has_rows(signature(("batch", 2), ("selected", 3)))
    assert not has_rows(signature(None))
    assert not has_rows(signature(()))
