"""The ONNX package's own test models: real topologies and small graphs, with their data.

The light models are nine well-known networks whose weights were replaced by constants, so that
their outputs hardly depend on the input: `with_seeded_weights` gives them weights with which they
do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

IR_VERSION = 4
"""The first in which initializers need not be inputs, too."""

SMALL_GROUPS = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class BackendModel:
    """One test model. `path` is its file."""

    name: str
    path: Path

    def feeds(self) -> list[dict[str, NDArray[Any]]]:
        """The inputs of its data sets, by name; only for models whose inputs are tensors."""
        import onnx
        from onnx import numpy_helper

        names = [value.name for value in onnx.load(self.path).graph.input]
        return [
            {
                name: numpy_helper.to_array(onnx.load_tensor(folder / f"input_{index}.pb"))
                for index, name in enumerate(names)
                if (folder / f"input_{index}.pb").exists()
            }
            for folder in sorted(self.path.parent.glob("test_data_set_*"))
        ]


def data_folder() -> Path:
    """Where the ONNX package keeps its test models."""
    import onnx.backend.test

    return Path(onnx.backend.test.__path__[0]) / "data"


def small_models() -> list[BackendModel]:
    """The groups of `SMALL_GROUPS`: about 140 graphs of a few nodes, with their data."""
    found = [
        path for group in SMALL_GROUPS for path in sorted((data_folder() / group).glob("*/*.onnx"))
    ]
    return [BackendModel(f"{path.parts[-3]}/{path.parts[-2]}", path) for path in found]


def light_models() -> list[BackendModel]:
    """AlexNet, DenseNet-121, Inception v1, v2, ResNet-50, ShuffleNet, SqueezeNet, VGG-19, ZFNet."""
    paths = sorted((data_folder() / "light").glob("*.onnx"))
    return [BackendModel(path.stem.removeprefix("light_"), path) for path in paths]


def at_opset(path: Path, opset: int = 13) -> onnx.ModelProto:
    """The model with its opset raised to `opset` by onnx's converter, nothing compared."""
    import onnx
    from onnx.version_converter import convert_version

    proto = onnx.load(path)
    version = max(entry.version for entry in proto.opset_import if not entry.domain)
    return convert_version(proto, opset) if version < opset else proto


def with_seeded_weights(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The model with each ConstantOfShape as a random initializer of a scale for its use.

    Weights are normal with the variance 2 / fan-in (He et al. 2015), so that activations keep their
    scale through the layers. What goes into the last Softmax becomes an output, too: a Softmax that
    saturates hides what changed before it.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    uses: dict[str, tuple[str, int]] = {}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            uses.setdefault(name, (node.op_type, index))
    kept = []
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(dim) for dim in shapes[node.input[0]])
        values = _weights(rng, shape, *uses.get(node.output[0], ("", 0)))
        proto.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    result.ir_version = max(result.ir_version, IR_VERSION)
    del result.graph.node[:]
    result.graph.node.extend(kept)
    _expose_logits(result)
    return result


def _expose_logits(proto: onnx.ModelProto) -> None:
    import onnx

    softmax = [node for node in proto.graph.node if node.op_type == "Softmax"]
    inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info
    proto.graph.output.extend(
        value for value in inferred if softmax and value.name == softmax[-1].input[0]
    )


def _weights(rng: Any, shape: tuple[int, ...], op_type: str, index: int) -> NDArray[Any]:
    import numpy as np

    if op_type in ("Conv", "Gemm") and index == 1:
        fan_in = max(int(np.prod(shape[1:])), 1)
        scale = np.float32((2.0 / fan_in) ** 0.5)
        return np.asarray(rng.standard_normal(shape, dtype=np.float32) * scale)
    if op_type in ("BatchNormalization", "Unsqueeze") and index in (0, 1, 4):
        return np.asarray(rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return np.asarray(rng.normal(0, 0.1, shape)).astype(np.float32)


def node_cases() -> Iterator[tuple[str, onnx.ModelProto, Mapping[str, NDArray[Any]]]]:
    """The ONNX package's test cases of single operators: name, model, feeds. Numeric ones only."""
    import numpy as np
    import onnx
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        if case.model is None or case.data_sets is None:
            continue
        proto = onnx.ModelProto.FromString(case.model.SerializeToString())
        values = [*proto.graph.input, *proto.graph.output]
        numeric = all(
            value.type.HasField("tensor_type")
            and value.type.tensor_type.elem_type != onnx.TensorProto.STRING
            for value in values
        )
        if numeric and proto.opset_import[0].version >= 13:
            arrays = case.data_sets[0][0]
            names = [value.name for value in proto.graph.input]
            yield case.name, proto, {n: np.asarray(a) for n, a in zip(names, arrays, strict=True)}
