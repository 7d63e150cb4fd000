"""`quantize_nncf` on this side of the worker: samples, trials, the result. Imports onnx_ir.

NNCF's search for `max_drop` sees drops alone: they are measured here, on the tuning split, as those
of `quantize_int8` are. What it keeps in float is the choice; the model that ships is made by
quantizing all else once more, so that a lock gives the same one again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from optimc.calibration.checks import fixed_batch
from optimc.core.errors import InputError
from optimc.core.model import OnnxModel, restore_provenance
from optimc.core.onnx_names import make_names_unique
from optimc.core.worker import Worker
from optimc.passes._nncf_service import RANKED

if TYPE_CHECKING:
    from optimc.core.passes import Drop, PassContext

_SERVICE = "optimc.passes._nncf_service:NncfService"
_STEADY = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "PYTHONHASHSEED": "0",  # NNCF walks over sets of names
}


@dataclass(frozen=True)
class Quantized:
    """A model of NNCF's, and its operations in INT8."""

    path: Path
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One model of NNCF's accuracy control."""

    kept: tuple[str, ...]
    """Operations in float that the first model has in INT8, in the graph's order."""
    drop: Drop


@dataclass(frozen=True)
class Found:
    """What the search came to."""

    best: Trial
    trials: int
    seconds: float
    finished: bool


class Delegate:
    """NNCF in a worker, with one model open; a context manager."""

    def __init__(
        self, model: OnnxModel, options: Mapping[str, Any], context: PassContext, samples: int
    ) -> None:
        self._model = model
        self._context = context
        self._size = fixed_batch(model.signature)
        # Where a batch is fixed, NNCF counts batches.
        self._count = max(1, samples // (self._size or 1))
        self._feeds: Iterator[Mapping[str, Any]] = iter(())
        self._made = 0
        path = context.workspace / "nncf-in.onnx"
        model.write_onnx(path)
        self._worker = Worker(
            _SERVICE,
            {"path": str(path), "options": {**options, "samples": self._count}},
            name="NNCF",
            limits=context.limits,
            environment=_STEADY,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def operations(self) -> list[str]:
        """The names of the nodes that NNCF may quantize, in the graph's order."""
        return list(self._worker.call("operations").data)

    def quantized(self, ignored: Sequence[str]) -> Quantized:
        """NNCF's model with all but the `ignored` nodes in INT8, as far as it sees fit."""
        target = self._target()
        reply = self._worker.call("begin", target=str(target), ignored=list(ignored)).data
        while reply["ask"] != "done":
            reply = self._fed(reply, "NNCF observes")
        return Quantized(target, tuple(reply["nodes"]))

    def search(self, ignored: Sequence[str], max_drop: float, seconds: float) -> Found:
        """Lets NNCF's accuracy control look for what to keep in float; one trial at least."""
        started, target = time.monotonic(), self._target()
        trials: list[Trial] = []
        full: tuple[str, ...] = ()
        reply = self._worker.call(
            "begin", target=str(target), ignored=list(ignored), max_drop=max_drop
        ).data
        late = False
        while reply["ask"] != "done":
            if reply["ask"] == "sample":
                reply = self._fed(reply, "NNCF's accuracy control observes")
                continue
            full = full or tuple(reply["nodes"])
            here = set(reply["nodes"])
            kept = tuple(name for name in full if name not in here)
            drop = self._context.tuning.drop(read(target, self._model))
            trials.append(Trial(kept, drop))
            late = time.monotonic() - started > seconds and drop.point > max_drop
            share = min(1.0, (time.monotonic() - started) / seconds)
            self._say(share, f"drops by {drop.point:.4g} with {len(kept)} operations in float")
            reply = self._worker.call("answer", drop=drop.point, stop=late).data
        # Its last trial may be the float model, which is no answer.
        quantized = [trial for trial in trials if len(trial.kept) < len(full)]
        best = min(quantized or trials, key=lambda trial: _rank(trial, max_drop))
        return Found(best, len(trials), time.monotonic() - started, not late)

    def _target(self) -> Path:
        self._made += 1
        return self._context.workspace / f"nncf-{self._made}.onnx"

    def _say(self, share: float, text: str) -> None:
        self._context.progress(share, text)

    def _fed(self, wanted: Mapping[str, Any], doing: str) -> dict[str, Any]:
        """Answers with the sample that is wanted; NNCF looks at them from the first one on."""
        number, count = wanted["number"], wanted["count"]
        if number == 0:
            self._feeds = self._batches()
        feeds = next(self._feeds, None)
        if feeds is None and number == 0:
            raise InputError(
                f"the calibration samples do not fill one batch of {self._size}",
                fix="take more data",
            )
        share = number / max(1, count)
        self._say(share, f"{doing}: sample {number + 1} of at most {count}")
        return dict(self._worker.call("answer", feeds or {}).data)

    def _batches(self) -> Iterator[Mapping[str, Any]]:
        size = self._size or 1
        for feeds in self._context.calibration.feeds(size, max(self._count, RANKED) * size):
            if all(len(feed) == size for feed in feeds.values() if feed.ndim):
                yield feeds


def _rank(trial: Trial, max_drop: float) -> tuple[bool, float, float]:
    """The least is the best: the fewest in float that meet the limit, else the least drop."""
    if trial.drop.point <= max_drop:
        return False, float(len(trial.kept)), trial.drop.point
    return True, trial.drop.point, float(len(trial.kept))


def read(path: Path, before: OnnxModel) -> OnnxModel:
    """NNCF's model with the interface and the source names of `before`.

    Values keep their names in it: what stood between two nodes still bears its own.
    """
    model = ir.load(path)
    # In memory: the file is written anew by the next trial.
    ir.external_data.load_to_model(model)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.metadata_props.update(before.ir.metadata_props)
    model.ir_version = before.ir.ir_version
    for side in ("inputs", "outputs"):
        old, new = getattr(before.ir.graph, side), getattr(model.graph, side)
        for was, now in zip(old, new, strict=True):
            now.shape = was.shape
    restore_provenance(model, before.provenance)
    make_names_unique(model)
    return OnnxModel(model)


def attends(graph: ir.Graph) -> bool:
    """Whether a MatMul reads what a Softmax gives: attention."""
    return any(
        reader.op_type == "MatMul"
        for node in graph
        if node.op_type == "Softmax"
        for output in node.outputs
        for reader in output.consumers()
    )
