"""A report with everything in it that a view has to show, for tests and for looking at.

The figures are made up. `example_report` passes its gate, although one pass was rolled back, one
cell is deferred and one skipped; `failed_report` and `undecided_report` end otherwise;
`hostile_report` puts a text of your choice wherever a model, a recipe or a runtime may put one.
"""

from __future__ import annotations

from typing import Literal

from optimc.report.profile import EngineProfile, ProfiledLayer
from optimc.report.ranges import CellRanges, QuantizedRange
from optimc.report.samples import ShownSample
from optimc.report.schema import (
    Cell,
    CellName,
    Check,
    ChosenOption,
    Comparison,
    DimReport,
    EngineReport,
    FloatIsland,
    Gate,
    InputReport,
    Latency,
    Machine,
    Metric,
    PassReport,
    Probes,
    Ratio,
    RecipeReport,
    Refusal,
    Report,
    Source,
    Speedup,
    Throughput,
    Verification,
    WorstSample,
)
from optimc.report.steps import CellSteps, Step
from optimc.report.values import Skipped

HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "| x | y |",
    "\x1b[31mred\x1b[0m\x9b2J",
    "::error::planted",
    "##[error]planted",
    "##vso[task.complete result=Succeeded]",
    "two\nlines\r\nand\ttabs",
    "`code` **bold** [link](javascript:alert(1)) ![i](http://x.invalid/i.png)",
    "@everyone #1 $x$ https://x.invalid www.x.invalid",
    "]]><!-- --> &amp; \"quoted\" 'single' {{ 7*7 }} {% raw %}",
    "\u202egnp.exe\u2066 \u200b\ufeff\ufffe\x00",
    "</style><style>*{display:none}",
    "[bold red]markup[/]",
    "",
)
"""Texts that break a view that forgets to escape."""

_NEEDS_500 = Skipped(skipped="needs 500 runs, 212 were made")
_NOT_BUILT = Skipped(skipped="the cell was not built")


_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAKklEQVR42mNgEFIx94zObYDRkxig9BIG"
    "KL2NAUqfYIDStxmg9FsGKP0fAI1NH+W643TfAAAAAElFTkSuQmCC"
)


def example_report() -> Report:
    """Seven cells of a ResNet; `ship: best` takes int8/ort; exit code 0."""
    cells = (
        _built("fp32", "ort", 0.8853, (0.0, (0.0, 0.0)), 3.962, (1.012, (0.998, 1.026))),
        _built("fp32", "ov", 0.8853, (0.0, (-0.0004, 0.0004)), 4.291, (0.934, (0.921, 0.947))),
        _built("fp16", "ort", 0.8852, (0.0001, (-0.0003, 0.0005)), 4.953, (0.809, (0.8, 0.818))),
        _built("int8", "ort", 0.8845, (0.0008, (-0.0006, 0.0022)), 1.781, (2.251, (2.226, 2.276))),
        _built("int8", "ov", 0.8841, (0.0012, (-0.0009, 0.0033)), 2.163, (1.853, (1.829, 1.877))),
        _not_built("int8", "trt", "deferred", "no TensorRT here: finish the kit on its GPU"),
        _not_built("int8", "npu", "skipped", "OpenVINO finds no NPU; the target is optional"),
    )
    checks = [
        _drop("int8", "ort", 0.0008, (-0.0006, 0.0022), "passed"),
        _speed("int8", "ort", 2.251, (2.226, 2.276), "passed"),
        _drop("int8", "ov", 0.0012, (-0.0009, 0.0033), "undecided", required=False),
        _speed("int8", "ov", 1.853, (1.829, 1.877), "passed", required=False),
        _speed("fp32", "ort", 1.012, (0.998, 1.026), "failed", required=False),
    ]
    gate = Gate(
        verdict="passed", ship="best", candidates=5, chosen_on="tuning", checks=tuple(checks)
    )
    return _report(cells, gate, CellName(variant="int8", target="ort"))


