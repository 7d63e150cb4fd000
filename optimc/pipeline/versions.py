"""Which code made a result: versions of optimc and of the tools, for cache keys and the lock."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from optimc import __version__


@cache
def tool_version(distribution: str) -> str:
    """The installed version of a distribution, or `absent`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def tool_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions by name, sorted."""
    return {name: tool_version(name) for name in sorted(set(distributions))}


@cache
def compiler_digest() -> str:
    """Names the code of optimc itself: a change of the code without a new version counts too."""
    import optimc

    hasher = hashlib.sha256(__version__.encode())
    record = _record()
    if record is not None:
        hasher.update(record)
        return hasher.hexdigest()
    # An editable install has no useful RECORD: hash the sources.
    import optimc.calibration
    import optimc.passes

    for package in (optimc, optimc.passes, optimc.calibration):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                hasher.update(path.name.encode() + path.read_bytes())
    return hasher.hexdigest()


def _record() -> bytes | None:
    try:
        files = metadata.distribution("optimc").read_text("RECORD")
    except metadata.PackageNotFoundError:
        return None
    if files is None or "optimc/pipeline/versions.py" not in files:
        return None
    return files.encode()


@cache
def source_digest(item: type) -> str:
    """Names the code of a class from a plug-in by the text of its module's file."""
    if item.__module__.split(".")[0] == "optimc":
        return compiler_digest()
    try:
        source = Path(inspect.getfile(item)).read_bytes()
    except (OSError, TypeError):
        source = item.__qualname__.encode()
    return hashlib.sha256(source).hexdigest()
