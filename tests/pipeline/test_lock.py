"""The lock: written beside the recipe, and every difference refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.lock import lock_path, read_lock, refuse_differences, write_lock

CONTENT = {
    "recipe": "a" * 64,
    "tools": {"onnx": "1.0"},
    "cells": {"int8/ort": {"engine": "b" * 64}},
}


def test_a_lock_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = lock_path(tmp_path / "recipe.yaml")
    write_lock(path, CONTENT)
    assert path.name == "recipe.lock"
    assert read_lock(path) == {"schema": 1, **CONTENT}


def test_a_lock_that_says_the_same_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "recipe.lock"
    write_lock(path, CONTENT)
    before = path.stat().st_mtime_ns
    write_lock(path, dict(reversed(CONTENT.items())))
    assert path.stat().st_mtime_ns == before


def test_differences_are_named(tmp_path: Path) -> None:
    now = {**CONTENT, "tools": {"onnx": "2.0"}, "cells": {"int8/ov": {"engine": "c" * 64}}}
    with pytest.raises(InputError) as caught:
        refuse_differences(CONTENT, now, tmp_path / "recipe.lock")
    text = str(caught.value)
    assert "tools.onnx: locked 1.0, now 2.0" in text
    assert "cells.int8/ort.engine: locked" in text
    assert "cells.int8/ov.engine: locked nothing" in text
    assert "recipe:" not in text.replace("recipe.lock:", "")


def test_what_is_the_same_is_not_refused(tmp_path: Path) -> None:
    refuse_differences(CONTENT, CONTENT, tmp_path / "recipe.lock")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_a_broken_lock_is_one_clear_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.lock"
    path.write_text(text)
    with pytest.raises(InputError, match="build once without --locked"):
        read_lock(path)


def test_a_missing_lock_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no lock"):
        read_lock(tmp_path / "recipe.lock")
