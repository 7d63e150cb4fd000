"""Segmentation: the mean intersection over union."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from optimc.measure.metric import Direction
from optimc.measure.summed import SummedMetric

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Outputs, Records
    from optimc.measure.summed import Sums


class Miou(SummedMetric):
    """The mean over classes of intersection over union, each over the pixels of all images.

    The output holds scores [n, classes, height, width] or class numbers [n, height, width]; labels
    are class numbers [height, width] of each image. Classes that neither occur nor are predicted
    do not count.

    Source: Everingham et al., IJCV 88 (2010) 303, section 4.1.3; Long, Shelhamer and Darrell,
    CVPR 2015, section 5.
    """

    name: ClassVar[str] = "miou"
    better: ClassVar[Direction] = "higher"
    unit: ClassVar[str] = "fraction"

    ignore_index: int = 255
    """Pixels with this label do not count."""
    resize: Literal["bilinear", "nearest"] | None = None
    """How an output that is not of the label's size is brought to it (`nearest` for class
    numbers); corners are not aligned, as in most frameworks. Other sizes are refused without it."""

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        import numpy as np

        output = self.select(outputs, "output")
        scores = output.ndim == 4 and output.shape[1] >= 2 and output.dtype.kind in "fiu"
        if not scores and (output.ndim != 3 or output.dtype.kind not in "iub"):
            raise self.fail(
                f"the output has shape {list(output.shape)} and dtype {output.dtype}, not scores "
                "[samples, classes, height, width] or class numbers [samples, height, width]",
                f"name the output that holds them: {self.where}.output",
            )
        if len(labels) != len(output):
            raise self.fail(
                f"{len(output)} outputs have {len(labels)} labels", "give each image its label"
            )
        rows = [
            self._counts(one, np.asarray(label)) for one, label in zip(output, labels, strict=True)
        ]
        return self.join([{name: count[None] for name, count in row.items()} for row in rows])

    def of_sums(self, sums: Sums) -> float:
        """See `SummedMetric`."""
        union = sums["said"] + sums["gold"] - sums["hits"]
        met = union > 0
        return float((sums["hits"][met] / union[met]).mean()) if met.any() else 0.0

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`. Raises InputError where all labels are of one class.

        Masks of 0 and 255 are the usual reason: with the default `ignore_index` only the background
        of these counts, and the value would say nothing.
        """
        if indices is None and (records["gold"].sum(axis=0) > 0).sum() == 1:
            (only,) = records["gold"].sum(axis=0).nonzero()[0]
            raise self.fail(
                f"every pixel that counts has the label {only}; {self.ignore_index} does not count",
                "store class numbers (0, 1, ...) in the masks, and in "
                f"{self.where}.ignore_index what is no class",
            )
        return super().value(records, indices)

    def _counts(self, output: Array, label: Array) -> dict[str, Array]:
        """Pixels of one image by class: right, predicted, true."""
        import numpy as np

        if label.ndim == 3 and 1 in (label.shape[0], label.shape[2]):
            label = label[0] if label.shape[0] == 1 else label[..., 0]
        if label.ndim != 2 or label.dtype.kind not in "iub":
            raise self.fail(
                f"a label has shape {list(label.shape)} and dtype {label.dtype}",
                "labels are class numbers, integers [height, width]",
            )
        if output.shape[-2:] != label.shape:
            output = self._resized(output, (label.shape[0], label.shape[1]))
        if output.ndim == 3:
            broken = np.isnan(output).any(axis=0) if output.dtype.kind == "f" else False
            self._check_known(label, output.shape[0])
            output = np.where(broken, -1, output.argmax(axis=0))
        keep = label != self.ignore_index
        gold, said = label[keep].astype(np.int64), output[keep].astype(np.int64)
        if (gold < 0).any():
            raise self.fail(
                f"a label is {gold.min()}, and classes count from 0",
                f"say which label is no class: {self.where}.ignore_index",
            )
        classes = int(max(gold.max(initial=0), said.max(initial=0))) + 1
        return {
            "hits": np.bincount(gold[gold == said], minlength=classes),
            "said": np.bincount(said[said >= 0], minlength=classes),
            "gold": np.bincount(gold, minlength=classes),
        }

    def _check_known(self, label: Array, classes: int) -> None:
        greatest = label[label != self.ignore_index].max(initial=0)
        if greatest >= classes:
            raise self.fail(
                f"a label is {greatest}, and the model knows the classes 0 to {classes - 1}",
                "number the classes from 0, in the order of the model's scores, or say which "
                f"label is no class: {self.where}.ignore_index",
            )

    def _resized(self, output: Array, size: tuple[int, int]) -> Array:
        if self.resize is None:
            raise self.fail(
                f"the output is {list(output.shape[-2:])}, a label {list(size)}",
                f"write `{self.where}.resize: {'bilinear' if output.ndim == 3 else 'nearest'}`, or "
                "give labels of the output's size",
            )
        if self.resize == "nearest":
            rows, columns = (
                _centers(old, new).round().astype(int).clip(0, old - 1)
                for old, new in zip(output.shape[-2:], size, strict=True)
            )
            return output[..., rows[:, None], columns]
        if output.ndim == 2:
            raise self.fail(
                "class numbers cannot be interpolated", f"write `{self.where}.resize: nearest`"
            )
        down, across = (
            _bilinear(old, new) for old, new in zip(output.shape[-2:], size, strict=True)
        )
        resized: Array = down @ output.astype(down.dtype) @ across.T
        return resized


def _centers(old: int, new: int) -> Array:
    """Where the centers of `new` pixels lie among `old` ones."""
    import numpy as np

    return (np.arange(new) + 0.5) * old / new - 0.5


def _bilinear(old: int, new: int) -> Array:
    """The matrix [new, old] of linear interpolation, half-pixel centers, edges repeated."""
    import numpy as np

    place = _centers(old, new).clip(0, old - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, old - 1)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - (place - low))
    np.add.at(matrix, (np.arange(new), high), place - low)
    return matrix
