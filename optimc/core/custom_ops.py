"""Libraries with operators of the user's own, for ONNX Runtime; what a worker process may load.

A recipe names them (`model.custom_ops`). `optimc.core.worker.Limits` carries them to every worker,
which registers them in each session that it opens; the process of the build itself loads none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

DIGESTS_KEY = "optimc.custom_ops"
"""The key in a model's metadata with the SHA-256 of each library: a part of the model's digest,
because the libraries decide its numbers."""

_provided: list[Path] = []


def provide(paths: Iterable[str]) -> None:
    """Tells this process which libraries its sessions take; called once, when a worker starts."""
    _provided[:] = map(Path, paths)


def provided() -> tuple[Path, ...]:
    """The libraries of this process; none outside workers."""
    return tuple(_provided)


def register(options: Any) -> None:
    """Adds the operators to an ``onnxruntime.SessionOptions``. Raises what the runtime raises."""
    for path in _provided:
        options.register_custom_ops_library(str(path))
