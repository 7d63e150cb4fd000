"""The same recipe gives the same digests: elsewhere, with other threads, hash seeds and clocks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optimc.report.canonical import load_report
from optimc.report.schema import Report
from optimc.report.values import Skipped
from optimc.testing.commands import run_optimc

MACHINES: Mapping[str, Mapping[str, str]] = {
    "one": {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"},
    "a longer name/for the folder": {
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PYTHONHASHSEED": "12345",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C.UTF-8",
    },
}


def _built(place: Path, recipes: Path, environment: Mapping[str, str]) -> tuple[Any, Report, Path]:
    place.mkdir(parents=True)
    shutil.copy(recipes / "quickstart.yaml", place)
    shutil.copytree(recipes / "quickstart", place / "quickstart")
    done = run_optimc(
        *("build", "quickstart.yaml", "-o", "out", "--no-measure"),
        cwd=place,
        environment={**environment, "OPTIMC_CACHE_DIR": str(place / "cache")},
    )
    assert done.code in (0, 4, 5), done.err
    lock = json.loads((place / "quickstart.lock").read_text(encoding="utf-8"))
    return lock, load_report(place / "out" / "report.json"), place / "out"


def _figures(report: Report) -> list[Any]:
    """What verification measured: the probes and the arithmetic repeat, so the figures do."""
    return [
        (
            cell.name,
            [(p.name, p.verdict, p.max_abs_error, p.sqnr_db, p.nodes, p.rewrites) for p in passes],
            getattr(cell.engine, "verdict", None),
            getattr(cell.engine, "identity", None),
        )
        for cell in report.results
        for passes in [cell.passes]
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_builds_from_scratch_give_the_same_digests(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    first, second = (
        _built(tmp_path / name, repository / "recipes", environment)
        for name, environment in MACHINES.items()
    )
    assert first[0] == second[0]  # inputs, data, tools, models after every pass, engines
    assert _figures(first[1]) == _figures(second[1])
    runtimes = set()
    for one in first[1].results:
        engine = one.engine
        assert not isinstance(engine, Skipped)
        folder, other = (out / engine.path for out in (first[2], second[2]))
        manifests = [json.loads((f / "manifest.json").read_text()) for f in (folder, other)]
        runtimes.add(manifests[0]["runtime"])
        assert manifests[0]["identity"] == manifests[1]["identity"]
        if engine.identity_of == "files":
            for name in manifests[0]["files"]:
                assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert runtimes == {"onnxruntime", "openvino"}
