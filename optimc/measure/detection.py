"""Detection: map and map50, as COCO defines them; the matching is that of pycocotools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from optimc.measure.boxes import BoxOptions, class_output, detections
from optimc.measure.metric import Direction, SampleMetric
from optimc.measure.paired import RESAMPLES, no_narrower, statistic_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.boxes import Detections
    from optimc.measure.metric import Array, Indices, Outputs, Records

_EVERY_SIZE = [0.0, 1e10]
_MOST = 100
"""Detections of one class in one image that count."""
_WORK = 4e9
"""Matches that all resamples together may look at: with a large set there are fewer resamples."""
_FEWEST = 400


class Map(BoxOptions, SampleMetric):
    """COCO's average precision, the mean over classes and over IoU 0.50 to 0.95.

    Labels are mappings of arrays: ``boxes`` [n, 4] (x1, y1, x2, y2, in pixels of the original
    image), ``classes`` int [n] (in the model's numbers), ``image_size`` [2] (height, width), and
    ``crowd`` bool [n] where there are regions that match any number of boxes. Needs the extra
    `detection`.

    Source: Lin et al., ECCV 2014 (COCO); pycocotools, which matches boxes here.
    """

    name: ClassVar[str] = "map"
    better: ClassVar[Direction] = "higher"
    unit: ClassVar[str] = "fraction"
    extra: ClassVar[tuple[str, str] | None] = ("pycocotools", "detection")
    tools: ClassVar[tuple[str, ...]] = ("pycocotools",)
    steps: ClassVar[int] = 10
    """How many of the thresholds 0.50, 0.55, ... 0.95 count."""

    def named_outputs(self) -> dict[str, str]:
        """See `SampleMetric`."""
        options = ("boxes", "scores", "classes", "images")
        return {option: getattr(self, option) for option in options if getattr(self, option)}

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        named = {
            name: self.select(outputs, option) for option, name in self.named_outputs().items()
        }
        classes = class_output(self, outputs)
        if classes is not None:
            named[classes] = outputs[classes]
        labels = [self._checked(label) for label in labels]
        try:
            found = detections(self, named, [_size(label) for label in labels])
        except ValueError as error:
            raise self.fail(
                str(error),
                "name the outputs: boxes, scores, classes; and `images`, the output with the "
                "number of each box's image, where boxes of several images stand in one list",
            ) from error
        pairs = zip(found, labels, strict=True)
        return self.join([self._of_image(one, label) for one, label in pairs])

    def samples(self, records: Records) -> int:
        """See `SampleMetric`."""
        return int(records["samples"].sum())

    def join(self, batches: Sequence[Records]) -> Records:
        """See `SampleMetric`."""
        import numpy as np

        joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        counts = np.array([self.samples(batch) for batch in batches])
        first = np.cumsum(counts) - counts
        for side in ("image", "gold_image"):
            joined[side] = joined[side] + np.repeat(first, [len(b[side]) for b in batches])
        return joined

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`."""
        return _Curves(records, self.samples(records)).mean(indices)

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`; the bootstrap over images, paired."""
        images = self.samples(source)
        theirs, ours = _Curves(source, images), _Curves(candidate, images)
        work = max(1, source["match"].size + candidate["match"].size)
        resamples = max(_FEWEST, min(RESAMPLES, int(_WORK / work)))

        def drop(chosen: Indices) -> float:
            return theirs.mean(chosen) - ours.mean(chosen)

        return no_narrower(statistic_drop(drop, images, seed, resamples))

    def _checked(self, label: Any) -> Mapping[str, Any]:
        import numpy as np

        wanted = ("boxes", "classes", "image_size")
        if not isinstance(label, Mapping) or any(key not in label for key in wanted):
            raise self.fail(
                "a label is no mapping with boxes, classes and image_size",
                "take labels of detections, such as COCO's JSON",
            )
        boxes, classes = np.asarray(label["boxes"]), np.asarray(label["classes"])
        fits = boxes.shape == (len(classes), 4) or (not boxes.size and not classes.size)
        if not fits or classes.ndim != 1 or np.asarray(label["image_size"]).shape != (2,):
            raise self.fail(
                f"a label has boxes {list(boxes.shape)} and classes {list(classes.shape)}",
                "give boxes [n, 4], classes [n] and image_size [2]",
            )
        return label

    def _of_image(self, found: Detections, label: Mapping[str, Any]) -> Records:
        """One image's records: a row for each detection that counts, and one for each true box."""
        import numpy as np

        gold = np.asarray(label["classes"]).astype(np.int64)
        crowd = np.asarray(label.get("crowd", np.zeros(len(gold), bool))).astype(bool)
        boxes = np.asarray(label["boxes"], np.float64).reshape(-1, 4)
        rows: list[tuple[int, Array, Array, Array]] = []
        for number in np.union1d(gold, found.classes).tolist():
            own, said = gold == number, found.classes == number
            matched = self._matched(boxes[own], crowd[own], found.boxes[said], found.scores[said])
            rows.append((number, *matched))
        empty = np.zeros((0, self.steps), bool)
        return {
            "samples": np.ones(1, np.int64),
            "image": np.zeros(sum(len(row[1]) for row in rows), np.int64),
            "class": np.repeat([r[0] for r in rows], [len(r[1]) for r in rows]).astype(np.int64),
            "score": np.concatenate([np.zeros(0), *(row[1] for row in rows)]),
            "match": np.concatenate([empty, *(row[2] for row in rows)]),
            "ignore": np.concatenate([empty, *(row[3] for row in rows)]),
            "gold_image": np.zeros(int((~crowd).sum()), np.int64),
            "gold_class": gold[~crowd],
        }

    def _matched(
        self, gold: Array, crowd: Array, boxes: Array, scores: Array
    ) -> tuple[Array, Array, Array]:
        """Scores [n], matches and ignored ones bool [n, thresholds] of one class in one image."""
        import numpy as np
        from pycocotools.cocoeval import COCOeval

        judge = COCOeval(iouType="bbox")
        judge.params.iouThrs = np.linspace(0.5, 0.95, 10)[: self.steps]
        judge.params.maxDets = [_MOST]
        judge._gts[0, 0] = [
            {"id": i + 1, "bbox": b, "area": 0.0, "iscrowd": int(c), "ignore": int(c)}
            for i, (b, c) in enumerate(zip(_xywh(gold), crowd, strict=True))
        ]
        judge._dts[0, 0] = [
            {"id": i + 1, "bbox": b, "area": 0.0, "score": float(s)}
            for i, (b, s) in enumerate(zip(_xywh(boxes), scores, strict=True))
        ]
        judge.ious = {(0, 0): judge.computeIoU(0, 0)}
        result = judge.evaluateImg(0, 0, _EVERY_SIZE, _MOST)
        matches = np.asarray(result["dtMatches"]).astype(bool).T
        return np.array(result["dtScores"], np.float64), matches, np.asarray(result["dtIgnore"]).T


class Map50(Map):
    """COCO's average precision at IoU 0.50, the mean over classes.

    Labels and options are those of `map`.
    """

    name: ClassVar[str] = "map50"
    steps: ClassVar[int] = 1


class _Curves:
    """Precision over recall by class, of any choice of images.

    Detections are sorted once; a resample counts those of an image as often as it holds the image.
    """

    def __init__(self, records: Records, images: int) -> None:
        import numpy as np

        self._images = images
        self._classes: list[tuple[Array, Array, Array, Array]] = []
        for number in np.unique(records["gold_class"]):
            own = np.flatnonzero(records["class"] == number)
            # As COCO does: by score, ties in the order of the images.
            own = own[np.argsort(-records["score"][own], kind="mergesort")]
            ignored = records["ignore"][own]
            hits = (records["match"][own] & ~ignored).T.astype(np.float64)
            misses = (~records["match"][own] & ~ignored).T.astype(np.float64)
            gold = records["gold_image"][records["gold_class"] == number]
            self._classes.append((records["image"][own], hits, misses, gold))

    def mean(self, indices: Indices | None) -> float:
        """The mean of the average precision over thresholds and over classes that occur."""
        import numpy as np

        weights = np.ones(self._images)
        if indices is not None:
            weights = np.bincount(indices, minlength=self._images).astype(np.float64)
        found = [
            _average_precision(hits * weights[image], misses * weights[image], weights[gold].sum())
            for image, hits, misses, gold in self._classes
            if weights[gold].any()
        ]
        return float(np.mean(found)) if found else 0.0


def _average_precision(hits: Array, misses: Array, gold: float) -> float:
    """The precision at 101 recalls, from weighted hits and misses [thresholds, n] by score."""
    import numpy as np

    right, wrong = np.cumsum(hits, axis=1), np.cumsum(misses, axis=1)
    recall = right / gold
    precision = right / (right + wrong + np.spacing(1))
    # The precision at a recall is the best one at that recall or beyond.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))
    points = np.linspace(0.0, 1.0, 101)
    places = [np.searchsorted(row, points, side="left") for row in recall]
    return float(np.mean([row[place] for row, place in zip(best, places, strict=True)]))


def _xywh(boxes: Array) -> list[list[float]]:
    return [[x, y, right - x, low - y] for x, y, right, low in boxes.tolist()]


def _size(label: Mapping[str, Any]) -> tuple[float, float]:
    height, width = label["image_size"]
    return float(height), float(width)
