"""`gptq`: the contract on modules, its grid, what it wins over rounding, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.calibration.npz import NpzSource
from optimc.core.errors import InputError, PreconditionError, UnavailableError
from optimc.core.passes import PassResult, RewriteLog
from optimc.core.workbench import Workbench
from optimc.passes._weight_blocks import quantize_blocks
from optimc.passes.gptq import Gptq
from optimc.passes.quantize_weights import QuantizeWeights
from optimc.pipeline.verification import Verdict, judge_engine
from optimc.testing.graphs import GraphBuilder
from optimc.testing.pass_contract import SECTIONS
from optimc.testing.runs import run_pass
from optimc.testing.training_data import FolderTraining, training_on
from optimc.testing.workshops import TorchTrial

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
NEEDED = ("neural_compressor", "accelerate")
needs_inc = pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED), reason="the extra `inc` is not installed"
)

INPUTS = 64


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two layers with one input, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = torch.nn.Linear(INPUTS, 32)
        self.right = torch.nn.Linear(INPUTS, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.head = torch.nn.Linear(32, 8)

    def forward(self, x: Any) -> Any:
        return {"y": self.head(self.norm(torch.relu(self.left(x)) + self.right(x)))}


@cache
def samples(count: int = 512, start: int = 0) -> Any:
    """Rows [count, INPUTS] float32 whose columns depend on each other, as a layer's inputs do."""
    mixing = np.random.default_rng(7).normal(size=(16, INPUTS))
    rows = np.random.default_rng(start).normal(size=(count, 16)) @ mixing
    noise = np.random.default_rng(start + 1).normal(size=(count, INPUTS))
    return (rows + 0.3 * noise).astype(np.float32)


def stored(folder: Path, rows: Any, name: str) -> FolderTraining:
    np.savez(folder / "data.npz", x=rows)
    source = NpzSource.model_validate({"npz": "data.npz", "inputs": {"x": "x"}})
    return training_on(source.open(folder, 0), name)


@pytest.fixture(name="trial")
def make_trial(tmp_path: Path) -> Callable[..., TorchTrial]:
    def made(
        make: Callable[[], Any] = Net,
        rows: Any = None,
        prepare: Callable[[Workbench], None] = lambda bench: None,
        limit: int | None = None,
    ) -> TorchTrial:
        given = samples() if rows is None else rows
        training = stored(tmp_path, given, f"gptq {given.shape} {float(np.abs(given).sum())}")
        example = {"x": torch.from_numpy(given[:2].copy())}
        log = RewriteLog(limit)
        return TorchTrial(make, example, tmp_path, training=training, prepare=prepare, log=log)

    return made


def run(trial: TorchTrial, pass_: Gptq, model: Any = None) -> PassResult:
    return pass_.run(trial.model if model is None else model, trial.context())


def weights(result: PassResult) -> dict[str, Any]:
    from safetensors.numpy import load_file

    folder: Any = result.model
    return dict(load_file(folder.folder / "weights.safetensors"))


def again(trial: TorchTrial, limit: int | None = None) -> TorchTrial:
    return replace(trial, log=RewriteLog(limit))


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.where: refusal.reason for refusal in result.refusals}


@needs_inc
def test_quantize_weights_finds_just_these_values(trial: Callable[..., TorchTrial]) -> None:
    found = weights(run(trial(), Gptq(samples=512)))
    for name in ("left", "right", "head"):
        weight = found[f"{name}.weight"]
        integers, scales = quantize_blocks(weight, 1, 32, 4)
        steps = np.repeat(scales, 32, axis=1)
        assert np.array_equal(integers * steps, weight)
        assert np.abs(integers).max() > 3
        b = GraphBuilder(21)
        x = b.input("x", ["batch", weight.shape[1]])
        b.node("MatMul", x, b.constant(np.ascontiguousarray(weight.T)), to="y")
        b.output("y", ["batch", len(weight)])
        model: Any = run_pass(QuantizeWeights(), b.model()).model
        constants = {v.name: v.const_value for v in model.ir.graph.initializers.values()}
        stored_integers = next(v for n, v in constants.items() if n.endswith("_quantized"))
        assert np.array_equal(stored_integers.numpy().astype(np.int8), integers.T)


