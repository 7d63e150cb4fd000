from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from yaml import safe_dump

from optimc.core.errors import InputError
from optimc.pipeline.recipe import Recipe, load_recipe

WHOLE = """
model: {onnx: model.onnx}
outputs: {logits: {}, aux: drop}
inputs: {image: {shape: [batch, 3, 8, 8], dtype: float32, range: [-3, 3]}}
dims: {batch: {min: 1, typical: 1, max: 64}}
seed: 7
data:
  calibration: &source
    npz: calibration.npz
    inputs: {image: images}
    transform: [nchw, {divide: 255}, {normalize: {mean: [1, 2, 3], std: [4.5, 5, 6e-1]}}]
    take: 500
  evaluation: {<<: *source, npz: evaluation.npz, labels: labels}
variants:
  fp32: []
  int8: {passes: [simplify, {quantize_int8: {required: false}}], targets: [ort]}
targets:
  ort: {runtime: onnxruntime, threads: 1}
  trt: {runtime: tensorrt, optional: true}
benchmark: {cases: [{batch: 1}, {batch: 64}], until: time, at_most: 1.5 min}
gate: {ship: [fp32/*, int8/ort], speedup: 1.8, latency_ms: {p99: 100}, size_mb: 50}
limits: {memory_mb: 4000, seconds: 60}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "calibration.npz", "evaluation.npz"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def load(folder: Path, text: str, **options: Any) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load_recipe(path, **options)


def test_a_whole_recipe(folder: Path) -> None:
    recipe = load(folder, WHOLE)
    assert recipe.path == folder / "recipe.yaml"
    assert recipe.folder == folder
    assert recipe.model.onnx == folder / "model.onnx"
    assert recipe.inputs["image"].shape == ("batch", 3, 8, 8)
    assert recipe.inputs["image"].range == (-3.0, 3.0)
    assert recipe.outputs["aux"] == "drop"
    assert recipe.dims["batch"].max == 64
    assert recipe.seed == 7
    assert recipe.data is not None
    assert list(recipe.data.splits) == ["calibration", "evaluation"]
    assert not recipe.data.allow_overlap
    evaluation = recipe.data.splits["evaluation"]
    assert evaluation.files(folder) == [folder / "evaluation.npz"]
    assert evaluation.take == 500
    assert [entry.name for entry in recipe.variants["int8"].passes] == ["simplify", "quantize_int8"]
    assert recipe.cells == (("fp32", "ort"), ("fp32", "trt"), ("int8", "ort"))
    assert recipe.targets["trt"].optional
    assert recipe.benchmark.at_most == 90.0
    assert [dict(case) for case in recipe.benchmark.cases] == [{"batch": 1}, {"batch": 64}]
    assert recipe.gate is not None
    assert recipe.gate.patterns == ("fp32/*", "int8/ort")
    assert recipe.gate.latency_ms == {"p99": 100.0}
    assert recipe.limits.seconds == 60.0


def test_what_may_be_left_out(folder: Path) -> None:
    recipe = load(folder, "model: {onnx: model.onnx}\nvariants: {fp32: [simplify:]}\n")
    assert recipe.data is None
    assert recipe.gate is None
    assert recipe.metrics == {}
    assert recipe.seed == 0
    assert recipe.targets["ort"].runtime == "onnxruntime"
    assert recipe.benchmark.cases == ()
    assert recipe.benchmark.at_most == 60.0
    assert recipe.limits.memory_mb is None


def test_passes_are_required_by_their_kind_unless_the_recipe_says_otherwise(folder: Path) -> None:
    text = """
        model: {onnx: model.onnx}
        variants: {a: [simplify, quantize_int8, {quantize_int8: {required: false}}]}
        """
    passes = load(folder, text).variants["a"].passes
    assert [entry.required for entry in passes] == [False, True, False]


def test_recipes_are_frozen(folder: Path) -> None:
    recipe = load(folder, WHOLE)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


def test_the_digest_is_of_the_meaning(folder: Path) -> None:
    text = "model: {onnx: model.onnx}\nvariants: {fp32: [], opt: [simplify]}\n"
    first = load(folder, text)
    again = load(
        folder, f"# a comment\nseed: 0\ntargets: {{ort: {{runtime: onnxruntime}}}}\n{text}"
    )
    assert first.sha256 != again.sha256
    assert first.digest == again.digest
    for change in ("seed: 1\n", "limits: {seconds: 5}\n", "outputs: {x: drop}\n"):
        assert load(folder, text + change).digest != first.digest
    changed = load(folder, text.replace("[simplify]", "[{simplify: {required: true}}]"))
    assert changed.digest != first.digest


def test_the_digest_does_not_depend_on_the_folder(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    for name in ("model.onnx", "calibration.npz", "evaluation.npz"):
        (other / name).write_bytes(b"y")
    assert load(folder, WHOLE).digest == load(other, WHOLE).digest


def test_environment_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMC_TEST_NAME", "model")
    text = """
        model: {onnx: "${OPTIMC_TEST_NAME}.onnx"}
        variants: {a: [{quantize_int8: {keep_float: ["$${x}", "${OPTIMC_TEST_NAME}"]}}]}
        """
    recipe = load(folder, text)
    assert recipe.model.onnx == folder / "model.onnx"
    options = recipe.variants["a"].passes[0].pass_.options()
    assert options["keep_float"] == ["${x}", "model"]


def test_places_are_kept_for_later_errors(folder: Path) -> None:
    recipe = load(folder, WHOLE, overrides=["dims.batch.max=100"])
    path = folder / "recipe.yaml"
    assert recipe.where("inputs", "image", "shape") == f"{path}:4:18"
    assert recipe.where("inputs", "image", "nothing") == f"{path}:4:10"
    assert recipe.where("dims", "batch", "max") == "--set dims.batch.max=100"
    assert recipe.where("metrics", "top1") == str(path)


def test_user_code_is_refused_in_untrusted_recipes(folder: Path) -> None:
    text = """
        model: {onnx: model.onnx}
        variants: {fp32: []}
        metrics: {mine: {call: "pkg.module:Metric", better: higher}}
        """
    with pytest.raises(InputError, match=r":4:18: `call: pkg.module:Metric` runs code") as caught:
        load(folder, text, untrusted=True)
    assert "--untrusted" in str(caught.value)


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; import optimc.pipeline.recipe;"
        "heavy = ('numpy', 'onnx', 'onnx_ir', 'scipy', 'torch', 'onnxruntime', 'openvino');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


WORDS = st.sampled_from(
    """
    model onnx inputs shape dtype range values dims batch min typical max seed data calibration
    evaluation npz transform nchw divide normalize mean std take labels metrics top1 variants int8
    passes targets simplify quantize_int8 ranges required ort runtime onnxruntime threads verify
    benchmark cases until at_most gate ship best drop speedup latency_ms limits outputs hf call
    """.split()  # noqa: SIM905 (a list of this length is unreadable)
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
KEYS = WORDS | st.text(max_size=4) | st.integers() | st.booleans()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def load_or_refuse(folder: Path, content: bytes, overrides: list[str]) -> None:
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    try:
        recipe = load_recipe(path, overrides)
    except InputError:
        return
    assert recipe.digest


@SETTINGS
@given(content=st.binary() | st.text().map(str.encode))
def test_any_file_gives_a_recipe_or_an_input_error(folder: Path, content: bytes) -> None:
    load_or_refuse(folder, content, [])


@SETTINGS
@given(document=st.dictionaries(WORDS, VALUES, max_size=7))
def test_any_document_gives_a_recipe_or_an_input_error(
    folder: Path, document: dict[str, Any]
) -> None:
    load_or_refuse(folder, safe_dump(document, allow_unicode=True).encode(), [])


@SETTINGS
@given(place=st.integers(0, len(WHOLE)), length=st.integers(0, 9), text=st.text(max_size=5))
def test_any_change_of_a_recipe_gives_a_recipe_or_an_input_error(
    folder: Path, place: int, length: int, text: str
) -> None:
    load_or_refuse(folder, (WHOLE[:place] + text + WHOLE[place + length :]).encode(), [])


ADDRESSES = st.lists(WORDS | st.text(max_size=3) | st.just("0"), max_size=5).map(".".join)
OVERRIDES = st.tuples(
    ADDRESSES, VALUES.map(lambda value: safe_dump(value, default_flow_style=True))
).map("=".join)


@SETTINGS
@given(overrides=st.lists(OVERRIDES | st.text(max_size=20), min_size=1, max_size=2))
def test_any_override_gives_a_recipe_or_an_input_error(folder: Path, overrides: list[str]) -> None:
    load_or_refuse(folder, WHOLE.encode(), overrides)
