"""Names that inject into logs; graphs that are very long or deep: they build, or one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.cli import main
from optimc.cli.run import printable
from optimc.testing import bad_inputs as bad
from optimc.testing.bad_inputs import Workshop, run_here
from optimc.testing.commands import Finished
from optimc.testing.hostile_models import chain, nested
from optimc.testing.inline_workers import inline_workers

NAME = "x\n::error file=a::planted\n  ::warning::more\n##vso[task.complete result=Failed]\x1b[31m"


@pytest.fixture
def shop(tmp_path: Path, repository: Path) -> Workshop:
    return Workshop.make(tmp_path / "shop", repository / "recipes")


def _obeys_nothing(text: str) -> None:
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    assert "##vso[" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("text", [NAME, f"error: {NAME}\n  fix: {NAME}", "::x", "\t::x", "a\r::x"])
def test_no_line_is_a_command(text: str) -> None:
    _obeys_nothing(printable(text))


def test_what_is_harmless_stays_as_it_is() -> None:
    text = "error: a::b ##1\n  fix: `x`\tthen\n    y: 2"
    assert printable(text) == text


def _run(shop: Workshop, command: str) -> Finished:
    with inline_workers():
        return run_here(main, command, shop.folder)


def test_a_node_s_name_in_an_error(shop: Workshop) -> None:
    def named(proto: object) -> None:
        bad.with_operator("NoSuch")(proto)  # type: ignore[arg-type]
        proto.graph.node[-1].name = NAME  # type: ignore[attr-defined]

    bad.model(named)(shop)
    done = _run(shop, "build recipe.yaml --no-measure")
    assert done.code == 2
    assert "planted" in done.err
    _obeys_nothing(done.err)


def test_names_that_a_build_only_shows(shop: Workshop) -> None:
    def named(proto: object) -> None:
        for node in proto.graph.node:  # type: ignore[attr-defined]
            node.name = f"{NAME}{node.name}"

    bad.model(named)(shop)
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    shop.replace("fp32: []", "fp32: [simplify, {quantize_int8: {keep_float: ['*']}}]")
    for command in ("build recipe.yaml --no-measure", "inspect digits.onnx"):
        _obeys_nothing((done := _run(shop, command)).err + done.out)
        assert done.code in (0, 3)


@pytest.mark.parametrize("depth", [3, 20])
def test_a_nest_of_branches_builds(depth: int, shop: Workshop) -> None:
    shop.model.write_bytes(nested(depth))
    shop.recipe.write_text(
        "model: {onnx: digits.onnx}\nvariants: {fp32: [simplify, fuse]}\n"
        "targets: {ort: {runtime: onnxruntime}}\n"
    )
    done = _run(shop, "build recipe.yaml --no-measure")
    assert done.code == 0, done.err


@pytest.mark.parametrize("depth", [100, 2000])
def test_a_nest_too_deep_is_one_message(depth: int, shop: Workshop) -> None:
    shop.model.write_bytes(nested(depth))
    shop.recipe.write_text(
        "model: {onnx: digits.onnx}\nvariants: {fp32: [simplify, fuse]}\n"
        "targets: {ort: {runtime: onnxruntime}}\n"
    )
    for command in ("build recipe.yaml --no-measure", "inspect digits.onnx"):
        done = _run(shop, command)
        assert done.code == 2, done.err
        assert not done.traceback
        assert done.err.count("error: ") == 1


def test_a_long_chain_builds(shop: Workshop) -> None:
    chain(3000).write_onnx(shop.model)
    shop.recipe.write_text(
        "model: {onnx: digits.onnx}\nvariants: {fp32: [simplify, fuse]}\n"
        "targets: {ort: {runtime: onnxruntime}}\n"
    )
    done = _run(shop, "build recipe.yaml --no-measure")
    assert done.code == 0, done.err
