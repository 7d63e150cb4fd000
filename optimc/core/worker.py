"""Worker processes: what may crash, leak or spin runs here, with limits on memory and time.

One worker serves one object (a *service*) whose public methods are called by name. Messages are a
JSON header and raw arrays: nothing is pickled, so a worker that a hostile model has taken over
cannot make its parent run code. A worker that dies, hangs or runs out of memory becomes a
`WorkerError` with a message; no process and no temporary file stays behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, Self

from optimc.core import errors
from optimc.core.errors import (
    OptimcError,
    WorkerCrashedError,
    WorkerError,
    WorkerMemoryError,
    WorkerTimeoutError,
)
from optimc.core.leftovers import temporary_prefix

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

MEMORY_EXIT = 86
"""The exit code of a worker that met its memory limit and could still say so."""

_TAIL_BYTES = 4000
_NO_MEMORY = (
    "bad_alloc",
    "MemoryError",
    "Memory allocation still failed",  # OpenBLAS
    "failed to map segment",  # the dynamic linker
    "Cannot allocate memory",
)
"""What the last words of a process are where memory was not to be had."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may use: resident-like private memory in MB (10^6 bytes), seconds a call."""

    memory_mb: float | None = None
    seconds: float = 600.0
    libraries: tuple[str, ...] = ()
    """Libraries with custom operators that its sessions may load, see `optimc.core.custom_ops`."""


@dataclass(frozen=True)
class Reply:
    """What a call gave back: plain data and arrays by name."""

    data: Any
    arrays: Mapping[str, NDArray[np.generic]]


def pack(header: Mapping[str, Any], arrays: Arrays) -> bytes:
    """One message: the header's length, the header (JSON), then the arrays' bytes in its order.

    Strings travel as fixed-width unicode. Raises TypeError for object arrays that are not strings.
    """
    import numpy as np

    index, blobs = [], []
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype == object:
            array = array.astype(str)
        contiguous = np.ascontiguousarray(array)
        # ml_dtypes (bfloat16, float8) are of kind V: their name is what brings them back.
        kind = array.dtype.name if array.dtype.kind == "V" else array.dtype.str
        index.append([name, kind, list(array.shape), contiguous.nbytes])
        blobs.append(contiguous.tobytes())
    head = json.dumps({"header": header, "arrays": index}).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *blobs])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
    """The header and the arrays (read-only views of `message`) that `pack` put in."""
    import numpy as np

    length = int.from_bytes(message[:8], "little")
    head = json.loads(message[8 : 8 + length])
    arrays: dict[str, NDArray[np.generic]] = {}
    offset = 8 + length
    for name, kind, shape, nbytes in head["arrays"]:
        view = np.frombuffer(memoryview(message)[offset : offset + nbytes], dtype=_dtype(kind))
        arrays[name] = view.reshape(shape)
        offset += nbytes
    return head["header"], arrays


def _dtype(name: str) -> np.dtype[Any]:
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


_LIVE: weakref.WeakSet[Worker] = weakref.WeakSet()


def close_all_workers() -> None:
    """Ends every worker of this process: calls that wait for one raise `WorkerCrashedError`."""
    for worker in list(_LIVE):
        worker.close()