def undecided_report() -> Report:
    """`ship: int8/*` with one cell on the fence; exit code 5."""
    report = example_report()
    checks = (
        report.gate.checks[0],
        _drop("int8", "ov", 0.004, (0.001, 0.007), "undecided").model_copy(
            update={"limit": 0.005, "samples": 500, "samples_to_decide": 4500}
        ),
    )
    gate = Gate(verdict="undecided", ship="int8/*", checks=checks)
    return report.model_copy(update={"gate": gate, "best": None})


def failed_report() -> Report:
    """A cell whose runtime crashed, and a limit that was not measured; exit code 3."""
    report = example_report()
    crashed = _not_built(
        "int8",
        "trt",
        "failed",
        "the worker died by SIGSEGV while it built the engine",
    )
    cells = tuple(crashed if cell.name == "int8/trt" else cell for cell in report.results)
    unmeasured = _speed("int8", "ov", 1.0, (1.0, 1.0), "failed").model_copy(
        update={"value": Skipped(skipped="--no-measure"), "ci95": Skipped(skipped="--no-measure")}
    )
    gate = Gate(verdict="failed", ship="int8/*", checks=(*report.gate.checks[:2], unmeasured))
    return report.model_copy(update={"results": cells, "gate": gate, "best": None})


def hostile_report(text: str) -> Report:
    """`example_report` with `text` as every name, reason, path and message that others write."""
    report = example_report()
    failed = _not_built(text, f"{text}2", "failed", text or "-")
    cells = (_hostile_cell(report.results[3], text), failed)
    check = _drop(text, text, 0.004, (0.001, 0.007), "undecided")
    check = check.model_copy(update={"name": f"drop.{text}"})
    return report.model_copy(
        update={
            "results": cells,
            "gate": Gate(verdict="undecided", ship=text, chosen_on=text, checks=(check,)),
            "best": CellName(variant=text, target=text),
            "command": text,
            "profiles": _profiles(cells[0].name, text),
            "ranges": _ranges(text, text),
            "steps": _steps(text),
            "shown": (ShownSample(number=4711, texts=(text,)),),
            "warnings": (text,),
            "notes": (text,),
            "environment": {text: text},
            "recipe": RecipeReport(path=text, sha256="a" * 64),
            "lock": text,
            "machine": report.machine.model_copy(update={"cpu": text, "os": text}),
            "source": report.source.model_copy(
                update={
                    "path": text,
                    "metrics": {text: 0.8},
                    "inputs": {text: InputReport(dtype=text, shape=(text, 3))},
                }
            ),
        }
    )


def _hostile_cell(cell: Cell, text: str) -> Cell:
    reason = text or "-"
    step = cell.passes[1].model_copy(
        update={
            "name": text,
            "reason": reason,
            "options": {text: [text]},
            "refusals": (Refusal(node=text, reason=reason),),
        }
    )
    assert isinstance(cell.engine, EngineReport)
    islands = (FloatIsland(node=text, reason=reason),)
    return cell.model_copy(
        update={
            "variant": text,
            "target": text,
            "passes": (step,),
            "engine": cell.engine.model_copy(update={"path": text, "float_islands": islands}),
            "metrics": {text: _metric(0.8, (0.01, (0.0, 0.02)))},
            "unverified": (reason,),
            "throughput_per_s": Skipped(skipped=reason),
        }
    )


