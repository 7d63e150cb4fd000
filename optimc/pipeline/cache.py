"""The cache: results of passes, engines, calibration and evaluation, in the user's cache folder.

An entry is a folder, named by kind and key; it is written elsewhere on the same file system and
renamed, so it is whole or absent, also when two processes write it at once (the first wins).
Every entry lists its files with size and SHA-256, which are checked whenever it is used (of big
files the size alone; `Cache.verify` reads them all). The cache is bounded: what was not used for
longest goes first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimc.core.errors import InputError
from optimc.core.files import file_sha256
from optimc.core.leftovers import TEMPORARY_PREFIX, is_alive, remove_leftovers, temporary_prefix

FOLDER_VARIABLE = "OPTIMC_CACHE_DIR"
SIZE_VARIABLE = "OPTIMC_CACHE_SIZE_GB"
DEFAULT_SIZE_GB = 20.0
LAYOUT = "v1"
ENTRY = "entry.json"
UNFINISHED = "unfinished"
"""Where checkpoints of work lie that a kill or Ctrl-C cut off."""
_UNFINISHED_SECONDS = 14 * 86400.0
"""Checkpoints that nobody came back to for this long are removed."""
_READ_BYTES = 16_000_000
"""Files up to this size are read and held against their digest whenever an entry is used."""
_IN_USE_SECONDS = 3600.0
"""Entries that were used within this time are never removed: a running build may hold them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as `optimc cache` lists it; `used` is seconds since the epoch."""

    kind: str
    key: str
    folder: Path
    bytes: int
    used: float


def default_folder() -> Path:
    """``$OPTIMC_CACHE_DIR``, or `optimc` in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("optimc", appauthor=False))


def default_size_bytes() -> int:
    """``$OPTIMC_CACHE_SIZE_GB`` (10^9 bytes), or 20 GB."""
    text = os.environ.get(SIZE_VARIABLE, str(DEFAULT_SIZE_GB))
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 < size < float("inf"):
        raise InputError(
            f"`{text}` is not a size", where=SIZE_VARIABLE, fix="give a number of gigabytes above 0"
        )
    return int(size * 1e9)


