"""Optimization profiles: what fits the model's dims, and the message where one does not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from optimc.core.errors import CellError, InputError
from optimc.core.model import Signature, TensorSpec
from optimc.core.targets import DimSizes
from optimc.targets.tensorrt import TensorRT

SIGNATURE = Signature(
    (TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("fixed", "float32", (2, 3))), ()
)
DIMS = {"batch": DimSizes(1, 2, 8), "length": DimSizes(4, 32, 128)}


def shapes(target: TensorRT) -> list[object]:
    return [dict(one) for one in target.plan_options(SIGNATURE, DIMS).profiles]


def test_without_profiles_there_is_one_of_the_dims() -> None:
    assert shapes(TensorRT()) == [{"ids": ((1, 4), (2, 32), (8, 128))}]
    TensorRT().check(SIGNATURE, DIMS)


def test_a_dim_that_a_profile_leaves_out_is_the_recipes() -> None:
    target = TensorRT(profiles=[{"batch": (1, 1, 2)}, {"batch": (2, 4, 8)}])
    target.check(SIGNATURE, DIMS)
    first, second = ((1, 4), (1, 32), (2, 128)), ((2, 4), (4, 32), (8, 128))
    assert shapes(target) == [{"ids": first}, {"ids": second}]


def test_a_model_of_fixed_shapes_has_none() -> None:
    fixed = Signature((TensorSpec("fixed", "float32", (2, 3)),), ())
    assert TensorRT().plan_options(fixed, {}).profiles == ()


def test_an_unknown_dim_is_refused() -> None:
    with pytest.raises(InputError, match="unknown dim `bach`") as caught:
        TensorRT(profiles=[{"bach": (1, 2, 8)}]).check(SIGNATURE, DIMS)
    assert caught.value.where == "profiles"
    assert caught.value.fix is not None
    assert "batch" in caught.value.fix


def test_sizes_that_no_profile_holds_are_refused() -> None:
    with pytest.raises(InputError, match="no profile holds batch=8, length=4") as caught:
        TensorRT(profiles=[{"batch": (1, 2, 7)}]).check(
            SIGNATURE, {**DIMS, "length": DimSizes(4, 4, 4)}
        )
    assert caught.value.fix == "widen a profile, or narrow `dims`"


@pytest.mark.parametrize("sizes", [(2, 1, 8), (1, 8, 4), (-1, 1, 8)])
def test_sizes_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValidationError, match="say its least, usual and greatest size"):
        TensorRT(profiles=[{"batch": sizes}])


def test_a_dim_of_unknown_size_is_named() -> None:
    with pytest.raises(CellError, match="needs the sizes of the dims length of `ids`"):
        TensorRT().plan_options(SIGNATURE, {"batch": DimSizes(1, 2, 8)})
