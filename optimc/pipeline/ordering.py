"""Puts the results of batches back into the order of the data.

Where samples differ in shape, batches are out of order (`optimc.calibration.grouped`). Metrics see
the samples in order all the same, and whole pairs where two samples share a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.calibration.dataset import joined_labels
from optimc.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Labels
    from optimc.core.model import Signature

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Result:
    """What came of some samples: the outputs, the source's outputs or None, the labels or None."""

    numbers: Sequence[int]
    """The numbers of the samples in the data."""
    outputs: Arrays
    source: Arrays | None
    labels: Labels | None


def has_rows(signature: Signature) -> bool:
    """Whether every output has a row for each sample: its first dim is that of the inputs."""
    firsts = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    return len(firsts) == 1 and all(
        bool(spec.shape) and spec.shape is not None and spec.shape[0] in firsts
        for spec in signature.outputs
    )


def in_order(results: Iterable[Result], per_label: int, *, rows: bool) -> Iterator[Result]:
    """The results by the numbers of their samples, each with one label for `per_label` samples.

    With `rows`, every output has a row for each sample (see `has_rows`). Without, the samples of a
    batch cannot be told apart: batches are passed on as they come, outputs and labels together, and
    InputError is raised where pairs would have to be put together from larger batches.
    """
    if per_label == 1 and not rows:
        yield from results
        return
    waiting: dict[int, Result] = {}
    expected = 0
    for result in results:
        numbers = result.numbers
        if per_label == 1 and not waiting and list(numbers) == _run(expected, len(numbers)):
            yield result
            expected += len(numbers)
            continue
        if not rows and len(numbers) > 1:
            raise InputError(
                "an output has no row for each sample, so that pairs cannot be told apart",
                fix="run one sample at a time: dims: {<the batch>: {min: 1, typical: 1, max: 1}}",
            )
        waiting.update({number: _row(result, row) for row, number in enumerate(numbers)})
        ready: list[Result] = []
        while all(number in waiting for number in _run(expected, per_label)):
            ready += [waiting.pop(number) for number in _run(expected, per_label)]
            expected += per_label
        yield from _joined(ready, per_label)


def _run(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _row(result: Result, row: int) -> Result:
    """The part of one sample, as a batch of one."""
    rows = slice(row, row + 1)
    whole = len(result.numbers) == 1  # then an output may have any shape
    outputs, source = (
        arrays if arrays is None or whole else {name: a[rows] for name, a in arrays.items()}
        for arrays in (result.outputs, result.source)
    )
    assert outputs is not None
    labels = None if result.labels is None else result.labels[rows]
    return Result(result.numbers[rows], outputs, source, labels)


def _joined(samples: Sequence[Result], per_label: int) -> Iterator[Result]:
    """Consecutive units (what shares a label) whose outputs have the same shapes, as one result."""
    units = [samples[first : first + per_label] for first in range(0, len(samples), per_label)]
    start = 0
    for end in range(1, len(units) + 1):
        if end == len(units) or _shapes(units[end]) != _shapes(units[start]):
            yield _concatenated(units[start:end])
            start = end


def _shapes(unit: Sequence[Result]) -> list[tuple[int, ...]]:
    return [array.shape for result in unit for array in result.outputs.values()]


def _concatenated(units: Sequence[Sequence[Result]]) -> Result:
    samples = [sample for unit in units for sample in unit]
    labels = None
    if samples[0].labels is not None:
        labels = joined_labels([unit[0].labels[0] for unit in units if unit[0].labels is not None])
    return Result(
        [number for sample in samples for number in sample.numbers],
        _stacked([sample.outputs for sample in samples]),
        _stacked([sample.source for sample in samples if sample.source is not None]) or None,
        labels,
    )


def _stacked(rows: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    import numpy as np

    stacked = {}
    for name in rows[0] if rows else ():
        arrays = [row[name] for row in rows]
        if len({array.shape[1:] for array in arrays}) > 1 or not arrays[0].ndim:
            shapes = " and ".join(dict.fromkeys(str(list(array.shape)) for array in arrays))
            raise InputError(
                f"the output `{name}` has the shapes {shapes} for the samples of one label",
                fix="judge an output with one shape, or pad the data: `padding: max`",
            )
        stacked[name] = np.concatenate(arrays)
    return stacked
