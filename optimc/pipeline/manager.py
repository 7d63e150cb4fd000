"""The pass manager: cache, verification, roll-back and observers around each pass."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from optimc import __version__
from optimc.core import interruption
from optimc.core.analyses import Analyses
from optimc.core.cpu import cpu_features
from optimc.core.digest import digest_of
from optimc.core.errors import CellError, InputError, OptimcError
from optimc.core.files import file_sha256
from optimc.core.model import Model, OnnxModel, load_model
from optimc.core.passes import (
    Budget,
    Calibration,
    Device,
    Drop,
    Effect,
    EffectKind,
    Input,
    Pass,
    PassContext,
    PassResult,
    Rewrite,
    RewriteKey,
    RewriteLog,
    Training,
    Tuning,
    Workshop,
)
from optimc.core.targets import TargetSpec
from optimc.core.torch_model import TorchModel
from optimc.core.worker import Limits
from optimc.pipeline.cache import Cache
from optimc.pipeline.verification import Finding, PassVerifier, Segment, Verdict, held_to_bound
from optimc.pipeline.versions import compiler_digest, source_digest, tool_versions

CompiledModel: TypeAlias = OnnxModel | TorchModel
"""What passes work on."""


@dataclass(frozen=True, slots=True)
class PassOutcome:
    """What happened to one pass. `model` is what the next pass builds on."""

    name: str
    options: Mapping[str, Any]
    model: CompiledModel
    segment: Segment
    finding: Finding
    modified: bool
    nodes: tuple[int, int]
    bytes: tuple[int, int]
    seconds: float
    cached: bool
    rewrites: tuple[Rewrite, ...]
    refusals: tuple[Mapping[str, str], ...]
    failure: str | None = None
    """Why cells behind this pass fail, or None."""
    lossy: bool = False
    """Whether the pass may change the numbers, whatever verification could say of it."""
    runtime: str | None = None
    """The runtime whose spec the pass read."""
    choice: Any = None
    """What the pass chose by measuring, for the lock."""
    budget: Budget | None = None
    """The limit that the pass worked to, for the gate."""
    notes: tuple[str, ...] = ()
    """What the pass says, for the report."""


class Modules(Protocol):
    """What a manager needs for passes of the torch level; `pipeline.torch_level.TorchLevel`."""

    @property
    def verifier_digest(self) -> str:
        """Names the probes."""

    def workshop(
        self, model: TorchModel, folder: Path, progress: Callable[[float, str], None]
    ) -> Workshop:
        """`model` in a worker of its own; results go into `folder`."""

    def judge(self, effect: Effect, before: TorchModel, after: TorchModel) -> Finding:
        """Compares two modules by torch."""


class Observer(Protocol):
    """Hooks around every pass: progress, timing, dumps."""

    def before_pass(self, name: str, model: CompiledModel) -> None:
        """Called before the cache is asked."""

    def on_progress(self, name: str, share: float, text: str) -> None:
        """Called by passes that take long; `share` is 0 to 1."""

    def after_pass(self, outcome: PassOutcome) -> None:
        """Called with every outcome, cached or not."""


@dataclass(frozen=True)
class PassInputs:
    """What a pass may read besides the model, for one node of the plan."""

    spec: TargetSpec | None
    calibration: Calibration | None
    tuning: Tuning | None = None
    device: Device | None = None
    training: Training | None = None
    choice: Any = None
    """What the lock says that the pass chose, with ``--locked``."""


@dataclass
class PassManager:
    """Runs one pass at a time; see `run`. Counts what it really executed."""

    cache: Cache
    verifier: PassVerifier
    verifier_digest: str
    """Names the probes and the effort: a verdict is remembered only for these."""
    seed: int
    workspace: Path
    judge_lossy: bool = True
    """Whether LOSSY passes are held to their default SQNR bound here, or by a metric later."""
    limits: Mapping[str, int] = field(default_factory=dict)
    only: Mapping[str, frozenset[RewriteKey]] = field(default_factory=dict)
    """For bisection: by pass, the rewrites that it may do."""
    observers: Sequence[Observer] = ()
    modules: Modules | None = None
    """There where the source has modules."""
    folder: Path = Path()
    """The recipe's."""
    worker_limits: Limits = field(default_factory=Limits)
    executions: dict[str, int] = field(default_factory=dict)
    """How often each pass ran, cache hits not counted."""
    _known: dict[tuple[str, str], Analyses] = field(default_factory=dict)

    def run(
        self,
        pass_: Pass,
        model: CompiledModel,
        segment: Segment,
        inputs: PassInputs,
        *,
        required: bool,
    ) -> PassOutcome:
        """Runs `pass_` on `model`, or takes the result from the cache.

        A result that verification refuses is rolled back: the outcome carries the model from
        before, and a `failure` where the pass is `required`.
        """
        name = pass_.pass_name()
        for observer in self.observers:
            observer.before_pass(name, model)
        started = time.perf_counter()
        key = self._key(pass_, model, segment, inputs)
        entry = self.cache.get("pass", key) or self._chosen_before(pass_, model, segment, inputs)
        cached = entry is not None
        if entry is None:
            entry = self._execute(pass_, model, segment, inputs, key)
        record = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        outcome = self._outcome(
            pass_, model, segment, entry, record, time.perf_counter() - started, cached, required
        )
        if inputs.spec is not None:
            outcome = replace(outcome, runtime=inputs.spec.runtime)
        for observer in self.observers:
            observer.after_pass(outcome)
        return outcome

    def _chosen_before(
        self, pass_: Pass, model: CompiledModel, segment: Segment, inputs: PassInputs
    ) -> Path | None:
        """What an earlier run came to that chose by itself what the lock says: it is the same."""
        if inputs.choice is None:
            return None
        free = self._key(pass_, model, segment, replace(inputs, choice=None))
        entry = self.cache.get("pass", free)
        if entry is None:
            return None
        record = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        return entry if record["choice"] == inputs.choice else None

    def _key(self, pass_: Pass, model: CompiledModel, segment: Segment, inputs: PassInputs) -> str:
        name = pass_.pass_name()
        reads: dict[str, Any] = {}
        if Input.SPEC in pass_.needs and inputs.spec is not None:
            reads["spec"] = inputs.spec.digest
        if Input.CALIBRATION in pass_.needs and inputs.calibration is not None:
            reads["calibration"] = inputs.calibration.digest
        if Input.FLOAT in pass_.needs and segment.quantized_from is not None:
            origin = segment.quantized_from
            reads["float"] = [origin.digest, origin.names_digest]
        if Input.TUNING in pass_.needs | pass_.wants and inputs.tuning is not None:
            reads["tuning"] = [inputs.tuning.digest, inputs.choice]
        elif inputs.choice is not None:
            reads["choice"] = inputs.choice
        if Input.TRAINING in pass_.needs | pass_.wants and inputs.training is not None:
            # Sums over threads come in another order.
            reads["training"] = [inputs.training.digest, os.cpu_count()]
        if Input.DEVICE in pass_.needs:
            reads["device"] = inputs.device.digest if inputs.device else sorted(cpu_features())
        if files := pass_.files(self.folder):
            reads["files"] = [_sha256(file) for file in files]
        verifier = self.verifier_digest
        if isinstance(model, TorchModel) and self.modules is not None:
            verifier = self.modules.verifier_digest
        return digest_of(
            [name, pass_.version, pass_.options(), self.limits.get(name), self.seed],
            [compiler_digest(), source_digest(type(pass_)), tool_versions(pass_.tools)],
            # Names count: the result's provenance is made of them, and calibration goes by it.
            [model.digest, model.names_digest, reads],
            [verifier, segment.digest, segment.bound],
            tool_versions(["onnxruntime", "onnx", "onnx-ir"]),
            *([sorted(self.only[name])] if name in self.only else []),
        )

    def _execute(
        self, pass_: Pass, model: CompiledModel, segment: Segment, inputs: PassInputs, key: str
    ) -> Path:
        name = pass_.pass_name()
        self.executions[name] = self.executions.get(name, 0) + 1
        trains = Input.TRAINING in pass_.needs | pass_.wants
        with (
            tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.workspace) as folder,
            self.cache.unfinished(key) if trains else nullcontext() as unfinished,
        ):
            context = self._context(pass_, model, segment, inputs, Path(folder))
            context.unfinished = unfinished
            result = _run_pass(pass_, model, context)
            if isinstance(model, OnnxModel):
                self._keep_analyses(pass_, model, result)

            def write(entry: Path) -> None:
                after = result.model
                finding = Finding(Verdict.UNCHANGED)
                if result.modified:
                    after.save(entry / "model")
                    finding = self._finding(pass_, model, load_model(entry / "model"), segment)
                record = _record(result, finding)
                (entry / "record.json").write_text(json.dumps(record), encoding="utf-8")

            return self.cache.put("pass", key, write)

    def _finding(
        self, pass_: Pass, before: CompiledModel, after: Model, segment: Segment
    ) -> Finding:
        """What verification says of a stored result."""
        if isinstance(before, TorchModel):
            assert isinstance(after, TorchModel) and self.modules is not None
            return self.modules.judge(pass_.effect, before, after)
        assert isinstance(after, OnnxModel) and after.path is not None
        return _interface_finding(pass_, before, after) or self.verifier.judge(
            pass_.effect, before, self._stored(before), after, after.path, segment
        )

    def _keep_analyses(self, pass_: Pass, model: OnnxModel, result: PassResult) -> None:
        """What was found out of `model` goes on to the result as far as the pass preserves it."""
        if result.modified and isinstance(result.model, OnnxModel):
            known = self._analyses(model).preserved(pass_.preserves)
            self._known[_names(result.model)] = Analyses(result.model, known)

    def _analyses(self, model: OnnxModel) -> Analyses:
        return self._known.setdefault(_names(model), Analyses(model))

    def _context(
        self, pass_: Pass, model: CompiledModel, segment: Segment, inputs: PassInputs, folder: Path
    ) -> PassContext:
        name = pass_.pass_name()

        def progress(share: float, text: str) -> None:
            for observer in self.observers:
                observer.on_progress(name, share, text)

        modules = self.modules
        return PassContext(
            reads=pass_.needs | pass_.wants,
            log=RewriteLog(self.limits.get(name), only=self.only.get(name)),
            seed=self.seed,
            analyses=self._analyses(model) if isinstance(model, OnnxModel) else None,
            workspace=folder,
            target_spec=inputs.spec,
            calibration_data=inputs.calibration,
            quantized_from=segment.quantized_from,
            tuning_data=inputs.tuning,
            timed_device=inputs.device,
            choice=inputs.choice,
            progress=progress,
            training_data=inputs.training,
            folder=self.folder,
            limits=self.worker_limits,
            open_workshop=None
            if modules is None
            else lambda opened: modules.workshop(opened, folder, progress),
        )

    def _stored(self, model: OnnxModel) -> Path:
        """The model's file; a model that is only in memory is written to the workspace."""
        if model.path is not None:
            return model.path
        folder = self.workspace / f"model-{model.digest}"
        if not folder.exists():
            model.save(folder)
        return folder / "model.onnx"

    def _outcome(
        self,
        pass_: Pass,
        model: CompiledModel,
        segment: Segment,
        entry: Path,
        record: Mapping[str, Any],
        seconds: float,
        cached: bool,
        required: bool,
    ) -> PassOutcome:
        finding = Finding(**{**record["finding"], "verdict": Verdict(record["finding"]["verdict"])})
        # A pass that worked to a limit of its own was judged by a metric already.
        # Modules are judged once, as they are exported: what training mends is not final.
        judged = record["budget"] is not None or isinstance(model, TorchModel)
        if self.judge_lossy and not judged:
            finding = held_to_bound(finding, pass_.effect)
        failure = None
        after: CompiledModel = model
        if finding.broke:
            # The record says what the pass did; what stands is the model from before.
            verdict = Verdict.FAILED if required else Verdict.ROLLED_BACK
            finding = Finding(**{**asdict(finding), "verdict": verdict})
            if required:
                failure = f"pass {pass_.pass_name()} was rolled back: {finding.reason}"
        elif record["modified"]:
            loaded = load_model(entry / "model")
            assert isinstance(loaded, OnnxModel | TorchModel)
            after = loaded
            segment = _next_segment(pass_, segment, model, after)
        return PassOutcome(
            name=pass_.pass_name(),
            options=pass_.options(),
            model=after,
            segment=segment,
            finding=finding,
            modified=bool(record["modified"]) and after is not model,
            nodes=(model.stats.nodes, after.stats.nodes),
            bytes=(model.stats.bytes, after.stats.bytes),
            seconds=seconds,
            cached=cached,
            rewrites=tuple(Rewrite(**rewrite) for rewrite in record["rewrites"]),
            refusals=tuple(record["refusals"]),
            failure=failure,
            lossy=pass_.effect.kind is EffectKind.LOSSY,
            choice=record["choice"],
            budget=_read_budget(record["budget"]),
            notes=tuple(record["notes"]),
        )


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=str(file), fix="an option names this file"
        ) from error


