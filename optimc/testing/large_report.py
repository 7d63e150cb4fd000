"""A report as large as that of a sentence encoder, three variants on two targets.

Made of `example_report`: the figures are made up, the numbers of layers, ranges, refused nodes and
shown samples are those of MiniLM's own report or more.
"""

from __future__ import annotations

import base64

from optimc.report.profile import EngineProfile, ProfiledLayer
from optimc.report.ranges import CellRanges, QuantizedRange
from optimc.report.samples import MOST_TEXT, ShownSample
from optimc.report.schema import (
    Cell,
    CellName,
    Check,
    EngineReport,
    FloatIsland,
    Gate,
    Refusal,
    Report,
    WorstSample,
)
from optimc.testing.example_report import example_report

LAYERS = 8
_PARTS = ("query", "key", "value", "dense", "intermediate", "output")
_NODES = ("MatMul", "Add", "LayerNormalization", "Gelu", "Mul")
_SHOWN = 24
_WORST = 8


def large_report() -> Report:
    """Six cells; `ship: best` takes static/ort; exit code 0."""
    report = example_report()
    built = report.results[3]
    names = [(v, t) for v in ("fp32", "dynamic", "static") for t in ("ort", "ov")]
    cells = tuple(_cell(built, variant, target, i) for i, (variant, target) in enumerate(names))
    checks = tuple(_check(report.gate.checks[0], cell) for cell in cells)
    gate = Gate(verdict="passed", ship="best", candidates=6, chosen_on="tuning", checks=checks)
    profiles = [_profile(f"source on {t}", None) for t in ("ort", "ov")]
    profiles += [_profile(f"{v}/{t}", f"{v}/{t}") for v, t in names[-2:]]
    return report.model_copy(
        update={
            "results": cells,
            "gate": gate,
            "best": CellName(variant="static", target="ort"),
            "profiles": tuple(profiles),
            "ranges": (_ranges("static/ort"),),
            "steps": (),
            "shown": tuple(map(_shown, range(_SHOWN))),
        }
    )


def _nodes() -> list[str]:
    return [
        f"/model/encoder/layer.{layer}/attention/self/{part}/{node}"
        for layer in range(LAYERS)
        for part in _PARTS
        for node in _NODES
    ]


def _cell(built: Cell, variant: str, target: str, index: int) -> Cell:
    assert isinstance(built.engine, EngineReport)
    assert isinstance(built.metrics, dict)
    refusals = tuple(
        Refusal(node=node, reason=f"the scale of input {number % 7} is not constant")
        for number, node in enumerate(_nodes())
    )
    islands = tuple(FloatIsland(node=node, reason="no INT8 kernel") for node in _nodes()[::2])
    first = _WORST * index
    worst = tuple(
        WorstSample(number=n % _SHOWN, id=f"sts_eval.tsv:{n + 2}", source=0.9, candidate=0.4)
        for n in range(first, first + _WORST)
    )
    passes = [step.model_copy(update={"refusals": refusals}) for step in built.passes]
    return built.model_copy(
        update={
            "variant": variant,
            "target": target,
            "passes": tuple(passes),
            "engine": built.engine.model_copy(update={"float_islands": islands}),
            "metrics": {
                name: metric.model_copy(update={"worst": worst})
                for name, metric in built.metrics.items()
            },
        }
    )


def _check(check: Check, cell: Cell) -> Check:
    required = cell.name == "static/ort"
    changes = {"variant": cell.variant, "target": cell.target, "required": required}
    return check.model_copy(update=changes)


def _profile(engine: str, cell: str | None) -> EngineProfile:
    layers = [
        ProfiledLayer(
            name=f"{engine}:{node}",
            operator=node.rpartition("/")[2],
            dtype="float32" if cell is None else "int8",
            ms=0.5 / (1 + number),
            nodes=(node,),
        )
        for number, node in enumerate(_nodes())
    ]
    case = {"batch": 1, "length": 27}
    return EngineProfile(
        engine=engine, cell=cell, runtime="onnxruntime", case=case, runs=50, layers=tuple(layers)
    )


def _ranges(cell: str) -> CellRanges:
    ranges = [
        QuantizedRange(
            tensor=f"{node}_output_0",
            kind="activation",
            dtype="uint8",
            low=-1.5,
            high=2.5,
            scales=1,
        )
        for node in _nodes()
    ]
    return CellRanges(cell=cell, ranges=tuple(ranges))


def _shown(number: int) -> ShownSample:
    """Two long texts, and a picture as large as pictures may be: noise does not compress."""
    import numpy as np

    from optimc.pipeline.shown import png

    image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    text = "A man in a blue shirt is playing the guitar on a small stage. " * 8
    picture = base64.b64encode(png(image)).decode() if number % 4 == 0 else None
    return ShownSample(number=number, texts=(text[:MOST_TEXT],) * 2, png=picture)
