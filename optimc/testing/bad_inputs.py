"""Bad inputs for tests: a workshop with a recipe that builds, and ways to spoil one thing of it.

The model and the data are the quickstart's. Every `spoil` takes the `Workshop` and changes one
thing; what comes after is the command line's.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimc.testing.commands import Finished

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

RECIPE = """\
model: {onnx: digits.onnx}
inputs: {input: {range: [0, 1]}}
dims: {batch: {min: 1, typical: 1, max: 64}}
seed: 0
data:
  calibration: {npz: calibration.npz, inputs: {input: images}, transform: [nchw, {divide: 16}]}
  evaluation:
    npz: evaluation.npz
    inputs: {input: images}
    labels: labels
    transform: [nchw, {divide: 16}]
metrics: {top1: {}}
variants:
  fp32: []
  int8: [simplify, fuse, quantize_int8]
targets: {ort: {runtime: onnxruntime, threads: 1}}
benchmark: {cases: [{batch: 1}], until: decided, at_most: 1 s}
gate: {ship: best, drop: {top1: 0.02}}
limits: {seconds: 60}
"""
"""Builds as it is. One thing a line, so that tests can name lines."""

Split = Literal["calibration", "evaluation"]
Spoil = Callable[["Workshop"], object]


@dataclass(frozen=True)
class Workshop:
    """A folder with `recipe.yaml`, `digits.onnx`, `calibration.npz` and `evaluation.npz`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, recipes: Path) -> Workshop:
        """Fills `folder` from the quickstart in the repository's folder `recipes`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        shutil.copy(recipes / "quickstart" / "digits.onnx", folder / "digits.onnx")
        for split in ("calibration", "evaluation"):
            shutil.copy(recipes / "quickstart" / f"digits_{split}.npz", folder / f"{split}.npz")
        return cls(folder)

    @property
    def recipe(self) -> Path:
        """The recipe."""
        return self.folder / "recipe.yaml"

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / "digits.onnx"

    def data(self, split: Split) -> Path:
        """The archive of a split."""
        return self.folder / f"{split}.npz"

    def replace(self, old: str, new: str) -> None:
        """Replaces `old`, which stands in the recipe once."""
        text = self.recipe.read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        self.recipe.write_text(text.replace(old, new), encoding="utf-8")

    def arrays(self, split: Split) -> dict[str, NDArray[Any]]:
        """The arrays of a split: `images` [n, 8, 8, 1] uint8 and `labels` [n] int64."""
        import numpy as np

        with np.load(self.data(split), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def save(self, split: Split, **arrays: Any) -> None:
        """Writes a split anew with `arrays` in the place of those of the same names."""
        import numpy as np

        np.savez(self.data(split), **{**self.arrays(split), **arrays})

    def snapshot(self) -> dict[str, bytes]:
        """Every file below the folder with its contents; links as what they point to."""
        return {
            path.relative_to(self.folder).as_posix(): (
                os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            )
            for path in sorted(self.folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        }


def run_here(main: Callable[[list[str]], int], command: str, cwd: Path) -> Finished:
    """Runs ``optimc COMMAND`` (split at spaces) in this process, which costs no start.

    `main` is `optimc.cli.main`.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    out, err = io.StringIO(), io.StringIO()
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            code = main(command.split(" "))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Finished(code, out.getvalue(), err.getvalue())


def recipe(old: str, new: str) -> Spoil:
    """Replaces `old` in the recipe by `new`."""
    return lambda shop: shop.replace(old, new)


def appended(text: str) -> Spoil:
    """Writes `text` behind the recipe."""
    return lambda shop: shop.recipe.write_text(RECIPE + text, encoding="utf-8")


def recipe_is(content: bytes) -> Spoil:
    """Makes `content` the whole recipe."""
    return lambda shop: shop.recipe.write_bytes(content)


def model_is(content: bytes) -> Spoil:
    """Makes `content` the whole model file."""
    return lambda shop: shop.model.write_bytes(content)


def nothing(shop: Workshop) -> None:
    """Leaves all as it is: then the command line is what is bad."""


def folder_in_place_of(name: str) -> Spoil:
    """A folder where a file should be."""

    def spoil(shop: Workshop) -> None:
        (shop.folder / name).unlink(missing_ok=True)
        (shop.folder / name).mkdir()

    return spoil


def without(name: str) -> Spoil:
    """Takes a file away."""
    return lambda shop: (shop.folder / name).unlink()


def file(name: str, content: str) -> Spoil:
    """Puts a file there."""
    return lambda shop: (shop.folder / name).write_text(content, encoding="utf-8")


def cut(name: str, share: float) -> Spoil:
    """Keeps the first `share` of a file's bytes: one byte less than all where it is 1."""

    def spoil(shop: Workshop) -> None:
        path = shop.folder / name
        size = path.stat().st_size
        os.truncate(path, min(int(size * share), size - 1))

    return spoil


def model(change: Callable[[onnx.ModelProto], object]) -> Spoil:
    """Changes the ONNX file's message."""

    def spoil(shop: Workshop) -> None:
        import onnx

        proto = onnx.load(shop.model)
        change(proto)
        shop.model.write_bytes(proto.SerializeToString())

    return spoil


