"""Digests of plain data: canonical JSON, hashed with SHA-256."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal data gives equal text.

    Objects with a ``model_dump`` (pydantic) are taken as their JSON form. Raises TypeError for
    anything that JSON cannot hold, because a digest of a ``repr`` would not be stable.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain, allow_nan=True)


def digest_of(*values: Any) -> str:
    """SHA-256 over the canonical JSON of `values`, in lower-case hexadecimal."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"no canonical form for {type(value).__name__}")
