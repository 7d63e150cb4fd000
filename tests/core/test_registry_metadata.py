"""Plug-ins whose metadata is damaged: one message that names the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.core import registry
from optimc.core.errors import InputError
from optimc.testing.input_fuzzing import plugged
from optimc.testing.plugins import WRONG_PASS, make_plugin


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[optimc.passes]\nno value\n"])
def test_entry_points_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    entries = {"optimc.passes": {"scale_outputs": "broken:ScaleOutputs"}}
    folder = make_plugin(tmp_path / "plugins", "broken", WRONG_PASS, entries)
    (folder / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(content)
    with plugged(folder), pytest.raises(InputError, match="metadata") as caught:
        registry.pass_names()
    assert caught.value.where is not None
    assert str(folder) in caught.value.where
    assert "reinstall" in str(caught.value.fix)
    assert "simplify" in registry.pass_names()
