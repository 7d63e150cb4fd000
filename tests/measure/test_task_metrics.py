"""Metrics of tokens, answers, detection, segmentation and pairs, against known values."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, jaccard_score

from optimc.core.errors import InputError
from optimc.measure.answers import words
from optimc.measure.metrics import compare, metric_for
from optimc.measure.tokens import spans

RANDOM = np.random.default_rng(7)


def gathered(metric, outputs, labels, batch=5):
    """Records of outputs and labels given in batches."""
    recorder = metric.recorder()
    for start in range(0, len(labels), batch):
        part = {name: array[start : start + batch] for name, array in outputs.items()}
        recorder.update(part, labels[start : start + batch])
    return recorder.records()


def test_token_f1_leaves_out_ignored_tokens_and_takes_short_labels():
    logits = RANDOM.normal(size=(23, 9, 5)).astype(np.float32)
    labels = [RANDOM.integers(0, 5, RANDOM.integers(2, 10)) for _ in range(23)]
    for row in labels:
        row[0] = -100
    gold = np.concatenate([row[1:] for row in labels])
    said = np.concatenate([logits[i, 1 : len(row)].argmax(1) for i, row in enumerate(labels)])
    for average in ("micro", "macro"):
        metric = metric_for("token_f1", {"average": average})
        value = metric.value(gathered(metric, {"logits": logits}, labels))
        assert value == pytest.approx(f1_score(gold, said, average=average))
    without = metric_for("token_f1", {"exclude": [0]})
    value = without.value(gathered(without, {"logits": logits}, labels))
    assert value == pytest.approx(f1_score(gold, said, average="micro", labels=[1, 2, 3, 4]))


def test_token_f1_of_class_numbers_takes_batches_with_other_classes():
    metric = metric_for("token_f1")
    said = np.array([[0, 0], [0, 1], [3, 3]])
    records = gathered(metric, {"tags": said}, np.array([[0, 0], [1, 1], [3, 0]]), batch=1)
    assert metric.value(records) == pytest.approx(4 / 6)


NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_spans_follow_the_shared_task():
    tags = ["B-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER", "B-PER", "I-LOC"]
    expected = [("PER", 0, 1), ("LOC", 3, 3), ("PER", 4, 4), ("PER", 5, 5), ("PER", 6, 6)]
    assert list(spans(tags)) == [*expected, ("LOC", 7, 7)]


def test_span_f1_wants_type_and_both_ends():
    metric = metric_for("span_f1", {"labels": NAMES})
    gold = np.array([[1, 2, 0, 3, 4], [1, 0, 0, -100, -100]])
    said = np.array([[1, 2, 0, 3, 0], [1, 0, 3, 1, 1]])  # PER right, LOC too short; PER, LOC more
    records = gathered(metric, {"tags": said}, gold, batch=1)
    assert metric.value(records) == pytest.approx(2 * 2 / (4 + 3))
    macro = metric_for("span_f1", {"labels": NAMES, "average": "macro"})
    assert macro.value(gathered(macro, {"tags": said}, gold)) == pytest.approx((1.0 + 0.0) / 2)


def test_a_span_label_that_is_no_iob2_is_refused():
    with pytest.raises(InputError, match="`PER` is no IOB2 label"):
        metric_for("span_f1", {"labels": ["O", "PER"]})


@pytest.mark.parametrize("shift", [True, False])
def test_perplexity_is_that_of_the_right_tokens(shift):
    metric = metric_for("perplexity", {"shift": shift})
    logits = RANDOM.normal(size=(6, 7, 11)).astype(np.float32)
    labels = RANDOM.integers(0, 11, (6, 7))
    labels[0, 4:] = -100
    chances = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(2, keepdims=True)
    loss = []
    for i, j in np.ndindex(6, 7):
        place = j - 1 if shift else j
        if labels[i, j] >= 0 and place >= 0:
            loss.append(-math.log(chances[i, place, labels[i, j]]))
    value = metric.value(gathered(metric, {"logits": logits}, labels))
    assert value == pytest.approx(math.exp(np.mean(loss)))


def test_a_worse_perplexity_is_a_positive_drop_with_its_interval():
    metric = metric_for("perplexity")
    labels = RANDOM.integers(0, 11, (40, 12))
    logits = RANDOM.normal(size=(40, 12, 11)) + 2 * np.roll(np.eye(11)[labels], -1, axis=1)
    worse = logits + RANDOM.normal(0, 1.0, logits.shape)
    source, candidate = (gathered(metric, {"logits": x}, labels) for x in (logits, worse))
    interval = compare(metric, source, candidate)
    assert interval.point == pytest.approx(metric.value(candidate) - metric.value(source))
    assert 0 < interval.ci95[0] < interval.point < interval.ci95[1]
    assert interval == compare(metric, source, candidate)
    assert interval.n == 40


def test_miou_is_over_the_pixels_of_all_images():
    metric = metric_for("miou")
    scores = RANDOM.normal(size=(9, 4, 6, 5)).astype(np.float32)
    labels = RANDOM.integers(0, 4, (9, 6, 5))
    labels[2:4, :3] = 255
    keep = labels != 255
    expected = jaccard_score(labels[keep], scores.argmax(1)[keep], average="macro")
    assert metric.value(gathered(metric, {"logits": scores}, labels)) == pytest.approx(expected)
    assert metric.value(
        gathered(metric, {"map": scores.argmax(1)}, list(labels), batch=2)
    ) == pytest.approx(expected)


def test_masks_of_0_and_255_are_no_masks_of_two_classes():
    rng = np.random.default_rng(3)
    metric = metric_for("miou")
    masks = np.where(rng.integers(0, 2, (4, 6, 5)), 255, 0)
    records = gathered(metric, {"logits": rng.normal(size=(4, 2, 6, 5))}, masks)
    with pytest.raises(InputError, match="every pixel that counts has the label 0; 255 does not"):
        metric.value(records)
    told = metric_for("miou", {"ignore_index": 7})
    with pytest.raises(InputError, match="a label is 255, and the model knows the classes 0 to 1"):
        gathered(told, {"logits": rng.normal(size=(4, 2, 6, 5))}, masks)


def test_miou_brings_scores_to_the_size_of_labels_where_told():
    torch = pytest.importorskip("torch")
    scores = RANDOM.normal(size=(3, 4, 5, 7)).astype(np.float32)
    labels = [RANDOM.integers(0, 4, size) for size in ((10, 14), (9, 20), (3, 4))]
    with pytest.raises(InputError, match=r"the output is \[5, 7\], a label \[10, 14\]"):
        gathered(metric_for("miou"), {"logits": scores}, labels)
    metric = metric_for("miou", {"resize": "bilinear"})
    found = gathered(metric, {"logits": scores}, labels)
    for row, (one, label) in enumerate(zip(scores, labels, strict=True)):
        resized = torch.nn.functional.interpolate(
            torch.tensor(one[None]), label.shape, mode="bilinear", align_corners=False
        )
        assert (found["said"][row] == np.bincount(resized[0].argmax(0).ravel(), minlength=4)).all()


@pytest.mark.parametrize("name", ["token_f1", "miou"])
def test_samples_that_all_agree_do_not_make_a_drop_known_exactly(name):
    metric = metric_for(name)
    labels = RANDOM.integers(0, 3, (50, 4) if name == "token_f1" else (50, 4, 4))
    records = gathered(metric, {"x": labels}, labels)
    interval = compare(metric, records, records)
    assert interval.point == 0
    assert interval.upper > 0.03
    assert interval.lower < -0.03


def detector(images=12, classes=3, noise=4.0):
    """Labels and a detector's padded outputs."""
    labels, boxes, scores, numbers = [], [], [], []
    for _ in range(images):
        count = int(RANDOM.integers(0, 6))
        corner, size = RANDOM.uniform(0, 60, (count, 2)), RANDOM.uniform(8, 40, (count, 2))
        gold = np.concatenate([corner, corner + size], 1).astype(np.float32)
        kinds = RANDOM.integers(0, classes, count)
        crowd = RANDOM.random(count) < 0.2
        image = np.array([100, 120])
        labels.append({"boxes": gold, "classes": kinds, "image_size": image, "crowd": crowd})
        said = np.concatenate([gold + RANDOM.normal(0, noise, gold.shape), gold[:2] + 15])
        fill = 10 - len(said)
        boxes.append(np.pad(said, ((0, fill), (0, 0))))
        own = RANDOM.uniform(0.1, 1, len(said)).round(1)  # ties, as quantized scores have
        scores.append(np.pad(own, (0, fill)))
        numbers.append(np.pad(np.concatenate([kinds, kinds[:2]]), (0, fill)))
    outputs = {
        "boxes": np.array(boxes, np.float32),
        "scores": np.array(scores, np.float32),
        "labels": np.array(numbers),
    }
    return labels, outputs


