"""What `optimc gate` found out: one frozen tree, as JSON what `--json` prints."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field

from optimc.core.errors import ExitCode
from optimc.report.canonical import writable
from optimc.report.schema import Machine, Ratio
from optimc.report.values import (
    CheckVerdict,
    Finite,
    Interval,
    Measured,
    MeasuredCount,
    Node,
    Options,
    Reason,
    Sha256,
    Skipped,
    Text,
)


class SideReport(Node):
    """The candidate or the baseline."""

    path: Text
    kind: Literal["report", "engine"]
    optimc: Text | Skipped
    created: Text | Skipped
    machine: Machine | Skipped


class PolicyReport(Node):
    """The limits, and where they come from."""

    path: Annotated[Text | Skipped, Field(description="Skipped: there is no policy file.")]
    sha256: Sha256 | Skipped
    limits: Options


class RegressionCheck(Node):
    """One limit, asked of one cell of the candidate against one of the baseline."""

    name: Annotated[Text, Field(description="The limit's path in the policy: drop.top1, slowdown.")]
    cell: Text
    against: Annotated[Text, Field(description="The baseline's cell.")]
    bound: Literal["at_most", "at_least"]
    limit: Measured
    value: Measured
    ci95: Interval | Skipped
    candidate: Annotated[Measured, Field(description="The candidate's own figure.")]
    baseline: Annotated[Measured, Field(description="The baseline's own figure.")]
    verdict: CheckVerdict
    samples: MeasuredCount
    method: Annotated[Text, Field(description="How the value came about.")]
    decides: Annotated[
        Reason | None, Field(description="What would decide it, where it is undecided.")
    ] = None


class RegressionReport(Node):
    """Whether a candidate may take the baseline's place."""

    schema_version: Literal[1] = Field(
        default=1, validation_alias="schema", serialization_alias="schema"
    )
    optimc: Text
    created: Text
    command: Text
    candidate: SideReport
    baseline: SideReport
    policy: PolicyReport
    remeasured: Annotated[bool, Field(description="Whether both were timed here, side by side.")]
    machine: Annotated[Machine | Skipped, Field(description="Where they were timed.")]
    differences: Annotated[
        tuple[Text, ...],
        Field(description="Between the conditions of the reports: their times do not compare."),
    ]
    noise_floor: Annotated[Ratio | Skipped, Field(description="The baseline against itself.")]
    seconds: Annotated[Finite, Field(ge=0, description="Spent on measuring again.")]
    checks: tuple[RegressionCheck, ...]
    verdict: CheckVerdict
    notes: tuple[Text, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """0 passed, 4 failed, 5 undecided."""
        codes = {"failed": ExitCode.GATE_FAILED, "undecided": ExitCode.GATE_UNDECIDED}
        return codes.get(self.verdict, ExitCode.OK)


def regression_json(report: RegressionReport) -> str:
    """The canonical text, written as that of `optimc.report.canonical.to_json` is."""
    data = writable(report.model_dump(mode="python"))
    return json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
