"""Fails where a wheel and the source tree part: `python .ci/check_wheel.py WHEEL TREE`.

A package folder that setuptools did not find, a data file that no pattern names and a module that
was deleted but built all the same show here. TREE holds the repository's files and nothing else.
"""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path


def expected(tree: Path) -> set[str]:
    """The wheel's files as the mapping in pyproject.toml wants them."""
    config = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        f"{package.replace('.', '/')}/{path.relative_to(tree / folder).as_posix()}"
        for package, folder in config["tool"]["setuptools"]["package-dir"].items()
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }


def main(wheel: str, tree: str) -> None:
    """Compare, and exit 1 with the names of what is missing or too many."""
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = expected(Path(tree))
    problems = [f"not in the wheel: {name}" for name in sorted(wanted - there)]
    problems += [f"in the wheel alone: {name}" for name in sorted(there - wanted)]
    if problems or not there:
        raise SystemExit("\n".join(problems) or "the wheel is empty")
    print(f"{len(there)} files, as in the source tree")


if __name__ == "__main__":
    main(*sys.argv[1:])