def _names(model: OnnxModel) -> tuple[str, str]:
    """What analyses of a model are known by: they speak of names."""
    return model.digest, model.names_digest


def _run_pass(pass_: Pass, model: CompiledModel, context: PassContext) -> PassResult:
    """Runs the pass on a clone and seals the result, with `modified` made true to fact."""
    name = pass_.pass_name()
    clone = model.clone()
    try:
        pass_.check(clone, context)
        result = pass_.run(clone, context)
    except OptimcError as error:
        raise type(error)(f"pass {name}: {error.what}", where=error.where, fix=error.fix) from error
    except Exception as error:
        interruption.check()  # Ctrl-C may come out of a library as something else
        raise CellError(
            f"pass {name} (optimc {__version__}) broke: {type(error).__name__}: {error}",
            fix=f"leave the pass out, or report it with the model (`--limit {name}=N` narrows it)",
        ) from error
    assert isinstance(result.model, OnnxModel | TorchModel)
    sealed = result.model.sealed()
    modified = result.modified or sealed.digest != model.digest
    return replace(result, model=sealed, modified=modified)


def _interface_finding(pass_: Pass, before: OnnxModel, after: OnnxModel) -> Finding | None:
    """A failure where a pass changed names, dtypes or order of inputs or outputs.

    Float types may change where the pass says so.
    """
    for side in ("inputs", "outputs"):
        old = [(spec.name, spec.dtype) for spec in getattr(before.signature, side)]
        new = [(spec.name, spec.dtype) for spec in getattr(after.signature, side)]
        if pass_.changes_dtypes:
            old, new = ([(name, _kind(dtype)) for name, dtype in each] for each in (old, new))
        if old != new:
            return Finding(Verdict.FAILED, f"the {side} changed from {old} to {new}")
    return None


def _kind(dtype: str) -> str:
    return "float" if "float" in dtype else dtype


def _next_segment(
    pass_: Pass, segment: Segment, before: CompiledModel, after: CompiledModel
) -> Segment:
    if isinstance(before, TorchModel) or isinstance(after, TorchModel):
        return Segment(after.digest, Path())
    assert after.path is not None
    origin = before if pass_.quantizes else segment.quantized_from
    if pass_.effect.kind is EffectKind.LOSSY:
        return Segment(after.digest, after.path, quantized_from=origin)
    return replace(segment, bound=segment.bound + pass_.effect.bound, quantized_from=origin)


def _record(result: PassResult, finding: Finding) -> dict[str, Any]:
    return {
        "modified": result.modified,
        "stats": dict(result.stats),
        "rewrites": [asdict(rewrite) for rewrite in result.rewrites],
        "refusals": [asdict(refusal) for refusal in result.refusals],
        "finding": asdict(finding),
        "choice": result.choice,
        "budget": None if result.budget is None else asdict(result.budget),
        "notes": list(result.notes),
    }


def _read_budget(data: Mapping[str, Any] | None) -> Budget | None:
    return None if data is None else Budget(**{**data, "drop": Drop(**data["drop"])})