class Cache:
    """A `Store` on disk. With `enabled=False` nothing is found, and entries last one process."""

    def __init__(
        self, folder: Path | None = None, *, size_bytes: int | None = None, enabled: bool = True
    ) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.enabled = enabled
        self.size_bytes = default_size_bytes() if size_bytes is None else size_bytes
        if enabled:
            self.folder = default_folder() if folder is None else folder
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix=temporary_prefix())
            self.folder = Path(self._temporary.name)
        self.root = self.folder / LAYOUT
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(error.strerror) from error

    def _refused(self, reason: str | None) -> InputError:
        """The error for a folder that cannot be written to."""
        fix = "free some space, or set TMPDIR to a folder that you may write to"
        if self._temporary is None:
            fix = f"free some space, set {FOLDER_VARIABLE} to another folder, or use --no-cache"
        return InputError(f"cannot write to the cache: {reason}", where=str(self.folder), fix=fix)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder on the cache's file system, which goes with the block.

        Raises InputError where the cache cannot be written to.
        """
        try:
            folder = tempfile.TemporaryDirectory(prefix=temporary_prefix(), dir=self.folder)
        except OSError as error:
            raise self._refused(error.strerror) from error
        with folder as name:
            yield Path(name)

    def close(self) -> None:
        """Removes what lasts one process only."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def get(self, kind: str, key: str) -> Path | None:
        """The entry's folder, or None; a damaged entry is removed and counts as absent."""
        place = self._place(kind, key)
        listing = _listing(place)
        if listing is None:
            return None
        for name, file in listing.items():
            if not _whole(place / name, file, read=file["bytes"] <= _READ_BYTES):
                self._remove(place)
                return None
        _touch(place)
        return place

    def put(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Lets `write` fill an empty folder, then makes it the entry; returns its place.

        Where another process was faster, its entry stays: both were made from the same key.
        """
        place = self._place(kind, key)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=self.root))
            try:
                write(temporary)
                self._describe(temporary)
                os.chmod(temporary, 0o755)
                self._settle(temporary, kind, key, place)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from error
        except InputError as error:
            # Whoever writes into the entry does not know that it is the cache which is full.
            if str(error.where).startswith(str(self.folder)):
                raise self._refused(error.what.rpartition(": ")[2]) from error
            raise
        return place

    @contextmanager
    def unfinished(self, key: str) -> Iterator[Path | None]:
        """A folder for the checkpoints of long work, which is there again after a kill.

        It goes where the block ends well. None where nothing outlives the process, or where another
        process has the folder now.
        """
        from filelock import FileLock, Timeout

        place = self.folder / UNFINISHED / key
        lock = FileLock(place.with_suffix(".lock"))
        if self.enabled:
            place.mkdir(parents=True, exist_ok=True)
        try:
            if self.enabled:
                lock.acquire(timeout=0)
        except Timeout:
            yield None
            return
        try:
            yield place if self.enabled else None
            shutil.rmtree(place, ignore_errors=True)
        finally:
            lock.release()

    def renew(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """As `put`, for what changes under its key: the entry that is there gives way."""
        self._remove(self._place(kind, key))
        return self.put(kind, key, write)

    def _settle(self, temporary: Path, kind: str, key: str, place: Path) -> None:
        try:
            os.rename(temporary, place)
        except OSError:
            if self.get(kind, key) is None:
                self._remove(place)  # a damaged folder stands there, which is no entry
                os.rename(temporary, place)

    def _describe(self, folder: Path) -> None:
        files = {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        (folder / ENTRY).write_text(json.dumps({"files": files}), encoding="utf-8")

    def entries(self) -> Iterator[Entry]:
        """All whole entries."""
        for description in sorted(self.root.glob(f"*/*/*/{ENTRY}")):
            folder = description.parent
            listing = _listing(folder)
            if listing is not None:
                size = sum(int(file["bytes"]) for file in listing.values())
                used = description.stat().st_mtime
                yield Entry(folder.parts[-3], folder.name, folder, size, used)

    def is_whole(self, folder: Path) -> bool:
        """Whether a folder holds what its list says: every file is held against its digest."""
        listing = _listing(folder)
        return listing is not None and all(
            _whole(folder / name, file, read=True) for name, file in listing.items()
        )

    def verify(self) -> list[Entry]:
        """Reads every entry and removes those whose contents changed; returns the removed ones."""
        damaged = []
        for folder in sorted(self.root.glob("*/*/*")):
            if not self.is_whole(folder):
                self._remove(folder)
                damaged.append(Entry(folder.parts[-3], folder.name, folder, 0, 0.0))
        return damaged

    def prune(
        self, size_bytes: int | None = None, *, in_use_seconds: float = _IN_USE_SECONDS
    ) -> int:
        """Removes the entries used longest ago until the rest fits; returns the freed bytes.

        Only one process prunes at a time. Leftovers of killed processes go too. Raises InputError
        where nothing can be removed.
        """
        from filelock import FileLock, Timeout

        limit = self.size_bytes if size_bytes is None else size_bytes
        freed = 0
        try:
            with FileLock(self.folder / "prune.lock", timeout=0):
                self._remove_leftovers(in_use_seconds)
                entries = sorted(self.entries(), key=lambda entry: entry.used)
                total = sum(entry.bytes for entry in entries)
                for entry in entries:
                    if total - freed <= limit or time.time() - entry.used < in_use_seconds:
                        break
                    self._remove(entry.folder)
                    freed += entry.bytes
        except Timeout:
            return 0
        except OSError as error:
            raise self._refused(error.strerror) from error
        return freed

    def clear(self) -> int:
        """Removes every entry; returns the freed bytes."""
        freed = 0
        for entry in list(self.entries()):
            self._remove(entry.folder)
            freed += entry.bytes
        return freed

    def _remove_leftovers(self, older_than: float) -> None:
        """Those of processes that are gone, and old ones of machines that nobody here knows."""
        for path in (self.folder / UNFINISHED).glob("*"):
            if time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for folder in (self.root, self.folder):
            remove_leftovers(folder)
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                try:
                    old = time.time() - path.stat().st_mtime > older_than
                except FileNotFoundError:
                    continue  # a running build has just removed its own
                if old and not is_alive(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _remove(self, place: Path) -> None:
        """Renames first, so that no reader ever sees half an entry."""
        try:
            aside = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=self.root))
            try:
                os.replace(place, aside / "entry")
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            raise self._refused(error.strerror) from error


def _listing(place: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((place / ENTRY).read_text(encoding="utf-8"))
        return dict(data["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _whole(path: Path, file: Mapping[str, Any], *, read: bool) -> bool:
    """Whether a listed file has its size, and with `read` its contents."""
    try:
        if path.stat().st_size != file["bytes"]:
            return False
        return not read or file_sha256(path) == file["sha256"]
    except OSError:
        return False


def _touch(place: Path) -> None:
    try:
        os.utime(place / ENTRY)
    except OSError:
        return  # a read-only cache can still be read
