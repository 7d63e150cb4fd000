"""Detections out of a model's outputs, as boxes in the pixels of the original image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimc.measure.metric import MetricOptions

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Outputs


@dataclass(frozen=True)
class Detections:
    """Of one image: boxes [n, 4] (x1, y1, x2, y2) and scores [n], float64; classes int64 [n]."""

    boxes: Array
    scores: Array
    classes: Array


class BoxOptions(MetricOptions):
    """Where a detector's outputs are, and what its boxes mean."""

    boxes: str = "boxes"
    """The output with the boxes: [n, boxes, 4], or [boxes, 4] of all images of a batch."""
    scores: str = "scores"
    """The output with their scores: [n, boxes] or [boxes], or with one more axis for classes."""
    classes: str | None = None
    """The output with their class numbers, an integer for each. By default `classes` or `labels`;
    scores with an axis for classes need none: a box is of its best class."""
    images: str | None = None
    """The output with the number of each box's image in the batch, where boxes are [boxes, 4]."""
    form: Literal["xyxy", "yxyx", "xywh", "cxcywh"] = "xyxy"
    """What the four numbers of a box are: corners, a corner and sizes, or a center and sizes."""
    size: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Height and width of what boxes are measured in: of the model's input, or ``[1, 1]`` for
    fractions. By default boxes are in pixels of the original image."""
    letterbox: Literal["center", "corner"] | None = None
    """Where the image lies in the model's input, where it was scaled with its sides' ratio kept;
    without it, it was stretched to `size`."""
    threshold: float = 0.0
    """Boxes whose score is not above it do not count, such as those that fill up an output."""


def class_output(options: BoxOptions, outputs: Any) -> str | None:
    """The name of the output that holds classes, or None."""
    if options.classes is not None:
        return options.classes
    return next((name for name in ("classes", "labels") if name in outputs), None)


def detections(
    options: BoxOptions, outputs: Outputs, sizes: list[tuple[float, float]]
) -> list[Detections]:
    """The detections of a batch whose images have `sizes` (height, width).

    `outputs` are arrays under the names that the options give. Raises ValueError where their shapes
    do not fit one another or the number of images.
    """
    import numpy as np

    named = class_output(options, outputs)
    boxes = np.asarray(outputs[options.boxes], np.float64)
    scores = np.asarray(outputs[options.scores], np.float64)
    if scores.ndim == boxes.ndim:
        classes = scores.argmax(axis=-1)
        scores = scores.max(axis=-1)
    elif named is not None:
        classes = np.asarray(outputs[named])
    else:
        classes = np.zeros(scores.shape, np.int64)
    if boxes.ndim == 2 and classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    shape = boxes.shape[:-1]
    if boxes.shape[-1:] != (4,) or scores.shape != shape or classes.shape != shape:
        raise ValueError(
            f"boxes have the shape {list(boxes.shape)}, scores {list(scores.shape)}, classes "
            f"{list(classes.shape)}"
        )
    groups = _groups(options, outputs, boxes, len(sizes))
    found = []
    for index, (size, group) in enumerate(zip(sizes, groups, strict=True)):
        own = (index, group) if boxes.ndim == 3 else (group,)
        kept = scores[own] > options.threshold  # NaN is not
        corners = _original(options, _corners(options.form, boxes[own][kept]), size)
        fine = np.isfinite(corners).all(axis=1)
        number = classes[own][kept][fine].astype(np.int64)
        found.append(Detections(corners[fine], scores[own][kept][fine], number))
    return found


def _groups(options: BoxOptions, outputs: Outputs, boxes: Array, images: int) -> list[Any]:
    """For each image, which of its row's boxes (or of all boxes) are its own."""
    import numpy as np

    if boxes.ndim == 3:
        if len(boxes) != images:
            raise ValueError(f"boxes of {len(boxes)} images for {images}")
        return [slice(None)] * images
    if options.images is None:
        if images != 1:
            raise ValueError(f"boxes of {images} images without a number of the image")
        return [slice(None)]
    numbers = np.asarray(outputs[options.images]).reshape(-1)
    if len(numbers) != len(boxes):
        raise ValueError(f"{len(numbers)} numbers of images for {len(boxes)} boxes")
    return [np.flatnonzero(numbers == index) for index in range(images)]


def _corners(form: str, boxes: Array) -> Array:
    """As x1, y1, x2, y2."""
    import numpy as np

    if form == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if form == "xyxy":
        return boxes
    corner, size = boxes[:, :2], boxes[:, 2:]
    if form == "cxcywh":
        corner = corner - size / 2
    return np.concatenate([corner, corner + size], axis=1)


def _original(options: BoxOptions, boxes: Array, image: tuple[float, float]) -> Array:
    """In pixels of the image of size `image` (height, width)."""
    import numpy as np

    if options.size is None:
        return boxes
    (height, width), (down, across) = image, options.size
    if options.letterbox is None:
        scale = np.array([width / across, height / down])
        stretched: Array = boxes * np.tile(scale, 2)
        return stretched
    factor = min(down / height, across / width)
    shift = np.array([across - width * factor, down - height * factor]) / 2
    if options.letterbox == "corner":
        shift = np.zeros(2)
    unshifted: Array = (boxes - np.tile(shift, 2)) / factor
    return unshifted
