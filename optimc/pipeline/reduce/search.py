"""The reduction: nodes, outputs, sizes and numbers, as long as the fault still shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.pipeline.minimizing import Deadline, OutOfTimeError, Verdict, ddmin
from optimc.pipeline.observer import BuildObserver
from optimc.pipeline.reduce.checks import Check, Seen
from optimc.report.figures import count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.pipeline.reduce.candidates import Candidate, Workbench
    from optimc.pipeline.reduce.onnx_cutting import Piece

_FEW = 64
"""Initializers and inputs that are made plain one by one; of more than these, the largest."""


@dataclass(frozen=True)
class Reduced:
    """The smallest piece that was found, what it shows, and the effort."""

    piece: Piece
    seen: Seen
    tests: int
    seconds: float
    complete: bool
    """False where the time was up."""


@dataclass
class Reduction:
    """One reduction; see `run`. After an interruption, `best` is what was found so far."""

    bench: Workbench
    check: Check
    deadline: Deadline
    observer: BuildObserver
    saved: Callable[[Piece], None] = lambda piece: None
    """Called with the best piece after each stage."""
    best: Piece | None = None
    seen: Seen | None = None
    tests: int = 0
    _known: dict[tuple[tuple[int, ...], tuple[str, ...] | None], bool] = field(default_factory=dict)

    def run(self) -> Reduced:
        """Reduces. Raises InputError where the whole model does not show the fault."""
        started = time.monotonic()
        self.observer.on_stage(f"looking at the whole model: {self.check.text}")
        self.best, self.seen = self._start()
        complete = True
        try:
            for stage, work in self._stages():
                self.observer.on_stage(stage)
                work()
                self.saved(self.best)
        except OutOfTimeError:
            complete = False
        seconds = round(time.monotonic() - started, 2)
        return Reduced(self.best, self.seen, self.tests, seconds, complete)

    def _stages(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "leaving out nodes", self._nodes
        yield "leaving out outputs", self._outputs
        yield "making sizes smaller", self._sizes
        yield "making numbers plain", self._numbers
        yield "leaving out nodes again", self._nodes

    def _start(self) -> tuple[Piece, Seen]:
        whole = self.bench.whole.everything()
        candidate = self.bench.candidate(whole)
        if candidate is None:
            raise InputError(
                "ONNX Runtime, which is the reference, does not run the model on these inputs",
                fix="give --inputs that the model takes; `optimc inspect` says more",
            )
        self.tests += 1
        seen = self.check.look(candidate)
        if seen.verdict is not Verdict.BAD:
            raise InputError(
                f"the whole model does not show the fault: {seen.text}",
                fix="the check has to fail on the model: exit codes 1 to 124 say that the fault "
                "is there, 0 that it is not, 125 that nothing can be said",
            )
        self.observer.on_detail(f"{len(candidate.piece.nodes)} nodes: {seen.text}")
        return candidate.piece, seen

    def _shows(self, piece: Piece) -> bool:
        """Whether the piece shows the fault; it is the best then."""
        self.deadline.check()
        candidate = self.bench.candidate(piece)
        if candidate is None:
            return False
        self.tests += 1
        seen = self.check.look(candidate)
        assert self.seen is not None
        if seen.verdict is not Verdict.BAD or seen.kind != self.seen.kind:
            return False
        self.best, self.seen = candidate.piece, seen
        self.observer.on_detail(_size(candidate))
        return True

    def _nodes(self) -> None:
        start = self.best
        assert start is not None

        def shows(nodes: tuple[int, ...]) -> bool:
            # Outputs may be cut to inner values: a piece without an old one has what is not read.
            return self._shows(replace(start, nodes=nodes, outputs=None))

        if len(start.nodes) > 1:
            ddmin(start.nodes, shows)

    def _outputs(self) -> None:
        start = self.best
        assert start is not None
        outputs = self.bench.whole.outputs_of(start)
        if len(outputs) > 1:
            ddmin(outputs, lambda kept: self._shows(replace(start, outputs=kept)))

    def _sizes(self) -> None:
        """Each size that inputs share is made as small as it goes, along one axis or everywhere."""
        assert self.best is not None
        self._shows(replace(self.best, fixed=True))
        for axis in range(6):
            for size in sorted(_sizes(self._arrays(inputs=True), axis), reverse=True):
                self._shrink(size, axis)
        for size in sorted(_sizes(self._arrays(), None), reverse=True):
            self._shrink(size, None)

    def _shrink(self, size: int, axis: int | None) -> None:
        smaller = [1, 2, *(size // part for part in (8, 4, 2))]
        for wanted in sorted({n for n in smaller if 0 < n < size}):
            assert self.best is not None
            if self._shows(self._sliced(self.best, size, wanted, axis)):
                return

    def _sliced(self, piece: Piece, size: int, wanted: int, axis: int | None) -> Piece:
        """Inputs of `size` along `axis` cut to `wanted`; with no axis, every array everywhere."""
        whole = self.bench.whole
        feeds, constants = dict(piece.feeds), dict(piece.constants)
        for name, array in self._arrays(inputs=True).items():
            feeds[name] = _cut(array, size, wanted, axis)
        if axis is None:
            for name in whole.constants_of(piece):
                constants[name] = _cut(whole.array(piece, name), size, wanted, None)
        return replace(piece, feeds=feeds, constants=constants, fixed=True)

    def _arrays(self, *, inputs: bool = False) -> Mapping[str, NDArray[Any]]:
        """What the best piece is fed, and what its initializers hold."""
        assert self.best is not None
        fed = self.bench.fed(self.best)
        if inputs:
            return fed
        whole = self.bench.whole
        return {**fed, **{n: whole.array(self.best, n) for n in whole.constants_of(self.best)}}

    def _numbers(self) -> None:
        """Initializers and inputs become zeros, else ones, else numbers with one decimal."""
        import numpy as np

        arrays = sorted(self._arrays().items(), key=lambda entry: -entry[1].size)
        plain: tuple[Callable[[NDArray[Any]], NDArray[Any]], ...] = (
            np.zeros_like,
            np.ones_like,
            lambda array: np.round(array.astype(np.float64), 1).astype(array.dtype),
        )
        for name, array in arrays[:_FEW]:
            if array.dtype.kind in "SUO" or array.dtype.kind == "V":
                continue
            for make in plain:
                if array.dtype.kind in "biu" and make is plain[2]:
                    continue
                simple = make(array)
                if np.array_equal(simple, array):
                    break
                if self._shows(self._holding(name, simple)):
                    break

    def _holding(self, name: str, array: NDArray[Any]) -> Piece:
        assert self.best is not None
        if name in self.bench.whole.constants:
            return replace(self.best, constants={**self.best.constants, name: array})
        return replace(self.best, feeds={**self.best.feeds, name: array})


def _sizes(arrays: Mapping[str, NDArray[Any]], axis: int | None) -> set[int]:
    shapes = [array.shape for array in arrays.values()]
    if axis is None:
        return {size for shape in shapes for size in shape if size > 1}
    return {shape[axis] for shape in shapes if len(shape) > axis and shape[axis] > 1}


def _cut(array: NDArray[Any], size: int, wanted: int, axis: int | None) -> NDArray[Any]:
    import numpy as np

    axes = range(array.ndim) if axis is None else [axis]
    for one in axes:
        if one < array.ndim and array.shape[one] == size:
            array = array.take(range(wanted), axis=one)
    return np.ascontiguousarray(array) if array.ndim else array


def _size(candidate: Candidate) -> str:
    elements = sum(array.size for array in candidate.feeds.values())
    nodes = count(len(candidate.piece.nodes), "node")
    outputs = count(len(candidate.outputs), "output")
    return f"{nodes}, {outputs}, {count(elements, 'element')} in: the fault shows"
