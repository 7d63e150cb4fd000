"""The criteria of width pruning against their formulas, written out by hand on two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.calibration.npz import NpzSource
from optimc.calibration.sample_store import StoredSamples, store_samples
from optimc.core.workbench import Workbench
from optimc.testing.workbenches import workbench

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

SAMPLES = 40
"""More than two batches of 16, the last of which is smaller."""


def network() -> Any:
    """float32 [n, 3, 6, 6] to logits [n, 4]: a convolution that another one reads."""
    torch.manual_seed(3)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(8))
    return net


def bench() -> Workbench:
    return workbench(network, {"image": torch.zeros(2, 3, 6, 6)})


def scores(importance: str, samples: str | None = None) -> Any:
    from optimc.passes._prune_width_work import survey

    told = survey(
        bench(),
        {},
        importance=importance,
        heads={},
        keep=[],
        kinds=["channels"],
        seed=0,
        samples=samples,
    )
    (group,) = told["groups"]
    assert group["name"] == "0"
    return np.array(group["scores"])


def arrays() -> tuple[Any, Any, Any]:
    """The first filters, the scales of their normalisation, and the weights that read them."""
    net = network()
    return tuple(net[n].weight.detach().double().numpy() for n in (0, 1, 3))  # type: ignore[return-value]


def test_norms_are_of_the_filters_that_make_a_channel() -> None:
    filters, _, _ = arrays()
    assert np.allclose(scores("l1"), np.abs(filters).sum(axis=(1, 2, 3)))
    assert np.allclose(scores("l2"), np.sqrt((filters**2).sum(axis=(1, 2, 3))))


def test_the_groups_norm_is_of_all_that_is_bound_to_a_channel() -> None:
    filters, scales, readers = arrays()
    squares = (filters**2).sum(axis=(1, 2, 3)) + scales**2 + (readers**2).sum(axis=(0, 2, 3))
    assert np.allclose(scores("group_norm"), np.sqrt(squares))


def test_the_scale_of_batch_normalisation_counts_by_its_magnitude() -> None:
    _, scales, _ = arrays()
    assert np.allclose(scores("bn_scale"), np.abs(scales))


@pytest.mark.parametrize("labelled", [True, False])
def test_taylor_is_the_square_of_weight_times_gradient_by_batch(
    tmp_path: Path, labelled: bool
) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        images=rng.normal(size=(SAMPLES, 3, 6, 6)).astype(np.float32),
        labels=rng.integers(0, 4, SAMPLES),
    )
    labels = "labels" if labelled else None
    source = NpzSource(npz="data.npz", inputs={"image": "images"}, labels=labels)
    store_samples(source.open(tmp_path, 0), tmp_path / "samples")

    net, squares = network().eval(), []
    for batch in StoredSamples(tmp_path / "samples").batches(16, np.random.default_rng(0)):
        net.zero_grad()
        logits = net(torch.from_numpy(np.array(batch.feeds["image"])))
        if batch.labels is None:
            loss = logits.square().mean() / 2
        else:
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels))
        loss.backward()
        product = (net[0].weight * net[0].weight.grad).detach().double()
        squares.append(product.sum(dim=(1, 2, 3)).square().numpy())
    assert len(squares) == 3
    found = scores("taylor", str(tmp_path / "samples"))
    assert np.allclose(found, np.mean(squares, axis=0), rtol=1e-4)
