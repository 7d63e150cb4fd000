"""Labels as files write them: numbers, names that a map turns into numbers, lists of either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


def number_of(value: Any, label_map: Mapping[str, int] | None, where: str) -> int | float:
    """The number of a label. Raises InputError where it is none, or not in the map."""
    if value is None or (value == "" and "" not in (label_map or {})):
        fix = "give each sample a label, or remove those that have none"
        raise InputError("has no label", where=where, fix=fix)
    if label_map is not None:
        if isinstance(value, bool) or not isinstance(value, str | int):
            fix = "leave `label_map` out where labels are numbers"
            raise InputError(f"the label {_shown(value)} is no name", where=where, fix=fix)
        if str(value) not in label_map:
            raise unknown_name("label", str(value), label_map, where=where)
        return label_map[str(value)]
    try:
        if isinstance(value, str):
            number: int | float = (
                int(value) if value.strip().lstrip("+-").isdigit() else float(value)
            )
        elif isinstance(value, int | float):
            number = int(value) if isinstance(value, bool) else value
        elif isinstance(value, Decimal):  # Parquet's type of exact numbers
            number = int(value) if value == value.to_integral_value() else float(value)
        else:
            raise ValueError
        if not (math.isfinite(number) and abs(number) < 2**63):
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(
            f"the label {_shown(value)} is no number",
            where=where,
            fix="name the right column, or give names their numbers: label_map: {<name>: 0, ...}",
        ) from None
    return number


def label_of(
    value: Any, label_map: Mapping[str, int] | None, where: str
) -> int | float | list[int | float]:
    """A number, or the numbers of a list."""
    if isinstance(value, list):
        return [number_of(item, label_map, where) for item in value]
    return number_of(value, label_map, where)


def same_kind(labels: Sequence[Any]) -> list[int | float | Array]:
    """Numbers as ints where all are whole, else as floats; lists as arrays int64 or float64 [n].

    So that the dtype of a batch's labels does not depend on the batch.
    """
    import numpy as np

    flat = [item for label in labels for item in (label if isinstance(label, list) else [label])]
    kind = int if all(isinstance(item, int) for item in flat) else float
    dtype = np.int64 if kind is int else np.float64
    return [np.array(x, dtype) if isinstance(x, list) else kind(x) for x in labels]


def _shown(value: Any) -> str:
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"
