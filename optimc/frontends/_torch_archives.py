"""What a `.pt2` file may hold: looked at before torch reads it.

A `.pt2` file is a zip archive of JSON and tensors, and reading it should run nothing. Yet
`torch.export.load` unpickles where tensors are not plain (`weights_only=False`, and a fall-back to
it), loads compiled code that lies in the archive, hands expressions to `sympy.sympify`, which
evaluates them as Python, pastes names and guards into source code that it executes, and resolves
operators to any attribute below `torch`. What would reach one of these is refused, by a list of
what torch itself writes; so is what its writer never does, such as to compress. Imports no torch.
"""

from __future__ import annotations

import json
import keyword
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from optimc.core.errors import InputError
from optimc.frontends._torch_expressions import (
    wrong_with_guard,
    wrong_with_operator,
    wrong_with_size,
)

_MOST_JSON_BYTES = 2**28
_MOST_MEMBERS = 1_000_000
_ENCRYPTED = 1
_SHOWN = 80
_NAME_KEYS = frozenset(
    {
        *("name", "parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name"),
        *("user_input_name", "class_fqn", "fqn"),
    }
)
"""Keys whose values torch writes into source code."""
_PLAIN_NAMES = frozenset({"name"})
"""Those of them that are names of Python or nothing."""


class _UnreadableError(Exception):
    """The file is broken, or not what torch writes."""


class _RunsCodeError(Exception):
    """The file holds what torch would execute."""


def check_archive(path: Path) -> None:
    """Raises InputError where the file is no `.pt2` archive or holds what could run code."""
    try:
        _look(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, _UnreadableError) as error:
        raise InputError(
            f"torch cannot read this file: {error}",
            where=str(path),
            fix="write it with torch.export.save, by a torch that is no newer than this one",
        ) from error
    except _RunsCodeError as error:
        raise InputError(
            f"reading this file could run code: {error}",
            where=str(path),
            fix="export the module again where you trust it, with plain tensors as weights, or "
            "write model: {factory: package.module:function}, which runs your own code",
        ) from error


@contextmanager
def only_tensors_unpickled() -> Iterator[None]:
    """While the block lasts, `torch.load` unpickles tensors and plain data alone, whoever asks."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def swallowed_errors(logger: str, into: list[BaseException]) -> Iterator[None]:
    """While the block lasts, errors that `logger` only warns of are collected, and not printed."""
    log = logging.getLogger(logger)
    kept, log.propagate, disabled = log.propagate, False, log.disabled

    class _Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                into.append(record.exc_info[1])

    collector, handlers = _Collector(), log.handlers
    log.handlers, log.disabled = [collector], False
    try:
        yield
    finally:
        log.handlers, log.propagate, log.disabled = handlers, kept, disabled


def _look(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _check_members(archive, path.stat().st_size)
        trees = [name for name in archive.namelist() if _is_read(PurePosixPath(name))]
        if not trees:
            raise _UnreadableError("there is no program in it")
        for name in trees:
            _check_tree(_parsed(archive, name))


def _is_read(name: PurePosixPath) -> bool:
    """Whether torch takes the member for JSON: a program may have any suffix."""
    folders = name.parts[:-1]
    if "extra" in folders[:2] or "extra_files" in folders[:2]:
        return False  # the user's own, which nobody reads
    return "models" in folders[:2] or name.suffix.lower() == ".json"


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Their names, and that they are stored as they are: then no archive is a bomb."""
    members = archive.infolist()
    names = {member.filename.lower() for member in members}  # torch looks in either case
    if len(names) != len(members) or len(members) > _MOST_MEMBERS:
        raise _UnreadableError("several of its members have one name")
    for member in members:
        name, parts = member.filename, PurePosixPath(member.filename).parts
        shown = name[:_SHOWN]
        if not parts or name.startswith("/") or ".." in parts or "\\" in name:
            raise _UnreadableError(f"its member `{shown}` is no name within the archive")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            raise _UnreadableError(f"its member `{shown}` is compressed or encrypted")
        if member.file_size > size:
            raise _UnreadableError(f"its member `{shown}` says it is greater than the file")
        if "aotinductor" in parts or name.endswith((".so", ".dll", ".dylib", ".cubin")):
            raise _RunsCodeError(f"its member `{shown}` is compiled code")


