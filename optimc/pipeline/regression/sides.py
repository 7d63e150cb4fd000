"""The two sides of a gate: a report, a build's folder, or the folder of one engine."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optimc.core.errors import InputError, unknown_name
from optimc.core.files import file_sha256
from optimc.core.targets import Engine
from optimc.report.values import Skipped
from optimc.report.verdict import shipped

if TYPE_CHECKING:
    from optimc.pipeline.records import RecordsOfBuild
    from optimc.report.schema import Cell, Report

_NO_CELL = "engine"


@dataclass(frozen=True)
class Side:
    """A candidate or a baseline as it was named."""

    path: Path
    kind: Literal["report", "engine"]
    report: Report | None
    engine_folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of the build, or of the engine."""
        return self.path if self.path.is_dir() else self.path.parent

    def cells(self) -> dict[str, Cell]:
        """By name; empty for an engine alone."""
        return {cell.name: cell for cell in self.report.results} if self.report else {}

    def engine(self, cell: str) -> Engine:
        """The engine of a cell, whole. Raises InputError where its files are not there."""
        folder = self.engine_folder or self.folder / "artifacts" / cell
        if not (folder / Engine.MANIFEST).is_file():
            raise InputError(
                f"the engine of {cell} does not lie beside the report",
                where=str(folder),
                fix="name the folder that `optimc build` wrote, with artifacts/ in it",
            )
        engine = Engine.read(folder)
        for name, file in engine.manifest["files"].items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != file["sha256"]:
                raise InputError(
                    "this file is not the one that was built and verified",
                    where=str(path),
                    fix="build again, or copy the folder as it was",
                )
        return engine

    def size_bytes(self, cell: str) -> int | str:
        """The size of a cell's engine, or why it is not known."""
        if self.engine_folder is not None:
            return Engine.read(self.engine_folder).bytes
        found = self.cells()[cell].engine
        return found.skipped if isinstance(found, Skipped) else found.bytes

    def records(self) -> RecordsOfBuild | str:
        """What the engines answered, sample by sample, or why it is not there."""
        from optimc.pipeline.records import read_records

        if self.report is None:
            return f"{self.path} is an engine without a report"
        if self.report.records is None:
            return f"the build of {self.path} kept no records of samples"
        path = self.folder / self.report.records.path
        if not path.is_file() or Path(self.report.records.path).name != self.report.records.path:
            return f"{self.report.records.path} does not lie beside {self.path}"
        found = read_records(path)
        if found.data != self.report.records.data:
            return f"{path} does not belong to the report beside it"
        return found


def read_side(path: Path) -> Side:
    """Reads what a path names. Raises InputError where it is none of the three."""
    from optimc.report.canonical import load_report

    path = Path(path)
    if path.is_dir() and (path / Engine.MANIFEST).is_file():
        Engine.read(path)
        return Side(path, "engine", None, path)
    if not path.exists() or (path.is_dir() and not (path / "report.json").is_file()):
        raise InputError(
            "no such file or folder"
            if not path.exists()
            else "this folder holds neither report.json nor manifest.json",
            where=str(path),
            fix="name a report.json, the folder that `optimc build` wrote, or an engine's folder",
        )
    return Side(path, "report", load_report(path))


def paired_cells(
    candidate: Side, baseline: Side, wanted: Literal["ships"] | tuple[str, ...]
) -> list[tuple[str, str]]:
    """Which cells are held against each other: (the candidate's, the baseline's).

    The candidate's need not be there: that is a finding. Raises InputError where no cell of the
    baseline is meant.
    """
    if candidate.report is None or baseline.report is None:
        return [_engines(candidate, baseline)]
    if wanted != "ships":
        names = [*baseline.cells(), *(n for n in candidate.cells() if n not in baseline.cells())]
        found = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in wanted)]
        if not found:
            raise unknown_name("cell", wanted[0], names, where="cells")
        return [(name, name) for name in found]
    ours = [cell.name for cell in shipped(candidate.report)]
    theirs = [cell.name for cell in shipped(baseline.report)]
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    chosen = theirs or ours
    if not chosen:
        chosen = [name for name, cell in baseline.cells().items() if cell.status == "built"]
    if not chosen:
        raise InputError(
            "the baseline holds no built cell",
            where=str(baseline.path),
            fix="name the report of a build that succeeded",
        )
    return [(name, name) for name in chosen]


def _engines(candidate: Side, baseline: Side) -> tuple[str, str]:
    """At least one side is an engine alone: the other gives its one cell that ships."""

    def one(side: Side) -> str:
        if side.report is None:
            return _NO_CELL
        names = [cell.name for cell in shipped(side.report)] or [
            name for name, cell in side.cells().items() if cell.status == "built"
        ]
        if len(names) != 1:
            raise InputError(
                f"an engine is held against one cell; this build has {len(names)}",
                where=str(side.path),
                fix=f"name an engine's folder: {side.folder}/artifacts/VARIANT/TARGET",
            )
        return names[0]

    return one(candidate), one(baseline)


def differences(candidate: Side, baseline: Side) -> tuple[str, ...]:
    """What differs between the machines and conditions that the two reports' times come from."""
    ours, theirs = candidate.report, baseline.report
    if ours is None or theirs is None:
        return ("an engine alone has no times",)
    found = []
    for name in ("cpu", "architecture", "cores", "features", "memory_mb", "os"):
        a, b = getattr(theirs.machine, name), getattr(ours.machine, name)
        if a != b:
            shown = (_only(a, b), _only(b, a)) if name == "features" else (_text(a), _text(b))
            found.append(f"{name}: {shown[0]} then, {shown[1]} now")
    for tool in ("onnxruntime", "openvino", "tensorrt"):
        a, b = theirs.environment.get(tool), ours.environment.get(tool)
        if a != b:
            found.append(f"{tool}: {a or 'none'} then, {b or 'none'} now")
    if theirs.source.sha256 != ours.source.sha256:
        found.append("the source model, which both speed-ups are held against")
    return tuple(found)


def _text(value: object) -> str:
    return value.skipped if isinstance(value, Skipped) else str(value)


def _only(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    return "+".join(sorted(set(ours) - set(theirs))) or "fewer"
