"""The steps of a transform that change the size of images: resize, center_crop, letterbox, pad.

They work on pixels as they are decoded, uint8 [n, height, width, channels] with 1 or 3 channels, so
they stand before `nchw`, `divide` and `normalize`. Resampling is Pillow's (`Image.resize`, which
filters when it makes images smaller, as torchvision does on PIL images and with `antialias=True` on
tensors). Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` round them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from optimc.calibration.options import Options
from optimc.core.errors import InputError, missing_extra

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

MAX_SIDE = 16_384
"""Pixels of a side that a step may ask for."""
MAX_RESIZED = 1 << 27
"""Pixels of an image that a resize by its shorter side may make (of a very long one)."""
IGNORED_CLASS = 255
"""What masks are filled up with: the class that metrics leave out."""

Side: TypeAlias = Annotated[int, Field(ge=1, le=MAX_SIDE)]
ImageSize: TypeAlias = Annotated[
    Annotated[Side, Tag("one")]
    | Annotated[list[Side], Field(min_length=2, max_length=2), Tag("two")],
    Discriminator(lambda value: "two" if isinstance(value, list | tuple) else "one"),
]
Fill: TypeAlias = Annotated[int, Field(ge=0, le=255)]
Interpolation: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class SizeStep(Options, ABC):
    """Base of the steps that change the size of images."""

    @abstractmethod
    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that images of this size get."""

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """uint8 [n, height, width, channels], in the new size."""

    @abstractmethod
    def apply_mask(self, x: Array) -> Array:
        """Class numbers [n, height, width] in the new size: nearest neighbour, filled with 255."""


class ResizeOptions(Options):
    """To which size, and how."""

    size: ImageSize
    """`[height, width]`, or one number: the shorter side gets it, and the longer one keeps the
    proportion, rounded down (torchvision's `Resize`, `shortest_edge` of Hugging Face)."""
    interpolation: Interpolation = "bilinear"
    """Pillow's filter."""


class Resize(SizeStep):
    """``{resize: {size: 256, interpolation: bicubic}}``: Pillow's `Image.resize`."""

    resize: ResizeOptions
    """To which size, and how."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """See `SizeStep`."""
        size = self.resize.size
        if isinstance(size, list):
            return size[0], size[1]
        longer = int(size * max(height, width) / min(height, width))
        if size * longer > MAX_RESIZED:
            raise InputError(
                f"an image of {height} x {width} would become {size} x {longer}",
                where="transform",
                fix="remove the image, or resize to `[height, width]`",
            )
        return (size, longer) if height <= width else (longer, size)

    def apply(self, x: Array) -> Array:
        """See `SizeStep`."""
        _check(x, "resize")
        size = self.output_size(*x.shape[1:3])
        return _each(x, lambda image: _resized(image, size, self.resize.interpolation))

    def apply_mask(self, x: Array) -> Array:
        """See `SizeStep`."""
        size = self.output_size(*x.shape[1:3])
        return _each(x, lambda mask: _resized(mask, size, "nearest"))


class CenterCrop(SizeStep):
    """``{center_crop: 224}``: the middle of the image, as torchvision's `CenterCrop` cuts it.

    Images that are smaller are filled with 0 on both sides first.
    """

    center_crop: ImageSize
    """`[height, width]`, or one number for both."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """See `SizeStep`."""
        size = self.center_crop
        return (size[0], size[1]) if isinstance(size, list) else (size, size)

    def apply(self, x: Array) -> Array:
        """See `SizeStep`."""
        _check(x, "center_crop")
        return self._cropped(x, 0)

    def apply_mask(self, x: Array) -> Array:
        """See `SizeStep`."""
        return self._cropped(x, IGNORED_CLASS)

    def _cropped(self, x: Array, fill: int) -> Array:
        height, width = self.output_size(*x.shape[1:3])
        missing = [max(0, height - x.shape[1]), max(0, width - x.shape[2])]
        x = _filled(x, [(m // 2, m - m // 2) for m in missing], fill)
        top, left = round((x.shape[1] - height) / 2.0), round((x.shape[2] - width) / 2.0)
        return x[:, top : top + height, left : left + width]


class LetterboxOptions(Options):
    """To which size, and how."""

    size: ImageSize
    """`[height, width]`, or one number for both."""
    interpolation: Interpolation = "bilinear"
    """Pillow's filter."""
    fill: Fill = 114
    """The value of the bars, in all channels."""
    align: Literal["center", "corner"] = "center"
    """Whether the image stands in the middle, or in the upper left corner."""


