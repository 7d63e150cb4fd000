"""A sentence encoder cut by a third in every direction, and what distillation gives back.

    python bench/distill_encoder.py --model FOLDER [--sentences FILE] [--epochs 3] [--take 40000]
        [--layers 2] [--width 0.667] [--learning-rate 5e-4] [--precision bfloat16]
        [--at-most "30 min"] [--threads N] [--alike] [--hints] [--last] [--work FOLDER]

Of all-MiniLM-L6-v2 (a Hugging Face folder) two of six layers, a third of the attention heads and a
third of the hidden units go, which leaves 0.44 of the MACs (`--layers 1 --width 0.8`: a third of
the whole goes); what is left learns the whole model's embeddings of sentences without labels, and
is judged by Spearman's correlation on `sts_eval.tsv`, which no choice has seen. The layers to go
and the best epoch are chosen on pairs of `sts_calib.tsv`, which are of one kind (tweets about
news): `--last` keeps the last epoch instead. `--sentences` is a text file with one sentence a line;
without it they are taken from the documentation strings of the Python packages that are installed
here: no domain data, which makes it the harder. Prints MACs, speed-up over the source on ONNX
Runtime FP32 (one thread, 27 tokens) and the drop with their 95 % intervals. Needs the shared data
(``../shared``, or `OPTIMC_SHARED`).
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pruning import built, course_of, figures, line

ROOT = Path(__file__).resolve().parent.parent
WORDS = range(5, 41)
LONGEST_FILE = 300_000
LAST = "model.encoder.layer.5"


def documentation() -> Iterator[str]:
    """The documentation strings of all modules of the installed packages, in a fixed order."""
    for root in dict.fromkeys(sysconfig.get_paths()[name] for name in ("stdlib", "purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            if path.stat().st_size > LONGEST_FILE:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # escapes that a later Python will refuse
                try:
                    tree = ast.parse(path.read_bytes())
                except (SyntaxError, ValueError):
                    continue  # templates and tests of parsers
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield ast.get_docstring(node) or ""


def sentences(texts: Iterator[str], count: int) -> list[str]:
    """`count` different sentences of 5 to 40 words, in a seeded order."""
    found: dict[str, None] = {}
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                letters = sum(map(str.isalpha, sentence)) + sentence.count(" ")
                if len(sentence.split()) in WORDS and letters > 0.9 * len(sentence):
                    found[sentence] = None
    chosen = list(found)
    random.Random(0).shuffle(chosen)
    return chosen[:count]


def recipe(options: argparse.Namespace, shared: Path) -> dict[str, Any]:
    """The whole course as one variant, float and with dynamic INT8 after it."""
    read = {"tokenizer": str(options.model), "padding": [16, 32, 64]}
    pairs = {**read, "pairs": [1, 2], "labels": 0}
    losses: list[dict[str, Any]] = [{"embedding": {"kind": "cosine"}}]
    if options.alike:
        losses.append({"call": "alike:loss", "weight": 5.0})
    if options.hints:
        losses.append({"features": {"pairs": {LAST: LAST}, "weight": 1.0}})
    course = [
        {"prune_depth": {"blocks": options.layers, "rerank": False}},
        {"prune_width": {"ratio": options.width, "cut": ["heads", "hidden"]}},
        {
            "train": {
                "optimizer": "adamw",
                "learning_rate": options.learning_rate,
                "weight_decay": 0.01,
                "warm_up": 0.1,
                "clip_norm": 1.0,
                "batch": 64,
                "epochs": options.epochs,
                "at_most": options.at_most,
                "threads": options.threads,
                "keep": "last" if options.last else "best",
                "precision": options.precision,
                "distill": {"losses": losses},
            }
        },
        "simplify",
        "fuse",
    ]
    return {
        "model": {
            "hf": str(options.model),
            "task": "embedding",
            "pooling": "mean",
            "normalize": True,
        },
        "dims": {
            "batch": {"min": 1, "typical": 1, "max": 64},
            "length": {"min": 2, "typical": 27, "max": 128},
        },
        "data": {
            "training": {**read, "tsv": "sentences.tsv", "text": 0},
            "tuning": {**pairs, "tsv": str(shared / "data" / "sts_calib.tsv")},
            "evaluation": {
                **pairs,
                "tsv": str(shared / "data" / "sts_eval.tsv"),
                "padding": [16, 32, 64, 128],
            },
        },
        "metrics": {"spearman": {}},
        "variants": {"cut_float": course, "cut_dynamic": [*course, "quantize_dynamic"]},
        "targets": {"ort": {"runtime": "onnxruntime", "threads": 1}},
        "benchmark": {"cases": [{"batch": 1, "length": 27}], "at_most": "20 s"},
        "gate": {"ship": "best", "drop": {"spearman": 1.0}},  # figures are wanted, no verdict
    }


ALIKE = '''"""How alike the sentences of a batch are to one another, as the teacher sees it."""


def loss(step):
    """The mean squared difference of the cosines of all pairs of a batch."""
    (student,), (teacher,) = step.student.values(), step.teacher.values()
    return (student @ student.T - teacher @ teacher.T).square().mean()
'''


def main() -> int:
    """Builds and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="the Hugging Face folder")
    parser.add_argument("--sentences", type=Path, help="one sentence a line")
    parser.add_argument("--take", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--at-most", default="30 min")
    parser.add_argument("--threads", type=int, help="of the training; else all")
    parser.add_argument(
        "--last", action="store_true", help="keep the last epoch, whatever the tuning pairs say"
    )
    parser.add_argument("--layers", type=int, default=2, help="how many go")
    parser.add_argument("--width", type=float, default=0.667, help="share of heads and units left")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--hints", action="store_true", help="also the words' last hidden states")
    parser.add_argument("--alike", action="store_true", help="also compare pairs within a batch")
    parser.add_argument("--work", type=Path, help="kept between runs: the cache and the build")
    options = parser.parse_args()
    options.model = options.model.resolve()
    shared = Path(os.environ.get("OPTIMC_SHARED", ROOT.parent / "shared")).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        file = work / "sentences.tsv"
        if options.sentences is not None:
            texts = iter(options.sentences.read_text("utf-8").splitlines())
        else:
            texts = documentation()
        if not file.exists():
            chosen = sentences(texts, options.take)
            file.write_text("".join(one.replace("\t", " ") + "\n" for one in chosen), "utf-8")
        (work / "alike.py").write_text(ALIKE)
        made = yaml.safe_dump(recipe(options, shared), sort_keys=False)
        (work / "recipe.yaml").write_text(made)
        report = built(work, {"OPTIMC_CACHE_DIR": str(work / "cache")})
    for row in figures("a third", report, "spearman"):
        print(line(row))
    print("\n".join(course_of(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
