"""Engines: built in workers, kept in the cache, and proved against their graph and the source."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.cpu import cpu_features
from optimc.core.digest import digest_of
from optimc.core.errors import CellError
from optimc.core.files import file_sha256
from optimc.core.model import OnnxModel, load_model
from optimc.core.targets import BuildContext, DimSizes, Engine, Target
from optimc.core.worker import Limits
from optimc.pipeline.cache import Cache
from optimc.pipeline.compare import compare_on_data, compare_outputs
from optimc.pipeline.engine_answers import Asking, EngineAnswers
from optimc.pipeline.inner_values import InnerValues, View
from optimc.pipeline.judging import Judge, aligned, in_both, joined
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.probes import probes_digest
from optimc.pipeline.verification import ENGINE_TOLERANCE, Finding, Verdict, judge_engine
from optimc.pipeline.versions import compiler_digest, source_digest, tool_versions
from optimc.targets.client import build_engine

if TYPE_CHECKING:
    from optimc.pipeline.compare import Difference
    from optimc.pipeline.probes import Probe
    from optimc.targets.client import OpenEngine


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an engine's outputs compare with one reference's."""

    max_rel_error: float
    sqnr_db: float
    samples: int


@dataclass(frozen=True)
class EngineProof:
    """What verification says of an engine, and what its runtime really runs."""

    finding: Finding
    against_onnx: Agreement | None
    against_source: Agreement | None
    precision: str | None
    int8_share: float | None
    """None where no pass made INT8 of anything."""
    islands: tuple[tuple[str, str], ...]
    """Heavy nodes that run in float in a quantized engine, with the reason."""