@needs_inc
def test_less_is_lost_than_by_rounding_on_samples_it_did_not_see(
    trial: Callable[..., TorchTrial],
) -> None:
    before = Net().left.weight.detach().numpy()
    fitted = weights(run(trial(), Gptq(samples=512)))["left.weight"]
    integers, scales = quantize_blocks(before, 1, 32, 4)
    rounded = integers * np.repeat(scales, 32, axis=1)
    rows = samples(256, 99)
    lost = [np.square(rows @ (w - before).T).sum() for w in (fitted, rounded)]
    assert lost[0] < 0.7 * lost[1], lost
    # It is no rounding to the nearest: that is where the gain comes from.
    assert np.abs(fitted - before).max() > np.abs(rounded - before).max()


@needs_inc
def test_what_the_report_gets(trial: Callable[..., TorchTrial]) -> None:
    result = run(trial(), Gptq(samples=500))
    assert result.modified
    assert result.stats["layers"] == 3
    assert result.stats["samples"] == 500
    error, rounding = (float(result.stats[k]) for k in ("error", "rounding_error"))
    assert 0 < error < rounding < 0.05
    assert [r.where for r in result.rewrites] == ["left", "right", "head"]
    assert "3 layers on 500 samples" in result.notes[0]


@needs_inc
def test_the_contract(trial: Callable[..., TorchTrial]) -> None:
    pass_ = Gptq(block=16, samples=64)
    assert all(f"{section}:" in (Gptq.__doc__ or "") for section in SECTIONS)
    assert Gptq.model_validate_json(json.dumps(pass_.options())) == pass_
    assert all(field.description for field in Gptq.model_fields.values())
    one = trial()
    whole = run(one, pass_)
    assert run(again(one), pass_).model.digest == whole.model.digest
    assert whole.model.signature == one.model.signature
    second = run(again(one), pass_, whole.model)
    assert not second.modified
    assert second.model.digest == whole.model.digest
    assert set(reasons(second).values()) == {"its weights are on a 4-bit grid already"}


@needs_inc
def test_limit_stops_after_the_first_layers(trial: Callable[..., TorchTrial]) -> None:
    one = trial(limit=0)
    nothing = run(one, Gptq())
    assert not nothing.modified
    assert nothing.model.digest == one.model.digest
    whole, part = weights(run(again(one), Gptq())), run(again(one, 1), Gptq())
    assert [r.where for r in part.rewrites] == ["left"]
    found = weights(part)
    assert np.array_equal(found["left.weight"], whole["left.weight"])
    assert np.array_equal(found["right.weight"], Net().right.weight.detach().numpy())


