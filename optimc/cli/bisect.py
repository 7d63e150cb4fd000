"""`optimc bisect`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.cli.display import Display
from optimc.cli.run import printable
from optimc.core.errors import InputError
from optimc.pipeline.recipe import load_recipe

if TYPE_CHECKING:
    from optimc.pipeline.bisect.criteria import Criterion
    from optimc.pipeline.bisect.search import Blame
    from optimc.pipeline.bisect.subject import Subject
    from optimc.pipeline.user_command import UserCommand

_SHOWN = 20


def run_bisect(
    recipe_path: Path,
    *,
    cell: str | None,
    drop: float | None,
    max_error: float | None,
    command: str | None,
    verify: bool,
    settings: list[str],
    untrusted: bool,
    no_cache: bool,
    time_limit: float | None,
    json_output: bool,
) -> int:
    """Bisects, and prints what is to blame."""
    asked = {"--drop": drop, "--max-error": max_error, "--command": command}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} are two criteria", fix="give one: each says what is bad"
        )
    if not given and not verify:
        raise InputError(
            "nothing says what is bad", where="--no-verify", fix=f"add one of {', '.join(asked)}"
        )
    recipe = load_recipe(recipe_path, settings, untrusted)
    from optimc.pipeline.bisect.search import Bisection
    from optimc.pipeline.bisect.subject import opened
    from optimc.pipeline.minimizing import Deadline, OutOfTimeError
    from optimc.pipeline.user_command import UserCommand

    parsed = UserCommand.parse(command) if command is not None else None
    deadline = Deadline(time_limit)
    with (
        Display() as display,
        opened(recipe, cell, display, verify=verify, use_cache=not no_cache) as subject,
    ):
        criterion = _criterion(subject, drop, max_error, parsed)
        try:
            blame = Bisection(subject, criterion, deadline).run()
        except OutOfTimeError:
            raise InputError(
                f"{time_limit:g} s were not enough to find the pass",
                where="--time-limit",
                fix="raise it: what was done is in the cache",
            ) from None
    if json_output:
        print(json.dumps(blame.to_json(), indent=2, default=str))
    else:
        print(printable("\n".join(_lines(blame, recipe_path))))
    return 0


def _criterion(
    subject: Subject, drop: float | None, max_error: float | None, command: UserCommand | None
) -> Criterion | None:
    from optimc.pipeline.bisect.criteria import Command, Drop, MaxError

    if drop is not None:
        return Drop(subject, drop)
    if max_error is not None:
        return MaxError(subject, max_error)
    return Command(subject, command) if command is not None else None


def _lines(blame: Blame, recipe: Path) -> Iterator[str]:
    for one in blame.rolled_back:
        yield f"rolled back  {one.name} (pass {one.number}), by verification: {one.reason}"
    named = " or ".join(blame.passes)
    yield f"to blame     pass {blame.number} of {blame.count}: {named}, in {blame.cell}"
    yield f"criterion    {blame.criterion}"
    yield f"before it    {blame.before}"
    yield f"after it     {blame.after}"
    if blame.rewrites:
        least = "together needed" if len(blame.rewrites) > 1 else "enough by itself"
        least = least if blame.complete else "the time was up: fewer may do"
        yield f"rewrites     {len(blame.rewrites)} of {blame.of}, {least}"
        for rewrite in blame.rewrites[:_SHOWN]:
            yield f"  {rewrite.number:>5}  {rewrite.rule} at {rewrite.where}"
        if len(blame.rewrites) > _SHOWN:
            yield f"         and {len(blame.rewrites) - _SHOWN} more: see --json"
    for note in blame.notes:
        yield f"note         {note}"
    yield f"effort       {blame.tests} tests, {blame.seconds:.1f} s"
    if blame.rewrites:
        limit = f"{blame.passes[-1]}={blame.rewrites[0].number - 1}"
        file = shlex.quote(str(recipe))
        yield f"next         optimc build {file} --limit {limit}  stops before the first of them"