@dataclass
class EngineBuilder:
    """Builds and proves engines. Counts the builds that really ran."""

    cache: Cache
    limits: Limits
    workspace: Path
    seed: int
    inner: InnerValues
    dims: Mapping[str, DimSizes]
    builds: int = 0
    progress: Callable[[float, str], None] | None = None
    """Gets how far a build is, from targets that say it."""

    @cached_property
    def answers(self) -> EngineAnswers:
        """What engines say of probes."""
        return EngineAnswers(self.limits)

    def build(
        self, name: str, target: Target, model: OnnxModel, probes: Sequence[Probe] | None = None
    ) -> Engine:
        """The engine of `model` for `target`, from the cache where it is there.

        With `probes` the process that builds it also runs it on them, for `prove`, where the target
        has it open. Raises CellError and WorkerError, as the runtime's refusals, crashes and limits
        are.
        """
        key = digest_of(
            ["engine", model.digest, model.names_digest],
            [target.model_dump(mode="json", exclude={"optional"}), self.seed],
            [compiler_digest(), source_digest(type(target)), tool_versions(target.tools)],
            sorted(cpu_features()),
            {name: asdict(sizes) for name, sizes in self._dims(target).items()},
            *_native(target),
        )
        entry = self.cache.get("engine", key)
        if entry is not None:
            return Engine.read(entry)
        asking = None if probes is None else Asking(name, probes)
        entry = self.cache.put("engine", key, lambda o: self._build(name, target, model, o, asking))
        engine = Engine.read(entry)
        if asking is not None:
            self.answers.keep(engine, asking)
        return engine

    def _build(
        self,
        name: str,
        target: Target,
        model: OnnxModel,
        out: Path,
        then: Callable[[OpenEngine], None] | None,
    ) -> None:
        self.builds += 1
        with tempfile.TemporaryDirectory(prefix="build-", dir=self.workspace) as folder:
            stored = Path(folder) / "model"
            model.save(stored)
            build_engine(
                target,
                stored,
                out,
                name=f"building {name}",
                limits=self.limits,
                seed=self.seed,
                dims=self._dims(target),
                timings=self._timings(target, Path(folder)),
                progress=self.progress,
                then=then,
            )
            self._keep_timings(target, Path(folder))

    def _timings(self, target: Target, folder: Path) -> Path | None:
        """A file with what earlier builds on this device measured, for one build to change."""
        if not target.keeps_timings:
            return None
        known = self.cache.get("timings", _timings_key(target))
        if known is not None:
            shutil.copyfile(known / _TIMINGS, folder / _TIMINGS)
        return folder / _TIMINGS

    def _keep_timings(self, target: Target, folder: Path) -> None:
        left = folder / _TIMINGS
        if target.keeps_timings and left.is_file() and left.stat().st_size:
            self.cache.renew(
                "timings", _timings_key(target), lambda out: _copy(left, out / _TIMINGS)
            )

    def timings_digest(self, target: Target) -> str | None:
        """SHA-256 of what is kept of earlier builds on this device, None where there is nothing."""
        if not target.keeps_timings:
            return None
        known = self.cache.get("timings", _timings_key(target))
        return None if known is None else file_sha256(known / _TIMINGS)

    def _dims(self, target: Target) -> Mapping[str, DimSizes]:
        """The sizes that the target reads."""
        return self.dims if target.reads_dims else {}

    def legalized(self, target: Target, model: OnnxModel) -> tuple[OnnxModel, str] | None:
        """The model with what only the target's runtime knows, and what that is, in words.

        None where there is nothing of the kind. Raises CellError where the rewriting breaks.
        """
        key = digest_of(
            ["legal", model.digest, model.names_digest],
            [target.model_dump(mode="json", exclude={"optional"}), self.seed],
            [compiler_digest(), source_digest(type(target)), tool_versions(target.tools)],
            tool_versions(["onnx-ir", "onnxscript"]),
        )
        entry = self.cache.get("legal", key)
        if entry is None:
            entry = self.cache.put("legal", key, lambda out: self._legalize(target, model, out))
        notes = json.loads((entry / "notes.json").read_text(encoding="utf-8"))
        if not (entry / "model").exists():
            return None
        legal = load_model(entry / "model")
        assert isinstance(legal, OnnxModel)
        return legal, "; ".join(notes)

    def _legalize(self, target: Target, model: OnnxModel, out: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="legalize-", dir=self.workspace) as folder:
            context = BuildContext(workspace=Path(folder), seed=self.seed)
            legal = target.legalize(model, context)
            if legal is not model:
                legal.save(out / "model")
        (out / "notes.json").write_text(json.dumps(context.notes), encoding="utf-8")

    def prove(
        self,
        name: str,
        engine: Engine,
        *,
        target: Target,
        lossy: bool,
        model: OnnxModel,
        model_path: Path,
        source: OnnxModel,
        source_path: Path,
        oracle: Oracle,
        skip_reason: str | None,
    ) -> EngineProof:
        """Compares the engine with its graph and the source on the oracle's probes.

        Where the recipe has outputs judged by inner values, these are those of a variant: the
        target's engine of the same graph with the values as further outputs.
        """
        key = digest_of(
            ["engine-proof", engine.digest, engine.manifest["files"], engine.manifest["session"]],
            [lossy, source.digest],
            [model.digest, model.names_digest, source.names_digest, self.inner.wanted]
            if self.inner.wanted
            else [],
            [probes_digest(oracle.probes), skip_reason, compiler_digest(), sorted(cpu_features())],
            tool_versions(["onnxruntime", "openvino"]),
        )
        entry = self.cache.get("engine-proof", key)
        if entry is not None:
            self.answers.drop(engine)
        else:

            def write(folder: Path) -> None:
                proof = self._prove(
                    name,
                    engine,
                    target,
                    lossy,
                    (model, model_path),
                    (source, source_path),
                    oracle,
                    skip_reason,
                )
                (folder / "proof.json").write_text(json.dumps(asdict(proof)), encoding="utf-8")

            entry = self.cache.put("engine-proof", key, write)
        return _read_proof(json.loads((entry / "proof.json").read_text(encoding="utf-8")))

    def _prove(
        self,
        name: str,
        engine: Engine,
        target: Target,
        lossy: bool,
        model: tuple[OnnxModel, Path],
        source: tuple[OnnxModel, Path],
        oracle: Oracle,
        skip_reason: str | None,
    ) -> EngineProof:
        from optimc.core.onnx_signature import holds_four_bits

        said = self.answers.of(name, engine, oracle.probes)
        taken, answers = said.taken, said.runs
        if skip_reason is not None:
            finding = Finding(Verdict.UNVERIFIED, skip_reason)
            return _proof(finding, None, None, taken, lossy)
        graph_view, source_view = self.inner.view(*model), self.inner.view(*source)
        graph = oracle.outputs(graph_view.digest, graph_view.path)
        origin = oracle.outputs(source_view.digest, source_view.path)
        stable = oracle.stable_outputs(source_view.model, source_view.path)
        wrong = oracle.wrong_form(source_view.model, source_view.path, answers)
        if wrong is not None:
            return _proof(Finding(Verdict.FAILED, wrong), None, None, taken, lossy)
        carried, missing = graph_view.carried & source_view.carried, None
        if carried:
            try:
                answers = joined(answers, self._variant(name, target, graph_view, oracle))
            except CellError as error:
                carried = frozenset()
                missing = f"the engine with it as an output cannot be had: {error.what}"
        precision = _coarser(engine.manifest["session"].get("precision", "f32"), model[0])
        allowed = 0.0 if lossy else ENGINE_TOLERANCE[precision]
        made = model[0].signature
        sides = [
            Judge(
                self.inner,
                of,
                carried,
                stable,
                runs,
                aligned(runs, answers, made),
                allowed,
                missing,
            )
            for of, runs in ((source[0], origin), (model[0], graph))
        ]
        judged = in_both(*(side.judged() for side in sides))
        judged = judged.without(oracle.unstable_outputs(source_view.model, source_view.path))
        if carried:
            judged = judged.noting(
                f"{', '.join(f'`{name}`' for name in sorted(carried))} compared on a variant of "
                "the engine that has them as outputs"
            )
        if not judged.names:
            finding = judged.concluded(Finding(Verdict.UNVERIFIED))
            return _proof(finding, None, None, taken, lossy)
        finding = judge_engine(
            precision,
            lossy=lossy,
            probes=oracle.probes,
            source=origin,
            graph=aligned(origin, graph, made),
            engine=sides[0].candidate,
            names=judged.names,
            four_bits=holds_four_bits(model[0].ir),
        )
        agreements = []
        for side in sides:
            pair = (side.reference, side.candidate, judged.names)
            found = compare_on_data(oracle.probes, *pair) if lossy else compare_outputs(*pair)
            agreements.append(_agreement(found, len(answers)))
        against_source, against_graph = agreements
        return _proof(judged.concluded(finding), against_graph, against_source, taken, lossy)

    def _variant(
        self, name: str, target: Target, view: View, oracle: Oracle
    ) -> list[Mapping[str, Any]]:
        """What `target`'s engine of a view computes; raises CellError as engines do."""
        called = f"{name} with inner values"
        engine = self.build(called, target, view.model, oracle.probes)
        return self.answers.of(called, engine, oracle.probes).runs


