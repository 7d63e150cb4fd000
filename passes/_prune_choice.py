"""Which layers the pruning passes cut: what both levels share. Imports no graph library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from optimc.core.errors import PreconditionError
from optimc.core.passes import RewriteLog

Unfit = Callable[[tuple[int, ...], int, str], "str | None"]
"""Of a shape, the axis that is summed over, and the operator: why it cannot be cut, or None."""


def nothing(rule: str, log: RewriteLog) -> PreconditionError:
    """The error where no layer is left to cut."""
    reasons = "".join(f"; {refusal.where}: {refusal.reason}" for refusal in log.refusals[:3])
    return PreconditionError(
        f"no layer of this model can be pruned{reasons}",
        fix=f"take {rule} out of this variant, or keep fewer layers",
    )


def kept_by(name: str, keep: Sequence[str]) -> str | None:
    """The pattern of `keep` that names a module."""
    return next((pattern for pattern in keep if fnmatchcase(name, pattern)), None)
