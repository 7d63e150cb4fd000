"""The course of a training run, in the compiler's process: which epochs, and which one is kept."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.passes import Input, PassContext, PassResult
from optimc.passes._train_best import is_best
from optimc.passes._train_calls import begin, commit, finish, go_on, pace, plan, train_epoch
from optimc.passes._train_progress import judged_line

if TYPE_CHECKING:
    from optimc.core.passes import Tuning, Workshop
    from optimc.core.torch_model import TorchModel
    from optimc.passes.train import Train

_FOREVER = 14 * 86_400.0
"""Seconds: an epoch may take longer than the limit for one call. poll(2) takes 24 days at most."""


@dataclass
class _Record:
    """What a run that goes on has to know of the epochs before."""

    planned: int
    threads: int
    done: int = 0
    best: int = 0
    """The epoch that is kept so far; 0 is the module as it came."""
    losses: list[float] = field(default_factory=list)
    """The mean loss of each epoch."""
    drops: list[float] = field(default_factory=list)
    """On the tuning split: as it came, then after each epoch."""
    seconds: float = 0.0


class Course:
    """One run of `train`."""

    def __init__(
        self, options: Train, model: TorchModel, context: PassContext, shop: Workshop
    ) -> None:
        self._options = options
        self._model = model
        self._context = context
        self._shop = shop
        self._choice: dict[str, int] | None = context.choice
        judged = options.keep == "best" and context.has(Input.TUNING) and self._choice is None
        self._tuning: Tuning | None = context.tuning if judged else None
        self._resumed = 0
        self._emulated = False
        self._judging_s = 0.0

    def run(self) -> PassResult:
        """Trains, and gives the module that is kept."""
        record = self._begin()
        started = time.monotonic() - record.seconds
        while not self._is_over(record):
            epoch = record.done
            loss = self._shop.call(
                train_epoch,
                timeout=_FOREVER,
                epoch=epoch,
                judged=judged_line(self._tuning.metric, record.drops) if self._tuning else "",
                aside_s=self._judging_s,
            ).data
            record.done += 1
            record.losses.append(loss)
            better = self._judge(record)
            record.best = record.done if better else record.best
            record.seconds = time.monotonic() - started
            self._commit(record, best=better)
        self._shop.call(finish)
        return self._result(record)

    def _begin(self) -> _Record:
        """The worker ready to train, and where the run stands."""
        context, options = self._context, self._options
        told = self._shop.call(
            begin,
            timeout=_FOREVER,
            options=options.options(),
            samples=str(context.training.stored()),
            folder=str(context.folder.resolve()),
            seed=context.seed,
            threads=self._choice["threads"] if self._choice is not None else options.threads,
        ).data
        self._emulated = told["emulated"]
        self._key = digest_of(
            [options.options(), self._model.digest, context.training.digest, context.seed],
            [self._choice, told["threads"], self._tuning.digest if self._tuning else None],
        )
        record = self._resume()
        if record is None:
            record = _Record(self._plan(), told["threads"])
            self._judge(record)
            self._commit(record, best=True)
        self._shop.call(plan, epochs=record.planned)
        return record

    def _resume(self) -> _Record | None:
        if self._context.unfinished is None:
            return None
        checkpoints = str(self._context.unfinished)
        found = self._shop.call(go_on, checkpoints=checkpoints, key=self._key).data
        if found is None:
            return None
        record = _Record(**found)
        self._resumed = record.done
        return record

    def _plan(self) -> int:
        """How many epochs there will be, as far as the time reaches."""
        if self._choice is not None:
            return self._choice["planned"]
        if self._options.at_most is None:
            return self._options.epochs
        seconds = self._shop.call(pace, timeout=_FOREVER).data
        return max(1, min(self._options.epochs, int(self._options.at_most / max(seconds, 1e-9))))

    def _is_over(self, record: _Record) -> bool:
        if self._choice is not None:
            return record.done >= self._choice["best"]
        options = self._options
        late = options.at_most is not None and record.seconds >= options.at_most
        waited = record.done - record.best
        tired = options.patience is not None and waited >= options.patience
        return record.done >= record.planned or (late and record.done > 0) or tired

    def _judge(self, record: _Record) -> bool:
        """Whether the module is the best so far; the later one where two are equal."""
        if self._tuning is None:
            return True
        share = record.done / max(1, record.planned)
        what = f"epoch {record.done}/{record.planned}" if record.done else "as it came"
        self._context.progress(share, f"{what}: {self._tuning.metric} on the tuning split")
        started = time.monotonic()
        drop = self._tuning.drop_of(self._shop.run).point
        self._judging_s = time.monotonic() - started
        better = is_best(drop, record.drops)
        record.drops.append(drop)
        return better

    def _commit(self, record: _Record, *, best: bool) -> None:
        folder: Path | None = self._context.unfinished
        self._shop.call(
            commit,
            timeout=_FOREVER,
            epoch=record.done,
            best=best,
            record=asdict(record),
            checkpoints=None if folder is None else str(folder),
            key=self._key,
        )

    def _result(self, record: _Record) -> PassResult:
        choice = {"planned": record.planned, "best": record.best, "threads": record.threads}
        stats: dict[str, int | float | str] = {"epochs": record.done, "kept": record.best}
        if record.losses:
            stats |= {"first_loss": record.losses[0], "last_loss": record.losses[-1]}
        model = self._shop.model() if record.best else self._model
        return PassResult(
            model, record.best > 0, stats, choice=choice, notes=tuple(self._notes(record))
        )

    def _notes(self, record: _Record) -> list[str]:
        options, notes = self._options, []
        if self._choice is not None:
            return [f"trained {record.done} epochs, as the lock says"]
        if record.done < options.epochs:
            why = f"no epoch was better than {record.best} for {record.done - record.best}"
            if options.at_most is not None and record.done - record.best != options.patience:
                why = f"that is what {options.at_most:g} s were enough for"
            notes.append(f"{record.done} of {options.epochs} epochs ran: {why}")
        if self._tuning is not None:
            drops = ", ".join(f"{drop:.4g}" for drop in record.drops)
            notes.append(f"drop on the tuning split as it came and after each epoch: {drops}")
            if record.best == 0:
                notes.append("no epoch was better than the model as it came, which is kept")
        else:
            why = "`keep: last` says so" if options.keep == "last" else "there is no tuning split"
            notes.append(f"the last epoch is kept: {why}")
        losses: list[Any] = [f"{loss:.4g}" for loss in record.losses]
        notes.append(f"loss by epoch: {', '.join(losses)}")
        if self._emulated:
            notes.append(
                f"this processor has no instructions for {options.precision}: without `precision`, "
                "training is likely faster"
            )
        if self._resumed:
            notes.append(f"went on after epoch {self._resumed}, where a build was interrupted")
        return notes
