"""What passes' options name in the user's code: modules of the model, and functions.

Checked before any work, without running anything: names of modules are those that the source told
when it was read, functions are looked up in the text of their files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.core.model import Level

if TYPE_CHECKING:
    from optimc.core.passes import Pass
    from optimc.pipeline.recipe.schema import Recipe


def check_module_names(recipe: Recipe, known: Mapping[str, Any]) -> None:
    """Raises InputError where a pass on modules names one that the source does not have.

    `known` is what the source says of itself; without names of modules, nothing is checked.
    """
    names = known.get("modules")
    for variant, pass_ in _on_modules(recipe) if names else ():
        for option, patterns in pass_.module_patterns().items():
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names or ()):
                    from optimc.passes._patterns import unmatched

                    error = unmatched(option, pattern, names or (), where=pass_.pass_name())
                    where = f"{recipe.where('variants', variant)}: {error.where}"
                    raise InputError(error.what, where=where, fix=error.fix)


def _on_modules(recipe: Recipe) -> Iterator[tuple[str, Pass]]:
    """Variants and their passes as long as these work on modules; in each the first ones."""
    for variant, one in recipe.variants.items():
        for entry in one.passes:
            if Level.TORCH not in entry.pass_.levels():
                break
            yield variant, entry.pass_


def check_functions(recipe: Recipe) -> None:
    """Raises InputError where a pass names a function of the user's that is not there."""
    for variant, one in recipe.variants.items():
        for entry in one.passes:
            for call in entry.pass_.functions():
                reason = _missing(recipe.folder, call)
                if reason is not None:
                    raise InputError(
                        f"{entry.name}: `{call}` {reason[0]}",
                        where=recipe.where("variants", variant),
                        fix=reason[1],
                    )


def _missing(folder: Path, call: str) -> tuple[str, str] | None:
    """What is missing of ``module:function`` and the way out; None where it is there, or where
    only running the code could tell."""
    from optimc.passes._patterns import near

    module, _, function = call.partition(":")
    top = module.partition(".")[0]
    place = folder.joinpath(*module.split("."))
    files = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    installed = _is_elsewhere(top, folder)
    if not files and not installed and not (folder / top).is_dir():
        hint = "put it beside the recipe or on PYTHONPATH, or install its package"
        return f"is not there: no module is called `{top}`", hint
    if not files or installed:
        return None
    names = _defined(files[0])
    if names is None or function in names:
        return None
    return f"is not there: {files[0].name} has no `{function}`", near(function, sorted(names))


def _is_elsewhere(module: str, folder: Path) -> bool:
    """Whether a module is found without the recipe's folder, which comes last."""
    spec = find_spec(module)
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
    return not any(Path(place).is_relative_to(folder) for place in places)


def _defined(file: Path) -> set[str] | None:
    """The names that a file's text defines; None where that cannot be told."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None  # importing it says it better
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return None if names & {"*", "__getattr__"} else names
