"""A service for tests of workers: it says how far it is."""

from __future__ import annotations

import time
from typing import Any

from optimc.core import progress


class Steps:
    """Counts."""

    def count(self, arrays: Any, steps: int, seconds: float) -> tuple[Any, dict[str, Any]]:
        """Takes `seconds` for each of the `steps`."""
        for step in range(steps):
            progress.tell(step / steps, f"step {step}")
            time.sleep(seconds)
        return steps, {}
