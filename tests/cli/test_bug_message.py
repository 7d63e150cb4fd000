"""What nobody foresaw: one message and exit code 1, panics of native code as well."""

from __future__ import annotations

import pytest

import optimc.cli.run as cli_run
from optimc.core.errors import ExitCode


class PanicException(BaseException):
    """As libraries in Rust raise it: no Exception."""


@pytest.mark.parametrize("error", [PanicException("no entry found"), ValueError("odd")])
def test_it_is_one_message(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli_run, "_invoke", broken)
    monkeypatch.setattr(cli_run, "_listen", lambda: None)
    monkeypatch.delenv("OPTIMC_TRACEBACK", raising=False)
    assert cli_run.run(["check"]) == ExitCode.BUG
    said = capsys.readouterr().err
    assert f"bug in optimc: {type(error).__name__}: {error}" in said
    assert "OPTIMC_TRACEBACK=1" in said
    assert "Traceback" not in said
