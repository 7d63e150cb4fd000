"""What an engine computes for the probes: asked in the process that built it, or in one of its own.

A build opens the finished files to see that the runtime takes them. Where the target leaves that
session, the engine is asked in it, which saves a process and opening (OpenVINO: compiling) the
files again. The answers are kept with the digests of the files and are only used for an entry of
the cache that holds the same ones. Where anything goes wrong they are not used: a fresh process is
asked, and what goes wrong there is held against the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core import interruption
from optimc.core.errors import CellError, InputError
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from optimc.core.targets import Engine
    from optimc.core.worker import Limits
    from optimc.pipeline.probes import Probe
    from optimc.targets.client import OpenEngine


@dataclass(frozen=True)
class Answers:
    """What an engine computes for each probe, and what its runtime really runs."""

    runs: list[Mapping[str, Any]]
    taken: Mapping[str, Any]


@dataclass
class Asking:
    """Asks an engine as soon as it is built; see `EngineAnswers.keep`."""

    name: str
    probes: Sequence[Probe]
    files: Mapping[str, Any] = field(default_factory=dict)
    """What the engine that was asked is made of, by its manifest."""
    found: Answers | None = None

    def __call__(self, engine: OpenEngine) -> None:
        """Notes the answers; nothing where that goes wrong."""
        engine.worker.name = f"the engine {self.name}"
        try:
            self.found = _asked(engine, self.probes)
        except (CellError, InputError):
            interruption.check()
        self.files = engine.engine.manifest["files"]


@dataclass
class EngineAnswers:
    """The answers of processes that built an engine, until they are used, and those of others."""

    limits: Limits
    _known: dict[Path, tuple[Sequence[Probe], Answers]] = field(default_factory=dict)
    """By the engine's folder in the cache."""

    def keep(self, engine: Engine, asking: Asking) -> None:
        """Keeps what was found while `engine` was built, which stands in the cache by now.

        Another process may have been faster to put one there: its files have to be the same.
        """
        if asking.found is not None and asking.files == engine.manifest["files"]:
            self._known[engine.folder] = asking.probes, asking.found

    def of(self, name: str, engine: Engine, probes: Sequence[Probe]) -> Answers:
        """The answers for `probes`, those kept or new ones.

        Raises CellError and WorkerError, as the runtime's refusals, crashes and limits are.
        """
        kept = self._known.pop(engine.folder, None)
        if kept is not None and kept[0] is probes:
            return kept[1]
        with EngineWorker(engine, name=f"the engine {name}", limits=self.limits) as worker:
            worker.reopen()
            return _asked(worker, probes)

    def drop(self, engine: Engine) -> None:
        """Lets go of what is kept of an engine."""
        self._known.pop(engine.folder, None)


def _asked(engine: EngineWorker | OpenEngine, probes: Sequence[Probe]) -> Answers:
    taken = engine.precisions()
    return Answers([engine.run(probe.feeds) for probe in probes], taken)
