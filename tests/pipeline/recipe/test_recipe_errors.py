from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from optimc.core.errors import ExitCode, InputError
from optimc.pipeline.recipe import RecipeError, load_recipe

HEAD = "model: {onnx: model.onnx}\nvariants: {fp32: []}\n"
"""Two lines that make a recipe: what a test adds begins in line 3."""

Refusal = Callable[[str], RecipeError]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "calibration.npz", "evaluation.npz"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.fixture
def refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """The error for a recipe's text, loaded from a file that is named `recipe.yaml`."""
    monkeypatch.chdir(folder)

    def refuse(text: str) -> RecipeError:
        Path("recipe.yaml").write_text(textwrap.dedent(text), encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            load_recipe(Path("recipe.yaml"))
        return caught.value

    return refuse


def first_lines(error: InputError) -> list[str]:
    """The lines of the message that name a place."""
    return [line for line in str(error).splitlines() if line.startswith("recipe.yaml:")]


def test_a_problem_names_place_text_and_remedy(refusal: Refusal) -> None:
    error = refusal("model: {onnx: model.onnx}\nvariants:\n  int8: {pases: [], passes: []}\n")
    assert error.exit_code == ExitCode.INPUT
    assert str(error) == (
        "recipe.yaml:3:10: unknown key `pases` in variants.int8\n"
        "  3 |   int8: {pases: [], passes: []}\n"
        "    |          ^^^^^\n"
        "  fix: did you mean `passes`? known: passes, targets"
    )


def test_all_problems_are_reported_in_the_order_of_the_file(refusal: Refusal) -> None:
    error = refusal(HEAD + "gate: {speedup: fast}\nseed: -1\ndims: {n: {min: 2, typical: 1}}\n")
    assert first_lines(error) == [
        "recipe.yaml:3:17: gate.speedup: expected a number, got `fast`",
        "recipe.yaml:4:7: seed: `-1` must be at least 0",
        "recipe.yaml:5:8: missing key `max` in dims.n",
    ]
    assert str(error).endswith("3 problems")
    assert len(error.problems) == 3


def test_no_more_than_twenty_problems_are_shown(refusal: Refusal) -> None:
    error = refusal(HEAD + "".join(f"unknown{n}: 1\n" for n in range(30)))
    assert len(first_lines(error)) == 20
    assert str(error).endswith("30 problems, of which 20 are shown")


def test_the_search_for_problems_ends(refusal: Refusal) -> None:
    error = refusal(HEAD + "".join(f"unknown{n}: 1\n" for n in range(2000)))
    assert str(error).endswith("at least 200 problems, of which 20 are shown")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "2:1: a tab stands where YAML takes only spaces"),
        ("model: {onnx: m\nseed: 1\n", "1:8: the `{` that stands here is not closed before line 2"),
        ("a: [1, 2\n", "1:4: the `[` that stands here is not closed before line 2"),
        ("a: 'x\nb: 1\n", "1:4: the text that begins here has no closing quote"),
        ("a: b: c\n", "1:5: a second `:` where no key can stand"),
        ("a: {t: ${X}}\n", "1:9: `${NAME}` inside of { } or [ ] must be quoted"),
        ("a: @x\n", "1:4: found character '@' that cannot start any token"),
        ("a: [1]]\n", "1:7: not YAML: expected <block end>"),
        ('a: "\\q"\n', "1:6: not YAML: found unknown escape character 'q'"),
        ('a: "\\U00110000"\n', "1:1: not YAML"),
        ("a: *b\n", "1:4: the alias `*b` has no anchor `&b` before it"),
        ("a: &b [*b]\n", "1:8: the alias `*b` stands inside of what it names"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document begins here"),
        ("a: \x07\n", "1:4: the character '\\x07' cannot stand in YAML"),
        ("a: \x00\n", "1:1: is not a text file"),
        ("", "1:1: the recipe is empty"),
        ("# nothing\n", "1:1: the recipe is empty"),
        ("- model\n", "1:1: a recipe is a mapping with keys such as `model`; this is a list"),
        ("model.onnx\n", "1:1: a recipe is a mapping with keys such as `model`"),
        ("[" * 100, "1:42: nested deeper than 40 levels"),
        (f"a: {'9' * 5000}\n", "1:4: `999999999999...` has 5000 digits"),
    ],
)
def test_text_that_is_no_recipe(refusal: Refusal, text: str, message: str) -> None:
    assert f"recipe.yaml:{message}" in str(refusal(text))


