"""`--locked`: a build that is the same is replayed; whatever differs is refused by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimc.core.errors import InputError
from optimc.pipeline import versions
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import Report
from optimc.testing.bad_inputs import Workshop
from optimc.testing.inline_workers import inline_workers


def _build(shop: Workshop, *, locked: bool) -> Report:
    options = BuildOptions(
        out=shop.folder / "out", command="optimc build", measure=False, locked=locked
    )
    with inline_workers():
        return Build(load_recipe(shop.recipe), options, Silent()).run()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Workshop:
    shop = Workshop.make(tmp_path_factory.mktemp("locked") / "shop", repository / "recipes")
    _build(shop, locked=False)
    return shop


@pytest.fixture
def shop(built: Workshop, tmp_path: Path) -> Workshop:
    shutil.copytree(built.folder, tmp_path / "shop")
    return Workshop(tmp_path / "shop")


def test_a_build_that_is_the_same_passes(shop: Workshop) -> None:
    _build(shop, locked=True)


def _model(shop: Workshop) -> None:
    proto = onnx.load(shop.model)
    tensor = proto.graph.initializer[0]
    tensor.raw_data = bytes(reversed(tensor.raw_data))
    onnx.save(proto, shop.model)


def _in_lock(*keys: str | int, value: Any) -> Callable[[Workshop], None]:
    def change(shop: Workshop) -> None:
        path = shop.folder / "recipe.lock"
        content = json.loads(path.read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        assert place[keys[-1]] != value
        place[keys[-1]] = value
        path.write_text(json.dumps(content))

    return change


def _images(split: str) -> Callable[[Workshop], None]:
    def change(shop: Workshop) -> None:
        images = shop.arrays(split)["images"].copy()  # type: ignore[arg-type]
        images[0] = np.uint8(16) - images[0]
        shop.save(split, images=images)  # type: ignore[arg-type]

    return change


DIFFERENCES: dict[str, tuple[Callable[[Workshop], None], str]] = {
    "recipe": (lambda shop: shop.replace("seed: 0", "seed: 1"), "recipe: locked "),
    "model": (_model, r"inputs\.digits\.onnx: locked "),
    "calibration": (_images("calibration"), r"data\.calibration: locked "),
    "evaluation": (_images("evaluation"), r"data\.evaluation: locked "),
    "pass": (
        _in_lock("cells", "int8/ort", "passes", 0, "model", value="0" * 64),
        r"cells\.int8/ort\.passes\[0\]\.model: locked 000000000000…, now ",
    ),
    "engine": (
        _in_lock("cells", "fp32/ort", "engine", value="0" * 64),
        r"cells\.fp32/ort\.engine: locked 000000000000…, now ",
    ),
    "version": (_in_lock("optimc", value="0.0.0"), r"optimc: locked 0\.0\.0, now "),
}


@pytest.mark.parametrize("name", sorted(DIFFERENCES))
def test_a_difference_is_refused_by_its_name(name: str, shop: Workshop) -> None:
    change, says = DIFFERENCES[name]
    change(shop)
    before = (shop.folder / "out" / "report.json").read_bytes()
    with pytest.raises(InputError, match=says) as caught:
        _build(shop, locked=True)
    assert caught.value.fix is not None
    assert (shop.folder / "out" / "report.json").read_bytes() == before


def test_another_version_of_a_tool_is_refused_by_its_name(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = versions.tool_version
    monkeypatch.setattr(
        versions, "tool_version", lambda name: "0.1" if name == "onnxruntime" else right(name)
    )
    with pytest.raises(InputError, match=r"tools\.onnxruntime: locked [\d.]+, now 0\.1"):
        _build(shop, locked=True)
