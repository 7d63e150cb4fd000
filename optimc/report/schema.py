"""The types of ``report.json``, schema 1: one frozen tree that every view is made from.

A figure that was not measured is a `Skipped` with its reason, never blank and never assumed.
Units stand in the field names (``_ms``, ``_mb``, ``_db``); a MB is 10**6 bytes. Metrics, drops
and their limits are in the metric's own unit. A drop is positive where the candidate is worse
than the source, whichever way the metric points.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optimc.report.profile import EngineProfile
from optimc.report.ranges import CellRanges
from optimc.report.samples import ShownSample
from optimc.report.steps import CellSteps
from optimc.report.values import (
    Change,
    CheckVerdict,
    Count,
    Finite,
    GateVerdict,
    Interval,
    Measured,
    MeasuredCount,
    MeasuredError,
    Names,
    Node,
    Options,
    Reason,
    Sha256,
    Skipped,
    Status,
    Text,
    Verdict,
    Versions,
)


class Machine(Node):
    """The machine that measured: figures of time hold for it alone."""

    cpu: Text
    architecture: Text
    cores: Annotated[int, Field(ge=1, description="Cores that this process may use.")]
    features: Names
    memory_mb: MeasuredCount
    os: Text


class RecipeReport(Node):
    """The recipe that was built, by the digest of its bytes."""

    path: Text
    sha256: Sha256


class Latency(Node):
    """One engine on one case, alone on the machine."""

    case: Annotated[
        dict[Text, int],
        Field(description="Size of each symbolic dim; empty where all shapes are fixed."),
    ]
    p50_ms: Measured
    p90_ms: Measured
    p99_ms: Measured
    p50_ci95: Annotated[
        Interval | None, Field(description="In ms, of order statistics over fresh sessions.")
    ] = None
    p90_ci95: Interval | None = None
    p99_ci95: Interval | None = None
    runs: Count
    threads: Annotated[int, Field(ge=1)]
    sessions: Annotated[int | None, Field(ge=1, description="Freshly opened sessions.")] = None
    steady: Annotated[
        Finite | None,
        Field(description="Share of the sessions whose warm-up was seen to end before timing."),
    ] = None
    inputs: Annotated[
        Literal["seeded", "data"],
        Field(description="What it ran on: seeded inputs, or samples of the evaluation data."),
    ] = "seeded"


class Throughput(Node):
    """Samples per second with concurrent requests: as many streams as the cores have room for."""

    per_s: Finite
    ci95: Interval
    streams: Annotated[int, Field(ge=1, description="Sessions that ran at once.")]
    threads: Annotated[int, Field(ge=1, description="Threads of each stream.")]
    batch: Annotated[int, Field(ge=1, description="Samples in one run.")]
    case: dict[Text, int]


class InputReport(Node):
    """One input of the source, with the values that the recipe declares for it."""

    dtype: Text
    shape: Annotated[
        tuple[int | Text, ...] | None,
        Field(description="A size or the name of a dynamic dim, an axis; null: rank not known."),
    ]
    values: Annotated[
        tuple[Finite, Finite] | None,
        Field(description="The least and the greatest value, where the recipe declares them."),
    ] = None


class DimReport(Node):
    """The sizes of a dynamic dim that the engines were proved on."""

    min: Annotated[int, Field(ge=1)]
    typical: Annotated[int, Field(ge=1)]
    max: Annotated[int, Field(ge=1)]
    multiple_of: Annotated[int, Field(ge=1)] = 1


class Source(Node):
    """The model that came in, measured as every engine is."""

    path: Text
    sha256: Sha256
    bytes: Count
    parameters: Count
    inputs: dict[Text, InputReport] = Field(default_factory=dict)
    dims: dict[Text, DimReport] = Field(default_factory=dict)
    metrics: dict[Text, Measured]
    latency: tuple[Latency, ...] | Skipped


class Refusal(Node):
    """A rewrite that did not apply at a node, and why."""

    node: Text
    reason: Reason


class PassReport(Node):
    """What one pass did to one cell's model."""

    name: Text = Field(validation_alias="pass", serialization_alias="pass")
    options: Options
    modified: bool
    verdict: Verdict
    reason: Annotated[
        Reason | None,
        Field(description="Why the verdict is unverified, rolled_back or failed."),
    ] = None
    max_abs_error: MeasuredError
    sqnr_db: MeasuredError
    nodes: Change | Skipped
    bytes: Change | Skipped
    seconds: Finite
    cache: Literal["hit", "miss"]
    rewrites: Count
    refusals: tuple[Refusal, ...] = ()

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.verdict in ("unverified", "rolled_back", "failed") and self.reason is None:
            raise ValueError(f"pass {self.name}: the verdict {self.verdict} needs a reason")
        return self


class Comparison(Node):
    """An engine's outputs against a reference's on the same feeds, over all outputs."""

    max_rel_error: Annotated[
        MeasuredError,
        Field(description="Largest absolute difference over the output's largest magnitude."),
    ]
    sqnr_db: MeasuredError
    samples: Count