def test_bytes_that_are_not_text(refusal: Refusal) -> None:
    Path("recipe.yaml").write_bytes(b"model: {onnx: model.onnx}\nname: \xff\xfe\n")
    with pytest.raises(InputError, match=r"recipe\.yaml:2:7: the byte 0xff is not UTF-8"):
        load_recipe("recipe.yaml")


def test_a_file_that_is_too_large(refusal: Refusal) -> None:
    Path("recipe.yaml").write_text("#" * 1_000_001)
    with pytest.raises(InputError, match="has 1,000,001 bytes; a recipe has 1,000,000 at most"):
        load_recipe("recipe.yaml")


def test_an_alias_bomb_is_stopped(refusal: Refusal) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    assert "more than 5,000 values" in str(refusal(bomb))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(InputError, match=r"no such file\n  fix: did you mean `recipe.yaml`"):
        load_recipe(tmp_path / "recipes.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(InputError, match="is not a regular file"):
        load_recipe("/dev/null")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe("recipe\0.yaml")


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("seed: 1\nseed: 2\n", "4:1: the key `seed` stands here twice; first in line 3", "remove"),
        ("outputs: {no: drop}\n", "3:11: the key `no` is not read as text by YAML", '"no":'),
        ("outputs: {on: drop}\n", "3:11: the key `on` is not read as text by YAML", '"on":'),
        ("outputs: {1: drop}\n", "3:11: the key `1` is not read as text by YAML", '"1":'),
        ("outputs: {[a]: drop}\n", "3:11: a key must be text", None),
        (
            "data: {allow_overlap: yes}\n",
            "3:23: `yes` means true or false in some versions of YAML",
            "write true or false",
        ),
        ("seed: 010\n", "3:7: `010` is octal in some versions of YAML", "write 10"),
        ("gate: {speedup: .nan}\n", "3:17: `.nan` is not a finite number", "finite"),
        ("gate: {speedup: 1e999}\n", "3:17: `1e999` is not a finite number", "finite"),
        ("gate: {speedup: -.inf}\n", "3:17: `-.inf` is not a finite number", "finite"),
        ("seed: !!python/object:os.system 1\n", "the tag `!!python/object:os.system`", "remove"),
        ('outputs: {"\\0": drop}\n', "3:11: the key", None),
        ("<<: 3\n", "3:5: `<<` merges mappings, and this is none", None),
    ],
)
def test_yaml_that_is_not_taken(refusal: Refusal, text: str, message: str, fix: str | None) -> None:
    error = refusal(HEAD + text)
    assert message in str(error)
    assert len(error.problems) == 1
    assert fix is None or fix in str(error.fix)


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("sed: 1\n", "3:1: unknown key `sed`", "did you mean `seed`?"),
        ("inputs: {x: {shap: [1]}}\n", "3:14: unknown key `shap` in inputs.x", "`shape`"),
        ("inputs: {x: {shape: 3}}\n", "3:21: inputs.x.shape: expected a list, got `3`", None),
        (
            "inputs: {x: {shape: [1.5]}}\n",
            "3:22: inputs.x.shape[0]: expected a whole number or text, got `1.5`",
            None,
        ),
        ("inputs: {x: {shape: [-1]}}\n", "3:22: inputs.x.shape[0]: `-1` must be at least 0", None),
        ("inputs: {x: {dtype: flot32}}\n", "3:21: inputs.x.dtype: expected", "`float32`"),
        (
            "inputs: {x: {range: [1, 0]}}\n",
            "3:13: inputs.x: range: the first number is greater than the second",
            None,
        ),
        ("inputs: {x: {range: [1]}}\n", "3:21: inputs.x.range: too few entries", None),
        (
            "inputs: {x: {range: [1, 2, 3]}}\n",
            "3:21: inputs.x.range: needs at most 2 entries, got 3",
            None,
        ),
        (
            "inputs: {x: {dtype: int64, range: [0, 1]}}\n",
            "3:13: inputs.x: `range` is for floats; for int64 write `values`",
            None,
        ),
        ("outputs: {x: dorp}\n", "3:14: outputs.x: expected a mapping or `drop`", "`drop`"),
        (
            "dims: {n: {min: 1, typical: 9, max: 4}}\n",
            "3:11: dims.n: min <= typical <= max does not hold for 1, 9, 4",
            None,
        ),
        (
            "dims: {n: {min: 1, typical: 2, max: 4, multiple_of: 2}}\n",
            "3:11: dims.n: min is 1, which is no multiple of 2",
            None,
        ),
        ("dims: {n: {min: 0, typical: 2, max: 4}}\n", "3:17: dims.n.min: `0` must be", None),
        ("seed: 1.0\n", "3:7: seed: expected a whole number, got `1.0`", None),
        ("seed: true\n", "3:7: seed: expected a whole number, got `true`", None),
        ("benchmark: {at_most: 60}\n", "3:22: benchmark.at_most: not a duration", None),
        ("benchmark: {at_most: 60 sec}\n", "3:22: benchmark.at_most: not a duration", None),
        ("benchmark: {at_most: 0 s}\n", "3:22: benchmark.at_most: `0 s` must be", None),
        (
            "benchmark: {until: decide}\n",
            "3:20: benchmark.until: expected `decided` or `time`, got `decide`",
            "did you mean `decided`?",
        ),
        ("gate: {latency_ms: {p95: 3}}\n", "3:21: gate.latency_ms.p95: expected `p50`", None),
        ("gate: {speedup: 0}\n", "3:17: gate.speedup: `0` must be greater than 0", None),
        ("limits: {memory_mb: 4 GB}\n", "3:21: limits.memory_mb: expected a number", None),
        ("targets: []\n", "3:10: targets: expected a mapping from names, got an empty list", None),
        ("targets: {}\n", "3:1: targets names none", "name at least one target"),
        ("targets: {ort: onnxruntime}\n", "3:16: targets.ort: expected a mapping", "runtime:"),
        ("targets: {ort: {threads: 1}}\n", "3:11: missing key `runtime` in targets.ort", None),
        (
            "targets: {ort: {runtime: onnxrutime}}\n",
            "3:26: unknown runtime `onnxrutime` in targets.ort",
            "did you mean `onnxruntime`?",
        ),
        (
            "targets: {ort: {runtime: onnxruntime, thread: 1}}\n",
            "3:39: unknown key `thread` in targets.ort",
            "did you mean `threads`?",
        ),
        ("targets: {../x: {runtime: onnxruntime}}\n", "3:11: the target name `../x`", "letter"),
    ],
)
def test_values_that_do_not_fit(refusal: Refusal, text: str, message: str, fix: str | None) -> None:
    error = refusal(HEAD + text)
    assert str(error).startswith(f"recipe.yaml:{message}")
    assert len(error.problems) == 1
    assert fix is None or fix in str(error.fix)


