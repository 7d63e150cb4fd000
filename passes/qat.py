"""Quantization-aware training of a placed Q/DQ graph (Jacob et al. 2018, arXiv:1712.05877).

    q = clamp(round(x / s) + z)        x' = (q - z) * s

The graph that `quantize_int8` placed for the target is trained as it stands: each Q and DQ becomes
fake quantization whose rounding counts as the identity in gradients, the weights become floats
again, and step sizes are learned with them (Esser et al. 2020, "Learned Step Size Quantization",
arXiv:1902.08153). So the result obeys the target's `QuantizationSpec` by construction:
BatchNormalization is folded and frozen by `fuse`, and what is written back is the same graph with
other integers and scales. See `_qat_parameters` for what is trained, `_onnx_torch` for the algebra.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.digest import digest_of
from optimc.core.errors import PreconditionError, missing_extra
from optimc.core.model import Level
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, lossy
from optimc.passes._train_best import is_best
from optimc.passes._train_progress import judged_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from optimc.core.model import Model, OnnxModel
    from optimc.core.worker import Worker

NAME = "qat"
_SERVICE = "optimc.passes._qat_service:QatService"
_WHERE = "the whole graph"
_MOST_BYTES = 3 * 2**29
"""ONNX Runtime gets the graph with all its values as one message, of 2 GB at most."""
_TRAINING_S = 7 * 24 * 3600.0
"""The longest epoch: the training has no time limit of its own."""


class Qat(Pass):
    """Trains a quantized model with its rounding in place (quantization-aware training).

    Rewrites: the int8 weights, the biases and the scales of the graph that `quantize_int8` placed,
        by training on `data.training`. Operators, zero points and types stay; scales that the
        placement made equal stay equal, int32 biases keep the scale of the accumulator, and weights
        that are 0 in the float model (pruned ones, such as 2:4) stay 0. The training counts as one
        rewrite. It goes on from its last epoch where a build was killed.
    Refuses: nothing in part. A model that no pass before it quantized, and operators or control
        flow that have no torch form or whose torch form does not agree with ONNX Runtime, are
        errors that name the operator.
    Accuracy: lossy. Before the training each node of the torch form is compared with ONNX Runtime
        on samples of `data.training`, after it each node of the written graph: floats to 1e-4 of
        their scale, integers behind a Q to one step in 1 % of them. Where the recipe has
        `data.tuning`, the epoch whose metric is best there is kept, else the last. Judged by the
        gate where the recipe limits a metric, else by an output SQNR of 3 dB against the model
        that it was given.
    Options: epochs, batch, learning_rate, scale_learning_rate, distill, keep, threads,
        freeze.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """How often each training sample is seen."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Samples in a step of the optimizer (Adam). A model with a fixed batch takes its own."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """For weights and biases, in quantization steps: Adam moves a weight by about that much. It
    falls to 0 by half a cosine wave."""
    scale_learning_rate: Annotated[float, Field(ge=0)] = 0.001
    """For the scales' logarithms: 0.001 is a per mille a step. With 0 scales stay as they are."""
    distill: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of the loss that compares the outputs with the float model's, which needs no
    labels. The rest is the cross-entropy of the first output with the labels."""
    keep: Literal["best", "last"] = "best"
    """Which epoch is kept: the `best` on the tuning split where there is one (the model as it came,
    if none is better), or the `last`."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of the processor; without it, what PyTorch takes. Another number gives other
    roundings."""
    freeze: list[str] = Field(default=[])
    """Layers whose weights and biases stay: patterns as in `keep_float` of quantize_int8."""

    level: ClassVar[Level] = Level.ONNX
    reads: ClassVar[frozenset[Input]] = frozenset({Input.TRAINING, Input.FLOAT})
    reads_names: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir", "onnxruntime", "torch")

    @property
    def wants(self) -> frozenset[Input]:
        """The tuning split, to choose the best epoch by."""
        return frozenset({Input.TUNING} if self.keep == "best" else ())

    @property
    def effect(self) -> Effect:
        """LOSSY: what it mends may be far off."""
        return lossy(3.0)

    def check_extras(self) -> None:
        """Raises UnavailableError where torch is not installed."""
        from importlib.util import find_spec

        if find_spec("torch") is None:
            raise missing_extra("torch", f"the pass {NAME}")

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for a float model and patterns without effect, UnavailableError
        where torch is not installed."""
        from optimc.passes._patterns import check_nodes
        from optimc.passes._recovery_layers import check_quantized

        check_quantized(context, NAME)
        _check_size(model)
        self.check_extras()
        check_nodes("freeze", self.freeze, _graph(model))

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        if context.log.stopped:
            return PassResult(model.sealed(), False)
        with self._worker(model, context) as worker:
            worker.on_progress = context.progress
            error = float(worker.call("prove").data)
            record, before = self._trained(worker, model, context)
            facts = worker.call("facts").data
            result = PassResult(
                model,
                False,
                _stats(record, error),
                choice={"best": record["best"], "threads": facts["threads"]},
                notes=tuple(_notes(facts, before, context.choice)),
            )
            constants = worker.call("best").arrays
            if not _differs(model, constants) or not context.log.allow("train", _WHERE):
                return replace(result, model=model.sealed())
            _write(model, constants)
            return replace(
                result, model=model.sealed(), modified=True, rewrites=context.log.rewrites
            )

    def _worker(self, model: OnnxModel, context: PassContext) -> Worker:
        from optimc.calibration.checks import fixed_batch
        from optimc.core.worker import Worker

        assert context.float_model is not None
        threads = self.threads if context.choice is None else context.choice["threads"]
        paths = {"quantized": model, "origin": context.float_model}
        for name, one in paths.items():
            one.write_onnx(context.workspace / f"{name}.onnx")
        options = {
            **{name: str(context.workspace / f"{name}.onnx") for name in paths},
            "samples": str(context.training.stored()),
            "checkpoints": None if context.unfinished is None else str(context.unfinished),
            "seed": context.seed,
            "batch": self.batch,
            "fixed": fixed_batch(model.signature),
            "options": {**self.options(), "threads": threads},
            "key": self._key(model, context),
        }
        limits = replace(context.limits, seconds=_TRAINING_S)
        return Worker(_SERVICE, options, name="the training", limits=limits)

    def _key(self, model: OnnxModel, context: PassContext) -> str:
        """Names the run: only its own checkpoints are gone on with."""
        tuning = context.tuning.digest if self._judged(context) else None
        assert context.float_model is not None
        return digest_of(
            [self.options(), model.sealed().digest, context.float_model.digest],
            [context.training.digest, context.seed, context.choice, tuning],
        )

    def _judged(self, context: PassContext) -> bool:
        return context.has(Input.TUNING) and context.choice is None

    def _trained(
        self, worker: Worker, model: OnnxModel, context: PassContext
    ) -> tuple[dict[str, Any], int]:
        """Trains all epochs that are left; what happened in all of them, as plain data, and how
        many a build before this one had done."""
        judged = self._judged(context)
        record = worker.call("restore").data
        if record is None:
            start = context.tuning.drop(model).point if judged else None
            record = {"losses": [], "drops": [start], "best": 0}
            worker.call("keep")
        before = len(record["losses"])
        last = self.epochs if context.choice is None else context.choice["best"]
        aside_s = 0.0
        for epoch in range(before + 1, last + 1):
            said = judged_line(context.tuning.metric, record["drops"]) if judged else ""
            reply = worker.call(
                "train", epoch=epoch, epochs=self.epochs, judged=said, aside_s=aside_s
            )
            started = time.monotonic()
            path = context.workspace / f"epoch-{epoch}.onnx"
            now = model.clone()
            _write(now, reply.arrays)
            now.write_onnx(path)
            worker.call("prove", path=str(path))
            record["losses"].append(reply.data)
            drop = context.tuning.drop(now.sealed()).point if judged else None
            if drop is None or is_best(drop, record["drops"]):
                record["best"] = epoch
                worker.call("keep")
            record["drops"].append(drop)
            worker.call("save", epoch=epoch, record=record)
            aside_s = time.monotonic() - started
        return dict(record), before


