from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from optimc.core.errors import InputError
from optimc.report.canonical import SCHEMA_FILE, load_report, schema_text, to_json, write_schema
from optimc.report.html import to_html
from optimc.report.schema import CellName, Metric, Report
from optimc.report.values import Skipped
from optimc.testing.example_report import (
    HOSTILE_NAMES,
    example_report,
    failed_report,
    hostile_report,
    undecided_report,
)

if TYPE_CHECKING:
    from pathlib import Path

REPORTS = {
    "passed": example_report(),
    "undecided": undecided_report(),
    "failed": failed_report(),
    **{f"hostile {index}": hostile_report(name) for index, name in enumerate(HOSTILE_NAMES)},
}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())


@every_report
def test_what_is_written_reads_back_as_the_same_report(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(to_json(report), encoding="utf-8")
    loaded = load_report(path)
    assert loaded == report
    assert to_json(loaded) == to_json(report)
    assert load_report(tmp_path) == report


@every_report
def test_every_report_meets_the_schema_that_ships(report: Report) -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(to_json(report)))


def test_the_schema_refuses_what_the_types_refuse() -> None:
    validator = Draft202012Validator(json.loads(schema_text()))
    for change in ({"schema": 2}, {"surprise": 1}, {"noise_floor": None}, {"optimc": 1}):
        assert not validator.is_valid({**json.loads(to_json(example_report())), **change})


def test_the_schema_in_the_package_is_up_to_date(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if _regenerate(request):
        write_schema()
    write_schema(tmp_path / "schema.json")
    made = (tmp_path / "schema.json").read_text(encoding="utf-8")
    assert SCHEMA_FILE.read_text(encoding="utf-8") == made == schema_text()


def test_the_canonical_text_is_the_golden(request: pytest.FixtureRequest, repository: Path) -> None:
    golden = repository / "tests" / "report" / "goldens" / "report.json"
    if _regenerate(request):
        golden.write_text(to_json(example_report()), encoding="utf-8")
    assert to_json(example_report()) == golden.read_text(encoding="utf-8")


def test_the_text_is_ascii_and_ends_with_one_newline() -> None:
    text = to_json(hostile_report(" ".join(HOSTILE_NAMES)))
    assert text.isascii()
    assert text.endswith("}\n")
    assert not any(char < " " for char in text.replace("\n", ""))


def test_the_order_of_what_has_no_order_does_not_show() -> None:
    report = example_report()
    data = json.loads(to_json(report))
    data["environment"] = dict(reversed(data["environment"].items()))
    data["machine"]["features"] = [*reversed(data["machine"]["features"]), "avx2"]
    for cell in data["results"]:
        for step in cell["passes"]:
            step["options"] = dict(reversed(step["options"].items()))
    assert to_json(Report.model_validate_json(json.dumps(data))) == to_json(report)


def test_metrics_keep_the_order_of_the_recipe() -> None:
    data = json.loads(to_json(example_report()))
    data["source"]["metrics"] = dict(reversed(data["source"]["metrics"].items()))
    report = Report.model_validate_json(json.dumps(data))
    assert list(json.loads(to_json(report))["source"]["metrics"]) == ["top5", "top1"]


def test_an_infinite_error_is_written_by_name_and_reads_back() -> None:
    data = json.loads(to_json(example_report()))
    assert data["results"][0]["passes"][0]["sqnr_db"] == "Infinity"
    data["results"][0]["passes"][0]["max_abs_error"] = "NaN"
    step = Report.model_validate_json(json.dumps(data)).results[0].passes[0]
    assert step.sqnr_db == float("inf")
    assert step.max_abs_error != step.max_abs_error


def test_the_sign_of_zero_does_not_show() -> None:
    metric = Metric(value=-0.0, source=0.0, drop=-0.0, ci95=(-0.0, 0.0), samples=1, better="higher")
    report = example_report()
    cell = report.results[0].model_copy(update={"metrics": {"top1": metric}})
    report = report.model_copy(update={"results": (cell, *report.results[1:])})
    assert "-0.0," not in to_json(report)
    assert "-0.0\n" not in to_json(report)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results", 0, "passes", 0, "seconds"), "NaN"),
        (("results", 0, "speedup", "ci95"), [2.0, 1.0]),
        (("results", 0, "speedup", "value"), "1.0"),
        (("results", 0, "surprise"), 1),
        (("results", 0, "status"), "done"),
        (("results", 0, "engine"), {"skipped": "no engine although the cell is built"}),
        (("results", 0, "throughput_per_s"), None),
        (("results", 0, "throughput_per_s"), {"skipped": ""}),
        (("results", 5, "reason"), None),
        (("results", 0, "passes", 1, "reason"), None),
        (("results", 1, "variant"), "int8"),
        (("best", "target"), "nowhere"),
        (("gate", "checks", 0, "variant"), "nowhere"),
        (("source", "sha256"), "C4" * 32),
        (("created",), "yesterday"),
        (("schema",), 2),
    ],
)
def test_a_report_that_says_less_than_it_must_is_refused(path: Any, value: object) -> None:
    data = json.loads(to_json(example_report()))
    if path == ("results", 1, "variant"):
        data["results"][1]["target"] = "ort"
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        Report.model_validate_json(json.dumps(data))


def test_a_skipped_figure_needs_its_reason_in_code_as_well() -> None:
    with pytest.raises(ValidationError):
        Skipped(skipped="")


def test_a_file_name_that_is_not_utf8_is_shown() -> None:
    name = os.fsdecode(b"caf\xe9.onnx")
    report = example_report()
    source = type(report.source)(**{**dict(report.source), "path": name})
    assert source.path == "caf\\udce9.onnx"
    assert CellName(variant=name, target="ort").name == "caf\\udce9.onnx/ort"


def _broken(change: str) -> str:
    text = to_json(example_report())
    data = json.loads(text)
    if change == "truncated":
        return text[: len(text) // 2]
    if change == "list":
        return "[1]"
    if change == "deep":
        return "[" * 100_000
    if change == "newer":
        return json.dumps({**data, "schema": 7})
    if change == "type":
        data["results"][3]["engine"]["bytes"] = "many"
    if change == "missing":
        del data["machine"]["cpu"]
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", "not a report: Invalid JSON"),
        ("list", "not a report"),
        ("deep", "not a report: Invalid JSON"),
        ("newer", "it has schema 7, this optimc reads schema 1"),
        ("type", "`results.3.engine.bytes`"),
        ("missing", "`machine.cpu`: Field required"),
    ],
)
def test_a_broken_file_gives_one_message(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(_broken(change), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_report(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "errors.pydantic.dev" not in str(caught.value)
    assert caught.value.fix


def test_a_file_that_cannot_be_read_gives_one_message(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, message in (("binary.json", "not UTF-8"), ("none.json", "No such file")):
        with pytest.raises(InputError, match=message):
            load_report(tmp_path / name)


def _regenerate(request: pytest.FixtureRequest) -> bool:
    asked = request.config.getoption("--regenerate-goldens", default=False)
    return bool(asked) or os.environ.get("OPTIMC_REGENERATE_GOLDENS") == "1"


def test_reports_of_older_versions_load_and_make_a_page(tmp_path: Path) -> None:
    data = json.loads(to_json(example_report()))
    for later in ("profiles", "shown", "ranges", "confirmation", "records"):
        del data[later]
    for cell in data["results"]:
        cell.pop("throughput")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    report = load_report(path)
    assert report.profiles == ()
    page = to_html(report)
    assert "Not measured." in page
