"""The torch level of a build: modules in workers, judged by torch, and lowered by export.

A module that passes changed is kept as data (`core.torch_model`); whoever needs it running opens
the recipe's source in a fresh worker and brings it into that state. So what is judged, exported and
handed to the next pass is what was stored, and nothing else.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.errors import CellError, OptimcError
from optimc.core.model import SOURCE_KEY, OnnxModel, Signature, load_model
from optimc.core.passes import Effect, EffectKind
from optimc.core.torch_model import TorchModel, TorchStats
from optimc.frontends.torch_workshop import TorchWorkshop
from optimc.pipeline.compare import compare_outputs
from optimc.pipeline.ingest import Source
from optimc.pipeline.ingest_torch import (
    kind_of,
    module_tools,
    opening_options,
    where_of,
    write_exported,
)
from optimc.pipeline.manager import PassOutcome
from optimc.pipeline.preprocess import starting_point
from optimc.pipeline.probes import ProbeSource, probes_digest
from optimc.pipeline.recipe.model_sources import ModuleSource
from optimc.pipeline.verification import Finding, Segment, Verdict, finding_of, measure_lossy

if TYPE_CHECKING:
    from optimc.pipeline.build import Build
    from optimc.pipeline.compare import Outputs
    from optimc.pipeline.probes import Probe

_CALIBRATION_PROBES = 32
_REMEMBERED = 3
DEFAULT_SQNR_DB = 10.0
"""Of the outputs of a module that passes changed, where no metric judges it: a model that was
trained anew is further from the source than one that was rounded."""
_SAID = "source.json"


@dataclass(frozen=True)
class Lowered:
    """A torch model as ONNX, ready for passes: outputs chosen, preprocessing embedded."""

    model: OnnxModel
    path: Path
    errors: tuple[float, float, float]
    """Between torch and ONNX on the probes: the greatest as a share of the output's scale, the
    greatest, and the SQNR in dB."""
    note: str
    seconds: float
    cached: bool


class TorchLevel:
    """What a build does with modules. `close` ends the worker that is kept open."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._outputs: dict[str, list[Outputs]] = {}
        self._open: tuple[str, TorchWorkshop] | None = None

    @property
    def _recipe_model(self) -> ModuleSource:
        model = self._build.recipe.model
        assert isinstance(model, ModuleSource)
        return model

    @cached_property
    def source(self) -> TorchModel:
        """The module that came in."""
        source = self._build.source
        assert source.origin is not None
        key = digest_of("torch-stats", source.key)
        entry = self._build.cache.get("torch-stats", key)
        if entry is None:
            unknown = TorchStats(0, 0, 0, 0)
            stats = self._opened(TorchModel(source.origin, source.model.signature, unknown)).stats()
            content = {name: getattr(stats, name) for name in TorchStats.__slots__}

            def write(folder: Path) -> None:
                (folder / "stats.json").write_text(json.dumps(content), encoding="utf-8")

            entry = self._build.cache.put("torch-stats", key, write)
        content = json.loads((entry / "stats.json").read_text(encoding="utf-8"))
        return TorchModel(source.origin, source.model.signature, TorchStats(**content))

    def workshop(
        self, model: TorchModel, folder: Path, progress: Callable[[float, str], None] | None = None
    ) -> TorchWorkshop:
        """`model` in a worker of its own, to be closed; results go into `folder`."""
        build = self._build
        shop = TorchWorkshop(
            kind_of(self._recipe_model),
            opening_options(build.recipe, self._recipe_model),
            where=where_of(build.recipe, self._recipe_model),
            limits=build.limits,
            example=self._example,
        )
        try:
            shop.open(model, folder, progress)
        except BaseException:
            shop.close()
            raise
        return shop

    def _opened(self, model: TorchModel) -> TorchWorkshop:
        """The worker that is kept, with `model` in it."""
        if self._open is None or self._open[0] != model.digest:
            self.close()
            folder = Path(tempfile.mkdtemp(prefix="torch-", dir=self._build.workspace))
            self._open = (model.digest, self.workshop(model, folder))
        return self._open[1]

    def close(self) -> None:
        """Ends the worker; nothing of ours may run while engines are measured."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    @property
    def _signature(self) -> Signature:
        return self._build.source.model.signature

    @cached_property
    def _example(self) -> Mapping[str, Any]:
        """Feeds of one small batch at the typical sizes."""
        from optimc.pipeline.recipe.schema import DimRange

        def fixed(size: int) -> DimRange:
            return DimRange(min=size, typical=size, max=size)

        build = self._build
        dims = {name: fixed(dim.typical) for name, dim in build.data.dims.items()}
        leading = {str(spec.shape[0]) for spec in self._signature.inputs if spec.shape}
        for name in leading & dims.keys():
            dims[name] = fixed(max(2, build.data.dims[name].min))
        source = ProbeSource(self._signature, dims, build.recipe.inputs, build.recipe.seed)
        return source.for_passes("fast")[0].feeds

    @cached_property
    def _probes(self) -> tuple[Probe, ...]:
        """As for ONNX passes, but of what the module itself takes."""
        build = self._build
        source = ProbeSource(
            self._signature,
            build.data.dims,
            build.recipe.inputs,
            build.recipe.seed,
            build.data.samples(_CALIBRATION_PROBES),
        )
        return source.for_passes(build.options.verify)

    @property
    def verifier_digest(self) -> str:
        """Names the probes and the libraries: a verdict is remembered only for these."""
        effort = self._build.options.verify
        return digest_of("torch", probes_digest(self._probes), effort, self._tools)

    @cached_property
    def _tools(self) -> Mapping[str, str]:
        """Versions of what the module is made and run by."""
        return module_tools(self._recipe_model)

    def _answers(self, model: TorchModel) -> list[Outputs]:
        """What the module computes on the probes."""
        if model.digest not in self._outputs:
            shop = self._opened(model)
            self._outputs[model.digest] = [shop.run(probe.feeds) for probe in self._probes]
            while len(self._outputs) > _REMEMBERED:
                self._outputs.pop(next(iter(self._outputs)))
        return self._outputs[model.digest]

    def judge(self, effect: Effect, before: TorchModel, after: TorchModel) -> Finding:
        """Compares the modules by torch, on the floating-point outputs.

        LOSSY passes with the source: what training mends shows against what it should be.
        """
        if effect.kind is EffectKind.LOSSY:
            before = self.source
        if self._build.options.verify == "off":
            return Finding(Verdict.UNVERIFIED, "verification is off")
        reference = self._answers(before)
        try:
            candidate = self._answers(after)
        except OptimcError as error:
            return Finding(Verdict.FAILED, f"the result does not run: {error.what}")
        if any(list(old) != list(new) for old, new in zip(reference, candidate, strict=True)):
            return Finding(Verdict.FAILED, "the result has other outputs")
        names = [name for name, array in reference[0].items() if array.dtype.kind in "fV"]
        if not names:
            return Finding(Verdict.UNVERIFIED, "no output is floating-point")
        if effect.kind is EffectKind.LOSSY:
            return measure_lossy(self._probes, reference, candidate, names)
        difference = compare_outputs(reference, candidate, names)
        reason = difference.broken
        if reason is None and difference.max_rel > effect.bound:
            reason = f"outputs differ by {difference.max_rel:.3g} of their scale"
        verdict = Verdict.EQUIVALENT if difference.bit_equal else Verdict.WITHIN_TOLERANCE
        return finding_of(Verdict.FAILED if reason else verdict, difference, len(candidate), reason)

    def lowered(self, model: TorchModel) -> Lowered:
        """The module as ONNX, compared with torch at the corners of the dims; kept.

        Raises CellError where it cannot be exported, or the ONNX form does not agree.
        """
        build, started = self._build, time.perf_counter()
        key = digest_of("export", model.digest, build.source.key)
        entry = build.cache.get("export", key)
        cached = entry is not None
        if entry is None:
            shop = self._opened(model)
            description = shop.describe()

            def write(out: Path) -> None:
                with tempfile.TemporaryDirectory(prefix="export-", dir=build.workspace) as folder:
                    made = Path(folder)
                    write_exported(
                        made, shop, description, build.recipe, build.limits, build.workspace
                    )
                    _without_provenance(made / "model").save(out / "model")
                    copyfile(made / _SAID, out / _SAID)

            entry = build.cache.put("export", key, write)
        content = json.loads((entry / _SAID).read_text(encoding="utf-8"))
        own = load_model(entry / "model")
        assert isinstance(own, OnnxModel)
        start = starting_point(
            build.recipe, Source(own, (), {}, 0), build.data, build.cache, build.limits
        )
        seconds = time.perf_counter() - started
        return Lowered(
            start.model,
            start.path,
            tuple(content["errors"]),
            content["notes"][-1],
            seconds,
            cached,
        )


def _without_provenance(folder: Path) -> OnnxModel:
    """The stored model, with values that stand for none of the source's: their numbers differ, so
    that ranges have to be observed on this model itself."""
    from optimc.core.onnx_signature import all_values

    stored = load_model(folder)
    assert isinstance(stored, OnnxModel)
    clone = stored.clone()
    for value in all_values(clone.ir):
        value.meta.pop(SOURCE_KEY, None)
    return clone.sealed()


def held_to_source(outcomes: Sequence[PassOutcome]) -> None:
    """Holds what passes of the torch level left to the default bound, where no metric judges it.

    Raises CellError where the outputs' SQNR against the source is below.
    """
    lossy = [o for o in outcomes if o.lossy and o.modified]
    sqnr_db = lossy[-1].finding.sqnr_db if lossy else None
    if sqnr_db is not None and sqnr_db < DEFAULT_SQNR_DB:
        names = ", ".join(dict.fromkeys(o.name for o in lossy))
        raise CellError(
            f"behind {names} the outputs have an SQNR of {sqnr_db:.1f} dB against the source, the "
            f"default bound is {DEFAULT_SQNR_DB:.1f} dB",
            fix="name a metric and data.evaluation, which judge in its place",
        )


def export_outcome(before: TorchModel, found: Lowered) -> PassOutcome:
    """The export as the report tells it, between the passes of the two levels."""
    relative, greatest, sqnr_db = found.errors
    verdict = Verdict.WITHIN_TOLERANCE if relative else Verdict.EQUIVALENT
    finding = Finding(verdict, None, greatest, relative, sqnr_db)
    return PassOutcome(
        name="export",
        options={},
        model=found.model,
        segment=Segment(found.model.digest, found.path),
        finding=finding,
        modified=True,
        nodes=(before.stats.nodes, found.model.stats.nodes),
        bytes=(before.stats.bytes, found.model.stats.bytes),
        seconds=found.seconds,
        cached=found.cached,
        rewrites=(),
        refusals=(),
        notes=(found.note,),
    )
