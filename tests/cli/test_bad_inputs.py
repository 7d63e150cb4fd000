"""Bad inputs through the command line: one message, the documented code, nothing half-written.

Each case spoils one thing of a recipe that builds. Most run in this process, where a start costs
nothing; some run again as a process of their own, as a user would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from optimc.cli import main
from optimc.report.canonical import load_report
from optimc.testing import bad_inputs as bad
from optimc.testing.bad_inputs import Spoil, Workshop, run_here
from optimc.testing.commands import Finished, run_optimc, temporary_leftovers

CHECK = "check recipe.yaml"
BUILD = "build recipe.yaml -o out --no-measure"
INT8 = "[simplify, fuse, quantize_int8]"
ORT = "{ort: {runtime: onnxruntime, threads: 1}}"
STEPS = "images}, transform: [nchw, {divide: 16}]}"


@dataclass(frozen=True)
class Bad:
    """What is spoilt, what the message says, and the command that meets it."""

    spoil: Spoil
    says: tuple[str, ...]
    command: str = CHECK
    code: int = 2


def _bad(spoil: Spoil, *says: str, command: str = CHECK, code: int = 2) -> Bad:
    return Bad(spoil, says, command, code)


TEXT = {
    "bracket not closed": _bad(
        bad.recipe("max: 64}}", "max: 64"), "recipe.yaml:3:15", "not closed", "fix: close it"
    ),
    "tab": _bad(bad.recipe("  fp32", "\tfp32"), "recipe.yaml:14:1", "a tab", "indent with spaces"),
    "empty recipe": _bad(bad.recipe_is(b""), "the recipe is empty", "optimc init MODEL"),
    "only comments": _bad(bad.recipe_is(b"# soon\n"), "the recipe is empty", "optimc init MODEL"),
    "binary recipe": _bad(bad.recipe_is(bytes(range(256))), "is not a text file", "UTF-8"),
    "latin-1 recipe": _bad(
        bad.recipe_is(b"model: {onnx: \xe9.onnx}\n"), "recipe.yaml:1:15", "0xe9", "save the recipe"
    ),
    "huge recipe": _bad(bad.recipe_is(b"#" * 2_000_000), "2,000,000 bytes", "is this the recipe?"),
    "a list": _bad(bad.recipe_is(b"- model\n"), "a recipe is a mapping", "start with `model:"),
    "two documents": _bad(bad.appended("---\nseed: 1\n"), "recipe.yaml:20:1", "second document"),
    "key twice": _bad(bad.appended("seed: 1\n"), "20:1: the key `seed`", "first in line 4"),
    "python tag": _bad(
        bad.recipe("seed: 0", "seed: !!python/object:os.system 1"), "4:7: the tag", "remove it"
    ),
    "recipe is missing": _bad(
        bad.nothing, "recpie.yaml: no such file", "`recipe.yaml`?", command="check recpie.yaml"
    ),
    "recipe is a folder": _bad(
        bad.nothing, ".: is a folder", "name the recipe's file", command="check ."
    ),
}
NAMES = {
    "key at the top": _bad(
        bad.recipe("variants:", "varaints:"), "13:1: unknown key `varaints`", "`variants`?"
    ),
    "key of a dim": _bad(
        bad.recipe("typical", "typicl"), "3:24: unknown key `typicl` in dims.batch", "`typical`?"
    ),
    "key of a split": _bad(
        bad.recipe("    labels:", "    lables:"), "10:5: unknown key `lables`", "`labels`?"
    ),
    "pass": _bad(
        bad.recipe("quantize_int8]", "quantise_int8]"), "15:26: unknown pass", "`quantize_int8`?"
    ),
    "pass option": _bad(
        bad.recipe(INT8, "[{quantize_int8: {range: mse}}]"), "15:27: unknown key", "`ranges`?"
    ),
    "runtime": _bad(
        bad.recipe("onnxruntime", "onnxrutime"), "16:26: unknown runtime", "`onnxruntime`?"
    ),
    "target of a variant": _bad(
        bad.recipe("fp32: []", "fp32: {passes: [], targets: [otr]}"),
        "14:32: unknown target",
        "`ort`?",
    ),
    "metric": _bad(
        bad.recipe("metrics: {top1: {}}", "metrics: {top1: {}, top2: {}}"),
        "12:21: unknown metric `top2`",
        "your own: {call: module:Class}",
    ),
    "metric's output": _bad(
        bad.recipe("metrics: {top1: {}}", "metrics: {top1: {output: logit}}"),
        "12:18: unknown output `logit`",
        "did you mean `logits`?",
    ),
    "input": _bad(
        bad.recipe("{input: {range", "{inptu: {range"), "2:10: unknown input", "`input`?"
    ),
    "output": _bad(
        bad.appended("outputs: {logit: drop}\n"), "20:11: unknown output `logit`", "`logits`?"
    ),
    "dim": _bad(
        bad.all_of(bad.recipe("dims: {batch", "dims: {n"), bad.recipe("{batch: 1}", "{n: 1}")),
        "3:8: unknown dim `n`",
        "known: batch",
    ),
    "dim of a case": _bad(
        bad.recipe("cases: [{batch: 1}]", "cases: [{sequence: 1}]"),
        "17:22: unknown dim `sequence`",
        "known: batch",
    ),
    "input of the data": _bad(
        bad.recipe("calibration.npz, inputs: {input:", "calibration.npz, inputs: {inpt:"),
        "calibration.npz: unknown input `inpt`",
        "did you mean `input`?",
    ),
    "array": _bad(
        bad.recipe("labels: labels", "labels: lables"), "evaluation.npz: unknown array", "`labels`?"
    ),
    "transform step": _bad(
        bad.recipe(STEPS, STEPS.replace("divide", "divid")), "unknown transform step", "`divide`?"
    ),
    "cell to ship": _bad(bad.recipe("ship: best", "ship: int4/ort"), "18:14", "matches no cell"),
    "metric of a limit": _bad(
        bad.recipe("drop: {top1", "drop: {top5"), "18:27: gate.drop limits `top5`", "`top1`?"
    ),
    "environment variable": _bad(
        bad.recipe("digits.onnx", '"${NO_SUCH_VARIABLE}"'), "1:15", "is not set", "export NO_SUCH"
    ),
    "metric's module": _bad(
        bad.recipe("{top1: {}}", "{top1: {}, own: {call: 'no_such_module:Metric'}}"),
        "metrics.own.call: cannot import",
        "put it beside the recipe",
    ),
}
VALUES = {
    "word for a number": _bad(bad.recipe("seed: 0", "seed: zero"), "4:7", "a whole number"),
    "number below the least": _bad(bad.recipe("max: 64", "max: 0"), "3:41", "must be at least 1"),
    "dims in no order": _bad(bad.recipe("typical: 1,", "typical: 99,"), "3:15", "1, 99, 64"),
    "dims in no step": _bad(bad.recipe("max: 64", "max: 64, multiple_of: 3"), "no multiple of 3"),
    "pass option's value": _bad(
        bad.recipe(INT8, "[{quantize_int8: {ranges: msee}}]"),
        "15:35",
        "expected `minmax`",
        "`mse`?",
    ),
    "pass option's range": _bad(
        bad.recipe(INT8, "[{quantize_int8: {percentile: 10}}]"), "15:39", "greater than 50"
    ),
    "too many threads": _bad(bad.recipe("threads: 1", "threads: 5000"), "16:48", "at most 1024"),
    "other shape": _bad(
        bad.recipe("range: [0, 1]", "shape: [batch, 3, 8, 8]"), "recipe.yaml:2:10", "leave it out"
    ),
    "other dtype": _bad(
        bad.recipe("range: [0, 1]", "dtype: float16"), "recipe.yaml:2:10", "leave it out"
    ),
    "values of a float": _bad(
        bad.recipe("range: [0, 1]", "values: [0, 1]"), "the input is float32", "declare `range:"
    ),
    "all outputs dropped": _bad(
        bad.appended("outputs: {logits: drop}\n"), "20:1: every output is dropped", "keep one"
    ),
    "case out of range": _bad(
        bad.recipe("cases: [{batch: 1}]", "cases: [{batch: 65}]"), "17:29", "(1 to 64)", "widen"
    ),
    "case beyond the default": _bad(
        bad.all_of(
            bad.recipe("dims: {batch: {min: 1, typical: 1, max: 64}}\n", ""),
            bad.recipe("cases: [{batch: 1}]", "cases: [{batch: 65}]"),
        ),
        "16:22: the case has batch: 65, outside of 1 to 8",
        "declare dims.batch",
    ),
    "labels not named": _bad(
        bad.recipe("    labels: labels\n", ""), "`top1` needs labels", "data.evaluation.labels"
    ),
    "code in a recipe": _bad(
        bad.recipe("{top1: {}}", "{top1: {}, own: {call: 'my:Metric'}}"),
        "runs code, which --untrusted refuses",
        "leave out --untrusted",
        command=f"{CHECK} --untrusted",
    ),
}
MODELS = {
    "missing": _bad(
        bad.without("digits.onnx"), "1:15: `digits.onnx`: there is no such file", "relative to"
    ),
    "a folder": _bad(
        bad.folder_in_place_of("digits.onnx"), "1:15: `digits.onnx`: is a folder, not a file", "fix"
    ),
    "empty": _bad(bad.model_is(b""), "digits.onnx: the file is empty", "export the model again"),
    **{
        f"cut to {share:.4%}": _bad(
            bad.cut("digits.onnx", share), "digits.onnx: this is not an ONNX model", "truncated"
        )
        for share in (0.00001, 0.01, 0.5, 1.0)
    },
    "text": _bad(bad.model_is(b"not a model\n" * 99), "this is not an ONNX model", "fix: export"),
    "an archive": _bad(
        lambda shop: shop.model.write_bytes(shop.data("evaluation").read_bytes()),
        "this is not an ONNX model",
        "fix: export",
    ),
    "data at an absolute path": _bad(
        bad.external("/etc/passwd", write=False), "'/etc/passwd', an absolute path", "own folder"
    ),
    "data above the folder": _bad(
        bad.external("../outside.bin", write=False), "leaves the model's folder", "own folder"
    ),
    "data behind a link": _bad(bad.linked_outside, "a link that leaves", "own folder"),
    "data missing": _bad(
        bad.external("weights.bin", write=False), "'weights.bin', which cannot be", "copy the data"
    ),
    "data cut off": _bad(
        bad.all_of(bad.external("weights.bin"), bad.cut("weights.bin", 0.5)),
        "needs 1,728 bytes from offset 0 of weights.bin, which has 864",
        "copy both files again",
    ),
    "cycle": _bad(bad.model(bad.with_cycle), "the graph has a cycle: node `", "export the model"),
    "name twice": _bad(bad.model(bad.with_duplicate), "is defined twice", "another name"),
    "order": _bad(bad.model(bad.with_nodes_reversed), "(Gemm) reads `mean` before", "sort"),
    "weight too short": _bad(
        bad.model(bad.with_short_weight), "its dims [49, 1, 3, 3] need 1,764", "export the model"
    ),
    "strings": _bad(bad.model(bad.with_string_input), "input `input` holds strings", "feed it the"),
    "sequence": _bad(bad.model(bad.with_sequence_input), "is a sequence", "export the model"),
    "operator": _bad(
        bad.model(bad.with_operator("Sigmiod")), "`Sigmiod`", "`Sigmoid`?", command=BUILD
    ),
    "domain": _bad(
        bad.model(bad.with_operator("Magic", "com.acme")),
        "`Magic` of the domain `com.acme`",
        "custom_ops: [libs/ops.so]",
        command=BUILD,
    ),
    "opset": _bad(bad.model(bad.with_opset(999)), "opset 999", "export with opset", command=BUILD),
    "limits too small to read it": _bad(
        bad.recipe("{seconds: 60}", "{seconds: 0.01}"),
        "examining digits.onnx did not answer within its time limit of 0.01 s",
        "raise limits.seconds",
        command=f"{BUILD} --no-cache",
    ),
    "for init": _bad(
        bad.file("x.onnx", "hello"),
        "x.onnx: this is not an ONNX",
        command="init x.onnx -o new.yaml",
    ),
    "for inspect": _bad(
        bad.nothing, "digit.onnx: cannot read", "`digits.onnx`?", command="inspect digit.onnx"
    ),
    "folder for inspect": _bad(
        bad.nothing, ".: this is a folder", "name the file in it: digits", command="inspect ."
    ),
    "manifest that is none": _bad(
        bad.file("manifest.json", '{"schema": 1}'), "no engine's manifest", command="inspect ."
    ),
    "manifest that is broken": _bad(
        bad.file("manifest.json", "{"), "the manifest cannot be read", command="inspect ."
    ),
}
DATA = {
    "missing": _bad(
        bad.without("calibration.npz"), "6:22: `calibration.npz`: there is no such file", "fix"
    ),
    "cut off": _bad(bad.cut("calibration.npz", 0.5), "calibration.npz: cannot be read", "savez"),
    "text": _bad(bad.file("calibration.npz", "hello"), "calibration.npz: cannot be read", "savez"),
    "pickled": _bad(bad.pickled, "images: holds pickled Python objects", "save numbers"),
    "zip bomb": _bad(bad.zip_bomb, "images: claims 1,099.5 GB", "store big arrays as npy"),
    "no samples": _bad(
        bad.data("calibration", images=lambda a: a[:0], labels=lambda a: a[:0]),
        "holds no samples",
        "at least one",
    ),
    "labels of another length": _bad(
        bad.data("evaluation", labels=lambda a: a[:-1]), "images has 600, labels has 599", "fix"
    ),
    "label that is no class": _bad(
        bad.data("evaluation", labels=lambda a: a + 1), "label 10 is no class", "from 0"
    ),
    "labels that are no numbers of classes": _bad(
        bad.data("evaluation", labels=lambda a: a / 2), "dtype float64", "data.evaluation.labels"
    ),
    "dtype": _bad(
        bad.recipe(STEPS, "images}, transform: [nchw]}"), "gets uint8", "`cast: float32`"
    ),
    "shape": _bad(
        bad.recipe(STEPS, "images}, transform: [{divide: 16}]}"),
        "gets samples of shape [8, 8, 1]",
        "correct `transform`",
    ),
    "division by zero": _bad(
        bad.recipe(STEPS, STEPS.replace("16", "0")), "6:91", "cannot divide by zero"
    ),
    "more than there are": _bad(
        bad.recipe(STEPS, STEPS[:-1] + ", take: 999}"), "the 200 there are", "take fewer"
    ),
    "none taken": _bad(bad.recipe(STEPS, STEPS[:-1] + ", take: 0}"), "6:103", "at least 1"),
    "overlap": _bad(bad.shared_samples, "3 samples stand in both", "10 = 100", "allow_overlap"),
    "overlap in a build": _bad(bad.shared_samples, "3 samples stand in both", command=BUILD),
}
COMMAND_LINE = {
    "command": _bad(bad.nothing, "No such command 'biuld'", "'build'?", command="biuld x.yaml"),
    "option": _bad(bad.nothing, "--varient", "--variant", command="build recipe.yaml --varient x"),
    "choice": _bad(bad.nothing, "'fast', 'full', 'off'", command=f"{BUILD} --verify some"),
    "no recipe": _bad(bad.nothing, "RECIPE", command="build"),
    "limit without a number": _bad(
        bad.nothing, "`simplify` is not PASS=N", "simplify=10", command=f"{BUILD} --limit simplify"
    ),
    "limit below zero": _bad(
        bad.nothing, "is not PASS=N", "simplify=10", command=f"{BUILD} --limit simplify=-1"
    ),
    "limit of no pass": _bad(
        bad.nothing,
        "--limit: unknown pass `simplfy`",
        "`simplify`?",
        command=f"{BUILD} --limit simplfy=1",
    ),
    "set without a value": _bad(
        bad.nothing, "--set seed: is not of the form", "for example", command=f"{CHECK} --set seed"
    ),
    "set of no key": _bad(
        bad.nothing, "--set sed=1: unknown key `sed`", "`seed`?", command=f"{CHECK} --set sed=1"
    ),
    "set to a wrong type": _bad(
        bad.nothing, "--set seed=zero", "a whole number", command=f"{CHECK} --set seed=zero"
    ),
    "variant": _bad(
        bad.nothing,
        "--variant: unknown variant `int4`",
        "`int8`?",
        command=f"{BUILD} --variant int4",
    ),
    "target": _bad(
        bad.nothing, "--target: unknown target `orrt`", "`ort`?", command=f"{BUILD} --target orrt"
    ),
    "locked without a lock": _bad(
        bad.nothing,
        "recipe.lock: there is no lock",
        "without --locked",
        command=f"{BUILD} --locked",
    ),
    "lock that is broken": _bad(
        bad.file("recipe.lock", "{"),
        "the lock cannot be read",
        "commit",
        command=f"{BUILD} --locked",
    ),
    "lock of another schema": _bad(
        bad.file("recipe.lock", '{"schema": 99}'), "not of schema 1", command=f"{BUILD} --locked"
    ),
    "output that is a file": _bad(
        bad.file("out", "mine"), "out: this is a file, not a folder", "-o DIR", command=BUILD
    ),
    "output below a file": _bad(
        bad.file("out", "mine"), "Not a directory", "-o DIR", command=BUILD.replace("out", "out/x")
    ),
    "dump that is a file": _bad(
        bad.file("d", "mine"), "d: this is a file", "--dump DIR", command=f"{BUILD} --dump d"
    ),
    "init over a file": _bad(
        bad.nothing, "recipe.yaml: exists already", "--force", command="init digits.onnx"
    ),
    "init of a folder": _bad(
        bad.nothing, "this is a folder", "digits.onnx", command="init . -o new.yaml"
    ),
    "pass without a page": _bad(bad.nothing, "`simplfy`", "`simplify`?", command="passes simplfy"),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "text": TEXT,
        "name": NAMES,
        "value": VALUES,
        "model": MODELS,
        "data": DATA,
        "command line": COMMAND_LINE,
    }.items()
    for name, case in cases.items()
}
AS_A_USER = (
    "text: bracket not closed",
    "name: pass",
    "value: all outputs dropped",
    "model: cut to 50.0000%",
    "model: data at an absolute path",
    "model: domain",
    "data: pickled",
    "data: overlap",
    "command line: option",
    "command line: output that is a file",
)


@pytest.fixture
def shop(tmp_path: Path, repository: Path) -> Workshop:
    return Workshop.make(tmp_path / "shop", repository / "recipes")


@pytest.fixture
def here(shop: Workshop) -> Callable[[str], Finished]:
    """Runs a command line in this process, in the workshop's folder."""
    return lambda command: run_here(main, command, shop.folder)