def by_pycocotools(labels, outputs):
    """map and map50 by the library's own way from end to end."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gold, said = [], []
    for image, label in enumerate(labels):
        for box, kind, crowd in zip(label["boxes"], label["classes"], label["crowd"], strict=True):
            x, y, right, low = map(float, box)
            gold.append(
                {"id": len(gold) + 1, "image_id": image, "category_id": int(kind) + 1}
                | {"bbox": [x, y, right - x, low - y], "area": 1.0, "iscrowd": int(crowd)}
            )
        rows = zip(*(outputs[k][image] for k in ("boxes", "scores", "labels")), strict=True)
        for box, score, kind in rows:
            x, y, right, low = map(float, box)
            if score > 0:
                said.append(
                    {"image_id": image, "category_id": int(kind) + 1, "score": float(score)}
                    | {"bbox": [x, y, right - x, low - y]}
                )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(labels))],
            "annotations": gold,
            "categories": [{"id": i + 1} for i in range(3)],
        }
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[0], judge.stats[1]


def test_map_is_that_of_pycocotools():
    pytest.importorskip("pycocotools")
    labels, outputs = detector()
    expected = by_pycocotools(labels, outputs)
    assert 0.1 < expected[0] < 0.9
    for name, value in zip(("map", "map50"), expected, strict=True):
        metric = metric_for(name)
        for batch in (1, 5, 12):
            records = gathered(metric, outputs, labels, batch)
            assert metric.value(records) == pytest.approx(value, abs=1e-9)
            assert metric.samples(records) == 12
        # A resample that holds an image twice is the set that holds it twice.
        chosen = np.array([0, 0, 3, 5, 5, 5, 7, 11])
        twice = {key: array[chosen] for key, array in outputs.items()}
        again = by_pycocotools([labels[i] for i in chosen], twice)[name == "map50"]
        assert metric.value(records, chosen) == pytest.approx(again, abs=1e-9)


def test_a_drop_of_map_has_an_interval():
    pytest.importorskip("pycocotools")
    labels, outputs = detector(images=30)
    metric = metric_for("map50")
    worse = {**outputs, "boxes": outputs["boxes"] + RANDOM.normal(0, 8, (30, 10, 4))}
    source, candidate = (gathered(metric, o, labels) for o in (outputs, worse))
    interval = compare(metric, source, candidate)
    assert interval.point > 0.05
    assert interval.ci95[0] < interval.point < interval.ci95[1]
    assert interval.n == 30


def test_boxes_of_all_images_in_one_list_need_their_images():
    pytest.importorskip("pycocotools")
    labels, outputs = detector()
    kept = outputs["scores"] > 0
    flat = {name: array[kept] for name, array in outputs.items()}
    metric = metric_for("map")
    with pytest.raises(InputError, match="boxes of 12 images without a number") as error:
        metric.recorder().update(flat, labels)
    assert "images" in (error.value.fix or "")
    flat["image"] = np.nonzero(kept)[0]
    recorder = (named := metric_for("map", {"images": "image"})).recorder()
    recorder.update(flat, labels)
    expected = metric.value(gathered(metric, outputs, labels))
    assert named.value(recorder.records()) == pytest.approx(expected)


@pytest.mark.parametrize("form", ["xyxy", "yxyx", "xywh", "cxcywh"])
@pytest.mark.parametrize("letterbox", [None, "center", "corner"])
def test_boxes_are_brought_back_to_the_image(form, letterbox):
    pytest.importorskip("pycocotools")
    labels, outputs = detector()
    boxes = outputs["boxes"].astype(np.float64)
    if letterbox is None:
        boxes = boxes * np.tile([64 / 120, 64 / 100], 2)
    else:
        shift = [0, (64 - 100 * 64 / 120) / 2] if letterbox == "center" else [0, 0]
        boxes = boxes * (64 / 120) + np.tile(shift, 2)
    if form == "yxyx":
        boxes = boxes[..., [1, 0, 3, 2]]
    elif form != "xyxy":
        sizes = boxes[..., 2:] - boxes[..., :2]
        corner = boxes[..., :2] + (sizes / 2 if form == "cxcywh" else 0)
        boxes = np.concatenate([corner, sizes], -1)
    options = {"form": form, "size": [64, 64], "letterbox": letterbox}
    metric, plain = metric_for("map50", options), metric_for("map50")
    found = metric.value(gathered(metric, {**outputs, "boxes": boxes}, labels))
    assert found == pytest.approx(plain.value(gathered(plain, outputs, labels)))


def test_scores_by_class_need_no_classes():
    pytest.importorskip("pycocotools")
    labels, outputs = detector()
    scores = outputs["scores"][..., None] * np.eye(3)[outputs["labels"]]
    metric = metric_for("map")
    expected = metric.value(gathered(metric, outputs, labels))
    found = gathered(metric, {"boxes": outputs["boxes"], "scores": scores}, labels)
    assert metric.value(found) == pytest.approx(expected)


def test_a_label_that_is_no_detection_is_refused():
    _, outputs = detector()
    with pytest.raises(InputError, match="no mapping with boxes, classes and image_size"):
        gathered(metric_for("map"), outputs, np.zeros(12, int))


def test_a_missing_library_is_one_message(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pycocotools is not installed") as error:
        metric_for("map").check_installed()
    assert error.value.fix == "pip install 'optimc[detection]'"


def answered(start, end, tokens=12):
    logits = np.zeros((2, len(start), tokens))
    logits[0, np.arange(len(start)), start] = 5
    logits[1, np.arange(len(end)), end] = 5
    return {"start_logits": logits[0], "end_logits": logits[1]}


def test_answers_are_judged_as_squad_does():
    outputs = answered([2, 4, 0, 3], [3, 7, 0, 1])
    # Right, half right (best of two), no answer, and an end before its start.
    labels = [[[2, 3]], [[9, 9], [6, 9]], [[-1, -1]], [[3, 3]]]
    labels = [np.array(label) for label in labels]
    exact, f1 = metric_for("exact_match"), metric_for("answer_f1")
    assert gathered(exact, outputs, labels)["score"].tolist() == [1, 0, 1, 0]
    assert gathered(f1, outputs, labels)["score"][:3].tolist() == [1, 0.5, 1]


def test_an_answer_lies_in_its_context_and_is_not_longer_than_allowed():
    outputs = answered([1], [9])
    label = {"spans": np.array([[5, 6]]), "context": np.arange(12) >= 5}
    metric = metric_for("exact_match", {"longest": 3})
    start, end = outputs["start_logits"], outputs["end_logits"]
    start[0, 5], end[0, 6] = 3, 3
    assert gathered(metric, outputs, [label])["score"].tolist() == [1]


def test_answers_with_their_text_are_compared_by_words():
    text = "It was the Eiffel Tower, in Paris."
    starts = [0, 3, 7, 11, 18, 25, 28]
    ends = [2, 6, 10, 17, 24, 27, 34]
    label = {
        "spans": np.array([[3, 4]]),
        "source": np.array(text),
        "offsets": np.array([starts, ends]).T,
        "texts": np.array(["Eiffel tower"]),
    }
    outputs = answered([2], [4], tokens=7)  # "the Eiffel Tower,"
    assert gathered(metric_for("exact_match"), outputs, [label])["score"].tolist() == [1]
    outputs = answered([2], [6], tokens=7)  # "the Eiffel Tower, in Paris."
    score = gathered(metric_for("answer_f1"), outputs, [label])["score"]
    assert score.tolist() == [pytest.approx(2 * 2 / (4 + 2))]
    assert words("An  apple, THE end!") == ["apple", "end"]


@pytest.mark.parametrize("batch", [1, 3, 8, 60])
@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_pairs_are_rows_2i_and_2i_plus_1_whatever_the_batches(name, batch):
    embeddings = RANDOM.normal(size=(60, 8)).astype(np.float32)
    a, b = embeddings[::2], embeddings[1::2]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    gold = cosine + RANDOM.normal(0, 0.3, 30)
    expected = {"spearman": spearmanr, "pearson": pearsonr}[name](cosine, gold).statistic
    metric = metric_for(name)
    records = gathered(metric, {"embedding": embeddings}, np.repeat(gold, 2), batch)
    assert metric.value(records) == pytest.approx(expected)
    second = metric_for(name, {"output": "a", "second": "b"})
    assert second.value(gathered(second, {"a": a, "b": b}, gold, batch)) == pytest.approx(expected)


def test_rows_without_a_partner_are_refused():
    metric = metric_for("pearson")
    with pytest.raises(InputError, match="the last one has no partner"):
        gathered(metric, {"x": RANDOM.normal(size=(7, 3))}, np.repeat(np.arange(4.0), 2)[:7])
    with pytest.raises(InputError, match="two rows of a pair have different labels"):
        gathered(metric, {"x": RANDOM.normal(size=(8, 3))}, np.arange(8.0))


@pytest.mark.parametrize(
    ("name", "output", "labels", "what"),
    [
        ("token_f1", np.zeros((2, 3)), np.zeros((2, 3), int), "not scores"),
        ("token_f1", np.zeros((2, 3, 4)), np.zeros((2, 5), int), "up to 5 tokens"),
        ("token_f1", np.zeros((2, 3, 4)), np.zeros((2, 3)), "dtype float64"),
        ("token_f1", np.zeros((2, 3, 4)), np.full((2, 3), -1), "a label is -1"),
        ("token_f1", np.zeros((2, 3, 4)), np.full((2, 3), 4), "knows the classes 0 to 3"),
        ("perplexity", np.zeros((2, 3)), np.zeros((2, 3), int), "not logits"),
        ("perplexity", np.zeros((2, 3, 4)), np.full((2, 3), 4), "the label 4 is no token"),
        ("perplexity", np.full((2, 3, 4), np.nan), np.zeros((2, 3), int), "is not finite"),
        ("miou", np.zeros((2, 3)), np.zeros((2, 3), int), "not scores"),
        ("miou", np.zeros((2, 4, 3, 3)), np.zeros((2, 3, 3)), "dtype float64"),
        ("miou", np.zeros((2, 4, 3, 3)), np.zeros((3, 3, 3), int), "2 outputs have 3 labels"),
        ("miou", np.zeros((2, 4, 3, 3)), np.full((2, 3, 3), -1), "a label is -1"),
        ("miou", np.zeros((2, 4, 3, 3)), np.full((2, 3, 3), 4), "knows the classes 0 to 3"),
        ("top1", np.zeros((2, 4)), [{"boxes": 1}, {"boxes": 2}], "are mappings, or differ"),
        ("top1", np.zeros((2, 4)), [np.zeros(1), np.zeros(2)], "are mappings, or differ"),
    ],
)
def test_what_does_not_fit_a_task_gives_one_message(name, output, labels, what):
    with pytest.raises(InputError, match=what) as error:
        metric_for(name).recorder().update({"logits": output}, labels)
    assert (error.value.where or "").startswith(f"metrics.{name}")
    assert error.value.fix
