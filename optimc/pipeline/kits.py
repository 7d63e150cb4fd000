"""Kits: what a build leaves for a target that cannot be built here.

A kit is a folder with the placed model, the source, probe inputs with the outputs that either gave
here, and the target's own scripts, which build the engine and compare it without optimc.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.core.errors import CellError
from optimc.core.targets import BuildContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel
    from optimc.pipeline.assemble import CellResult
    from optimc.pipeline.build import Build
    from optimc.pipeline.oracle import Oracle

KIT = "kit.json"
PROBES = "probes.npz"
SCHEMA = 1


def prepare_kit(build: Build, result: CellResult, model: OnnxModel, oracle: Oracle) -> None:
    """Writes the kit of a deferred cell into the build's workspace, and notes where it goes.

    The cell fails where its target cannot take the model at all.
    """
    cell = result.cell
    folder = build.workspace / "kits" / cell.variant / cell.target_name
    folder.mkdir(parents=True)
    context = BuildContext(workspace=build.workspace, seed=build.recipe.seed, dims=build.data.sizes)
    try:
        model.save(folder / "model")
        build.start.model.save(folder / "source")
        expected = oracle.outputs(model.digest, build.path_of(model))
        reference = oracle.outputs(build.start.model.digest, build.start.path)
        feeds = [probe.feeds for probe in oracle.probes]
        write_probes(folder / PROBES, model, feeds, expected, reference)
        (folder / KIT).write_text(_description(build, result, model), encoding="utf-8")
        cell.target.defer(model, folder, context)
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


def _description(build: Build, result: CellResult, model: OnnxModel) -> str:
    """What `optimc finish` reads, as JSON text."""
    cell, gate = result.cell, build.recipe.gate
    content = {
        "schema": SCHEMA,
        "optimc": __version__,
        "variant": cell.variant,
        "target": cell.target_name,
        "options": cell.target.model_dump(mode="json"),
        "dims": {
            name: [sizes.min, sizes.typical, sizes.max] for name, sizes in build.data.sizes.items()
        },
        "seed": build.recipe.seed,
        "lossy": result.lossy,
        "signature": model.signature.to_json(),
        "model": {"file": "model/model.onnx", "digest": model.digest},
        "source": {"file": "source/model.onnx", "digest": build.start.model.digest},
        "gate": None if gate is None else gate.model_dump(mode="json"),
        "recipe": build.recipe.sha256,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
