"""Builds in one process: the services of worker processes run where they are called from.

For fuzzing, where a process for each engine would cost more than the build. What a crash or a hang
does to a build is shown elsewhere; here it takes the whole process with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from optimc.core.errors import OptimcError
from optimc.core.worker import Limits, Reply, pack, unpack

_USERS = (
    "optimc.calibration.observe",
    "optimc.frontends.onnx",
    "optimc.frontends.torch_frontend",
    "optimc.pipeline.oracle",
    "optimc.targets.client",
)


class InlineWorker:
    """Stands in for `optimc.core.worker.Worker`: the same messages, no process."""

    pid = 0

    def __init__(
        self,
        service: str,
        options: Mapping[str, Any] | None = None,
        *,
        name: str,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        module, _, kind = service.partition(":")
        self.name = name
        self._service = getattr(importlib.import_module(module), kind)(**dict(options or {}))

    def call(
        self,
        method: str,
        arrays: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **data: Any,
    ) -> Reply:
        """Calls the service as a worker would, messages packed and unpacked.

        Raises OptimcError as the service does, RuntimeError for anything else.
        """
        header, given = unpack(pack({"data": data}, arrays or {}))
        try:
            answer = getattr(self._service, method)(given, **header["data"])
        except (OptimcError, MemoryError):
            raise
        except Exception as error:
            raise RuntimeError(f"{self.name}: {type(error).__name__}: {error}") from error
        back, answers = unpack(pack({"data": answer[0]}, answer[1]))
        return Reply(back["data"], answers)

    def close(self) -> None:
        """Lets go of the service."""
        self._service = None

    def __enter__(self) -> InlineWorker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@contextmanager
def inline_workers() -> Iterator[None]:
    """While the block runs, builds start no processes."""
    with ExitStack() as stack:
        for module in _USERS:
            stack.enter_context(patch(f"{module}.Worker", InlineWorker))
        # Sweeping before each session is for timings, and there are none.
        stack.enter_context(patch("optimc.targets.service.gc.collect"))
        yield
