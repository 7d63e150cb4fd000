"""`optimc build`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from optimc.cli.display import Display
from optimc.cli.estimate import Estimate, remember, remembered
from optimc.core.errors import InputError, unknown_name
from optimc.core.registry import pass_names
from optimc.pipeline.probes import Effort
from optimc.pipeline.recipe import load_recipe


def run_build(
    recipe_path: Path,
    *,
    out: Path | None,
    variant: str | None,
    target: str | None,
    settings: list[str],
    locked: bool,
    untrusted: bool,
    no_cache: bool,
    no_measure: bool,
    fail_on_rollback: bool,
    verify: Effort,
    limits: list[str],
    dump: Path | None,
    json_output: bool,
) -> int:
    """Builds, prints the summary on stderr (the report on stdout with `--json`), gives the code."""
    recipe = load_recipe(recipe_path, settings, untrusted)
    parsed = _limits(limits)
    # What takes long to import comes after the recipe is known to be fine.
    from optimc.pipeline.build import Build, BuildOptions
    from optimc.pipeline.cache import default_folder
    from optimc.report.canonical import to_json
    from optimc.report.terminal import print_summary
    from optimc.report.verdict import exit_code

    options = BuildOptions(
        out=out or Path("optimc-build") / recipe_path.stem,
        command=shlex.join(["optimc", *sys.argv[1:]]),
        variant=variant,
        target=target,
        overridden=bool(settings),
        locked=locked,
        use_cache=not no_cache,
        measure=not no_measure,
        fail_on_rollback=fail_on_rollback,
        verify=verify,
        limits=parsed,
        dump=dump,
    )
    estimate = Estimate({} if no_cache else remembered(default_folder(), recipe_path))
    with Display(estimate) as display:
        build = Build(recipe, options, display)
        report = build.run()
    if not no_cache and not options.partial:
        remember(default_folder(), recipe_path, estimate.took)
    print_summary(report, build.files, sys.stderr)
    if json_output:
        print(to_json(report), end="")
    return int(exit_code(report))


def _limits(texts: list[str]) -> dict[str, int]:
    """``PASS=N`` options. Raises InputError for other texts and unknown passes."""
    limits = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not count.isdecimal():
            raise InputError(f"`{text}` is not PASS=N", where="--limit", fix="such as simplify=10")
        if name not in pass_names():
            raise unknown_name("pass", name, pass_names(), where="--limit")
        limits[name] = int(count)
    return limits
