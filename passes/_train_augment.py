"""Random changes of images: what keeps the label. Numpy arrays [n, channels, height, width]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.passes._train_options import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Crop(Options):
    """Shifts each image, as if it was cropped from one with a border of zeros."""

    crop: Annotated[int, Field(ge=1)]
    """The border in pixels: the greatest shift to each side."""


Augmentation: TypeAlias = Literal["flip"] | Crop
"""`flip` mirrors half of the images from left to right."""


def augmenter(
    steps: Sequence[Augmentation],
) -> Callable[[Mapping[str, Array], np.random.Generator], Mapping[str, Array]] | None:
    """Applies `steps` to all inputs with four axes; None where there are no steps.

    The function raises PreconditionError where no input has four axes.
    """
    if not steps:
        return None

    def augment(feeds: Mapping[str, Array], rng: np.random.Generator) -> Mapping[str, Array]:
        if not any(feed.ndim == 4 for feed in feeds.values()):
            raise PreconditionError(
                "train: no input is an image [n, channels, height, width]",
                fix="leave `augment` out",
            )
        changed = dict(feeds)
        for name, feed in feeds.items():
            for step in steps if feed.ndim == 4 else ():
                feed = _flipped(feed, rng) if step == "flip" else _shifted(feed, step.crop, rng)
            changed[name] = feed
        return changed

    return augment


def _flipped(images: Array, rng: np.random.Generator) -> Array:
    import numpy as np

    turned = rng.random(len(images)) < 0.5
    flipped: Array = np.where(turned[:, None, None, None], images[..., ::-1], images)
    return flipped


def _shifted(images: Array, border: int, rng: np.random.Generator) -> Array:
    import numpy as np

    height, width = images.shape[2:]
    sides = (border, border)
    padded = np.pad(images, ((0, 0), (0, 0), sides, sides))
    tops, lefts = rng.integers(0, 2 * border + 1, (2, len(images)))
    made: Array = np.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
    return made
