"""Verification: every pass and every engine proves itself on data before anything builds on it.

EXACT and TOLERANCE passes are compared with their predecessor and with the start of their segment
(drift adds up), LOSSY ones by the signal-to-quantization-noise ratio (SQNR); engines with their
final ONNX model and with the source. What could not be compared is `unverified`, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from optimc.core.errors import VerificationError, WorkerError
from optimc.core.model import OnnxModel
from optimc.core.passes import Effect, EffectKind
from optimc.pipeline.compare import Difference, Outputs, compare_on_data, compare_outputs
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.judging import Judge, aligned
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.probes import Probe
from optimc.pipeline.reach import changed_out_of_reach

ENGINE_TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}
"""Bounds of ``max |difference| / max |reference|`` for float engines, by precision."""

ENGINE_SQNR_SLACK_DB = 3.0
"""How far a quantized engine's SQNR against the source may be under that of its own graph."""

FOUR_BIT_ENGINE_SQNR_DB = 26.0
"""What is enough for the engine of a graph with 4-bit weights, however exact the graph is: 5 % of
the outputs, as for bf16. Kernels for such weights take their inputs in 8 bits, whatever the graph
says; where a pass on modules has put the weights on their grid, the graph itself loses nothing."""


class Verdict(StrEnum):
    """What verification says of a pass or an engine."""

    EQUIVALENT = "equivalent"
    WITHIN_TOLERANCE = "within_tolerance"
    LOSSY = "lossy"
    UNCHANGED = "unchanged"
    UNVERIFIED = "unverified"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


PASSED = (Verdict.EQUIVALENT, Verdict.WITHIN_TOLERANCE, Verdict.LOSSY)
"""The verdicts of what was compared and may be used."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict with its figures. `max_abs_error` and `sqnr_db` are None where nothing was run."""

    verdict: Verdict
    reason: str | None = None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    sqnr_db: float | None = None
    samples: int = 0

    @property
    def broke(self) -> bool:
        """Whether the result must not be used."""
        return self.verdict is Verdict.FAILED


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a run of EXACT and TOLERANCE passes began, and the sum of their bounds so far."""

    digest: str
    path: Path
    bound: float = 0.0
    quantized_from: OnnxModel | None = None
    """The float model that one of the passes so far quantized."""


class PassVerifier:
    """Judges passes on the oracle's probes."""

    def __init__(
        self,
        oracle: Oracle,
        inner: InnerValues | None = None,
        *,
        skip_reason: str | None = None,
        ahead: Oracle | None = None,
    ) -> None:
        """`inner` are the values that the recipe has compared in place of outputs; `ahead` is the
        oracle that engines are compared by, see `expect`."""
        self._oracle = oracle
        self._ahead = ahead
        self._origin, self._last = "", False
        self._inner = inner or InnerValues({}, Path())
        self._skip_reason = skip_reason

    def expect(self, origin: str, *, last: bool) -> None:
        """Tells what engines will be compared with: the model with the digest `origin`, and what
        the next pass makes where it is the `last` of a cell. They are run on all probes at once."""
        self._origin, self._last = origin, last

    def judge(
        self,
        effect: Effect,
        before: OnnxModel,
        before_path: Path,
        after: OnnxModel,
        after_path: Path,
        segment: Segment,
    ) -> Finding:
        """Compares `after` with `before` and with the start of the segment."""
        if self._skip_reason is not None:
            return Finding(Verdict.UNVERIFIED, self._skip_reason)
        try:
            old = self._inner.view(before, before_path)
            ahead = self._ahead if before.digest == self._origin else None
            reference = self._oracle.outputs(old.digest, old.path, ahead=ahead)
        except (VerificationError, WorkerError) as error:
            # The model before the pass is not ours to blame: nothing can be said of the pass.
            return Finding(
                Verdict.UNVERIFIED, f"the model before the pass does not run: {error.what}"
            )
        names = self._oracle.stable_outputs(old.model, old.path)
        try:
            new = self._inner.view(after, after_path)
            ahead = self._ahead if self._last else None
            made = self._oracle.outputs(new.digest, new.path, ahead=ahead)
            candidate = aligned(reference, made, after.signature)
        except (VerificationError, WorkerError) as error:
            return Finding(Verdict.FAILED, f"the result does not run: {error.what}")
        wrong = self._oracle.wrong_form(old.model, old.path, candidate)
        if wrong is not None:
            return Finding(Verdict.FAILED, wrong)
        judge = Judge(
            self._inner,
            before,
            old.carried & new.carried,
            names,
            reference,
            candidate,
            _allowed(effect),
        )
        judged = judge.judged().without(self._oracle.unstable_outputs(old.model, old.path))
        missed = changed_out_of_reach(before, after, self._oracle)
        if missed:
            judged = judged.unsure(f"no probe reaches what the pass changed: {', '.join(missed)}")
        if effect.kind is EffectKind.LOSSY:
            finding = measure_lossy(self._oracle.probes, reference, candidate, judged.names)
            return judged.concluded(finding)
        finding = self._verdict(
            effect, compare_outputs(reference, candidate, judged.names), candidate
        )
        finding = judged.concluded(finding)
        if finding.broke or not judged.names:
            return finding
        return self._drift(effect, segment, replace(judge, stable=judged.names), finding)

    def _verdict(
        self, effect: Effect, difference: Difference, candidate: Sequence[Outputs]
    ) -> Finding:
        reason = difference.broken
        if reason is None and effect.kind is EffectKind.EXACT and not difference.bit_equal:
            reason = f"not bit-equal: outputs differ by up to {difference.max_abs:.3g}"
        if reason is None and difference.max_rel > effect.bound:
            reason = (
                f"outputs differ by {difference.max_rel:.3g} of their scale, "
                f"the pass allows {effect.bound:.3g}"
            )
        verdict = Verdict.EQUIVALENT if difference.bit_equal else Verdict.WITHIN_TOLERANCE
        return finding_of(Verdict.FAILED if reason else verdict, difference, len(candidate), reason)

    def _drift(
        self,
        effect: Effect,
        segment: Segment,
        judge: Judge,
        finding: Finding,
    ) -> Finding:
        """`finding`, or what drift makes of it; `judge` is that of the pass on what it compared."""
        start = self._oracle.outputs(*self._inner.stored_view(segment.digest, segment.path))
        # What is compared has the types of the model before the pass by now.
        candidate = aligned(start, judge.candidate, judge.model.signature)
        bound = segment.bound + effect.bound
        allowed = None if judge.allowed is None else bound
        judged = judge.against(start, candidate, allowed)
        drift = compare_outputs(start, candidate, judged.names)
        if drift.broken or drift.max_rel > bound:
            reason = drift.broken or (
                f"with the passes before it, outputs drift by {drift.max_rel:.3g} of their scale "
                f"from the start of the segment, together they allow {bound:.3g}"
            )
            return finding_of(Verdict.FAILED, drift, len(candidate), reason)
        return judged.concluded(finding) if judged.unverified else finding


