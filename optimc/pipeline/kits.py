"""Kits: what a build leaves for a target that cannot be built here.

A kit is a folder with the placed model, the source, probe inputs with the outputs that either gave
here, and the target's own scripts, which build the engine and compare it without optimc.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.core.errors import CellError
from optimc.core.targets import BuildContext
from optimc.measure.metric import SampleMetric
from optimc.pipeline.kit_file import (
    EVALUATION,
    KIT,
    PROBES,
    REPORT,
    KitFile,
    KitProbe,
    Stored,
    kit_text,
    with_libraries,
)
from optimc.pipeline.outputs import verified_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.core.model import OnnxModel
    from optimc.core.targets import Target
    from optimc.pipeline.assemble import CellResult
    from optimc.pipeline.build import Build
    from optimc.pipeline.oracle import Oracle
    from optimc.report.schema import Report

_BATCH = 64


def prepare_kit(build: Build, result: CellResult, model: OnnxModel, oracle: Oracle) -> None:
    """Writes the kit of a deferred cell into the build's workspace, and notes where it goes.

    The cell fails where its target cannot take the model at all.
    """
    cell = result.cell
    folder = build.workspace / "kits" / cell.variant / cell.target_name
    folder.mkdir(parents=True)
    context = BuildContext(workspace=build.workspace, seed=build.recipe.seed, dims=build.data.sizes)
    try:
        target = _with_own_libraries(cell.target, folder)
        model.save(folder / "model")
        origin = build.origin(result)
        origin.save(folder / "source")
        expected = oracle.outputs(model.digest, build.path_of(model))
        reference = oracle.outputs(origin.digest, build.path_of(origin))
        feeds = [probe.feeds for probe in oracle.probes]
        write_probes(folder / PROBES, model, feeds, expected, reference)
        result.kit_evaluation = write_evaluation(build, result, folder / EVALUATION)
        told = kit_text(_kit_file(build, result, target, model, oracle))
        (folder / KIT).write_text(told, encoding="utf-8")
        target.defer(model, folder, context)
    except CellError as error:
        result.status, result.reason = "failed", f"no kit: {error.what}"
        return
    result.kit = folder
    place = f"artifacts/{cell.variant}/{cell.target_name}"
    result.reason = f"{result.reason}; its kit is in {place}, finish it with `optimc finish`"


def write_probes(
    path: Path,
    model: OnnxModel,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    reference: Sequence[Mapping[str, NDArray[Any]]],
) -> None:
    """The arrays of every probe: ``<probe>.in.<i>``, ``<probe>.out.<i>`` and ``<probe>.ref.<i>``.

    Inputs and outputs are numbered in the order of the signature, as names may hold anything;
    ``ref`` are the outputs of the source, where they have the model's names.
    """
    import numpy as np

    arrays: dict[str, NDArray[Any]] = {}
    for number, fed in enumerate(feeds):
        for index, spec in enumerate(model.signature.inputs):
            arrays[f"{number}.in.{index}"] = fed[spec.name]
        for index, spec in enumerate(model.signature.outputs):
            arrays[f"{number}.out.{index}"] = expected[number][spec.name]
            if spec.name in reference[number]:
                arrays[f"{number}.ref.{index}"] = reference[number][spec.name]
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _with_own_libraries(target: Target, folder: Path) -> Target:
    """The target as the kit has it: copies of its libraries, by their places in the kit."""
    places = []
    for number, library in enumerate(target.libraries()):
        place = Path("plugins") / f"{number}-{library.name}"
        (folder / "plugins").mkdir(exist_ok=True)
        shutil.copyfile(library, folder / place)
        places.append(place)
    return with_libraries(target, places)


def _kit_file(
    build: Build, result: CellResult, target: Target, model: OnnxModel, oracle: Oracle
) -> KitFile:
    """What `optimc finish` reads."""
    cell, recipe = result.cell, build.recipe
    stable = oracle.stable_outputs(model, build.path_of(model))
    uncompared = {
        spec.name: "it depends on random operators"
        for spec in model.signature.outputs
        if spec.name not in stable
    }
    uncompared |= {
        name: f"the recipe has it judged by inner values ({', '.join(values)}), which need a build"
        for name, values in verified_by(recipe).items()
    }
    known: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for name, metric in recipe.metrics.items():
        if isinstance(metric, SampleMetric):
            known[name] = metric.model_dump(mode="json")
        else:
            left_out[name] = "it is code of the recipe (`call`), which is not in the kit"
    return KitFile(
        schema=2,
        optimc=__version__,
        variant=cell.variant,
        target=cell.target_name,
        options=target.model_dump(mode="json"),
        dims=dict(build.data.dims),
        seed=recipe.seed,
        lossy=result.lossy,
        signature=json.loads(json.dumps(model.signature.to_json())),  # lists, not tuples
        model=Stored(file="model/model.onnx", digest=model.digest),
        source=Stored(file="source/model.onnx", digest=build.origin(result).digest),
        probes=tuple(KitProbe(label=probe.label, real=probe.real) for probe in oracle.probes),
        compared=tuple(s.name for s in model.signature.outputs if s.name not in uncompared),
        uncompared=uncompared,
        inputs=dict(build.start.inputs),
        benchmark=recipe.benchmark,
        limits=recipe.limits,
        gate=recipe.gate,
        metrics=known,
        metrics_left_out=left_out,
        evaluation=result.kit_evaluation,
        evaluation_labels=bool(build.data.evaluation and build.data.evaluation.has_labels),
    )


def write_evaluation(build: Build, result: CellResult, path: Path) -> str | None:
    """Writes the evaluation split as the cell's engine takes it, where the target's options ask
    for it: ``in.<i>`` [samples, ...] and ``labels``. Returns why there is none, None where it is.
    """
    dataset = build.start.data.evaluation or build.data.evaluation
    if not getattr(result.cell.target, "evaluation_in_kit", False):
        return "no evaluation data is in the kit (set `evaluation_in_kit: true` for the target)"
    if dataset is None:
        return "the recipe names no evaluation data"
    if dataset.samples_per_label != 1:
        return "a kit holds no evaluation data of pairs"
    if len(dataset.all_sample_specs()) > 1:
        return "a kit holds no evaluation data of samples with different shapes"
    return _write_samples(build, dataset, path)


def _write_samples(build: Build, dataset: Dataset, path: Path) -> str | None:
    import numpy as np

    feeds: dict[str, list[NDArray[Any]]] = {}
    labels: list[NDArray[Any]] = []
    for batch in dataset.batches(_BATCH):
        for index, spec in enumerate(build.start.model.signature.inputs):
            feeds.setdefault(f"in.{index}", []).append(batch.feeds[spec.name])
        if isinstance(batch.labels, np.ndarray):
            labels.append(batch.labels)
        elif batch.labels is not None:
            return "a kit holds labels of one number or array a sample only"
    if len({piece.shape[1:] for piece in labels}) > 1:
        return "a kit holds labels of one shape only"
    arrays = {name: np.concatenate(pieces) for name, pieces in feeds.items()}
    if labels:
        arrays["labels"] = np.concatenate(labels)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return None


def write_reports(build: Build, report: Report, folder: Path) -> None:
    """Puts into every kit under `folder` what the build knows of its cell by now, as a report."""
    from optimc.report.canonical import to_json
    from optimc.report.schema import Gate

    for result in build.results.values():
        if result.kit is None:
            continue
        cell = result.cell
        own = tuple(
            one
            for one in report.results
            if (one.variant, one.target) == (cell.variant, cell.target_name)
        )
        gate = Gate(verdict="none", checks=())
        part = report.model_copy(update={"results": own, "best": None, "gate": gate})
        place = folder / cell.variant / cell.target_name / REPORT
        place.write_text(to_json(part), encoding="utf-8")
