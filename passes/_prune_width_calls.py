"""What `prune_width` calls in the worker; importing this module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimc.core.workbench import Workbench


def survey(bench: Workbench, arrays: Any, **options: Any) -> dict[str, Any]:
    """See `optimc.passes._prune_width_work.survey`."""
    from optimc.passes import _prune_width_work

    return _prune_width_work.survey(bench, arrays, **options)


def cut(bench: Workbench, arrays: Any, **options: Any) -> dict[str, int]:
    """See `optimc.passes._prune_width_work.cut`."""
    from optimc.passes import _prune_width_work

    return _prune_width_work.cut(bench, arrays, **options)
