"""Reading npy files and npz archives from strangers: sizes are checked before anything is read.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Pickled arrays are
never loaded. An archive may claim any size, so what it declares is held against a cap first.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from optimc.calibration.arrays import StoredArray
from optimc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    from numpy.typing import NDArray

MAX_ARRAY_BYTES = 4 << 30
"""The largest array that is taken from an archive; npy files are mapped and have no cap."""

_KINDS = "biufUS"
_SAVE_HINT = "save it again with numpy.savez_compressed from numeric arrays"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError)


def npz_arrays(path: Path, names: Collection[str] | None) -> dict[str, StoredArray]:
    """The named arrays (None: all) of an archive, by their headers; contents are read later.

    Raises InputError for what is not an archive, for missing names, pickled or damaged arrays, and
    for arrays over `MAX_ARRAY_BYTES`.
    """
    _existing_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {_array_name(info): info for info in archive.infolist()}
            for name in names if names is not None else members:
                if name not in members:
                    raise unknown_name("array", name, members, where=str(path))
            wanted = {name: members[name] for name in (names if names is not None else members)}
            return {name: _npz_array(archive, path, name, info) for name, info in wanted.items()}
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def npy_array(path: Path) -> StoredArray:
    """The array of an npy file, which is mapped and not read. Raises InputError as `npz_arrays`."""
    import numpy as np

    _existing_file(path)
    try:
        with open(path, "rb") as file:
            shape, dtype, offset = _header(file, str(path))
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    missing = offset + math.prod(shape) * dtype.itemsize - path.stat().st_size
    if missing > 0:
        raise InputError(f"is cut off: {missing:,} bytes are missing", where=str(path))

    def read() -> NDArray[np.generic]:
        try:
            mapped = math.prod(shape) > 0  # an empty file part cannot be mapped
            array: NDArray[np.generic] = np.load(
                path, mmap_mode="r" if mapped else None, allow_pickle=False
            )
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
        return array

    return StoredArray(str(path), shape, dtype, read)


def _existing_file(path: Path) -> None:
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise InputError(
            what, where=str(path), fix="correct the path (it is relative to the recipe)"
        )


def _array_name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _npz_array(
    archive: zipfile.ZipFile, path: Path, name: str, info: zipfile.ZipInfo
) -> StoredArray:
    where = f"{path}: {name}"
    if info.flag_bits & 1:
        raise InputError("is encrypted", where=where, fix=_SAVE_HINT)
    with archive.open(info) as file:
        shape, dtype, offset = _header(file, where)
    declared = math.prod(shape) * dtype.itemsize
    if declared > MAX_ARRAY_BYTES:
        raise InputError(
            f"claims {declared / 1e9:,.1f} GB, over the cap of {MAX_ARRAY_BYTES / 1e9:.1f} GB",
            where=where,
            fix="store big arrays as npy files (`npy:`), which are mapped and not read",
        )
    if offset + declared != info.file_size:
        raise InputError(
            f"is damaged: {declared:,} bytes are declared, {info.file_size - offset:,} follow",
            where=where,
            fix=_SAVE_HINT,
        )
    return StoredArray(where, shape, dtype, _reader(path, info.filename, where))


def _reader(path: Path, member: str, where: str) -> Callable[[], NDArray[np.generic]]:
    def read() -> NDArray[np.generic]:
        from numpy.lib import format as npy_format

        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                return npy_format.read_array(file, allow_pickle=False)
        except _UNREADABLE as error:
            raise _damaged(Path(where), error) from error

    return read


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype, and the length of the header in bytes. Raises ValueError for anything else."""
    from tokenize import TokenError

    from numpy.lib import format as npy_format

    counted = _Counted(file)
    version = npy_format.read_magic(counted)
    readers = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"npy format {version[0]}.{version[1]} is for structured arrays")
    try:
        shape, _, dtype = readers[version](counted)
    except TokenError as error:  # numpy reads the header once more as Python 2 wrote it
        raise ValueError(f"its header is no dictionary: {error}") from error
    if dtype.hasobject:
        raise InputError(
            "holds pickled Python objects, which are never loaded (unpickling runs code)",
            where=where,
            fix="save numbers or strings: numpy.asarray(values, dtype=...)",
        )
    if dtype.kind not in _KINDS or any(dim < 0 for dim in shape):
        raise InputError(f"holds {dtype}{list(shape)}, not numbers or text", where=where)
    return shape, dtype, counted.count


class _Counted:
    """Counts the bytes that are read from a stream that cannot tell its place."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        return data


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot be read: {error}", where=str(path), fix=_SAVE_HINT)
