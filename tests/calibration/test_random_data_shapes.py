"""Random data for models whose inputs share no axis for samples."""

from __future__ import annotations

import pytest

from optimc.calibration.checks import fixed_batch
from optimc.calibration.random_data import RandomDataset
from optimc.core.model import Signature, TensorSpec


def _signature(**shapes: tuple[int | str, ...]) -> Signature:
    return Signature(tuple(TensorSpec(n, "float32", s) for n, s in shapes.items()), ())


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": ("batch", 2), "table": (3, 4)},
        {"x": (2, 4), "table": (3, 4)},
        {"x": (3, 4), "flag": ()},
        {"x": (0, 4)},
        {"x": ()},
    ],
)
def test_every_feed_has_the_shapes_that_the_model_wants(
    shapes: dict[str, tuple[int | str, ...]],
) -> None:
    wanted = _signature(**shapes)
    data = RandomDataset(wanted, {}, {}, seed=0, samples=3)
    batches = list(data.batches(fixed_batch(wanted) or 1))
    assert len(batches) == 3
    for batch in batches:
        for name, shape in shapes.items():
            fixed = tuple(1 if isinstance(dim, str) else dim for dim in shape)
            assert batch.feeds[name].shape == fixed


def test_a_fixed_axis_of_three_takes_three_samples_a_feed() -> None:
    wanted = _signature(x=(3, 4), y=(3,))
    data = RandomDataset(wanted, {}, {}, seed=0, samples=6)
    assert [b.feeds["x"].shape for b in data.batches(fixed_batch(wanted) or 1)] == [(3, 4)] * 2
