"""The quickstart's digit classifier with one layer made unfit for INT8, and a recipe around it."""

from __future__ import annotations

from pathlib import Path

PLANTED = "conv2d_4"
"""The output of the layer that is spoiled, the last convolution of the second block."""
_CHANNEL = 7

_RECIPE = """\
model: {{onnx: {model}}}
inputs: {{input: {{range: [0, 1]}}}}
dims: {{batch: {{min: 1, typical: 1, max: 64}}}}
data:
  calibration:
    npz: calibration.npz
    inputs: {{input: images}}
    transform: &t [nchw, {{divide: 16}}]
  tuning: {{npz: tuning.npz, inputs: {{input: images}}, labels: labels, transform: *t}}
  evaluation: {{npz: evaluation.npz, inputs: {{input: images}}, labels: labels, transform: *t}}
metrics: {{top1: {{}}}}
variants:
  int8: [simplify, fuse, {{quantize_int8: {options}}}]
targets: {{ort: {{runtime: onnxruntime, threads: 1}}}}
benchmark: {{cases: [{{batch: 1}}], at_most: 2 s}}
{more}
"""


def write_digits(
    folder: Path, options: str, more: str = "", *, quickstart: Path, planted: bool = True
) -> Path:
    """Writes model, data and recipe into `folder`; `options` are those of quantize_int8.

    `quickstart` is the folder of the quickstart's files, whose evaluation images become the tuning
    and the evaluation split, 300 each. Returns the recipe.
    """
    import numpy as np

    with np.load(quickstart / "digits_evaluation.npz", allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    np.savez(folder / "tuning.npz", images=images[:300], labels=labels[:300])
    np.savez(folder / "evaluation.npz", images=images[300:], labels=labels[300:])
    calibration = (quickstart / "digits_calibration.npz").read_bytes()
    (folder / "calibration.npz").write_bytes(calibration)
    model = (quickstart / "digits.onnx").read_bytes()
    (folder / "digits.onnx").write_bytes(planted_model(model) if planted else model)
    recipe = folder / "recipe.yaml"
    recipe.write_text(_RECIPE.format(model="digits.onnx", options=options, more=more))
    return recipe


def planted_model(model: bytes) -> bytes:
    """The classifier with a huge weight on a channel that is always zero.

    Batch normalization and Relu in front of the layer hold the channel at zero, so the float model
    computes nothing new; the scales of the layer's weights take all other weights to zero.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.ModelProto.FromString(model)

    def change(name: str, channel: tuple[slice | int, ...], number: float) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array[channel] = number
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    change("blocks.1.first.1.weight", (_CHANNEL,), 0.0)
    change("blocks.1.first.1.bias", (_CHANNEL,), -1.0)
    change("blocks.1.second.0.weight", (slice(None), _CHANNEL), 100.0)
    return bytes(proto.SerializeToString())