@pytest.mark.parametrize(
    ("variants", "message", "fix"),
    [
        ("[]", "2:11: variants: expected a mapping from names", None),
        ("{}", "2:1: variants names none", "name at least one variant"),
        ("{a b: []}", "2:12: the variant name `a b` cannot be a folder's name", "A-Z"),
        ("{int8: }", "2:12: variants.int8 is empty", "write []"),
        ("{int8: simplify}", "2:18: variants.int8: expected a list of passes", None),
        ("{int8: [simplfy]}", "2:19: unknown pass `simplfy` in variants.int8[0]", "`simplify`"),
        ("{int8: [{simplfy: {}}]}", "2:20: unknown pass `simplfy`", "`simplify`"),
        ("{int8: [3]}", "2:19: variants.int8[0]: expected a pass, got `3`", "{name: {options}}"),
        ("{int8: [{simplify: , fuse: }]}", "2:19: variants.int8[0]: expected a pass", None),
        (
            "{int8: [{quantize_int8: {range: mse}}]}",
            "2:36: unknown key `range` in variants.int8[0].quantize_int8",
            "did you mean `ranges`?",
        ),
        (
            "{int8: [{quantize_int8: {keep_float: [1]}}]}",
            "2:49: variants.int8[0].quantize_int8.keep_float[0]: expected text, got `1`",
            None,
        ),
        (
            "{int8: {passes: [{simplify: {required: 1}}]}}",
            "2:50: variants.int8.passes[0].simplify.required: expected true or false, got `1`",
            None,
        ),
        ("{int8: {targets: [ort]}}", "2:12: missing key `passes` in variants.int8", None),
        ("{int8: {passes: [], targets: ort}}", "2:40: variants.int8.targets: expected a", None),
        (
            "{int8: {passes: [], targets: [orr]}}",
            "2:41: unknown target `orr` in variants.int8.targets",
            "did you mean `ort`?",
        ),
    ],
)
def test_variants_that_do_not_fit(
    refusal: Refusal, variants: str, message: str, fix: str | None
) -> None:
    error = refusal(f"model: {{onnx: model.onnx}}\nvariants: {variants}\n")
    assert f"recipe.yaml:{message}" in str(error)
    assert fix is None or fix in str(error)