class Letterbox(SizeStep):
    """``{letterbox: {size: [640, 640]}}``: scaled to fit inside, with bars on the sides.

    The scale is ``min(height / image height, width / image width)``; both sides are rounded to the
    nearest pixel. With an odd number of pixels to fill, the upper or left bar is the smaller one
    (as Ultralytics does it, which resamples with OpenCV, so that pixels differ a little).
    """

    letterbox: LetterboxOptions
    """To which size, and how."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """See `SizeStep`."""
        size = self.letterbox.size
        return (size[0], size[1]) if isinstance(size, list) else (size, size)

    def placed(self, height: int, width: int) -> tuple[float, int, int]:
        """Scale, top and left of an image of this size in the result: x' = x * scale + left."""
        size = self.output_size(height, width)
        scale = min(size[0] / height, size[1] / width)
        inner = _scaled(height, width, scale)
        if self.letterbox.align == "corner":
            return scale, 0, 0
        return scale, (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2

    def apply(self, x: Array) -> Array:
        """See `SizeStep`."""
        _check(x, "letterbox")
        return self._boxed(x, self.letterbox.interpolation, self.letterbox.fill)

    def apply_mask(self, x: Array) -> Array:
        """See `SizeStep`."""
        return self._boxed(x, "nearest", IGNORED_CLASS)

    def _boxed(self, x: Array, interpolation: Interpolation, fill: int) -> Array:
        before = (x.shape[1], x.shape[2])
        size, (scale, top, left) = self.output_size(*before), self.placed(*before)
        inner = _scaled(*before, scale)
        x = _each(x, lambda image: _resized(image, inner, interpolation))
        sides = [(top, size[0] - inner[0] - top), (left, size[1] - inner[1] - left)]
        return _filled(x, sides, fill)


class PadOptions(Options):
    """To which multiple, and with what."""

    multiple_of: Side
    """Height and width become multiples of this."""
    fill: Fill = 0
    """The value of the new pixels, in all channels."""


class Pad(SizeStep):
    """``{pad: {multiple_of: 32}}``: new pixels at the bottom and on the right."""

    pad: PadOptions
    """To which multiple, and with what."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """See `SizeStep`."""
        step = self.pad.multiple_of
        return -(-height // step) * step, -(-width // step) * step

    def apply(self, x: Array) -> Array:
        """See `SizeStep`."""
        _check(x, "pad")
        return self._padded(x, self.pad.fill)

    def apply_mask(self, x: Array) -> Array:
        """See `SizeStep`."""
        return self._padded(x, IGNORED_CLASS)

    def _padded(self, x: Array, fill: int) -> Array:
        size = self.output_size(*x.shape[1:3])
        return _filled(x, [(0, size[0] - x.shape[1]), (0, size[1] - x.shape[2])], fill)


def pillow_image() -> ModuleType:
    """Pillow's `Image`. Raises UnavailableError without the extra."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("images", "reading and resizing images") from error
    return Image


def _check(x: Array, step: str) -> None:
    if x.ndim != 4 or x.dtype.name != "uint8" or x.shape[3] not in (1, 3):
        shape = ", ".join(map(str, x.shape[1:]))
        raise InputError(
            f"the step `{step}` needs pixels: uint8[height, width, 1 or 3]; the samples are "
            f"{x.dtype}[{shape}] here",
            where="transform",
            fix=f"put `{step}` before `nchw`, `divide` and `normalize`",
        )


def _each(x: Array, change: Callable[[Array], Array]) -> Array:
    import numpy as np

    return np.stack([change(image) for image in x])


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: Array, size: tuple[int, int], interpolation: Interpolation) -> Array:
    """[height, width] or [height, width, 1 or 3] in another size."""
    import numpy as np

    if image.shape[:2] == size:
        return image
    pillow = pillow_image()
    flat = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    made = pillow.fromarray(np.ascontiguousarray(flat))
    resized: Array = np.asarray(
        made.resize((size[1], size[0]), pillow.Resampling[interpolation.upper()])
    )
    return resized.reshape(*size, *image.shape[2:])


def _filled(x: Array, sides: Sequence[tuple[int, int]], fill: int) -> Array:
    """[n, height, width, ...] with new pixels (before, after) along height and width."""
    import numpy as np

    if not any(map(any, sides)):
        return x
    return np.pad(x, [(0, 0), *sides, *[(0, 0)] * (x.ndim - 3)], constant_values=fill)
