"""Where results are kept between builds, as the layers below the pipeline see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """Folders by kind and key. The pipeline's cache is one; entries are whole or absent."""

    def get(self, kind: str, key: str) -> Path | None:
        """The folder that was put under `key`, or None. Not to be changed."""

    def put(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Lets `write` fill an empty folder, then makes it the entry `key`; returns its place."""
