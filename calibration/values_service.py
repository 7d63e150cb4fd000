"""The worker's side of `optimc.calibration.values`: runs models, feeds reducers.

ONNX Runtime on one thread with graph optimizations off: the values are what the graph says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimc.calibration.reducers import KINDS, Reducer
from optimc.core.errors import CellError
from optimc.core.onnx_session import reference_session

if TYPE_CHECKING:
    Arrays = Mapping[str, NDArray[np.generic]]


class ValuesService:
    """Reduces values of the models that were opened last; served by `optimc.core.worker.Worker`."""

    def __init__(self) -> None:
        self._sessions: dict[str, Any] = {}
        self._wanted: dict[str, list[str]] = {}
        self._reducers: dict[str, tuple[Reducer, list[tuple[str, str]]]] = {}

    def open(
        self,
        arrays: Arrays,
        paths: Mapping[str, str],
        wanted: Mapping[str, Sequence[str]],
        reductions: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Makes a session of each model and a reducer of each reduction."""
        self._sessions = {}  # the old ones' memory goes before the new ones' comes
        for key, path in paths.items():
            self._sessions[key] = reference_session(Path(path))
        self._wanted = {key: list(names) for key, names in wanted.items()}
        self._reducers = {
            key: (KINDS[plan["kind"]](**plan["options"]), [(k, v) for k, v in plan["values"]])
            for key, plan in reductions.items()
        }
        return None, {}

    def measure(self, arrays: Arrays, first: int) -> tuple[Any, Any]:
        """The bytes of all values for one smallest feed; nothing is reduced."""
        return sum(value.nbytes for value in self._values(arrays, first).values()), {}

    def feed(self, arrays: Arrays, first: int) -> tuple[Any, Any]:
        """Runs one batch of feeds, whose first sample has the number `first`."""
        values = self._values(arrays, first)
        for reducer, names in self._reducers.values():
            reducer.update(*(values[name] for name in names))
        return None, {}

    def results(self, arrays: Arrays) -> tuple[Any, Any]:
        """The reducers' arrays, named ``<key of the reduction>/<name>``."""
        return None, {
            f"{key}/{name}": array
            for key, (reducer, _) in self._reducers.items()
            for name, array in reducer.arrays().items()
        }

    def _reduced(self, key: str) -> dict[str, NDArray[np.float64]]:
        """The arrays of one reduction, for the methods of subclasses."""
        return self._reducers[key][0].arrays()

    def _values(self, feeds: Arrays, first: int) -> dict[tuple[str, str], NDArray[Any]]:
        values = {(key, n): feeds[n] for key in self._wanted for n in self._inputs(key, feeds)}
        for key, session in self._sessions.items():
            names = [name for name in self._wanted[key] if (key, name) not in values]
            taken = {entry.name: feeds[entry.name] for entry in session.get_inputs()}
            try:
                outputs = session.run(names, taken)
            except Exception as error:
                if "Failed to allocate memory" in str(error) or "bad_alloc" in str(error):
                    raise  # the worker turns it into its own error
                raise CellError(
                    f"ONNX Runtime cannot run the model on the data: {str(error).strip()[:500]}",
                    where=f"calibration, the batch that starts at sample {first}",
                    fix="look at that sample: ids out of range, or a shape the model does not take",
                ) from error
            values |= {(key, n): v for n, v in zip(names, outputs, strict=True)}
        return values

    def _inputs(self, key: str, feeds: Arrays) -> list[str]:
        """The wanted values of a model that are its inputs."""
        return [name for name in self._wanted[key] if name in feeds]
