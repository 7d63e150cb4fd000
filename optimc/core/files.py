"""Writing files so that nothing half-written stays, and naming them by their content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from optimc.core.errors import InputError
from optimc.core.leftovers import temporary_prefix

_TRIES = 20


def _write_refused(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    if isinstance(error, shutil.Error):  # of copytree: a list of sources, destinations, reasons
        reason = str(error.args[0][0][-1])
        found = re.match(r"\[Errno \d+\] ([^:]+)", reason)
        reason = found[1] if found else reason
    return InputError(
        f"cannot write: {reason}",
        where=str(path),
        fix="choose a folder with free space that you may write to (-o DIR)",
    )


@contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path`; it takes the name `path` only when all was written.

    Text is UTF-8 with ``\\n`` line ends. Raises `InputError` where the disk or the folder refuses.
    """
    path = Path(path)
    temporary = path.with_name(f"{temporary_prefix()}{path.name}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _write_refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it replaces `path` when the block ends well."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=path.parent))
    except OSError as error:
        raise _write_refused(path, error) from error
    try:
        yield temporary
        replace_folder(temporary, path)
    except OSError as error:
        raise _write_refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Puts the folder `new` in the place of `path` (which may exist), on one file system.

    Where another process does the same at the same time, one after the other is in the place, each
    whole.
    """
    os.chmod(new, 0o755)
    for _ in range(_TRIES):
        if not path.exists():
            try:
                os.replace(new, path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        if _exchanged(new, path):
            return
    raise OSError(errno.EBUSY, "another process keeps writing here", str(path))


def _exchanged(new: Path, path: Path) -> bool:
    """Moves what stands at `path` aside and `new` there; False where another process was faster.

    A folder cannot replace a full folder in one step. Where `new` cannot be moved, the old one goes
    back.
    """
    aside = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=path.parent))
    try:
        try:
            os.replace(path, aside / "old")
        except FileNotFoundError:
            return False
        try:
            os.replace(new, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            os.replace(aside / "old", path)
            raise
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While the block runs, no other process is in such a block for the same folder.

    By flock(2) on the folder itself, which goes with the process; where the file system knows no
    such lock, nothing is held.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_folder(folder: Path, option: str) -> None:
    """Makes `folder`, and raises InputError where nothing can be written there.

    `option` is what names the folder on the command line, such as ``-o DIR``.
    """
    fix = f"choose a folder with free space that you may write to ({option})"
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file, not a folder", where=str(folder), fix=fix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=temporary_prefix(), dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        what = f"nothing can be written here: {error.strerror or error}"
        raise InputError(what, where=str(folder), fix=fix) from error


LFS_FIX = "fetch the file itself: git lfs pull"


def is_lfs_pointer(path: Path) -> bool:
    """Whether there is the small text that Git LFS leaves in the place of a file not yet fetched.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md ("The Pointer").
    """
    with open(path, "rb") as file:
        return file.read(42) == b"version https://git-lfs.github.com/spec/v1"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces, in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