@pytest.mark.parametrize(
    ("data", "message", "fix"),
    [
        ("{npz: x.npz}", "unknown key `npz` in data", "known: calibration"),
        ("{calibration: x.npz}", "data.calibration: unknown kind of data", "npz"),
        ("{calibration: {npy: 1}}", "data.calibration.npy: expected", None),
        ("{calibration: {npx: x}}", "data.calibration: unknown kind of data", "did you mean `np"),
        (
            "{calibration: {npz: calibrations.npz}}",
            "3:27: `calibrations.npz`: there is no such file",
            "did you mean `calibration.npz`?",
        ),
        ("{calibration: {npz: calibration.npz, takes: 4}}", "unknown key `takes` in", "`take`"),
        ("{calibration: {npz: calibration.npz, take: 0}}", "`0` must be at least 1", None),
        (
            "{calibration: {npz: calibration.npz, transform: [nhcw]}}",
            "3:56: data.calibration.transform[0]: unknown transform step",
            "did you mean `nhwc`?",
        ),
        (
            "{calibration: {npz: calibration.npz, transform: [{divid: 2}]}}",
            "3:57: data.calibration.transform[0]: unknown transform step",
            "did you mean `divide`?",
        ),
        (
            "{calibration: {npz: calibration.npz, transform: [{divide: 0}]}}",
            "data.calibration.transform[0]",
            None,
        ),
        (
            '{calibration: {npz: calibration.npz, transform: [{divide: "255"}]}}',
            "3:65: data.calibration.transform[0].divide: expected a number, got `255`",
            None,
        ),
    ],
)
def test_data_that_do_not_fit(refusal: Refusal, data: str, message: str, fix: str | None) -> None:
    error = refusal(f"{HEAD}data: {data}\n")
    assert message in str(error)
    assert len(error.problems) == 1
    assert fix is None or fix in str(error.fix)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {onnx: model.onnx}\nvariants: {a: []}\n", "1:1: unknown key `modle`"),
        ("model: {onnx: model.onnx}\nvariant: {a: []}\n", "2:1: unknown key `variant`"),
        ("model: {onx: model.onnx}\nvariants: {a: []}\n", "1:9: unknown key `onx` in model"),
        (HEAD + "dims: {n: {min: 1, typicl: 1, max: 1}}\n", "3:20: unknown key `typicl` in"),
        ("model: {onnx: model.onnx}\nvariants: {a: {pases: []}}\n", "2:16: unknown key `pases`"),
    ],
)
def test_a_misspelt_key_is_not_missing_too(refusal: Refusal, text: str, message: str) -> None:
    error = refusal(text)
    assert str(error).startswith(f"recipe.yaml:{message}")
    assert len(error.problems) == 1