def _refused(done: Finished, case: Bad) -> None:
    """One message with all that it has to say, the code, and nothing on stdout."""
    assert not done.traceback, done.err
    assert done.code == case.code, done.err
    assert done.out == ""
    assert len(re.findall(r"^(?:error|Error): ", done.err, re.MULTILINE)) == 1, done.err
    for fragment in case.says:
        assert fragment in done.err, done.err
    says_what_to_do = re.search(r"fix: \w|expected|must be|needs|[Tt]ry|Did you mean", done.err)
    assert says_what_to_do, done.err


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_message(
    name: str, shop: Workshop, here: Callable[[str], Finished]
) -> None:
    case = CASES[name]
    case.spoil(shop)
    before = shop.snapshot()
    _refused(here(case.command), case)
    assert shop.snapshot() == before
    assert temporary_leftovers(shop.folder) == []


@pytest.mark.parametrize("name", AS_A_USER)
def test_a_user_gets_the_same(name: str, shop: Workshop) -> None:
    case = CASES[name]
    case.spoil(shop)
    before = shop.snapshot()
    _refused(run_optimc(*case.command.split(), cwd=shop.folder), case)
    assert shop.snapshot() == before
    assert temporary_leftovers(shop.folder) == []


def test_there_are_more_than_forty_and_their_base_is_fine(here: Callable[[str], Finished]) -> None:
    assert len(CASES) >= 40
    done = here(CHECK)
    assert (done.code, done.out) == (0, "")
    assert "recipe.yaml: fine, 2 cells" in done.err


