"""What a recipe names by `call:` is the user's code: beside the recipe, or installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Modules of `folder` can be imported, behind those that are installed; None changes nothing.

    Behind them, because a user's `numpy.py` must not shadow the library.
    """
    if folder is None:
        yield
        return
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def source_files(folder: Path, modules: Iterable[str]) -> list[Path]:
    """The Python files in `folder` that `modules` are made of, and those that they import from it.

    Of a package all files count, whether they are imported or not. What lies elsewhere is left out.
    """
    waiting = [module.partition(".")[0] for module in modules]
    found: dict[str, list[Path]] = {}
    while waiting:
        name = waiting.pop()
        if name not in found:
            files = [folder / f"{name}.py", *(folder / name).rglob("*.py")]
            found[name] = sorted(file for file in files if file.is_file())
            waiting += [other for file in found[name] for other in _imported(file)]
    return [file for name in sorted(found) for file in found[name]]


def code_files(module: str) -> list[Path] | None:
    """The files that say what an imported module does: its own, and those it imports from beside
    it. Of an installed one its own file alone: a release of its package names the rest.

    None where it has no file.
    """
    loaded = sys.modules[module]
    name = getattr(loaded, "__file__", None)
    if name is None or not Path(name).is_file():
        return None
    file = Path(name).resolve()
    depth = module.count(".") + (file.name == "__init__.py")
    root = file.parents[depth]
    return [file] if is_installed(file) else source_files(root, [module])


def is_installed(path: Path) -> bool:
    """Whether the file is of Python's library or an installed package, which has a version."""
    import sysconfig

    places = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    ours = Path(__file__).parents[1]
    inside = any(path.is_relative_to(place) for place in (*places, ours))
    return inside or "site-packages" in path.parts


def _imported(file: Path) -> Iterator[str]:
    """The first parts of the names of modules that a file imports, at whatever place."""
    import ast

    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # importing it says it better
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
