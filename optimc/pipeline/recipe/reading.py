"""What every reader of a section uses: noting what is wrong, and files that have to be there."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from optimc.core.errors import did_you_mean
from optimc.core.files import LFS_FIX, is_lfs_pointer
from optimc.pipeline.recipe.locate import Location, Node, Problems, quoted
from optimc.pipeline.recipe.validation import dotted

M = TypeVar("M", bound=BaseModel)


class Reading:
    """The reading of one document in `folder`; what is wrong goes into `problems`."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self.folder = folder
        self.problems = problems

    def note(self, node: Node, what: str, fix: str | None = None) -> None:
        """Notes a problem of a key, or of an entry as a whole."""
        if not node.bad:
            self.problems.add(node.key or node.place, what, fix)

    def wrong(self, node: Node, location: Location, wanted: str, fix: str | None = None) -> None:
        """Notes a value of the wrong kind."""
        if not node.bad:
            what = f"{dotted(location)}: expected {wanted}, got {quoted(node.data())}"
            self.problems.add(node.place, what, fix)

    def existing(self, path: Path, node: Node, *, folder: bool = False) -> Path:
        """The path made absolute; notes a file (or a `folder`) that is not there."""
        full = self.folder / path
        wanted, other = ("folder", "file") if folder else ("file", "folder")
        try:
            if full.is_dir() if folder else full.is_file():
                if not folder and is_lfs_pointer(full) and not node.bad:
                    what = f"{quoted(str(path))}: is a pointer of Git LFS, not the file"
                    self.problems.add(node.place, what, LFS_FIX)
                return full
            what = (
                f"is a {other}, not a {wanted}" if full.exists() else f"there is no such {wanted}"
            )
        except OSError as error:  # a name that is too long, a folder that may not be entered
            what = error.strerror or str(error)
        hint = did_you_mean(full.name, [n for n in _neighbours(full) if n != full.name])
        fix = hint or f"paths are relative to the recipe's folder, {self.folder}"
        if not node.bad:
            shown = node.value if isinstance(node.value, str) else str(path)
            self.problems.add(node.place, f"{quoted(shown)}: {what}", fix)
        return full

    def resolved(self, made: M, node: Node) -> M:
        """The options with their paths made absolute; files that are not there are noted."""
        paths: dict[str, Path | list[Path]] = {}
        for name, value in made:
            at = node.get(name) or node
            if isinstance(value, Path):
                paths[name] = self.existing(value, at)
            elif isinstance(value, list) and value and all(isinstance(v, Path) for v in value):
                places = at.value if isinstance(at.value, list) else [at] * len(value)
                paths[name] = [self.existing(v, n) for v, n in zip(value, places, strict=True)]
        return made.model_copy(update=paths) if paths else made


def _neighbours(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
