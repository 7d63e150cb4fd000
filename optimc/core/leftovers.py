"""Temporary names that say whose they are, so that what a killed process left can be removed.

A killed process cannot tidy up. Its temporary files and folders carry its number and the moment it
started, and the machine (or container) that counts these numbers: the next build removes those
whose process is gone, and never those of a build that runs beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

TEMPORARY_PREFIX = ".optimc-tmp-"
_OWNED = re.compile(
    re.escape(TEMPORARY_PREFIX) + r"(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-.*", re.S
)


def temporary_prefix() -> str:
    """What the names of this process's temporary files and folders begin with."""
    pid = os.getpid()
    return f"{TEMPORARY_PREFIX}{_place()}-{pid}-{_started(pid) or 0}-"


def is_alive(name: str) -> bool:
    """Whether a name is of a process of this machine that still runs, however old it is."""
    match = _OWNED.fullmatch(name)
    return match is not None and match["place"] == _place() and not _is_gone(name)


def remove_leftovers(folder: Path) -> int:
    """Removes temporary files and folders right below `folder` whose process is gone; how many.

    What cannot be removed stays: a leftover is no reason for a build to fail.
    """
    removed = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _is_gone(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                _remove(entry)
                removed += 1
    return removed


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(entry.path)


def _is_gone(name: str) -> bool:
    """Whether a name is of a process of this machine that has ended."""
    match = _OWNED.fullmatch(name)
    if match is None or match["place"] != _place():
        return False
    started = _started(int(match["pid"]))
    return started is None or match["start"] not in ("0", str(started))


@cache
def _place() -> str:
    """Names the machine since it started, and the process numbers' name space on Linux."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; 0 where that is not known.

    None where there is no such process. Field 22 of /proc/PID/stat, proc(5).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        pass
    except (OSError, ValueError, IndexError):
        return 0
    if os.path.exists("/proc/self/stat"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return 0
    return 0
