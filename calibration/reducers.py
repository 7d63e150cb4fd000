"""What is kept of values while samples stream by: sums in float64, of bounded size.

Each reducer takes arrays with `update`, in any number of batches, and gives its sums with `arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Reducer(Protocol):
    """Sums over samples."""

    def update(self, *arrays: NDArray[Any]) -> None:
        """Adds one batch of each of the reduction's values."""

    def arrays(self) -> dict[str, Floats]:
        """The sums so far, by name."""


class ChannelMoments:
    """`mean` and `square` (the mean of squares), each [channels], along one axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sums: Floats | None = None
        self._count = 0

    def update(self, *arrays: NDArray[Any]) -> None:
        """Adds one batch."""
        (array,) = arrays
        wide = np.moveaxis(array, self._axis, -1)
        wide = wide.reshape(-1, wide.shape[-1]).astype(np.float64)
        sums = np.stack([wide.sum(axis=0), np.square(wide).sum(axis=0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(wide)

    def arrays(self) -> dict[str, Floats]:
        """`mean` and `square`."""
        assert self._sums is not None
        mean, square = self._sums / max(1, self._count)
        return {"mean": mean, "square": square}


class ChannelMaximum:
    """`maximum` of the absolute values, [channels], along one axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._maximum: Floats | None = None

    def update(self, *arrays: NDArray[Any]) -> None:
        """Adds one batch."""
        (array,) = arrays
        wide = np.moveaxis(array, self._axis, -1)
        most = np.abs(wide.reshape(-1, wide.shape[-1])).max(axis=0, initial=0.0).astype(np.float64)
        self._maximum = most if self._maximum is None else np.maximum(self._maximum, most)

    def arrays(self) -> dict[str, Floats]:
        """`maximum`."""
        assert self._maximum is not None
        return {"maximum": self._maximum}


class Products:
    """What the squared error of a linear layer needs: of its inputs x and of wanted outputs y.

    With the layer as a product of rows x [K] and a matrix [K, O] in each of G groups: `gram`
    [G, K, K] is the mean of ``x^T x``, `cross` [G, K, O] of ``x^T y``, `inputs` [G, K] of x and
    `outputs` [G, O] of y. A convolution's rows are its windows in the order of the weight
    (channels, then space); `window` gives its kernel_shape, pads, strides and dilations. Of each
    sample at most `positions` rows are taken, the same ones on every run.
    """

    def __init__(
        self,
        groups: int = 1,
        window: dict[str, list[int]] | None = None,
        positions: int = 64,
        seed: int = 0,
    ) -> None:
        self._groups = groups
        self._window = window
        self._positions = positions
        self._rng = np.random.default_rng(seed)
        self._sums: list[Floats] = []
        self._rows = 0

    def update(self, *arrays: NDArray[Any]) -> None:
        """Adds one batch of x and of y."""
        x, y = arrays
        for start in range(len(x)):
            self._add(x[start : start + 1], y[start : start + 1])

    def _add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Adds one sample."""
        if self._window is None:
            rows = x.reshape(1, -1, x.shape[-1])
            wanted = y.reshape(1, -1, y.shape[-1])
        else:
            rows = windows(x, self._groups, **self._window)
            wanted = np.moveaxis(y.reshape(self._groups, -1, *y.shape[2:]), 1, -1)
            wanted = wanted.reshape(self._groups, -1, wanted.shape[-1])
        if rows.shape[1] > self._positions:
            chosen = np.sort(self._rng.choice(rows.shape[1], self._positions, replace=False))
            rows, wanted = rows[:, chosen], wanted[:, chosen]
        rows, wanted = rows.astype(np.float64), wanted.astype(np.float64)
        turned = rows.transpose(0, 2, 1)
        sums = [turned @ rows, turned @ wanted, rows.sum(axis=1), wanted.sum(axis=1)]
        known = self._sums
        self._sums = [a + b for a, b in zip(known, sums, strict=True)] if known else sums
        self._rows += rows.shape[1]

    def arrays(self) -> dict[str, Floats]:
        """`gram`, `cross`, `inputs`, `outputs`."""
        names = ("gram", "cross", "inputs", "outputs")
        sums = zip(names, self._sums, strict=True)
        return {name: total / max(1, self._rows) for name, total in sums}


def windows(
    x: NDArray[Any],
    groups: int,
    kernel_shape: Sequence[int],
    pads: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> NDArray[Any]:
    """The windows of a convolution over one sample x [1, C, ...]: [groups, positions, C / groups *
    kernel], padded with zeros."""
    rank = len(kernel_shape)
    padded = np.pad(x[0], [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(1, rank + 1)))
    steps = [slice(None, None, s) for s in strides]
    holes = [slice(None, None, d) for d in dilations]
    view = view[(slice(None), *steps, *holes)]  # [C, positions..., kernel...]
    channels = view.shape[0] // groups
    split = view.reshape(groups, channels, *view.shape[1:]) if groups > 1 else view[None]
    order = [0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank)]
    rows = split.transpose(order)
    return rows.reshape(groups, -1, channels * int(np.prod(kernel_shape)))


KINDS = {
    "channel_moments": ChannelMoments,
    "channel_maximum": ChannelMaximum,
    "products": Products,
}
"""By the name that a `Reduction` gives."""
