"""Running what waits for worker processes side by side: never what is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from optimc.core.worker import close_all_workers

Item = TypeVar("Item")

MOST = 4
"""More workers at once would mostly fill the memory."""


def run_side_by_side(items: Iterable[Item], work: Callable[[Item], None]) -> None:
    """Calls `work` for every item, as many at once as there are cores, up to `MOST`.

    The first exception ends it, Ctrl-C included: all workers are closed, so that no call goes on
    behind its back, and the exception is raised.
    """
    from optimc.core.cpu import usable_cores

    with ThreadPoolExecutor(min(usable_cores(), MOST), thread_name_prefix="optimc") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            close_all_workers()
            raise