def _report(cells: tuple[Cell, ...], gate: Gate, best: CellName) -> Report:
    return Report(
        optimc="0.1.0",
        created="2026-11-22T21:30:00Z",
        command="optimc build resnet56.yaml -o out --verify full",
        recipe=RecipeReport(path="resnet56.yaml", sha256="5b" * 32),
        lock="resnet56.lock",
        machine=Machine(
            cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            architecture="x86_64",
            cores=2,
            features=("avx2", "avx512f", "avx512_vnni"),
            memory_mb=24576,
            os="Linux 6.1.0",
        ),
        environment={
            "python": "3.11.7",
            "onnx": "1.23.0",
            "onnxruntime": "1.31.0",
            "openvino": "2026.4.0",
            "numpy": "2.4.1",
        },
        source=Source(
            path="resnet56.onnx",
            sha256="c4" * 32,
            bytes=3_446_120,
            parameters=855_770,
            inputs={"input": InputReport(dtype="float32", shape=("batch", 3, 32, 32))},
            dims={"batch": DimReport(min=1, typical=1, max=64)},
            metrics={"top1": 0.8853, "top5": 0.9941},
            latency=(_latency(4.012),),
        ),
        probes=Probes(effort="fast", passes=11, engines=13, nodes=128, reached=128),
        results=cells,
        noise_floor=Ratio(value=1.001, ci95=(0.992, 1.01), confidence=0.95, sessions=8),
        best=best,
        gate=gate,
        profiles=_profiles("int8/ort", "/conv1/Conv"),
        ranges=_ranges("int8/ort", "/conv1/Conv_output_0"),
        steps=_steps("int8/ort"),
        shown=(ShownSample(number=4711, texts=("a picture of a frog",), png=_PNG),),
        warnings=("The second core was busy while this was measured: load 1.3.",),
        notes=(
            "269 initializers that the model also lists as inputs were taken as constants.",
            "The identity of the engines is the digest of the ONNX graph: OpenVINO's own files "
            "differ from build to build.",
        ),
    )


def _steps(cell: str) -> tuple[CellSteps, ...]:
    return (
        CellSteps(
            cell=cell,
            metric="top1",
            steps=(
                Step(
                    name="source",
                    parameters=855_770,
                    bytes=3_423_080,
                    macs=125_485_760,
                    drop=0.0,
                    speedup=1.0,
                ),
                Step(
                    name="1. prune_depth",
                    parameters=391_706,
                    bytes=1_566_824,
                    macs=54_706_816,
                    drop=0.61,
                    drop_ci95=(0.59, 0.63),
                    speedup=2.31,
                    speedup_ci95=(2.27, 2.35),
                ),
                Step(
                    name="2. train",
                    parameters=391_706,
                    bytes=1_566_824,
                    macs=54_706_816,
                    drop=0.004,
                    drop_ci95=(0.001, 0.007),
                    speedup=Skipped(skipped="the sessions were too few"),
                ),
            ),
        ),
    )


def _ranges(cell: str, tensor: str) -> tuple[CellRanges, ...]:
    activation = QuantizedRange(
        tensor=tensor, kind="activation", dtype="uint8", low=0.0, high=2.561, scales=1
    )
    weight = QuantizedRange(
        tensor="conv1.weight", kind="weight", dtype="int8", low=-0.51, high=0.506, scales=16
    )
    return (CellRanges(cell=cell, ranges=(activation, weight)),)


def _profiles(cell: str, conv: str) -> tuple[EngineProfile, ...]:
    """A cell and the source: a convolution takes its normalization in, a Q is added."""

    def layer(name: str, operator: str, dtype: str, ms: float, *nodes: str) -> ProfiledLayer:
        return ProfiledLayer(name=name, operator=operator, dtype=dtype, ms=ms, nodes=nodes)

    def profile(engine: str, of: str | None, *layers: ProfiledLayer) -> EngineProfile:
        case = {"batch": 1}
        return EngineProfile(
            engine=engine, cell=of, runtime="onnxruntime", case=case, runs=50, layers=layers
        )

    norm = "/bn1/BatchNormalization"
    return (
        profile(
            "source on ort",
            None,
            layer(conv, "Conv", "float32", 0.8, conv),
            layer(norm, "BatchNormalization", "float32", 0.1, norm),
            layer("/head/Gemm", "Gemm", "float32", 1.1, "/head/Gemm"),
        ),
        profile(
            cell,
            cell,
            layer("input_quantized", "QuantizeLinear", "float32", 0.1),
            layer("bn1_out", "QLinearConv", "int8", 0.3, conv, norm),
            layer("/head/Gemm", "Gemm", "float32", 0.3, "/head/Gemm"),
        ),
    )


