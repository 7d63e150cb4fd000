"""The losses of `train` against their formulas, written out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import CellError
from optimc.passes.train import Train

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(7)
OWN, OTHER = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))
"""Logits of student and teacher."""
MAPS = RNG.normal(size=(5, 6, 3, 2)), RNG.normal(size=(5, 6, 3, 2))
"""Features [n, channels, height, width] of both."""
TOKENS = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))
"""Features [n, tokens, width] of both."""


def loss(
    options: dict[str, Any],
    *,
    own: Any = OWN,
    other: Any = OTHER,
    features: Any = MAPS,
    labels: Any = None,
    share: float = 0.0,
    feeds: Any = None,
) -> float:
    """The whole objective for one batch."""
    from optimc.passes._train_losses import Objective
    from optimc.passes._train_step import Step

    step = Step(
        {name: torch.from_numpy(array) for name, array in (feeds or {}).items()},
        None if labels is None else torch.from_numpy(np.asarray(labels)),
        0,
        share,
        torch.nn.Identity(),
        lambda feeds: {"logits": torch.from_numpy(own)},
        lambda: {"logits": torch.from_numpy(other)},
        {"layer": torch.from_numpy(features[0])},
        {"layer": torch.from_numpy(features[1])},
    )
    return float(Objective(Train(**options), Path(), labelled=labels is not None)(step))


def distilled(name: str, **options: Any) -> dict[str, Any]:
    return {"distill": {"losses": [{name: {"weight": 1.0, **options}}]}}


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("heat", [1.0, 4.0])
def test_logits_are_compared_as_soft_classes(heat: float) -> None:
    """T^2 KL(teacher || student): Hinton et al. 2015."""
    p, q = softmax(OTHER / heat), softmax(OWN / heat)
    wanted = heat**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert loss(distilled("logits", temperature=heat)) == pytest.approx(wanted)


def test_hints_are_mean_squares() -> None:
    """Romero et al. 2015."""
    pairs = {"layer": "layer"}
    wanted = ((MAPS[0] - MAPS[1]) ** 2).mean()
    assert loss(distilled("features", pairs=pairs)) == pytest.approx(wanted)


def test_hints_leave_padding_out() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    kept = ((TOKENS[0] - TOKENS[1]) ** 2)[mask.astype(bool)].mean()
    found = loss(
        distilled("features", pairs={"layer": "layer"}),
        features=TOKENS,
        feeds={"attention_mask": mask},
    )
    assert found == pytest.approx(kept)


def test_attention_maps_are_sums_of_squares_of_length_one() -> None:
    """Zagoruyko and Komodakis 2017; their own code takes the mean over the places."""
    maps = [unit((x**2).sum(axis=1).reshape(5, -1)) for x in MAPS]
    wanted = ((maps[0] - maps[1]) ** 2).mean()
    found = loss(distilled("attention_transfer", pairs={"layer": "layer"}))
    assert found == pytest.approx(wanted)
    tokens = [unit((x**2).sum(axis=-1)) for x in TOKENS]
    found = loss(distilled("attention_transfer", pairs={"layer": "layer"}), features=TOKENS)
    assert found == pytest.approx(((tokens[0] - tokens[1]) ** 2).mean())


def test_similarity_of_samples_is_kept() -> None:
    """Tung and Mori 2019: ``|G_T - G_S|^2 / b^2``, the rows of both of length one."""
    narrow = MAPS[0][:, :2]
    rows = [unit(x.reshape(5, -1) @ x.reshape(5, -1).T) for x in (narrow, MAPS[1])]
    wanted = ((rows[0] - rows[1]) ** 2).sum() / 5**2
    found = loss(
        distilled("similarity_preserving", pairs={"layer": "layer"}), features=(narrow, MAPS[1])
    )
    assert found == pytest.approx(wanted)


def test_outputs_are_compared_by_angle_or_squares() -> None:
    cosine = (unit(OWN) * unit(OTHER)).sum(axis=1)
    assert loss(distilled("embedding")) == pytest.approx((1 - cosine).mean())
    wanted = ((OWN - OTHER) ** 2).mean()
    assert loss(distilled("embedding", kind="mse")) == pytest.approx(wanted)


def test_several_pairs_are_a_mean_and_several_losses_a_sum() -> None:
    from optimc.passes._train_losses import Objective

    one = loss(distilled("embedding", kind="mse"))
    options = {
        "distill": {
            "losses": [
                {"embedding": {"kind": "mse", "weight": 2.0}},
                {"logits": {"weight": 0.5, "temperature": 2.0}},
            ]
        }
    }
    both = loss(options)
    assert both == pytest.approx(2 * one + 0.5 * loss(distilled("logits", temperature=2.0)))
    assert Objective(Train(**options), Path(), labelled=False).parameters() == []


def test_a_ramp_goes_in_a_straight_line() -> None:
    options = distilled("embedding", kind="mse", weight={"first": 1.0, "last": 3.0})
    plain = loss(distilled("embedding", kind="mse"))
    found = [loss(options, share=share) / plain for share in (0.0, 0.25, 1.0)]
    assert found == pytest.approx([1.0, 1.5, 3.0])


def log_softmax(x: Any) -> Any:
    return np.log(softmax(x))


CLASSES = np.array([0, 3, 1, 1, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    """Szegedy et al. 2016: the share of each label that is spread over all classes."""
    shares = (1 - smoothing) * np.eye(4)[CLASSES] + smoothing / 4
    wanted = -(shares * log_softmax(OWN)).sum(axis=1).mean()
    assert loss({"label_smoothing": smoothing}, labels=CLASSES) == pytest.approx(wanted)


def test_amounts_and_yes_or_no() -> None:
    labels = RNG.random((5, 4))
    assert loss({}, labels=labels) == pytest.approx(((OWN - labels) ** 2).mean())
    assert loss({"loss": "l1"}, labels=labels) == pytest.approx(np.abs(OWN - labels).mean())
    p = 1 / (1 + np.exp(-OWN))
    wanted = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    assert loss({"loss": "binary_cross_entropy"}, labels=labels) == pytest.approx(wanted)


def test_labels_beside_a_teacher_count_a_tenth_unless_told() -> None:
    teacher, labels = loss(distilled("logits")), loss({}, labels=CLASSES)
    assert loss(distilled("logits"), labels=CLASSES) == pytest.approx(teacher + 0.1 * labels)
    told = distilled("logits")
    told["distill"]["labels"] = 0.5
    assert loss(told, labels=CLASSES) == pytest.approx(teacher + 0.5 * labels)


def test_widths_that_differ_need_a_map_and_other_sizes_are_errors() -> None:
    small = MAPS[0][:, :, :2]
    with pytest.raises(CellError, match=r"features: `layer` gives \[5, 6, 2, 2\]"):
        loss(distilled("features", pairs={"layer": "layer"}), features=(small, MAPS[1]))
