"""`optimc gate` as a user runs it: verdicts, exit codes, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimc.cli import main
from optimc.report.schema import Gate
from optimc.report.values import Skipped
from optimc.testing.gate_builds import CELL, build_folder, changed_cell, passing_report
from optimc.testing.junit_format import check_junit

NO_THROUGHPUT = {"throughput_per_s": Skipped(skipped="not measured"), "throughput": None}


@pytest.fixture(autouse=True)
def _no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return build_folder(tmp_path / "baseline", lost=0, won=0)


def gate(capsys, candidate: Path, baseline: Path, *more: str | Path) -> tuple[int, dict, str]:
    arguments = ["gate", str(candidate), "--baseline", str(baseline), "--json", *map(str, more)]
    code = main(arguments)
    shown = capsys.readouterr()
    return code, json.loads(shown.out) if shown.out else {}, shown.err


def policy(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def named(report: dict, name: str) -> dict:
    (found,) = [check for check in report["checks"] if check["name"] == name]
    return found


def test_equal_builds_pass(capsys, tmp_path, baseline):
    code, report, err = gate(capsys, build_folder(tmp_path / "new", lost=3, won=3), baseline)
    assert code == 0
    assert report["verdict"] == "passed"
    assert named(report, "recipe_gate")["verdict"] == "passed"
    assert named(report, "drop.top1")["method"].startswith("paired by samples; Tango")
    assert err.rstrip().endswith("limits met.")
    assert max(map(len, err.splitlines())) <= 100


@pytest.mark.parametrize(("lost", "won", "code"), [(58, 8, 4), (33, 32, 0), (42, 15, 5)])
def test_drops_at_half_a_point(capsys, tmp_path, baseline, lost, won, code):
    """One point is caught, a fiftieth passes, half a point is on the fence."""
    candidate = build_folder(tmp_path / "new", lost=lost, won=won)
    limit = policy(tmp_path, "drop: {top1: 0.005}\n")
    found, report, err = gate(capsys, candidate, baseline, "--policy", limit)
    assert found == code
    assert [check["name"] for check in report["checks"]] == ["drop.top1"]
    assert named(report, "drop.top1")["value"] == pytest.approx((lost - won) / 5000)
    if code == 5:
        assert "about" in named(report, "drop.top1")["decides"]
        assert "would decide" in err


def test_reports_without_records_are_compared_by_their_drops(capsys, tmp_path, baseline):
    candidate = build_folder(tmp_path / "new", lost=0, won=0)
    (candidate / "records.npz").unlink()
    _, report, _ = gate(capsys, candidate / "report.json", baseline)
    check = named(report, "drop.top1")
    assert "not paired by samples" in check["method"]
    assert check["value"] == 0
    # The sum of both intervals: however the two are correlated.
    assert check["ci95"][1] == pytest.approx(2 * 0.0018, abs=2e-3)


def test_times_of_other_machines_are_not_compared(capsys, tmp_path, baseline):
    told = passing_report()
    other = told.machine.model_copy(update={"cpu": "Another CPU", "cores": 96})
    told = told.model_copy(update={"machine": other})
    candidate = build_folder(tmp_path / "new", lost=0, won=0, report=told)
    code, report, err = gate(capsys, candidate, baseline)
    assert code == 5
    check = named(report, "slowdown")
    assert check["verdict"] == "undecided"
    assert check["decides"] == "--remeasure"
    assert "Another CPU" in check["value"]["skipped"]
    assert any(line.startswith("cores: ") and "96 now" in line for line in report["differences"])
    assert "never compared by time" in " ".join(err.split())


def test_a_slower_candidate_of_the_same_machine_fails(capsys, tmp_path, baseline):
    told = passing_report()
    speedup = told.results[0].speedup
    assert not isinstance(speedup, Skipped)
    slow = speedup.model_copy(update={"value": 1.8, "ci95": (1.79, 1.81), "sessions": 12})
    candidate = build_folder(
        tmp_path / "new", lost=0, won=0, report=changed_cell(told, speedup=slow)
    )
    code, report, _ = gate(capsys, candidate, baseline)
    assert code == 4
    check = named(report, "slowdown")
    assert check["value"] == pytest.approx(2.251 / 1.8 - 1)
    assert check["ci95"][0] < check["value"] < check["ci95"][1]


def test_a_larger_candidate_fails(capsys, tmp_path, baseline):
    told = passing_report()
    engine = told.results[0].engine
    assert not isinstance(engine, Skipped)
    larger = engine.model_copy(update={"bytes": round(engine.bytes * 1.2)})
    candidate = build_folder(
        tmp_path / "new", lost=0, won=0, report=changed_cell(told, engine=larger)
    )
    code, report, _ = gate(capsys, candidate, baseline)
    assert code == 4
    assert named(report, "size_growth")["value"] == pytest.approx(0.2, abs=0.01)


def test_a_policy_file_wins_over_the_recipes_gate(capsys, tmp_path, baseline):
    failed = passing_report(gate=Gate(verdict="failed", ship="best", checks=()), best=None)
    candidate = build_folder(tmp_path / "new", lost=0, won=0, report=failed)
    code, report, _ = gate(capsys, candidate, baseline)
    assert code == 4
    assert named(report, "recipe_gate")["verdict"] == "failed"
    limit = policy(tmp_path, "drop: {top1: 0.005}\n")
    code, report, err = gate(capsys, candidate, baseline, "--policy", limit)
    assert code == 0
    assert [check["name"] for check in report["checks"]] == ["drop.top1"]
    assert report["policy"]["limits"] == {"drop.top1": 0.005}
    assert "the policy file wins over it" in " ".join(err.split())


def test_limits_by_default_are_the_baselines(capsys, tmp_path):
    """The candidate's recipe is part of what is judged."""
    told = passing_report()
    checks = tuple(
        check.model_copy(update={"limit": 0.5}) if check.name == "drop.top1" else check
        for check in told.gate.checks
    )
    lax = told.model_copy(update={"gate": told.gate.model_copy(update={"checks": checks})})
    candidate = build_folder(tmp_path / "new", lost=80, won=0, report=lax)
    baseline = build_folder(tmp_path / "old", lost=0, won=0)
    code, report, _ = gate(capsys, candidate, baseline)
    limits = {check.name: check.limit for check in told.gate.checks}
    assert report["policy"]["limits"]["drop.top1"] == limits["drop.top1"]
    assert code == 4