class Verification(Node):
    """How an engine was proved: against the ONNX model it was made from, and the source."""

    against_onnx: Comparison | Skipped
    against_source: Comparison | Skipped


class FloatIsland(Node):
    """A node that runs in float although its cell is quantized."""

    node: Text
    reason: Reason


class EngineReport(Node):
    """The files that one runtime loads, and what was found when they were run."""

    path: Text
    sha256: Annotated[Sha256, Field(description="Digest of the engine's files.")]
    bytes: Count
    identity: Annotated[Sha256, Field(description="What must be equal when it is rebuilt.")]
    identity_of: Annotated[
        Literal["files", "onnx_graph"],
        Field(description="onnx_graph where the runtime's own file is not deterministic."),
    ]
    precision: Annotated[
        Text | Skipped, Field(description="As read back from the runtime, not as asked for.")
    ]
    verdict: Verdict
    sqnr_db: Annotated[MeasuredError, Field(description="Against the source.")]
    verification: Verification
    int8_share: Annotated[
        Measured, Field(description="Fraction of the heavy nodes that the runtime runs in INT8.")
    ]
    float_islands: tuple[FloatIsland, ...] = ()
    load_ms: Measured
    first_result_ms: Annotated[
        Measured | None,
        Field(description="In a fresh process, from opening the engine to the first outputs."),
    ] = None
    peak_memory_mb: Measured
    steady_memory_mb: Annotated[
        Measured | None, Field(description="Resident memory after runs, when it no longer grows.")
    ] = None


class WorstSample(Node):
    """A sample of the evaluation data on which a cell does worse than the source."""

    number: Annotated[int, Field(ge=0, description="In the evaluation data, from 0.")]
    id: Annotated[Text, Field(description="What the data source calls it: a file, a line.")]
    source: Annotated[Finite, Field(description="The sample's own score by the source.")]
    candidate: Annotated[Finite, Field(description="The sample's own score by the cell.")]


class Metric(Node):
    """One metric of a cell against the source's, on the same samples."""

    value: Measured
    source: Measured
    drop: Measured
    ci95: Annotated[Interval | Skipped, Field(description="95 % interval of the drop.")]
    samples: MeasuredCount
    better: Literal["higher", "lower"]
    method: Annotated[Text | None, Field(description="How the interval was made.")] = None
    lost: Annotated[
        Count | None,
        Field(description="Samples that only the source got right; null: none is right or wrong."),
    ] = None
    won: Annotated[Count | None, Field(description="Samples that only the cell got right.")] = None
    mcnemar_p: Annotated[
        Finite | None, Field(description="Exact two-sided p-value of McNemar's test.")
    ] = None
    agreement: Annotated[
        Finite | None,
        Field(description="Share of the samples with the same label from both; null: no labels."),
    ] = None
    worst: Annotated[tuple[WorstSample, ...], Field(description="Worst first; a few at most.")] = ()


class Ratio(Node):
    """A ratio of paired latencies over freshly opened sessions; above 1 is faster."""

    value: Finite
    ci95: Interval
    confidence: Annotated[
        Finite,
        Field(gt=0, le=1, description="Coverage that the sessions really give to ci95."),
    ]
    sessions: Annotated[int, Field(ge=1, description="Pairs of freshly opened sessions.")]


class Speedup(Ratio):
    """How many times faster a cell is than what it is held against."""

    against: Text


class ChosenOption(Node):
    """What an option of the target that the recipe leaves open came to in one cell."""

    value: bool | int | Finite | Text
    why: Reason


class Cell(Node):
    """The result of one variant on one target."""

    variant: Text
    target: Text
    status: Status
    reason: Annotated[Reason | None, Field(description="Why the status is not built.")] = None
    passes: tuple[PassReport, ...]
    engine: EngineReport | Skipped
    metrics: dict[Text, Metric] | Skipped
    latency: tuple[Latency, ...] | Skipped
    speedup: Speedup | Skipped
    speedup_same_runtime: Speedup | Skipped
    throughput_per_s: Measured
    throughput: Throughput | None = None
    options: Annotated[
        dict[Text, ChosenOption],
        Field(description="What the recipe leaves open of the target, chosen by measuring."),
    ] = Field(default_factory=dict)
    unverified: Annotated[
        tuple[Reason, ...], Field(description="What of this cell could not be checked, and why.")
    ] = ()

    @property
    def name(self) -> str:
        """The cell as the recipe's gate names it: variant/target."""
        return f"{self.variant}/{self.target}"

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.status != "built" and self.reason is None:
            raise ValueError(f"cell {self.name}: the status {self.status} needs a reason")
        if self.status == "built" and isinstance(self.engine, Skipped):
            raise ValueError(f"cell {self.name}: built without an engine")
        return self


