"""`qat`: the contract, that it wins accuracy back, what it keeps of the placement, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.errors import PreconditionError
from optimc.core.model import Model, OnnxModel
from optimc.core.passes import Drop, PassResult, Training
from optimc.passes.qat import Qat
from optimc.testing import PassContract
from optimc.testing.graphs import GraphBuilder
from optimc.testing.inline_workers import InlineWorker
from optimc.testing.quantizable import branches_and_pools
from optimc.testing.recoverable import (
    depthwise_chain,
    origin_of,
    quantized,
    quantized_models,
)
from optimc.testing.runs import run_model, run_pass, seeded_feeds
from optimc.testing.training_data import random_training, training_on

torch = pytest.importorskip("torch")

SHORT = Qat(epochs=1, batch=32)


@pytest.fixture(autouse=True)
def inline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The training runs in this process, but where a test is marked `slow`."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    if "slow" not in request.keywords:
        monkeypatch.setattr("optimc.core.worker.Worker", InlineWorker)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


class TestQat(PassContract):
    passes = (SHORT,)

    def models(self) -> Mapping[str, OnnxModel]:
        return quantized_models()

    def quantized_from(self, model: OnnxModel) -> OnnxModel | None:
        return origin_of(model)

    def training(self, model: OnnxModel) -> Training | None:
        return random_training(model)

    def test_second_run_changes_nothing(self, pass_: Any, name: str) -> None:
        """It trains on: what holds instead is that it starts from what it is given."""
        model = self.models()[name]
        last = Qat(epochs=1, batch=32, learning_rate=1e-9, scale_learning_rate=0.0)
        first = self._run(pass_, model).model
        assert isinstance(first, OnnxModel)
        again = self._run(last, first).model
        assert isinstance(again, OnnxModel)
        wanted, found = constants_of(first), constants_of(again)
        for key, array in found.items():
            if array.dtype.kind in "iu":
                assert np.abs(array.astype(np.int64) - wanted[key]).max(initial=0) <= 1, key
            else:
                assert np.allclose(array, wanted[key], rtol=1e-6, atol=0), key


def constants_of(model: OnnxModel) -> dict[str, Any]:
    """All initializers, by name."""
    return {
        name: value.const_value.numpy()  # type: ignore[union-attr]
        for name, value in model.ir.graph.initializers.items()
    }


def train(
    model: OnnxModel, origin: OnnxModel, pass_: Qat, samples: int = 256, **inputs: Any
) -> PassResult:
    """Runs the pass on random samples."""
    training = inputs.pop("training", None) or random_training(origin, samples)
    return run_pass(pass_, model, quantized_from=origin, training=training, **inputs)


def onnx_of(result: PassResult) -> OnnxModel:
    """The model of a result."""
    assert isinstance(result.model, OnnxModel)
    return result.model


def errors(origin: OnnxModel, *others: OnnxModel) -> list[float]:
    """The squared error of each of `others` on inputs that no training saw."""
    feeds = seeded_feeds(origin, sizes=(400,), seed=1)
    wanted, *found = (run_model(model, feeds)[0] for model in (origin, *others))
    return [float(sum(np.square(one[k] - wanted[k]).mean() for k in wanted)) for one in found]


def test_outputs_get_nearer_to_the_float_model() -> None:
    origin = depthwise_chain()
    before = quantized(origin, per_channel=False)
    result = train(before, origin, Qat(epochs=4, batch=16, learning_rate=0.05))
    plain, better = errors(origin, before, onnx_of(result))
    assert better < 0.2 * plain
    assert float(result.stats["last_loss"]) < float(result.stats["first_loss"])


@pytest.mark.parametrize("name", sorted(quantized_models()))
def test_the_placement_stays(name: str) -> None:
    before = quantized_models()[name]
    after = onnx_of(train(before, origin_of(before), SHORT))
    assert [(n.name, n.op_type) for n in after.ir.graph] == [
        (n.name, n.op_type) for n in before.ir.graph
    ]
    old, new = constants_of(before), constants_of(after)
    assert list(old) == list(new)
    for key, array in new.items():
        assert array.dtype == old[key].dtype
        if key.endswith("zero_point"):
            assert np.array_equal(array, old[key])
        elif array.dtype == np.int8:
            assert np.abs(array.astype(int)).max() <= 127
    assert any(not np.array_equal(old[k], new[k]) for k in new if new[k].dtype == np.int8)


@pytest.mark.parametrize("name", ["depthwise", "residual"])
def test_a_bias_keeps_the_scale_of_the_accumulator(name: str) -> None:
    before = quantized_models()[name]
    after = onnx_of(train(before, origin_of(before), SHORT))
    constants, seen, moved = constants_of(after), 0, 0
    old = constants_of(before)
    for node in after.ir.graph:
        makers = [value.producer() if value is not None else None for value in node.inputs]
        if node.op_type not in ("Conv", "Gemm") or len(makers) < 3:
            continue
        x, weight, bias = (str(maker.inputs[1].name) for maker in makers)  # type: ignore[union-attr]
        product = constants[x] * constants[weight]
        assert np.array_equal(constants[bias], np.broadcast_to(product, constants[bias].shape))
        seen += 1
        moved += not np.array_equal(constants[bias], old[bias])
    assert seen >= 3
    assert moved


def test_scales_that_integers_run_between_stay_one() -> None:
    origin = branches_and_pools()
    before = quantized(origin)
    after = onnx_of(train(before, origin, Qat(epochs=2, batch=16, scale_learning_rate=0.01)))
    old, new = constants_of(before), constants_of(after)
    pairs = [(a, b) for a, b in moved(before) if np.array_equal(old[a], old[b])]
    assert len(pairs) >= 3
    assert all(np.array_equal(new[a], new[b]) for a, b in pairs)
    assert any(not np.array_equal(old[a], new[a]) for a, _ in pairs)


def moved(model: OnnxModel) -> Iterator[tuple[str, str]]:
    """Names of scales on both sides of a Concat, MaxPool, Resize, Reshape or Transpose."""
    moves = ("Concat", "MaxPool", "Resize", "Reshape", "Transpose")
    for node in model.ir.graph:
        if node.op_type not in moves:
            continue
        before = [value.producer() for value in node.inputs if value is not None]
        behind = [use.node for use in node.outputs[0].uses()]
        for one in before:
            for other in behind:
                kinds = {one.op_type if one else "", other.op_type}
                if kinds == {"DequantizeLinear", "QuantizeLinear"}:
                    yield str(one.inputs[1].name), str(other.inputs[1].name)  # type: ignore[union-attr]


def test_frozen_layers_and_scales_stay() -> None:
    before = quantized_models()["depthwise chain"]
    origin = origin_of(before)
    result = train(before, origin, Qat(epochs=1, freeze=["Conv"], scale_learning_rate=0.0))
    old, new = constants_of(before), constants_of(onnx_of(result))
    changed = {key for key in new if not np.array_equal(old[key], new[key])}
    gemm = next(node for node in before.ir.graph if node.op_type == "Gemm")
    own = {str(v.producer().inputs[0].name) for v in gemm.inputs[1:]}  # type: ignore[union-attr]
    assert changed
    assert changed <= own


def test_a_frozen_layer_keeps_the_scale_of_its_accumulator() -> None:
    before = quantized_models()["depthwise chain"]
    options = Qat(epochs=1, freeze=["Gemm"], scale_learning_rate=0.01)
    after = onnx_of(train(before, origin_of(before), options))
    old, new = constants_of(before), constants_of(after)
    gemm = next(node for node in after.ir.graph if node.op_type == "Gemm")
    for value in gemm.inputs:
        scale = str(value.producer().inputs[1].name)  # type: ignore[union-attr]
        assert np.array_equal(old[scale], new[scale])
    assert any(not np.array_equal(old[k], new[k]) for k in new if k.endswith("_scale"))


def test_the_same_seed_gives_the_same_digest_and_another_another() -> None:
    before = quantized_models()["residual"]
    runs = [train(before, origin_of(before), SHORT, seed=seed).model.digest for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@dataclass
class PlannedTuning:
    """Gives drops as planned, whatever the model is; keeps the models' digests."""

    drops: list[float]
    digest: str = "planned"
    metric: str = "top1"
    seen: list[str] = field(default_factory=list)

    def drop(self, model: Model) -> Drop:
        """The next one; an interruption where none is left."""
        if len(self.seen) == len(self.drops):
            raise KeyboardInterrupt
        point = self.drops[len(self.seen)]
        self.seen.append(model.digest)
        return Drop(point, point, point, 100)

    def drop_of(self, run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Drop:
        """Nothing asks for it."""
        raise NotImplementedError

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """Nothing asks for it."""
        raise NotImplementedError


def test_the_epoch_that_is_best_on_the_tuning_split_is_kept() -> None:
    before = quantized_models()["residual"]
    tuning = PlannedTuning([0.05, 0.03, 0.01, 0.02])
    result = train(before, origin_of(before), Qat(epochs=3), tuning=tuning)
    assert result.model.digest == tuning.seen[2]
    assert (result.stats["epoch"], result.stats["tuning_drop"]) == (2, 0.01)
    assert result.stats["tuning_drop_before"] == 0.05
    last = train(before, origin_of(before), Qat(epochs=3, keep="last"), tuning=tuning)
    assert last.model.digest == tuning.seen[3]


def test_the_model_stays_where_no_epoch_is_better() -> None:
    before = quantized_models()["residual"]
    tuning = PlannedTuning([0.01, 0.02, 0.02])
    result = train(before, origin_of(before), Qat(epochs=2), tuning=tuning)
    assert not result.modified
    assert result.model.digest == before.digest
    assert not result.rewrites


def test_a_drop_that_is_no_number_is_never_the_best() -> None:
    before = quantized_models()["residual"]
    nan = float("nan")
    for drops, best in (([nan, 0.2, 0.1], 2), ([0.1, nan, 0.2], 0), ([nan, nan, nan], 0)):
        result = train(before, origin_of(before), Qat(epochs=2), tuning=PlannedTuning(drops))
        assert result.stats["epoch"] == best
        assert all(value == value for value in result.stats.values()), "NaN is no JSON"


def test_a_choice_in_the_lock_is_trained_to_without_judging() -> None:
    before = quantized_models()["residual"]
    origin, options = origin_of(before), Qat(epochs=3, batch=32)
    drops = [0.05, 0.03, 0.01, 0.02]
    free = train(before, origin, options, tuning=PlannedTuning(drops))
    assert free.choice == {"best": 2, "threads": torch.get_num_threads()}
    unasked = PlannedTuning([])
    locked = train(before, origin, options, tuning=unasked, choice=free.choice)
    assert locked.model.digest == free.model.digest
    assert locked.choice == free.choice
    assert unasked.seen == []
    assert locked.notes == ("trained to epoch 2, as the lock says",)
    stays = train(before, origin, options, choice={"best": 0, "threads": 1})
    assert not stays.modified
    assert stays.choice == {"best": 0, "threads": 1}


def test_without_tuning_the_last_epoch_is_the_choice() -> None:
    before = quantized_models()["residual"]
    result = train(before, origin_of(before), Qat(epochs=2, batch=64, threads=1))
    assert result.choice == {"best": 2, "threads": 1}


def test_a_checkpoint_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    before = quantized_models()["depthwise"]
    origin = origin_of(before)

    def notes(seed: int = 0, choice: Any = None, **options: Any) -> tuple[str, ...]:
        pass_ = Qat(**{"epochs": 2, "batch": 64, "threads": 1, **options})
        return tuple(
            train(before, origin, pass_, seed=seed, unfinished=tmp_path, choice=choice).notes
        )

    assert notes() == ()
    assert notes() == ("went on after epoch 2",)
    for other in ({"threads": 2}, {"learning_rate": 0.01}, {"seed": 1}):
        assert notes(**other) == (), other
    (said,) = notes(choice={"best": 1, "threads": 1})
    assert said == "trained to epoch 1, as the lock says"


def test_a_fixed_batch_is_filled_and_what_is_left_over_is_said() -> None:
    b = GraphBuilder()
    x = b.input("image", [8, 3, 8, 8])
    b.node("Conv", x, b.weight(4, 3, 3, 3, scale=0.2), b.weight(4), to="y")
    b.output("y", [8, 4, 6, 6])
    origin = b.model()
    before = quantized(origin)
    result = train(before, origin, Qat(epochs=1), training=loose(61))
    assert result.modified
    assert result.notes == (
        "5 of 61 samples are left out of each epoch: they fill no batch of 8, the model's own",
    )
    with pytest.raises(PreconditionError, match="do not fill one batch of 8") as caught:
        train(before, origin, Qat(epochs=1), training=loose(7))
    assert caught.value.fix == "give data.training more samples"


def loose(samples: int) -> Any:
    """Images for a model whose batch does not divide their number."""
    flexible = GraphBuilder()
    flexible.node("Relu", flexible.input("image", ["batch", 3, 8, 8]), to="y")
    flexible.output("y", ["batch", 3, 8, 8])
    return random_training(flexible.model(), samples)


def test_an_interrupted_training_comes_to_the_same_result(tmp_path: Path) -> None:
    before = quantized_models()["depthwise"]
    origin, drops = origin_of(before), [0.05, 0.01, 0.02, 0.03]
    unbroken = train(before, origin, Qat(epochs=3), tuning=PlannedTuning(drops))
    with pytest.raises(KeyboardInterrupt):
        train(before, origin, Qat(epochs=3), tuning=PlannedTuning(drops[:2]), unfinished=tmp_path)
    rest = PlannedTuning(drops[2:])
    resumed = train(before, origin, Qat(epochs=3), tuning=rest, unfinished=tmp_path)
    assert len(rest.seen) == 2, "the first epoch was trained again"
    assert resumed.model.digest == unbroken.model.digest
    assert dict(resumed.stats) == dict(unbroken.stats)


@pytest.mark.slow
def test_labels_are_learned_where_distillation_is_left_out() -> None:
    origin = depthwise_chain()
    before = quantized(origin)
    training = labelled(origin)
    # The range of the logits is far too small for labels: the last scale has to grow.
    rates = {"learning_rate": 1.0, "scale_learning_rate": 0.1}
    options = Qat.model_validate({"epochs": 10, "batch": 16, "distill": 0.0, **rates})
    after = onnx_of(train(before, origin, options, training=training))
    right = [accuracy(model, training) for model in (before, after)]
    assert right[1] > right[0] + 0.3


def labelled(model: OnnxModel) -> Any:
    """Samples for `model` with classes that have nothing to do with its outputs."""
    from optimc.calibration.npz import NpzSource

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 96)
    images = rng.normal(0, 1, (96, 3, 8, 8)) + labels[:, None, None, None]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        arrays = {"images": images.astype(np.float32), "labels": labels}
        np.savez(Path(folder) / "data.npz", **arrays)  # type: ignore[arg-type]
        written = {"npz": "data.npz", "inputs": {"image": "images"}, "labels": "labels"}
        data = NpzSource.model_validate(written).open(Path(folder), 0)
        return training_on(data, "labelled")


