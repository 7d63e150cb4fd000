"""From arguments to an exit code: the one place where errors become messages."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from types import FrameType

from optimc.core import interruption
from optimc.core.errors import ExitCode, OptimcError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TIDYING_S = 5.0
_AGAIN_S = 0.02
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_TRACE_VARIABLE = "OPTIMC_TRACEBACK"


def run(arguments: list[str]) -> int:
    """Runs the command that `arguments` name and returns the exit code of the process."""
    _listen()
    try:
        return _invoke(arguments)
    except OptimcError as error:
        _say(f"error: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        for number in (
            *_SIGNALS,
            signal.SIGALRM,
        ):  # nor may more of them kill the interpreter while it ends
            signal.signal(number, signal.SIG_IGN)
        _say("interrupted: nothing half-written stays; the same command goes on from what is done")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`| head`). Nothing to say to it, but what it asked for is not done.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.INTERRUPTED)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            return _bug(error)
        where = error.filename or "the output, or the folder for temporary files"
        _say(f"error: {where}: {error.strerror}\n  fix: free some space, or set TMPDIR")
        return int(ExitCode.INPUT)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 (panics of native code are no Exception)
        return _bug(error)


def _invoke(arguments: list[str]) -> int:
    from typer.exceptions import TyperException

    from optimc.cli.app import command

    try:
        code = int(command().main(arguments, prog_name="optimc", standalone_mode=False) or 0)
    except TyperException as error:
        error.show()  # type: ignore[attr-defined]
        return int(ExitCode.INPUT)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt  # typer turns Ctrl-C into an exit code
    return code


def _bug(error: BaseException) -> int:
    import traceback

    if os.environ.get(_TRACE_VARIABLE):
        traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    _say(
        f"bug in optimc: {type(error).__name__}: {error} ({last.filename}:{last.lineno})\n"
        f"  fix: please report it with the recipe; {_TRACE_VARIABLE}=1 shows the whole trace"
    )
    return int(ExitCode.BUG)


class _Interrupter:
    """Ends a build: workers are closed, temporary files removed.

    Signals that follow at once do not cut the tidying short; a patient second one does.
    """

    def __init__(self) -> None:
        self._first = -_TIDYING_S

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            # An exception in the middle of a native module's import can crash the interpreter.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        now = time.monotonic()
        if now - self._first >= _TIDYING_S:
            self._first = now
            interruption.note()
            raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether the main thread is importing a module."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _listen() -> None:
    """SIGTERM and the end of the terminal end a build as Ctrl-C does."""
    interruption.note(False)
    interrupter = _Interrupter()
    signal.signal(signal.SIGALRM, interrupter)  # a signal that came during an import, again
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and `&` set it
            signal.signal(number, interrupter)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens: the exit code says it
        print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """`text` with control characters escaped: names from files must not steer the terminal.

    Nor a build server: names may hold line ends, and a line that begins with `::` is a command.
    """
    from optimc.report.escape import log_line, log_text

    return "\n".join(
        log_line("\t".join(log_text(part) for part in line.split("\t")))
        for line in text.split("\n")
    )
