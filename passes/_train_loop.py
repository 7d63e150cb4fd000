"""The training loop, in the worker; `_train_calls` is how `train` reaches it.

Nothing that an epoch draws depends on the epochs before it (order, augmentation, dropout start from
the recipe's seed and the epoch's number), so a run that goes on from a checkpoint computes the same
numbers as one that was never stopped.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, InputError, OptimcError
from optimc.core.progress import tell
from optimc.passes._train_average import Average
from optimc.passes._train_checkpoint import optimizer_tensors, restore_optimizer
from optimc.passes._train_progress import progress_line

if TYPE_CHECKING:
    import torch

    from optimc.calibration.sample_store import StoredBatch
    from optimc.core.workbench import Workbench
    from optimc.passes._train_step import Step
    from optimc.passes.train import Train

_TRIED = 2, 6
"""Steps before the pace of the training is taken, and steps that it is taken over."""


class Trainer:
    """A module in training; from `begin` to `finish` of `_train_calls`."""

    def __init__(
        self,
        bench: Workbench,
        options: Train,
        samples: Path,
        folder: Path,
        seed: int,
        threads: int | None,
    ) -> None:
        import torch

        from optimc.calibration.sample_store import StoredSamples
        from optimc.passes._train_augment import augmenter
        from optimc.passes._train_losses import Objective, Taps, tapped
        from optimc.passes._train_precision import Compute
        from optimc.passes._train_teacher import open_teacher

        self.bench = bench
        self.options = options
        self.seed = seed
        self.threads = threads or torch.get_num_threads()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.compute = Compute(self.device, options.precision)
        self.samples = StoredSamples(samples)
        self.epochs = options.epochs
        self.best: dict[str, torch.Tensor] = {}
        self._average = None if options.average is None else Average(options.average)
        self._check_inputs()
        self._augment = augmenter(options.augment)
        labelled = self.samples.unlabelled is None
        self._check_labels(labelled=labelled)
        self.objective = Objective(options, folder, labelled=labelled)
        own, others = tapped(options)
        self._taps = Taps(bench.module, own, "the model")
        self._teacher = (
            open_teacher(bench, options.distill.teacher, folder, seed, others, self.compute)
            if options.distill is not None
            else None
        )
        self._answers: Any = None
        with self._running():
            self._try_losses()
            if self._teacher is not None and not others and options.same_samples:
                from optimc.passes._train_teacher import remembered

                self._answers = remembered(self._teacher, self.samples, self._feeds, options.batch)
        self.optimizer = self._new_optimizer()

    def _check_inputs(self) -> None:
        given = sorted(self.samples.groups[0].paths)
        missing = [name for name in self.bench.names if name not in given]
        if missing:
            raise InputError(
                f"the training data lack the input `{missing[0]}`; they have {', '.join(given)}",
                where="data.training",
                fix="name it under data.training.inputs",
            )

    def _check_labels(self, *, labelled: bool) -> None:
        from optimc.passes._train_losses import label_weight

        user = self.options.loss is not None and not isinstance(self.options.loss, str)
        if not labelled and not user and label_weight(self.options, labelled=False):
            raise InputError(
                f"there are no labels to train on: {self.samples.unlabelled}",
                where="data.training",
                fix="name labels, or leave `distill.labels` out",
            )

    def _new_optimizer(self) -> torch.optim.Optimizer:
        import torch

        options = self.options
        parameters = [p for p in self.bench.module.parameters() if p.requires_grad]
        parameters += self.objective.parameters()
        common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        if options.optimizer == "sgd":
            nesterov = options.nesterov and options.momentum > 0
            return torch.optim.SGD(
                parameters, momentum=options.momentum, nesterov=nesterov, **common
            )
        kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, **common)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The module on its device, by algorithms that give the same numbers every time."""
        import torch

        # cuBLAS is deterministic only with a workspace of its own; read at its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)
        self._move(self.device, torch.channels_last)
        try:
            yield
        finally:
            self._move(torch.device("cpu"), torch.contiguous_format)
            self.bench.module.eval()
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(threads)

    def _move(self, device: torch.device, form: torch.memory_format) -> None:
        """On CPUs nothing moves; convolutions run faster with the channels last in memory."""
        self.bench.module.to(device, memory_format=form)  # type: ignore[call-overload]
        self.bench.masks = {name: mask.to(device) for name, mask in self.bench.masks.items()}

    def _feeds(self, batch: StoredBatch) -> dict[str, torch.Tensor]:
        import torch

        return {name: self._feed(torch.from_numpy(batch.feeds[name])) for name in self.bench.names}

    def _feed(self, array: torch.Tensor) -> torch.Tensor:
        import torch

        form = torch.channels_last if array.dim() == 4 else torch.contiguous_format
        return array.to(self.device).contiguous(memory_format=form)

    def _step(self, batch: StoredBatch, epoch: int, share: float) -> Step:
        import torch

        from optimc.passes._train_step import Step

        feeds = self._feeds(batch)
        labels = None if batch.labels is None else torch.from_numpy(batch.labels).to(self.device)
        step = Step(feeds, labels, epoch, share, self.bench.module, self._forward)
        step.student_features = self._taps.seen
        if self._teacher is not None:
            teacher, answers = self._teacher, self._answers
            step.teacher_features = teacher.features
            step.ask_teacher = (
                (lambda: teacher.outputs(feeds))
                if answers is None
                else (lambda: answers.rows(batch.numbers, self.device))
            )
        return step

    def _forward(self, feeds: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        try:
            return self.compute.outputs(self.bench.forward, feeds)
        except OptimcError:
            raise
        except Exception as error:
            sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in feeds.items())
            raise CellError(
                f"the module raised {type(error).__name__} in training on {sizes}: "
                f"{' '.join(str(error).split())[:300]}",
                fix="a larger `batch`, or `freeze_batchnorm: true`, may help",
            ) from error

    def _try_losses(self) -> None:
        """All losses once: what does not fit is said at once, and hints get their shapes."""
        import torch

        torch.manual_seed(self.seed)
        batch = next(self.samples.in_order(min(self.options.batch, 8)))
        self.bench.module.eval()
        step = self._step(batch, 0, 0.0)
        self._check_label_values(step)
        self.objective(step)

    def _check_label_values(self, step: Step) -> None:
        """All labels, where a loss of ours is taken of them."""
        from optimc.passes._train_labels import check_labels, one_output
        from optimc.passes._train_losses import label_weight

        options, labelled = self.options, step.labels is not None
        ours = options.loss is None or isinstance(options.loss, str)
        if ours and labelled and label_weight(options, labelled=True):
            assert options.loss is None or isinstance(options.loss, str)
            check_labels(options.loss, one_output(step.student, options.output), self.samples)

    def _training_mode(self) -> None:
        import torch

        self.bench.module.train()
        if self.options.freeze_batchnorm:
            for part in self.bench.module.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    part.eval()

    def _learn(self, batch: StoredBatch, number: int, step: int, epoch: int) -> torch.Tensor:
        """One step of the optimizer: the loss before it."""
        import torch

        steps = self.samples.count(self.options.batch)
        rate = self.options.rate(step, self.epochs * steps, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(self._step(batch, epoch, step / max(1, self.epochs * steps)))
        if not torch.isfinite(loss):
            raise self._diverged(epoch, number, rate)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.options.clip_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
        self.optimizer.step()
        self.bench.apply_masks()
        if self._average is not None:
            self._average.update(self.bench.module, step)
        return loss.detach()

    def _diverged(self, epoch: int, number: int, rate: float) -> CellError:
        return CellError(
            f"train: the loss is no finite number in epoch {epoch + 1}, step {number + 1} "
            f"(the learning rate was {rate:.3g})",
            fix="lower `learning_rate`, or write `warm_up: 1` or `clip_norm: 1.0`",
        )

    def epoch(self, epoch: int, judged: str = "", aside_s: float = 0.0) -> float:
        """Trains one epoch (from 0): the mean loss. `judged` is what the line of progress says of
        the epochs before, `aside_s` are the seconds that judging takes after each epoch."""
        import numpy as np
        import torch

        _seed_all(self.seed, epoch)
        rng = np.random.default_rng([self.seed, epoch])
        steps = self.samples.count(self.options.batch)
        total, started = 0.0, time.monotonic()
        with self._running():
            if self._average is not None:
                self._average.begin(self.bench.module)
            self._training_mode()
            batches = self.samples.batches(self.options.batch, rng, self._augment)
            for number, batch in enumerate(batches):
                step = epoch * steps + number
                loss = float(self._learn(batch, number, step, epoch))
                total += loss
                pace = (time.monotonic() - started) / (number + 1)
                left = pace * (self.epochs * steps - step - 1) + aside_s * (self.epochs - epoch)
                mean = total / (number + 1)
                tell(
                    (step + 1) / (self.epochs * steps),
                    progress_line(epoch + 1, self.epochs, mean, left, judged),
                )
            tensors = self.bench.module.state_dict().values()
            if not all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point()):
                raise self._diverged(epoch, steps - 1, self.optimizer.param_groups[0]["lr"])
            if self._average is not None:
                self._average.end(self.bench.module)
        return total / steps

    def pace(self) -> float:
        """Seconds that one epoch takes, by a few steps; they leave no trace."""
        import numpy as np

        kept = self.tensors()
        warm, count = _TRIED
        rng = np.random.default_rng(self.seed)
        batches = self.samples.batches(self.options.batch, rng, self._augment)
        started, done = time.monotonic(), 0
        with self._running():
            self._training_mode()
            for number, batch in zip(range(warm + count), batches, strict=False):
                if number == warm:
                    started = time.monotonic()
                self._learn(batch, number, 0, 0)
                done = number + 1
        seconds = (time.monotonic() - started) / max(1, done - warm if done > warm else done)
        self.optimizer = self._new_optimizer()
        self.restore(kept)
        return seconds * self.samples.count(self.options.batch)

    def close(self) -> None:
        """Takes hooks off the module, which goes on without the trainer."""
        self._taps.close()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of everything that training changes, by kind and name."""
        found = {f"module/{n}": t for n, t in self.bench.module.state_dict().items()}
        for name, hint in self.objective.hints.items():
            found |= {f"hints/{name}/{n}": t for n, t in hint.state_dict().items()}
        if self._average is not None:
            found |= {f"weights/{n}": t for n, t in self._average.weights.items()}
        found |= {f"optimizer/{n}": t for n, t in optimizer_tensors(self.optimizer).items()}
        return {name: t.detach().cpu().contiguous().clone() for name, t in found.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts back what `tensors` gave."""
        self.bench.module.load_state_dict(below(tensors, "module/"))
        for name, hint in self.objective.hints.items():
            hint.load_state_dict(below(tensors, f"hints/{name}/"))
        if self._average is not None:
            self._average.weights = below(tensors, "weights/")
        state = below(tensors, "optimizer/")
        if state:
            with self._running():  # the state goes to where the parameters are
                restore_optimizer(self.optimizer, state)


def below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _seed_all(seed: int, epoch: int) -> None:
    """For what modules and users' losses draw."""
    import numpy as np
    import torch

    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed)
