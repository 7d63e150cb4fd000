"""What a recipe names by `call:` is the user's code: beside the recipe, or installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Modules of `folder` can be imported, behind those that are installed; None changes nothing.

    Behind them, because a user's `numpy.py` must not shadow the library.
    """
    if folder is None:
        yield
        return
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