def _built(
    variant: str,
    target: str,
    top1: float,
    drop: tuple[float, tuple[float, float]],
    p50_ms: float,
    speedup: tuple[float, tuple[float, float]],
) -> Cell:
    return Cell(
        variant=variant,
        target=target,
        status="built",
        passes=_passes(variant, target),
        engine=_engine(variant, target),
        metrics={
            "top1": _metric(top1, drop),
            "top5": Metric(
                value=0.9941,
                source=0.9941,
                drop=0.0,
                ci95=(-0.0005, 0.0005),
                samples=10_000,
                better="higher",
                lost=2,
                won=2,
                mcnemar_p=1.0,
                agreement=0.9996,
            ),
        },
        latency=(_latency(p50_ms), _latency(p50_ms * 7.2, batch=8)),
        options={
            "threads": ChosenOption(value=1, why="2 is 0.94 [0.92, 0.96] times as fast as 1"),
        },
        speedup=_speedup(speedup, "source on ONNX Runtime"),
        speedup_same_runtime=_speedup(speedup, "source on the same runtime"),
        throughput_per_s=1000 / p50_ms,
        throughput=Throughput(
            per_s=1000 / p50_ms,
            ci95=(980 / p50_ms, 1020 / p50_ms),
            streams=2,
            threads=1,
            batch=1,
            case={"batch": 1},
        ),
        unverified=("batch 64: too little memory for the reference",) if target == "ov" else (),
    )


def _not_built(
    variant: str, target: str, status: Literal["failed", "skipped", "deferred"], reason: str
) -> Cell:
    return Cell(
        variant=variant,
        target=target,
        status=status,
        reason=reason,
        passes=_passes(variant, target)[:1] if status == "failed" else (),
        engine=_NOT_BUILT,
        metrics=_NOT_BUILT,
        latency=_NOT_BUILT,
        speedup=_NOT_BUILT,
        speedup_same_runtime=_NOT_BUILT,
        throughput_per_s=_NOT_BUILT,
    )


def _passes(variant: str, target: str) -> tuple[PassReport, ...]:
    size = 3_446_120
    simplify = PassReport(
        name="simplify",
        options={"engine": "onnxscript"},
        modified=True,
        verdict="equivalent",
        max_abs_error=0.0,
        sqnr_db=float("inf"),
        nodes=(366, 190),
        bytes=(size, 3_412_004),
        seconds=0.412,
        cache="miss" if variant == "fp32" else "hit",
        rewrites=212,
        refusals=(Refusal(node="/layer1/Slice", reason="the axes are not constant"),),
    )
    fuse = PassReport(
        name="fuse",
        options={"conv_relu": True, "swish": True},
        modified=False,
        verdict="rolled_back",
        reason="max abs error 0.31 on probe 2 (batch 64), allowed 0.0001: rewrite 7 at /layer2/Mul",
        max_abs_error=0.31,
        sqnr_db=17.4,
        nodes=(190, 190),
        bytes=(3_412_004, 3_412_004),
        seconds=0.951,
        cache="miss",
        rewrites=0,
    )
    if variant == "fp32":
        return (simplify, fuse)
    if variant == "fp16":
        return (simplify, fuse, _float16(3_412_004))
    return (simplify, fuse, _quantize(target, 3_412_004))


def _float16(size: int) -> PassReport:
    return PassReport(
        name="float16",
        options={},
        modified=True,
        verdict="within_tolerance",
        max_abs_error=0.0041,
        sqnr_db=68.2,
        nodes=(190, 192),
        bytes=(size, 1_741_220),
        seconds=0.22,
        cache="miss",
        rewrites=113,
    )


