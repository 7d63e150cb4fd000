"""The line that tells how far a training is: shared by passes that train."""

from __future__ import annotations

import math
from collections.abc import Sequence


def progress_line(epoch: int, epochs: int, loss: float, left_s: float, judged: str = "") -> str:
    """``epoch 3/8, loss 0.123, top1 drop 0.004 (best 0.003), 12 min left``; epochs from 1."""
    parts = [f"epoch {epoch}/{epochs}", f"loss {loss:.4g}", judged, f"{_time(left_s)} left"]
    return ", ".join(part for part in parts if part)


def judged_line(metric: str, drops: Sequence[float | None]) -> str:
    """What the tuning split said last, and of the best epoch; empty where nothing is judged."""
    known = [drop for drop in drops if drop is not None]
    if not known:
        return ""
    numbers = [drop for drop in known if not math.isnan(drop)]
    best = f" (best {min(numbers):.4g})" if numbers and known[-1] != min(numbers) else ""
    return f"{metric} drop {known[-1]:.4g}{best}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
