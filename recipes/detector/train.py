"""Trains the model of detector.yaml on drawn shapes, and draws the recipe's images.

Run from the checkout, with the extras `torch` and `images` installed (about a minute):

    python recipes/detector/train.py

It writes, beside itself or into the folder given by `-o`:

    detector.onnx                       image float32 [1, 1, height, width] in [0, 1], both sides
                                        multiples of 8 -> boxes float32 [n, 4] (x1, y1, x2, y2 in
                                        pixels), scores float32 [n], classes int64 [n]
    calibration/*.png                   60 grey images of 64 x 64 or 64 x 96 pixels
    evaluation/*.png, evaluation.json   200 images, and their boxes in COCO's form

The network sees each cell of 8 x 8 pixels once: it says for each class whether an object's center
lies there, and the distances from the cell's center to the box's four sides (as FCOS does: Tian et
al. 2019, arXiv:1904.01355). The model's inner values `raw_boxes` [1, cells, 4] and `raw_scores`
[1, 3, cells] are what NonMaxSuppression chooses from. Splits are drawn by a seed each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from PIL import Image, ImageDraw
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAMES = ("circle", "square", "triangle")
SIZES = ((64, 64), (64, 96))  # height, width
STRIDE = 8
CALIBRATION = 60
EVALUATION = 200
TRAINING = 1000
EPOCHS = 14
BATCH = 20
THREADS = 1  # fixed: a sum over threads depends on their number
SEEDS = {"training": 0, "calibration": 1, "evaluation": 2}
MOST, IOU, LEAST = 20, 0.5, 0.05  # of NonMaxSuppression: boxes of a class, overlap, score


@dataclass(frozen=True)
class Drawn:
    """An image uint8 [h, w], its boxes float32 [n, 4] (x1, y1, x2, y2) and classes int64 [n]."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


def draw(random: np.random.Generator, size: tuple[int, int]) -> Drawn:
    """One to three shapes on noise, whose boxes do not overlap."""
    background = int(random.integers(30, 100))
    picture = Image.new("L", size[::-1], background)
    pen = ImageDraw.Draw(picture)
    boxes: list[list[float]] = []
    classes: list[int] = []
    for _ in range(random.integers(1, 4)):
        radius = float(random.uniform(6, 13))
        y, x = (float(random.uniform(radius, side - radius)) for side in size)
        box = [x - radius, y - radius, x + radius, y + radius]
        if any(_overlap(box, other) for other in boxes):
            continue
        kind, shade = int(random.integers(len(NAMES))), background + int(random.integers(40, 140))
        if kind == 2:
            pen.polygon([(box[0], box[3]), (x, box[1]), (box[2], box[3])], fill=shade)
        else:
            (pen.ellipse if kind == 0 else pen.rectangle)(box, fill=shade)
        boxes.append(box)
        classes.append(kind)
    noise = random.normal(0, 14, size)
    # In steps of 8, so that the files are small.
    pixels = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8) // 8 * 8
    return Drawn(pixels, np.array(boxes, np.float32), np.array(classes, np.int64))


