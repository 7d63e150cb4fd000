"""The search of `max_drop`: the fewest layers, whatever the figures and the clock do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Cost, Drop, Input, PassResult
from optimc.passes._quantize_budget import Found, Kept, Search
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import run_pass
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.quantizable import residual


class Tried(OnnxModel):
    """A model that stands for what was kept of it."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(folder=Path("/nowhere"), header={})
        self.kept = kept


class Bench:
    """A metric that drops by what each layer in INT8 adds, and a clock that each question moves."""

    metric = "top1"
    digest = "bench"

    def __init__(self, harm: Mapping[str, float], *, sqnr: Mapping[str, float] | None = None):
        self.harm = harm
        self.sqnr = sqnr or {n: -10 * math.log10(h) if h else 90.0 for n, h in harm.items()}
        self.now = 0.0
        self.said: list[tuple[float, str]] = []

    def drop(self, model: object) -> Drop:
        assert isinstance(model, Tried)
        self.now += 1.0
        point = sum(h for name, h in self.harm.items() if name not in model.kept)
        return Drop(point, point - 0.1, point + 0.1, 100)

    def sqnr_db(self, model: object, reference: object) -> float:
        assert isinstance(model, Tried)
        self.now += 0.1
        alone = [db for name, db in self.sqnr.items() if name not in model.kept]
        return -10 * math.log10(sum(10 ** (-db / 10) for db in alone) or 1e-12)

    def search(self, max_drop: float, seconds: float = 1e6) -> Found:
        return Search(
            layers=list(self.harm),
            trial=Tried,
            original=Tried(frozenset()),
            tuning=self,
            max_drop=max_drop,
            seconds=seconds,
            progress=lambda share, text: self.said.append((share, text)),
            clock=lambda: self.now,
        ).run()


def harms(count: int, **bad: float) -> dict[str, float]:
    return {f"l{i}": 1e-4 for i in range(count)} | bad


def test_nothing_is_kept_where_everything_fits() -> None:
    bench = Bench(harms(20))
    found = bench.search(0.01)
    assert (found.kept, found.met, found.finished, found.trials) == ((), True, True, 1)
    assert not found.sqnr_db


@pytest.mark.parametrize("bad", [1, 2, 3, 5, 7])
def test_only_the_bad_layers_are_kept(bad: int) -> None:
    wrong = {f"l{i * 3 + 1}": 0.1 + i / 1000 for i in range(bad)}
    found = Bench(harms(30, **wrong)).search(0.02)
    assert set(found.kept) == set(wrong)
    assert found.met
    assert found.finished
    assert found.kept[0] == max(wrong, key=wrong.__getitem__)
    assert found.trials < 20


def test_a_layer_that_only_looks_bad_goes_back() -> None:
    bench = Bench(harms(16, l3=0.1), sqnr={f"l{i}": 40.0 for i in range(16)} | {"l3": 20, "l9": 5})
    found = bench.search(0.02)
    assert found.kept == ("l3",)


def test_a_limit_out_of_reach_gives_the_least_drop() -> None:
    bench = Bench({"a": 0.5, "b": 0.4, "c": 0.3})
    found = bench.search(0.1)
    assert not found.met
    assert found.finished
    assert found.kept == ("a", "b")
    assert found.drop.point == pytest.approx(0.3)


def test_one_layer_alone_cannot_be_kept() -> None:
    found = Bench({"a": 0.5}).search(0.1)
    assert (found.kept, found.met, found.finished) == ((), False, True)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 5.0, 7.0])
def test_the_time_limit_ends_it_with_the_best_so_far(seconds: float) -> None:
    bench = Bench(harms(40, l1=0.1, l20=0.1, l30=0.1))
    found = bench.search(0.02, seconds)
    assert not found.finished
    assert found.drop == min(
        (bench.drop(Tried(frozenset(found.kept))), found.drop), key=lambda drop: drop.point
    )
    assert found.seconds <= seconds + 1.1


def test_progress_is_said_and_rises() -> None:
    bench = Bench(harms(10, l4=0.1))
    bench.search(0.02, 100.0)
    shares = [share for share, _ in bench.said]
    assert shares == sorted(shares)
    assert any("alone in INT8" in text for _, text in bench.said)
    assert any("drops by" in text for _, text in bench.said)


def test_layers_that_need_company_are_ranked_by_what_they_add() -> None:
    bench = Bench(harms(8, l2=0.1))

    def trial(kept: Kept) -> Tried:
        if kept == frozenset(bench.harm) - {"l2"}:
            raise PreconditionError("nothing can be quantized")
        return Tried(kept)

    search = Search(
        layers=list(bench.harm),
        trial=trial,
        original=Tried(frozenset()),
        tuning=bench,
        max_drop=0.02,
        seconds=1e6,
        progress=lambda share, text: None,
        clock=lambda: bench.now,
    )
    assert search.run().kept == ("l2",)


