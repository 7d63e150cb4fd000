"""Data against the model's signature, splits against each other, and seeded data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from optimc.calibration.checks import check_against, check_disjoint, fixed_batch
from optimc.calibration.dataset import Batch, Dataset
from optimc.calibration.random_data import RandomDataset
from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec


class InMemory(Dataset):
    """Samples given as arrays."""

    def __init__(self, where: str = "data", **arrays: Any) -> None:
        self.where = where
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    @property
    def digest(self) -> str:
        raise AssertionError("not asked for")

    def batches(self, size: int) -> Iterator[Batch]:
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            yield Batch({name: a[rows] for name, a in self._arrays.items()}, None, first)

    def sample_specs(self) -> Mapping[str, TensorSpec]:
        return {n: TensorSpec(n, a.dtype.name, a.shape[1:]) for n, a in self._arrays.items()}


def signature(**inputs: tuple[str, tuple[int | str, ...] | None]) -> Signature:
    return Signature(tuple(TensorSpec(n, d, s) for n, (d, s) in inputs.items()), ())


IDS = signature(ids=("int64", ("batch", "length")), mask=("int64", ("batch", "length")))
TOKENS = np.zeros((4, 7), np.int64)


def test_fitting_data_passes() -> None:
    check_against(InMemory(ids=TOKENS, mask=TOKENS), IDS, {"length": (1, 8)})
    check_against(InMemory(x=TOKENS), signature(x=("int64", None)))


@pytest.mark.parametrize(
    ("data", "wanted", "what"),
    [
        ({"ids": TOKENS}, IDS, "feeds nothing to the model's input `mask"),
        ({"ids": TOKENS, "masks": TOKENS}, IDS, "unknown input `masks`"),
        ({"ids": TOKENS.astype("int32"), "mask": TOKENS}, IDS, "gets int32"),
        ({"ids": TOKENS[:, 0], "mask": TOKENS}, IDS, "gets samples of shape []"),
        ({"ids": TOKENS, "mask": TOKENS[:, :5]}, IDS, "is 7 in the input `ids` and 5 in `mask`"),
        (
            {"x": np.zeros((2, 4, 4, 3), np.float32)},
            signature(x=("float32", ("n", 3, 4, 4))),
            "gets samples of shape [4, 4, 3]",
        ),
        ({"x": TOKENS}, signature(x=("int64", ())), "has no axis for samples"),
    ],
)
def test_what_does_not_fit_the_model_is_named(
    data: dict[str, Any], wanted: Signature, what: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_against(InMemory("set.npz", **data), wanted)
    assert what in caught.value.what
    assert caught.value.where == "set.npz"


def test_dims_bound_the_data() -> None:
    with pytest.raises(InputError, match="outside of 8 to 16") as caught:
        check_against(InMemory(ids=TOKENS, mask=TOKENS), IDS, {"length": (8, 16)})
    assert "dims.length" in (caught.value.fix or "")


def test_a_wrong_type_says_the_step_to_add() -> None:
    with pytest.raises(InputError, match="cast: float32"):
        check_against(InMemory(x=TOKENS), signature(x=("float32", ("n", 7))))


def test_whole_samples_in_two_splits_are_found_whatever_their_order() -> None:
    samples = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    splits = {
        "calibration": InMemory("calib.npz", x=samples[:4]),
        "tuning": InMemory("tune.npz", x=samples[4:]),
        "evaluation": InMemory("eval.npz", x=samples[[5, 2, 1]]),
    }
    check_disjoint({name: splits[name] for name in ("calibration", "tuning")})
    check_disjoint(splits, allow_overlap=True)
    with pytest.raises(InputError) as caught:
        check_disjoint(splits)
    assert "2 samples stand in both `data.calibration` and `data.evaluation`" in caught.value.what
    assert "1 = 2, 2 = 1" in caught.value.what
    assert "calib.npz and eval.npz" in (caught.value.where or "")


def test_samples_that_differ_in_one_input_are_different() -> None:
    one = np.ones((1, 2), np.float32)
    check_disjoint({"a": InMemory(x=one, y=one), "b": InMemory(x=one, y=one + 1)})
    check_disjoint({"a": InMemory(x=one), "b": InMemory(x=one.astype(np.float64))})


def test_doubles_within_a_split_are_no_overlap() -> None:
    check_disjoint({"a": InMemory(x=np.zeros((3, 2))), "b": InMemory(x=np.ones((3, 2)))})


def test_fixed_batch() -> None:
    assert fixed_batch(IDS) is None
    assert fixed_batch(signature(x=("float32", (4, 3)))) == 4
    assert fixed_batch(signature(x=("float32", ("n", 3)), y=("float32", (3,)))) == 1
    assert fixed_batch(signature(x=("float32", ("n", 3)), y=("float32", ()))) == 1
    assert fixed_batch(signature(x=("float32", None))) == 1


MIXED = signature(
    image=("float32", ("n", 2, "side")),
    ids=("int64", ("n", 5)),
    flag=("bool", ("n",)),
    half=("float16", ("n", 4)),
)


def random(seed: int = 0, samples: int = 7) -> RandomDataset:
    ranges = {"image": (-3.0, 3.0), "ids": (10, 12)}
    return RandomDataset(MIXED, {"side": 3}, ranges, seed, samples)


def test_random_samples_are_the_same_in_every_batch() -> None:
    one, many = list(random().batches(1)), list(random().batches(4))
    assert [batch.size for batch in many] == [4, 3]
    for name in ("image", "ids", "flag", "half"):
        np.testing.assert_array_equal(
            np.concatenate([batch.feeds[name] for batch in one]),
            np.concatenate([batch.feeds[name] for batch in many]),
        )


def test_random_samples_keep_to_ranges_types_and_shapes() -> None:
    check_against(random(), MIXED, {"side": (3, 3)})
    (batch,) = random(samples=500).batches(500)
    image, ids = batch.feeds["image"], batch.feeds["ids"]
    assert -3 <= image.min() < -2.9
    assert 2.9 < image.max() <= 3
    assert set(np.unique(ids)) == {10, 11, 12}
    assert set(np.unique(batch.feeds["flag"])) == {False, True}
    assert batch.feeds["half"].dtype == np.float16
    assert image.shape == (500, 2, 3)


def test_random_digest_names_the_draw() -> None:
    assert random().digest == random().digest
    assert random().digest != random(seed=1).digest
    assert random().digest != random(samples=8).digest


def test_a_number_as_input_is_one_value_for_the_batch() -> None:
    wanted = signature(x=("float32", ("n", 2)), scale=("float32", ()))
    (batch,) = RandomDataset(wanted, {}, {}, 0, 1).batches(fixed_batch(wanted) or 1)
    assert batch.feeds["scale"].shape == ()
    assert batch.size == 1


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        (signature(x=("string", ("n", 2))), "no random data can be made"),
        (signature(x=("float32", ("n", "length"))), "the dim `length`"),
        (signature(x=("float32", None)), "whose rank is not known"),
    ],
)
def test_what_cannot_be_drawn_is_named(wanted: Signature, what: str) -> None:
    with pytest.raises(InputError) as caught:
        RandomDataset(wanted, {}, {}, 0, 1)
    assert what in caught.value.what
    assert caught.value.fix
