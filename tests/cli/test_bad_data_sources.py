"""Bad text, images and functions through the command line: one message, exit 2, no traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from optimc.cli import main
from optimc.testing.bad_inputs import run_here
from optimc.testing.data_files import write_images, write_lines, write_tokenizer
from optimc.testing.data_models import write_image_model, write_sentence_model

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
pytest.importorskip("PIL", reason="the extra `images` is not installed")

TEXT = """model: {onnx: text.onnx}
dims: {length: {min: 3, typical: 8, max: 16}}
data: {evaluation: {csv: data.csv, tokenizer: tok, text: review, labels: mood, label_map: &map}}
metrics: {top1: {}}
variants: {fp32: []}
"""
IMAGES = """model: {onnx: images.onnx}
dims: {height: {min: 8, typical: 8, max: 16}, width: {min: 8, typical: 8, max: 16}}
data: {evaluation: {images: val, inputs: {x: image}, labels: classes, transform: &steps}}
metrics: {top1: {}}
variants: {fp32: []}
"""
CALL = """model: {onnx: images.onnx}
dims: {height: {min: 8, typical: 8, max: 16}, width: {min: 8, typical: 8, max: 16}}
data: {evaluation: {call: "own_bad_samples:samples"}}
metrics: {top1: {}}
variants: {fp32: []}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tok")
    write_sentence_model(tmp_path / "text.onnx")
    write_image_model(tmp_path / "images.onnx")
    write_lines(tmp_path / "data.csv", "review,mood", "the cat,good", "a dog runs,bad")
    write_images(tmp_path / "val", [(8, 8), (8, 16), (16, 8)], ["a", "b"])
    return tmp_path


def check(folder: Path, recipe: str, command: str = "check recipe.yaml") -> tuple[int, str]:
    recipe = recipe.replace("&map", "{bad: 0, good: 1}").replace("&steps", "[nchw, {divide: 255}]")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    done = run_here(main, command, folder)
    assert not done.traceback, done.err
    return done.code, done.err


@pytest.mark.parametrize("recipe", [TEXT, IMAGES])
def test_their_base_is_fine(folder: Path, recipe: str) -> None:
    code, said = check(folder, recipe)
    assert code == 0, said


def _bytes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:60])


def _deep(name: str) -> Callable[[Path], object]:
    """A measurement: grey with 16 bits, which eight bits would cut off at 255."""

    def write(folder: Path) -> None:
        import numpy as np
        from PIL import Image

        Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(folder / name)

    return write


def _nameless(folder: Path) -> None:
    """Takes a special token's definition away, which makes the library's native code panic."""
    file = folder / "tok" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    del tokenizer["post_processor"]["special_tokens"]["[CLS]"]
    file.write_text(json.dumps(tokenizer))


