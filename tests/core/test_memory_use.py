from __future__ import annotations

import numpy as np

from optimc.core.memory import memory_use


def test_peak_stays_when_memory_is_given_back() -> None:
    before = memory_use()
    assert before.current_mb is not None
    block = np.ones(200_000_000, np.uint8)
    held = memory_use()
    del block
    after = memory_use()
    assert held.current_mb is not None
    assert after.current_mb is not None
    assert after.peak_mb is not None
    assert held.current_mb - before.current_mb > 190
    assert after.current_mb < held.current_mb - 190
    # Linux counts by processor and adds up now and then: exact to some pages each.
    assert after.peak_mb > held.current_mb - 2