def _check_size(model: Any) -> None:
    if model.stats.bytes > _MOST_BYTES:
        raise PreconditionError(
            f"the model has {model.stats.bytes:,} bytes of weights; {NAME} proves its torch form on"
            f" models of up to {_MOST_BYTES:,}",
            fix=f"leave {NAME} out of this variant",
        )


def _write(model: OnnxModel, constants: Mapping[str, Any]) -> None:
    """Puts new constants in the place of old ones of the same name, shape and type."""
    import onnx_ir as ir

    initializers = model.ir.graph.initializers
    for name, array in constants.items():
        initializers[name].const_value = ir.tensor(array.copy(), name=name)


def _differs(model: OnnxModel, constants: Mapping[str, Any]) -> bool:
    import numpy as np

    initializers = model.ir.graph.initializers
    stored = {name: initializers[name].const_value for name in constants}
    return any(
        tensor is None or not np.array_equal(tensor.numpy(), constants[name])
        for name, tensor in stored.items()
    )


def _stats(record: Mapping[str, Any], error: float) -> dict[str, int | float | str]:
    """What the report shows: losses, the epoch that was kept, and its drop on the tuning split."""
    stats: dict[str, int | float | str] = {"epoch": record["best"], "torch_error": error}
    if record["losses"]:
        stats |= {"first_loss": record["losses"][0], "last_loss": record["losses"][-1]}
    drops = {
        "tuning_drop_before": record["drops"][0],
        "tuning_drop": record["drops"][record["best"]],
    }
    return stats | {n: d for n, d in drops.items() if d is not None and math.isfinite(d)}


def _notes(facts: Mapping[str, Any], before: int, choice: Any) -> Iterator[str]:
    if choice is not None:
        yield f"trained to epoch {choice['best']}, as the lock says"
    if before:
        yield f"went on after epoch {before}"
    if facts["left_out"]:
        yield (
            f"{facts['left_out']:,} of {facts['samples']:,} samples are left out of each epoch: "
            f"they fill no batch of {facts['batch']:,}, the model's own"
        )


def _graph(model: Any) -> Any:
    return model.ir.graph