CASES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "no file": (
        TEXT.replace("data.csv", "dat.csv"),
        lambda folder: None,
        ("recipe.yaml:3:26: `dat.csv`: there is no such file", "did you mean `data.csv`?"),
    ),
    "no tokenizer": (
        TEXT.replace("tok,", "tokk,"),
        lambda folder: None,
        ("recipe.yaml:3:", "there is no such file"),
    ),
    "broken tokenizer": (
        TEXT,
        _bytes("tok/tokenizer.json", b'{"model": 3}'),
        ("tokenizer.json: is not a tokenizer", "fix: name the tokenizer.json"),
    ),
    "tokenizer that panics": (
        TEXT,
        _nameless,
        ("data.csv:2 to", "the tokenizer refuses a text", "fix: "),
    ),
    "column": (
        TEXT.replace("text: review", "text: reviews"),
        lambda folder: None,
        ("data.csv:1: unknown column `reviews`", "did you mean `review`?"),
    ),
    "label": (
        TEXT,
        _bytes("data.csv", b"review,mood\na cat,good\na dog,godo\n"),
        ("data.csv:3: unknown label `godo`", "did you mean `good`?"),
    ),
    "invalid UTF-8": (
        TEXT,
        _bytes("data.csv", b"review,mood\na \xe9,good\n"),
        ("data.csv:2: the byte 0xe9 is not UTF-8", "save the file as UTF-8"),
    ),
    "empty file": (TEXT, _bytes("data.csv", b""), ("data.csv: holds no rows", "fix: name a file")),
    "missing column": (
        TEXT,
        _bytes("data.csv", b"review,mood\na cat,good\na dog\n"),
        ("data.csv:3: has 1 columns; column `mood` is missing", "fix: complete the line"),
    ),
    "broken line": (
        TEXT.replace("csv: data.csv", "jsonl: data.jsonl"),
        _bytes("data.jsonl", b'{"review": "a cat", "mood": "good"}\n{"review": \n'),
        ("data.jsonl:2:12: is not JSON", "fix: write one JSON object"),
    ),
    "half of a character": (
        TEXT.replace("csv: data.csv", "jsonl: data.jsonl"),
        _bytes("data.jsonl", b'{"review": "a \\ud83d", "mood": "good"}\n'),
        ("data.jsonl:1: the text holds half of a surrogate pair", "as whole characters"),
    ),
    "no text": (
        TEXT.replace("csv: data.csv", "jsonl: data.jsonl"),
        _bytes("data.jsonl", b'{"review": null, "mood": "good"}\n'),
        ("data.jsonl:1: holds nothing (null) where text should stand", "or remove it"),
    ),
    "fields below the text": (
        TEXT.replace("csv: data.csv", "jsonl: data.jsonl"),
        _bytes("data.jsonl", b'{"review": {"en": "a cat"}, "mood": "good"}\n'),
        ("holds an object with fields of its own where text should stand", "name a column"),
    ),
    "no label": (
        TEXT,
        _bytes("data.csv", b"review,mood\na cat,good\na dog,\n"),
        ("data.csv:3: has no label", "give each sample a label"),
    ),
    "too long": (
        TEXT.replace("max: 16", "max: 4"),
        lambda folder: None,
        ("recipe.yaml:2:", "min <= typical <= max"),
    ),
    "length": (
        TEXT.replace("typical: 8, max: 16", "typical: 3, max: 4"),
        lambda folder: None,
        ("the dim `length` of the input `input_ids` is 5, outside of 3 to 4", "`dims.length`"),
    ),
    "key": (
        TEXT.replace("tokenizer: tok", "tokeniser: tok"),
        lambda folder: None,
        ("recipe.yaml:3:", "unknown key `tokeniser`", "did you mean `tokenizer`?"),
    ),
    "no folder": (
        IMAGES.replace("images: val", "images: vall"),
        lambda folder: None,
        ("recipe.yaml:3:29: `vall`: there is no such folder", "did you mean `val`?"),
    ),
    "file for a folder": (
        IMAGES.replace("images: val", "images: data.csv"),
        lambda folder: None,
        ("`data.csv`: is a file, not a folder", "fix:"),
    ),
    "image of another kind": (
        IMAGES,
        _bytes("val/a/000.png", b"hello"),
        ("000.png: cannot be read as an image: cannot identify", "fix: remove it"),
    ),
    "image of 16 bits": (
        IMAGES,
        _deep("val/a/000.png"),
        ("000.png: holds pixels of more than 8 bits (I;16)", "save it with 8 bits"),
    ),
    "class without images": (
        IMAGES,
        lambda folder: (folder / "val" / "aa").mkdir(),
        ("val/aa: the class folder holds no image", "label_map"),
    ),
    "two labels of an image": (
        IMAGES.replace("classes", "{csv: l.csv, image: file, label: c}"),
        _bytes("l.csv", b"file,c\na/000.png,0\na/000.png,1\n"),
        ("l.csv:3: the image `a/000.png` has the label 1, and 0 in ", "keep one label"),
    ),
    "grey": (
        IMAGES.replace("labels", "color: gray, labels"),
        lambda folder: None,
        ("gets samples of shape [1, 8, 8]", "or `color`"),
    ),
    "size": (
        IMAGES.replace("max: 16}, width", "max: 8}, width"),
        lambda folder: None,
        ("the dim `height` of the input `x` is 16, outside of 8 to 8", "`dims.height`"),
    ),
    "step in the wrong place": (
        IMAGES.replace("&steps", "[nchw, {center_crop: 8}]"),
        lambda folder: None,
        ("`center_crop` needs pixels", "before `nchw`"),
    ),
    "broken annotations": (
        IMAGES.replace("classes", "{coco: coco.json}"),
        _bytes("coco.json", json.dumps({"images": [], "categories": []}).encode()),
        ("coco.json: has no list `annotations`", "fix:"),
    ),
    "boxes for a classifier": (
        IMAGES.replace("classes", "{coco: coco.json}"),
        _bytes(
            "coco.json",
            json.dumps(
                {"images": [{"id": 1, "file_name": "a/000.png"}], "categories": [],
                 "annotations": []}
            ).encode(),
        ),
        ("the metric `top1` takes class numbers", "fix: name labels with one number"),
    ),
    "function that is not there": (CALL, lambda folder: None, ("cannot be imported", "fix: put")),
    "function without labels": (
        CALL,
        _bytes(
            "own_bad_samples.py",
            b"import numpy as np\ndef samples():\n"
            b"    yield {'x': np.zeros((3, 8, 8), np.float32)}\n",
        ),
        ("the metric `top1` needs labels", "fix:"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_source_is_one_message(name: str, folder: Path) -> None:
    recipe, spoil, says = CASES[name]
    spoil(folder)
    code, said = check(folder, recipe)
    assert code == 2, said
    assert len(re.findall(r"^error: ", said, re.MULTILINE)) == 1, said
    for fragment in says:
        assert fragment in said, said


def test_an_image_that_is_cut_off_ends_a_build_in_one_message(folder: Path) -> None:
    """Its header is whole, so that `check` cannot know."""
    path = folder / "val" / "a" / "000.png"
    path.write_bytes(path.read_bytes()[:100])
    code, said = check(folder, IMAGES, "build recipe.yaml -o out")
    assert code == 2, said
    assert "000.png: cannot be read as an image" in said


def test_untrusted_refuses_functions(folder: Path) -> None:
    (folder / "own_bad_samples.py").write_text("raise SystemExit('run')\n")
    code, said = check(folder, CALL, "check --untrusted recipe.yaml")
    assert code == 2
    assert "`call: own_bad_samples:samples` runs code, which --untrusted refuses" in said


_MANY = """
import numpy as np

def samples():
    for number in range(%d):
        image = np.zeros((3, 8, 8), np.float32)
        image[0, 0, 0] = number
        yield {"x": image}, %s
"""


def test_check_looks_at_a_functions_first_samples_and_says_so(folder: Path) -> None:
    (folder / "own_many_samples.py").write_text(_MANY % (2_100, "number % 4"))
    recipe = CALL.replace("own_bad_samples", "own_many_samples")
    code, said = check(folder, recipe)
    assert code == 0, said
    assert "data.evaluation: the first 2,000 samples of `own_many_samples:samples`" in said
    (folder / "own_few_samples.py").write_text(_MANY % (2_000, "number % 4"))
    code, said = check(folder, CALL.replace("own_bad_samples", "own_few_samples"))
    assert (code, "first 2,000" in said) == (0, False), said
