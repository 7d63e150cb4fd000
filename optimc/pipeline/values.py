"""Values inside of models, as a runtime computes them, in a worker and in bounded memory.

Inner values are asked for as further outputs of a copy of the model, some at a time. A runtime does
not fuse over a value that it has to hand out: figures of inner values under a runtime's own
optimizations are those of its kernels, not of every fusion that it does otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from optimc.core.errors import CellError, WorkerError, WorkerMemoryError
from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

RuntimeName = Literal["onnxruntime", "openvino"]
_SERVICE = "optimc.pipeline.values_service:ValuesService"
_CHUNK_BYTES = 256 * 1024 * 1024
_FIRST_CHUNK = 8
"""Values in the first chunk, from whose bytes the size of the next is guessed."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A model file and how it is run: one thread, on the CPU."""

    path: Path
    runtime: RuntimeName = "onnxruntime"
    optimized: bool = False
    """Whether ONNX Runtime may rewrite the graph; OpenVINO always does."""
    precision: str = "f32"
    """What OpenVINO computes in."""

    @property
    def fuses(self) -> bool:
        """Whether the runtime rewrites the graph."""
        return self.optimized or self.runtime == "openvino"


class ValueRunner:
    """Runs a model and gives out any of its values. A context manager; one worker."""

    def __init__(self, model: Runnable, limits: Limits, name: str) -> None:
        self.model = model
        self._limits = limits
        self._name = name
        self._worker: Worker | None = None

    def run(self, feeds: Arrays, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """The model's outputs and the values `names` for `feeds`; what is no array is left out.

        Raises CellError where the runtime refuses, WorkerError where it dies or hangs.
        """
        return self.run_all([feeds], names)[0]

    def run_all(
        self, probes: Sequence[Arrays], names: Sequence[str] = ()
    ) -> list[dict[str, NDArray[Any]]]:
        """`run` for each of `probes`, in one session."""
        try:
            worker = self._running()
            worker.call(
                "open",
                path=str(self.model.path.resolve()),
                runtime=self.model.runtime,
                names=list(names),
                optimized=self.model.optimized,
                precision=self.model.precision,
            )
            return [dict(worker.call("run", feeds).arrays) for feeds in probes]
        except BaseException as error:
            # Dead, or interrupted between a question and its answer: neither can go on.
            if isinstance(error, WorkerError) or not isinstance(error, CellError):
                self.close()
            raise

    def listed(self) -> list[list[Any]]:
        """The values of OpenVINO's IR, see `ValuesService.listed`."""
        return list(self._running().call("listed", path=str(self.model.path.resolve())).data)

    def _running(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(_SERVICE, name=self._name, limits=self._limits)
        return self._worker

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Chunks:
    """Deals out names so that the arrays of one chunk stay within some bytes, by what was seen."""

    names: Sequence[str]
    most_bytes: int = _CHUNK_BYTES
    refused: dict[str, str] = field(default_factory=dict)
    """Values that a runtime does not hand out, with its reason."""
    _place: int = 0
    _largest: int = 0
    _split: list[Sequence[str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sequence[str]]:
        """The next names; tell `seen` or `failed` of each before asking for more."""
        while self._split or self._place < len(self.names):
            if self._split:
                yield self._split.pop()
                continue
            size = _FIRST_CHUNK
            if self._largest:
                size = max(1, self.most_bytes // self._largest)
            chunk = self.names[self._place : self._place + size]
            self._place += len(chunk)
            yield chunk

    @property
    def share(self) -> float:
        """How much was dealt out, 0 to 1."""
        return self._place / max(1, len(self.names))

    def seen(self, nbytes: int) -> None:
        """The bytes of the largest value of a chunk, over all probes together."""
        self._largest = max(self._largest, nbytes)

    def failed(self, chunk: Sequence[str], error: CellError) -> None:
        """A chunk that could not be had: it comes again in halves, one value alone is given up."""
        if isinstance(error, WorkerMemoryError):
            self._largest = max(self._largest, self.most_bytes // max(1, len(chunk) // 2))
        if len(chunk) > 1:
            half = len(chunk) // 2
            self._split += [chunk[half:], chunk[:half]]
        else:
            self.refused[chunk[0]] = error.what