def test_a_cell_that_is_gone_fails(capsys, tmp_path, baseline):
    told = passing_report()
    cell = told.results[0].model_copy(update={"variant": "other"})
    checks = tuple(check.model_copy(update={"variant": "other"}) for check in told.gate.checks)
    other = told.model_copy(
        update={
            "results": (cell,),
            "best": None,
            "gate": Gate(verdict="none", checks=checks),
        }
    )
    candidate = build_folder(tmp_path / "new", lost=0, won=0, report=other)
    code, report, _ = gate(
        capsys, candidate, baseline, "--policy", policy(tmp_path, f"cells: [{CELL}]\nsize_mb: 99\n")
    )
    assert code == 4
    assert "not built in the candidate" in named(report, "built")["method"]


def test_unmeasured_limits_are_undecided(capsys, tmp_path, baseline):
    told = changed_cell(passing_report(), **NO_THROUGHPUT)
    candidate = build_folder(tmp_path / "new", lost=0, won=0, report=told)
    limit = policy(tmp_path, "drop: {f1: 0.01}\nthroughput_per_s: 5\n")
    code, report, _ = gate(capsys, candidate, baseline, "--policy", limit)
    assert code == 5
    assert named(report, "drop.f1")["value"]["skipped"] == "the candidate: no metric f1"
    assert named(report, "throughput_per_s")["verdict"] == "undecided"


def test_junit_summary_and_annotations(capsys, tmp_path, baseline, monkeypatch):
    candidate = build_folder(tmp_path / "new", lost=90, won=0)
    summary, junit = tmp_path / "summary.md", tmp_path / "gate.xml"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, _, err = gate(
        capsys,
        *(candidate, baseline, "--junit", junit),
        *("--policy", policy(tmp_path, "drop: {top1: 0.005}\nslowdown: 0.2\n")),
    )
    assert code == 4
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n## ❌ optimc gate: failed")
    assert "| ❌ | `int8/ort` | top1 drop |" in text
    root = check_junit(junit.read_text(encoding="utf-8"))
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    (line,) = [line for line in err.splitlines() if line.startswith("::")]
    assert line.startswith("::error title=optimc gate%3A top1 drop failed::int8/ort: top1 drop")


def test_names_cannot_steer_a_build_server(capsys, tmp_path, baseline, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    told = passing_report()
    hostile = "x\n::error::planted,a:b%0A <b>| ##vso[task]"
    cell = told.results[0].model_copy(update={"variant": hostile, **NO_THROUGHPUT})
    report = told.model_copy(
        update={"results": (cell,), "best": None, "gate": Gate(verdict="none", checks=())}
    )
    candidate = build_folder(tmp_path / "new", lost=0, won=0, report=report)
    limit = policy(tmp_path, "cells: ['*']\nthroughput_per_s: 5\n")
    _, _, err = gate(capsys, candidate, candidate, "--policy", limit)
    commands = [line for line in err.splitlines() if line.lstrip().startswith("::")]
    assert len(commands) == 1
    assert commands[0].startswith("::warning title=optimc gate%3A throughput undecided::")
    assert "%250A" in commands[0]
    assert "##vso[" not in "".join(line for line in err.splitlines() if line not in commands)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "\n::" not in text


def test_no_line_is_wider_than_100_columns_or_steers_the_terminal(capsys, tmp_path):
    folder = tmp_path / ("a-long-name-" * 20) / "\x1b[31m::error::"
    candidate = build_folder(folder, lost=90, won=0)
    told = passing_report()
    other = told.machine.model_copy(update={"cpu": "Another CPU " * 20})
    baseline = build_folder(
        tmp_path / "old", lost=0, won=0, report=told.model_copy(update={"machine": other})
    )
    _, _, err = gate(capsys, candidate, baseline)
    lines = err.splitlines()
    assert max(map(len, lines)) <= 100
    assert "".join(lines).isprintable()
    assert not any(line.lstrip().startswith("::") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--baseline", "nowhere"], "no such file or folder"),
        (["empty", "--baseline", "empty"], "neither report.json nor manifest.json"),
        (["report.json", "--baseline", "report.json"], "not a report"),
        (["report.json", "--baseline", "report.json", "--inputs", "x.npz"], "add --remeasure"),
        (["report.json"], "baseline"),
    ],
)
def test_bad_input_is_one_message(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert main(["gate", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_damaged_records_are_told(capsys, tmp_path, baseline):
    candidate = build_folder(tmp_path / "new", lost=0, won=0)
    (candidate / "records.npz").write_bytes(b"PK\x03\x04 nothing")
    code, _, err = gate(capsys, candidate, baseline)
    assert code == 2
    assert "records.npz" in err


def test_measuring_again_needs_the_artifacts(capsys, tmp_path, baseline):
    candidate = build_folder(tmp_path / "new", lost=0, won=0)
    code, _, err = gate(capsys, candidate, baseline, "--remeasure")
    assert code == 2
    assert "does not lie beside the report" in err
