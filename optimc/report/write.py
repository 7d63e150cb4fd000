"""Writes the report and its views into a build's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.files import atomic_write
from optimc.report.canonical import to_json
from optimc.report.html import to_html
from optimc.report.junit import to_junit
from optimc.report.markdown import to_markdown

if TYPE_CHECKING:
    from optimc.report.schema import Report

VIEWS = {
    "report.json": to_json,
    "report.html": to_html,
    "report.md": to_markdown,
    "junit.xml": to_junit,
}


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Writes ``report.json``, ``report.html``, ``report.md`` and ``junit.xml``; returns the paths.

    Every view is made before the first file is written, and each file appears whole or not at
    all. Raises `InputError` where the folder or the disk refuses.
    """
    texts = {Path(folder) / name: view(report) for name, view in VIEWS.items()}
    for path, text in texts.items():
        with atomic_write(path) as file:
            file.write(text)
    return tuple(texts)
