"""The metrics that recipes name: values, records over batches, drops, and wrong input."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, top_k_accuracy_score

from optimc.core.errors import InputError
from optimc.measure.metric import Metric
from optimc.measure.metrics import METRICS, compare, metric_for

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 400)
SCORES = RANDOM.normal(size=(400, 10)).astype(np.float32) + 2 * np.eye(10, dtype=np.float32)[LABELS]
WORSE = SCORES + RANDOM.normal(0, 0.4, SCORES.shape).astype(np.float32)


def records(metric: Metric, outputs, labels=None, source=None, batch=64):
    """What `metric` records of arrays (or dicts of them), batch by batch."""

    def part(values, start, size):
        if values is None:
            return None
        named = values if isinstance(values, dict) else {"out": values}
        return {name: array[start * size : (start + batch) * size] for name, array in named.items()}

    named = outputs if isinstance(outputs, dict) else {"out": outputs}
    rows = len(next(iter(named.values())))
    size = 2 if metric.name == "spearman" else 1
    recorder = metric.recorder()
    for start in range(0, rows // size, batch):
        piece = None if labels is None else labels[start : start + batch]
        recorder.update(part(outputs, start, size), piece, part(source, start, size))
    return recorder.records()


def drop(metric: Metric, source, candidate, labels):
    return compare(metric, records(metric, source, labels), records(metric, candidate, labels))


def test_top1_and_top5_are_shares_of_samples():
    for name, k in (("top1", 1), ("top5", 5)):
        metric = metric_for(name)
        expected = top_k_accuracy_score(LABELS, SCORES, k=k)
        assert metric.value(records(metric, SCORES, LABELS)) == pytest.approx(expected)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_agrees_with_scikit_learn(average):
    metric = metric_for("f1", {"average": average})
    rare = np.where(RANDOM.random(400) < 0.9, 0, LABELS)
    found = metric.value(records(metric, SCORES, rare))
    assert found == pytest.approx(f1_score(rare, SCORES.argmax(axis=1), average=average))


def test_spearman_compares_rows_2i_and_2i_plus_1():
    metric = metric_for("spearman")
    embeddings = RANDOM.normal(size=(200, 16)).astype(np.float32)
    gold = np.round(RANDOM.uniform(0, 5, 100), 0)
    a, b = embeddings[::2].astype(float), embeddings[1::2].astype(float)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = metric.value(records(metric, embeddings, gold, batch=7))
    assert found == pytest.approx(spearmanr(cosine, gold).statistic)


def test_cosine_and_mse_compare_with_the_source():
    source = RANDOM.normal(size=(50, 4, 3)).astype(np.float32)
    candidate = source + RANDOM.normal(0, 0.1, source.shape).astype(np.float32)
    cosine, mse = metric_for("cosine"), metric_for("mse")
    assert cosine.needs_source
    assert not cosine.needs_labels
    assert cosine.value(records(cosine, source, source=source)) == 1.0
    assert mse.value(records(mse, source, source=source)) == 0.0
    found = mse.value(records(mse, candidate, source=source))
    assert found == pytest.approx(float(((candidate - source) ** 2).mean()), rel=1e-5)
    similar = cosine.value(records(cosine, candidate, source=source))
    assert 0.98 < similar < 1.0


def test_cosine_and_mse_compare_with_labels_where_asked():
    labels = RANDOM.normal(size=(50, 4))
    metric = metric_for("mse", {"reference": "labels"})
    assert metric.needs_labels
    assert not metric.needs_source
    assert metric.value(records(metric, labels + 2.0, labels)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("name", "options"), [("top1", {}), ("f1", {}), ("f1", {"average": "micro"})]
)
def test_a_drop_is_positive_where_the_candidate_is_worse(name, options):
    metric = metric_for(name, options)
    interval = drop(metric, SCORES, WORSE, LABELS)
    values = [metric.value(records(metric, scores, LABELS)) for scores in (SCORES, WORSE)]
    assert interval.point == pytest.approx(values[0] - values[1])
    assert interval.point > 0
    assert interval.ci95[0] < interval.lower < interval.point < interval.upper < interval.ci95[1]
    assert interval.n == 400
    mirrored = drop(metric, WORSE, SCORES, LABELS)
    assert mirrored.point == pytest.approx(-interval.point)


def test_a_drop_of_a_lower_is_better_metric_is_positive_too():
    labels = RANDOM.normal(size=(60, 4))
    metric = metric_for("mse", {"reference": "labels"})
    interval = drop(metric, labels + 0.1, labels + 0.2, labels)
    assert interval.point == pytest.approx(0.03)


def test_a_drop_of_spearman_covers_its_point():
    metric = metric_for("spearman")
    embeddings = RANDOM.normal(size=(400, 16))
    gold = np.round(records(metric, embeddings, np.zeros(200))["similarity"] * 5)
    noisy = embeddings + RANDOM.normal(0, 0.5, embeddings.shape)
    interval = drop(metric, embeddings, noisy, gold)
    assert 0 < interval.ci95[0] < interval.point < interval.ci95[1] < 0.5


def test_no_disagreement_leaves_room_for_a_drop():
    """600 samples without a difference do not show that the drop is below 0.2 points."""
    for options in ({}, {"average": "micro"}):
        assert drop(metric_for("f1", options), SCORES, SCORES, LABELS).upper > 0.002
    assert drop(metric_for("top1"), SCORES, SCORES, LABELS).upper > 0.002


def test_batches_do_not_matter():
    for name, metric in ((n, metric_for(n)) for n in ("top1", "f1")):
        whole, parts = (records(metric, SCORES, LABELS, batch=batch) for batch in (400, 7))
        for key in whole:
            np.testing.assert_array_equal(whole[key], parts[key], err_msg=name)


def test_a_broken_output_is_wrong_and_not_right_by_chance():
    labels = np.zeros(20, dtype=np.int64)
    nan = np.full((20, 10), np.nan, dtype=np.float32)
    for name in ("top1", "top5", "f1"):
        metric = metric_for(name)
        assert metric.value(records(metric, nan, labels)) == 0.0
    constant = np.zeros((20, 10), dtype=np.float32)
    top5 = metric_for("top5")
    assert top5.value(records(top5, constant, np.arange(20) % 10)) == 0.5


def test_low_precision_outputs_and_class_numbers_are_taken():
    metric = metric_for("top1")
    expected = float((SCORES.argmax(axis=1) == LABELS).mean())
    coarse = SCORES.astype(ml_dtypes.bfloat16)
    assert metric.value(records(metric, coarse, LABELS)) == pytest.approx(expected, abs=0.02)
    numbers = SCORES.argmax(axis=1)
    assert metric.value(records(metric, numbers, LABELS[:, None])) == pytest.approx(expected)


def test_the_named_output_is_judged():
    outputs = {"boxes": SCORES[:, :4], "logits": SCORES}
    metric = metric_for("top1", {"output": "logits"})
    expected = float((SCORES.argmax(axis=1) == LABELS).mean())
    assert metric.value(records(metric, outputs, LABELS)) == pytest.approx(expected)
    with pytest.raises(InputError, match="unknown output `logit`") as error:
        records(metric_for("top1", {"output": "logit"}), outputs, LABELS)
    assert error.value.where == "metrics.top1.output"
    assert "logits" in (error.value.fix or "")


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "what"),
    [
        ("top1", SCORES, LABELS.astype(np.float32), "dtype float32; class numbers"),
        ("top1", SCORES, LABELS[:-1], "class numbers are integers"),
        ("top1", SCORES, LABELS + 1, "label 10 is no class of the model, which knows 0 to 9"),
        ("top1", SCORES, LABELS - 1, "label -1 is no class"),
        ("top1", SCORES[:, 0], LABELS, "not scores"),
        ("top1", SCORES, None, "have no labels"),
        ("top5", SCORES[:, :5], LABELS % 5, "says nothing about 5 classes"),
        ("top5", LABELS, LABELS, "holds class numbers, not scores"),
        ("spearman", SCORES[:399], LABELS[:200], "one for each of 399"),
        ("spearman", SCORES, LABELS, "shape \\[400\\] and dtype|two rows of a pair have different"),
        ("spearman", np.full_like(SCORES, np.nan), LABELS[:200], "NaN or infinity in 200"),
    ],
)
def test_wrong_input_gives_one_message(name, outputs, labels, what):
    recorder = metric_for(name).recorder()
    with pytest.raises(InputError, match=what) as error:
        recorder.update({"out": outputs}, labels)
    assert error.value.where == f"metrics.{name}"
    assert error.value.fix


def test_outputs_unlike_their_reference_are_refused():
    recorder = metric_for("cosine").recorder()
    with pytest.raises(InputError, match=r"shape \[400, 10\], its reference \[400, 9\]"):
        recorder.update({"out": SCORES}, None, {"out": SCORES[:, :9]})
    recorder = metric_for("mse").recorder()
    broken = np.where(np.arange(400)[:, None] == 3, np.inf, SCORES)
    with pytest.raises(InputError, match="NaN or infinity in 1 of a batch of 400"):
        recorder.update({"out": broken}, None, {"out": SCORES})


def test_empty_and_single_samples_are_refused():
    metric = metric_for("top1")
    with pytest.raises(InputError, match="hold no sample"):
        metric.recorder().records()
    one = records(metric, SCORES[:1], LABELS[:1])
    with pytest.raises(InputError, match="needs 2 samples"):
        compare(metric, one, one)


def test_records_of_other_samples_cannot_be_compared():
    metric = metric_for("top1")
    with pytest.raises(ValueError, match="different samples"):
        compare(metric, records(metric, SCORES, LABELS), records(metric, SCORES[:9], LABELS[:9]))


def test_unknown_names_and_options_get_a_hint():
    with pytest.raises(InputError, match="unknown metric `topone`") as error:
        metric_for("topone")
    assert error.value.where == "metrics.topone"
    assert "top1" in (error.value.fix or "")
    with pytest.raises(InputError, match="unknown option `avrage`") as error:
        metric_for("f1", {"avrage": "micro"})
    assert error.value.where == "metrics.f1.avrage"
    assert "did you mean `average`?" in (error.value.fix or "")
    with pytest.raises(InputError, match="'macro' or 'micro', not 'weighted'") as error:
        metric_for("f1", {"average": "weighted"})
    assert error.value.where == "metrics.f1.average"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_says_what_it_is(name):
    kind = METRICS[name]
    assert kind.__doc__
    assert kind.better in ("higher", "lower")
    assert all(field.description for field in kind.model_fields.values())
    assert not math.isnan(len(kind.unit))
