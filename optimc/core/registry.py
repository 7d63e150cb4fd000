"""Finding passes and targets by name: the files in the package, then entry points.

A built-in pass is the file ``passes/<name>.py`` with one `Pass` subclass of that name; third
parties add theirs under the entry point group ``optimc.passes`` (targets: ``optimc.targets``),
with the name as the entry point's name. Built-in names cannot be replaced.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any

from optimc.core.errors import InputError, unknown_name
from optimc.core.passes import Pass
from optimc.core.targets import Target

BUILT_IN_TARGETS = ("onnxruntime", "openvino", "tensorrt")


def pass_names() -> list[str]:
    """All names that a recipe may use, sorted."""
    return sorted({*_built_in_passes(), *_plugins("optimc.passes")})


def target_names() -> list[str]:
    """All runtimes that a recipe may use, sorted."""
    return sorted({*BUILT_IN_TARGETS, *_plugins("optimc.targets")})


def pass_class(name: str) -> type[Pass]:
    """The pass of this name. Raises InputError with a near name where there is none."""
    if name in _built_in_passes():
        module = importlib.import_module(f"optimc.passes.{name}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Pass) and item.pass_name() == name:
                return item
        raise TypeError(f"passes/{name}.py holds no Pass whose name is {name}")
    loaded = _load("optimc.passes", name, Pass)
    if loaded is None:
        raise unknown_name("pass", name, pass_names())
    return loaded  # type: ignore[no-any-return]


def target_class(runtime: str) -> type[Target]:
    """The target of this runtime. Raises InputError with a near name where there is none."""
    if runtime in BUILT_IN_TARGETS:
        module = importlib.import_module(f"optimc.targets.{runtime}")
        return module.TARGET  # type: ignore[no-any-return]
    loaded = _load("optimc.targets", runtime, Target)
    if loaded is None:
        raise unknown_name("runtime", runtime, target_names())
    return loaded  # type: ignore[no-any-return]


@cache
def _built_in_passes() -> frozenset[str]:
    package = importlib.import_module("optimc.passes")
    modules = pkgutil.iter_modules(package.__path__)
    return frozenset(m.name for m in modules if not m.name.startswith("_"))


@cache
def _plugins(group: str) -> dict[str, EntryPoint]:
    try:
        return {entry.name: entry for entry in entry_points(group=group)}
    except Exception as error:  # whatever a damaged file makes of Python's own parser
        raise _damaged(error) from error


def _damaged(error: Exception) -> InputError:
    """The error that names the package whose metadata cannot be read."""
    where = None
    for distribution in distributions():
        try:
            list(distribution.entry_points)
        except Exception:  # noqa: BLE001 (this is the one that is looked for)
            where = str(distribution.locate_file(""))
            break
    return InputError(
        f"the metadata of an installed package cannot be read: {error}",
        where=where,
        fix="reinstall the package, or remove its .dist-info folder",
    )


@cache
def _load(group: str, name: str, base: type) -> Any:
    entry = _plugins(group).get(name)
    if entry is None:
        return None
    try:
        loaded = entry.load()
    except Exception as error:  # a plug-in may raise anything while it is imported
        raise InputError(
            f"the plug-in `{name}` ({entry.value}) cannot be loaded: {error}",
            fix=f"reinstall or remove the package that provides it in `{group}`",
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise InputError(f"the plug-in `{name}` ({entry.value}) is not a {base.__name__}")
    return loaded
