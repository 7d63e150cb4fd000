"""The inputs of the worst samples, small, for the report: pictures and texts."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from optimc.report.samples import MOST_TEXT, ShownSample
from optimc.report.verdict import shipped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.report.schema import Report

_SIDE = 128
"""Pixels of a picture's longer side; larger ones are thinned out."""
_LEAST_SIDE = 4
"""An array with a smaller side is no image."""
_MOST_READ = 20_000
"""Samples that are read to find the images; decoding more would take longer than it is worth."""
_MOST_SHOWN = 24


def shown_samples(report: Report, dataset: Dataset | None) -> tuple[ShownSample, ...]:
    """The inputs of all worst samples that the report names, as far as they can be shown."""
    if dataset is None:
        return ()
    per = dataset.samples_per_label
    numbers = [number for number in worst_numbers(report) if number * per < len(dataset)]
    texts = {number: dataset.text_of(number * per) for number in numbers}
    wanted = [number * per for number in numbers if not texts[number]]
    pictures = _pictures(dataset, wanted)
    made = []
    for number in numbers:
        png = pictures.get(number * per)
        if texts[number] or png is not None:
            short = tuple(_short(text) for text in texts[number])
            made.append(ShownSample(number=number, texts=short, png=png))
    return tuple(made)


def worst_numbers(report: Report) -> list[int]:
    """The numbers of the worst samples that can be shown.

    Those of what ships come first, then the worst one of each cell and metric, then the next ones.
    """
    ships = shipped(report)
    found: list[int] = []
    for wanted in (True, False):
        lists = [
            [sample.number for sample in metric.worst]
            for cell in report.results
            if (cell in ships) == wanted and isinstance(cell.metrics, Mapping)
            for metric in cell.metrics.values()
        ]
        found += [n for row in zip_longest(*lists) for n in row if n is not None]
    return list(dict.fromkeys(found))[:_MOST_SHOWN]


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _pictures(dataset: Dataset, wanted: Iterable[int]) -> dict[int, str]:
    """Base64 of PNG by sample number; nothing where no input looks like an image."""
    left = {number for number in wanted if number < _MOST_READ}
    name = next((k for k, spec in dataset.sample_specs().items() if _is_image(spec.shape)), None)
    found: dict[int, str] = {}
    if not left or name is None:
        return found
    for batch in dataset.batches(64):
        for row, number in enumerate(batch.numbers):
            if number in left and _is_image(batch.feeds[name].shape[1:]):
                found[number] = base64.b64encode(png(batch.feeds[name][row])).decode()
                left.discard(number)
        if not left or min(batch.numbers) > max(left) + 10_000:
            break
    return found


def _is_image(shape: Any) -> bool:
    return _channels_axis(tuple(shape or ())) is not None


def _channels_axis(shape: tuple[Any, ...]) -> int | None:
    """Where the channels of an image of this shape stand; None where it is none."""
    if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
        return None
    for axis, sides in ((0, shape[1:]), (2, shape[:2])):
        if shape[axis] in (1, 3) and min(sides) >= _LEAST_SIDE:
            return axis
    return None


def png(image: NDArray[Any]) -> bytes:
    """An image [c, h, w] or [h, w, c] of one or three channels as a PNG of at most 128 pixels a
    side; its values are stretched to the whole range, so that normalized ones can be seen.

    PNG: ISO/IEC 15948, here without filters, by zlib.
    """
    import numpy as np

    pixels = np.asarray(image, dtype=np.float64)
    if _channels_axis(pixels.shape) == 0:
        pixels = np.moveaxis(pixels, 0, 2)
    step = -(-max(pixels.shape[:2]) // _SIDE)
    drawn = _stretched(pixels[::step, ::step])
    height, width, channels = drawn.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter
    rows[:, 1:] = drawn.reshape(height, -1)
    color = 2 if channels == 3 else 0
    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _stretched(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    import numpy as np

    finite = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    scaled = (finite - low) / (high - low) if high > low else finite * 0.0
    stretched: NDArray[np.uint8] = np.round(scaled * 255).astype(np.uint8)
    return stretched


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
