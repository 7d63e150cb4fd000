from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimc.core import interruption
from optimc.core.errors import CellError
from optimc.core.passes import PassContext, RewriteLog
from optimc.passes.simplify import Simplify
from optimc.pipeline.manager import _run_pass
from optimc.testing.graphs import convolutions


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    interruption.note(False)


@pytest.mark.parametrize(("asked", "raised"), [(True, KeyboardInterrupt), (False, CellError)])
def test_ctrl_c_that_a_library_turns_into_another_error_still_stops_the_build(
    asked: bool, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def as_numpy_does(*arguments: Any) -> Any:
        raise TypeError("expected a sequence of integers")

    monkeypatch.setattr(Simplify, "run", as_numpy_does)
    interruption.note(asked)
    context = PassContext(reads=frozenset(), log=RewriteLog(None), seed=0, workspace=tmp_path)
    with pytest.raises(raised):
        _run_pass(Simplify(), convolutions(), context)
