"""Training on real digits: it learns, it goes on after a kill, and it is the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.calibration.npz import NpzSource
from optimc.calibration.sample_store import store_samples
from optimc.core.errors import CellError, InputError, PreconditionError
from optimc.core.passes import Drop, PassResult
from optimc.passes._train_progress import judged_line, progress_line
from optimc.passes.train import Train
from optimc.testing.workshops import TorchTrial

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

if TYPE_CHECKING:
    from optimc.core.workbench import Workbench

DATA = Path(__file__).parents[2] / "recipes" / "quickstart"
FAST = {"epochs": 3, "batch": 32, "learning_rate": 0.1, "threads": 1}


def network(width: int = 8) -> Any:
    """float32 [n, 1, 8, 8] to logits [n, 10]."""
    torch.manual_seed(1)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


class Digits:
    """600 images of the quickstart's; a `core.passes.Training`."""

    digest = "digits"

    def __init__(self, folder: Path, labels: str | None = "labels") -> None:
        source = NpzSource(
            npz="digits_evaluation.npz",
            inputs={"input": "images"},
            labels=labels,
            transform=["nchw", {"divide": 16}],
        )
        self._folder = folder / ("labelled" if labels else "bare")
        store_samples(source.open(DATA, 0), self._folder)

    def stored(self) -> Path:
        return self._folder


class Judge:
    """The error on 200 other images, which is 0 for a perfect model; a `core.passes.Tuning`."""

    digest = "judge"
    metric = "top1"

    def __init__(self) -> None:
        with np.load(DATA / "digits_calibration.npz") as data:
            self._images = data["images"].transpose(0, 3, 1, 2).astype(np.float32) / 16
            self._labels = data["labels"]
        self.seen: list[float] = []

    def drop_of(self, run: Any) -> Drop:
        answer = next(iter(run({"input": self._images}).values()))
        error = float((answer.argmax(1) != self._labels).mean())
        self.seen.append(error)
        return Drop(error, error, error, 200)

    def drop(self, model: Any) -> Drop:
        raise AssertionError("not asked for")

    def sqnr_db(self, model: Any, reference: Any) -> float:
        raise AssertionError("not asked for")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def bare_digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"), labels=None)


@pytest.fixture
def trial(digits: Digits, tmp_path: Path) -> TorchTrial:
    example = {"input": torch.zeros(2, 1, 8, 8)}
    return TorchTrial(network, example, tmp_path, training=digits)


def train(trial: TorchTrial, **options: Any) -> PassResult:
    return Train(**{**FAST, **options}).run(trial.model, trial.context())


def tensors(result: PassResult) -> Mapping[str, Any]:
    from safetensors.numpy import load_file

    model: Any = result.model
    return load_file(model.folder / "weights.safetensors")


def assert_same(one: PassResult, other: PassResult) -> None:
    assert one.model.digest == other.model.digest


def test_it_learns_digits_and_keeps_the_best_epoch(trial: TorchTrial) -> None:
    judge = Judge()
    trial.tuning = judge
    result = train(trial, epochs=8)
    assert result.modified
    assert judge.seen[0] > 0.8
    best = min(judge.seen)
    assert best < 0.1
    assert judge.seen[int(result.stats["kept"])] == best
    assert trial.shop is not None
    assert Judge().drop_of(trial.shop.run).point == best
    assert any("drop on the tuning split" in note for note in result.notes)


def test_without_tuning_the_last_epoch_is_kept_and_the_report_says_so(trial: TorchTrial) -> None:
    result = train(trial)
    assert result.stats["kept"] == result.stats["epochs"] == 3
    assert any("there is no tuning split" in note for note in result.notes)
    trial.tuning = Judge()
    last = train(trial, keep="last")
    assert_same(last, result)
    assert any("`keep: last` says so" in note for note in last.notes)


def test_the_model_as_it_came_is_kept_where_no_epoch_is_better(trial: TorchTrial) -> None:
    class Fond(Judge):
        def drop_of(self, run: Any) -> Drop:
            self.seen.append(float(len(self.seen)))
            return Drop(self.seen[-1], 0, 0, 200)

    trial.tuning = Fond()
    result = train(trial)
    assert not result.modified
    assert result.model.digest == trial.model.digest
    assert any("as it came, which is kept" in note for note in result.notes)


