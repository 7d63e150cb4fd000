"""Image files from strangers: what a header claims is held against a cap before pixels are read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from optimc.calibration.image_steps import pillow_image
from optimc.core.errors import InputError, OptimcError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Color: TypeAlias = Literal["rgb", "gray"]

MAX_PIXELS = 100_000_000
"""Pixels of an image; compressed files may claim any number."""
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded. Pillow knows more, of which some start other programs (EPS)."""
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))

_ORIENTATION = 0x0112
_MODES = {"rgb": "RGB", "gray": "L"}
_DEEP_MODES = ("I", "F")
_MASK_MODES = ("1", "L", "P", "I", "I;16")


def image_names(folder: Path) -> list[str]:
    """The images below `folder` by their suffix, relative to it, sorted. Hidden files are left out.

    Links to folders are followed, but for those that lead back. Raises InputError where there is no
    image.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        reason = error.strerror or str(error)
        raise InputError(f"cannot be read: {reason}", where=str(error.filename or folder))

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(Path(parent) / name)
        ]
        place = Path(parent).relative_to(folder)
        found += [
            (place / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    if not found:
        raise InputError(
            "holds no images",
            where=str(folder),
            fix=f"name the folder with the images ({', '.join(sorted(SUFFIXES))})",
        )
    return sorted(found)


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in, so that following it would not end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def read_image(path: Path, color: Color, orient: bool) -> Array:
    """uint8 [height, width, 3 or 1], turned upright as its EXIF orientation says if `orient`.

    Palettes and transparency are converted as Pillow's `convert` does (alpha is dropped). Raises
    InputError for what is missing, damaged, of another format, over `MAX_PIXELS`, or of more than
    8 bits, which `convert` would cut off at 255.
    """
    import numpy as np

    with _opened(path) as image:
        _check_depth(image, path)
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image) if orient else image
        array: Array = np.asarray(upright.convert(_MODES[color]))
    return array.reshape(*array.shape[:2], -1)


def image_size(path: Path, orient: bool) -> tuple[int, int]:
    """Height and width of what `read_image` gives, from the header alone."""
    with _opened(path) as image:
        _check_depth(image, path)
        width, height = image.size
        turned = orient and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> Array:
    """Class numbers [height, width], uint8 or int32: the stored values, of a palette its indices.

    Raises InputError as `read_image`, and for images in colour.
    """
    import numpy as np

    with _opened(path) as image:
        if image.mode not in _MASK_MODES:
            raise InputError(
                f"is a mask in colour ({image.mode}), not of class numbers",
                where=str(path),
                fix="store one class number for each pixel: PNG in grey or with a palette",
            )
        array: Array = np.asarray(image)
    return array.astype(np.uint8 if array.dtype.itemsize == 1 else np.int32)


def _check_depth(image: PIL.Image.Image, path: Path) -> None:
    if image.mode in _DEEP_MODES or image.mode.startswith("I;16"):
        raise InputError(
            f"holds pixels of more than 8 bits ({image.mode}), whose range is not known here",
            where=str(path),
            fix="save it with 8 bits, or name arrays: npz or npy, with `divide` in `transform`",
        )


@contextmanager
def _opened(path: Path) -> Iterator[PIL.Image.Image]:
    """The image with its header read; whatever Pillow raises in the block becomes one message."""
    pillow = pillow_image()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; a bomb is refused below
            with pillow.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"claims {image.width:,} x {image.height:,} pixels, over the cap of "
                        f"{MAX_PIXELS:,}",
                        where=str(path),
                        fix="remove it, or make it smaller",
                    )
                yield image
    except (OptimcError, MemoryError):
        raise
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        said = error.strerror if isinstance(error, OSError) else None
        reason = said or str(error).replace(str(path), path.name)
        raise InputError(
            f"cannot be read as an image: {reason}",
            where=str(path),
            fix=f"remove it or save it again; formats: {', '.join(FORMATS)}",
        ) from error
