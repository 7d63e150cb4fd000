"""What verification costs: seconds a pass and an engine, and its share of a build from scratch.

    MODEL=all-MiniLM-L6-v2 STS=folder python bench/verification.py recipes/minilm.yaml --verify fast

Nothing is measured but the build itself (`--no-measure`); the cache is empty. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.engines import EngineBuilder
from optimc.pipeline.manager import PassManager
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.verification import PassVerifier


def timed(into: list[float], right: Callable[..., Any]) -> Callable[..., Any]:
    """`right`, which notes how many seconds each call takes."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return right(*arguments, **options)
        finally:
            into.append(time.perf_counter() - started)

    return wrapped


def main() -> int:
    """Builds once and prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--target", default=None)
    parser.add_argument("--verify", choices=["fast", "full", "off"], default="fast")
    arguments = parser.parse_args()
    judged: list[float] = []
    passes: list[float] = []
    proved: list[float] = []
    built: list[float] = []
    steered: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPTIMC_CACHE_DIR"] = f"{folder}/cache"
        options = BuildOptions(
            out=Path(folder) / "out",
            command="optimc build",
            measure=False,
            verify=arguments.verify,
            target=arguments.target,
        )
        recipe = load_recipe(arguments.recipe, arguments.settings)
        with (
            patch.object(PassVerifier, "judge", timed(judged, PassVerifier.judge)),
            patch.object(PassManager, "run", timed(passes, PassManager.run)),
            patch.object(EngineBuilder, "prove", timed(proved, EngineBuilder.prove)),
            patch.object(EngineBuilder, "build", timed(built, EngineBuilder.build)),
            patch.object(Build, "_steering", timed(steered, Build._steering)),
        ):
            started = time.perf_counter()
            report = Build(recipe, options, Silent()).run()
            total = time.perf_counter() - started
    verification = sum(judged) + sum(proved) + sum(steered)
    work = sum(passes) + sum(built) + sum(proved) + sum(steered)
    figures = {
        "recipe": str(arguments.recipe),
        "effort": arguments.verify,
        "cells": {cell.name: cell.status for cell in report.results},
        "judged_s": [round(seconds, 2) for seconds in judged],
        "passes_s": [round(seconds, 2) for seconds in passes],
        "proved_s": [round(seconds, 2) for seconds in proved],
        "engines_s": [round(seconds, 2) for seconds in built],
        "build_s": round(total, 2),
        "share_of_build": round(verification / total, 3),
        "share_of_passes_and_engines": round(verification / work, 3),
        "share_in_passes": round(sum(judged) / total, 3),
    }
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
