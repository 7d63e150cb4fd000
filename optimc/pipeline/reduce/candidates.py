"""Pieces of a model as files that a check can look at: written, run by the reference, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, InputError
from optimc.core.worker import Limits
from optimc.pipeline.values import Runnable, ValueRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.pipeline.reduce.onnx_cutting import Piece, Whole

    Arrays = Mapping[str, NDArray[Any]]

_REMEMBERED_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Candidate:
    """A piece in the folder that all candidates share: it holds until the next is written."""

    piece: Piece
    model: Path
    inputs: Path
    feeds: Arrays
    outputs: Arrays
    """What the reference runtime computes."""


class Workbench:
    """Makes candidates of a model. A context manager; two workers of ONNX Runtime."""

    def __init__(
        self, path: Path, whole: Whole, feeds: Arrays, folder: Path, limits: Limits
    ) -> None:
        self.whole = whole
        self.folder = folder
        self._feeds = feeds
        self._recorded: dict[str, NDArray[Any]] = dict(feeds)
        self._missing: set[str] = set()
        self._source = ValueRunner(Runnable(path), limits, "ONNX Runtime on the whole model")
        self.model = folder / "model.onnx"
        self.inputs = folder / "inputs.npz"
        self._reference = ValueRunner(Runnable(self.model), limits, "ONNX Runtime on a piece")

    def candidate(self, piece: Piece) -> Candidate | None:
        """The piece as files, or None where it is no model that the reference runs."""
        import numpy as np
        import onnx

        piece = self.whole.pruned(piece)
        if not piece.nodes:
            return None
        feeds = self._fed(piece)
        if feeds is None:
            return None
        try:
            onnx.save(self.whole.model(piece, feeds), str(self.model))
            outputs = self._reference.run(feeds)
            if set(outputs) != set(self.whole.outputs_of(piece)):
                return None  # sequences and the like
            model = self.whole.model(piece, feeds, outputs)
            onnx.checker.check_model(model)
        except (CellError, ValueError, onnx.checker.ValidationError):
            return None
        onnx.save(model, str(self.model))
        np.savez(self.inputs, allow_pickle=False, **dict(feeds))
        return Candidate(piece, self.model, self.inputs, feeds, outputs)

    def _fed(self, piece: Piece) -> dict[str, NDArray[Any]] | None:
        """What the inputs of a piece are fed; None where a value could not be recorded."""
        names = self.whole.inputs_of(piece)
        self._record([name for name in names if name not in piece.feeds])
        found = {}
        for name in names:
            array = piece.feeds.get(name, self._recorded.get(name))
            if array is None:
                return None
            found[name] = array
        return found

    def fed(self, piece: Piece) -> dict[str, NDArray[Any]]:
        """What the inputs of a piece are fed, which was a candidate before."""
        return self._fed(piece) or {}

    def _record(self, names: list[str]) -> None:
        wanted = [n for n in names if n not in self._recorded and n not in self._missing]
        if not wanted:
            return
        if sum(array.nbytes for array in self._recorded.values()) > _REMEMBERED_BYTES:
            self._recorded = {n: a for n, a in self._recorded.items() if n in self._feeds}
            wanted = [name for name in names if name not in self._recorded]
        try:
            values = self._source.run(self._feeds, wanted)
        except CellError as error:
            if len(wanted) == 1:
                self._missing.add(wanted[0])
                return
            if not self._runs():
                raise InputError(
                    f"ONNX Runtime does not run the model: {error.what}",
                    fix="inner values cannot be recorded: give --inputs that the model takes",
                ) from error
            for name in wanted:
                self._record([name])
            return
        self._recorded |= {name: values[name] for name in wanted if name in values}
        self._missing |= set(wanted) - set(values)

    def _runs(self) -> bool:
        try:
            self._source.run(self._feeds)
        except CellError:
            return False
        return True

    def close(self) -> None:
        """Ends the workers."""
        self._source.close()
        self._reference.close()

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