class Odd(torch.nn.Module):  # type: ignore[misc, name-defined]
    """One layer of each kind that is refused, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        n = torch.nn
        self.fits = n.Linear(INPUTS, 32)
        self.narrow = n.Linear(40, 4)
        self.table = n.Embedding(8, 32)
        self.tied = n.Linear(32, 8, bias=False)
        self.tied.weight = self.table.weight
        self.normed = n.utils.parametrizations.weight_norm(n.Linear(32, 4))
        self.idle = n.Linear(32, 4)
        self.broken = n.Linear(32, 4)
        with torch.no_grad():
            self.broken.weight[0, 0] = float("inf")
        self.wide = n.Linear(32, 4).double()

    def forward(self, x: Any) -> Any:
        h = self.fits(input=x)
        made = [self.tied(h), self.normed(h), self.narrow(x[:, :40]), self.wide(h.double())]
        return {"y": torch.cat([m.float() for m in made], 1) + 0 * self.broken(h)[:, :1]}


@needs_inc
def test_what_does_not_fit_is_refused(trial: Callable[..., TorchTrial]) -> None:
    result = run(trial(Odd), Gptq(samples=64))
    assert [r.where for r in result.rewrites] == ["fits"]
    assert reasons(result) == {
        "narrow": "its 40 inputs are no multiple of 32",
        "tied": "its weight is that of `table` too",
        "normed": "its weight is computed from other parameters",
        "idle": "its inputs are not seen: another module reads its weight itself",
        "broken": "its weight holds infinities or NaNs",
        "wide": "its weight is torch.float64, not float32",
    }


@needs_inc
def test_what_keep_names_stays(trial: Callable[..., TorchTrial]) -> None:
    result = run(trial(), Gptq(keep=["h*"], samples=32))
    assert reasons(result) == {"head": "kept as it is by `h*`"}
    assert np.array_equal(weights(result)["head.weight"], Net().head.weight.detach().numpy())
    with pytest.raises(InputError, match="keep: `tail` names no Linear layer"):
        run(trial(), Gptq(keep=["tail"]))
    with pytest.raises(PreconditionError, match=r"no layer .* on a grid; left: kept as it is"):
        run(trial(), Gptq(keep=["*"]))


@needs_inc
def test_inputs_that_were_zero_keep_their_weights(trial: Callable[..., TorchTrial]) -> None:
    rows = samples().copy()
    rows[:, 5] = 0
    before = Net().left.weight.detach().numpy()
    after = weights(run(trial(rows=rows), Gptq()))["left.weight"]
    assert np.corrcoef(before[:, 5], after[:, 5])[0, 1] > 0.9


@needs_inc
@pytest.mark.parametrize(("value", "told"), [(0.0, "zeros alone"), (float("nan"), "not finite")])
def test_inputs_that_say_nothing_are_an_error(
    trial: Callable[..., TorchTrial], value: float, told: str
) -> None:
    rows = np.full((32, INPUTS), value, np.float32)
    with pytest.raises(PreconditionError, match=f"inputs of `left` are {told}") as error:
        run(trial(rows=rows), Gptq())
    assert "keep: [left]" in str(error.value.fix)


@needs_inc
def test_what_was_cut_stays_zero(trial: Callable[..., TorchTrial]) -> None:
    mask = torch.from_numpy(np.random.default_rng(0).random((32, INPUTS)) > 0.5)

    def cut(bench: Workbench) -> None:
        bench.masks["left.weight"] = mask
        bench.apply_masks()

    found = weights(run(trial(prepare=cut), Gptq()))["left.weight"]
    assert not found[~mask.numpy()].any()
    integers, scales = quantize_blocks(found, 1, 32, 4)
    assert np.array_equal(integers * np.repeat(scales, 32, axis=1), found)


def test_the_extra_is_named_where_it_is_missing(
    trial: Callable[..., TorchTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = find_spec
    missing = lambda name, *rest: None if name in NEEDED else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", missing)
    with pytest.raises(UnavailableError, match=r"pip install 'optimc\[inc\]'"):
        run(trial(), Gptq())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"block": 8}, "greater than or equal to 16"),
        ({"block": 48}, "48 is no power of two"),
        ({"samples": 0}, "greater than or equal to 1"),
        ({"bits": 3}, "Extra inputs are not permitted"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Gptq(**options)


@needs_inc
@pytest.mark.slow
def test_nothing_is_written_where_the_library_would(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    code = "from optimc.passes import _gptq_layers as g; print(g._neural_compressor().__name__)"
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "GPTQ\n", done.stderr
    assert done.stderr == ""
    assert not list(work.iterdir())
    assert not list(home.iterdir())


def noisy(values: Any, decibels: float) -> Any:
    noise = np.random.default_rng(1).normal(size=values.shape)
    noise *= np.sqrt(np.square(values).sum() / np.square(noise).sum()) * 10 ** (-decibels / 20)
    return (values + noise).astype(np.float32)


@pytest.mark.parametrize(
    ("four_bits", "graph_db", "engine_db", "verdict"),
    [
        (True, 130.0, 30.0, Verdict.LOSSY),
        (True, 130.0, 20.0, Verdict.FAILED),
        (True, 20.0, 18.0, Verdict.LOSSY),
        (True, 20.0, 15.0, Verdict.FAILED),
        (False, 130.0, 30.0, Verdict.FAILED),
    ],
)
def test_an_engine_need_not_be_as_exact_as_weights_that_were_on_the_grid(
    four_bits: bool, graph_db: float, engine_db: float, verdict: Verdict
) -> None:
    from optimc.pipeline.probes import Probe

    source = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    finding = judge_engine(
        "f32",
        lossy=True,
        probes=[Probe("seeded", {})],
        source=[{"y": source}],
        graph=[{"y": noisy(source, graph_db)}],
        engine=[{"y": noisy(source, engine_db)}],
        names=["y"],
        four_bits=four_bits,
    )
    assert finding.verdict is verdict, finding
