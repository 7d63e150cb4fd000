"""Progress of long calls, from a worker process to whoever waits for it.

Code that may run in a worker says how far it is with `tell`; outside of one, nobody listens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_EVERY_S = 0.2
_lock = threading.Lock()
_listener: Callable[[float, str], None] | None = None
_last = 0.0


def listen(listener: Callable[[float, str], None] | None) -> None:
    """Hands what is told to `listener` from now on; None ends that."""
    global _listener, _last
    with _lock:
        _listener, _last = listener, 0.0


def tell(share: float, text: str) -> None:
    """Says that `share` (0 to 1) is done; five times a second at most, from any thread."""
    global _last
    with _lock:
        now = time.monotonic()
        if _listener is not None and now - _last >= _EVERY_S:
            _last = now
            _listener(min(max(share, 0.0), 1.0), text)
