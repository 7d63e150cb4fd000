"""The usual architectures of transformers through export, the graph passes and both runtimes.

    python bench/architectures.py [NAME...]

Each is built from a config (seeded weights, small sizes; nothing is downloaded) by a factory,
exported, compared with PyTorch, taken through `simplify` and `fuse`, and built and verified for
ONNX Runtime and OpenVINO. Prints a table in Markdown: nodes before and after, what each pass and
each engine was found to be, and seconds. Exits with 1 where something wrong was delivered.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from optimc.report.schema import Report

IDS = {
    "input_ids": ("int64", ["batch", "length"]),
    "attention_mask": ("int64", ["batch", "length"]),
}
TEXT = {"vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"intermediate_size": 256, "max_position_embeddings": 160}
VISION = {"image_size": 64, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 4, "intermediate_size": 256}
DISTIL = {"vocab_size": 1000, "dim": 128, "n_layers": 3, "n_heads": 4, "hidden_dim": 256}
SWIN = {"image_size": 64, "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4}
SEG = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128], "decoder_hidden_size": 64}
T5 = {"vocab_size": 1000, "d_model": 128, "num_layers": 3, "num_heads": 4, "d_kv": 32, "d_ff": 256}
WHISPER = {"encoder_layers": 3, "d_model": 128, "encoder_attention_heads": 4, "decoder_layers": 1}
WHISPER |= {
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "num_mel_bins": 40,
    "max_source_positions": 100,
}


def pixels(size: int) -> dict[str, Any]:
    """The input of networks for images."""
    return {"pixel_values": ("float32", ["batch", 3, size, size])}


MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    # name: model class, config class, config, inputs, the output that is kept
    "ResNet": ("ResNetForImageClassification", "ResNetConfig", {}, pixels(64), "logits"),
    "MobileNetV2": (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {},
        pixels(64),
        "logits",
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", VISION, pixels(64), "logits"),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]},
        pixels(64),
        "logits",
    ),
    "Swin": ("SwinForImageClassification", "SwinConfig", SWIN, pixels(64), "logits"),
    "YOLOS": (
        "YolosForObjectDetection",
        "YolosConfig",
        {**VISION, "image_size": [64, 64], "num_detection_tokens": 10},
        pixels(64),
        "pred_boxes",
    ),
    "SegFormer": ("SegformerForSemanticSegmentation", "SegformerConfig", SEG, pixels(64), "logits"),
    "BERT": ("BertForSequenceClassification", "BertConfig", TEXT, IDS, "logits"),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {**DISTIL, "max_position_embeddings": 160},
        IDS,
        "logits",
    ),
    "RoBERTa": ("RobertaForTokenClassification", "RobertaConfig", TEXT, IDS, "logits"),
    "T5 encoder": ("T5EncoderModel", "T5Config", T5, IDS, "last_hidden_state"),
    "Whisper encoder": (
        "WhisperModel",
        "WhisperConfig",
        WHISPER,
        {"input_features": ("float32", ["batch", 40, 200])},
        "last_hidden_state",
    ),
}


def make(name: str) -> torch.nn.Module:
    """The factory that the recipes name: the model with its one output."""
    import torch
    import transformers

    model_class, config_class, config, _, output = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, config_class)(**config)
    made._attn_implementation = "eager"
    model = getattr(transformers, model_class)(made)
    if name == "Whisper encoder":
        model = model.get_encoder()

    class OneOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {output: self.model(**inputs, return_dict=True)[output]}

    return OneOutput().eval()


def recipe(name: str) -> str:
    """The recipe of one architecture."""
    inputs = []
    for key, (dtype, shape) in MODELS[name][3].items():
        values = ", values: [0, 999]" if key == "input_ids" else ""
        values = ", values: [1, 1]" if key == "attention_mask" else values
        inputs.append(f"  {key}: {{dtype: {dtype}, shape: [{', '.join(map(str, shape))}]{values}}}")
    lines = [
        f'model: {{factory: "architectures:make", arguments: {{name: "{name}"}}}}',
        "inputs:",
        *inputs,
        "dims:",
        "  batch: {min: 1, typical: 1, max: 4}",
        *(["  length: {min: 4, typical: 32, max: 128}"] if "input_ids" in MODELS[name][3] else []),
        "variants: {graph: [simplify, fuse]}",
        "targets: {ort: {runtime: onnxruntime}, ov: {runtime: openvino}}",
    ]
    return "\n".join(lines) + "\n"


def built(name: str) -> tuple[Report | None, str, float]:
    """The report, why there is none, and the seconds."""
    from optimc.core.errors import OptimcError
    from optimc.pipeline.build import Build, BuildOptions
    from optimc.pipeline.observer import Silent
    from optimc.pipeline.recipe import load_recipe

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="optimc-bench-") as folder:
        place = Path(folder)
        shutil.copy(__file__, place / "architectures.py")
        (place / "recipe.yaml").write_text(recipe(name), encoding="utf-8")
        options = BuildOptions(
            place / "out", "bench", measure=False, use_cache=False, verify="full", overridden=True
        )
        try:
            report = Build(load_recipe(place / "recipe.yaml"), options, Silent()).run()
        except OptimcError as error:
            return None, " ".join(str(error).split())[:200], time.perf_counter() - start
    return report, "", time.perf_counter() - start


def row(name: str) -> tuple[str, bool]:
    """A model's row, and whether nothing wrong was delivered."""
    report, reason, seconds = built(name)
    if report is None:
        return f"| {name} | not built: {reason} | | | | {seconds:.0f} |", False
    first = report.results[0]
    passes = []
    before = after = "-"
    for index, one in enumerate(first.passes):
        passes.append(f"{one.name} {one.verdict}" + (f": {one.reason}" if one.reason else ""))
        if not hasattr(one.nodes, "skipped"):
            before = str(one.nodes[0]) if index == 0 else before
            after = str(one.nodes[1])
    engines = []
    good = True
    for cell in report.results:
        verdict = getattr(cell.engine, "verdict", None)
        good &= cell.status == "built" and verdict in ("equivalent", "within_tolerance")
        engines.append(
            f"{cell.target} {verdict or cell.status}" + (f": {cell.reason}" if cell.reason else "")
        )
    texts = (name, before, after, ", ".join(passes), ", ".join(engines), f"{seconds:.0f}")
    return f"| {' | '.join(texts)} |", good


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    arguments = parser.parse_args()
    print("| model | nodes exported | after the passes | passes | engines | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    good = True
    for name in arguments.names or MODELS:
        text, fine = row(name)
        print(text, flush=True)
        good &= fine
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
