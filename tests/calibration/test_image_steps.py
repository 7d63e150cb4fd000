"""Steps that change the size of images, against Pillow and the conventions they name."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration import image_steps
from optimc.calibration.image_steps import Letterbox, SizeStep
from optimc.calibration.transforms import Step, apply
from optimc.core.errors import InputError, UnavailableError

Image = pytest.importorskip("PIL.Image", reason="the extra `images` is not installed")

ADAPTER: TypeAdapter[Any] = TypeAdapter(Step)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 40, 61, 3), dtype=np.uint8)
MASK = RNG.integers(0, 5, (1, 40, 61), dtype=np.uint8)


def step(**written: Any) -> SizeStep:
    made = ADAPTER.validate_python(written)
    assert isinstance(made, SizeStep)
    return made


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_resize_is_pillows(interpolation: str) -> None:
    made = step(resize={"size": [20, 33], "interpolation": interpolation}).apply(PIXELS)
    filter_ = Image.Resampling[interpolation.upper()]
    for got, image in zip(made, PIXELS, strict=True):
        expected = Image.fromarray(image).resize((33, 20), filter_)
        np.testing.assert_array_equal(got, np.asarray(expected))
    gray = step(resize={"size": [20, 33], "interpolation": interpolation}).apply(PIXELS[..., :1])
    expected = Image.fromarray(PIXELS[0, :, :, 0]).resize((33, 20), filter_)
    np.testing.assert_array_equal(gray[0, :, :, 0], np.asarray(expected))


@pytest.mark.parametrize(
    ("before", "after"),
    [((40, 61), (24, 36)), ((61, 40), (36, 24)), ((40, 40), (24, 24)), ((24, 99), (24, 99))],
)
def test_the_shorter_side_is_resized_as_torchvision_does(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    """The longer side is rounded down: 24 * 61 / 40 = 36.6 gives 36."""
    made = step(resize={"size": 24})
    assert made.output_size(*before) == after
    assert made.apply(np.zeros((1, *before, 3), np.uint8)).shape == (1, *after, 3)


def test_center_crop_takes_torchvisions_middle_and_fills() -> None:
    cropped = step(center_crop=[21, 30]).apply(PIXELS)
    # (40 - 21) / 2 = 9.5 rounds to the even 10, (61 - 30) / 2 = 15.5 to 16.
    np.testing.assert_array_equal(cropped, PIXELS[:, 10:31, 16:46])
    filled = step(center_crop=45).apply(PIXELS)
    assert filled.shape == (2, 45, 45, 3)
    np.testing.assert_array_equal(filled[:, 2:42], PIXELS[:, :, 8:53])
    assert not filled[:, :2].any()
    assert not filled[:, 42:].any()


def test_letterbox_keeps_the_proportion_and_says_where_the_image_is() -> None:
    made = step(letterbox={"size": [64, 64]})
    assert isinstance(made, Letterbox)
    scale, top, left = made.placed(40, 61)
    assert (round(scale, 4), top, left) == (1.0492, 11, 0)
    boxed = made.apply(PIXELS)
    assert boxed.shape == (2, 64, 64, 3)
    expected = Image.fromarray(PIXELS[0]).resize((64, 42), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(boxed[0, 11:53], np.asarray(expected))
    assert (boxed[:, :11] == 114).all()
    assert (boxed[:, 53:] == 114).all()
    corner = step(letterbox={"size": 64, "align": "corner", "fill": 0}).apply(PIXELS)
    np.testing.assert_array_equal(corner[:, :42], boxed[:, 11:53])
    assert not corner[:, 42:].any()


def test_pad_makes_multiples() -> None:
    made = step(pad={"multiple_of": 32, "fill": 7}).apply(PIXELS)
    assert made.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(made[:, :40, :61], PIXELS)
    assert (made[:, 40:] == 7).all()


@pytest.mark.parametrize(
    "written",
    [
        {"resize": {"size": 24}},
        {"center_crop": 50},
        {"letterbox": {"size": [64, 48]}},
        {"pad": {"multiple_of": 32}},
    ],
)
def test_masks_follow_with_classes_only(written: dict[str, Any]) -> None:
    made = step(**written)
    mask = made.apply_mask(MASK)
    assert mask.shape[1:] == made.output_size(40, 61)
    assert set(np.unique(mask)) <= {*range(5), 255}
    assert made.apply(PIXELS).shape[1:3] == mask.shape[1:]


def test_they_stand_in_a_transform_before_the_numbers() -> None:
    steps = [ADAPTER.validate_python(s) for s in ({"center_crop": 8}, "nchw", {"divide": 255})]
    assert apply(steps, PIXELS).shape == (2, 3, 8, 8)
    with pytest.raises(InputError) as caught:
        apply([steps[1], steps[0]], PIXELS)
    assert "`center_crop` needs pixels: uint8[height, width, 1 or 3]" in caught.value.what
    assert "before `nchw`" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"resize": {"size": 0}}, "greater than or equal to 1"),
        ({"resize": {"size": 99999}}, "less than or equal to 16384"),
        ({"resize": {"size": [1, 2, 3]}}, "at most 2 items"),
        ({"resize": {"size": 8, "interpolation": "cubic"}}, "Input should be 'nearest'"),
        ({"letterbox": {"size": 8, "align": "left"}}, "Input should be 'center' or 'corner'"),
        ({"letterbox": {"size": 8, "fill": 256}}, "less than or equal to 255"),
        ({"pad": {}}, "Field required"),
        ({"centre_crop": 8}, "did you mean `center_crop`?"),
    ],
)
def test_wrong_options_are_refused(written: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(written)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name"),
    [("vit", "ViTImageProcessorPil"), ("clip", "CLIPImageProcessorPil")],
)
def test_the_pixels_are_those_of_hugging_faces_processors(module: str, name: str) -> None:
    package = f"transformers.models.{module}.image_processing_pil_{module}"
    processor = getattr(pytest.importorskip(package, reason="no transformers"), name)()
    size, filters = processor.size, {2: "bilinear", 3: "bicubic"}
    edge = size["shortest_edge"] or [size["height"], size["width"]]
    steps = [{"resize": {"size": edge, "interpolation": filters[int(processor.resample)]}}]
    if processor.crop_size:
        steps.append({"center_crop": processor.crop_size["height"]})
    constants = {"mean": list(processor.image_mean), "std": list(processor.image_std)}
    written = [*steps, "nchw", {"divide": 255}, {"normalize": constants}]
    image = RNG.integers(0, 256, (300, 413, 3), dtype=np.uint8)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    made = apply([ADAPTER.validate_python(entry) for entry in written], image[None])
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_a_missing_extra_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnavailableError) as caught:
        step(resize={"size": 8}).apply(PIXELS)
    assert caught.value.fix == "pip install 'optimc[images]'"


def test_a_long_image_cannot_become_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_steps, "MAX_RESIZED", 1000)
    with pytest.raises(InputError, match="would become 24 x 2400"):
        step(resize={"size": 24}).output_size(1, 100)
