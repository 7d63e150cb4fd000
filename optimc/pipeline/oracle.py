"""The oracle: what a model's outputs are, by ONNX Runtime with graph optimizations off.

One worker process serves a whole build; it is started when the first question is asked, and again
after a crash. Outputs are remembered by the model's digest and the probe's contents: every pass is
compared with its predecessor and with the start of its segment, and an engine with models that
passes were compared with, on some of the same probes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from optimc.core import interruption
from optimc.core.errors import VerificationError, WorkerError
from optimc.core.model import OnnxModel
from optimc.core.worker import Limits, Worker
from optimc.pipeline.compare import Outputs
from optimc.pipeline.probes import Probe, probes_digest
from optimc.pipeline.unstable import unstable_outputs, wrong_form

_REPEATED = 2
"""Probes that are run twice to find outputs that do not repeat."""
_REMEMBERED_BYTES = 512 * 1024 * 1024


@dataclass
class _Shared:
    """What oracles beside each other have in common."""

    limits: Limits
    threads: int
    worker: Worker | None = None
    known: OrderedDict[str, dict[str, Outputs]] = field(default_factory=OrderedDict)
    """By model and probe."""
    twice: dict[str, tuple[list[Outputs], list[Outputs]]] = field(default_factory=dict)
    """By model: its first probes, run two times in one session."""
    unstable: dict[str, dict[str, str]] = field(default_factory=dict)
    turn: threading.RLock = field(default_factory=threading.RLock)

    def remembered(self) -> int:
        """Bytes of all outputs."""
        runs = [run for found in self.known.values() for run in found.values()]
        return sum(array.nbytes for run in runs for array in run.values())


class Oracle:
    """Answers for models on a fixed set of probes, one question at a time. A context manager."""

    def __init__(self, probes: Sequence[Probe], limits: Limits, *, threads: int = 1) -> None:
        self.probes = tuple(probes)
        self._shared = _Shared(limits, threads)

    def beside(self, probes: Sequence[Probe]) -> Oracle:
        """An oracle on other probes with the worker and the memory of this one, which ends both."""
        other = Oracle(probes, self._shared.limits)
        other._shared = self._shared
        return other

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(probes_digest([probe]) for probe in self.probes)

    def outputs(self, digest: str, path: Path, *, ahead: Oracle | None = None) -> list[Outputs]:
        """The outputs for every probe, in their order, of the ONNX file `path` named `digest`.

        `ahead` is an oracle beside this one that is asked of the same model later: its probes are
        run on the way, as the model is open, and left to later where that goes wrong. Raises
        VerificationError where the runtime refuses, WorkerError where it dies or hangs.
        """
        shared = self._shared
        with shared.turn:
            found = shared.known.setdefault(digest, {})
            missing = [i for i, name in enumerate(self._names) if name not in found]
            if missing:
                found.update(self._asked(digest, path, missing, ahead))
            shared.known.move_to_end(digest)
            while len(shared.known) > 2 and shared.remembered() > _REMEMBERED_BYTES:
                shared.known.popitem(last=False)
            return [found[name] for name in self._names]

    def _asked(
        self, digest: str, path: Path, missing: Sequence[int], ahead: Oracle | None
    ) -> dict[str, Outputs]:
        """By name: the outputs for the probes with these numbers, and those that `ahead` lacks."""
        # The first ones again, in one session: a fresh one would draw the same numbers.
        again = missing[:_REPEATED] if digest not in self._shared.twice else ()
        asked = [self.probes[index] for index in (*missing, *again)]
        known = {*self._names, *self._shared.known[digest]}
        later = {} if ahead is None else dict(zip(ahead._names, ahead.probes, strict=True))
        more = {name: probe for name, probe in later.items() if name not in known}
        answers = self._ask(path, asked, tuple(more.values()))
        if again:
            end = len(asked)
            self._shared.twice[digest] = answers[: len(again)], answers[len(missing) : end]
        found = {self._names[i]: one for i, one in zip(missing, answers, strict=False)}
        return found | dict(zip(more, answers[len(asked) :], strict=False))

    def run(self, path: Path) -> list[Outputs]:
        """The outputs for every probe, asked anew."""
        return self._ask(path, self.probes)

    def _ask(
        self, path: Path, probes: Sequence[Probe], more: Sequence[Probe] = ()
    ) -> list[Outputs]:
        """The outputs for `probes`, one after the other in one session, and behind them those for
        `more` as far as the model takes them."""
        with self._shared.turn:
            worker = self._worker_there()
            try:
                replies: list[Outputs] = [
                    worker.call("run", probe.feeds, path=str(path)).arrays for probe in probes
                ]
            except WorkerError:
                self.close()
                raise
            try:
                for probe in more:
                    replies.append(worker.call("run", probe.feeds, path=str(path)).arrays)
                worker.call("forget", path=str(path))
            except WorkerError:
                interruption.check()
                self.close()
            except VerificationError:
                worker.call("forget", path=str(path))
            return replies

    def _worker_there(self) -> Worker:
        """The worker, started where there is none."""
        shared = self._shared
        if shared.worker is None:
            shared.worker = Worker(
                "optimc.pipeline.oracle_service:OracleService",
                {"threads": shared.threads},
                name="the verification's ONNX Runtime",
                limits=shared.limits,
            )
        return shared.worker

    def stable_outputs(self, model: OnnxModel, path: Path) -> tuple[str, ...]:
        """The outputs that are the same when the model runs twice: no random operator, no garbage.

        Raises what `outputs` raises.
        """
        unstable = self.unstable_outputs(model, path)
        return tuple(s.name for s in model.signature.outputs if s.name not in unstable)

    def unstable_outputs(self, model: OnnxModel, path: Path) -> Mapping[str, str]:
        """The other outputs, each with the reason. Raises what `outputs` raises."""
        with self._shared.turn:
            known = self._shared.unstable
            if model.digest not in known:
                self.outputs(model.digest, path)
                first, again = self._shared.twice.get(model.digest, ([], []))
                known[model.digest] = unstable_outputs(model.ir, first, again)
            return known[model.digest]

    def wrong_form(self, model: OnnxModel, path: Path, candidate: Sequence[Outputs]) -> str | None:
        """What of `candidate`'s outputs that cannot be compared with the model's no chance
        explains: see `optimc.pipeline.unstable.wrong_form`."""
        unstable = self.unstable_outputs(model, path)
        if not unstable:
            return None
        reference = self.outputs(model.digest, path)
        return wrong_form(unstable, reference, self._shared.twice[model.digest], candidate)

    def marks(
        self, path: Path, probes: Sequence[Probe], prefix: str
    ) -> list[dict[str, int] | None]:
        """For each probe how often each node named `prefix`... ran; None where the model refuses.

        Raises VerificationError where the runtime refuses the model, WorkerError where it dies.
        """
        with self._shared.turn:
            worker = self._worker_there()
            try:
                worker.call("profile", path=str(path))
                for probe in probes:
                    worker.call("profile_run", probe.feeds)
                return list(worker.call("profiled", prefix=prefix).data)
            except WorkerError:
                self.close()
                raise

    def close(self) -> None:
        """Ends the worker, that of the oracles beside it too. It starts again where it is asked."""
        if self._shared.worker is not None:
            self._shared.worker.close()
            self._shared.worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
