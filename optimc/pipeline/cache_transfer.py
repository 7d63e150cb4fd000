"""Moving a cache to a machine without a network: `optimc cache export` and `import`.

One plain tar file (POSIX.1-2001, not compressed, so that nothing can swell) with the same bytes for
the same entries. Import takes nothing from the file on trust but what the entries' own digests
hold: regular files, in the places of entries, of the sizes and SHA-256 that `entry.json` lists.
What a key *means* cannot be checked: whoever made the file could have put any engine under it, so
import only from machines whose builds you would ship.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from optimc.core.errors import InputError
from optimc.core.files import atomic_write
from optimc.core.leftovers import temporary_prefix
from optimc.pipeline.cache import ENTRY, LAYOUT, Cache, Entry

_PLACE = re.compile(
    rf"{LAYOUT}/(?P<kind>[a-z][a-z-]{{0,40}})/(?P<shard>[0-9a-f]{{2}})/"
    r"(?P<key>[0-9a-f]{64})/(?P<inside>.+)"
)
_MOST_FILES = 1_000_000
_LISTING_BYTES = 10_000_000


def export_cache(cache: Cache, path: Path) -> list[Entry]:
    """Writes every whole entry into the tar file `path` (atomic); returns them.

    Raises InputError where the file cannot be written.
    """
    found = [entry for entry in cache.entries() if cache.get(entry.kind, entry.key)]
    with (
        atomic_write(path, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in found:
            for source in sorted(p for p in entry.folder.rglob("*") if p.is_file()):
                inside = source.relative_to(entry.folder).as_posix()
                name = f"{LAYOUT}/{entry.kind}/{entry.key[:2]}/{entry.key}/{inside}"
                info = tarfile.TarInfo(name)
                info.size, info.mode = source.stat().st_size, 0o644
                with open(source, "rb") as content:
                    archive.addfile(info, content)
    return found


def import_cache(cache: Cache, path: Path) -> tuple[int, int]:
    """Takes the entries of `path` in; the numbers of those that are new and of those known.

    Raises InputError where the file is no export, is cut off, or holds what an export does not:
    then the entries before that place are in, whole, and nothing else.
    """
    new = known = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for kind, key, members in _entries(archive, path, cache.size_bytes):
                if cache.get(kind, key) is not None:
                    known += 1
                    continue
                _take_in(cache, archive, path, kind, key, members)
                new += 1
    except (tarfile.TarError, EOFError) as error:
        raise _refused(path, f"not a whole tar file: {error}") from error
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    return new, known


def _refused(path: Path, what: str) -> InputError:
    return InputError(what, where=str(path), fix="write it anew with `optimc cache export FILE`")


def _entries(
    archive: tarfile.TarFile, path: Path, most_bytes: int
) -> Iterator[tuple[str, str, list[tarfile.TarInfo]]]:
    """The members by entry, every name and type checked; entries follow one another whole."""
    current: tuple[str, str] | None = None
    members: list[tarfile.TarInfo] = []
    total = count = 0
    for member in archive:
        if not member.isreg() or member.issparse():
            raise _refused(path, f"`{member.name[:200]}` is no regular file")
        match = _PLACE.fullmatch(member.name)
        if match is None or not _plain(match["inside"]) or match["key"][:2] != match["shard"]:
            raise _refused(path, f"`{member.name[:200]}` is no file of a cache entry")
        total, count = total + member.size, count + 1
        if total > most_bytes or count > _MOST_FILES:
            raise _refused(path, f"it holds more than the cache may: {most_bytes / 1e9:g} GB")
        here = (match["kind"], match["key"])
        if here != current and current is not None:
            yield (*current, members)
            members = []
        current = here
        members.append(member)
    if current is not None:
        yield (*current, members)


def _plain(inside: str) -> bool:
    parts = PurePosixPath(inside).parts
    return not inside.startswith("/") and ".." not in parts and "\\" not in inside


def _take_in(
    cache: Cache,
    archive: tarfile.TarFile,
    path: Path,
    kind: str,
    key: str,
    members: list[tarfile.TarInfo],
) -> None:
    """Unpacks one entry aside, holds it against its own list, and makes it one of the cache."""
    prefix = f"{LAYOUT}/{kind}/{key[:2]}/{key}/"
    aside = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=cache.root))
    try:
        for member in members:
            inside = member.replace(name=member.name.removeprefix(prefix), deep=False)
            archive.extract(inside, aside, filter="data")
        listed = _listed(aside)
        found = {p.relative_to(aside).as_posix() for p in aside.rglob("*") if p.is_file()}
        if listed is None or found != listed | {ENTRY} or not cache.is_whole(aside):
            raise _refused(path, f"the entry {kind} {key[:12]}… is damaged: its digests differ")

        def write(folder: Path) -> None:
            (aside / ENTRY).unlink()
            shutil.copytree(aside, folder, dirs_exist_ok=True)

        cache.put(kind, key, write)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _listed(folder: Path) -> set[str] | None:
    """The files that an entry names, or None where its list is none."""
    try:
        if (folder / ENTRY).stat().st_size > _LISTING_BYTES:
            return None
        return set(json.loads((folder / ENTRY).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