def warned(name: str, target: Target, engine: Engine) -> list[str]:
    """What the runtime warned of while it built the engine, as lines for the report."""
    return [f"{name}: {note}" for note in engine.manifest["notes"]] if target.logs_builds else []


_TIMINGS = "timing.cache"


def _native(target: Target) -> list[object]:
    """What decides an engine beside the graph, the options and the CPU; nothing for most."""
    hardware = dict(target.hardware())
    libraries = [file_sha256(path) for path in target.libraries()]
    return [hardware, libraries] if hardware or libraries else []


def _timings_key(target: Target) -> str:
    return digest_of("timings", target.runtime, tool_versions(target.tools), *_native(target))


def _copy(source: Path, to: Path) -> None:
    shutil.copyfile(source, to)


def _coarser(precision: str, model: OnnxModel) -> str:
    """The precision that decides the tolerance: a runtime that computes a float16 graph in float32
    is as far from the source as float16 is, and rounds in other places than the graph says."""
    from optimc.core.onnx_signature import holds_float16

    return "f16" if precision == "f32" and holds_float16(model.ir) else precision


def _agreement(difference: Difference, samples: int) -> Agreement:
    return Agreement(difference.max_rel, difference.sqnr_db, samples)


def _proof(
    finding: Finding,
    against_onnx: Agreement | None,
    against_source: Agreement | None,
    taken: Mapping[str, Any],
    lossy: bool,
) -> EngineProof:
    islands = tuple((str(i["node"]), str(i["reason"])) for i in taken.get("islands", ()))
    return EngineProof(
        finding,
        against_onnx,
        against_source,
        taken.get("precision"),
        taken.get("int8_share") if lossy else None,
        islands,
    )


def _read_proof(data: Mapping[str, Any]) -> EngineProof:
    finding = Finding(**{**data["finding"], "verdict": Verdict(data["finding"]["verdict"])})
    sides = {
        side: None if data[side] is None else Agreement(**data[side])
        for side in ("against_onnx", "against_source")
    }
    return EngineProof(
        finding,
        **sides,
        precision=data["precision"],
        int8_share=data["int8_share"],
        islands=tuple((node, reason) for node, reason in data["islands"]),
    )
