"""Puts the steps of a data source's transform into an ONNX model, in front of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimc.calibration.transforms import (
    Cast,
    Divide,
    ExpandDims,
    Multiply,
    Normalize,
    Squeeze,
)
from optimc.core.errors import InputError
from optimc.core.model import SOURCE_KEY, OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.calibration.transforms import Numbers, Step

Shape = tuple[int | str, ...]


def is_embeddable(step: Step) -> bool:
    """Whether standard ONNX does the same as the step, element by element."""
    if isinstance(step, Cast):
        return step.cast == "float32"
    return isinstance(step, str | Divide | Multiply | Normalize | ExpandDims | Squeeze)


def shape_before(steps: Sequence[Step], shape: Shape) -> Shape:
    """The shape that becomes `shape` by `steps`, both with the axis of samples."""
    for step in reversed(steps):
        if step == "nchw":
            shape = (shape[0], *shape[2:], shape[1])
        elif step == "nhwc":
            shape = (shape[0], shape[-1], *shape[1:-1])
        elif isinstance(step, ExpandDims):
            shape = shape[: step.expand_dims] + shape[step.expand_dims + 1 :]
        elif isinstance(step, Squeeze):
            shape = (*shape[: step.squeeze], 1, *shape[step.squeeze :])
    return shape


def embed(
    model: OnnxModel, steps: Mapping[str, Sequence[Step]], raw: Mapping[str, str]
) -> OnnxModel:
    """A copy of `model` whose inputs in `steps` take what the steps start from.

    `raw` gives the numpy dtype of each such input. Inputs keep their names and their places. Raises
    InputError where the rank of an input is not known.
    """
    clone = model.clone()
    graph = clone.ir.graph
    for position, value in enumerate(list(graph.inputs)):
        name = str(value.name)
        if name in steps:
            _Prelude(clone.ir, value).write(steps[name], raw[name], position)
    return clone.sealed()


class _Prelude:
    """The nodes in front of one input."""

    def __init__(self, model: ir.Model, value: ir.Value) -> None:
        from optimc.core.onnx_names import NameTable

        self._graph = model.graph
        self._value = value
        self._name = str(value.name)
        self._names = NameTable.of_values(model)
        self._nodes: list[ir.Node] = []

    def write(self, steps: Sequence[Step], dtype: str, position: int) -> None:
        """Puts a new input in the place of the old one, and the steps between them."""
        import numpy as np
        import onnx_ir as ir

        if self._value.shape is None:
            raise InputError(
                f"the rank of input `{self._name}` is not known, so nothing can stand before it",
                fix=f"declare its shape in the recipe: inputs: {{{self._name}: {{shape: [...]}}}}",
            )
        dims = tuple(d if isinstance(d, int) else str(d.value) for d in self._value.shape)
        kind = ir.DataType.from_numpy(np.dtype(dtype))
        new = ir.Value(
            name=self._name, type=ir.TensorType(kind), shape=ir.Shape(shape_before(steps, dims))
        )
        new.meta[SOURCE_KEY] = self._name
        self._value.name = self._names.unique(f"{self._name}_preprocessed")
        self._value.meta[SOURCE_KEY] = self._value.name
        self._graph.inputs[position] = new
        result = self._steps(steps, new)
        if result.dtype != self._value.dtype:
            assert self._value.dtype is not None
            result = self._node("Cast", [result], result, to=int(self._value.dtype))
        self._take_over(result)

    def _take_over(self, result: ir.Value) -> None:
        """The last node's output becomes the value that the model read as its input."""
        result.name, result.type, result.shape = (
            self._value.name,
            self._value.type,
            self._value.shape,
        )
        result.meta[SOURCE_KEY] = str(result.name)
        self._value.replace_all_uses_with(result, replace_graph_outputs=True)
        self._value.name = None
        first = next(iter(self._graph), None)
        if first is None:
            self._graph.extend(self._nodes)
        else:
            self._graph.insert_before(first, self._nodes)

    def _steps(self, steps: Sequence[Step], value: ir.Value) -> ir.Value:
        for step in steps:
            assert value.shape is not None
            rank = len(value.shape)
            if isinstance(step, str):
                last = rank - 1
                perm = [0, last, *range(1, last)] if step == "nchw" else [0, *range(2, rank), 1]
                value = self._node("Transpose", [value], value, perm=perm)
            elif isinstance(step, ExpandDims | Squeeze):
                added = isinstance(step, ExpandDims)
                axis = step.expand_dims if isinstance(step, ExpandDims) else step.squeeze
                kind = "Unsqueeze" if added else "Squeeze"
                value = self._node(kind, [value, self._axes(axis)], value, rank + (added or -1))
            else:
                value = self._arithmetic(step, self._float32(value), rank)
        return value

    def _arithmetic(self, step: Step, value: ir.Value, rank: int) -> ir.Value:
        if isinstance(step, Divide):
            return self._with("Div", value, step.divide, rank)
        if isinstance(step, Multiply):
            return self._with("Mul", value, step.multiply, rank)
        if isinstance(step, Normalize):
            value = self._with("Sub", value, step.normalize.mean, rank)
            return self._with("Div", value, step.normalize.std, rank)
        assert isinstance(step, Cast)
        return value

    def _float32(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        if value.dtype == ir.DataType.FLOAT:
            return value
        result = self._node("Cast", [value], value, to=int(ir.DataType.FLOAT))
        result.type = ir.TensorType(ir.DataType.FLOAT)
        return result

    def _with(self, op_type: str, value: ir.Value, numbers: Numbers, rank: int) -> ir.Value:
        """An operator with one number, or with one for each entry of axis 1."""
        import numpy as np

        array = np.asarray(numbers, np.float32)
        if array.ndim:
            array = array.reshape(-1, *[1] * (rank - 2))
        constant = self._constant(op_type.lower(), array)
        return self._node(op_type, [value, constant], value)

    def _axes(self, axis: int) -> ir.Value:
        import numpy as np

        return self._constant("axes", np.array([axis], np.int64))

    def _constant(self, what: str, array: Any) -> ir.Value:
        import onnx_ir as ir

        name = self._names.unique(f"{self._name}_{what}")
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Value,
        rank: int | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """The output of a new node: of the dtype of `like`, and of its rank or of `rank`."""
        import onnx_ir as ir

        name = self._names.unique(f"{self._name}_{op_type.lower()}")
        node = ir.node(op_type, inputs, attributes, name=name)
        output = node.outputs[0]
        output.name, output.type = name, like.type
        output.meta[SOURCE_KEY] = name
        assert like.shape is not None
        if op_type not in ("Transpose", "Squeeze", "Unsqueeze"):
            output.shape = ir.Shape(list(like.shape))
        else:
            output.shape = ir.Shape([None] * (rank or len(like.shape)))
        self._nodes.append(node)
        return output
