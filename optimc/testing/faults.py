"""Faults of a disk, injected into the writes of this process: one at a time, counted.

Files opened for writing, renames, new folders and syncs below some folders are counted; the one
with the number of the fault fails, or is cut short after a few bytes as on a disk that is full.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

SHORT_BYTES = 10
"""So much of a file is written before the disk is full."""


@dataclass
class Faults:
    """Counts what happens; `at` is the number that fails (None: nothing does), `short` how."""

    folders: Sequence[Path]
    at: int | None = None
    short: bool = False
    """A file that is opened for writing opens, and is cut short; else the call itself fails."""
    seen: list[str] = field(default_factory=list)
    """What was counted: the call and the file's name."""
    injected: bool = False

    def due(self, call: str, path: Any) -> bool:
        """Counts a call on `path`; whether it is the one that fails."""
        try:
            named = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
            place: Any = os.fspath(named)
        except (OSError, TypeError):
            return False
        if not isinstance(place, str) or not any(
            os.path.abspath(place).startswith(f"{folder}{os.sep}") for folder in self.folders
        ):
            return False
        self.seen.append(f"{call} {os.path.basename(place)}")
        if self.at != len(self.seen) - 1 or self.injected:
            return False
        self.injected = True
        return True


class _Short(io.FileIO):
    """A file on a disk that has room for `SHORT_BYTES`."""

    left = SHORT_BYTES

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(view[: self.left]) or 0
        self.left -= written
        return written


def _error(path: Any, number: int) -> OSError:
    if isinstance(path, int):
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fspath(path))


@contextmanager
def injected(faults: Faults) -> Iterator[Faults]:
    """While the block runs, the calls of this process meet the fault."""
    opened = io.open

    def faulty_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not set("wax+") & set(mode) or not faults.due("open", file):
            return opened(file, mode, *rest, **options)
        if not faults.short:
            raise _error(file, errno.EIO)
        raw = io.BufferedWriter(_Short(file, mode.replace("b", "").replace("t", "")))
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding=options.get("encoding") or "utf-8")

    def faulty(call: str, number: int) -> Callable[..., Any]:
        right = getattr(os, call)

        def wrapped(path: Any, *rest: Any, **options: Any) -> Any:
            if faults.due(call, rest[0] if call in ("rename", "replace") else path):
                raise _error(path, number)
            return right(path, *rest, **options)

        return wrapped

    with ExitStack() as stack:
        stack.enter_context(patch.object(builtins, "open", faulty_open))
        stack.enter_context(patch.object(io, "open", faulty_open))
        stack.enter_context(patch.object(shutil, "_USE_CP_SENDFILE", False))
        for call, number in _CALLS.items():
            stack.enter_context(patch.object(os, call, faulty(call, number)))
        yield faults


_CALLS = {
    "rename": errno.EIO,
    "replace": errno.EIO,
    "mkdir": errno.ENOSPC,
    "utime": errno.EIO,
    "chmod": errno.EIO,
    "fsync": errno.EIO,
}
