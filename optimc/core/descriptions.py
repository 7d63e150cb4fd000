"""Whether fields take their descriptions from docstrings: for manual pages and schemas alone.

Pydantic reads the source of every class for that, a quarter of what a short command costs. Only the
console script says that a command needs none; whoever imports optimc gets them.
"""

from __future__ import annotations

_wanted = True


def leave_out() -> None:
    """Called before any such class is imported, by commands that print no descriptions."""
    global _wanted
    _wanted = False


def wanted() -> bool:
    """The value of `use_attribute_docstrings` in a model's configuration."""
    return _wanted