def test_the_model_must_be_named_and_be_there(refusal: Refusal) -> None:
    assert "1:1: missing key `model`" in str(refusal("variants: {fp32: []}\n"))
    assert "1:1: missing key `variants`" in str(refusal("model: {onnx: model.onnx}\n"))
    error = refusal("model: {onnx: modell.onnx}\nvariants: {fp32: []}\n")
    assert str(error).startswith("recipe.yaml:1:15: `modell.onnx`: there is no such file")
    assert error.fix == "did you mean `model.onnx`?"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 90868376\n"
    Path("far.onnx").write_text(pointer)
    error = refusal("model: {onnx: far.onnx}\nvariants: {fp32: []}\n")
    assert str(error).startswith("recipe.yaml:1:15: `far.onnx`: is a pointer of Git LFS, not the")
    assert error.fix == "fetch the file itself: git lfs pull"
    error = refusal("model: {onnx: .}\nvariants: {fp32: []}\n")
    assert "is a folder, not a file" in str(error)
    error = refusal("model: model.onnx\nvariants: {fp32: []}\n")
    assert "1:8: model: expected a mapping, got `model.onnx`" in str(error)


@pytest.mark.parametrize(
    ("gate", "message", "fix"),
    [
        ("ship: int8/ort", "3:14: gate.ship: `int8/ort` matches no cell", "known: fp32/ort"),
        ("ship: fp32/or", "3:14: gate.ship: `fp32/or` matches no cell", "did you mean `fp32/ort`?"),
        ("ship: bets", "3:14: gate.ship: `bets` names no cell", "did you mean `best`?"),
        ("ship: [best]", "3:15: gate.ship: `best` names no cell", "variant/target"),
        ("ship: [fp32/ort, x/*]", "3:25: gate.ship: `x/*` matches no cell", None),
        ("ship: []", "3:8: gate.ship names no cell", "write `best`"),
        ("drop: {top1: 0.1}", "3:15: gate.drop limits `top1`, which is not under", "add `metrics"),
        ("metrics: {top1: 0.1}", "3:18: gate.metrics limits `top1`, which is not", None),
    ],
)
def test_gates_that_name_what_is_not_there(
    refusal: Refusal, gate: str, message: str, fix: str | None
) -> None:
    error = refusal(f"{HEAD}gate: {{{gate}}}\n")
    assert str(error).startswith(f"recipe.yaml:{message}")
    assert fix is None or fix in str(error.fix)


def test_dims_that_are_slips_of_the_pen(refusal: Refusal) -> None:
    inputs = "inputs: {x: {shape: [batch, 3]}}\n"
    error = refusal(f"{HEAD}{inputs}dims: {{bacth: {{min: 1, typical: 1, max: 4}}}}\n")
    assert str(error).startswith("recipe.yaml:4:8: unknown dim `bacth` in dims")
    assert error.fix == "did you mean `batch`?"
    error = refusal(f"{HEAD}{inputs}benchmark: {{cases: [{{bacth: 1}}]}}\n")
    assert str(error).startswith("recipe.yaml:4:22: unknown dim `bacth` in benchmark.cases")


def test_cases_outside_of_their_dims(refusal: Refusal) -> None:
    dims = "dims: {n: {min: 2, typical: 2, max: 8, multiple_of: 2}}\n"
    error = refusal(f"{HEAD}{dims}benchmark: {{cases: [{{n: 2}}, {{n: 9}}, {{n: 3}}]}}\n")
    assert first_lines(error) == [
        "recipe.yaml:4:33: the case has n: 9, outside of its dims (2 to 8)",
        "recipe.yaml:4:41: the case has n: 3, which is no multiple of 2",
    ]


def test_environment_variables_that_are_not_set(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPTIMC_TEST_MODEL", raising=False)
    error = refusal('model: {onnx: "${OPTIMC_TEST_MODEL}/m.onnx"}\nvariants: {fp32: []}\n')
    assert len(error.problems) == 1
    assert str(error).startswith(
        "recipe.yaml:1:15: the environment variable `OPTIMC_TEST_MODEL` is not set"
    )
    assert "export OPTIMC_TEST_MODEL=" in str(error.fix)


def test_messages_hold_no_control_characters(refusal: Refusal) -> None:
    error = refusal(HEAD + '"\\e[31mred\\n": 1\n')
    assert "unknown key `\\x1b[31mred\\n`" in str(error)
    assert "\x1b" not in str(error)