def test_what_leaves_nothing_to_quantize_is_no_choice() -> None:
    """Where `l0` and `l1` cannot be quantized without the others, not all of those can be kept."""
    bench = Bench({"l0": 1e-4, "l1": 1e-4, "l2": 0.2, "l3": 0.3, "l4": 0.4})

    def trial(kept: Kept) -> Tried:
        if {"l2", "l3", "l4"} <= kept:
            raise PreconditionError("nothing can be quantized")
        return Tried(kept)

    search = Search(
        layers=list(bench.harm),
        trial=trial,
        original=Tried(frozenset()),
        tuning=bench,
        max_drop=0.25,
        seconds=1e6,
        progress=lambda share, text: None,
        clock=lambda: bench.now,
    )
    found = search.run()
    assert found.met
    assert set(found.kept) == {"l3", "l4"}


class Judged:
    """A metric that one layer's INT8 ruins: known by the Q behind its weight."""

    metric = "top1"
    digest = "judged"

    def __init__(self, weight: str) -> None:
        self.weight = weight
        self.drops = 0

    def drop(self, model: object) -> Drop:
        self.drops += 1
        point = 0.5 if self._hit(model) else 0.0
        return Drop(point, point - 0.01, point + 0.01, 300)

    def sqnr_db(self, model: object, reference: object) -> float:
        return 5.0 if self._hit(model) else 50.0

    def _hit(self, model: object) -> bool:
        assert isinstance(model, OnnxModel)
        return f"{self.weight}_quantized" in model.ir.graph.initializers


class Clock:
    """Says that float costs 2 ms."""

    target = "ort"
    digest = "clock"

    def __init__(self, why: str | None = None) -> None:
        self.why = why

    def costs(self, model: object, others: Mapping[str, object]) -> Mapping[str, Cost] | str:
        return self.why or dict.fromkeys(others, Cost(2.0, 1.5, 2.5))


def ruined(model: OnnxModel) -> tuple[Judged, str]:
    """A judge that one convolution of the model spoils, and that layer's name."""
    node = [node for node in model.ir.graph if node.op_type == "Conv"][2]
    weight = node.inputs[1]
    assert weight is not None
    return Judged(str(weight.name)), str(node.outputs[0].name)


def quantize(pass_: QuantizeInt8, judge: Judged, **more: object) -> PassResult:
    model = residual()
    return run_pass(
        pass_,
        model,
        spec=target_spec(onnxruntime_cpu({"avx512_vnni"})),
        calibration=random_calibration(model),
        tuning=judge,
        device=more.pop("device", Clock()),  # type: ignore[arg-type]
        choice=more.pop("choice", None),
    )


def test_the_pass_keeps_the_layer_and_says_what_it_costs() -> None:
    judge, layer = ruined(residual())
    result = quantize(QuantizeInt8(max_drop=0.01), judge)
    assert result.choice == {"float": [layer]}
    assert result.budget is not None
    assert result.budget.met
    assert result.budget.name == "max_drop.top1"
    (refusal,) = [r for r in result.refusals if "max_drop" in r.reason]
    assert "output SQNR of 5.0 dB" in refusal.reason
    assert "costs 2.0000 ms (95 %: 1.5000 to 2.5000) on ort" in refusal.reason
    assert "met with 1 of" in result.notes[0]
    assert isinstance(result.model, OnnxModel)
    assert not judge._hit(result.model)


def test_costs_that_were_not_timed_say_why() -> None:
    judge, _ = ruined(residual())
    result = quantize(QuantizeInt8(max_drop=0.01), judge, device=Clock("measuring is off"))
    (refusal,) = [r for r in result.refusals if "max_drop" in r.reason]
    assert "its cost was not timed: measuring is off" in refusal.reason


def test_a_choice_of_the_lock_is_replayed_with_one_trial() -> None:
    judge, layer = ruined(residual())
    found = quantize(QuantizeInt8(max_drop=0.01), judge)
    again, _ = ruined(residual())
    replayed = quantize(QuantizeInt8(max_drop=0.01), again, choice=found.choice)
    assert replayed.model.digest == found.model.digest
    assert replayed.model.names_digest == found.model.names_digest
    assert replayed.choice == {"float": [layer]}
    assert again.drops == 1
    assert judge.drops > 1


def test_a_choice_of_another_model_is_refused() -> None:
    judge, _ = ruined(residual())
    with pytest.raises(PreconditionError, match="`elsewhere` in float") as caught:
        quantize(QuantizeInt8(max_drop=0.01), judge, choice={"float": ["elsewhere"]})
    assert "without --locked" in str(caught.value.fix)


def test_only_a_budget_reads_tuning_data_and_the_device() -> None:
    budget = {Input.TUNING, Input.DEVICE}
    assert not budget & QuantizeInt8().needs
    assert budget <= QuantizeInt8(max_drop=0.0).needs


def test_options_are_checked_and_survive_json() -> None:
    given = QuantizeInt8.model_validate_json('{"max_drop": 0.001, "at_most": "5 min"}')
    assert given.at_most == 300.0
    assert given.options()["at_most"] == "300 s"
    for text in (
        '{"at_most": "5 min"}',
        '{"max_drop": -0.1}',
        '{"max_drop": 0.1, "at_most": 300}',
        '{"max_drop": 0.1, "at_most": "5 parsecs"}',
    ):
        with pytest.raises(ValidationError):
            QuantizeInt8.model_validate_json(text)
