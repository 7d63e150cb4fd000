"""The PyTorch and Hugging Face front ends, seen from the compiler: a worker does the work.

A source is opened, exported by torch's dynamo exporter, and compared with the ONNX model that the
compiler goes on with, output by output. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from optimc.core.errors import InputError, WorkerCrashedError, WorkerError, missing_extra
from optimc.core.model import TensorSpec
from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

TOLERANCE = 1e-4
"""The greatest error of the ONNX form, as a share of the output's scale."""

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Description:
    """What a source says of its inputs; see `_torch_sources.Described`."""

    inputs: tuple[TensorSpec, ...]
    values: Mapping[str, tuple[float, float]]
    dims: Mapping[str, tuple[int, int, int]]
    notes: tuple[str, ...]
    files: tuple[str, ...]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The greatest error over all feeds: its output, and the label of its feeds."""

    error: float
    output: str
    label: str
    count: int
    max_abs: float = 0.0
    sqnr_db: float = math.inf

    def __str__(self) -> str:
        return (
            f"the ONNX form agrees with PyTorch on {self.count} seeded inputs at the dims' corners:"
            f" the greatest error is {self.error:.1e} of the output's scale "
            f"(`{self.output}`, {self.label}), the limit {TOLERANCE:g}"
        )


class TorchFrontEnd:
    """One source in a worker. A context manager. Methods raise InputError.

    `kind` is that of the recipe and `options` what `torch_service` takes for it; `where` names the
    source in messages.
    """

    service = "optimc.frontends.torch_service:TorchService"

    def __init__(self, kind: str, options: Mapping[str, Any], *, where: str, limits: Limits):
        for module, extra in (("torch", "torch"), *([("transformers", "hf")] * (kind == "hf"))):
            if find_spec(module) is None:
                raise missing_extra(extra, f"a model of the kind `{kind}`")
        self._where = where
        self._worker: Worker = self._guarded(
            lambda: Worker(
                self.service,
                {"kind": kind, "options": dict(options)},
                name=f"reading {where.rpartition('/')[2]}",
                limits=limits,
                environment=_OFFLINE,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()

    def _guarded(self, action: Any) -> Any:
        """Runs `action`; a worker that ends is a fault of the model, and messages say where."""
        try:
            return action()
        except WorkerError as error:
            fix = error.fix
            if isinstance(error, WorkerCrashedError):
                fix = "open the model in a Python of your own: it ended the process it was read in"
            raise InputError(
                f"the model could not be read: {error.what}", where=self._where, fix=fix
            ) from error
        except InputError as error:
            raise InputError(error.what, where=error.where or self._where, fix=error.fix) from error

    def describe(self) -> Description:
        """The inputs, and what is known of their values and dims."""
        data = self._guarded(lambda: self._worker.call("describe")).data
        return Description(
            inputs=tuple(TensorSpec(n, dtype, tuple(shape)) for n, dtype, shape in data["inputs"]),
            values={name: (low, high) for name, (low, high) in data["values"].items()},
            dims={name: (a, b, c) for name, (a, b, c) in data["dims"].items()},
            notes=tuple(data["notes"]),
            files=tuple(data["files"]),
            modules=tuple(data["modules"]),
        )

    def export(
        self, target: Path, inputs: Sequence[TensorSpec], feeds: Feeds
    ) -> tuple[tuple[str, ...], Mapping[str, int]]:
        """Writes the ONNX file `target`: notes, and by dim the greatest size the model takes."""
        shapes = {spec.name: list(spec.shape or ()) for spec in inputs}
        data = self._guarded(
            lambda: self._worker.call("export", feeds, target=str(target), shapes=shapes)
        ).data
        return tuple(data["notes"]), dict(data["most"])

    def compare(self, path: Path, probes: Sequence[tuple[str, Feeds]]) -> Comparison:
        """Runs torch and the ONNX file at `path` on each of the labelled feeds.

        Raises InputError where an output differs by more than `TOLERANCE` of its scale.
        """
        self._guarded(lambda: self._worker.call("load", path=str(path)))
        worst = Comparison(-1.0, "", "", len(probes))
        greatest, signal, noise = 0.0, 0.0, 0.0
        for label, feeds in probes:
            try:
                errors = self._guarded(lambda feeds=feeds: self._worker.call("compare", feeds)).data
            except RuntimeError as error:
                raise self._run_failed(label, error) from error
            for output, (value, absolute, energy, lost) in errors.items():
                greatest, signal, noise = max(greatest, absolute), signal + energy, noise + lost
                if not value <= TOLERANCE:
                    raise self._mismatch(output, label, value)
                if value > worst.error:
                    worst = Comparison(value, output, label, len(probes))
        sqnr = 10 * math.log10(signal / noise) if signal and noise else math.inf
        return replace(worst, max_abs=greatest, sqnr_db=sqnr)

    def _run_failed(self, label: str, error: RuntimeError) -> InputError:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return InputError(
            f"PyTorch and the exported model do not both run at the sizes {label}: "
            f"{(lines or ['?'])[0][:400]}",
            where=self._where,
            fix="narrow `dims` to sizes that the model takes, or make the module take any size",
        )

    def _mismatch(self, output: str, label: str, error: float) -> InputError:
        by = f"by {error:.2e} of its scale" if math.isfinite(error) else "in shape, dtype or values"
        return InputError(
            f"the exported model is not the module: output `{output}` differs {by} "
            f"at the sizes {label} (the limit is {TOLERANCE:g})",
            where=self._where,
            fix="look for randomness, or branches on sizes or values in the module; "
            "or narrow `dims`",
        )
