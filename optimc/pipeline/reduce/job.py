"""One `optimc reduce`: from a model and a check to a reproduction that was looked at again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.core.files import check_folder
from optimc.core.worker import Limits
from optimc.pipeline.minimizing import Deadline, Verdict
from optimc.pipeline.observer import BuildObserver
from optimc.pipeline.reduce.checks import Check
from optimc.pipeline.reduce.reproduction import How, write_reproduction
from optimc.pipeline.reduce.search import Reduction

if TYPE_CHECKING:
    from optimc.pipeline.reduce.candidates import Workbench
    from optimc.pipeline.reduce.onnx_cutting import Piece

_MEMORY_SHARE = 0.8


def worker_limits() -> Limits:
    """Most of what the machine has, as a build takes it."""
    import psutil

    return Limits(_MEMORY_SHARE * psutil.virtual_memory().total / 1e6)


@dataclass
class Job:
    """What `optimc reduce` was asked for."""

    model: Path
    inputs: Path | None
    seed: int
    folder: Path
    workspace: Path
    limits: Limits
    seconds: float | None
    observer: BuildObserver

    def run(self, check: Check, how: How) -> dict[str, Any]:
        """Reduces, and writes the reproduction; the record of what was found.

        After Ctrl-C, too, the folder holds the best so far. Raises InputError where the model does
        not show the fault, or shows it only now and then.
        """
        from optimc.pipeline.reduce.candidates import Workbench
        from optimc.pipeline.reduce.onnx_cutting import Whole

        feeds = self._feeds()
        check_folder(self.folder.parent, "-o DIR")
        self._refuse_to_overwrite()
        whole = Whole(self.model)
        bench = Workbench(self.model, whole, feeds, self.workspace, self.limits)
        try:
            reduction = Reduction(bench, check, Deadline(self.seconds), self.observer)

            def save(_: Piece) -> None:
                self._write(bench, check, how, reduction, False)

            reduction.saved = save
            try:
                reduced = reduction.run()
            except KeyboardInterrupt:
                if reduction.best is not None:
                    self._write(bench, check, how, reduction, False)
                raise
            self.observer.on_stage("looking at the result again")
            self._check_again(bench, check, reduced.piece)
            return self._write(bench, check, how, reduction, reduced.complete, reduced.seconds)
        finally:
            check.close()
            bench.close()

    def _feeds(self) -> dict[str, Any]:
        """One feed: the file's, or the first seeded one."""
        from optimc.frontends.onnx import read_signature
        from optimc.pipeline.feeds import probe_of_file, seeded_probes

        signature = read_signature(self.model)
        if self.inputs is not None:
            return dict(probe_of_file(self.inputs, signature).feeds)
        return dict(seeded_probes(signature, self.seed)[0].feeds)

    def _refuse_to_overwrite(self) -> None:
        """A folder that is no earlier reproduction stays as it is."""
        from optimc.pipeline.reduce.reproduction import RECORD

        used = self.folder.is_dir() and any(self.folder.iterdir())
        if used and not (self.folder / RECORD).is_file():
            raise InputError(
                "the folder holds other files", where=str(self.folder), fix="name another: -o DIR"
            )

    def _check_again(self, bench: Workbench, check: Check, piece: Piece) -> None:
        candidate = bench.candidate(piece)
        seen = None if candidate is None else check.look(candidate)
        if seen is None or seen.verdict is not Verdict.BAD:
            raise InputError(
                "the reduced model showed the fault, and now it does not: the check is not "
                f"deterministic ({seen.text if seen else 'it does not run'})",
                where=str(self.folder),
                fix="make the check give one answer (seeds, threads), or run it several times "
                "inside the command",
            )

    def _write(
        self,
        bench: Workbench,
        check: Check,
        how: How,
        reduction: Reduction,
        complete: bool,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        assert reduction.best is not None and reduction.seen is not None
        candidate = bench.candidate(reduction.best)
        assert candidate is not None
        whole = bench.whole
        kept = [whole.nodes[index].proto for index in candidate.piece.nodes]
        record = {
            "schema": 1,
            "model": self.model.name,
            "fault": check.text,
            "seen": reduction.seen.text,
            "nodes": [len(whole.nodes), len(kept)],
            "kept": [{"name": node.name, "operator": node.op_type} for node in kept],
            "needs": how.needs,
            "complete": complete,
            "tests": reduction.tests,
        }
        # Neither time nor place: the same reduction writes the same bytes.
        write_reproduction(self.folder, candidate, how, f"Shows: {check.text}.", record)
        return {**record, "seconds": seconds, "folder": str(self.folder)}
