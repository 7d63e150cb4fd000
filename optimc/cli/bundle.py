"""`optimc bundle`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.cli.run import printable
from optimc.core.errors import ExitCode, InputError, unknown_name

if TYPE_CHECKING:
    from optimc.pipeline.bundle.delivery import Delivery

FORMATS = ("plain", "triton", "kserve", "ovms")

MARK = "bundle.json"
"""What tells a bundle from any other folder, and where it comes from."""


def run_bundle(
    folder: Path, *, form: str, cell: str | None, name: str | None, version: int, out: Path | None
) -> int:
    """Writes the bundle of a built cell; prints where and what to do next on stderr."""
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS, where="--format")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise InputError(
            f"`{name}` is no name for a model",
            where="--name",
            fix="take letters, digits, dots, dashes and underscores; a letter or digit first",
        )
    from optimc.core.files import atomic_folder, check_folder
    from optimc.pipeline.bundle.delivery import read_delivery
    from optimc.pipeline.bundle.golden import make_golden
    from optimc.pipeline.bundle.kserve import write_kserve
    from optimc.pipeline.bundle.ovms import write_ovms
    from optimc.pipeline.bundle.plain import write_plain
    from optimc.pipeline.bundle.triton import write_triton

    delivery = read_delivery(folder, cell, name, version)
    place = out or Path("optimc-bundle") / f"{delivery.name}-{form}"
    check_folder(place, "-o DIR")
    if any(place.iterdir()) and not (place / MARK).is_file():
        raise InputError(
            "this folder holds something else than a bundle, which would be replaced",
            where=str(place),
            fix="choose a new or empty folder (-o DIR)",
        )
    writers = {
        "plain": write_plain,
        "triton": write_triton,
        "kserve": write_kserve,
        "ovms": write_ovms,
    }
    golden = make_golden(delivery)
    with atomic_folder(place) as temporary:
        writers[form](delivery, golden, temporary)
        (temporary / MARK).write_text(
            json.dumps(described(delivery, form), indent=2) + "\n", encoding="utf-8"
        )
    verdict = delivery.report.gate.verdict
    if delivery.report.best is None or delivery.report.best.name != delivery.cell.name:
        print(
            printable(f"warning: {delivery.cell.name} is not what ships: the gate is {verdict}"),
            file=sys.stderr,
        )
    print(
        printable(
            f"{delivery.cell.name} as {delivery.name} version {version}, {form}: {place}\n"
            f"check it where it will run: python {place / 'check.py'}"
        ),
        file=sys.stderr,
    )
    return int(ExitCode.OK)


def described(delivery: Delivery, form: str) -> dict[str, Any]:
    """Where a bundle comes from."""
    report = delivery.report
    return {
        "schema": 1,
        "optimc": report.optimc,
        "format": form,
        "name": delivery.name,
        "version": delivery.version,
        "cell": delivery.cell.name,
        "engine": {
            "sha256": delivery.engine.digest,
            "versions": delivery.engine.manifest["versions"],
        },
        "recipe": {"sha256": report.recipe.sha256},
        "gate": report.gate.verdict,
    }