def test_a_drop_that_is_no_number_is_never_the_best(trial: TorchTrial) -> None:
    class Planned(Judge):
        def __init__(self, *drops: float) -> None:
            self.left = list(drops)

        def drop_of(self, run: Any) -> Drop:
            point = self.left.pop(0)
            return Drop(point, point, point, 200)

    nan = float("nan")
    for drops, best in (((nan, 0.2, 0.1), 2), ((0.1, nan, 0.2), 0), ((nan, nan, nan), 0)):
        trial.tuning = Planned(*drops)
        assert train(trial, epochs=2).stats["kept"] == best


def test_the_same_recipe_gives_the_same_tensors(trial: TorchTrial) -> None:
    first = train(trial, augment=["flip", {"crop": 1}])
    again = train(trial, augment=["flip", {"crop": 1}])
    assert_same(first, again)
    trial.seed = 1
    assert train(trial, augment=["flip", {"crop": 1}]).model.digest != first.model.digest


class Killed(BaseException):
    """As a process ends: nothing may catch it."""


OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "adam", "learning_rate": 0.01},
    {"optimizer": "adamw", "learning_rate": 0.01, "augment": [{"crop": 1}]},
    # 16 numbers against 10: a linear map is trained along.
    {"distill": {"losses": [{"features": {"pairs": {"7": "8"}}}]}, "schedule": "one_cycle"},
    {"average": 0.9},
]