def accuracy(model: OnnxModel, training: Any) -> float:
    """The share of the training samples whose label is the largest logit."""
    from optimc.calibration.sample_store import StoredSamples

    batch = next(StoredSamples(training.stored()).in_order(1000))
    logits = run_model(model, [batch.feeds])[0]["logits"]
    return float((logits.argmax(1) == batch.labels).mean())


def test_missing_labels_are_an_error_with_the_way_out() -> None:
    before = quantized_models()["residual"]
    with pytest.raises(PreconditionError, match="numbers of classes") as caught:
        train(before, origin_of(before), Qat(distill=0.5))
    assert caught.value.fix == "write `distill: 1.0`, which needs no labels"


def test_a_float_model_is_refused_with_the_way_out() -> None:
    model = depthwise_chain()
    with pytest.raises(PreconditionError) as caught:
        run_pass(SHORT, model, training=random_training(model))
    assert caught.value.fix == "put qat behind quantize_int8"


def test_a_pattern_that_names_nothing_is_refused() -> None:
    before = quantized_models()["residual"]
    with pytest.raises(PreconditionError, match="freeze: `stem/\\*` names no node"):
        train(before, origin_of(before), Qat(freeze=["stem/*"]))


def test_freezing_everything_is_refused() -> None:
    before = quantized_models()["residual"]
    with pytest.raises(PreconditionError, match="there is nothing to train"):
        train(before, origin_of(before), Qat(freeze=["*"], scale_learning_rate=0.0))


