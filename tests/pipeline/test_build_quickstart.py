"""The main job on the quickstart: one real build, looked at from all sides."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.canonical import load_report
from optimc.report.schema import Report
from optimc.report.verdict import exit_code

pytest.importorskip("openvino")


class Listener(Silent):
    """Keeps the outcomes of passes."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def after_pass(self, outcome: Any) -> None:
        self.outcomes.append(outcome)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A copy of the quickstart, so that the lock is written there."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copy(repository / "recipes" / "quickstart.yaml", folder)
    shutil.copytree(repository / "recipes" / "quickstart", folder / "quickstart")
    return folder


@pytest.fixture(scope="module")
def cache(workshop: Path) -> Iterator[Path]:
    """One cache for the module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OPTIMC_CACHE_DIR", str(workshop / "cache"))
    yield workshop / "cache"
    patch.undo()


def _build(workshop: Path, out: str, **options: Any) -> tuple[Build, Report, Listener]:
    # More time than the recipe's own: other tests may run beside this one.
    recipe = load_recipe(workshop / "quickstart.yaml", ["benchmark.at_most=6 s"])
    listener = Listener()
    build = Build(
        recipe, BuildOptions(out=workshop / out, command="optimc build", **options), listener
    )
    return build, build.run(), listener


@pytest.fixture(scope="module")
def first(workshop: Path, cache: Path) -> tuple[Build, Report, Listener]:
    """The first build, with everything measured."""
    return _build(workshop, "out")


def test_four_cells_are_built_verified_and_the_gate_passes(first) -> None:
    _, report, _ = first
    assert {cell.name: cell.status for cell in report.results} == {
        "fp32/ort": "built",
        "fp32/ov": "built",
        "int8/ort": "built",
        "int8/ov": "built",
    }
    assert report.gate.verdict == "passed"
    assert report.best is not None
    assert report.best.variant == "int8"
    assert exit_code(report) == 0


def test_the_metrics_are_the_models_real_ones(first) -> None:
    _, report, _ = first
    assert report.source.metrics["top1"] == pytest.approx(0.9917, abs=0.0005)
    for cell in report.results:
        assert not hasattr(cell.metrics, "skipped")
        metric = cell.metrics["top1"]  # type: ignore[index]
        assert metric.samples == 600
        assert metric.drop == pytest.approx(metric.source - metric.value)
        assert abs(metric.drop) <= 0.01  # type: ignore[arg-type]


def test_int8_really_runs_in_int8(first) -> None:
    _, report, _ = first
    shares = {cell.name: cell.engine.int8_share for cell in report.results}  # type: ignore[union-attr]
    assert shares["int8/ort"] >= 0.85
    assert shares["int8/ov"] >= 0.85


def test_shared_passes_run_once_calibration_once_and_placement_once_a_spec(first) -> None:
    build, _, _ = first
    assert build.manager.executions == {"simplify": 1, "fuse": 1, "quantize_int8": 2}
    assert build.calibration().sweeps == 1  # type: ignore[attr-defined]


def test_the_report_may_skip_only_these(first) -> None:
    _, report, _ = first
    allowed = {
        "max_abs_error": "nothing changed",
        "sqnr_db": "nothing changed",
        "p99_ms": "needs 500 runs",
        "int8_share": "no INT8 in this cell",
        "ci95": "an exact figure",
        "samples": "an exact figure",
    }
    found = list(_skips(json.loads(report.model_dump_json(by_alias=True))))
    wrong = [(name, why) for name, why in found if not why.startswith(allowed.get(name, "\0"))]
    assert wrong == []


def _skips(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if set(node) == {"skipped"}:
            yield name, node["skipped"]
        for key, value in node.items():
            yield from _skips(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _skips(value, name)


def test_the_folder_holds_the_artifacts_and_the_four_views(first, workshop: Path) -> None:
    out = workshop / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"report.json", "report.html", "report.md", "junit.xml"} <= names
    for cell in ("fp32/ort", "fp32/ov", "int8/ort", "int8/ov"):
        assert f"artifacts/{cell}/manifest.json" in names
    assert not [name for name in names if "tmp" in name]
    assert load_report(out / "report.json") == first[1]


def test_an_artifact_loads_without_optimc_as_its_manifest_says(first, workshop: Path) -> None:
    folder = workshop / "out" / "artifacts" / "int8" / "ort"
    load = json.loads((folder / "manifest.json").read_text())["load"]
    program = (
        "import numpy, sys\n"
        "feeds = {'input': numpy.zeros((1, 1, 8, 8), 'float32')}\n"
        f"{load}\n"
        "assert not [name for name in sys.modules if name.startswith('optimc')]\n"
        "print(numpy.asarray(outputs['logits']).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 10)"


def test_a_rebuild_finds_every_pass_and_engine_in_the_cache(first, workshop: Path, cache) -> None:
    build, report, listener = _build(workshop, "again", measure=False)
    assert [outcome.cached for outcome in listener.outcomes] == [True, True, True, True]
    assert build.engines.builds == 0
    assert {p.cache for cell in report.results for p in cell.passes} == {"hit"}


def test_a_build_without_cache_gives_the_same_identities(first, workshop: Path, cache) -> None:
    _, report, _ = _build(workshop, "fresh", measure=False, use_cache=False)

    def identities(of: Report) -> dict[str, str]:
        return {cell.name: cell.engine.identity for cell in of.results}  # type: ignore[union-attr]

    assert identities(report) == identities(first[1])


def test_the_lock_replays_and_refuses_another_model_by_name(first, workshop: Path, cache) -> None:
    from optimc.core.errors import InputError

    lock = json.loads((workshop / "quickstart.lock").read_text())
    assert lock["choices"]["best"] == f"{first[1].best.variant}/{first[1].best.target}"
    assert set(lock["cells"]) == {"fp32/ort", "fp32/ov", "int8/ort", "int8/ov"}
    _build(workshop, "locked", measure=False, locked=True)
    archive = workshop / "quickstart" / "digits_calibration.npz"
    kept = archive.read_bytes()
    arrays = dict(np.load(archive))
    arrays["images"] = arrays["images"][:150]
    arrays = {name: array[:150] for name, array in arrays.items()}
    try:
        np.savez(archive, **arrays)
        with pytest.raises(InputError, match=r"data\.calibration: locked"):
            _build(workshop, "locked", measure=False, locked=True)
    finally:
        archive.write_bytes(kept)


def test_one_cell_alone_leaves_the_lock_alone(first, workshop: Path, cache) -> None:
    before = (workshop / "quickstart.lock").read_bytes()
    _, report, _ = _build(workshop, "one", measure=False, variant="int8", target="ort")
    assert [cell.name for cell in report.results] == ["int8/ort"]
    assert (workshop / "quickstart.lock").read_bytes() == before


def test_a_dump_holds_the_model_after_every_pass(first, workshop: Path, cache) -> None:
    _build(workshop, "dumped", measure=False, dump=workshop / "dump", target="ort")
    names = sorted(path.name for path in (workshop / "dump").iterdir())
    assert names == [
        "000-source.onnx",
        "001-simplify.onnx",
        "002-fuse.onnx",
        "003-quantize_int8.onnx",
    ]


def test_a_limit_stops_a_pass_after_so_many_rewrites(first, workshop: Path, cache) -> None:
    _, report, _ = _build(workshop, "limited", measure=False, target="ort", limits={"simplify": 3})
    int8 = next(cell for cell in report.results if cell.variant == "int8")
    assert int8.passes[0].rewrites == 3
    assert any("--limit" in warning for warning in report.warnings)