class Probes(Node):
    """What passes and engines proved themselves on, and how much of the source that reaches."""

    effort: Annotated[Literal["fast", "full"], Field(description="As --verify says.")]
    passes: Annotated[int, Field(ge=0, description="Inputs that every pass is compared on.")]
    engines: Annotated[int, Field(ge=0, description="Inputs that every engine is compared on.")]
    nodes: Annotated[int, Field(ge=0, description="Nodes of the source, those of bodies included.")]
    reached: Annotated[int, Field(ge=0, description="Nodes that some of the inputs reach.")]
    unreached: Annotated[
        tuple[Text, ...], Field(description="Bodies of If, Loop and Scan that no input reaches.")
    ] = ()
    rounds: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="By loop: the numbers of rounds that were seen in one run.",
    )


class CellName(Node):
    """Names one cell of the report."""

    variant: Text
    target: Text

    @property
    def name(self) -> str:
        """The cell as the recipe's gate names it: variant/target."""
        return f"{self.variant}/{self.target}"


class Check(Node):
    """One limit of the gate, asked of one cell."""

    name: Annotated[Text, Field(description="The limit's path in the recipe: drop.top1, speedup.")]
    variant: Text
    target: Text
    bound: Literal["at_most", "at_least"]
    limit: Finite
    value: Measured
    ci95: Annotated[
        Interval | Skipped,
        Field(description="The verdict is taken from it: each end is one-sided at 95 %."),
    ]
    verdict: CheckVerdict
    required: Annotated[
        bool, Field(description="False where the gate's verdict does not hang on this cell.")
    ] = True
    samples: MeasuredCount
    samples_to_decide: Annotated[
        MeasuredCount | None,
        Field(description="About how many samples would decide what is undecided."),
    ] = None

    @property
    def cell(self) -> str:
        """The cell as the recipe's gate names it: variant/target."""
        return f"{self.variant}/{self.target}"


class Gate(Node):
    """Whether the result may ship."""

    verdict: GateVerdict
    ship: Annotated[Text | None, Field(description="As in the recipe: best, int8/*.")] = None
    candidates: Annotated[int, Field(ge=0, description="Cells that `best` was chosen among.")] = 0
    chosen_on: Annotated[
        Text | None, Field(description="The split that the choice was made on.")
    ] = None
    checks: tuple[Check, ...]


class RecordsFile(Node):
    """What every engine answered, sample by sample: a later gate compares builds by it."""

    path: Annotated[Text, Field(description="In the folder of the report.")]
    data: Annotated[Sha256, Field(description="Digest of the evaluation data.")]


class Confirmation(Node):
    """The cell that was chosen as the best, measured again after the choice.

    The figures that a choice was made by flatter what was chosen; the gate judges by these.
    """

    variant: Text
    target: Text
    speedup: Speedup | Skipped
    latency: Latency | Skipped


class Report(Node):
    """Everything that a build found out; JSON is its canonical form."""

    schema_version: Literal[1] = Field(
        default=1, validation_alias="schema", serialization_alias="schema"
    )
    optimc: Annotated[Text, Field(description="The version that built and measured.")]
    created: Annotated[
        str,
        Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC, ISO 8601."),
    ]
    command: Annotated[Text, Field(description="Repeats the build, from the recipe's folder.")]
    interrupted: bool = False
    recipe: RecipeReport
    lock: Annotated[Text | Skipped, Field(description="Path of the lock.")]
    machine: Machine
    environment: Annotated[
        Versions, Field(description="Version of each tool that had a part in the result.")
    ]
    source: Source
    probes: Annotated[Probes | Skipped, Field(description="Why not, where verification is off.")]
    results: tuple[Cell, ...]
    noise_floor: Annotated[
        Ratio | Skipped, Field(description="The source against itself: how 1.0 looks here.")
    ]
    best: CellName | None
    gate: Gate
    confirmation: Confirmation | None = None
    records: RecordsFile | None = None
    warnings: Annotated[
        tuple[Text, ...], Field(description="What changes how the figures may be read.")
    ] = ()
    notes: tuple[Text, ...] = ()
    profiles: Annotated[
        tuple[EngineProfile, ...] | Skipped,
        Field(description="What ships (else the fastest cell), and the source on its targets."),
    ] = ()
    shown: Annotated[
        tuple[ShownSample, ...], Field(description="Inputs of the worst samples.")
    ] = ()
    ranges: Annotated[
        tuple[CellRanges, ...], Field(description="Of what ships (else the fastest cell).")
    ] = ()
    steps: Annotated[
        tuple[CellSteps, ...],
        Field(description="Of what ships (else the fastest cell), where passes changed a module."),
    ] = ()

    @model_validator(mode="after")
    def _names_its_cells(self) -> Self:
        names = [(cell.variant, cell.target) for cell in self.results]
        if len(set(names)) != len(names):
            raise ValueError("a cell stands in the results twice")
        used: list[CellName | Check] = [*self.gate.checks, *([self.best] if self.best else [])]
        for item in used:
            if (item.variant, item.target) not in names:
                raise ValueError(f"{item.variant}/{item.target} is no cell of the results")
        return self