def test_an_operator_without_a_torch_form_is_named() -> None:
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    h = b.node("Conv", x, b.weight(4, 3, 3, 3), name="stem")
    b.node("LpPool", h, kernel_shape=[2, 2], name="odd", to="y")
    b.output("y", ["batch", 4, 5, 5])
    origin = b.model()
    with pytest.raises(PreconditionError) as caught:
        train(quantized(origin), origin, SHORT)
    assert caught.value.what == "odd is a LpPool, for which there is no torch form"


def test_a_training_that_runs_away_is_an_error() -> None:
    before = quantized_models()["depthwise chain"]
    with pytest.raises(PreconditionError, match=r"the loss is (nan|inf) in step") as caught:
        train(before, origin_of(before), Qat(epochs=3, learning_rate=1e30, batch=8))
    assert caught.value.fix == "lower qat's learning_rate"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("learning_rate", 0.0),
        ("scale_learning_rate", -0.1),
        ("distill", 1.5),
        ("keep", "first"),
        ("threads", 0),
        ("freeze", "Conv"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        Qat.model_validate({option: value})


def test_zero_points_and_padding_that_are_integers_keep_their_meaning() -> None:
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    h = b.node("Conv", x, b.weight(4, 3, 3, 3, scale=0.2), b.weight(4))
    h = b.node("Pad", h, b.constant([0, 0, 1, 1, 0, 0, 1, 1]), b.constant(1.5))
    b.node("Conv", h, b.weight(4, 4, 3, 3, scale=0.2), to="y")
    b.output("y", ["batch", 4, 6, 6])
    origin = b.model()
    before = quantized(origin)
    pad = next(node for node in before.ir.graph if node.op_type == "Pad")
    fill = str(pad.inputs[2].name)  # type: ignore[union-attr]
    after = onnx_of(train(before, origin, Qat(epochs=2, scale_learning_rate=0.02)))
    old, new = constants_of(before), constants_of(after)
    dq = next(iter(pad.outputs[0].uses())).node
    scale = str(dq.inputs[1].name)  # type: ignore[union-attr]
    assert np.array_equal(old[fill], new[fill])
    assert np.array_equal(old[scale], new[scale]), "1.5 is stored in steps of this scale"
