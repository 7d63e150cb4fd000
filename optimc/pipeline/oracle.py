"""The oracle: what a model's outputs are, by ONNX Runtime with graph optimizations off.

One worker process serves a whole build; it is started when the first question is asked, and again
after a crash. Outputs are remembered by the model's digest, because every pass is compared with
its predecessor and with the start of its segment.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from optimc.core.errors import WorkerError
from optimc.core.model import OnnxModel
from optimc.core.worker import Limits, Worker
from optimc.pipeline.compare import Outputs
from optimc.pipeline.probes import Probe
from optimc.pipeline.unstable import unstable_outputs, wrong_form

_REPEATED = 2
"""Probes that are run twice to find outputs that do not repeat."""
_REMEMBERED_BYTES = 512 * 1024 * 1024


class Oracle:
    """Answers for models on a fixed set of probes, one question at a time. A context manager."""

    def __init__(self, probes: Sequence[Probe], limits: Limits, *, threads: int = 1) -> None:
        self.probes = tuple(probes)
        self._limits = limits
        self._threads = threads
        self._worker: Worker | None = None
        self._known: OrderedDict[str, list[Outputs]] = OrderedDict()
        self._unstable: dict[str, dict[str, str]] = {}
        self._again: dict[str, list[Outputs]] = {}
        self._turn = threading.RLock()

    def outputs(self, digest: str, path: Path) -> list[Outputs]:
        """The outputs for every probe, in their order, of the ONNX file `path` named `digest`.

        Raises VerificationError where the runtime refuses, WorkerError where it dies or hangs.
        """
        with self._turn:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
            # The first probes again, in one session: a fresh one would draw the same numbers.
            answers = self._ask(path, (*self.probes, *self.probes[:_REPEATED]))
            self._again[digest] = answers[len(self.probes) :]
            answers = answers[: len(self.probes)]
            self._known[digest] = answers
            while len(self._known) > 2 and self._remembered() > _REMEMBERED_BYTES:
                self._known.popitem(last=False)
            return answers

    def run(self, path: Path) -> list[Outputs]:
        """The outputs for every probe, asked anew."""
        return self._ask(path, self.probes)

    def _ask(self, path: Path, probes: Sequence[Probe]) -> list[Outputs]:
        """The outputs for `probes`, one after the other in one session."""
        with self._turn:
            worker = self._worker_there()
            try:
                replies = [
                    worker.call("run", probe.feeds, path=str(path)).arrays for probe in probes
                ]
                worker.call("forget", path=str(path))
            except WorkerError:
                self.close()
                raise
            return list(replies)

    def _worker_there(self) -> Worker:
        """The worker, started where there is none."""
        if self._worker is None:
            self._worker = Worker(
                "optimc.pipeline.oracle_service:OracleService",
                {"threads": self._threads},
                name="the verification's ONNX Runtime",
                limits=self._limits,
            )
        return self._worker

    def stable_outputs(self, model: OnnxModel, path: Path) -> tuple[str, ...]:
        """The outputs that are the same when the model runs twice: no random operator, no garbage.

        Raises what `outputs` raises.
        """
        unstable = self.unstable_outputs(model, path)
        return tuple(s.name for s in model.signature.outputs if s.name not in unstable)

    def unstable_outputs(self, model: OnnxModel, path: Path) -> Mapping[str, str]:
        """The other outputs, each with the reason. Raises what `outputs` raises."""
        with self._turn:
            if model.digest not in self._unstable:
                first = self.outputs(model.digest, path)
                again = self._again[model.digest]
                self._unstable[model.digest] = unstable_outputs(
                    model.ir, first[: len(again)], again
                )
            return self._unstable[model.digest]

    def wrong_form(self, model: OnnxModel, path: Path, candidate: Sequence[Outputs]) -> str | None:
        """What of `candidate`'s outputs that cannot be compared with the model's no chance
        explains: see `optimc.pipeline.unstable.wrong_form`."""
        unstable = self.unstable_outputs(model, path)
        if not unstable:
            return None
        reference = self.outputs(model.digest, path)
        return wrong_form(unstable, reference, self._again[model.digest], candidate)

    def marks(
        self, path: Path, probes: Sequence[Probe], prefix: str
    ) -> list[dict[str, int] | None]:
        """For each probe how often each node named `prefix`... ran; None where the model refuses.

        Raises VerificationError where the runtime refuses the model, WorkerError where it dies.
        """
        with self._turn:
            worker = self._worker_there()
            try:
                worker.call("profile", path=str(path))
                for probe in probes:
                    worker.call("profile_run", probe.feeds)
                return list(worker.call("profiled", prefix=prefix).data)
            except WorkerError:
                self.close()
                raise

    def _remembered(self) -> int:
        return sum(a.nbytes for runs in self._known.values() for run in runs for a in run.values())

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
