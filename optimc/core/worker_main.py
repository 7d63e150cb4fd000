"""The other side of `optimc.core.worker`: serves one object until the parent goes away."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import traceback
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from optimc.core import custom_ops, descriptions, offline, progress
from optimc.core.errors import OptimcError
from optimc.core.worker import MEMORY_EXIT, pack, unpack

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, memory_bytes: int) -> None:
    """Serves calls from the pipe `descriptor` under the limit `memory_bytes` (0: none)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptions.leave_out()
    offline.inherit()
    _die_with_parent()
    _leave_no_core_file()
    if memory_bytes:
        _limit_memory(memory_bytes)
    connection = Connection(descriptor)
    service: Any = None
    while True:
        try:
            header, arrays = unpack(connection.recv_bytes())
        except EOFError:
            # Runtimes' destructors may hang or crash; nothing of this process is needed any more.
            os._exit(0)
        method, data = header["method"], header["data"]
        try:
            if method == "__init__":
                service = _make(data["service"], data["options"])
                answer: tuple[Any, Any] = (None, {})
            elif method.startswith("_"):
                raise ValueError(f"not a public method: {method}")
            else:
                progress.listen(partial(_tell, connection))
                try:
                    answer = getattr(service, method)(arrays, **data)
                finally:
                    progress.listen(None)
            message = pack({"data": answer[0]}, answer[1])
        except MemoryError:
            os._exit(MEMORY_EXIT)
        except OptimcError as error:
            message = pack({"error": _describe(error)}, {})
        except Exception as error:  # noqa: BLE001 (goes to the parent as it is)
            if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
                os._exit(MEMORY_EXIT)
            message = pack({"error": _describe_bug(error)}, {})
        connection.send_bytes(message)


def _tell(connection: Connection, share: float, text: str) -> None:
    connection.send_bytes(pack({"progress": [share, text]}, {}))


def _make(service: str, options: dict[str, Any]) -> Any:
    module, _, name = service.partition(":")
    return getattr(importlib.import_module(module), name)(**options)


def _describe(error: OptimcError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
    }


def _describe_bug(error: Exception) -> dict[str, Any]:
    return {"type": type(error).__name__, "what": str(error), "trace": traceback.format_exc()}


def _die_with_parent() -> None:
    """Linux: the kernel ends this process when its parent dies, even in a native endless loop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_no_core_file() -> None:
    """A crash would leave gigabytes in the user's folder where core files are switched on."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory(limit: int) -> None:
    """Limits private writable memory: RLIMIT_AS would also count mapped files and reservations."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    custom_ops.provide(sys.argv[3:])
    main(int(sys.argv[1]), int(sys.argv[2]))
