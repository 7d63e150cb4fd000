"""The lock: what a build was made from and what came out, by content.

It lies beside the recipe as ``<recipe's stem>.lock`` and is meant to be committed. It names the
digests of the inputs, the data and the options, the tools' versions, every choice that was made by
measuring, and the artifacts. ``--locked`` builds again, replays the choices and refuses whatever
differs, by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optimc.core.errors import InputError
from optimc.core.files import atomic_write

SCHEMA = 1


def lock_path(recipe: Path) -> Path:
    """Where the lock of a recipe lies."""
    return recipe.with_suffix(".lock")


def write_lock(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the lock, unless it says the same already. Raises InputError where it cannot."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with atomic_write(path) as file:
        file.write(text)


def read_lock(path: Path) -> dict[str, Any]:
    """The lock's content. Raises InputError where it is missing, broken or of another schema."""
    fix = "build once without --locked to write it, and commit it"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no lock", where=str(path), fix=fix) from None
    except (OSError, ValueError) as error:
        raise InputError(f"the lock cannot be read: {error}", where=str(path), fix=fix) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"the lock is not of schema {SCHEMA}", where=str(path), fix=fix)
    return content


def refuse_differences(locked: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raises InputError that names everything of `now` that is not as `locked` says."""
    found = [
        line for section in now for line in _differences(section, locked.get(section), now[section])
    ]
    if found:
        listed = "\n    ".join(found[:20])
        more = f"\n    and {len(found) - 20} more" if len(found) > 20 else ""
        raise InputError(
            f"this build is not the locked one:\n    {listed}{more}",
            where=str(path),
            fix="restore what changed, or build without --locked and commit the new lock",
        )


def _differences(name: str, locked: Any, now: Any) -> Iterator[str]:
    if isinstance(locked, dict | None) and isinstance(now, dict | None):
        locked, now = locked or {}, now or {}
        for key in sorted({*locked, *now}):
            yield from _differences(f"{name}.{key}", locked.get(key), now.get(key))
    elif isinstance(locked, list) and isinstance(now, list) and len(locked) == len(now):
        for index, (old, new) in enumerate(zip(locked, now, strict=True)):
            yield from _differences(f"{name}[{index}]", old, new)
    elif locked != now:
        yield f"{name}: locked {_short(locked)}, now {_short(now)}"


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{len(value)} entries"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
