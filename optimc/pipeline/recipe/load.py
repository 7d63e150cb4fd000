"""Reading a recipe: the file, the overrides, the environment, the types, and the cross-checks."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimc.core.errors import InputError, did_you_mean
from optimc.pipeline.recipe.checks import check_labels, check_meaning
from optimc.pipeline.recipe.environment import substitute
from optimc.pipeline.recipe.locate import (
    Location,
    Node,
    Place,
    Problems,
    RecipeStop,
    TooManyProblems,
    quoted,
)
from optimc.pipeline.recipe.overrides import apply_overrides
from optimc.pipeline.recipe.schema import Recipe
from optimc.pipeline.recipe.sections import read_sections
from optimc.pipeline.recipe.yaml_reader import parse

MAX_BYTES = 1_000_000


def load_recipe(path: Path | str, overrides: Sequence[str] = (), untrusted: bool = False) -> Recipe:
    """The recipe in `path` with `overrides` (``address=value``, as ``--set`` takes them) applied.

    With `untrusted`, whatever would run code that the recipe names is refused. Imports nothing
    heavy; reads no data and no model. Raises InputError with everything that is wrong, each with
    its place, the text and a hint.
    """
    path = Path(path)
    content = _read(path)
    problems = Problems(str(path))
    try:
        text = _decode(content)
        problems = Problems(str(path), text)
        root, fields = _read_document(text, path, overrides, problems, untrusted=untrusted)
    except RecipeStop as stop:
        raise problems.error(stop.problem) from None
    except TooManyProblems:
        raise problems.error() from None
    recipe = Recipe(path=path, sha256=hashlib.sha256(content).hexdigest(), **fields)
    recipe.remember_places(_places(str(path), root))
    return recipe


def _read_document(
    text: str, path: Path, overrides: Sequence[str], problems: Problems, *, untrusted: bool
) -> tuple[Node, dict[str, Any]]:
    """The document after overrides, and the fields of the Recipe."""
    document, found = parse(text)
    problems.extend(found)
    root = _mapping(document)
    apply_overrides(root, overrides, problems)
    substitute(root, problems)
    fields = read_sections(root, path.absolute().parent, problems, untrusted=untrusted)
    check_meaning(root, problems)
    problems.raise_if_any()
    check_labels(fields, root, problems)
    problems.raise_if_any()
    return root, fields


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError("is a folder", where=str(path), fix="name the recipe's file")
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a regular file", where=str(path), fix="name the recipe's file")
        if status.st_size > MAX_BYTES:
            what = f"has {status.st_size:,} bytes; a recipe has {MAX_BYTES:,} at most"
            raise InputError(what, where=str(path), fix="is this the recipe? data go into files")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except FileNotFoundError as error:
        near = did_you_mean(path.name, _yaml_files(path.parent))
        fix = near or "name a recipe that exists, or write one with `optimc init MODEL`"
        raise InputError("no such file", where=str(path), fix=fix) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {reason}", where=str(path)) from error


def _yaml_files(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")]
    except OSError:
        return []


def _decode(content: bytes) -> str:
    if b"\0" in content:
        raise RecipeStop(Place(), "is not a text file", "name the recipe, a YAML file in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace").splitlines() or [""]
        place = Place(len(before), len(before[-1]) + 1)
        what = f"the byte 0x{content[error.start]:02x} is not UTF-8"
        raise RecipeStop(place, what, "save the recipe as UTF-8") from error


def _mapping(root: Node | None) -> Node:
    if root is None or (root.value is None and not root.bad):
        fix = "write at least `model` and `variants`, or start with `optimc init MODEL`"
        raise RecipeStop(Place(), "the recipe is empty", fix)
    if not isinstance(root.value, dict):
        what = f"a recipe is a mapping with keys such as `model`; this is {quoted(root.data())}"
        raise RecipeStop(root.place, what, "start with `model: {onnx: model.onnx}`")
    return root


def _places(name: str, root: Node) -> dict[Location, str]:
    """Where every key and entry stands, for errors that are found only with the model at hand."""
    found: dict[Location, str] = {}

    def visit(node: Node, location: Location) -> None:
        place = node.key or node.place
        found[location] = (
            f"{name}:{place.line}:{place.column}"
            if place.override is None
            else f"--set {place.override}"
        )
        if isinstance(node.value, dict):
            for key, child in node.value.items():
                visit(child, (*location, key))
        elif isinstance(node.value, list):
            for index, child in enumerate(node.value):
                visit(child, (*location, index))

    visit(root, ())
    return found
