"""What makes a model faulty: the user's command, a runtime that computes something else, or a pass
that changes the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimc.core.errors import CellError, InputError, OptimcError, PreconditionError
from optimc.core.worker import Limits
from optimc.pipeline.compare import Difference, compare_outputs
from optimc.pipeline.minimizing import Verdict
from optimc.pipeline.user_command import UserCommand
from optimc.pipeline.values import Runnable, RuntimeName, ValueRunner

if TYPE_CHECKING:
    from optimc.core.passes import Pass
    from optimc.pipeline.reduce.candidates import Candidate


@dataclass(frozen=True)
class Seen:
    """What a check saw. Faults of another `kind` are other faults."""

    verdict: Verdict
    text: str
    kind: str = ""


class Check(Protocol):
    """Looks for the fault in a candidate."""

    @property
    def text(self) -> str:
        """What is looked for, for people."""

    def look(self, candidate: Candidate) -> Seen:
        """Whether the candidate shows the fault. Raises InputError for what the user changes."""

    def close(self) -> None:
        """Ends what the check started."""


class CommandCheck:
    """``--command``."""

    def __init__(self, command: UserCommand) -> None:
        self.command = command

    @property
    def text(self) -> str:
        return f"fails: {' '.join(self.command.words)}"

    def look(self, candidate: Candidate) -> Seen:
        verdict = self.command.judge(candidate.model, candidate.inputs)
        return Seen(verdict, f"the command says {verdict}")

    def close(self) -> None:
        pass


class RuntimeCheck:
    """``--runtime``: a runtime as it optimizes by itself, against the reference."""

    def __init__(self, runtime: RuntimeName, path: Path, bound: float, limits: Limits) -> None:
        self.runtime = runtime
        self.bound = bound
        model = Runnable(path, runtime, optimized=True)
        self._runner = ValueRunner(model, limits, f"{runtime} on a piece")

    @property
    def text(self) -> str:
        return f"{self.runtime} differs by more than {self.bound:g} of the outputs' scale"

    def look(self, candidate: Candidate) -> Seen:
        try:
            values = self._runner.run(candidate.feeds)
        except CellError as error:
            return Seen(Verdict.BAD, error.what, "fails")
        return _seen(compare_outputs([candidate.outputs], [values], values), self.bound)

    def close(self) -> None:
        self._runner.close()


class PassCheck:
    """``--pass``: a pass, with its default options, that changes the outputs."""

    def __init__(
        self, pass_: Pass, bound: float | None, folder: Path, spec: Any, limits: Limits
    ) -> None:
        """`bound` None takes what the pass promises. Raises InputError where it cannot be used."""
        from optimc.core.passes import EffectKind, Input

        name = pass_.pass_name()
        needs = sorted(pass_.needs - {Input.SPEC, Input.DEVICE})
        if needs:
            raise InputError(
                f"the pass {name} reads {', '.join(needs)} data, which reduce does not have",
                where="--pass",
                fix="write a script for --command, or `optimc bisect` the recipe",
            )
        if bound is None and pass_.effect.kind is EffectKind.LOSSY:
            raise InputError(
                f"the pass {name} is lossy: nothing says how far it may go",
                where="--pass",
                fix="give --max-error",
            )
        self.pass_ = pass_
        self.bound = pass_.effect.bound if bound is None else bound
        self._spec = spec
        self._folder = folder / "after"
        self._folder.mkdir()
        self._after = self._folder / "model.onnx"
        self._runner = ValueRunner(Runnable(self._after), limits, "ONNX Runtime on the result")

    @property
    def text(self) -> str:
        return f"{self.pass_.pass_name()} changes the outputs by more than {self.bound:g}"

    def look(self, candidate: Candidate) -> Seen:
        from optimc.pipeline.reduce.onnx_pass_runs import run_on_file

        try:
            run_on_file(self.pass_, candidate.model, self._after, self._folder, self._spec)
        except PreconditionError as error:
            return Seen(Verdict.SKIPPED, error.what)
        except OptimcError as error:
            return Seen(Verdict.BAD, error.what, "breaks")
        try:
            values = self._runner.run(candidate.feeds)
        except CellError as error:
            return Seen(Verdict.BAD, f"the result does not run: {error.what}", "fails")
        difference = compare_outputs([candidate.outputs], [values], candidate.outputs)
        return _seen(difference, self.bound)

    def close(self) -> None:
        self._runner.close()


def _seen(difference: Difference, bound: float) -> Seen:
    if difference.broken is not None:
        return Seen(Verdict.BAD, difference.broken, "differs")
    bad = difference.max_rel > bound
    text = f"outputs differ by {difference.max_rel:.3g} of their scale"
    return Seen(Verdict.BAD if bad else Verdict.GOOD, text, "differs")
