from __future__ import annotations

from pathlib import Path

import pytest

from optimc.pipeline.recipe import Recipe, RecipeError, load_recipe

TEXT = """
model: {onnx: model.onnx}
inputs: {input.1: {range: [0, 1]}}
data: {calibration: {npz: model.onnx, transform: [nchw, {divide: 255}]}}
variants:
  short: [simplify, quantize_int8]
  long: {passes: [simplify, {quantize_int8: {keep_float: [a]}}]}
  twice: [simplify, quantize_int8, simplify]
benchmark: {cases: [{batch: 1}, {batch: 2}]}
gate: {ship: best}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"x")
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return path


def options(recipe: Recipe, variant: str, index: int) -> dict[str, object]:
    return recipe.variants[variant].passes[index].pass_.options()


@pytest.mark.parametrize(
    "override",
    [
        "variants.short.quantize_int8.keep_float=[x]",
        "variants.short.quantize_int8={keep_float: [x]}",
        "variants.short.1.quantize_int8.keep_float=[x]",
        "variants.long.quantize_int8.keep_float=[x]",
        "variants.long.passes.quantize_int8.keep_float=[x]",
        "variants.long.passes.1={quantize_int8: {keep_float: [x]}}",
        "variants.twice.quantize_int8.keep_float=[x]",
    ],
)
def test_an_option_of_a_pass(path: Path, override: str) -> None:
    variant = override.split(".")[1]
    before = load_recipe(path)
    recipe = load_recipe(path, [override])
    assert options(recipe, variant, 1)["keep_float"] == ["x"]
    assert options(recipe, variant, 0) == options(before, variant, 0)
    others = [name for name in recipe.variants if name != variant]
    assert all(recipe.variants[name] == before.variants[name] for name in others)
    assert recipe.sha256 == before.sha256
    assert recipe.digest != before.digest


def test_sections_that_are_not_in_the_file_are_made(path: Path) -> None:
    overrides = ["seed=1", "gate.speedup=1.5", "dims.batch={min: 1, typical: 2, max: 4}"]
    recipe = load_recipe(path, [*overrides, "targets.ort.threads=2", "limits.seconds=5"])
    assert recipe.seed == 1
    assert recipe.gate is not None
    assert recipe.gate.speedup == 1.5
    assert recipe.dims["batch"].typical == 2
    assert recipe.limits.seconds == 5
    assert list(recipe.targets) == ["ort"]
    assert recipe.targets["ort"].model_dump()["threads"] == 2


def test_entries_of_lists_and_keys_with_dots(path: Path) -> None:
    overrides = ['inputs."input.1".range=[-1, 1]', "benchmark.cases.1.batch=8"]
    recipe = load_recipe(path, [*overrides, "data.calibration.transform.divide=2"])
    assert recipe.inputs["input.1"].range == (-1, 1)
    assert recipe.benchmark.cases[1]["batch"] == 8
    assert recipe.data is not None
    steps = recipe.data.splits["calibration"].transform
    assert steps[1].model_dump() == {"divide": 2.0}


def test_the_last_override_wins(path: Path) -> None:
    assert load_recipe(path, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("seed", "is not of the form `address=value`", "for example --set"),
        ("=1", "is not of the form `address=value`", None),
        ("gate..drop=1", "is not of the form `address=value`", None),
        ('inputs."x=1', "is not of the form `address=value`", None),
        ("seed=x", "seed: expected a whole number, got `x`", None),
        ("seed=[1", "the value: the `[` that stands here is not closed", None),
        ("seed=no", "the value: `no` means true or false in some versions", "write true or false"),
        ("sed=1", "unknown key `sed`", "did you mean `seed`?"),
        ("gate.speed=1", "unknown key `speed` in gate", "did you mean `speedup`?"),
        ("seed.x=1", "seed: expected a whole number, got a mapping", None),
        ("model.onnx.x=1", "model.onnx is `model.onnx`: nothing can be set inside of it", None),
        ("model.onnx=other.onnx", "`other.onnx`: there is no such file", None),
        (
            "variants.shor.simplify.required=true",
            "unknown variant `shor` in variants",
            "did you mean `short`? known: short, long, twice",
        ),
        (
            "variants.short.quantise_int8.ranges=mse",
            "unknown entry `quantise_int8` in variants.short",
            "did you mean `quantize_int8`? known: simplify, quantize_int8",
        ),
        (
            "variants.short.quantize_int8.range=mse",
            "unknown key `range` in variants.short[1].quantize_int8",
            "did you mean `ranges`?",
        ),
        (
            "variants.twice.simplify.required=true",
            "variants.twice has 2 entries named `simplify`",
            "write the number 0 or 2",
        ),
        ("variants.short.7={}", "variants.short has no entry 7: it has 2", None),
        ("targets.orr.threads=1", "unknown target `orr` in targets", "did you mean `ort`?"),
        ("targets.ort.thread=1", "unknown key `thread` in targets.ort", "`threads`"),
    ],
)
def test_overrides_that_do_not_fit(path: Path, override: str, what: str, fix: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert str(caught.value).startswith(f"--set {override}: ")
    assert what in caught.value.what
    assert fix is None or fix in str(caught.value.fix)
    assert len(caught.value.problems) == 1
