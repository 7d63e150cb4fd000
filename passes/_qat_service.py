"""The worker's side of `qat`: the graph's torch form, its training, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optimc.core.errors import PreconditionError
from optimc.core.progress import tell
from optimc.passes._onnx_torch import TorchGraph
from optimc.passes._qat_graph import trainable
from optimc.passes._qat_parameters import Parameters
from optimc.passes._qat_proof import prove
from optimc.passes._train_progress import progress_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from optimc.calibration.sample_store import StoredBatch, StoredSamples

    Arrays = Mapping[str, NDArray[Any]]

_PROVED = 2
"""Samples that torch forms are proved on."""


class QatService:
    """One model in training; served by `optimc.core.worker.Worker`."""

    def __init__(
        self,
        quantized: str,
        origin: str,
        samples: str,
        checkpoints: str | None,
        seed: int,
        batch: int,
        fixed: int | None,
        options: Mapping[str, Any],
        key: str,
    ) -> None:
        """`quantized` and `origin` are ONNX files, `samples` is a folder of
        `optimc.calibration.sample_store`; `fixed` is the batch where the model has only one, and
        `key` names the run but for the threads.

        Raises PreconditionError where a graph has no torch form, nothing is trained, or the samples
        do not fill one batch.
        """
        import torch

        from optimc.calibration.sample_store import StoredSamples

        torch.use_deterministic_algorithms(True)
        if options["threads"] is not None:
            torch.set_num_threads(options["threads"])
        self._key = f"{key}-{torch.get_num_threads()}"
        self._seed, self._options, self._fixed = seed, options, fixed
        self._path, self._origin = Path(quantized), Path(origin)
        self._folder = None if checkpoints is None else Path(checkpoints)
        model, floats = ir.load(self._path), ir.load(self._origin)
        self._dtypes = {str(v.name): v.dtype.numpy() for v in model.graph.inputs if v.dtype}
        self._graph, self._teacher = TorchGraph(model), TorchGraph(floats)
        learned = options["scale_learning_rate"] > 0
        wanted = trainable(model, floats, options["freeze"], scales=learned)
        self._parameters = Parameters(self._graph, wanted)
        if not self._parameters.numbers:
            raise PreconditionError(
                "there is nothing to train: no quantized weight is left",
                fix="freeze less, or leave qat out",
            )
        self._samples: StoredSamples = StoredSamples(Path(samples))
        self._batch, self._whole = fixed or batch, fixed is not None
        if not self._samples.count(self._batch, whole=self._whole):
            raise PreconditionError(
                f"the samples do not fill one batch of {self._batch}, which the model wants",
                fix="give data.training more samples",
            )
        self._optimizer = torch.optim.Adam(
            [
                {"params": self._parameters.of_kind("weight", "bias")},
                {"params": self._parameters.of_kind("scale")},
            ],
            lr=0.0,
        )
        self._best: dict[str, NDArray[Any]] = {}

    def prove(self, arrays: Arrays, path: str | None = None) -> tuple[Any, Any]:
        """The largest error of any node; of the float model's too where no `path` is given.

        Raises PreconditionError, see `optimc.passes._qat_proof`.
        """
        batches = self._samples.in_order(self._fixed or _PROVED, whole=self._whole)
        feeds = self._feeds(next(batches))
        if path is not None:
            return prove(self._graph, Path(path), feeds, self._parameters.constants()), {}
        worst = prove(self._teacher, self._origin, feeds)
        constants = self._parameters.constants()
        return max(worst, prove(self._graph, self._path, feeds, constants)), {}

    def train(
        self, arrays: Arrays, epoch: int, epochs: int, judged: str = "", aside_s: float = 0.0
    ) -> tuple[Any, Any]:
        """One epoch (from 1) of `epochs`: its mean loss, and the graph's new constants.

        `judged` and `aside_s` are for the line of progress, as in `_train_loop.Trainer.epoch`.
        """
        import torch

        from optimc.passes._train_schedule import Schedule

        rng = np.random.default_rng([self._seed, epoch])
        schedule = Schedule("cosine", (), 1.0, 0.0)
        count = self._samples.count(self._batch, whole=self._whole)
        losses, started = [], time.monotonic()
        batches = self._samples.batches(self._batch, rng, whole=self._whole)
        for index, batch in enumerate(batches):
            step = (epoch - 1) * count + index
            share = schedule.share(step, epochs * count, count)
            self._optimizer.param_groups[0]["lr"] = share * self._options["learning_rate"]
            self._optimizer.param_groups[1]["lr"] = share * self._options["scale_learning_rate"]
            loss = self._loss(batch)
            if not torch.isfinite(loss):
                raise PreconditionError(
                    f"the loss is {loss.item()} in step {index + 1} of epoch {epoch}",
                    fix="lower qat's learning_rate",
                )
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            losses.append(float(loss.detach()))
            done = (step + 1) / (epochs * count)
            pace = (time.monotonic() - started) / (index + 1)
            left = pace * (epochs * count - step - 1) + aside_s * (epochs - epoch + 1)
            mean = float(np.mean(losses[-20:]))
            tell(done, progress_line(epoch, epochs, mean, left, judged))
        return float(np.mean(losses)), self._parameters.arrays()

    def facts(self, arrays: Arrays) -> tuple[Any, Any]:
        """The threads, the samples, and how many of them no epoch's batches have room for."""
        import torch

        samples = len(self._samples)
        used = self._batch * self._samples.count(self._batch, whole=True)
        return {
            "threads": torch.get_num_threads(),
            "batch": self._batch,
            "samples": samples,
            "left_out": samples - used if self._whole else 0,
        }, {}

    def keep(self, arrays: Arrays) -> tuple[Any, Any]:
        """Remembers the constants of now as the best."""
        self._best = self._parameters.arrays()
        return None, {}

    def best(self, arrays: Arrays) -> tuple[Any, Any]:
        """What `keep` remembered; the torch form is no longer that of now."""
        return None, self._best

    def save(self, arrays: Arrays, epoch: int, record: Any) -> tuple[Any, Any]:
        """Writes a checkpoint, with `record`, where there is a folder for it."""
        import torch

        from optimc.passes._train_checkpoint import optimizer_tensors, write_checkpoint

        if self._folder is not None:
            state = optimizer_tensors(self._optimizer)
            tensors = {f"optimizer/{name}": tensor for name, tensor in state.items()}
            tensors |= {f"number/{n}": t for n, t in self._parameters.numbers.items()}
            tensors |= {f"best/{n}": torch.from_numpy(a) for n, a in self._best.items()}
            write_checkpoint(self._folder, self._key, epoch, tensors, record)
        return None, {}

    def restore(self, arrays: Arrays) -> tuple[Any, Any]:
        """Goes on from the newest checkpoint: its record, or None where there is none."""
        import torch

        from optimc.passes._train_checkpoint import read_checkpoint, restore_optimizer

        found = None if self._folder is None else read_checkpoint(self._folder, self._key)
        if found is None:
            return None, {}
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "number": {}, "best": {}}
        for key, tensor in found.tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        with torch.no_grad():
            for name, tensor in parts["number"].items():
                self._parameters.numbers[name].copy_(tensor)
        restore_optimizer(self._optimizer, parts["optimizer"])
        self._best = {name: tensor.numpy() for name, tensor in parts["best"].items()}
        return dict(found.record), {}

    def _feeds(self, batch: StoredBatch) -> dict[str, Tensor]:
        import torch

        return {
            name: torch.from_numpy(np.array(feed, self._dtypes[name]))
            for name, feed in batch.feeds.items()
            if name in self._dtypes
        }

    def _loss(self, batch: StoredBatch) -> Tensor:
        """Distillation and labels, each by its share."""
        import torch

        share = float(self._options["distill"])
        feeds = self._feeds(batch)
        outputs = self._graph(feeds, self._parameters.constants())
        total = torch.zeros(())
        if share > 0:
            with torch.no_grad():
                wanted = self._teacher(feeds)
            total = total + share * distance(outputs, wanted)
        if share < 1:
            total = total + (1 - share) * _cross_entropy(outputs, batch.labels)
        return total


def distance(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """The squared error of the float outputs, relative to the variance of what is wanted.

    Of logits it is what distillation comes to at a high temperature (Hinton et al. 2015,
    arXiv:1503.02531, section 2.1), and it needs no classes.
    """
    import torch

    names = [name for name, tensor in wanted.items() if tensor.is_floating_point()]
    if not names:
        raise PreconditionError(
            "the model has no float output to learn from", fix="leave qat out of this variant"
        )
    total = torch.zeros(())
    for name in names:
        finite = torch.isfinite(wanted[name])
        right, found = wanted[name][finite], outputs[name][finite]
        variance = (right - right.mean()).square().mean().clamp_min(1e-12)
        total = total + (found - right).square().mean() / variance
    return total / len(names)


def _cross_entropy(outputs: Mapping[str, Tensor], labels: NDArray[Any] | None) -> Tensor:
    """Of the first output, logits [n, classes], with labels [n]."""
    import torch

    logits = next(iter(outputs.values()))
    fits = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    if not fits or logits.dim() != 2:
        raise PreconditionError(
            "labels that are the numbers of classes, and logits [n, classes], are what qat can"
            " learn from beside the float model",
            fix="write `distill: 1.0`, which needs no labels",
        )
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.array(labels, np.int64)))
