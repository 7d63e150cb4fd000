"""What `train` calls in the worker: functions for `Workshop.call` on the bench's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.passes._train_checkpoint import read_checkpoint, write_checkpoint
from optimc.passes._train_loop import Trainer, below

if TYPE_CHECKING:
    from optimc.core.workbench import Workbench

_trainers: dict[Workbench, Trainer] = {}
"""Those that have begun and not finished."""


def begin(
    bench: Workbench,
    arrays: Mapping[str, Any],
    *,
    options: Mapping[str, Any],
    samples: str,
    folder: str,
    seed: int,
    threads: int | None,
) -> dict[str, Any]:
    """Makes ready for training; see `Trainer`."""
    from optimc.passes.train import Train

    trainer = Trainer(bench, Train(**options), Path(samples), Path(folder), seed, threads)
    _trainers[bench] = trainer
    return {
        "threads": trainer.threads,
        "samples": len(trainer.samples),
        "emulated": trainer.compute.emulated(),
    }


def pace(bench: Workbench, arrays: Mapping[str, Any]) -> float:
    """Seconds that an epoch takes."""
    return _trainers[bench].pace()


def go_on(
    bench: Workbench, arrays: Mapping[str, Any], *, checkpoints: str, key: str
) -> Mapping[str, Any] | None:
    """Restores the newest checkpoint of the run `key`: its record, or None where there is none."""
    trainer = _trainers[bench]
    found = read_checkpoint(Path(checkpoints), key)
    if found is None:
        return None
    trainer.restore(found.tensors)
    trainer.best = below(found.tensors, "best/") or below(found.tensors, "module/")
    return found.record


def plan(bench: Workbench, arrays: Mapping[str, Any], *, epochs: int) -> None:
    """Sets the number of epochs, which the schedule of the learning rate goes by."""
    _trainers[bench].epochs = epochs


def train_epoch(
    bench: Workbench, arrays: Mapping[str, Any], *, epoch: int, judged: str, aside_s: float
) -> float:
    """Trains one epoch: see `Trainer.epoch`."""
    return _trainers[bench].epoch(epoch, judged, aside_s)


def commit(
    bench: Workbench,
    arrays: Mapping[str, Any],
    *,
    epoch: int,
    best: bool,
    record: Mapping[str, Any],
    checkpoints: str | None,
    key: str,
) -> None:
    """Keeps the module as the best where it is, and writes the state after `epoch` epochs."""
    trainer = _trainers[bench]
    tensors = trainer.tensors()
    if best:
        trainer.best = below(tensors, "module/")
    elif checkpoints is not None:
        tensors |= {f"best/{name}": tensor for name, tensor in trainer.best.items()}
    if checkpoints is not None:
        write_checkpoint(Path(checkpoints), key, epoch, tensors, record)


def finish(bench: Workbench, arrays: Mapping[str, Any]) -> None:
    """Leaves the best module on the bench."""
    trainer = _trainers.pop(bench)
    bench.module.load_state_dict(trainer.best)
    trainer.close()
    bench.module.eval()