def test_the_line_of_progress_tells_all_that_one_waits_for(
    trial: TorchTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    loop = "optimc.passes._train_loop.tell"
    monkeypatch.setattr(loop, lambda share, text: told.append(text))
    train(trial, epochs=1)
    assert re.fullmatch(r"epoch 1/1, loss [\d.]+, \d+ s left", told[-1])
    trial.tuning = judge = Judge()
    told.clear()
    train(trial, epochs=2)
    assert re.fullmatch(
        rf"epoch 2/2, loss [\d.]+, top1 drop {judge.seen[1]:.4g}( \(best [\d.]+\))?, \d+ s left",
        told[-1],
    )


@pytest.mark.parametrize(
    ("drops", "line"),
    [
        ([], ""),
        ([None, None], ""),
        ([0.25], "top1 drop 0.25"),
        ([0.25, 0.5], "top1 drop 0.5 (best 0.25)"),
        ([0.25, float("nan")], "top1 drop nan (best 0.25)"),
        ([float("nan")], "top1 drop nan"),
    ],
)
def test_what_the_tuning_split_said_is_one_phrase(drops: list[float | None], line: str) -> None:
    assert judged_line("top1", drops) == line


def test_the_time_left_is_in_the_unit_that_suits_it() -> None:
    assert progress_line(1, 2, 0.5, 89) == "epoch 1/2, loss 0.5, 89 s left"
    assert progress_line(1, 2, 0.5, 600, "x") == "epoch 1/2, loss 0.5, x, 10 min left"
    assert progress_line(1, 2, 0.5, 7200) == "epoch 1/2, loss 0.5, 2.0 h left"


@pytest.mark.parametrize(
    ("options", "epoch"), list(zip(OPTIMIZERS, (2, 1, 2, 1, 2, 1), strict=True))
)
def test_it_goes_on_after_a_kill_to_the_same_tensors(
    trial: TorchTrial,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    epoch: int,
) -> None:
    from optimc.passes import _train_loop

    trial.tuning = Judge()
    whole = train(trial, **options)
    trial.unfinished = trial.folder / "unfinished"
    trial.unfinished.mkdir()
    learn, steps = _train_loop.Trainer._learn, []

    def until_killed(self: Any, *arguments: Any) -> Any:
        steps.append(arguments)
        if len(steps) == epoch * 19 + 7:  # 19 steps an epoch
            raise Killed
        return learn(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(_train_loop.Trainer, "_learn", until_killed)
        with pytest.raises(Killed):
            train(trial, **options)
    left = [path.name for path in trial.unfinished.iterdir()]
    assert left == [f"epoch-{epoch:05d}"]
    resumed = train(trial, **options)
    assert_same(resumed, whole)
    assert resumed.stats == whole.stats
    assert any(f"went on after epoch {epoch}" in note for note in resumed.notes)


def test_checkpoints_hold_no_code_and_damaged_ones_are_left_alone(trial: TorchTrial) -> None:
    trial.unfinished = trial.folder / "unfinished"
    trial.unfinished.mkdir()
    whole = train(trial)
    (left,) = trial.unfinished.iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["record.json", "tensors.safetensors"]
    (left / "tensors.safetensors").write_bytes(b"cut off")
    assert_same(train(trial), whole)


def test_a_checkpoint_of_other_options_is_not_gone_on_with(trial: TorchTrial) -> None:
    trial.unfinished = trial.folder / "unfinished"
    trial.unfinished.mkdir()
    train(trial)
    other = train(trial, learning_rate=0.05)
    assert not any("went on" in note for note in other.notes)


def test_masks_stay(trial: TorchTrial) -> None:
    def prepare(bench: Workbench) -> None:
        weight = bench.module.state_dict()["3.weight"]
        bench.masks = {"3.weight": torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0}
        bench.apply_masks()

    trial.prepare = prepare
    weight = tensors(train(trial, weight_decay=0.01))["3.weight"].reshape(-1)
    assert (weight[1::2] == 0).all()
    assert (weight[0::2] != 0).all()


def test_the_average_of_the_weights_is_kept(
    trial: TorchTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a <- d a + (1 - d) w, d rising to the decay; counters are the last ones."""
    from optimc.passes import _train_loop

    learn = _train_loop.Trainer._learn
    mean = {n: t.double().numpy() for n, t in network().state_dict().items()}
    last: dict[str, Any] = {}

    def watched(self: Any, batch: Any, number: int, step: int, epoch: int) -> Any:
        loss = learn(self, batch, number, step, epoch)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in self.bench.module.state_dict().items():
            last[name] = tensor.clone().numpy()
            mean[name] = decay * mean[name] + (1 - decay) * last[name]
        return loss

    monkeypatch.setattr(_train_loop.Trainer, "_learn", watched)
    found = tensors(train(trial, epochs=2, average=0.9))
    for name, array in found.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, mean[name], rtol=1e-4, atol=1e-6)
            assert not np.array_equal(array, last[name])
        else:
            assert array == last[name] == 38


def test_masks_hold_in_the_average(trial: TorchTrial) -> None:
    def prepare(bench: Workbench) -> None:
        weight = bench.module.state_dict()["3.weight"]
        bench.masks = {"3.weight": torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0}
        bench.apply_masks()

    trial.prepare = prepare
    weight = tensors(train(trial, average=0.9))["3.weight"].reshape(-1)
    assert (weight[1::2] == 0).all()
    assert (weight[0::2] != 0).all()


def test_batch_normalization_can_be_frozen(trial: TorchTrial) -> None:
    start = network().state_dict()["1.running_mean"].numpy()
    frozen = tensors(train(trial, freeze_batchnorm=True))
    np.testing.assert_array_equal(frozen["1.running_mean"], start)
    assert (tensors(train(trial))["1.running_mean"] != start).any()


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant", "one_cycle"])
def test_schedules(schedule: Any) -> None:
    made = Train(schedule=schedule, learning_rate=0.1)
    rates = [made.rate(step, 100, 10) for step in range(100)]
    last = {"cosine": 0.0, "step": 0.001, "constant": 0.1, "one_cycle": 0.0}
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(last[schedule], abs=1e-3)
    warm = Train(schedule=schedule, learning_rate=0.1, warm_up=1)
    assert warm.rate(0, 100, 10) == pytest.approx(rates[0] / 10)
    assert [warm.rate(step, 100, 10) for step in range(10, 100)] == rates[10:]


def test_milestones_are_shares_of_the_training() -> None:
    made = Train(schedule="step", milestones=[0.3, 0.6], factor=0.5, learning_rate=1.0)
    rates = [made.rate(step, 10, 1) for step in range(10)]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_early_stop(trial: TorchTrial) -> None:
    class Turning(Judge):
        def drop_of(self, run: Any) -> Drop:
            self.seen.append([0.5, 0.2, 0.1, 0.3, 0.3, 0.0][len(self.seen)])
            return Drop(self.seen[-1], 0, 0, 200)

    trial.tuning = Turning()
    result = train(trial, epochs=5, patience=2)
    assert (result.stats["epochs"], result.stats["kept"]) == (4, 2)
    assert any("4 of 5 epochs ran: no epoch was better than 2 for 2" in n for n in result.notes)


def test_a_time_limit_plans_fewer_epochs_and_the_lock_repeats_them(trial: TorchTrial) -> None:
    limited = train(trial, epochs=100_000, at_most="2 s")
    assert 1 <= int(limited.stats["epochs"]) <= limited.choice["planned"] < 100_000
    assert any("epochs ran: that is what 2 s were enough for" in note for note in limited.notes)
    trial.choice = limited.choice
    replayed = train(trial, epochs=100_000, at_most="2 s")
    assert_same(replayed, limited)
    assert replayed.choice == limited.choice


def test_a_locked_choice_trains_to_the_epoch_that_was_kept_without_judging(
    trial: TorchTrial,
) -> None:
    trial.tuning = Judge()
    free = train(trial, epochs=4)
    trial.choice = {"planned": 4, "best": 2, "threads": 1}
    trial.tuning = judge = Judge()
    locked = train(trial, epochs=4)
    assert judge.seen == []
    assert locked.stats["epochs"] == 2
    assert free.choice["planned"] == 4


def test_a_loss_that_is_no_number_stops_with_a_way_out(trial: TorchTrial) -> None:
    with pytest.raises(CellError, match="no finite number in epoch 1") as caught:
        train(trial, learning_rate=1e30, warm_up=0)
    assert "lower `learning_rate`" in (caught.value.fix or "")


# Distillation


@pytest.fixture(scope="module")
def teacher_file(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a trained network, twice as wide."""
    folder = tmp_path_factory.mktemp("teacher")
    example = {"input": torch.zeros(2, 1, 8, 8)}
    trial = TorchTrial(lambda: network(16), example, folder, training=digits)
    model: Any = train(trial, epochs=12).model
    path: Path = model.folder / "weights.safetensors"
    return path


@pytest.fixture
def taught(trial: TorchTrial, teacher_file: Path) -> TorchTrial:
    """A trial whose bench can open the factory `teachers:wide`."""
    import shutil

    from optimc.frontends._torch_sources import FactoryModel

    shutil.copy(teacher_file, trial.folder / "teacher.safetensors")
    (trial.folder / "train_teachers.py").write_text(TEACHERS)

    def prepare(bench: Workbench) -> None:
        source = bench._reopen

        def reopen(kind: str, options: Mapping[str, Any]) -> Any:
            if kind != "factory":
                assert source is not None
                return source(kind, options)
            order = ("call", "folder", "arguments", "weights", "declared", "seed")
            values = [Path(options[n]) if n == "folder" else options[n] for n in order]
            return FactoryModel(*values)

        bench._reopen = reopen

    trial.prepare = prepare
    return trial


TEACHERS = '''
import torch
from torch import nn

def wide(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )

def absolute(step, scale=1.0):
    return scale * (step.student["output"] - step.teacher["output"]).abs().mean()

def mixed(step):
    """A user's step: mixup (arXiv:1710.09412)."""
    order = torch.randperm(len(step.labels))
    images = step.feeds["input"]
    logits = step.forward({"input": 0.7 * images + 0.3 * images[order]})["output"]
    loss = nn.functional.cross_entropy
    return 0.7 * loss(logits, step.labels) + 0.3 * loss(logits, step.labels[order])

def in_float32(step):
    products = step.forward(step.feeds)["output"] @ torch.ones(10, 1)
    tensors = [products, *step.student.values(), *step.teacher.values()]
    assert step.student_features and step.teacher_features
    tensors += [*step.student_features.values(), *step.teacher_features.values()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    return absolute(step)

def broken(step):
    return step.student["missing"]

def plain(step):
    return 3.0
'''

WIDE = {
    "factory": "train_teachers:wide",
    "weights": {"file": "teacher.safetensors"},
    "arguments": {"width": 16},
}


def error_of(trial: TorchTrial) -> float:
    assert trial.shop is not None
    return Judge().drop_of(trial.shop.run).point


def test_a_student_learns_from_a_teacher_without_labels(
    taught: TorchTrial, bare_digits: Digits
) -> None:
    taught.training = bare_digits
    train(taught, epochs=8, distill={"teacher": WIDE})
    assert error_of(taught) < 0.1


EACH = [
    {"logits": {"temperature": 2.0}},
    {"features": {"pairs": {"2": "2", "5": "5"}}},
    {"attention_transfer": {"pairs": {"2": "2"}}},
    {"similarity_preserving": {"pairs": {"5": "5"}}},
    {"embedding": {"kind": "cosine"}},
    {"embedding": {"kind": "mse"}},
    {"call": "train_teachers:absolute", "arguments": {"scale": 2.0}, "weight": 0.5},
]


@pytest.mark.parametrize("loss", EACH, ids=lambda loss: next(iter(loss)))
def test_each_loss_falls_when_it_is_trained_on(taught: TorchTrial, loss: dict[str, Any]) -> None:
    distill = {"teacher": WIDE, "losses": [loss], "labels": 0.0}
    result = train(taught, distill=distill, schedule="constant", epochs=5)
    assert float(result.stats["last_loss"]) < 0.9 * float(result.stats["first_loss"])
    # Hints are dropped: the tensors are the student's alone.
    assert set(tensors(result)) == set(network().state_dict())


def test_in_bfloat16_it_learns_to_float32_weights_the_same_every_time(trial: TorchTrial) -> None:
    trial.tuning = Judge()
    result = train(trial, epochs=8, precision="bfloat16")
    assert error_of(trial) < 0.1
    found = tensors(result)
    assert all(array.dtype == np.float32 for array in found.values() if array.dtype.kind == "f")
    assert_same(train(trial, epochs=8, precision="bfloat16"), result)
    exact = tensors(train(trial, epochs=8))
    assert any(not np.array_equal(exact[name], array) for name, array in found.items())


@pytest.mark.parametrize("loss", EACH, ids=lambda loss: next(iter(loss)))
def test_losses_see_float32_whatever_is_computed_in(
    taught: TorchTrial, loss: dict[str, Any]
) -> None:
    hint = {"features": {"pairs": {"7": "7"}, "weight": 0.0}}
    losses = [loss, hint, {"call": "train_teachers:in_float32"}]
    distill = {"teacher": WIDE, "losses": losses, "labels": 0.0}
    result = train(taught, distill=distill, precision="bfloat16", schedule="constant", epochs=4)
    assert float(result.stats["last_loss"]) < 0.95 * float(result.stats["first_loss"])


def test_a_processor_without_bfloat16_is_told_of(
    trial: TorchTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimc.passes import _train_precision

    def said(features: set[str]) -> bool:
        monkeypatch.setattr(_train_precision, "cpu_features", lambda: frozenset(features))
        notes = train(trial, epochs=1, precision="bfloat16").notes
        return any("no instructions for bfloat16" in note for note in notes)

    if torch.cuda.is_available():
        pytest.skip("the GPU is what trains here")
    assert said({"avx2", "avx512f"})
    assert not said({"avx2", "avx512f", "avx512_bf16"})
    assert not said(set())


def test_the_source_is_the_teacher_by_default(trial: TorchTrial, bare_digits: Digits) -> None:
    trial.training = bare_digits

    def forget(bench: Workbench) -> None:
        with torch.no_grad():
            bench.module[8].weight.zero_()

    trial.prepare = forget
    train(trial, epochs=6, distill={})
    with np.load(DATA / "digits_calibration.npz") as data:
        images = data["images"].transpose(0, 3, 1, 2).astype(np.float32) / 16
    with torch.no_grad():
        source = network().eval()(torch.from_numpy(images)).numpy()
    assert trial.shop is not None
    answer = trial.shop.run({"input": images})["output"]
    assert np.abs(answer - source).max() < 0.3 * np.abs(source - source.mean()).max()


def test_answers_are_remembered_only_where_the_teacher_is_asked_the_same(
    taught: TorchTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimc.passes._train_teacher import ModuleTeacher

    asked: list[int] = []
    outputs = ModuleTeacher.outputs

    def counted(self: Any, feeds: Any) -> Any:
        asked.append(len(feeds["input"]))
        return outputs(self, feeds)

    monkeypatch.setattr(ModuleTeacher, "outputs", counted)
    train(taught, distill={"teacher": WIDE})
    assert sum(asked) == 600 + 8
    asked.clear()
    train(taught, distill={"teacher": WIDE}, augment=["flip"])
    assert sum(asked) == 3 * 600 + 8


def test_a_teacher_from_an_onnx_file(trial: TorchTrial, bare_digits: Digits) -> None:
    trial.training = bare_digits
    (trial.folder / "digits.onnx").write_bytes((DATA / "digits.onnx").read_bytes())
    distill: dict[str, Any] = {"teacher": {"onnx": "digits.onnx"}}
    train(trial, epochs=16, distill=distill)
    assert error_of(trial) < 0.1
    distill["losses"] = [{"features": {"pairs": {"2": "2"}}}]
    with pytest.raises(InputError, match="an ONNX file has none"):
        train(trial, distill=distill)


def test_weights_of_losses_may_change_during_the_training(taught: TorchTrial) -> None:
    def lost(weight: Any) -> list[float]:
        loss = {"logits": {"weight": weight}}
        distill = {"teacher": WIDE, "losses": [loss], "labels": 0.0}
        stats = train(taught, distill=distill, learning_rate=1e-9, epochs=2).stats
        return [float(stats["first_loss"]), float(stats["last_loss"])]

    first, last = lost(1.0)
    assert first == pytest.approx(last, rel=0.02)
    rising = lost({"first": 0.0, "last": 1.0})
    assert rising == pytest.approx([0.25 * first, 0.75 * first], rel=0.1)


def test_a_users_step_may_train_in_its_own_way(taught: TorchTrial) -> None:
    loss = {"call": "train_teachers:mixed"}
    train(taught, epochs=16, loss=loss)
    assert error_of(taught) < 0.15
    assert_same(train(taught, loss=loss), train(taught, loss=loss))


def test_files_that_decide_the_result_are_named(taught: TorchTrial) -> None:
    distill = {"teacher": WIDE, "losses": [{"call": "train_teachers:absolute"}]}
    named = Train(distill=distill, loss={"call": "train_teachers:mixed"}).files(taught.folder)
    assert {path.name for path in named} == {"teacher.safetensors", "train_teachers.py"}
    onnx = Train(distill={"teacher": {"onnx": "a.onnx"}}).files(taught.folder)
    assert onnx == [taught.folder / "a.onnx"]
    assert Train().files(taught.folder) == []


def test_the_files_of_a_teachers_weights_are_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(DATA / "digits.onnx"))
    onnx.save(
        model, tmp_path / "t.onnx", save_as_external_data=True, location="t.data", size_threshold=0
    )
    named = Train(distill={"teacher": {"onnx": "t.onnx"}}).files(tmp_path)
    assert named == [tmp_path / "t.onnx", tmp_path / "t.data"]
    (tmp_path / "t.onnx").write_bytes(b"no model")
    named = Train(distill={"teacher": {"onnx": "t.onnx"}}).files(tmp_path)
    assert named == [tmp_path / "t.onnx"]


def test_modules_beside_the_recipe_that_a_function_needs_are_named(tmp_path: Path) -> None:
    for name, text in {
        "my_losses.py": "import numpy, my_helpers\ndef loss(step):\n    from my_nets.wide import x",
        "my_helpers.py": "from . import my_losses",
        "my_nets/__init__.py": "",
        "my_nets/wide.py": "from .deep import blocks",
        "my_nets/deep/blocks.py": "import my_other",
        "my_other.py": "this is no Python",
        "my_unrelated.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    named = Train(loss={"call": "my_losses:loss"}).files(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in named} == {
        "my_losses.py",
        "my_helpers.py",
        "my_nets/__init__.py",
        "my_nets/wide.py",
        "my_nets/deep/blocks.py",
        "my_other.py",
    }
    teacher = {"factory": "my_nets.wide:make"}
    assert len(Train(distill={"teacher": teacher}).files(tmp_path)) == 4


def test_mean_squares_against_numbers(trial: TorchTrial, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((64, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=images, means=images.mean(axis=(1, 2, 3)))
    source = NpzSource(npz="a.npz", inputs={"input": "images"}, labels="means")
    store_samples(source.open(tmp_path, 0), tmp_path / "means")

    def scalar() -> Any:
        return torch.nn.Sequential(network(), torch.nn.Linear(10, 1))

    class Means:
        digest = "means"

        def stored(self) -> Path:
            return tmp_path / "means"

    trial.make, trial.training = scalar, Means()
    stats = train(trial, learning_rate=0.01, epochs=5).stats
    assert float(stats["last_loss"]) < 0.5 * float(stats["first_loss"])
    stats = train(trial, learning_rate=0.01, epochs=5, loss="l1").stats
    assert float(stats["last_loss"]) < float(stats["first_loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "the loss `mse` does not fit an output .8, 10."),
        ({"output": "boxes"}, "unknown output `boxes`"),
        ({"loss": {"call": "missing_module:f"}}, "cannot import `missing_module:f`"),
        ({"loss": {"call": "train_teachers:broken"}}, "`train_teachers:broken` raised KeyError"),
        ({"loss": {"call": "train_teachers:plain"}}, "gave float, not one number"),
        (
            {"distill": {"losses": [{"features": {"pairs": {"9": "2"}}}]}},
            "`9` is no module of the model",
        ),
        ({"distill": {"losses": [{"features": {"pairs": {"2": "5"}}}]}}, "features: `2` gives"),
        (
            {"distill": {"losses": [{"attention_transfer": {"pairs": {"2": "5"}}}]}},
            "attention_transfer: `2` gives",
        ),
        ({"distill": {"teacher": {"factory": "missing_module:f"}}}, "cannot import"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    taught: TorchTrial, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((CellError, InputError), match=message):
        train(taught, **options)
    assert taught.shop is not None
    assert taught.shop.calls == ["begin"]


def labelled(folder: Path, labels: Any) -> Any:
    """Training data: 16 random images with these labels."""
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(0).random((16, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "own.npz", images=images, labels=labels)
    source = NpzSource(npz="own.npz", inputs={"input": "images"}, labels="labels")
    store_samples(source.open(folder, 0), folder / "own")
    return SimpleNamespace(digest="own", stored=lambda: folder / "own")


FLOATS = np.linspace(0, 1, 16, dtype=np.float32)
CLASSES = np.arange(16) % 10


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (FLOATS, {}, r"labels are float32 .n., and the output is .10. for a sample: floats are"),
        (
            FLOATS,
            {"loss": "cross_entropy"},
            r"cross_entropy takes the numbers of classes.*0\.06667",
        ),
        (CLASSES + 1, {}, r"cross_entropy takes labels from 0 to 9 .*, and there are such as 10"),
        (CLASSES - 1, {}, "and there are such as -1"),
        (np.eye(10)[CLASSES] * 2.0, {"loss": "cross_entropy"}, "from 0 to 1 .shares of the cla"),
        (np.eye(10)[CLASSES] - 1.0, {"loss": "binary_cross_entropy"}, "from 0 to 1 .no and yes"),
        (np.where(FLOATS > 0.5, np.nan, FLOATS), {"loss": "mse"}, "labels hold infinities or NaNs"),
    ],
)
def test_labels_that_the_loss_does_not_take_are_said_before_training(
    trial: TorchTrial, labels: Any, options: dict[str, Any], message: str
) -> None:
    trial.training = labelled(trial.folder, labels)
    with pytest.raises(InputError, match=message) as caught:
        train(trial, **options)
    assert caught.value.where == "data.training"
    assert caught.value.fix
    assert trial.shop is not None
    assert trial.shop.calls == ["begin"]


def test_one_output_of_amounts_needs_another_loss_than_classes(trial: TorchTrial) -> None:
    trial.make = lambda: torch.nn.Sequential(network(), torch.nn.Linear(10, 1))
    trial.training = labelled(trial.folder, CLASSES % 2)
    with pytest.raises(InputError, match=r"one number for a sample .labels are int64 .n") as caught:
        train(trial)
    assert "`loss: mse`" in str(caught.value.fix)
    assert train(trial, loss="binary_cross_entropy", epochs=1).modified


def test_floats_that_are_classes_or_shares_of_them_are_taken(trial: TorchTrial) -> None:
    digests = []
    for labels in (CLASSES, CLASSES.astype(np.float32), np.eye(10, dtype=np.float32)[CLASSES]):
        trial.training = labelled(trial.folder / str(len(digests)), labels)
        result = train(trial, loss="cross_entropy", epochs=1)
        digests.append(tensors(result)["8.bias"])
    assert np.array_equal(digests[0], digests[1])
    assert np.allclose(digests[0], digests[2], atol=1e-5)


def test_data_without_labels_need_a_teacher(trial: TorchTrial, bare_digits: Digits) -> None:
    trial.training = bare_digits
    with pytest.raises(InputError, match="there is nothing to train on"):
        train(trial)
    with pytest.raises(InputError, match="no labels to train on: the data have none"):
        train(trial, distill={"labels": 0.5})


def test_what_is_wrong_before_work(trial: TorchTrial) -> None:
    with pytest.raises(PreconditionError, match="needs a tuning split"):
        Train(patience=2).check(trial.model, trial.context())
    missing = Train(distill={"teacher": {"onnx": "missing.onnx"}})
    with pytest.raises(PreconditionError, match=r"missing\.onnx is not there"):
        missing.check(trial.model, trial.context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"optimizer": "lion"}, "'sgd', 'adam' or 'adamw'"),
        ({"schedule": "cubic"}, "'cosine', 'step', 'constant' or 'one_cycle'"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"average": 1.0}, "less than 1"),
        ({"augment": ["rotate"]}, "flip"),
        ({"augment": [{"crop": 0}]}, "greater than or equal to 1"),
        ({"patience": 2, "keep": "last"}, "waits for a better epoch"),
        ({"milestones": [0.5, 0.2]}, "must rise"),
        ({"milestones": [30]}, "less than 1"),
        ({"at_most": 60}, "not a duration"),
        ({"distill": {"losses": [{}]}}, "no loss in one entry"),
        ({"distill": {"losses": [{"logits": {}, "call": "a:b"}]}}, "logits and call in one entry"),
        ({"distill": {"losses": [{"logits": {}, "weight": 1.0}]}}, "belong to `call` alone"),
        ({"distill": {"losses": [{"crd": {}}]}}, "Extra inputs"),
        ({"distill": {"losses": []}}, "at least 1"),
        ({"distill": {"teacher": "itself"}}, "source"),
        ({"distill": {"teacher": {}}}, "one of the three"),
        (
            {"distill": {"teacher": {"onnx": "a.onnx", "arguments": {"a": 1}}}},
            "belong to `factory`",
        ),
        ({"distill": {"losses": [{"call": "no function"}]}}, "pattern"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Train(**options)


def test_options_come_back_from_plain_data() -> None:
    made = Train(
        at_most="20 min",
        augment=["flip", {"crop": 4}],
        distill={"teacher": WIDE, "losses": [{"logits": {"weight": {"first": 1.0, "last": 0.0}}}]},
    )
    assert Train(**json.loads(json.dumps(made.options()))) == made


def test_augmentation_keeps_shapes_and_needs_images(trial: TorchTrial) -> None:
    from optimc.passes._train_augment import Crop, augmenter

    images = np.arange(2 * 1 * 4 * 4, dtype=np.float32).reshape(2, 1, 4, 4) + 1
    change = augmenter(["flip", Crop(crop=1)])
    assert change is not None
    made = change({"x": images, "n": np.ones((2, 3))}, np.random.default_rng(0))
    assert made["x"].shape == images.shape
    assert made["x"].dtype == np.float32
    assert (made["x"] != images).any()
    assert set(np.unique(made["x"])) <= {0.0, *np.unique(images)}
    np.testing.assert_array_equal(made["n"], np.ones((2, 3)))
    with pytest.raises(PreconditionError, match="leave `augment` out"):
        change({"ids": np.ones((2, 3))}, np.random.default_rng(0))
    assert augmenter([]) is None
