"""Which files a user's function reads: they belong to the key under which its model is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimc.core.user_code import is_installed

_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr/share")


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """The files that are opened for reading while the block lasts, but for installed code.

    Python's own `open` is watched by an audit hook, which stays (it does nothing afterwards), and
    safetensors, which opens files natively, by its `safe_open`.
    """
    found: set[str] = set()
    watching = True

    def note(path: Any) -> None:
        if isinstance(path, str | Path):
            found.add(str(path))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and "w" not in str(arguments[1] or ""):
            note(arguments[0])

    sys.addaudithook(hook)
    restore = _watch_safetensors(note)
    try:
        yield found
    finally:
        watching = False
        restore()
        kept = {str(Path(name).resolve()) for name in found if _counts(name)}
        found.clear()
        found.update(kept)


def _watch_safetensors(note: Callable[[Any], None]) -> Callable[[], None]:
    """Replaces `safe_open`; returns what puts it back."""
    import safetensors
    import safetensors.torch

    original = safetensors.safe_open

    def watched(filename: Any, *arguments: Any, **keywords: Any) -> Any:
        note(filename)
        return original(filename, *arguments, **keywords)

    modules: tuple[Any, ...] = (safetensors, safetensors.torch)
    for module in modules:
        module.safe_open = watched

    def restore() -> None:
        for module in modules:
            module.safe_open = original

    return restore


def _counts(name: str) -> bool:
    path = Path(name)
    if "__pycache__" in path.parts or "\0" in name or not path.is_file():
        return False
    path = path.resolve()
    return not is_installed(path) and not any(path.is_relative_to(place) for place in _SYSTEM)
