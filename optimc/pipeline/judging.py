"""Which outputs a comparison may rest on, and what is said of the others.

An output that the recipe has judged by inner values is compared by these. One that comes from a
choice and differs says nothing either way: it is left out, and the finding is `unverified` unless
what it was chosen by is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc.pipeline.choices import Choice, choice_before, mismatch
from optimc.pipeline.compare import Outputs, compare_arrays, compare_outputs
from optimc.pipeline.inner_values import PREFIX, InnerValues, inner_name
from optimc.pipeline.outputs import values_before

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel, Signature
    from optimc.pipeline.verification import Finding


@dataclass(frozen=True)
class Judged:
    """The outputs to compare by their numbers; why others are unverified; what to say of them."""

    names: tuple[str, ...]
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    broken: str | None = None
    """What no choice excuses."""

    def noting(self, text: str) -> Judged:
        """The same with one more thing said."""
        return replace(self, notes=(*self.notes, text))

    def unsure(self, text: str) -> Judged:
        """The same with one more thing that was not checked."""
        return replace(self, unverified=(*self.unverified, text))

    def without(self, unstable: Mapping[str, str]) -> Judged:
        """The same with what is said of outputs that do not repeat, see `pipeline.unstable`."""
        said = tuple(
            f"output `{name}` {why}: only its dtype and shape were compared"
            for name, why in unstable.items()
            if not name.startswith(PREFIX)
        )
        return replace(self, unverified=(*self.unverified, *said))

    def concluded(self, finding: Finding) -> Finding:
        """The finding on `names`, with what is said of the other outputs."""
        from optimc.pipeline.verification import Finding, Verdict

        if finding.broke:
            return finding
        if self.broken is not None:
            return replace(finding, verdict=Verdict.FAILED, reason=self.broken)
        said = "; ".join((*self.unverified, *self.notes)) or None
        if not self.names:
            reason = said or "all outputs depend on random operators"
            return Finding(Verdict.UNVERIFIED, reason)
        if self.unverified:
            return replace(finding, verdict=Verdict.UNVERIFIED, reason=said)
        return replace(finding, reason=finding.reason or said)


@dataclass
class Judge:
    """Sorts the outputs of two runs.

    `model` is the one that `reference` was run with, without inner values; `carried` are the source
    names of inner values that both runs have; `stable` are the outputs that repeat.
    """

    inner: InnerValues
    model: OnnxModel
    carried: frozenset[str]
    stable: Sequence[str]
    reference: Sequence[Outputs]
    candidate: Sequence[Outputs]
    allowed: float | None
    """The relative difference up to which an output counts as the same; None where it must be
    bit-equal, and no choice excuses anything."""
    why_missing: str | None = None
    """Why inner values are not there, where it is not that passes merged them away."""
    _unverified: list[str] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _broken: str | None = None

    def judged(self) -> Judged:
        """See the module."""
        direct = [
            name
            for name in self.stable
            if name not in self.inner.wanted and not name.startswith(PREFIX)
        ]
        differing = [name for name in direct if self._chosen_apart(name)]
        kept = [name for name in direct if name not in differing]
        self._explain(differing, kept)
        inner = dict.fromkeys(
            inner_name(source)
            for output, sources in self.inner.wanted.items()
            for source in self._usable(output, sources)
        )
        return Judged((*kept, *inner), tuple(self._unverified), tuple(self._notes), self._broken)

    def against(
        self, reference: Sequence[Outputs], candidate: Sequence[Outputs], allowed: float | None
    ) -> Judged:
        """The same outputs against another reference; values that it lacks are left out."""
        stable = [name for name in self.stable if all(name in run for run in reference)]
        other = Judge(
            InnerValues({}, self.inner.workspace),
            self.model,
            self.carried,
            [name for name in stable if not name.startswith(PREFIX)],
            reference,
            candidate,
            allowed,
        )
        judged = other.judged()
        inner = tuple(name for name in stable if name.startswith(PREFIX))
        return replace(judged, names=(*judged.names, *inner))

    def _chosen_apart(self, name: str) -> bool:
        """Whether an output differs only because something else was chosen."""
        if self.allowed is None or not self._may_be_chosen(name):
            return False
        difference = compare_outputs(self.reference, self.candidate, [name])
        if difference.bit_equal:
            return False
        if self.allowed and not difference.broken and difference.max_rel <= self.allowed:
            return False
        return choice_before(self.model, name) is not None

    def _may_be_chosen(self, name: str) -> bool:
        """Whether the outputs are alike in all that a choice cannot change."""
        pairs = zip(self.reference, self.candidate, strict=True)
        return all(
            name in b
            and a[name].dtype == b[name].dtype
            and a[name].ndim == b[name].ndim
            and (_finite(b[name]) or not _finite(a[name]))
            for a, b in pairs
        )

    def _explain(self, names: Sequence[str], compared: Sequence[str]) -> None:
        """Says of the outputs `names` how far they differ, and what is compared instead."""
        provenance = self.model.provenance
        known = {provenance.get(output, output) for output in compared} | set(compared)
        groups: dict[Choice, list[str]] = {}
        for name in names:
            choice = choice_before(self.model, name)
            assert choice is not None
            groups.setdefault(choice, []).append(name)
        for choice, chosen in groups.items():
            differ = ", ".join(
                f"`{name}` {mismatch(name, self.reference, self.candidate)}" for name in chosen
            )
            values = ", ".join(choice.by)
            what = f"{differ}: {choice.operator} chooses by `{values}`"
            if set(choice.by) <= known:
                self._notes.append(f"{what}, which is compared")
                continue
            verify = ", ".join(f"{name}: {{verify: [{values}]}}" for name in chosen)
            self._unverified.append(
                f"{what}, so that the outputs cannot be compared themselves "
                f"(fix: outputs: {{{verify}}})"
            )

    def _usable(self, output: str, sources: Sequence[str]) -> list[str]:
        """The inner values that can be compared in place of `output`."""
        present = [source for source in sources if source in self.carried]
        stable = [source for source in present if inner_name(source) in self.stable]
        for source in sources:
            if source not in present:
                why = self.why_missing or "no value of the graph stands for it after the passes"
                self._unverified.append(
                    f"output `{output}`: its inner value `{source}` was not compared: {why}"
                )
            elif source not in stable:
                self._unverified.append(
                    f"output `{output}`: its inner value `{source}` depends on random operators"
                )
        if stable and len(stable) == len(sources):
            self._check_tail(output, sources)
        return stable

    def _check_tail(self, output: str, sources: Sequence[str]) -> None:
        """Where the inner values are the same, and all there is before it, the output must be."""
        same = [
            all(_equal(a, b, inner_name(source)) for source in sources)
            for a, b in zip(self.reference, self.candidate, strict=True)
        ]
        wrong = [
            index
            for index, (a, b) in enumerate(zip(self.reference, self.candidate, strict=True))
            if not _equal(a, b, output)
        ]
        if not wrong:
            return
        told = f"`{output}` {mismatch(output, self.reference, self.candidate)}"
        names = ", ".join(sources)
        if any(same[index] for index in wrong) and self._cut_off(output, sources):
            bad = next(index for index in wrong if same[index])
            difference = compare_arrays(
                self.reference[bad][output], self.candidate[bad][output], output
            )
            if difference.broken or difference.max_rel > (self.allowed or 0.0):
                self._broken = f"{told}, though its inner values ({names}) are the same there"
                return
        self._notes.append(f"{told}; `{names}` was compared in its place")

    def _cut_off(self, output: str, sources: Sequence[str]) -> bool:
        """Whether all that the output is computed from goes through the inner values."""
        value = next(v for v in self.model.ir.graph.outputs if v.name == output)
        return not any(v.is_graph_input() for v in _until(value, set(sources)))


def _until(output: ir.Value, sources: set[str]) -> list[ir.Value]:
    """The values before `output`, not looking behind those that stand for `sources`."""
    from optimc.core.model import SOURCE_KEY

    return values_before(output, stop=lambda value: value.meta.get(SOURCE_KEY) in sources)


def in_both(one: Judged, other: Judged) -> Judged:
    """What holds against both of two references; what is said of `one` goes first."""
    return Judged(
        tuple(name for name in one.names if name in other.names),
        one.unverified or other.unverified,
        one.notes or other.notes,
        one.broken or other.broken,
    )


def aligned(
    reference: Sequence[Outputs], candidate: Sequence[Outputs], interface: Signature
) -> list[Outputs]:
    """`candidate` in the reference's float types: precision passes change them.

    That holds for inner values, and for outputs that have the type which `interface`, that of the
    model behind `candidate`, declares.
    """
    declared = {spec.name: spec.dtype for spec in interface.outputs}

    def cast(expected: Outputs, actual: Outputs) -> Outputs:
        changed: dict[str, NDArray[Any]] = dict(actual)
        for name, array in actual.items():
            known = name.startswith(PREFIX) or declared.get(name) == array.dtype.name
            if known and name in expected:
                wanted = expected[name].dtype
                if wanted != array.dtype and not {wanted.kind, array.dtype.kind} & set("biuOSU"):
                    changed[name] = array.astype(wanted)
        return changed

    return [cast(a, b) for a, b in zip(reference, candidate, strict=True)]


def _equal(a: Outputs, b: Outputs, name: str) -> bool:
    return compare_arrays(a[name], b[name], name).bit_equal


def _finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind in "biuUSO":
        return True
    return bool(np.isfinite(array.astype(np.float64)).all())


def joined(answers: Sequence[Mapping[str, Any]], inner: Sequence[Outputs]) -> list[Outputs]:
    """The answers of an engine with the inner values of its variant beside them."""
    return [
        {**own, **{name: array for name, array in more.items() if name.startswith(PREFIX)}}
        for own, more in zip(answers, inner, strict=True)
    ]
