"""A compiler for trained models that proves what it did."""

from __future__ import annotations

__version__ = "0.1.0"
