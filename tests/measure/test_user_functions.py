"""A metric of the user's own as a factory, or as a function of a batch."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from optimc.core.errors import InputError
from optimc.measure.metrics import compare, metric_for
from optimc.measure.user_function import FunctionMetric
from optimc.measure.user_metric import LoadedMetric, UserMetric

CODE = """
import numpy as np

class Counter:
    better, unit = "lower", "words"
    def __init__(self, weight):
        self.weight, self.total, self.count = weight, 0.0, 0
    def update(self, outputs, labels):
        self.total += self.weight * sum(len(label["words"]) for label in labels)
        self.count += len(labels)
    def compute(self):
        return self.total / self.count

def counter():
    return Counter(2.0)

def wrong_factory():
    return 3

def failing_factory():
    raise OSError("no dictionary")

def error(outputs, labels):
    return np.abs(outputs["x"][:, 0] - labels)
error.better = "lower"

def silent(outputs, labels):
    return np.zeros(len(labels))

def one_number(outputs, labels):
    return 0.5

def too_few(outputs, labels):
    return np.zeros(len(labels) - 1)

def not_a_number(outputs, labels):
    return np.where(np.arange(len(labels)) == 1, np.nan, 1.0)

def raising(outputs, labels):
    return outputs["y"]
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "users_functions.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("users_functions", None)


def loaded(name: str, **options):
    metric = metric_for("mine", {"call": f"users_functions:{name}", **options})
    assert isinstance(metric, UserMetric)
    return metric.load()


def test_a_factory_makes_the_object_and_says_what_it_is():
    metric = loaded("counter")
    assert isinstance(metric, LoadedMetric)
    assert (metric.better, metric.unit) == ("lower", "words")
    recorder = metric.recorder()
    labels = [{"words": np.arange(n % 3)} for n in range(40)]  # mappings, ragged
    for start in range(0, 40, 8):
        recorder.update({"x": np.zeros((8, 2))}, labels[start : start + 8])
    records = recorder.records()
    assert metric.value(records) == pytest.approx(2 * np.mean([n % 3 for n in range(40)]))
    assert compare(metric, records, records).point == 0


def test_a_function_gives_a_number_for_each_sample():
    metric = loaded("error", unit="degrees")
    assert isinstance(metric, FunctionMetric)
    assert (metric.better, metric.unit) == ("lower", "degrees")
    random = np.random.default_rng(0)
    labels = random.normal(size=50)
    source, candidate = metric.recorder(), metric.recorder()
    for rows in np.array_split(np.arange(50), 7):
        source.update({"x": labels[rows, None] + 0.1}, labels[rows])
        candidate.update({"x": labels[rows, None] + 0.3}, labels[rows])
    interval = compare(metric, source.records(), candidate.records())
    assert metric.value(candidate.records()) == pytest.approx(0.3)
    assert interval.point == pytest.approx(0.2)
    assert interval.n == 50


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("silent", "nothing says which way"),
        ("wrong_factory", "`users_functions:wrong_factory` has no method update and compute"),
        ("failing_factory", "`users_functions:failing_factory` raised OSError: no dictionary"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(name, what):
    with pytest.raises(InputError, match=what) as error:
        loaded(name)
    assert error.value.fix


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("one_number", "gave float of shape \\[\\], not one number for each of the 4 samples"),
        ("too_few", "gave ndarray of shape \\[3\\], not one number"),
        ("not_a_number", "gave nan for sample 1"),
        ("raising", "raised KeyError: 'y'"),
    ],
)
def test_what_a_function_gives_wrongly_names_it(name, what):
    recorder = loaded(name, better="higher").recorder()
    with pytest.raises(InputError, match=f"`users_functions:{name}` {what}") as error:
        recorder.update({"x": np.zeros((4, 1))}, np.zeros(4))
    assert error.value.where == "metrics.mine"


def test_an_interval_needs_two_samples():
    recorder = loaded("error").recorder()
    recorder.update({"x": np.zeros((1, 1))}, np.zeros(1))
    with pytest.raises(InputError, match="needs 2 samples"):
        recorder.records()