def _quantize(target: str, size: int) -> PassReport:
    return PassReport(
        name="quantize_int8",
        options={"ranges": "mse", "keep_float": ["/head/*"], "percentile": 99.99},
        modified=True,
        verdict="lossy",
        max_abs_error=1.02,
        sqnr_db=28.7,
        nodes=(190, 412 if target == "ort" else 366),
        bytes=(size, 934_810),
        seconds=4.1,
        cache="miss",
        rewrites=113,
        refusals=tuple(
            Refusal(node=f"/layer{index}/GlobalPool", reason="no INT8 kernel on this target")
            for index in range(1, 4)
        ),
    )


def _engine(variant: str, target: str) -> EngineReport:
    int8 = variant == "int8"
    names = {"ort": "model.onnx", "ov": "model.xml"}
    sqnr = 27.9 if int8 else 71.3
    return EngineReport(
        path=f"artifacts/{variant}/{target}/{names.get(target, 'model.engine')}",
        sha256="7e" * 32,
        bytes={"fp32": 3_412_004, "fp16": 1_741_220, "int8": 934_810}[variant],
        identity="9d" * 32,
        identity_of="files" if target == "ort" else "onnx_graph",
        precision=Skipped(skipped="ONNX Runtime does not tell") if target == "ort" else "f32",
        verdict="lossy" if int8 else "within_tolerance",
        sqnr_db=sqnr,
        verification=Verification(
            against_onnx=Comparison(max_rel_error=2.1e-06, sqnr_db=112.0, samples=64),
            against_source=Comparison(max_rel_error=0.031, sqnr_db=sqnr, samples=64),
        ),
        int8_share=0.946 if int8 else 0.0,
        float_islands=(FloatIsland(node="/head/Gemm", reason="kept by keep_float: /head/*"),)
        if int8
        else (),
        load_ms=31.4,
        first_result_ms=36.1,
        peak_memory_mb=61.8,
        steady_memory_mb=58.2,
    )


def _metric(value: float, drop: tuple[float, tuple[float, float]]) -> Metric:
    return Metric(
        value=value,
        source=0.8853,
        drop=drop[0],
        ci95=drop[1],
        samples=10_000,
        better="higher",
        method="paired bootstrap",
        lost=31,
        won=23,
        mcnemar_p=0.34,
        agreement=0.9931,
        worst=(WorstSample(number=4711, id="evaluation.npz[4711]", source=1.0, candidate=0.0),),
    )


def _latency(p50_ms: float, batch: int = 1) -> Latency:
    return Latency(
        case={"batch": batch},
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.06,
        p99_ms=_NEEDS_500,
        p50_ci95=(p50_ms * 0.99, p50_ms * 1.02),
        p90_ci95=(p50_ms * 1.04, p50_ms * 1.09),
        runs=212,
        threads=1,
        sessions=5,
        steady=1.0,
    )


def _speedup(value: tuple[float, tuple[float, float]], against: str) -> Speedup:
    return Speedup(value=value[0], ci95=value[1], confidence=0.9375, sessions=5, against=against)


def _drop(
    variant: str,
    target: str,
    value: float,
    ends: tuple[float, float],
    verdict: Literal["passed", "failed", "undecided"],
    required: bool = True,
) -> Check:
    return Check(
        name="drop.top1",
        variant=variant,
        target=target,
        bound="at_most",
        limit=0.003,
        value=value,
        ci95=ends,
        verdict=verdict,
        required=required,
        samples=10_000,
        samples_to_decide=18_000 if verdict == "undecided" else None,
    )


def _speed(
    variant: str,
    target: str,
    value: float,
    ends: tuple[float, float],
    verdict: Literal["passed", "failed", "undecided"],
    required: bool = True,
) -> Check:
    return Check(
        name="speedup",
        variant=variant,
        target=target,
        bound="at_least",
        limit=1.8,
        value=value,
        ci95=ends,
        verdict=verdict,
        required=required,
        samples=5,
    )
