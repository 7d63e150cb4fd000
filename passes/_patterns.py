"""Patterns of options that have to name something: one message where they name nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, PreconditionError

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.workbench import Workbench

_SHOWN = 3


def near(word: str, names: Iterable[str]) -> str:
    """The names that are near a word, or else the first ones."""
    known = list(dict.fromkeys(name for name in names if name))
    found = difflib.get_close_matches(word, known, n=_SHOWN, cutoff=0.6)
    if found:
        return f"did you mean {' or '.join(f'`{name}`' for name in found)}?"
    if not known:
        return "there are none"
    shown = ", ".join(f"`{name}`" for name in known[:_SHOWN])
    more = f" and {len(known) - _SHOWN} more" if known[_SHOWN:] else ""
    return f"there are {shown}{more}"


def near_patterns(word: str, names: Iterable[str]) -> str:
    """The names that are near a pattern, and how patterns are written."""
    told = near(word, names)
    return f"{told}{'' if told.endswith('?') else ';'} patterns take *, ? and [...]"


def unmatched(
    option: str, pattern: str, names: Iterable[str], *, where: str, what: str = "module"
) -> InputError:
    """The error for a pattern of an option that names none of `names`; `where` is the pass."""
    return InputError(
        f"{option}: `{pattern}` names no {what} of the model",
        where=where,
        fix=near_patterns(pattern, names),
    )


def check_modules(
    bench: Workbench,
    option: str,
    patterns: Sequence[str],
    names: Iterable[str] | None = None,
    *,
    where: str,
    what: str = "module",
) -> None:
    """Raises InputError for a pattern that names none of `names`, by default all modules.

    What a pass before took out counts as if it was there: a choice by measuring may do that.
    """
    known = list(names) if names is not None else [n for n, _ in bench.module.named_modules()]
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in known if name):
            continue
        source = bench.opened().module.named_modules() if bench.skipped else ()
        gone = tuple(f"{name}." for name in bench.skipped)
        if not any(fnmatchcase(n, pattern) for n, _ in source if f"{n}.".startswith(gone)):
            raise unmatched(option, pattern, known, where=where, what=what)


def check_nodes(option: str, patterns: Sequence[str], graph: Iterable[ir.Node]) -> None:
    """Raises PreconditionError for a pattern that names no node of a graph."""
    from optimc.core.model import SOURCE_KEY
    from optimc.passes.quantize_int8 import matches

    nodes: list[Any] = list(graph)
    for pattern in patterns:
        if any(matches(node, pattern) for node in nodes):
            continue
        names = [node.name or "" for node in nodes]
        names += [str(v.meta.get(SOURCE_KEY, "")) for node in nodes for v in node.outputs]
        raise PreconditionError(
            f"{option}: `{pattern}` names no node of the model",
            fix=f"{near_patterns(pattern, names)}; `optimc inspect MODEL` lists the nodes",
        )