def _parsed(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > _MOST_JSON_BYTES:
        raise _UnreadableError(f"its member `{name[:_SHOWN]}` has over 256 MB")
    return _json(archive.read(name), f"its member `{name[:_SHOWN]}`")


def _json(text: bytes | str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"{what} is no JSON: {str(error)[:_SHOWN]}") from error


def _check_tree(tree: Any) -> None:
    """Everything that torch would evaluate, wherever it stands."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            for key, value in node.items():
                _check_entry(key, value)
            waiting += node.values()


def _check_entry(key: str, value: Any) -> None:
    if key == "path_name" and isinstance(value, str):
        _check_payload(value)
    elif key == "expr_str":
        _judge("the size", value, wrong_with_size)
    elif key in ("target", "as_operator") and isinstance(value, str):
        _judge("the operator", value, wrong_with_operator)
    elif key == "guards_code" and isinstance(value, list):
        for guard in value:
            _judge("the condition", guard, wrong_with_guard)
    elif key == "forward_arg_names" and isinstance(value, list):
        for name in value:
            _check_identifier(name)
    elif key in ("in_spec", "out_spec") and isinstance(value, str) and value:
        _check_spec(_json(value, f"`{key}`"), outer=key == "in_spec")
    elif key in _NAME_KEYS and isinstance(value, str):
        _check_name(value, plain=key in _PLAIN_NAMES)


def _judge(what: str, text: Any, wrong: Any) -> None:
    if not isinstance(text, str):
        raise _UnreadableError(f"{what} {json.dumps(text)[:_SHOWN]} is no text")
    reason = wrong(text)
    if reason is not None:
        raise _RunsCodeError(f"{what} `{text[:_SHOWN]}`: {reason}")


def _check_payload(name: str) -> None:
    """The member that a weight or constant lies in. Pickled weights are read as tensors alone."""
    if not name.startswith(("weight_", "tensor_")):
        raise _RunsCodeError(f"the constant `{name[:_SHOWN]}` is a pickled object")
    if "/" in name or "\\" in name:
        raise _UnreadableError(f"the weight `{name[:_SHOWN]}` is no name within the archive")


def _check_identifier(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise _RunsCodeError(f"the argument {json.dumps(name)[:_SHOWN]} is no name of Python")


def _check_name(name: str, *, plain: bool) -> None:
    """Names are pasted into source code, those of parameters between double quotes."""
    fine = name.isprintable() and not set(name) & set("\"'\\`")
    if plain:
        fine = all(not part or part.isidentifier() for part in name.split("."))
    if not fine:
        raise _RunsCodeError(f"the name {json.dumps(name)[:_SHOWN]} is no name of Python")


def _check_spec(spec: Any, *, outer: bool) -> None:
    """The tree of arguments; the outer one's dict holds keywords."""
    waiting = [(spec, 0)]
    while waiting:
        node, depth = waiting.pop()
        children: Any = node
        if isinstance(node, Mapping):
            children = node.get("children_spec", [])
            kind, context = node.get("type"), node.get("context")
            keywords = outer and depth <= 2 and kind == "builtins.dict"
            _check_context(kind, context, keywords=keywords)
        if isinstance(children, list):
            waiting += [(child, depth + 1) for child in children]


def _check_context(kind: Any, context: Any, *, keywords: bool) -> None:
    text = context if isinstance(context, str) else json.dumps(context)
    if kind == "collections.defaultdict":
        raise _RunsCodeError("an argument is a defaultdict, which imports a module")
    if "__enum__" in text:
        raise _RunsCodeError("the key of an argument is an enum, which imports a module")
    if keywords and context is not None:
        found = _json(text, "the names of keyword arguments")
        for name in found if isinstance(found, list) else [found]:
            _check_identifier(name)
