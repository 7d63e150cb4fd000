"""Transform steps: what they compute, and what a recipe is told when they do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration.transforms import KNOWN_STEPS, Steps, apply, per_input
from optimc.core.errors import InputError

ADAPTER: TypeAdapter[Steps] = TypeAdapter(Steps)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def steps(*written: Any) -> Steps:
    return ADAPTER.validate_python(list(written))


def test_the_usual_image_chain_is_exact_in_float32() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    chain = steps("nchw", {"divide": 255}, {"normalize": {"mean": mean, "std": std}})
    expected = IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    expected = (expected - np.array(mean, np.float32).reshape(3, 1, 1)) / np.array(
        std, np.float32
    ).reshape(3, 1, 1)
    result = apply(chain, IMAGES)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    chain = steps("nchw", {"divide": 255}, {"multiply": [2, 3, 4]})
    whole = apply(chain, IMAGES)
    single = np.concatenate([apply(chain, IMAGES[i : i + 1]) for i in range(len(IMAGES))])
    np.testing.assert_array_equal(whole, single)


def test_nhwc_undoes_nchw() -> None:
    np.testing.assert_array_equal(apply(steps("nchw", "nhwc"), IMAGES), IMAGES)


def test_axes_come_and_go_behind_the_samples() -> None:
    flat = np.arange(6.0).reshape(2, 3)
    assert apply(steps({"expand_dims": 1}), flat).shape == (2, 1, 3)
    assert apply(steps({"expand_dims": 2}), flat).shape == (2, 3, 1)
    np.testing.assert_array_equal(apply(steps({"expand_dims": 1}, {"squeeze": 1}), flat), flat)


def test_cast_changes_the_type_alone() -> None:
    result = apply(steps({"cast": "int64"}), np.array([[1, 2]], np.int32))
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, [[1, 2]])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"divide": [1, 2]}, "`divide` needs axis 1 of size 2"),
        ({"normalize": {"mean": [0, 0], "std": 1}}, "`normalize.mean` needs axis 1 of size 2"),
        ({"squeeze": 1}, "`squeeze` needs an axis 1 of size 1"),
        ({"expand_dims": 9}, "`expand_dims` needs an axis up to 4"),
    ],
)
def test_a_step_that_does_not_fit_says_which_and_what_it_met(written: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        apply(steps(written), IMAGES)
    assert message in caught.value.what
    assert "uint8[4, 6, 3]" in caught.value.what
    assert caught.value.fix


def test_channels_need_space() -> None:
    with pytest.raises(InputError, match="`nchw` needs at least 3 axes"):
        apply(steps("nchw"), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"divid": 2}, "did you mean `divide`?"),
        ("nhw", "did you mean `nhwc`?"),
        ({}, "unknown transform step"),
        ({"divide": 0}, "cannot divide by zero"),
        ({"normalize": {"mean": 0, "std": [1, 0]}}, "std must not be zero"),
        ({"normalize": {"mean": 0}}, "Field required"),
        ({"divide": 2, "multiply": 3}, "Extra inputs are not permitted"),
        ({"divide": "2"}, "valid number"),
        ({"cast": "float33"}, "Input should be"),
        ({"squeeze": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_steps_are_refused_where_they_stand(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match="1 validation error") as caught:
        steps("nchw", written)
    (error,) = caught.value.errors()
    assert message in error["msg"]
    assert error["loc"][0] == 1


def test_the_schema_knows_every_step() -> None:
    text = str(ADAPTER.json_schema())
    assert all(step in text for step in KNOWN_STEPS)


def test_steps_by_input() -> None:
    chain = steps({"divide": 2})
    assert per_input(chain, ["a", "b"]) == {"a": chain, "b": chain}
    assert per_input({"b": chain}, ["a", "b"]) == {"a": [], "b": chain}
    with pytest.raises(InputError, match="unknown input `bb`"):
        per_input({"bb": chain}, ["a", "b"])
