from __future__ import annotations

import threading
import time

from optimc.core.worker import Worker


def test_a_worker_outlives_the_thread_that_asked_for_it() -> None:
    started: list[Worker] = []

    def start() -> None:
        service = "optimc.pipeline.oracle_service:OracleService"
        started.append(Worker(service, {"threads": 1}, name="a worker"))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(0.2)  # the kernel's signal would be there by now
    with started[0] as worker:
        worker.call("forget", path="nothing")
