"""The files that decide what a training run gives, beside its options and its data."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def onnx_files(path: Path) -> list[Path]:
    """An ONNX file and those that hold its weights; the file alone where it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (OSError, DecodeError, RecursionError, ValueError):
        return [path]  # opening the teacher says it better
    locations = {
        entry.value
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = (path.parent / location for location in sorted(locations))
    return [path, *(file for file in files if file.is_file())]


def source_files(folder: Path, modules: Iterable[str]) -> list[Path]:
    """The Python files in `folder` that `modules` are made of, and those that they import from it.

    Of a package all files count, whether they are imported or not. Installed packages are left out.
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


def _imported(file: Path) -> Iterator[str]:
    """The first parts of the names of modules that a file imports, at whatever place."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # importing it says it better
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