def _allowed(effect: Effect) -> float | None:
    """For `Judge`: EXACT passes may change no choice, LOSSY ones move every value."""
    if effect.kind is EffectKind.EXACT:
        return None
    return effect.bound if effect.kind is EffectKind.TOLERANCE else 0.0


def measure_lossy(
    probes: Sequence[Probe],
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    names: Sequence[str],
) -> Finding:
    """LOSSY: nothing broken on any probe; the SQNR on real data, which `held_to_bound` judges."""
    difference = compare_on_data(probes, reference, candidate, names)
    verdict = Verdict.FAILED if difference.broken else Verdict.LOSSY
    return finding_of(verdict, difference, len(candidate), difference.broken)


def held_to_bound(finding: Finding, effect: Effect) -> Finding:
    """A LOSSY finding judged by the default bound of its pass, where no metric judges instead.

    Apart from the measuring, because whether a metric judges depends on the build, and the
    finding is remembered between builds.
    """
    sqnr = finding.sqnr_db
    judged = finding.verdict in (Verdict.LOSSY, Verdict.UNVERIFIED)
    if not judged or effect.kind is not EffectKind.LOSSY or sqnr is None or sqnr >= effect.bound:
        return finding
    reason = f"output SQNR {sqnr:.1f} dB, the default bound is {effect.bound:.1f} dB"
    return replace(finding, verdict=Verdict.FAILED, reason=reason)


def finding_of(
    verdict: Verdict, difference: Difference, samples: int, reason: str | None
) -> Finding:
    """A finding with the figures of `difference`; the SQNR is infinite where nothing differs."""
    figures = (difference.max_abs, difference.max_rel, difference.sqnr_db)
    return Finding(verdict, reason, *figures, samples)


def judge_engine(
    precision: str,
    *,
    lossy: bool,
    probes: Sequence[Probe],
    source: Sequence[Outputs],
    graph: Sequence[Outputs],
    engine: Sequence[Outputs],
    names: Sequence[str],
    four_bits: bool = False,
) -> Finding:
    """Compares an engine with its final ONNX model and with the source.

    Float engines: elementwise, relative to each output's scale, by `ENGINE_TOLERANCE`. Quantized
    ones: the SQNR against the source is at most `ENGINE_SQNR_SLACK_DB` under the graph's own; with
    weights of 4 bits (`four_bits`) `FOUR_BIT_ENGINE_SQNR_DB` is enough.
    """
    samples = len(engine)
    if lossy:
        own = compare_on_data(probes, source, graph, names).sqnr_db
        against_graph = compare_outputs(graph, engine, names)
        against_source = compare_on_data(probes, source, engine, names)
        reason = against_graph.broken or against_source.broken
        least = own - ENGINE_SQNR_SLACK_DB
        if four_bits:
            least = min(least, FOUR_BIT_ENGINE_SQNR_DB)
        if reason is None and against_source.sqnr_db < least:
            reason = (
                f"SQNR against the source {against_source.sqnr_db:.1f} dB, "
                f"its graph has {own:.1f} dB: the runtime computes something else"
            )
        verdict = Verdict.FAILED if reason else Verdict.LOSSY
        return finding_of(verdict, against_source, samples, reason)
    bound = ENGINE_TOLERANCE[precision]
    against_graph = compare_outputs(graph, engine, names)
    against_source = compare_outputs(source, engine, names)
    for name, difference in (("its ONNX model", against_graph), ("the source", against_source)):
        reason = difference.broken
        if reason is None and difference.max_rel > bound:
            reason = f"differs by {difference.max_rel:.3g} of the outputs' scale, limit {bound:g}"
        if reason is not None:
            text = f"against {name}: {reason}"
            return finding_of(Verdict.FAILED, difference, samples, text)
    verdict = Verdict.EQUIVALENT if against_source.bit_equal else Verdict.WITHIN_TOLERANCE
    return finding_of(verdict, against_source, samples, None)
