"""The source `images`: a folder of files, with labels from its folders, a CSV, COCO or masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from optimc.calibration.arrays import Transform
from optimc.calibration.image_files import Color
from optimc.calibration.options import Options, Selection
from optimc.calibration.text import ColumnName
from optimc.calibration.transforms import keys_of

if TYPE_CHECKING:
    from typing import Self

    from optimc.calibration.image_dataset import ImageDataset


class CsvLabels(Options):
    """``{csv: labels.csv, image: file, label: class}``."""

    csv: str
    """Comma-separated values in UTF-8, relative to the recipe. Its rows are the samples, in their
    order."""
    image: ColumnName
    """The column with the image's path in the folder: a name, or a number where there is no
    header."""
    label: ColumnName
    """The column with the label: a number, or a name (see `label_map`)."""


class CocoLabels(Options):
    """``{coco: instances_val2017.json}``."""

    coco: str
    """Boxes in COCO's form, relative to the recipe. Its images are the samples, in their order.
    Classes are numbered from 0 in the order of the category ids, unless `label_map` says it."""


def _labels_kind(value: Any) -> str:
    if isinstance(value, str):
        return "classes"
    return "coco" if "coco" in keys_of(value) else "csv"


ImageLabels: TypeAlias = Annotated[
    Annotated[Literal["classes"], Tag("classes")]
    | Annotated[CsvLabels, Tag("csv")]
    | Annotated[CocoLabels, Tag("coco")],
    Discriminator(_labels_kind),
]


class ImageSource(Selection):
    """``{images: val/, inputs: {x: image}, labels: classes, transform: [...]}``.

    Files that Pillow decodes (BMP, JPEG, PNG, PPM, TIFF, WebP), as uint8 [height, width, channels].
    """

    images: str
    """The folder, relative to the recipe. Folders below it are looked through; samples are in the
    order of their paths."""
    inputs: Annotated[dict[str, Literal["image"]], Field(min_length=1)]
    """From the model's input to what feeds it: `{pixel_values: image}`."""
    labels: ImageLabels | None = None
    """`classes`: the folder below `images` that a file lies in (numbered in the order of their
    names, as torchvision's `ImageFolder` does); or a CSV file; or boxes in a COCO file."""
    masks: str | None = None
    """A folder, relative to the recipe, with a mask for each image under the image's path (`.png`):
    class numbers as grey values or palette indices. Masks follow the sizes that the transform
    makes (nearest neighbour); new pixels get 255."""
    label_map: dict[str, int] | None = None
    """From each name that the labels hold to its number."""
    color: Color = "rgb"
    """What files are converted to: `rgb` (3 channels) or `gray` (1)."""
    orient: bool = True
    """Whether images are turned upright as their EXIF orientation says."""
    transform: Transform = Field(default=[])
    """Steps from pixels to the model's inputs: a list for all, or one for each input."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.labels is not None and self.masks is not None:
            raise ValueError("`labels` and `masks` exclude each other\nleave one of them out")
        if self.label_map is not None and self.labels is None:
            raise ValueError("`label_map` without `labels`\nname the labels, or leave it out")
        return self

    @property
    def has_labels(self) -> bool:
        """Whether there is something for metrics to compare with."""
        return self.labels is not None or self.masks is not None

    def open(self, base: Path, seed: int) -> ImageDataset:
        """The data set, read from `base`; files are looked at later.

        Raises InputError for folders that are missing or empty, and for labels that do not fit.
        """
        from optimc.calibration.image_dataset import ImageDataset

        return ImageDataset(self, base, seed)

    def files(self, base: Path) -> list[Path]:
        """The files that the recipe names; images are found in the folder."""
        if isinstance(self.labels, CsvLabels):
            return [base / self.labels.csv]
        return [base / self.labels.coco] if isinstance(self.labels, CocoLabels) else []

    def folders(self, base: Path) -> list[Path]:
        """The folders that the recipe names."""
        return [base / name for name in (self.images, self.masks) if name is not None]
