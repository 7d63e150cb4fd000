"""The kinds of models that a recipe can name under `model`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from optimc.core.descriptions import wanted
from optimc.frontends.huggingface import Task

KINDS = ("onnx", "exported", "factory", "hf")
"""The keys that tell the kind of a model; a recipe has one of them."""

RUNS_CODE = {"exported": "a `.pt2` file may hold pickled objects", "factory": "it is imported"}
"""The kinds that `--untrusted` refuses, with the reason."""

Pooling: TypeAlias = Literal["mean", "cls", "max", "last"]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=wanted()
    )


class _Source(_Part, ABC):
    tools: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    """Distributions that read it, beside those that every build uses."""

    @property
    @abstractmethod
    def place(self) -> Path | None:
        """The file or folder that the model is read from, or None."""

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Libraries with custom operators that ONNX Runtime has to load."""
        return ()

    def shown(self, folder: Path) -> str:
        """The model for reports: its place as seen from `folder`."""
        assert self.place is not None
        return os.path.relpath(self.place, folder)


class OnnxSource(_Source):
    """An ONNX model."""

    tools: ClassVar[tuple[str, ...]] = ()

    onnx: Path
    """An ONNX file."""
    custom_ops: tuple[Path, ...] = ()
    """Shared libraries with operators of your own, as ONNX Runtime's
    `register_custom_ops_library` takes them. They are code, which `--untrusted` refuses. They are
    copied beside the engine; other runtimes than ONNX Runtime cannot run such a model."""

    @property
    def place(self) -> Path:
        """See `_Source`."""
        return self.onnx

    @property
    def libraries(self) -> tuple[Path, ...]:
        """See `_Source`."""
        return self.custom_ops


class ExportedSource(_Source):
    """A program that `torch.export.save` wrote."""

    exported: Path
    """A `.pt2` file. Reading it may run code that it holds."""

    @property
    def place(self) -> Path:
        """See `_Source`."""
        return self.exported


class Weights(_Part):
    """A checkpoint: names and tensors."""

    file: Path
    """A safetensors file, or .pt, .pth or .bin, of which tensors alone are read."""
    key: Annotated[str, Field(min_length=1)] | None = None
    """The entry of a .pt, .pth or .bin file that holds the tensors, such as `state_dict`; `a.b` is
    the entry `b` of `a`."""
    prefix: Annotated[str, Field(min_length=1)] | None = None
    """What the names of the tensors begin with, such as `module.`: it is taken off, and tensors of
    other names are left out."""


class FactorySource(_Source):
    """A PyTorch module that a function makes."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """``package.module:function``, beside the recipe or installed; importing it runs its code."""
    weights: Weights | None = None
    """What is loaded into the module. Without it, the function has to load its weights."""
    arguments: Mapping[str, JsonValue] = Field(default_factory=dict)
    """The keyword arguments of the function."""

    @property
    def place(self) -> Path | None:
        """See `_Source`."""
        return None if self.weights is None else self.weights.file

    def shown(self, folder: Path) -> str:
        """See `_Source`."""
        return self.factory if self.weights is None else super().shown(folder)


class HuggingFaceSource(_Source):
    """A folder that `save_pretrained` of transformers wrote. Nothing is fetched."""

    tools: ClassVar[tuple[str, ...]] = ("torch", "safetensors", "transformers")

    hf: Path
    """The folder, with config.json and the weights."""
    task: Task
    """What the model is for: it tells the class, the inputs and the outputs."""
    pooling: Pooling | None = None
    """For `embedding`: how the last hidden state becomes one vector. `mean` (over the mask) by
    default; `cls` takes the first token, `last` the last one of the mask, `max` the greatest."""
    normalize: bool | None = None
    """For `embedding`: whether the vector has length 1. It has not by default."""

    @property
    def place(self) -> Path:
        """See `_Source`."""
        return self.hf

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("pooling", "normalize"):
            if self.task != "embedding" and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` belongs to the task `embedding`, the task is `{self.task}`"
                    f"\nleave `{name}` out, or write `task: embedding`"
                )
        return self


def _kind(value: Any) -> str:
    """The class that a mapping means; `sections` has refused two kinds at once by then."""
    if isinstance(value, _Source):
        return type(value).__name__
    keys = value if isinstance(value, Mapping) else {}
    classes = (ExportedSource, FactorySource, HuggingFaceSource)
    named = zip(KINDS[1:], classes, strict=True)
    return next((cls.__name__ for key, cls in named if key in keys), OnnxSource.__name__)


ModelSource: TypeAlias = Annotated[
    Annotated[OnnxSource, Tag("OnnxSource")]
    | Annotated[ExportedSource, Tag("ExportedSource")]
    | Annotated[FactorySource, Tag("FactorySource")]
    | Annotated[HuggingFaceSource, Tag("HuggingFaceSource")],
    Discriminator(_kind),
]
"""Where the model comes from."""

ModuleSource: TypeAlias = FactorySource | HuggingFaceSource
"""What passes of the torch level work on: a `.pt2` has no modules."""

TorchSource: TypeAlias = ExportedSource | FactorySource | HuggingFaceSource
