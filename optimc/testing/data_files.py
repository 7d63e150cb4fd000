"""Small data files for tests: a tokenizer, rows of text, images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

WORDS = ("a", "black", "cat", "dog", "runs", "sleeps", "the", "white")
PAD, UNKNOWN, START, END = 0, 1, 2, 3
"""The ids of the special tokens; the words follow in their order."""


def write_tokenizer(folder: Path, *, pad: bool = True, max_length: int | None = 16) -> Path:
    """A folder with a `tokenizer.json` that knows `WORDS`: START words END (words END).

    Without `pad` and `max_length` the file says nothing of either.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", START), ("[SEP]", END)],
    )
    if max_length is not None:
        made.enable_truncation(max_length)
    if pad:
        made.enable_padding(pad_id=PAD, pad_token="[PAD]", length=16)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def ids_of(text: str) -> list[int]:
    """The ids that the tokenizer gives a text, special tokens included."""
    return [START, *(4 + WORDS.index(word) for word in text.split()), END]


def write_lines(path: Path, *lines: str) -> Path:
    """A text file in UTF-8 with these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """An image of seeded noise, `size` is (height, width); PNG by its suffix keeps every pixel."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_images(folder: Path, sizes: Sequence[tuple[int, int]], classes: Sequence[str]) -> Path:
    """`<folder>/<class>/<number>.png` for each size, classes in turn."""
    for number, size in enumerate(sizes):
        name = classes[number % len(classes)]
        write_image(folder / name / f"{number:03}.png", size, number)
    return folder
