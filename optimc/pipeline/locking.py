"""What a build puts into its lock, and what it holds against one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.core.errors import InputError
from optimc.core.files import file_sha256
from optimc.pipeline.assemble import skipped
from optimc.pipeline.gate import GateResult
from optimc.pipeline.lock import lock_path, read_lock, refuse_differences, write_lock
from optimc.pipeline.versions import tool_versions
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.pipeline.build import Build

_TOOLS = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def locked_state(build: Build, gate: GateResult) -> str | Skipped:
    """Checks or writes the lock; returns its path, or why there is none."""
    path = lock_path(build.recipe.path)
    cells = lock_cells(build)
    if build.locked is not None:
        locked = {name: c for name, c in build.locked["cells"].items() if name in build.results}
        refuse_differences({"cells": locked}, {"cells": cells}, path)
        return str(path)
    if build.options.partial:
        return skipped("not the whole recipe was built (--variant, --target, --set or --limit)")
    content = {**lock_inputs(build), "cells": cells, "choices": _choices(build, gate, path)}
    if timings := _timing_caches(build):
        content["timing_caches"] = timings  # told, not held to: it grows with every build
    try:
        write_lock(path, content)
    except InputError as error:
        build.warnings.append(f"the lock was not written: {error.what}")
        return skipped(error.what)
    return str(path)


def _timing_caches(build: Build) -> dict[str, str]:
    """By target: the digest of the timings that its engines were built with."""
    targets = {result.cell.target_name: result.cell.target for result in build.cells_alive()}
    found = {name: build.engines.timings_digest(target) for name, target in targets.items()}
    return {name: digest for name, digest in found.items() if digest is not None}


def _choices(build: Build, gate: GateResult, path: Path) -> dict[str, Any]:
    """What was chosen by measuring; without measuring, what the lock says already stays."""
    choices: dict[str, Any] = {"best": gate.best.name if gate.best else None}
    if not build.options.measure and path.is_file():
        kept = read_lock(path).get("choices")
        if isinstance(kept, dict):
            choices = kept
    # Of this build in any case: the digests of the engines depend on it.
    choices.pop("legalized", None)
    choices.pop("options", None)
    options = {
        name: {option: chosen.value for option, chosen in result.options.items()}
        for name, result in build.results.items()
        if result.options
    }
    of_this_build = {"legalized": build.legalized, "options": options}
    return choices | {name: found for name, found in of_this_build.items() if found}


def lock_cells(build: Build) -> dict[str, Any]:
    """By cell: the digest of the model after each pass with what the pass chose by measuring, and
    the engine's identity."""
    return {
        result.cell.name: {
            "passes": [
                {"pass": outcome.name, "model": outcome.model.digest}
                | ({} if outcome.choice is None else {"choice": outcome.choice})
                for outcome in result.outcomes
            ],
            "engine": result.engine.digest,
            "engine_of": result.engine.manifest["identity"]["of"],
        }
        for result in build.results.values()
        if result.engine is not None
    }


def lock_inputs(build: Build) -> dict[str, Any]:
    """What is known before any work: digests of the recipe, the model's files, the data; tools."""
    return {
        "optimc": __version__,
        "recipe": build.recipe.digest,
        "inputs": {**build.source.files, **_library_digests(build), **_pass_files(build)},
        "data": build.data.digests(),
        "tools": used_tools(build),
    }


def _library_digests(build: Build) -> dict[str, str]:
    """The native code that targets load, by its place beside the recipe."""
    return {
        os.path.relpath(path, build.recipe.folder): file_sha256(path)
        for target in build.recipe.targets.values()
        for path in target.libraries()
    }


def _pass_files(build: Build) -> dict[str, str]:
    """Files that passes' options name, such as a teacher's weights."""
    folder = build.recipe.folder
    return {
        os.path.relpath(path, folder): file_sha256(path)
        for variant in build.recipe.variants.values()
        for entry in variant.passes
        for path in entry.pass_.files(folder)
    }


def used_tools(build: Build) -> dict[str, str]:
    """Versions of everything that had a part in the artifacts."""
    tools = {*_TOOLS, *build.recipe.model.tools}
    for cell in build.plan.cells:
        if cell.name not in build.plan.unavailable:
            tools.update(type(cell.target).tools)
    for dataset in build.data.splits.values():
        tools.update(dataset.tools)
    for variant in build.recipe.variants.values():
        for entry in variant.passes:
            tools.update(entry.pass_.tools)
    return tool_versions(tools)
