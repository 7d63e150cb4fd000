"""McNemar's exact test, agreement and worst samples, from the records of two models."""

from __future__ import annotations

import numpy as np
import pytest

from optimc.measure.metrics import metric_for
from optimc.measure.paired import mcnemar
from optimc.measure.sample_scores import MOST_WORST, evidence, sample_scores


def records(correct, predicted=None):
    found = {"correct": np.array(correct, bool)}
    return found if predicted is None else {**found, "predicted": np.array(predicted)}


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (6, 0, 0.03125), (10, 2, 158 / 4096), (59, 6, 1.0e-11)],
)
def test_mcnemar_is_exact(lost, won, p):
    # By hand: twice the smaller tail of the binomial of fair coins.
    found = mcnemar(lost, won)
    assert found == mcnemar(won, lost)
    if p > 1e-9:
        assert found == pytest.approx(p, rel=1e-9)
    else:
        assert found < 1e-10


def test_labels_lost_won_and_agreed():
    source = records([1, 1, 1, 0, 0], [3, 1, 4, 1, 5])
    candidate = records([1, 0, 0, 1, 0], [3, 2, 2, 9, 6])
    found = evidence(source, candidate, "higher")
    assert (found.lost, found.won) == (2, 1)
    assert found.mcnemar_p == 1.0
    assert found.agreement == pytest.approx(1 / 5)
    assert [(w.number, w.source, w.candidate) for w in found.worst] == [(1, 1, 0), (2, 1, 0)]


def test_scores_have_worst_samples_but_no_labels():
    source = {"score": np.array([0.9, 0.9, 0.9, 0.9])}
    candidate = {"score": np.array([0.95, 0.1, 0.9, 0.5])}
    found = evidence(source, candidate, "higher")
    assert [(w.number, w.candidate) for w in found.worst] == [(1, 0.1), (3, 0.5)]
    assert found.lost == found.mcnemar_p == "the metric does not count right answers"
    assert found.agreement == "the metric knows no label for each sample"


def test_where_lower_is_better_the_greatest_is_the_worst():
    source, candidate = {"score": np.array([1.0, 2.0])}, {"score": np.array([5.0, 1.0])}
    found = evidence(source, candidate, "lower")
    assert [(w.number, w.source, w.candidate) for w in found.worst] == [(0, 1.0, 5.0)]


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_correlations_have_the_pairs_that_moved_farthest_from_their_label(name):
    metric = metric_for(name)
    gold = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    source = {"similarity": np.array([0.1, 0.2, 0.3, 0.4, 0.5]), "gold": gold}
    candidate = {"similarity": np.array([0.9, 0.2, 0.3, 0.4, 0.5]), "gold": gold}
    found = evidence(source, candidate, metric.better)
    # By hand: ranks 5 1 2 3 4 against 1 2 3 4 5, of 4 at most.
    assert [(w.number, w.source, w.candidate) for w in found.worst] == [
        (0, 1.0, 0.0),
        (1, 1.0, 0.75),
        (2, 1.0, 0.75),
        (3, 1.0, 0.75),
        (4, 1.0, 0.75),
    ]
    assert found.lost == "the metric does not count right answers"


def test_tied_pairs_get_their_mean_rank():
    records = {"similarity": np.array([0.5, 0.5, 0.5]), "gold": np.array([1.0, 2.0, 3.0])}
    assert sample_scores(records).tolist() == [0.5, 1.0, 0.5]
    assert sample_scores({"similarity": np.ones(1), "gold": np.ones(1)}).tolist() == [1.0]


def test_metrics_over_the_whole_set_say_nothing_of_samples():
    found = evidence({"nll": np.ones(3)}, {"nll": np.ones(3)}, "lower")
    assert found.worst == ()
    assert isinstance(found.lost, str)


def test_scores_beside_other_records_are_those_of_boxes():
    # As detections are recorded: a row for each box, though here as many as there are samples.
    boxes = {"score": np.array([0.9, 0.1]), "image": np.array([0, 1])}
    assert sample_scores({"score": boxes["score"]}) is not None
    assert sample_scores(boxes) is None
    found = evidence(boxes, {**boxes, "score": np.array([0.2, 0.1])}, "higher")
    assert found.worst == ()
    assert isinstance(found.lost, str)


def test_few_worst_samples_are_kept():
    source, candidate = records(np.ones(100)), records(np.zeros(100))
    assert len(evidence(source, candidate, "higher").worst) == MOST_WORST


def test_top1_and_f1_record_what_agreement_needs():
    labels = np.array([0, 1, 2])
    ours = {"y": np.eye(3, dtype=np.float32)}
    theirs = {"y": np.eye(3, dtype=np.float32)[[0, 2, 1]]}
    for name in ("top1", "f1"):
        found = []
        for outputs in (ours, theirs):
            recorder = metric_for(name).recorder()
            recorder.update(outputs, labels)
            found.append(recorder.records())
        assert evidence(found[0], found[1], "higher").agreement == pytest.approx(1 / 3)
        assert evidence(found[0], found[1], "higher").lost == 2
