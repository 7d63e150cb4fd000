"""Whether the user asked to stop: kept, because a library may swallow the KeyboardInterrupt.

Native code that calls back into Python turns any exception into one of its own: numpy, asked for
the shape of an array, makes a TypeError of it. What would then be blamed asks here first.
"""

from __future__ import annotations

_asked = False


def note(asked: bool = True) -> None:
    """Keeps that the user asked to stop, or, with False, that a new command begins."""
    global _asked
    _asked = asked


def check() -> None:
    """Raises KeyboardInterrupt where the user asked to stop."""
    if _asked:
        raise KeyboardInterrupt
