"""What a candidate may lose against a baseline: a file of its own, or what follows without one.

A policy file that lies outside of what is judged wins over the recipe's gate: a change must not
widen the limits that it is held against.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from optimc.core.descriptions import wanted
from optimc.core.errors import InputError
from optimc.core.units import DURATION_PATTERN, parse_duration

MAX_BYTES = 100_000

SLOWDOWN = 0.05
SIZE_GROWTH = 0.10
RELATIVE_DROP = 0.01


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("not a duration: write a number and a unit, such as `60 s`")


# The recipe's own types take long to import, and the gate on ready reports is to be quick.
Share = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Percentile = Literal["p50", "p90", "p99"]
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]


class Policy(BaseModel):
    """The limits of a gate. A limit whose value was not measured is not met."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=wanted(),
    )

    cells: Literal["ships"] | Annotated[tuple[str, ...], Field(min_length=1)] = "ships"
    """`ships` holds what the candidate ships against what the baseline ships; a list of
    `variant/target` (with `*` and `?`) holds cells of these names against each other."""
    drop: Mapping[str, Share] = Field(default_factory=dict)
    """How much worse than the baseline a metric may be, in the metric's own unit."""
    metrics: Mapping[str, float] = Field(default_factory=dict)
    """The worst value that a metric may have: the least where higher is better, else the
    greatest."""
    slowdown: Share | None = None
    """How much slower than the baseline the candidate may be: 0.02 is 2 % more time for a run."""
    latency_ms: Mapping[Percentile, Positive] = Field(default_factory=dict)
    """The greatest latency in milliseconds by percentile."""
    throughput_per_s: Positive | None = None
    """The least throughput in samples per second."""
    size_mb: Positive | None = None
    """The greatest size of all files of the engine, in MB (10^6 bytes)."""
    size_growth: Share | None = None
    """How much larger than the baseline the engine's files may be: 0.1 is 10 %."""
    memory_mb: Positive | None = None
    """The greatest peak of resident memory, in MB."""
    memory_growth: Share | None = None
    """How much more memory than the baseline the candidate may take at its peak."""
    false_alarms: Annotated[float, Field(gt=0, le=0.05)] = 0.002
    """How often a candidate that is just as slow as `slowdown` allows may be failed by chance."""
    at_most: Seconds = Field(default=60.0, json_schema_extra={"default": "60 s"})
    """The most time for measuring one cell again, such as `60 s`."""

    @property
    def limits(self) -> dict[str, float]:
        """Every limit by its name, for the report: ``drop.top1``, ``slowdown``."""
        found: dict[str, float] = {}
        for section in ("drop", "metrics", "latency_ms"):
            found |= {f"{section}.{name}": v for name, v in getattr(self, section).items()}
        for name in (
            *("slowdown", "throughput_per_s", "size_mb"),
            *("size_growth", "memory_mb", "memory_growth"),
        ):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found


def load_policy(path: Path) -> tuple[Policy, str]:
    """The policy in `path` and the SHA-256 of its bytes.

    Raises InputError with every problem and where it stands.
    """
    from optimc.pipeline.recipe.locate import Place, Problems, RecipeStop, TooManyProblems, quoted
    from optimc.pipeline.recipe.validation import validate
    from optimc.pipeline.recipe.yaml_reader import parse

    content = _read(path)
    problems = Problems(str(path))
    try:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecipeStop(Place(), "is not UTF-8 text", "save it as UTF-8") from error
        problems = Problems(str(path), text)
        root, found = parse(text)
        problems.extend(found)
        if root is None or not isinstance(root.value, dict):
            shown = "empty" if root is None else quoted(root.data())
            what = f"a policy is a mapping of limits; this is {shown}"
            raise RecipeStop(Place(), what, "start with `slowdown: 0.02`")
        policy = validate(Policy, root, (), problems)
        if policy is not None and not policy.limits:
            problems.add(Place(), "the policy sets no limit", "start with `slowdown: 0.02`")
        problems.raise_if_any()
    except RecipeStop as stop:
        raise problems.error(stop.problem) from None
    except TooManyProblems:
        raise problems.error() from None
    assert policy is not None
    return policy, hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(
                "is no file" if path.exists() else "no such file",
                where=str(path),
                fix="name a policy file, or leave out --policy for the recipe's gate",
            )
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"has more than {MAX_BYTES:,} bytes", where=str(path), fix="is this the policy?"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {reason}", where=str(path)) from error


def policy_schema() -> str:
    """The JSON Schema of policy files, for editors."""
    import json

    schema = Policy.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **schema, "title": "optimc gate policy"}, indent=2) + "\n"
