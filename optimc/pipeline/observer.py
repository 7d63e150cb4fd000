"""What a build tells while it runs; the command line's display and the dumps listen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from optimc.core.errors import InputError
from optimc.core.files import check_folder
from optimc.core.model import OnnxModel
from optimc.pipeline.manager import CompiledModel, Observer, PassOutcome


class BuildObserver(Observer, Protocol):
    """Hooks around passes (see `Observer`), and the stages of a build."""

    def on_stage(self, text: str) -> None:
        """A stage begins, such as reading the model or measuring."""

    def on_detail(self, text: str) -> None:
        """Something worth a line within the stage, such as an engine that was built."""

    def on_share(self, done: float, text: str) -> None:
        """How much of the stage is done, 0 to 1."""

    def on_cells(self, count: int) -> None:
        """How many cells the stage works on, maybe several at once."""

    def before_cell(self, name: str) -> None:
        """Work on a cell begins. Comes from any thread."""

    def after_cell(self, name: str) -> None:
        """Work on a cell has ended, well or not. Comes from any thread."""


class Silent:
    """Listens to everything and says nothing."""

    def before_pass(self, name: str, model: CompiledModel) -> None:
        """Nothing."""

    def on_progress(self, name: str, share: float, text: str) -> None:
        """Nothing."""

    def after_pass(self, outcome: PassOutcome) -> None:
        """Nothing."""

    def on_stage(self, text: str) -> None:
        """Nothing."""

    def on_detail(self, text: str) -> None:
        """Nothing."""

    def on_share(self, done: float, text: str) -> None:
        """Nothing."""

    def on_cells(self, count: int) -> None:
        """Nothing."""

    def before_cell(self, name: str) -> None:
        """Nothing."""

    def after_cell(self, name: str) -> None:
        """Nothing."""


class Dumper(Silent):
    """Writes the model after every pass to ``NNN-<pass>.onnx`` in a folder (``--dump DIR``); what
    passes of the torch level leave is a folder ``NNN-<pass>``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        check_folder(folder, "--dump DIR")

    def before_pass(self, name: str, model: CompiledModel) -> None:
        """Writes the model from before the first pass."""
        if self._number == 0:
            self._write("source", model)

    def after_pass(self, outcome: PassOutcome) -> None:
        """Writes what the next pass builds on."""
        self._write(outcome.name, outcome.model)

    def _write(self, name: str, model: CompiledModel) -> None:
        path = self._folder / f"{self._number:03}-{name}.onnx"
        try:
            if isinstance(model, OnnxModel):
                model.write_onnx(path)
            elif model.folder is not None:  # the source's module is the recipe's own
                model.save(path.with_suffix(""))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise InputError(
                f"cannot write: {error.strerror or error}",
                where=str(path),
                fix="choose a folder with free space that you may write to (--dump DIR)",
            ) from error
        self._number += 1


@contextlib.contextmanager
def working_on(observer: BuildObserver, name: str) -> Iterator[None]:
    """Tells `observer` that the block works on the cell `name`."""
    observer.before_cell(name)
    try:
        yield
    finally:
        observer.after_cell(name)
