"""The values that ``report.json`` is made of: figures, reasons, names, digests, verdicts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
)

NON_FINITE = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
"""How a figure that JSON has no number for is written; the names are those of JavaScript."""


class Node(BaseModel):
    """The base of all types of the report: frozen, strict, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Skipped(Node):
    """Stands where a figure would stand, and says why there is none."""

    skipped: Annotated[str, Field(min_length=1)]


def _encodable(value: Any) -> Any:
    """File names may hold bytes that are not UTF-8: they are shown, not fatal."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _named_float(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the interval's lower end {ends[0]} lies above its upper end {ends[1]}")
    return ends


def _sorted_set(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _sorted_keys(values: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def _lists(value: Any) -> Any:
    """Options may hold tuples; JSON knows lists only."""
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return value


Text = Annotated[str, BeforeValidator(_encodable)]
Reason = Annotated[Text, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Error = Annotated[
    float,
    BeforeValidator(_named_float),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": list(NON_FINITE)}]}),
]
Interval = Annotated[tuple[Finite, Finite], AfterValidator(_ordered)]
Change = tuple[Count, Count]
Options = Annotated[dict[str, JsonValue], BeforeValidator(_lists), AfterValidator(_sorted_keys)]
Versions = Annotated[dict[Text, Text], AfterValidator(_sorted_keys)]
Names = Annotated[tuple[Text, ...], AfterValidator(_sorted_set)]

Measured = Finite | Skipped
MeasuredError = Error | Skipped
MeasuredCount = Count | Skipped

Status = Literal["built", "failed", "skipped", "deferred"]
Verdict = Literal[
    "equivalent",
    "within_tolerance",
    "lossy",
    "unchanged",
    "unverified",
    "rolled_back",
    "failed",
]
GateVerdict = Literal["passed", "failed", "undecided", "none"]
CheckVerdict = Literal["passed", "failed", "undecided"]
