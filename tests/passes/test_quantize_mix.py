"""`quantize_mixed` with `max_drop`: each layer's kind by sensitivity and by measured cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Cost, Drop, Input, PassResult
from optimc.core.targets import QuantizationSpec
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.quantize_mixed import QuantizeMixed
from optimc.targets.quantization_specs import onnxruntime_cpu, tensorrt
from optimc.testing import run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder

ORT = onnxruntime_cpu({"avx512_vnni"})


def products() -> OnnxModel:
    """Products of four shapes, by size: `large`, `middle` twice, `small`."""
    b = GraphBuilder()
    h = b.input("x", ["batch", 6, 64])
    for name, rows, columns in (
        ("large", 64, 96),
        ("first", 96, 32),
        ("back", 32, 96),
        ("second", 96, 32),
    ):
        h = b.node("Relu", b.node("MatMul", h, b.weight(rows, columns, scale=0.2), name=name))
    b.node("MatMul", h, b.weight(32, 16, scale=0.2), name="small", to="y")
    b.output("y", ["batch", 6, 16])
    return b.model()


def kinds(model: Any) -> dict[str, str]:
    """What each product came to; those at run time are known by being gone."""
    names = ("large", "first", "back", "second", "small")
    found = dict.fromkeys(names, "dynamic")
    for node in model.ir.graph:
        if node.op_type == "MatMul":
            weight = node.inputs[1].producer()
            stored = weight is not None and weight.op_type == "DequantizeLinear"
            found[node.name] = "static" if stored else "float"
    return found


class Judge:
    """A metric that drops by what the kinds of products say; `harm` by (product, kind)."""

    metric = "top1"
    digest = "judge"

    def __init__(self, harm: Mapping[tuple[str, str], float]) -> None:
        self.harm = harm
        self.drops = 0

    def drop(self, model: object) -> Drop:
        self.drops += 1
        point = sum(self.harm.get(one, 0.0) for one in kinds(model).items())
        return Drop(point, point - 0.01, point + 0.01, 300)

    def sqnr_db(self, model: object, reference: object) -> float:
        return 5.0 if any(one in self.harm for one in kinds(model).items()) else 50.0


class Clock:
    """Says how long each kind of a product takes, in milliseconds."""

    target = "ort"
    digest = "clock"

    def __init__(self, *, known: bool = True, lucky: bool = False, **ms: float) -> None:
        self.ms = {"static": 1.0, "dynamic": 2.0, "float": 3.0} | ms
        self.known = known
        self.lucky = lucky
        self.asked: list[tuple[str, ...]] = []

    def time(self, model: object) -> float:
        return sum(self.ms.get(f"{n}_{kind}", self.ms[kind]) for n, kind in kinds(model).items())

    def costs(self, model: object, others: Mapping[str, object]) -> Mapping[str, Cost] | str:
        self.asked.append(tuple(others))
        if not self.known:
            return "measuring is off (--no-measure)"
        saved = {n: self.time(model) - self.time(other) for n, other in others.items()}
        if self.lucky and len(self.asked) > 1:
            saved = dict.fromkeys(saved, 0.05)
        return {name: Cost(ms, ms - 0.1, ms + 0.1) for name, ms in saved.items()}


def mixed(
    judge: Judge, clock: Clock, spec: QuantizationSpec = ORT, choice: Any = None, **options: Any
) -> PassResult:
    model = products()
    return run_pass(
        QuantizeMixed(**{"max_drop": 0.1, **options}),
        model,
        spec=target_spec(spec),
        calibration=random_calibration(model),
        tuning=judge,
        device=clock,  # type: ignore[arg-type]
        choice=choice,
    )


def outputs(*names: str) -> list[str]:
    """The names that layers are known by."""
    model = products()
    return [str(n.outputs[0].name) for name in names for n in model.ir.graph if n.name == name]


SENSITIVE = {("small", "static"): 0.5}


def test_a_sensitive_layer_takes_its_range_at_run_time_where_that_is_faster() -> None:
    judge, clock = Judge(SENSITIVE), Clock()
    result = mixed(judge, clock)
    assert Counter(kinds(result.model).values()) == {"static": 4, "dynamic": 1}
    assert kinds(result.model)["small"] == "dynamic"
    assert result.choice == {"dynamic": outputs("small"), "float": []}
    assert result.budget is not None
    assert (result.budget.met, result.budget.drop.point) == (True, 0.0)
    assert "with 1 of 5 layers in float" in result.notes[0]
    assert "1 MatMul of 32 x 16 at run time: 1.0000 ms (95 %: 0.9000 to 1.1000)" in result.notes[1]
    assert "taken: 1 MatMul of 32 x 16 at run time, which together save 1.0000" in result.notes[1]
    assert not any(refusal.where == "small" for refusal in result.refusals)


def test_a_sensitive_layer_stays_in_float_where_that_is_faster() -> None:
    result = mixed(Judge(SENSITIVE), Clock(float=1.5))
    assert kinds(result.model)["small"] == "float"
    assert result.choice == {"dynamic": [], "float": outputs("small")}
    (refusal,) = [refusal for refusal in result.refusals if refusal.where == "small"]
    assert "to meet max_drop 0.1 of top1; alone in INT8 it leaves an output SQNR" in refusal.reason
    assert "none is taken" in result.notes[1]


def test_layers_that_int8_slows_down_go_back_together() -> None:
    """The two of one shape are timed as one, and are better off in float; all others stay."""
    clock = Clock(first_float=0.2, second_float=0.2)
    result = mixed(Judge({}), clock)
    found = kinds(result.model)
    assert {name for name, kind in found.items() if kind == "float"} == {"first", "second"}
    assert Counter(found.values()) == {"static": 3, "float": 2}
    assert "2 MatMul of 96 x 32 in float" in clock.asked[0]
    (note,) = {r.reason for r in result.refusals if r.where in ("first", "second")}
    assert note == "faster so on the target"


def test_large_weights_come_first_and_not_everything_is_timed() -> None:
    clock = Clock()
    mixed(Judge({}), clock)
    (asked,) = clock.asked
    assert asked[:2] == ("1 MatMul of 64 x 96 at run time", "1 MatMul of 64 x 96 in float")
    assert len(asked) == 8


def test_the_faster_kind_of_a_layer_is_taken_once() -> None:
    clock = Clock(large_dynamic=0.5, large_float=0.1)
    result = mixed(Judge({}), clock)
    assert kinds(result.model)["large"] == "float"
    assert result.choice == {"dynamic": [], "float": outputs("large")}


def test_a_faster_kind_that_breaks_the_limit_is_left() -> None:
    judge = Judge({**SENSITIVE, ("small", "dynamic"): 0.3})
    result = mixed(judge, Clock())
    assert kinds(result.model)["small"] == "float"
    assert result.budget is not None
    assert result.budget.met


def test_what_was_fast_by_chance_is_not_taken() -> None:
    result = mixed(Judge(SENSITIVE), Clock(lucky=True))
    assert kinds(result.model)["small"] == "float"
    assert "together they are not faster, and none is taken" in result.notes[1]


def test_without_measuring_the_search_alone_decides() -> None:
    result = mixed(Judge(SENSITIVE), Clock(known=False))
    model = products()
    same = run_pass(
        QuantizeInt8(max_drop=0.1),
        model,
        spec=target_spec(ORT),
        calibration=random_calibration(model),
        tuning=Judge(SENSITIVE),
        device=Clock(known=False),  # type: ignore[arg-type]
    )
    assert result.model.digest == same.model.digest
    assert "no other kinds of layers were timed: measuring is off" in result.notes[1]


def test_a_target_without_kernels_for_it_has_no_dynamic_kind() -> None:
    clock = Clock()
    result = mixed(Judge(SENSITIVE), clock, tensorrt())
    assert kinds(result.model)["small"] == "float"
    assert not any("at run time" in name for asked in clock.asked for name in asked)


def test_the_lock_decides_and_nothing_is_timed() -> None:
    found = mixed(Judge(SENSITIVE), Clock(first_float=0.2, second_float=0.2))
    assert found.choice["dynamic"]
    assert found.choice["float"]
    judge, clock = Judge(SENSITIVE), Clock()
    again = mixed(judge, clock, choice=found.choice)
    assert again.model.digest == found.model.digest
    assert again.choice == found.choice
    assert judge.drops == 1
    assert not clock.asked
    for wrong in ({"dynamic": ["nowhere"], "float": []}, {"dynamic": [], "float": ["nowhere"]}):
        with pytest.raises(PreconditionError, match="the lock keeps `nowhere`") as caught:
            mixed(judge, clock, choice=wrong)
        assert "without --locked" in str(caught.value.fix)


def test_only_a_budget_reads_tuning_data_and_the_device() -> None:
    budget = {Input.TUNING, Input.DEVICE}
    assert not budget & QuantizeMixed().needs
    assert budget <= QuantizeMixed(max_drop=0.0).needs


@pytest.mark.parametrize("options", [{"at_most": 3.0}, {"max_drop": -1.0}])
def test_bad_options_are_refused(options: Mapping[str, Sequence[float]]) -> None:
    with pytest.raises(ValidationError):
        QuantizeMixed.model_validate(options)