def external(location: str, *, write: bool = True) -> Spoil:
    """Says that the first weight lies in the file `location`, which is written for real."""

    def spoil(shop: Workshop) -> None:
        import onnx

        proto = onnx.load(shop.model)
        tensor = weight(proto)
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("length", str(len(content)))):
            tensor.external_data.add(key=key, value=value)
        shop.model.write_bytes(proto.SerializeToString())
        if write:
            (shop.folder / location).write_bytes(content)

    return spoil


def weight(proto: onnx.ModelProto) -> onnx.TensorProto:
    """The first convolution's weight."""
    name = next(node for node in proto.graph.node if node.op_type == "Conv").input[1]
    tensors: dict[str, onnx.TensorProto] = {t.name: t for t in proto.graph.initializer}
    return tensors[name]


def linked_outside(shop: Workshop) -> None:
    """External data behind a link that leaves the model's folder."""
    outside = shop.folder.parent / f"{shop.folder.name}-outside.bin"
    external("weights.bin")(shop)
    shutil.move(shop.folder / "weights.bin", outside)
    (shop.folder / "weights.bin").symlink_to(outside)


def with_cycle(proto: onnx.ModelProto) -> None:
    """The first node reads what the last one computes."""
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]


def with_duplicate(proto: onnx.ModelProto) -> None:
    """Two nodes define one name."""
    proto.graph.node[3].output[0] = proto.graph.node[1].output[0]


def with_operator(op_type: str, domain: str = "") -> Callable[[onnx.ModelProto], None]:
    """A node of this operator on top of the output."""

    def change(proto: onnx.ModelProto) -> None:
        import onnx

        output = proto.graph.output[0].name
        proto.graph.node[-1].output[0] = "inner"
        node = onnx.helper.make_node(op_type, ["inner"], [output], name="added", domain=domain)
        proto.graph.node.append(node)
        if domain:
            proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))

    return change


def with_short_weight(proto: onnx.ModelProto) -> None:
    """A weight whose dims ask for more bytes than it holds."""
    weight(proto).dims[0] += 1


def with_misfit(proto: onnx.ModelProto) -> None:
    """A weight of another number of input channels, whole in itself."""
    tensor = weight(proto)
    tensor.dims[1] += 1
    size = len(tensor.raw_data) // (tensor.dims[1] - 1) * tensor.dims[1]
    tensor.raw_data = bytes(size)


def with_string_input(proto: onnx.ModelProto) -> None:
    """An input that takes strings."""
    import onnx

    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


def with_sequence_input(proto: onnx.ModelProto) -> None:
    """An input that is a sequence of tensors."""
    import onnx

    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    proto.graph.input[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(kind))


def with_nodes_reversed(proto: onnx.ModelProto) -> None:
    """Nodes in an order in which none can be computed."""
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def with_opset(version: int) -> Callable[[onnx.ModelProto], None]:
    """The file claims this opset."""

    def change(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].version = version

    return change


def quantized(shop: Workshop) -> None:
    """The model is one that is quantized already: a Q and a DQ behind its input."""

    def change(proto: onnx.ModelProto) -> None:
        import onnx
        from onnx import helper

        entry = proto.graph.input[0].name
        for node in proto.graph.node:
            for index, name in enumerate(node.input):
                if name == entry:
                    node.input[index] = "restored"
        proto.graph.initializer.extend(
            [
                helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [1 / 255]),
                helper.make_tensor("zero", onnx.TensorProto.UINT8, [], [0]),
            ]
        )
        q = helper.make_node("QuantizeLinear", [entry, "scale", "zero"], ["q"], name="q")
        dq = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["restored"], name="dq")
        proto.graph.node.insert(0, dq)
        proto.graph.node.insert(0, q)

    model(change)(shop)


def pickled(shop: Workshop) -> None:
    """An archive whose images are pickled objects."""
    import numpy as np

    images = np.empty(4, dtype=object)
    images[:] = [{"pixel": number} for number in range(4)]
    np.savez(shop.data("calibration"), allow_pickle=True, images=images)


def zip_bomb(shop: Workshop) -> None:
    """A small archive whose array would take a terabyte."""
    import numpy as np
    from numpy.lib import format as npy_format

    header = io.BytesIO()
    declared = {"descr": "|u1", "fortran_order": False, "shape": (2**40 // 64, 8, 8, 1)}
    npy_format.write_array_header_1_0(header, declared)
    with zipfile.ZipFile(shop.data("calibration"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(np.zeros(10**6, np.uint8)))


def data(split: Split, **change: Callable[[NDArray[Any]], Any]) -> Spoil:
    """Changes arrays of a split by name."""

    def spoil(shop: Workshop) -> None:
        arrays = shop.arrays(split)
        shop.save(split, **{name: how(arrays[name]) for name, how in change.items()})

    return spoil


def shared_samples(shop: Workshop) -> None:
    """Three evaluation images stand in the calibration data, too."""
    images = shop.arrays("calibration")["images"].copy()
    images[10:13] = shop.arrays("evaluation")["images"][100:103]
    shop.save("calibration", images=images)


def all_of(*spoils: Spoil) -> Spoil:
    """Several changes that make one bad input together."""

    def spoil(shop: Workshop) -> None:
        for one in spoils:
            one(shop)

    return spoil
