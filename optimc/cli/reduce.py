"""`optimc reduce`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.cli.display import Display
from optimc.cli.run import printable
from optimc.core.errors import InputError

if TYPE_CHECKING:
    from optimc.core.targets import TargetSpec
    from optimc.core.worker import Limits
    from optimc.pipeline.reduce.checks import Check
    from optimc.pipeline.values import RuntimeName

_DEFAULT_RUNTIME_ERROR = 1e-4


def run_reduce(
    model: Path,
    *,
    command: str | None,
    saying: str | None,
    runtime: RuntimeName | None,
    pass_name: str | None,
    max_error: float | None,
    inputs: Path | None,
    seed: int,
    out: Path | None,
    time_limit: float | None,
    json_output: bool,
) -> int:
    """Reduces `model`, and says what is left and where."""
    _check_options(command, saying, runtime, pass_name, max_error)
    from optimc.pipeline.reduce.job import Job, worker_limits
    from optimc.pipeline.reduce.reproduction import by_command, by_pass, by_runtime
    from optimc.pipeline.user_command import UserCommand

    limits = worker_limits()
    folder = out or Path("optimc-reduced") / model.stem
    with Display() as display, tempfile.TemporaryDirectory(prefix="optimc-reduce-") as name:
        workspace = Path(name)
        check: Check
        if command is not None:
            from optimc.pipeline.reduce.checks import CommandCheck

            parsed = UserCommand.parse(command, saying=saying)
            check, how = CommandCheck(parsed), by_command(parsed.words)
        elif pass_name is not None:
            check = _pass_check(pass_name, runtime, max_error, workspace, limits)
            how = by_pass(pass_name, runtime or "onnxruntime", check.bound)  # type: ignore[attr-defined]
        else:
            from optimc.pipeline.reduce.checks import RuntimeCheck

            assert runtime is not None
            bound = _DEFAULT_RUNTIME_ERROR if max_error is None else max_error
            path = workspace / "model.onnx"
            check, how = RuntimeCheck(runtime, path, bound, limits), by_runtime(runtime, bound)
        job = Job(model, inputs, seed, folder, workspace, limits, time_limit, display)
        record = job.run(check, how)
    if json_output:
        print(json.dumps(record, indent=2))
    else:
        print(printable("\n".join(_lines(record, folder))))
    return 0


def _check_options(
    command: str | None,
    saying: str | None,
    runtime: str | None,
    pass_name: str | None,
    max_error: float | None,
) -> None:
    if command is None and runtime is None and pass_name is None:
        raise InputError(
            "nothing says what the fault is",
            fix='add --command "python check.py {}", --runtime openvino, or --pass NAME',
        )
    if command is not None and (runtime or pass_name or max_error is not None):
        raise InputError(
            "--command is a check of its own", fix="leave out --runtime, --pass and --max-error"
        )
    if saying is not None and command is None:
        raise InputError("there is no command that could say it", where="--saying")


def _pass_check(
    name: str, runtime: str | None, max_error: float | None, workspace: Path, limits: Limits
) -> Check:
    from pydantic import ValidationError

    from optimc.core.registry import pass_class
    from optimc.pipeline.reduce.checks import PassCheck

    try:
        pass_ = pass_class(name)()
    except ValidationError as error:
        raise InputError(
            f"the pass {name} has options without defaults",
            where="--pass",
            fix="write a script for --command, or `optimc bisect` the recipe",
        ) from error
    return PassCheck(pass_, max_error, workspace, _spec(runtime or "onnxruntime"), limits)


def _spec(runtime: str) -> TargetSpec:
    from optimc.core.registry import target_class

    target: Any = target_class(runtime)
    spec: TargetSpec = target(runtime=runtime).spec()
    return spec


def _lines(record: dict[str, Any], folder: Path) -> list[str]:
    before, after = record["nodes"]
    kept = ", ".join(f"{node['operator']} {node['name']}".strip() for node in record["kept"][:8])
    more = f" and {after - 8} more" if after > 8 else ""
    state = "" if record["complete"] else ", the time was up: run it again on what is left"
    return [
        f"left         {after} of {before} nodes{state}",
        f"nodes        {kept}{more}",
        f"the fault    {record['fault']}",
        f"seen         {record['seen']}",
        f"effort       {record['tests']} tests, {record['seconds']:.1f} s",
        f"written      {folder}: model.onnx, inputs.npz, reproduce.py",
        f"next         python {folder / 'reproduce.py'}",
    ]