FAILED = {
    "pattern that names no node": _bad(
        bad.recipe(INT8, "[{quantize_int8: {keep_float: ['/haed/*']}}]"),
        "`/haed/*` names no node of the model",
        "optimc inspect MODEL",
    ),
    "model that is quantized already": _bad(
        bad.quantized, "quantized already: 2 nodes", "start from the float model"
    ),
    "calibration data with NaN": _bad(
        bad.data("calibration", images=lambda a: np.where(a > 15, np.nan, a)),
        "the calibration data hold infinities or NaNs in the input `input`",
        "data.calibration",
    ),
    "weight of another width": _bad(
        bad.model(bad.with_misfit), "node_conv2d", "kernel channels", "failed"
    ),
    "target that is not here": _bad(
        bad.recipe(ORT, "{trt: {runtime: tensorrt}}"), "trt", "TensorRT", "set `optional: true`"
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_cell_that_fails_is_exit_3_with_a_whole_report(
    name: str, shop: Workshop, here: Callable[[str], Finished]
) -> None:
    case = FAILED[name]
    case.spoil(shop)
    done = here(BUILD.replace("recipe.yaml", "recipe.yaml --variant int8"))
    assert (done.code, done.out) == (3, ""), done.err
    assert not done.traceback
    text = " ".join(done.err.split())
    for fragment in case.says:
        assert fragment in text, done.err
    report = load_report(shop.folder / "out" / "report.json")
    assert [cell.status for cell in report.results] == ["failed"]
    artifacts = shop.folder / "out" / "artifacts"
    kits = {path.parent for path in artifacts.rglob("kit.json")}  # of what is not here
    assert not [path for path in artifacts.rglob("*.onnx") if path.parent.parent not in kits]
    assert temporary_leftovers(shop.folder) == []


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("{seconds: 0.01}", "did not answer within its time limit of 0.01 s"),
        ("{memory_mb: 30}", "ran out of its memory limit of 30 MB"),
    ],
)
def test_limits_that_are_too_small_fail_the_cell(
    limit: str,
    says: str,
    shop: Workshop,
    here: Callable[[str], Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(shop.folder / "cache"))
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    assert here(f"{BUILD} --variant fp32").code == 0  # the model is in the cache from here on
    shop.replace("{seconds: 60}", limit)
    done = here(f"{BUILD} --variant int8")
    assert done.code == 3, done.err
    text = " ".join(done.err.split())
    assert says in text
    assert "fix: raise limits." in text
    assert not done.traceback


def test_an_optional_target_that_is_not_here_is_deferred_with_its_reason(
    shop: Workshop, here: Callable[[str], Finished]
) -> None:
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    shop.replace("threads: 1}}", "threads: 1}, trt: {runtime: tensorrt, optional: true}}")
    done = here(f"{BUILD} --variant int8")
    assert done.code == 0, done.err
    report = load_report(shop.folder / "out" / "report.json")
    assert {cell.name: cell.status for cell in report.results} == {
        "int8/ort": "built",
        "int8/trt": "deferred",
    }
    assert "TensorRT" in str(report.results[1].reason)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OPTIMC_CACHE_SIZE_GB", "big", ("`big` is not a size", "a number of gigabytes")),
        ("OPTIMC_CACHE_DIR", "recipe.yaml", ("cannot write to the cache", "--no-cache")),
        ("OPTIMC_CACHE_DIR", "/proc/1/optimc", ("cannot write to the cache", "--no-cache")),
    ],
)
def test_a_cache_that_cannot_be(
    variable: str,
    value: str,
    says: tuple[str, ...],
    here: Callable[[str], Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    _refused(here(BUILD), Bad(bad.nothing, says))


def test_names_from_files_cannot_steer_the_terminal(
    shop: Workshop, here: Callable[[str], Finished]
) -> None:
    def rename(proto: object) -> None:
        proto.graph.input[0].name = "\x1b[31mred"  # type: ignore[attr-defined]

    bad.model(rename)(shop)
    done = here("inspect digits.onnx")
    assert done.code in (0, 2)
    assert "\x1b" not in done.err + done.out