class Worker:
    """A process that serves ``module:Class``. A context manager; `close` kills what is left.

    The class is made with the keyword arguments `options` (plain data) in the worker. Its public
    methods are called as ``method(arrays, **data)`` and return ``(data, arrays)``.
    """

    def __init__(
        self,
        service: str,
        options: Mapping[str, Any] | None = None,
        *,
        name: str,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.on_progress: Callable[[float, str], None] | None = None
        """Gets the share that is done and a text while a call runs, see `optimc.core.progress`."""
        self.limits = limits or Limits()
        ours, theirs = Pipe(duplex=True)
        self._connection: Connection[Any, Any] = ours
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _clean)
        # A killed worker cannot tidy up: its temporary files lie where the parent removes them.
        self._scratch = ""
        try:
            self._scratch = tempfile.mkdtemp(prefix=temporary_prefix())
            self._process = self._started(theirs, environment or {})
        except BaseException:
            ours.close()
            theirs.close()
            self._log.close()
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        theirs.close()
        self._finalizer = weakref.finalize(
            self, _clean, self._process, ours, self._log, self._scratch
        )
        _LIVE.add(self)
        try:
            self.call("__init__", service=service, options=dict(options or {}))
        except BaseException:
            # Nobody has a handle on a worker whose service could not be made.
            self.close()
            raise

    def _started(
        self, theirs: Connection[Any, Any], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """The process, which ends with its connection."""
        env = {**os.environ, **environment, "PYTHONFAULTHANDLER": ""}
        env["TMPDIR"] = self._scratch
        memory = self.limits.memory_mb
        arguments = [str(theirs.fileno()), str(int(memory * 1e6) if memory else 0)]
        arguments += self.limits.libraries
        return _popen(
            [sys.executable, "-P", "-m", "optimc.core.worker_main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs.fileno()],
            env=env,
            # A session of its own: Ctrl-C reaches the parent alone, which then closes its workers.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def call(
        self,
        method: str,
        arrays: Arrays | None = None,
        *,
        timeout: float | None = None,
        **data: Any,
    ) -> Reply:
        """Calls ``method(arrays, **data)`` of the service and waits for its answer.

        Raises `WorkerTimeoutError` after `timeout` (default: the limit) seconds,
        `WorkerMemoryError` and `WorkerCrashedError` as they say, and the `OptimcError` that the
        service raised. After one of the first three the worker is gone.
        """
        seconds = self.limits.seconds if timeout is None else timeout
        try:
            self._connection.send_bytes(pack({"method": method, "data": data}, arrays or {}))
            header, answers = self._answer(seconds)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error
        if "error" in header:
            raise _remote_error(self.name, header["error"])
        return Reply(header["data"], answers)

    def _answer(self, seconds: float) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
        """What the worker answers within the time; progress on the way goes to `on_progress`."""
        end = time.monotonic() + seconds
        while self._connection.poll(max(end - time.monotonic(), 0.0)):
            header, answers = unpack(self._connection.recv_bytes())
            if "progress" not in header:
                return header, answers
            share, text = header["progress"]
            if self.on_progress is not None:
                self.on_progress(float(share), str(text))
        self.close()
        raise WorkerTimeoutError(
            f"{self.name} did not answer within its time limit of {seconds:g} s",
            fix="raise limits.seconds in the recipe, or look at the model for a hang",
        )

    def _died(self) -> WorkerError:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        tail = self._tail()
        self.close()
        if code == MEMORY_EXIT or any(words in tail for words in _NO_MEMORY):
            return _memory_error(self.name, self.limits)
        if code < 0:
            cause = f"died by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                cause += " (often the system's own out-of-memory killer)"
        else:
            cause = f"left with exit code {code}"
        last = tail.strip().splitlines()[-1:] or [""]
        detail = f": {last[0][:300]}" if last[0] else ""
        return WorkerCrashedError(
            f"{self.name} {cause}{detail}",
            fix="a native crash of the runtime on this model: try another target or fewer passes",
        )

    def _tail(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _TAIL_BYTES))
        return self._log.read().decode("utf-8", "replace")

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _popen(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process, started by a thread that lives as long as this process does.

    The kernel ends a worker with the *thread* that started it, see `worker_main`: one of a pool
    would take along, when the pool ends, a worker that others still use.
    """
    future = _starter().submit(_start, arguments, options)
    try:
        return future.result()
    except BaseException:
        # Ctrl-C while the process starts: nobody has a handle on it.
        future.add_done_callback(_kill_started)
        raise


def _start(arguments: list[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, **options)


@cache
def _starter() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, thread_name_prefix="optimc-starter")


def _kill_started(future: Future[subprocess.Popen[bytes]]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().kill()
        future.result().wait()


def _clean(
    process: subprocess.Popen[bytes], connection: Connection[Any, Any], log: Any, scratch: str
) -> None:
    connection.close()
    if process.poll() is None:
        process.kill()
        process.wait()
    log.close()
    shutil.rmtree(scratch, ignore_errors=True)


def _memory_error(name: str, limits: Limits) -> WorkerMemoryError:
    limit = f" of {limits.memory_mb:,.0f} MB" if limits.memory_mb else ""
    return WorkerMemoryError(
        f"{name} ran out of its memory limit{limit}",
        fix="raise limits.memory_mb in the recipe, or make batch sizes and dims smaller",
    )


def _remote_error(name: str, error: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, str(error["type"]), None)
    if isinstance(kind, type) and issubclass(kind, OptimcError):
        return kind(error["what"], where=error.get("where"), fix=error.get("fix"))
    return RuntimeError(f"{name}: {error['type']}: {error['what']}\n{error.get('trace', '')}")