def _overlap(one: list[float], other: list[float]) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def split(name: str, count: int) -> list[Drawn]:
    """The images of a split; one half of each size."""
    random = np.random.default_rng(SEEDS[name])
    return [draw(random, SIZES[index * len(SIZES) // count]) for index in range(count)]


def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution with batch normalization and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Detector(nn.Module):
    """Convolutions down to a grid of cells, and a head on it."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(1, 12, 2), (12, 24, 2), (24, 48, 2), (48, 48, 1), (48, 48, 1)]
        self.body = nn.Sequential(*(layer(*width) for width in widths))
        self.score = nn.Conv2d(48, len(NAMES), 1)
        self.sides = nn.Conv2d(48, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 1, h, w] -> boxes [n, cells, 4] and score logits [n, classes, cells]."""
        x = self.body(image)
        rows = torch.arange(x.shape[2], dtype=torch.float32) * STRIDE + STRIDE / 2
        columns = torch.arange(x.shape[3], dtype=torch.float32) * STRIDE + STRIDE / 2
        y = rows[:, None] + torch.zeros_like(columns)
        z = columns + torch.zeros_like(rows)[:, None]
        left, top, right, low = (torch.relu(self.sides(x) + 1) * STRIDE).unbind(dim=1)
        boxes = torch.stack([z - left, y - top, z + right, y + low], dim=-1)
        return boxes.flatten(1, 2), self.score(x).flatten(2)


def targets(drawn: list[Drawn]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [n, 1, h, w] of one size, boxes [n, cells, 4], classes [n, classes, cells]."""
    height, width = drawn[0].image.shape
    rows, columns = height // STRIDE, width // STRIDE
    boxes = np.zeros((len(drawn), rows, columns, 4), np.float32)
    scores = np.zeros((len(drawn), len(NAMES), rows, columns), np.float32)
    for index, one in enumerate(drawn):
        for box, kind in zip(one.boxes, one.classes, strict=True):
            row = int((box[1] + box[3]) / 2 // STRIDE)
            column = int((box[0] + box[2]) / 2 // STRIDE)
            boxes[index, row, column] = box
            scores[index, kind, row, column] = 1
    images = torch.from_numpy(np.stack([one.image for one in drawn]))[:, None].float() / 255
    return images, torch.from_numpy(boxes).flatten(1, 2), torch.from_numpy(scores).flatten(2)


def loss_of(model: Detector, images: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
    """Cross entropy of all cells, and the distance of the sides where an object's center lies."""
    said, logits = model(images)
    objects = scores.amax(dim=1) > 0
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, scores, reduction="sum")
    distance = nn.functional.smooth_l1_loss(said[objects], boxes[objects], reduction="sum")
    total: Tensor = (entropy + 0.25 * distance) / objects.sum().clamp(min=1)
    return total


def train() -> Detector:
    """AdamW with a one-cycle learning rate; the same result on the same machine."""
    torch.manual_seed(SEEDS["training"])
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    drawn = split("training", TRAINING)
    sizes = [targets([one for one in drawn if one.image.shape == size]) for size in SIZES]
    model = Detector()
    steps = EPOCHS * (TRAINING // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(TRAINING // len(SIZES)).reshape(-1, BATCH):
            for tensors in sizes:
                loss = loss_of(model, *(tensor[chosen] for tensor in tensors))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}")
    return model.eval()


def export(model: Detector, path: Path) -> None:
    """Write ONNX opset 18 with dynamic sides and NonMaxSuppression, without doc strings."""
    sides = {axis: STRIDE * torch.export.Dim(f"side{axis}", min=2, max=32) for axis in (2, 3)}
    program = torch.onnx.export(
        model,
        (torch.zeros(1, 1, 64, 96),),
        dynamo=True,
        optimize=False,  # the exporter's own optimizer would fold the batch normalization
        opset_version=18,
        input_names=["image"],
        output_names=["raw_boxes", "logits"],
        dynamic_shapes={"image": sides},
    )
    assert program is not None, "the dynamo exporter returns its program"
    proto = program.model_proto
    with_suppression(proto)
    graph = proto.graph
    for axis, name in ((2, "height"), (3, "width")):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)


def with_suppression(proto: onnx.ModelProto) -> None:
    """Add scores, NonMaxSuppression and the choice of boxes; they become the outputs."""
    graph = proto.graph
    constants = {
        "most": np.array([MOST]),
        "iou": np.array([IOU], np.float32),
        "least": np.array([LEAST], np.float32),
        "zero": np.array([0]),
        "cell_column": np.array(2),
        "class_column": np.array(1),
        "score_columns": np.array([1, 2]),
    }
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Sigmoid", ["logits"], "raw_scores", {}),
        ("NonMaxSuppression", ["raw_boxes", "raw_scores", "most", "iou", "least"], "chosen", {}),
        ("Gather", ["chosen", "cell_column"], "cells", {"axis": 1}),
        ("Gather", ["chosen", "class_column"], "classes", {"axis": 1}),
        ("Gather", ["chosen", "score_columns"], "score_places", {"axis": 1}),
        ("Squeeze", ["raw_boxes", "zero"], "all_boxes", {}),
        ("Gather", ["all_boxes", "cells"], "boxes", {"axis": 0}),
        ("Squeeze", ["raw_scores", "zero"], "all_scores", {}),
        ("GatherND", ["all_scores", "score_places"], "scores", {}),
    ]
    graph.node.extend(helper.make_node(op, i, [o], name=o, **a) for op, i, o, a in nodes)
    del graph.output[:]
    types = onnx.TensorProto
    outputs: list[tuple[str, int, list[str | int | None]]] = [
        ("boxes", types.FLOAT, ["found", 4]),
        ("scores", types.FLOAT, ["found"]),
        ("classes", types.INT64, ["found"]),
    ]
    for name, kind, shape in outputs:
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def save(drawn: list[Drawn], folder: Path) -> None:
    """Write each image as a grey PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, one in enumerate(drawn):
        Image.fromarray(one.image).save(folder / f"{index:03}.png", optimize=True)


def save_coco(drawn: list[Drawn], path: Path) -> None:
    """Write the boxes in COCO's form."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, one in enumerate(drawn):
        height, width = one.image.shape
        entry: dict[str, Any] = {
            "id": index,
            "file_name": f"{index:03}.png",
            "height": height,
            "width": width,
        }
        images.append(entry)
        for (x1, y1, x2, y2), kind in zip(one.boxes.tolist(), one.classes.tolist(), strict=True):
            box = [round(side, 2) for side in (x1, y1, x2 - x1, y2 - y1)]
            number = len(annotations)
            entry = {"id": number, "image_id": index, "category_id": kind, "bbox": box}
            annotations.append({**entry, "area": round(box[2] * box[3], 2), "iscrowd": 0})
    categories = [{"id": index, "name": name} for index, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def main() -> None:
    """Train, export, and write the images that the recipe uses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent)
    output: Path = parser.parse_args().output
    save(split("calibration", CALIBRATION), output / "calibration")
    evaluation = split("evaluation", EVALUATION)
    save(evaluation, output / "evaluation")
    save_coco(evaluation, output / "evaluation.json")
    model = train()
    export(model, output / "detector.onnx")
    print(f"{sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
