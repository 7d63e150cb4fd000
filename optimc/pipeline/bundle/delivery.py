"""What is handed over: one built cell of a build's folder, and what serving has to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.errors import InputError, unknown_name
from optimc.core.files import file_sha256
from optimc.core.targets import Engine

if TYPE_CHECKING:
    from optimc.core.model import TensorSpec
    from optimc.report.schema import Cell, DimReport, InputReport, Report


@dataclass(frozen=True)
class Delivery:
    """A cell whose engine is whole. `name` is what servers call the model."""

    name: str
    version: int
    engine: Engine
    cell: Cell
    inputs: Mapping[str, InputReport]
    dims: Mapping[str, DimReport]
    report: Report

    @property
    def batch_dim(self) -> str | None:
        """The dynamic dim that is the first axis of every input and output, and no other axis.

        Servers that gather requests put them together along it, to any size: None where the engine
        was not proved on every size from 1.
        """
        signature = self.engine.signature
        specs: list[TensorSpec] = [*signature.inputs, *signature.outputs]
        shapes = [spec.shape for spec in specs]
        first = shapes[0][0] if shapes and shapes[0] else None
        if not isinstance(first, str) or first not in self.dims:
            return None
        if self.dims[first].min > 1 or self.dims[first].multiple_of > 1:
            return None
        alone = all(shape and shape[0] == first and first not in shape[1:] for shape in shapes)
        return first if alone else None

    @property
    def max_batch(self) -> int:
        """The most samples of one run; 0 where the model does not batch."""
        return self.dims[self.batch_dim].max if self.batch_dim else 0

    def sizes(self, which: str) -> dict[str, int]:
        """Each dim's `min`, `typical` or `max`."""
        return {name: int(getattr(dim, which)) for name, dim in self.dims.items()}


def read_delivery(folder: Path, cell: str | None, name: str | None, version: int) -> Delivery:
    """The cell of the build in `folder`: `cell` (``variant/target``), or the one that ships.

    Raises InputError where the folder is no build's, the cell is not there or not built, no cell
    ships, or a file of the engine is not the one that was verified.
    """
    report = _read_report(folder)
    chosen = _chosen(report, cell, folder)
    place = folder / "artifacts" / chosen.variant / chosen.target
    engine = Engine.read(place)
    for file, known in engine.manifest["files"].items():
        path = place / file
        if not path.is_file() or file_sha256(path) != known["sha256"]:
            raise InputError(
                "this file is not the one that was built and verified",
                where=str(path),
                fix="build again: `" + report.command + "`",
            )
    return Delivery(
        name=name or Path(report.recipe.path).stem,
        version=version,
        engine=engine,
        cell=chosen,
        inputs=report.source.inputs,
        dims=report.source.dims,
        report=report,
    )


def _read_report(folder: Path) -> Report:
    from pydantic import ValidationError

    from optimc.report.schema import Report

    path = folder / "report.json"
    fix = "name the folder that `optimc build` wrote, such as optimc-build/quickstart"
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"the build's report cannot be read: {error.strerror}", where=str(path), fix=fix
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"this is no report of this version of optimc: {place}: {first['msg']}",
            where=str(path),
            fix=fix,
        ) from error


def _chosen(report: Report, cell: str | None, folder: Path) -> Cell:
    cells = {one.name: one for one in report.results}
    if cell is None:
        if report.best is None:
            raise InputError(
                f"no cell of this build ships: the gate's verdict is {report.gate.verdict}",
                where=str(folder / "report.json"),
                fix=f"name one with --cell: {', '.join(cells)}",
            )
        cell = report.best.name
    if cell not in cells:
        raise unknown_name("cell", cell, cells, where="--cell")
    found = cells[cell]
    if found.status != "built":
        raise InputError(f"the cell {cell} is {found.status}: {found.reason}", where="--cell")
    return found
