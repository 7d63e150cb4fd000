"""PyTorch models in a worker process: opened, exported, and compared with their ONNX form.

Imports torch at the top: it serves `optimc.frontends.torch_frontend`, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.frontends._torch_export import (
    export_program,
    symbols_of,
    upper_bounds,
    write_onnx,
)
from optimc.frontends._torch_modules import unique_output_names
from optimc.frontends._torch_sources import FactoryModel, ProgramModel, Tensors, TorchModel

if TYPE_CHECKING:
    import torch

Answer = tuple[Any, dict[str, Any]]


class TorchService:
    """One model. `kind` and `options` are those of the recipe's source; see `open_source`."""

    def __init__(self, kind: str, options: Mapping[str, Any]) -> None:
        self._model = open_source(kind, options)
        self._session: Any = None

    def describe(self, arrays: Mapping[str, Any]) -> Answer:
        """What the model says of its inputs: the fields of `Described`."""
        return asdict(self._model.described), {}

    def export(self, arrays: Mapping[str, Any], target: str, shapes: dict[str, Any]) -> Answer:
        """Writes the model as ONNX to `target`, traced on the feeds `arrays`.

        `shapes` gives every input's shape; names there are dynamic dims. Returns notes, and by
        name of a dim the greatest size that the model takes.
        """
        feeds = as_tensors(arrays)
        names = self._model.names
        try:
            found = [name for name, _ in self._model.run(feeds)]
        except InputError:
            raise
        except Exception as error:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise InputError(
                f"the module raised {type(error).__name__} on inputs of the sizes {sizes}: "
                f"{' '.join(str(error).split())[:300]}",
                fix="correct shape, dtype, `values` or `range` under `inputs`, or sizes in `dims`",
            ) from error
        outputs = unique_output_names(found, names)
        program = export_program(self._model, feeds, shapes)
        symbols = symbols_of(program, names, shapes)
        write_onnx(program, Path(target), names, outputs, symbols)
        renamed = [
            f"the output `{was}` is called `{now}`, because the name is taken"
            for was, now in zip(found, outputs, strict=True)
            if was != now
        ]
        return {"notes": renamed, "most": upper_bounds(program, symbols)}, {}

    def load(self, arrays: Mapping[str, Any], path: str) -> Answer:
        """Opens the ONNX file that `compare` compares with."""
        from optimc.core.onnx_session import reference_session

        self._session = reference_session(Path(path))
        return None, {}

    def compare(self, arrays: Mapping[str, Any]) -> Answer:
        """By output: the greatest error between torch and the ONNX file, as a share of its scale.

        Infinite where shapes, dtypes, integers or the places of NaN differ.
        """
        from optimc.core.onnx_session import max_relative_error

        ran = self._model.run(as_tensors(arrays))
        names = unique_output_names([name for name, _ in ran], self._model.names)
        actual = self._session.run(names, dict(arrays))
        errors = {
            name: max_relative_error(as_array(tensor), array)
            for name, (_, tensor), array in zip(names, ran, actual, strict=True)
        }
        return errors, {}


def open_source(kind: str, options: Mapping[str, Any]) -> TorchModel:
    """The model that a recipe names: `kind` and `options` are those of its source."""
    if kind == "exported":
        return ProgramModel(Path(options["path"]))
    if kind == "hf":
        from optimc.frontends._huggingface_models import open_folder

        return open_folder(**options)
    return FactoryModel(
        options["call"],
        Path(options["folder"]),
        options["arguments"],
        options["weights"],
        options["declared"],
        options["seed"],
    )


def as_tensors(arrays: Mapping[str, Any]) -> Tensors:
    """The arrays as tensors. numpy has no bfloat16 that torch takes: its bits travel as int16."""
    import torch

    return {
        name: torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
        if array.dtype.name == "bfloat16"
        else torch.from_numpy(array.copy())
        for name, array in arrays.items()
    }


def as_array(tensor: torch.Tensor) -> Any:
    """The tensor as an array, also where numpy has its dtype from ml_dtypes only."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
