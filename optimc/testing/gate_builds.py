"""Folders as builds leave them, for tests and benches of the gate: a report and its records."""

from __future__ import annotations

from pathlib import Path

from optimc.measure.metrics import metric_for
from optimc.measure.user_metric import UserMetric
from optimc.pipeline.records import FILE, write_records
from optimc.report.canonical import to_json
from optimc.report.schema import Cell, Gate, RecordsFile, Report
from optimc.testing.example_report import example_report

SAMPLES = 5000
CELL = "int8/ort"
DATA = "d" * 64


def build_folder(
    folder: Path, *, lost: int, won: int, samples: int = SAMPLES, report: Report | None = None
) -> Path:
    """A build whose one gated cell lost and won so many samples against a common ancestor.

    Of the samples, 10 % are wrong in the ancestor; the first right ones are lost, the first wrong
    ones won.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    right = np.arange(samples) % 10 != 0
    ours = right.copy()
    ours[np.flatnonzero(right)[:lost]] = False
    ours[np.flatnonzero(~right)[:won]] = True
    top1 = metric_for("top1")
    assert not isinstance(top1, UserMetric)
    cells = {"source": {"top1": {"correct": right}}, CELL: {"top1": {"correct": ours}}}
    assert write_records(folder, DATA, {"top1": top1}, cells)
    told = report or passing_report()
    told = told.model_copy(update={"records": RecordsFile(path=FILE, data=DATA)})
    (folder / "report.json").write_text(to_json(told), encoding="utf-8")
    return folder


def passing_report(**changes: object) -> Report:
    """A report whose one cell, `CELL`, passed its gate; `changes` are of its fields."""
    report = example_report()
    cell = next(cell for cell in report.results if cell.name == CELL)
    checks = tuple(check for check in report.gate.checks if check.cell == CELL)
    gate = Gate(verdict="passed", ship="best", candidates=1, checks=checks)
    return report.model_copy(update={"results": (cell,), "gate": gate, **changes})


def changed_cell(report: Report, **changes: object) -> Report:
    """`report` with fields of its one cell changed."""
    cell: Cell = report.results[0].model_copy(update=dict(changes))
    return report.model_copy(update={"results": (cell,)})
