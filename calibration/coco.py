"""Boxes of COCO's `instances` files (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

MAX_FILE_BYTES = 1 << 30
_FIX = "write it as COCO does: images, annotations and categories"


@dataclass(frozen=True)
class CocoImage:
    """One image: its file, its size as the annotations know it (None where they do not say it),
    and its label: `boxes` float32 [n, 4] (x1, y1, x2, y2 in pixels), `classes` int64 [n], `crowd`
    bool [n], `areas` float64 [n] (of the object, not of its box), `image_id` int64 [],
    `image_size` int64 [2] (height, width), added when the image is known."""

    name: str
    size: tuple[int, int] | None
    label: dict[str, Array]


def read_coco(path: Path, label_map: Mapping[str, int] | None) -> list[CocoImage]:
    """Every image of the file in its order, those without objects too.

    Classes are numbered from 0 in the order of the category ids, or by `label_map` (names of
    categories; those that it does not name are refused where an annotation has them). Raises
    InputError for files that are missing, not JSON, or not of COCO's form.
    """
    content = _content(path)
    where = str(path)
    classes = _classes(content, label_map, where)
    objects: dict[int, list[list[float]]] = {}
    images: dict[int, tuple[str, tuple[int, int] | None]] = {}
    for index, entry in enumerate(_list(content, "images", where)):
        place = f"{where}: images[{index}]"
        name = entry.get("file_name")
        if not isinstance(name, str):
            raise InputError("has no `file_name`", where=place, fix=_FIX)
        images[_new(_id(entry, "id", place), images, place)] = (name, _size(entry))
    for index, entry in enumerate(_list(content, "annotations", where)):
        place = f"{where}: annotations[{index}]"
        image = _id(entry, "image_id", place)
        if image not in images:
            raise InputError(
                f"belongs to the image {image}, which is not listed", where=place, fix=_FIX
            )
        objects.setdefault(image, []).append(_object(entry, classes, place))
    if not images:
        raise InputError("lists no images", where=where, fix=_FIX)
    return [
        CocoImage(name, size, _label(number, objects.get(number, [])))
        for number, (name, size) in images.items()
    ]


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"is larger than {MAX_FILE_BYTES / 1e9:.1f} GB", where=str(path))
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise InputError(f"is not JSON: {error.msg}", where=where, fix=_FIX) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {reason}", where=str(path), fix=_FIX) from error
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", where=str(path), fix=_FIX)
    return content


def _list(content: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"has no list `{key}` of objects", where=where, fix=_FIX)
    return entries


def _classes(
    content: Mapping[str, Any], label_map: Mapping[str, int] | None, where: str
) -> dict[int, int | InputError]:
    """From a category's id to its class, or to what is wrong with using it."""
    found: dict[int, int | InputError] = {}
    names: dict[int, tuple[str, str]] = {}
    for index, entry in enumerate(_list(content, "categories", where)):
        place = f"{where}: categories[{index}]"
        number = _new(_id(entry, "id", place), names, place)
        names[number] = (str(entry.get("name", "")), place)
    for number, category in enumerate(sorted(names)):
        name, place = names[category]
        if label_map is None:
            found[category] = number
        elif name in label_map:
            found[category] = label_map[name]
        else:
            found[category] = unknown_name("label", name, label_map, where=place)
    return found


def _id(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise InputError(f"has no whole number `{key}`", where=where, fix=_FIX)
    return value


def _new(number: int, known: Mapping[int, Any], where: str) -> int:
    if number in known:
        raise InputError(f"has the id {number} of an earlier entry", where=where, fix=_FIX)
    return number


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _object(
    entry: Mapping[str, Any], classes: Mapping[int, int | InputError], where: str
) -> list[float]:
    """x1, y1, x2, y2, class, crowd, area."""
    category = _id(entry, "category_id", where)
    if category not in classes:
        raise InputError(f"has the category {category}, which is not listed", where=where, fix=_FIX)
    known = classes[category]
    if isinstance(known, InputError):
        raise known
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(side) for side in box):
        raise InputError("has no `bbox` of four numbers", where=where, fix="[x, y, width, height]")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise InputError(f"has a box of {width} x {height}", where=where, fix=_FIX)
    area = entry.get("area")
    crowd = bool(entry.get("iscrowd", 0))
    return [x, y, x + width, y + height, known, crowd, area if _finite(area) else width * height]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _label(image: int, objects: list[list[float]]) -> dict[str, Array]:
    import numpy as np

    table = np.array(objects, np.float64).reshape(-1, 7)
    return {
        "boxes": table[:, :4].astype(np.float32),
        "classes": table[:, 4].astype(np.int64),
        "crowd": table[:, 5].astype(bool),
        "areas": table[:, 6],
        "image_id": np.array(image, np.int64),
    }
