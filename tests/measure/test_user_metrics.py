"""A metric of the user's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from optimc.core.errors import InputError
from optimc.measure.metrics import compare, metric_for
from optimc.measure.user_metric import LoadedMetric, UserMetric

CODE = '''
import numpy as np
IMPORTED = []

class Accuracy:
    better = "higher"
    unit = "fraction"

    def __init__(self):
        self.right = self.all = 0

    def update(self, outputs, labels):
        predicted = outputs["logits"].argmax(axis=1)
        labels = labels["class"] if isinstance(labels, dict) else np.asarray(labels)
        self.right += int((predicted == labels).sum())
        self.all += len(labels)

    def compute(self):
        return self.right / self.all

class Silent(Accuracy):
    better = None

class Failing(Accuracy):
    def update(self, outputs, labels):
        raise KeyError("scores")

class NotANumber(Accuracy):
    def compute(self):
        return float("nan")

class Whole:
    """Takes batches as they are: its outputs belong to no sample."""
    better = "lower"

    def __init__(self):
        self.seen = []

    def update(self, outputs, labels):
        assert len(outputs["boxes"]) == 7
        self.seen.append(float(outputs["boxes"].mean()))

    def compute(self):
        return sum(self.seen) / len(self.seen)

class NoCompute:
    better = "higher"
    def update(self, outputs, labels):
        pass

number = 3
'''

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 300)
SOURCE = RANDOM.normal(size=(300, 10)) + 3 * np.eye(10)[LABELS]
WORSE = SOURCE + RANDOM.normal(0, 0.7, SOURCE.shape)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "someones_metrics.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "broken_metrics.py").write_text("raise RuntimeError('no GPU here')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("someones_metrics", "broken_metrics"):
        sys.modules.pop(name, None)


def loaded(name: str, **options) -> LoadedMetric:
    metric = metric_for("mine", {"call": f"someones_metrics:{name}", **options})
    assert isinstance(metric, UserMetric)
    return metric.load()


def recorded(metric: LoadedMetric, scores, labels=LABELS, batch=32):
    recorder = metric.recorder()
    for start in range(0, len(scores), batch):
        stop = start + batch
        part = (
            {k: v[start:stop] for k, v in labels.items()}
            if isinstance(labels, dict)
            else (labels[start:stop])
        )
        recorder.update({"logits": scores[start:stop]}, part)
    return recorder.records()


def test_naming_a_metric_imports_nothing():
    metric = metric_for("mine", {"call": "someones_metrics:Accuracy"})
    assert isinstance(metric, UserMetric)
    assert "someones_metrics" not in sys.modules


@pytest.mark.parametrize("kind", ["array", "list", "mapping"])
def test_it_is_computed_and_its_drop_has_an_interval(kind):
    labels = {"array": LABELS, "list": LABELS.tolist(), "mapping": {"class": LABELS}}[kind]
    metric = loaded("Accuracy")
    assert (metric.better, metric.unit) == ("higher", "fraction")
    source, candidate = recorded(metric, SOURCE, labels), recorded(metric, WORSE, labels)
    assert metric.value(source) == pytest.approx((SOURCE.argmax(1) == LABELS).mean())
    interval = compare(metric, source, candidate)
    own = compare(
        metric_for("top1"),
        {"correct": SOURCE.argmax(1) == LABELS},
        {"correct": WORSE.argmax(1) == LABELS},
    )
    assert interval.point == pytest.approx(own.point)
    assert interval.point > 0
    assert interval.n == 300
    # The same data by Tango's interval, which knows that these are shares.
    width, expected = np.diff(interval.ci95)[0], np.diff(own.ci95)[0]
    assert 0.5 * expected < width < 2 * expected


def test_the_recipe_says_which_way_is_better_and_in_which_unit():
    metric = loaded("Silent", better="lower", unit="points")
    assert (metric.better, metric.unit) == ("lower", "points")
    interval = compare(metric, recorded(metric, SOURCE), recorded(metric, WORSE))
    assert interval.point < 0


def test_outputs_that_belong_to_no_sample_go_in_whole_batches():
    metric = loaded("Whole")
    source, candidate = metric.recorder(), metric.recorder()
    for batch in range(30):
        boxes = RANDOM.normal(batch, 1, (7, 4))
        source.update({"boxes": boxes}, [0, 1])
        candidate.update({"boxes": boxes + 0.5}, [0, 1])
    interval = compare(metric, source.records(), candidate.records())
    assert interval.point == pytest.approx(0.5)
    assert interval.n == 30


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("someones_metrics:Nothing", "cannot import `someones_metrics:Nothing`: AttributeError"),
        ("absent_metrics:Accuracy", "No module named 'absent_metrics'"),
        ("broken_metrics:Accuracy", "RuntimeError: no GPU here"),
        ("someones_metrics:Silent", "nothing says which way"),
        ("someones_metrics:NoCompute", "has no method compute"),
        ("someones_metrics:number", "has no method update and compute"),
    ],
)
def test_what_does_not_fit_gives_one_message(call, what):
    metric = metric_for("mine", {"call": call})
    assert isinstance(metric, UserMetric)
    with pytest.raises(InputError, match=what) as error:
        metric.load()
    assert (error.value.where or "").startswith("metrics.mine")
    assert error.value.fix


def test_what_the_users_code_raises_becomes_one_message():
    with pytest.raises(InputError, match="`someones_metrics:Failing` raised KeyError: 'scores'"):
        recorded(loaded("Failing"), SOURCE)
    with pytest.raises(InputError, match="computed nan"):
        recorded(loaded("NotANumber"), SOURCE)


def test_a_single_sample_is_refused():
    with pytest.raises(InputError, match="needs 2 samples, the evaluation data hold 1"):
        recorded(loaded("Accuracy"), SOURCE[:1])


@pytest.mark.parametrize("call", ["no colon", "a:b:c", "a/b:C", ":C"])
def test_a_call_has_one_form(call):
    with pytest.raises(InputError) as error:
        metric_for("mine", {"call": call})
    assert error.value.where == "metrics.mine.call"
