"""Samples of pixels from image files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from optimc.calibration.coco import read_coco
from optimc.calibration.dataset import joined_labels
from optimc.calibration.grouped import GroupedDataset, Sample, Shapes
from optimc.calibration.image_files import image_names, image_size, read_image, read_mask
from optimc.calibration.image_steps import SizeStep
from optimc.calibration.images import CocoLabels, CsvLabels
from optimc.calibration.labels import number_of, same_kind
from optimc.calibration.rows import read_rows
from optimc.calibration.transforms import apply, per_input
from optimc.core.digest import digest_of
from optimc.core.errors import InputError, did_you_mean
from optimc.core.files import file_sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Label, Labels
    from optimc.calibration.images import ImageSource
    from optimc.calibration.transforms import Steps

    Array = NDArray[np.generic]


@dataclass(frozen=True)
class _Entry:
    """One image: its path in the folder, and what the labels say of it."""

    name: str
    label: Any = None
    size: tuple[int, int] | None = None
    """What the annotations say, to be held against the file."""
    where: str = field(default="", compare=False)


class ImageDataset(GroupedDataset):
    """Image files, decoded one at a time and transformed.

    Labels are class numbers; or of COCO boxes a mapping with `boxes` float32 [n, 4] (x1, y1, x2, y2
    in pixels of the original image), `classes` int64 [n], `crowd` bool [n], `areas` float64 [n],
    `image_id` int64 [] and `image_size` int64 [2] (height, width of the original); or masks
    [height, width] in the size that the transform makes. Raises InputError.
    """

    tools = ("pillow",)
    shape_fix = "correct `transform` (resize, center_crop, letterbox, nchw), or `color`"

    def __init__(self, source: ImageSource, base: Path, seed: int) -> None:
        self._source = source
        self._folder = base / source.images
        self.where = str(self._folder)
        if not self._folder.is_dir():
            fix = "correct the path (it is relative to the recipe)"
            raise InputError("there is no such folder", where=self.where, fix=fix)
        self._steps = per_input(source.transform, list(source.inputs))
        entries = self._entries(base)
        chosen = source.chosen(len(entries), seed, self.where)
        self._entries_used: list[_Entry] = [entries[index] for index in chosen]
        self._masks = [self._mask_file(base, entry) for entry in self._entries_used]

    def _entries(self, base: Path) -> list[_Entry]:
        labels = self._source.labels
        if isinstance(labels, CsvLabels):
            return self._of_csv(base / labels.csv, labels)
        if isinstance(labels, CocoLabels):
            path = base / labels.coco
            return [
                _Entry(self._existing(image.name, str(path)), image.label, image.size, str(path))
                for image in read_coco(path, self._source.label_map)
            ]
        names = image_names(self._folder)
        return self._of_classes(names) if labels else [_Entry(name) for name in names]

    def _of_csv(self, path: Path, labels: CsvLabels) -> list[_Entry]:
        rows = read_rows(path, "csv", [labels.image, labels.label])
        places = [f"{path}:{row.line}" for row in rows]
        found = [
            number_of(row.values[1], self._source.label_map, place)
            for row, place in zip(rows, places, strict=True)
        ]
        entries = [
            _Entry(self._existing(row.values[0], place), label, where=place)
            for row, place, label in zip(rows, places, same_kind(found), strict=True)
        ]
        known: dict[str, _Entry] = {}
        for entry in entries:
            first = known.setdefault(entry.name, entry)
            if first.label != entry.label:
                raise InputError(
                    f"the image `{entry.name}` has the label {entry.label}, and {first.label} in "
                    f"{first.where}",
                    where=entry.where,
                    fix="keep one label for each image",
                )
        return entries

    def _of_classes(self, names: list[str]) -> list[_Entry]:
        for name in names:
            if "/" not in name:
                raise InputError(
                    "lies in no class folder",
                    where=str(self._folder / name),
                    fix="put each image into a folder named after its class",
                )
        classes = sorted({name.partition("/")[0] for name in names})
        if self._source.label_map is None:
            self._check_no_class_is_empty(classes)
        numbers = self._source.label_map or {name: index for index, name in enumerate(classes)}
        return [
            _Entry(name, number_of(name.partition("/")[0], numbers, str(self._folder / name)))
            for name in names
        ]

    def _check_no_class_is_empty(self, classes: list[str]) -> None:
        """An empty folder may be a class of the model: without it all later ones would move up."""
        for entry in sorted(self._folder.iterdir()):
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in classes:
                raise InputError(
                    "the class folder holds no image",
                    where=str(entry),
                    fix="remove it if it is no class; else number the classes yourself: "
                    "label_map: {<folder>: 0, ...}",
                )

    def _existing(self, name: str, where: str) -> str:
        """The name, if it is that of a file below the folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            fix = "write paths relative to the folder of images"
            raise InputError(f"the image `{name[:100]}` lies outside", where=where, fix=fix)
        if "\0" in name or not (self._folder / path).is_file():
            hint = did_you_mean(name, self._names)
            raise InputError(
                f"there is no image `{name[:100]}` in {self._folder}",
                where=where,
                fix=hint or "correct the name, which is relative to the folder of images",
            )
        return path.as_posix()

    @cached_property
    def _names(self) -> list[str]:
        return image_names(self._folder)[:10_000]

    def _mask_file(self, base: Path, entry: _Entry) -> Path | None:
        if self._source.masks is None:
            return None
        path = base / self._source.masks / PurePosixPath(entry.name).with_suffix(".png")
        if not path.is_file():
            raise InputError(
                f"there is no mask for the image `{entry.name}`",
                where=str(path),
                fix="masks have the path of their image, with the suffix .png",
            )
        return path

    @property
    def steps(self) -> Mapping[str, Steps]:
        """The transform of each input."""
        return self._steps

    def __len__(self) -> int:
        return len(self._entries_used)

    @property
    def has_labels(self) -> bool:
        return self._source.has_labels

    @cached_property
    def _digests(self) -> list[str]:
        """SHA-256 of every image file."""
        return [file_sha256(self._folder / entry.name) for entry in self._entries_used]

    @cached_property
    def digest(self) -> str:
        labels = [_plain(entry.label) for entry in self._entries_used]
        masks = [file_sha256(path) for path in self._masks if path is not None]
        options = [self._steps, self._source.color, self._source.orient, version("pillow")]
        return digest_of("images", self._digests, labels, masks, options)

    def name_of(self, index: int) -> str:
        return self._entries_used[index].name

    def sample_digests(self) -> list[bytes]:
        """Of the files: the same picture in another file is another sample."""
        return [
            hashlib.blake2b(digest.encode(), digest_size=16).digest() for digest in self._digests
        ]

    def labels(self) -> Iterator[Labels]:
        """Without masks and sizes, for which files would have to be decoded."""
        known = [entry.label for entry in self._entries_used if entry.label is not None]
        if known:
            yield joined_labels(known)

    def samples(self) -> Iterator[Sample]:
        for entry, mask in zip(self._entries_used, self._masks, strict=True):
            path = self._folder / entry.name
            pixels = read_image(path, self._source.color, self._source.orient)
            label = self._label(entry, pixels.shape[:2], mask)
            yield Sample(self._transformed(pixels, path), label)

    def _transformed(self, pixels: Array, path: Path) -> dict[str, Array]:
        try:
            return {name: apply(steps, pixels[None])[0] for name, steps in self._steps.items()}
        except InputError as error:
            raise InputError(error.what, where=f"{path}: {error.where}", fix=error.fix) from error

    def _label(self, entry: _Entry, size: tuple[int, ...], mask: Path | None) -> Label | None:
        import numpy as np

        if mask is not None:
            return self._mask(mask, size)
        if not isinstance(entry.label, dict):
            label: Label | None = entry.label
            return label
        if entry.size is not None and entry.size != size:
            raise InputError(
                f"the image is {size[0]} x {size[1]}, its annotations say "
                f"{entry.size[0]} x {entry.size[1]} (height x width)",
                where=f"{self._folder / entry.name}",
                fix="`orient: false` if they belong to the image as it is stored; else correct "
                "the file",
            )
        return {**entry.label, "image_size": np.array(size, np.int64)}

    def _mask(self, path: Path, size: tuple[int, ...]) -> Array:
        mask = read_mask(path)
        if mask.shape != size:
            raise InputError(
                f"the mask is {mask.shape[0]} x {mask.shape[1]}, its image {size[0]} x {size[1]} "
                "(height x width)",
                where=str(path),
                fix="`orient: false` if masks belong to the image as it is stored; else correct it",
            )
        steps = next(iter(self._steps.values()))
        for step in steps:
            if isinstance(step, SizeStep):
                mask = step.apply_mask(mask[None])[0]
        return mask

    def shape_counts(self) -> Counter[Shapes]:
        """From the files' headers alone."""
        import numpy as np

        found: Counter[Shapes] = Counter()
        known: dict[tuple[tuple[int, int], ...], Shapes] = {}
        channels = 3 if self._source.color == "rgb" else 1
        for entry in self._entries_used:
            path = self._folder / entry.name
            size = image_size(path, self._source.orient)
            after = tuple(_size_after(steps, size) for steps in self._steps.values())
            if after not in known:
                blank = np.zeros((*size, channels), np.uint8)
                known[after] = Sample(self._transformed(blank, path)).shapes
            found[known[after]] += 1
        return found


def _size_after(steps: Steps, size: tuple[int, int]) -> tuple[int, int]:
    for step in steps:
        if isinstance(step, SizeStep):
            size = step.output_size(*size)
    return size


def _plain(label: Any) -> Any:
    """The label for a digest."""
    if isinstance(label, dict):
        return {name: array.tolist() for name, array in label.items()}
    return label
